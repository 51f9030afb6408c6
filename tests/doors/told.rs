//! What the socket tells of the daemon itself: numbers, states, tokens.

use std::collections::BTreeMap;

use serde_json::json;
use sotto::engine::Engine;

use super::{House, HttpOptions, NATIVE};
use crate::support::until;

/// The names that `docs/API.md` promises.
fn promised() -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/API.md")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Metrics (")).expect("a paragraph on metrics");
    let names = line.split('`').skip(1).step_by(2).map(|name| name.split('{').next().unwrap());
    names
        .filter(|name| name.starts_with("sotto_") || name.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn numbers_are_told_and_no_text() {
    let house = House::new(HttpOptions::default());
    let canary = "Quaxolotl";
    assert_eq!(
        house.post(NATIVE, json!({"input": canary, "raw": true, "max_tokens": 5, "min_tokens": 5})).status,
        200
    );
    assert_eq!(house.post(NATIVE, json!({"input": canary, "max_tokens": 0})).code(), "invalid_value");
    assert_eq!(house.send("GET", "/nowhere", "", "").code(), "unknown_route");
    // The engine counts what goes on at the end of a step, after the answer was told.
    let page = until("an engine at rest", || {
        let page = house.send("GET", "/metrics", "", "");
        page.body.lines().any(|line| line == "sotto_active_sequences 0").then_some(page)
    });
    assert!(page.headers.contains("content-type: text/plain; version=0.0.4"), "{}", page.headers);
    let names = promised();
    assert!(names.len() > 15, "{names:?}");
    for name in &names {
        let lines: Vec<&str> = page.body.lines().filter(|line| line.starts_with(name.as_str())).collect();
        assert!(!lines.is_empty(), "{name} is not told:\n{}", page.body);
        assert!(page.body.contains(&format!("# TYPE {name} ")), "{name}");
        for line in lines {
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    let has = |line: &str| assert!(page.body.lines().any(|l| l == line), "{line}:\n{}", page.body);
    has("sotto_completion_tokens_total{model=\"inside\"} 5");
    has("sotto_generations_total{model=\"inside\",finish=\"length\"} 1");
    has("sotto_requests_total{door=\"http\",route=\"/sotto/v1/generate\",code=\"ok\"} 1");
    has("sotto_requests_total{door=\"http\",route=\"/sotto/v1/generate\",code=\"invalid_value\"} 1");
    has("sotto_requests_total{door=\"http\",route=\"unknown\",code=\"unknown_route\"} 1");
    has("sotto_errors_total{code=\"invalid_value\"} 1");
    has("sotto_inter_token_seconds_count{model=\"inside\"} 4");
    assert!(!page.body.contains(canary));
}

/// How often each code was told.
fn errors(engine: &Engine) -> BTreeMap<&'static str, u64> {
    let mut all = BTreeMap::new();
    engine.metrics().each_error(|code, n| {
        all.insert(code.as_str(), n);
    });
    all
}

#[test]
fn what_is_refused_is_counted_once_wherever_that_is() {
    let house = House::new(HttpOptions { max_connections_per_uid: 3, ..HttpOptions::default() });
    // On routes that generate and on others, before them, and beside the routes.
    assert_eq!(house.send("GET", NATIVE, "", "").code(), "method_not_allowed");
    assert_eq!(house.send("PUT", "/v1/models", "", "").code(), "method_not_allowed");
    assert_eq!(house.post(NATIVE, json!({"input": "a", "model": "nobody"})).code(), "unknown_model");
    assert_eq!(
        house.post("/sotto/v1/tokenize", json!({"text": "a", "model": "nobody"})).code(),
        "unknown_model"
    );
    assert_eq!(
        house.post("/v1/embeddings", json!({"input": "a", "model": "nobody"})).code(),
        "unknown_model"
    );
    assert_eq!(house.raw(b"POST /sotto/v1/generate HTTP/1.1\r\n\r\n").code(), "invalid_value");
    assert_eq!(house.raw(b"no head at all\r\n\r\n").code(), "invalid_value");
    let large = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(40_000));
    assert_eq!(house.raw(large.as_bytes()).code(), "header_too_large");
    // Seats are free when those who had them are gone.
    let seats: Vec<_> = (0..3).map(|_| house.connect()).collect();
    assert_eq!(house.raw(b"").code(), "queue_full");
    drop(seats);
    let expected =
        [("header_too_large", 1), ("invalid_value", 2), ("method_not_allowed", 2), ("unknown_model", 3)];
    let mut all = errors(&house.0.engine);
    // A seat before could still have been taken by who was answered.
    assert!(all.remove("queue_full") >= Some(1), "{all:?}");
    assert_eq!(all, BTreeMap::from(expected));
}

#[cfg(feature = "dbus")]
#[test]
fn what_the_bus_refuses_is_counted_once() {
    use crate::dbus::{Options, drained, manager, on_a_pair_with};
    let engine = super::engine();
    let counted = engine.clone();
    on_a_pair_with(engine, sotto::door::dbus::DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        let nobody = || Options::from([("model", zbus::Variant::from("nobody"))]);
        let calls = [
            manager.call::<_, _, ()>("Generate", &1_u32).await,
            manager.call::<_, _, ()>("Generate", &("a", nobody())).await,
            manager.call::<_, _, ()>("Tokenize", &("a", nobody())).await,
            manager.call::<_, _, ()>("Embed", &(vec!["a"], nobody())).await,
            manager.call::<_, _, ()>("OpenSession", &(nobody(),)).await,
            manager
                .call::<_, _, ()>("Generate", &("a", Options::from([("top", zbus::Variant::from(1))])))
                .await,
        ];
        assert!(calls.iter().all(Result::is_err), "{calls:?}");
        // What D-Bus itself has names for is no fault of ours.
        assert!(manager.call::<_, _, ()>("Nothing", &()).await.is_err());
        // A stream is told of it in the stream.
        let (path, stream): (zbus::OwnedObjectPath, zbus::OwnedFd) =
            manager.call("StartGeneration", &("a", nobody())).await.unwrap();
        assert!(drained(stream).await.contains("unknown_model"));
        // Who is told of it again is not counted again.
        let generation = crate::objects::at(&client, path.as_str(), crate::objects::GENERATION).await;
        assert!(generation.call::<_, _, ()>("Result", &()).await.is_err());
    });
    let expected = BTreeMap::from([("invalid_value", 1), ("unknown_field", 1), ("unknown_model", 5)]);
    until("all counted", || (errors(&counted) == expected).then_some(()));
    assert_eq!(errors(&counted), expected);
}

#[test]
fn the_daemon_says_how_it_is() {
    let house = House::new(HttpOptions::default());
    for path in ["/healthz", "/readyz"] {
        let reply = house.send("GET", path, "", "");
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok\n"), "{path}");
    }
    let status = house.send("GET", "/sotto/v1/status", "", "").json();
    assert_eq!(
        (&status["state"], &status["loaded_models"]),
        (&json!("ready"), &json!([])),
        "nothing was loaded: {status}"
    );
    assert_eq!((&status["default_model"], &status["features"]), (&json!("inside"), &json!(["embeddings"])));
    house.0.engine.shut_down();
    let reply = house.send("GET", "/readyz", "", "");
    assert_eq!((reply.status, reply.code().as_str()), (503, "not_ready"));
    assert!(reply.headers.contains("retry-after: "), "{}", reply.headers);
    assert_eq!(house.send("GET", "/sotto/v1/status", "", "").json()["state"], "draining");
    assert_eq!(house.send("GET", "/healthz", "", "").status, 200);
}

#[test]
fn texts_become_tokens() {
    let house = House::new(HttpOptions::default());
    let ask = |body| house.post("/sotto/v1/tokenize", body);
    let plain = ask(json!({"text": "Once upon a time"})).json();
    let tokens = plain["tokens"].as_array().unwrap();
    assert!(tokens.len() > 3 && plain["count"] == tokens.len() && plain.get("prompt").is_none(), "{plain}");
    let special = ask(json!({"text": "Once upon a time", "add_special": true})).json();
    assert_eq!(
        (special["count"].as_u64(), &special["tokens"][0]),
        (Some(tokens.len() as u64 + 1), &json!(1))
    );
    let parsed = |parse| ask(json!({"text": "<s>", "parse_special": parse})).json()["tokens"].clone();
    assert_eq!((parsed(true), parsed(false) == json!([1])), (json!([1]), false));
    let chat = ask(json!({"messages": [{"role": "user", "content": "hi"}]})).json();
    assert!(chat["prompt"].as_str().unwrap().contains("hi"), "{chat}");
    for (body, code) in [
        (json!({}), "missing_field"),
        (json!({"text": "a", "messages": [{"role": "user", "content": "hi"}]}), "invalid_value"),
        (json!({"messages": [{"role": "user", "content": "hi"}], "add_special": true}), "invalid_value"),
        (json!({"text": "a", "model": "nobody"}), "unknown_model"),
        (json!({"text": "a", "tools": [{"type": "function"}]}), "unsupported_field"),
        (json!({"text": "a", "x": 1}), "unknown_field"),
        (json!({"text": "a".repeat(1 << 20) + "b"}), "body_too_large"),
    ] {
        assert_eq!(
            ask(body.clone()).code(),
            code,
            "{}",
            body.to_string().chars().take(80).collect::<String>()
        );
    }
    assert_eq!(
        house.send("GET", "/sotto/v1/status", "", "").json()["loaded_models"],
        json!([]),
        "none was loaded"
    );
}
