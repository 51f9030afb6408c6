//! Texts as vectors at both doors.

use super::*;
use serde_json::json;

const ROUTE: &str = "/v1/embeddings";
const TEXT: &str = "Once upon a time, there was a little girl.";

/// The vectors of an answer.
fn vectors(reply: &Reply) -> Vec<Vec<f64>> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    assert_eq!((answer["object"].as_str(), answer["model"].as_str()), (Some("list"), Some("inside")));
    let items = answer["data"].as_array().unwrap().iter().enumerate();
    items
        .map(|(i, item)| {
            assert_eq!(
                (item["object"].as_str(), item["index"].as_u64()),
                (Some("embedding"), Some(i as u64))
            );
            item["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        })
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn texts_become_vectors() {
    let house = House::new(HttpOptions::default());
    let reply = house.post(ROUTE, json!({"input": TEXT, "model": "inside", "user": "me"}));
    let one = vectors(&reply).remove(0);
    let golden = std::fs::read_to_string(support::fixture("stories260k/golden_vectors.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let mean: Vec<f64> = golden["mean"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!((dot(&one, &one) - 1.0).abs() < 1e-6, "unit length");
    assert!(dot(&one, &mean) / dot(&mean, &mean).sqrt() > 0.999, "as another program says");
    let n = golden["ids"].as_array().unwrap().len();
    assert_eq!(reply.json()["usage"], json!({"prompt_tokens": n, "total_tokens": n}));
    // Of tokens the same, whole and without a model's name.
    assert_eq!(vectors(&house.post(ROUTE, json!({"input": golden["ids"]}))), std::slice::from_ref(&one));

    // Many at once are what each is alone.
    let texts: Vec<String> = (0..9).map(|i| format!("{TEXT} {}", "She said so. ".repeat(i * 3))).collect();
    let alone: Vec<Vec<f64>> =
        texts.iter().map(|text| vectors(&house.post(ROUTE, json!({"input": text}))).remove(0)).collect();
    assert_eq!(vectors(&house.post(ROUTE, json!({"input": texts}))), alone);
    let service = json!({"input": texts, "sotto": {"class": "background", "deadline_ms": 60_000}});
    assert_eq!(vectors(&house.post(ROUTE, service)), alone);

    // The first numbers of a vector, again of unit length; and in the form that the Python client asks for.
    let short = vectors(&house.post(ROUTE, json!({"input": TEXT, "dimensions": 8}))).remove(0);
    assert!((dot(&short, &short) - 1.0).abs() < 1e-6);
    assert!((short[0] / short[7] - one[0] / one[7]).abs() < 1e-5);
    let reply = house.post(ROUTE, json!({"input": TEXT, "encoding_format": "base64"})).json();
    let text = reply["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (one.len() * 4).div_ceil(3) * 4);

    let status = house.send("GET", "/v1/models/inside", "", "").json();
    assert_eq!(status["sotto"]["capabilities"], json!(["generate", "embed"]));
}

#[test]
fn a_failure_is_counted_once_and_nothing_was_generated() {
    let house = House::new(HttpOptions::default());
    let long = "and so it went on ".repeat(400);
    assert_eq!(house.post(ROUTE, json!({"input": [long, long, "a"]})).code(), "context_too_long");
    assert_eq!(house.post(ROUTE, json!({"input": 5})).code(), "invalid_value");
    assert_eq!(house.post(ROUTE, json!({"input": "a"})).status, 200);
    let page = house.send("GET", "/metrics", "", "").body;
    for line in
        ["sotto_errors_total{code=\"context_too_long\"} 1", "sotto_errors_total{code=\"invalid_value\"} 1"]
    {
        assert!(page.lines().any(|told| told == line), "{line}:\n{page}");
    }
    let generated =
        page.lines().filter(|line| line.starts_with("sotto_generations_total") && !line.ends_with(" 0"));
    assert_eq!(generated.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn what_cannot_become_a_vector_is_refused() {
    let house = House::new(HttpOptions::default());
    let long = "and so it went on ".repeat(400);
    for (body, code, words) in [
        (json!({}), "missing_field", "input"),
        (json!({"input": []}), "invalid_value", "input: got an array of 0"),
        (json!({"input": ["a", 1]}), "invalid_value", "input[1]"),
        (json!({"input": [[]]}), "invalid_value", "input[0]"),
        (json!({"input": [1, 2, 99_999]}), "invalid_value", "input[2]"),
        (json!({"input": ""}), "ok", ""),
        (json!({"input": 7}), "invalid_value", "input"),
        (json!({"input": vec!["a"; 2_049]}), "invalid_value", "2049"),
        (json!({"input": "a", "dimensions": 0}), "invalid_value", "dimensions"),
        (json!({"input": "a", "dimensions": 65}), "invalid_value", "the 64 of the model"),
        (json!({"input": "a", "encoding_format": "text"}), "invalid_value", "encoding_format"),
        (json!({"input": "a", "temperature": 1}), "unknown_field", "temperature"),
        (json!({"input": "a", "sotto": {"class": "x"}}), "invalid_value", "sotto.class"),
        (json!({"input": "a", "model": "nobody"}), "unknown_model", "nobody"),
        (json!({"input": ["a", long]}), "context_too_long", "512"),
    ] {
        let reply = house.post(ROUTE, body.clone());
        if code == "ok" {
            // The token that begins every text.
            assert_eq!(reply.json()["usage"]["prompt_tokens"], 1, "{}", reply.body);
            continue;
        }
        assert_eq!(reply.code(), code, "{body}: {}", reply.body);
        assert!(reply.body.contains(words), "{words}: {}", reply.body);
    }
    assert_eq!(house.send("GET", ROUTE, "", "").status, 405);
    // Who is lenient is told what was passed over.
    let reply =
        house.send("POST", ROUTE, "prefer: handling=lenient\r\n", r#"{"input": "a", "temperature": 1}"#);
    assert!(reply.status == 200 && reply.headers.contains("sotto-ignored: temperature"), "{}", reply.headers);
}

#[cfg(feature = "dbus")]
mod bus {
    use super::super::dbus::{Options, manager, on_a_pair};
    use super::*;
    use std::collections::HashMap;
    use zbus::{OwnedVariant, Variant};

    type Answer = (Vec<Vec<f64>>, HashMap<String, OwnedVariant>);

    #[test]
    fn the_bus_gives_the_same_vectors() {
        let house = House::new(HttpOptions::default());
        let texts: Vec<String> = (1..6).map(|i| "a b ".repeat(i * i)).collect();
        let wanted = vectors(&house.post(ROUTE, json!({"input": texts})));
        on_a_pair(|client| async move {
            let manager = manager(&client).await;
            let (found, info): Answer = manager.call("Embed", &(&texts, Options::new())).await.unwrap();
            let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-7);
            assert!(found.iter().zip(&wanted).all(|(a, b)| near(a, b)) && found.len() == 5);
            assert_eq!(&*info["model"], &Variant::new("inside"));
            assert_eq!(info["usage"].value_signature().to_string(), "a{su}");
            let options =
                Options::from([("normalize", Variant::new(false)), ("dimensions", Variant::new(4_u32))]);
            let (raw, _): Answer = manager.call("Embed", &(&texts, options)).await.unwrap();
            assert!(raw.iter().all(|v| v.len() == 4) && raw[0][0].abs() > 0.0);
            let features: Vec<String> = manager.get_property("Features").await.unwrap();
            assert_eq!(features, ["embeddings"]);
            for (inputs, options, name) in [
                (vec![], Options::new(), "InvalidArgs"),
                (vec!["a"; 65], Options::new(), "org.sotto.Error.TooLarge"),
                (vec!["a"], Options::from([("top_k", Variant::new(1_u32))]), "UnknownOption"),
                (vec!["a"], Options::from([("dimensions", Variant::new(65_u32))]), "InvalidArgs"),
            ] {
                let refused = manager.call_method("Embed", &(inputs, options)).await.unwrap_err();
                assert!(refused.to_string().contains(name), "{name}: {refused}");
            }
        });
    }
}
