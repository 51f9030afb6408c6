//! Both doors from outside: HTTP by hand over a temporary socket, D-Bus over a socket pair and on a bus of its own.
//! Asserts are on shapes, codes and order, never on a model's words.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails by panicking, also in its helpers")]

mod batch;
mod choices;
#[cfg(feature = "dbus")]
mod dbus;
mod embeddings;
#[cfg(feature = "dbus")]
mod fuzzed;
#[cfg(feature = "dbus")]
mod objects;
mod prefixes;
mod settings;
mod stalls;
#[path = "../support/mod.rs"]
mod support;
mod told;

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sotto::door::client::{Client, ClientError, ClientEvent};
use sotto::door::http::HttpOptions;
use sotto::engine::Engine;
use support::Inside;

fn engine() -> Engine {
    support::engine(support::stories(), 1, 4096)
}

/// A door in this process with the small trained model behind it.
struct House(Inside);

impl House {
    fn new(options: HttpOptions) -> Self {
        Self(Inside::start(engine(), options))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends `request` on a connection of its own and reads to the end.
    fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        let _ = stream.write_all(request);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Reply::parse(&bytes)
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}", body.len());
        self.raw(format!("{head}connection: close\r\n\r\n{body}").as_bytes())
    }

    fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, "", &body.to_string())
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: String,
    body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("no end of the head");
        let headers = String::from_utf8(bytes[..at].to_vec()).unwrap().to_lowercase();
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[at + 4..].to_vec();
        if headers.contains("transfer-encoding: chunked") {
            body = dechunked(&body);
        }
        Self { status, headers, body: String::from_utf8(body).unwrap() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn code(&self) -> String {
        let error = &self.json()["error"];
        for key in ["message", "type", "code"] {
            assert!(error[key].is_string(), "{key}: {error}");
        }
        assert!(error.as_object().unwrap().contains_key("param"));
        assert!(self.headers.contains("content-type: application/json"), "{}", self.headers);
        assert!(self.headers.contains("x-request-id: "), "{}", self.headers);
        error["code"].as_str().unwrap().to_owned()
    }

    fn lines(&self) -> Vec<Value> {
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn data(&self) -> Vec<String> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
    }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let at = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk without a size");
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        if len == 0 {
            return body;
        }
        body.extend(&bytes[at + 2..at + 2 + len]);
        bytes = &bytes[at + 4 + len..];
    }
}

const CHAT: &str = "/v1/chat/completions";
const NATIVE: &str = "/sotto/v1/generate";

fn hi() -> Value {
    json!([{ "role": "user", "content": "hi" }])
}

#[test]
fn refusals_have_one_body_and_their_status() {
    let house = House::new(HttpOptions::default());
    let text = |body: &str| body.to_owned();
    for (method, path, body, status, code, param) in [
        ("GET", "/nowhere", text(""), 404, "unknown_route", None),
        ("GET", "/", text(""), 404, "unknown_route", None),
        ("GET", CHAT, text(""), 405, "method_not_allowed", None),
        ("POST", "/v1/models", text("{}"), 405, "method_not_allowed", None),
        ("GET", "/v1/models/no%20such", text(""), 404, "unknown_model", Some("id")),
        ("DELETE", "/sotto/v1/generations/x", text(""), 404, "unknown_object", Some("id")),
        ("POST", "/sotto/v1/models/inside/load?context=5", text(""), 400, "invalid_value", None),
        ("POST", "/sotto/v1/models/inside/load", text(r#"{"pine":1}"#), 400, "unknown_field", Some("pine")),
        (
            "POST",
            "/sotto/v1/models/inside/load",
            text(r#"{"context":1}"#),
            400,
            "invalid_value",
            Some("context"),
        ),
        ("POST", "/sotto/v1/models/nowhere/load", text(""), 404, "unknown_model", Some("id")),
        ("POST", CHAT, text(""), 400, "invalid_json", None),
        ("POST", CHAT, text("[]"), 400, "invalid_value", None),
        ("POST", CHAT, text("{}"), 400, "missing_field", Some("messages")),
        ("POST", CHAT, text(r#"{"messages":[],"messages":[]}"#), 400, "invalid_json", None),
        ("POST", CHAT, json!({"messages": []}).to_string(), 400, "invalid_value", Some("messages")),
        ("POST", CHAT, json!({"messages": hi(), "n": 9}).to_string(), 400, "invalid_value", Some("n")),
        ("POST", CHAT, json!({"messages": hi(), "n": 0}).to_string(), 400, "invalid_value", Some("n")),
        ("POST", CHAT, json!({"messages": hi(), "wat": 2}).to_string(), 400, "unknown_field", Some("wat")),
        (
            "POST",
            CHAT,
            json!({"messages": hi(), "store": true}).to_string(),
            400,
            "unsupported_field",
            Some("store"),
        ),
        (
            "POST",
            CHAT,
            json!({"messages": hi(), "sotto": {"x": 1}}).to_string(),
            400,
            "unknown_field",
            Some("sotto.x"),
        ),
        (
            "POST",
            CHAT,
            json!({"messages": hi(), "stream": 1}).to_string(),
            400,
            "invalid_value",
            Some("stream"),
        ),
        (
            "POST",
            CHAT,
            json!({"messages": hi(), "max_tokens": 1, "max_completion_tokens": 2}).to_string(),
            400,
            "invalid_value",
            Some("max_completion_tokens"),
        ),
        ("POST", "/v1/completions", text("{}"), 400, "missing_field", Some("prompt")),
        (
            "POST",
            "/v1/completions",
            json!({"prompt": [1, "a"]}).to_string(),
            400,
            "unsupported_field",
            Some("prompt"),
        ),
        (
            "POST",
            "/v1/completions",
            json!({"prompt": [1, -1]}).to_string(),
            400,
            "invalid_value",
            Some("prompt[1]"),
        ),
        ("POST", NATIVE, text("{}"), 400, "missing_field", Some("input")),
        ("POST", NATIVE, json!({"tokens": [1], "raw": true}).to_string(), 400, "invalid_value", Some("raw")),
    ] {
        let reply = house.send(method, path, "", &body);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{method} {path} {body}");
        assert_eq!(reply.json()["error"]["param"].as_str(), param, "{method} {path} {body}");
    }
    let wrong = house.send("PUT", CHAT, "", "");
    assert!(wrong.headers.contains("allow: post"), "{}", wrong.headers);
}

#[test]
fn answers_have_the_shapes_of_the_interface() {
    let house = House::new(HttpOptions::default());
    let chat = house.post(CHAT, json!({"messages": hi(), "max_tokens": 3, "user": "u", "tools": null}));
    assert_eq!(chat.status, 200, "{chat:?}");
    let body = chat.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["message"]["role"], "assistant");
    assert!(body["choices"][0]["message"]["content"].is_string());
    assert!(["stop", "length"].contains(&body["choices"][0]["finish_reason"].as_str().unwrap()));
    assert!(body["usage"]["total_tokens"].is_u64() && body["sotto"]["seed"].is_u64());
    assert!(chat.headers.contains(&format!("x-request-id: {}", body["id"].as_str().unwrap())));

    let text = house.post("/v1/completions", json!({"prompt": "a", "max_tokens": 3})).json();
    assert_eq!(text["object"], "text_completion");
    assert!(text["choices"][0]["text"].is_string());
    let ids = house.post("/v1/completions", json!({"prompt": [1, 2], "max_tokens": 1}));
    assert_eq!(ids.status, 200);

    let list = house.send("GET", "/v1/models", "", "").json();
    assert!(list["object"] == "list" && list["data"].is_array());
    assert_eq!(house.send("GET", "/healthz", "", "").body, "ok\n");
    let gone = house.send("DELETE", "/sotto/v1/generations/00000000000000000000000000", "", "");
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
}

#[test]
fn a_stream_keeps_the_order_of_its_chunks() {
    let house = House::new(HttpOptions::default());
    let ask =
        json!({"messages": hi(), "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let reply = house.post(CHAT, ask.clone());
    assert!(reply.headers.contains("content-type: text/event-stream") && reply.headers.contains("no-store"));
    let data = reply.data();
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|d| serde_json::from_str(d).unwrap()).collect();
    assert_eq!(data.last().unwrap(), "[DONE]");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, finish) = (&chunks[chunks.len() - 1], &chunks[chunks.len() - 2]);
    assert!(usage["choices"] == json!([]) && usage["usage"]["prompt_tokens"].is_u64());
    assert!(finish["choices"][0]["delta"] == json!({}) && finish["choices"][0]["finish_reason"].is_string());
    for chunk in &chunks[..chunks.len() - 2] {
        assert!(chunk["choices"][0]["finish_reason"].is_null() && chunk["usage"].is_null());
        assert_eq!(
            (&chunk["id"], &chunk["created"], &chunk["model"]),
            (&finish["id"], &finish["created"], &finish["model"])
        );
    }
    assert!(reply.body.contains(": prefill "), "{}", reply.body);

    let ndjson = house.send("POST", CHAT, "accept: application/x-ndjson\r\n", &ask.to_string());
    assert!(ndjson.headers.contains("content-type: application/x-ndjson"));
    assert_eq!(ndjson.lines().len(), chunks.len());

    let native = house.post(NATIVE, json!({"input": "hi", "max_tokens": 3})).lines();
    let names: Vec<&str> = native.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| ["done", "error"].contains(name)).count(), 1);
    assert_eq!(*names.last().unwrap(), "done");
    assert!(names.contains(&"token") && names.contains(&"prefill"));
}

/// Every sampler at once, in the native names.
fn everything() -> Value {
    json!({
        "temperature": 0.9, "top_k": 30, "top_p": 0.97, "min_p": 0.01, "typical_p": 0.98, "repeat_penalty": 1.1,
        "frequency_penalty": 0.1, "presence_penalty": 0.1, "repeat_last_n": 32, "dry_multiplier": 0.8,
        "dry_base": 1.5, "dry_allowed_length": 2, "dry_last_n": 64, "dry_breakers": ["."], "logit_bias": {"29": 0.5},
        "min_tokens": 5, "seed": 11,
    })
}

/// The text and the likelihoods of an answer to a raw input.
fn told(house: &House, mut fields: Value) -> (String, Vec<Value>) {
    fields["input"] = json!("Once upon a time");
    fields["raw"] = json!(true);
    let reply = house.post(NATIVE, fields);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let events = reply.lines();
    assert_eq!(events.last().unwrap()["event"], "done", "{}", reply.body);
    let text = events.iter().filter_map(|event| event["text"].as_str()).collect();
    (text, events.into_iter().filter(|event| event["ids"].is_array()).collect())
}

#[test]
fn a_seed_fixes_the_answer_whatever_the_threads() {
    let houses = [1, 2, 3].map(|threads| {
        House(Inside::start(support::engine(support::stories(), threads, 512), HttpOptions::default()))
    });
    for mirostat in [0, 2] {
        let ask = |seed: u64| {
            let mut fields = everything();
            fields["max_tokens"] = json!(60);
            fields["mirostat"] = json!(mirostat);
            fields["seed"] = json!(seed);
            fields
        };
        let answers: Vec<_> = houses.iter().map(|house| told(house, ask(11)).0).collect();
        assert!(!answers[0].is_empty() && answers.iter().all(|text| *text == answers[0]), "{answers:?}");
        assert_ne!(told(&houses[0], ask(12)).0, answers[0]);
    }
}

#[test]
fn samplers_do_what_they_say() {
    let house = House::new(HttpOptions::default());
    let greedy = |more: Value| {
        let mut fields = json!({"temperature": 0, "max_tokens": 24, "logprobs": 3});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(&house, fields)
    };
    let (text, tokens) = greedy(json!({}));
    assert_eq!(tokens.len(), 24, "one event for each token");
    for token in &tokens {
        let top = token["top"].as_array().unwrap();
        let logprobs: Vec<f64> = top.iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
        assert_eq!(top.len(), 3);
        assert!(logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] <= 0.0, "{token}");
        // Greedy: the drawn one is the likeliest.
        assert_eq!((&token["ids"][0], &token["logprob"]), (&top[0]["id"], &top[0]["logprob"]));
    }
    let first = tokens[0]["ids"][0].as_u64().unwrap().to_string();
    let (other, told_too) = greedy(json!({"logit_bias": {first.as_str(): -100}}));
    assert_ne!(other, text);
    assert_eq!(told_too[0]["top"], tokens[0]["top"], "what the model found likely knows nothing of the bias");
    assert_ne!(told_too[0]["ids"], tokens[0]["ids"]);
    let (only, _) = greedy(json!({"logit_bias": {first.as_str(): 100}, "max_tokens": 3, "logprobs": null}));
    let piece = tokens[0]["top"][0]["token"].as_str().unwrap();
    assert_eq!(only, piece.repeat(3).trim_start(), "a bias of 100 forces a token");
    // Where one token is forced, DRY forbids to go on with it.
    let dry =
        json!({"logit_bias": {first.as_str(): 8}, "dry_multiplier": 5, "dry_base": 4, "max_tokens": 12});
    let ids = |tokens: &[Value]| tokens.iter().map(|t| t["ids"][0].as_u64().unwrap()).collect::<Vec<_>>();
    let (_, dried) = greedy(dry);
    assert!(ids(&dried).iter().any(|id| id.to_string() != first), "{dried:?}");
}

#[test]
fn the_least_tokens_come_before_any_end() {
    let house = House::new(HttpOptions::default());
    // The end token, forced.
    let fields = |min: u32| json!({"logit_bias": {"2": 100}, "max_tokens": 9, "min_tokens": min, "seed": 1});
    let count = |min: u32| {
        let mut fields = fields(min);
        fields["input"] = json!("Once");
        fields["raw"] = json!(true);
        let done = house.post(NATIVE, fields).lines().pop().unwrap();
        (
            done["usage"]["completion_tokens"].as_u64().unwrap(),
            done["stop_detail"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(count(0), (0, "eos".into()));
    assert_eq!(count(4), (4, "eos".into()));
    assert_eq!(count(9), (9, "max_tokens".into()));
}

#[test]
fn likelihoods_have_the_shapes_of_the_interface() {
    let house = House::new(HttpOptions::default());
    let ask = json!({"messages": hi(), "max_tokens": 4, "seed": 1, "logprobs": true, "top_logprobs": 2});
    let whole = house.post(CHAT, ask.clone()).json();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len() as u64, whole["usage"]["completion_tokens"].as_u64().unwrap());
    for one in &content {
        assert!(one["token"].is_string() && one["logprob"].as_f64().unwrap() <= 0.0, "{one}");
        assert!(one["bytes"].as_array().unwrap().iter().all(Value::is_u64));
        assert_eq!(one["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(one["top_logprobs"][1]["bytes"].is_array());
    }
    let mut streamed = ask.clone();
    streamed["stream"] = json!(true);
    let data = house.post(CHAT, streamed).data();
    let chunks = data[..data.len() - 1].iter().map(|d| serde_json::from_str::<Value>(d).unwrap());
    let told: Vec<Value> =
        chunks.filter_map(|c| Some(c["choices"][0]["logprobs"]["content"].as_array()?[0].clone())).collect();
    assert_eq!(told, content, "the same in a stream");

    let ask = json!({"prompt": "Once", "max_tokens": 4, "seed": 1, "logprobs": 2});
    let body = house.post("/v1/completions", ask).json();
    let (text, logprobs) = (body["choices"][0]["text"].as_str().unwrap(), &body["choices"][0]["logprobs"]);
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[key].as_array().unwrap().len(), 4, "{key}");
    }
    let offsets: Vec<u64> =
        logprobs["text_offset"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(offsets[0] == 0 && offsets.is_sorted() && offsets[3] <= text.chars().count() as u64, "{body}");
    let none = house.post(CHAT, json!({"messages": hi(), "max_tokens": 1})).json();
    assert!(none["choices"][0]["logprobs"].is_null());
}

#[test]
fn fields_of_sampling_are_checked() {
    let house = House::new(HttpOptions::default());
    let with = |field: &str, value: Value| {
        let mut body = json!({"messages": hi(), "max_tokens": 4});
        body[field] = value;
        body
    };
    for (body, code, param) in [
        (with("min_p", json!(2)), "invalid_value", "min_p"),
        (with("typical_p", json!(0.5)), "unknown_field", "typical_p"),
        (with("sotto", json!({"typical_p": 0})), "invalid_value", "sotto.typical_p"),
        (with("sotto", json!({"mirostat": 1})), "invalid_value", "sotto.mirostat"),
        (with("sotto", json!({"min_tokens": 5})), "invalid_value", "sotto.min_tokens"),
        (with("top_logprobs", json!(2)), "invalid_value", "top_logprobs"),
        (with("logprobs", json!(2)), "invalid_value", "logprobs"),
        (with("logit_bias", json!({"512": 1})), "invalid_value", "logit_bias"),
        (with("reasoning_effort", json!("huge")), "invalid_value", "reasoning_effort"),
        (with("reasoning_effort", json!("low")), "unsupported_field", "reasoning_effort"),
    ] {
        let reply = house.post(CHAT, body.clone());
        assert_eq!((reply.status, reply.code().as_str()), (400, code), "{body} {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    let fine = json!({"messages": hi(), "max_completion_tokens": 6, "reasoning_effort": "none", "top_logprobs": 0,
        "sotto": {"min_tokens": 6, "typical_p": 0.9, "mirostat": 2, "dry_multiplier": 0.5, "dry_breakers": "x"}});
    assert_eq!(house.post(CHAT, fine).status, 200);
}

#[test]
fn a_lenient_caller_is_told_what_was_ignored() {
    let house = House::new(HttpOptions::default());
    let ask = json!({"messages": hi(), "max_tokens": 1, "verbosity": "low", "wat": 1});
    let reply = house.send("POST", CHAT, "prefer: handling=lenient\r\n", &ask.to_string());
    assert_eq!(reply.status, 200);
    assert!(reply.headers.contains("sotto-ignored: verbosity, wat"), "{}", reply.headers);
    let asks = [
        ("/sotto/v1/tokenize", json!({"text": "Once", "wat": 1})),
        ("/v1/embeddings", json!({"input": "Once", "wat": 1})),
    ];
    for (route, ask) in asks {
        let reply = house.send("POST", route, "prefer: handling=lenient\r\n", &ask.to_string());
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.headers.contains("sotto-ignored: wat"), "{route}: {}", reply.headers);
    }
    let mut many: serde_json::Map<String, Value> = (0..150).map(|i| (format!("k{i}"), json!(1))).collect();
    many.insert("input".into(), json!("hi"));
    many.insert("max_tokens".into(), json!(1));
    let reply = house.send("POST", NATIVE, "prefer: handling=lenient\r\n", &Value::from(many).to_string());
    let named = reply.headers.lines().find_map(|line| line.strip_prefix("sotto-ignored: ")).unwrap();
    let (names, more) = named.rsplit_once(", and ").unwrap();
    let n_named = names.split(", ").filter(|name| name.starts_with('k')).count();
    assert_eq!(format!("{} more", 150 - n_named), more, "{named}");
    let bad = json!({"messages": hi(), "max_tokens": "1"});
    assert_eq!(
        house.send("POST", CHAT, "prefer: handling=lenient\r\n", &bad.to_string()).code(),
        "invalid_value"
    );
}

#[test]
fn bodies_and_heads_are_bounded() {
    let house = House::new(HttpOptions { max_body_kib: 64, header_timeout_s: 1, ..HttpOptions::default() });
    let big = json!({"input": "a".repeat(100_000)});
    let reply = house.post(NATIVE, big.clone());
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("65536") && message.contains(&big.to_string().len().to_string()), "{message}");

    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let head = format!("POST {NATIVE} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let reply = house.raw(format!("{head}{}0\r\n\r\n", chunk.repeat(40)).as_bytes());
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));

    let reply = house.send("GET", "/healthz", &format!("x: {}\r\n", "a".repeat(40_000)), "");
    assert_eq!((reply.status, reply.code().as_str()), (431, "header_too_large"));
    let many: String = (0..200).map(|i| format!("x{i}: a\r\n")).collect();
    assert_eq!(house.send("GET", "/healthz", &many, "").code(), "header_too_large");
    for head in ["how do you do", "GET /healthz HTTP/1.1", "GET /healthz HTTP/1.1\r\nhost: a\r\nhost: a"] {
        assert_eq!(house.raw(format!("{head}\r\n\r\n").as_bytes()).status, 400, "{head}");
    }

    let mut late = house.connect();
    late.write_all(b"GET /healthz HT").unwrap();
    let mut bytes = Vec::new();
    late.read_to_end(&mut bytes).unwrap();
    let reply = Reply::parse(&bytes);
    assert_eq!((reply.status, reply.code().as_str()), (408, "request_timeout"));
}

/// A body that comes a byte at a time is given up as one that does not come.
#[test]
fn a_body_comes_within_its_time() {
    let house = House::new(HttpOptions { idle_timeout_s: 1, ..HttpOptions::default() });
    let mut drips = house.connect();
    drips
        .write_all(format!("POST {NATIVE} HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n").as_bytes())
        .unwrap();
    drips.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (mut n, mut head) = (0, [0; 512]);
    let told = loop {
        drips.write_all(b" ").unwrap();
        n += 1;
        match drips.read(&mut head) {
            Ok(len) => break String::from_utf8_lossy(&head[..len]).into_owned(),
            Err(e) if n == 500 => panic!("{e} after {n} bytes"),
            Err(_) => {}
        }
    };
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("request_timeout"), "{told}");
    assert!(n > 10, "{n} bytes in 20 ms each");
}

#[test]
fn a_model_is_loaded_as_the_body_says() {
    let house = House::new(HttpOptions::default());
    let reply = house.post("/sotto/v1/models/inside/load", json!({"context": 64, "pin": false}));
    assert_eq!((reply.status, reply.lines().last().unwrap()["event"].as_str()), (200, Some("loaded")));
    let model = house.send("GET", "/v1/models/inside", "", "").json();
    assert_eq!(
        (&model["sotto"]["context"], &model["sotto"]["pinned"]),
        (&json!(64), &json!(false)),
        "{model}"
    );
    assert_eq!(house.send("POST", "/sotto/v1/models/inside/load", "", "").status, 200);
    assert_eq!(house.send("GET", "/v1/models/inside", "", "").json()["sotto"]["pinned"], true);
}

#[test]
fn connections_are_counted() {
    let house = House::new(HttpOptions { max_connections_per_uid: 2, ..HttpOptions::default() });
    let held: Vec<UnixStream> = (0..2)
        .map(|_| {
            let mut stream = house.connect();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 512]).unwrap() > 0);
            stream
        })
        .collect();
    let reply = house.send("GET", "/healthz", "", "");
    assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
    assert!(reply.headers.contains("retry-after: "), "{}", reply.headers);
    drop(held);
    for _ in 0..1000 {
        if house.send("GET", "/healthz", "", "").status == 200 {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("places are not given back");
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let house = House::new(HttpOptions::default());
    let mut stream = house.connect();
    let body = json!({"input": "hi", "max_tokens": 2}).to_string();
    let post = format!("POST {NATIVE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(format!("{post}{post}GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert_eq!(text.matches(r#""event":"done""#).count(), 2);
    assert!(text.ends_with("ok\n"));
}

#[test]
fn who_hangs_up_is_cancelled_and_who_half_closes_is_not() {
    let house = House::new(HttpOptions { max_connections_per_uid: 1, ..HttpOptions::default() });
    // `send` half-closes before it reads, and has its whole answer.
    let whole = house.post(NATIVE, json!({"input": "hi", "max_tokens": 20})).lines();
    assert_eq!(whole.last().unwrap()["event"], "done");
    for (streamed, half_closed) in [(true, false), (true, true), (false, false), (false, true)] {
        let body = json!({"messages": hi(), "max_tokens": 3000, "stream": streamed}).to_string();
        let mut stream = free_place(&house);
        write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .unwrap();
        if half_closed {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        if streamed {
            assert!(stream.read(&mut [0; 64]).unwrap() > 0);
        } else {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let began = std::time::SystemTime::now();
        drop(stream);
        drop(free_place(&house));
        // The whole answer takes several times as long.
        assert!(began.elapsed().unwrap() < Duration::from_secs(3), "seen late: {streamed} {half_closed}");
        house.0.rests();
    }
}

/// A connection that was not refused for want of a place; asked for until there is one.
fn free_place(house: &House) -> UnixStream {
    for _ in 0..2000 {
        let mut stream = house.connect();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut bytes = [0; 512];
        if stream.read(&mut bytes).is_ok_and(|n| bytes[..n].starts_with(b"HTTP/1.1 200")) {
            return stream;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("no place becomes free");
}

#[test]
fn the_client_hears_every_event_and_every_refusal() {
    let house = House::new(HttpOptions::default());
    let client = Client::new(&house.0.socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        for _ in 0..2 {
            let mut heard = Vec::new();
            let body = json!({"input": "hi", "max_tokens": 3});
            let hear = &mut |event| {
                heard.push(event);
                ControlFlow::Continue(())
            };
            client.generate(body, hear).await.unwrap();
            assert!(heard.iter().any(|event| matches!(event, ClientEvent::Text(text) if !text.is_empty())));
            let done = heard.last();
            assert!(matches!(done, Some(ClientEvent::Done(done)) if done["finish_reason"].is_string()));
        }
        let mut n_heard = 0;
        let once = &mut |_| {
            n_heard += 1;
            ControlFlow::Break(())
        };
        client.generate(json!({"input": "hi", "max_tokens": 300}), once).await.unwrap();
        assert_eq!(n_heard, 1, "who breaks off hears no more");
        let silent = &mut |_| panic!("an event of a refusal");
        let refused = client.generate(json!({"input": 1}), silent).await.unwrap_err();
        assert!(
            matches!(&refused, ClientError::Refused { status: 400, error } if error["code"] == "invalid_value"),
            "{refused}"
        );
        assert_eq!(client.get("/v1/models").await.unwrap()["object"], "list");
        let nobody = Client::new(Path::new("/nonexistent/sotto.sock")).get("/v1/models").await.unwrap_err();
        assert!(nobody.to_string().contains("start sottod"), "{nobody}");
    });
}

#[test]
fn closing_the_door_lets_answers_end() {
    let house = House::new(HttpOptions::default());
    let mut stream = house.connect();
    let body = json!({"input": "hi", "max_tokens": 50}).to_string();
    write!(stream, "POST {NATIVE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    drop(house);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""event":"done""#), "{rest}");
}
