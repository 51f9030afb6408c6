//! `n` choices of one request: each is the same request alone, and together they are one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use sotto::door::http::HttpOptions;
use sotto::engine::{Engine, ModelFile, Options, Rate, Settings};
use sotto::os::clock;

use super::support::{self, Inside};
use super::{CHAT, House, Reply};

const TEXT: &str = "/v1/completions";

fn house(options: Options, settings: Settings) -> House {
    let models = vec![ModelFile { id: "inside".into(), path: support::stories() }];
    let (options, settings) =
        (Options { threads: 1, n_ctx: 512, ..options }, Settings { models, ..settings });
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    House(Inside::start(engine, HttpOptions::default()))
}

fn ask(more: Value) -> Value {
    let mut fields = json!({ "prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.5, "seed": 5 });
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

/// What the request says alone, with each of the seeds.
fn alone(house: &House, seeds: impl IntoIterator<Item = u64>) -> Vec<String> {
    let one = |seed| {
        let reply = house.post(TEXT, ask(json!({ "seed": seed })));
        reply.json()["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply:?}")).to_owned()
    };
    seeds.into_iter().map(one).collect()
}

/// Its choices, by what their chunks say; each ends once.
fn joined(reply: &Reply, n: usize) -> Vec<String> {
    let (mut texts, mut ended) = (vec![String::new(); n], vec![0; n]);
    for chunk in reply.lines() {
        for choice in chunk["choices"].as_array().unwrap_or_else(|| panic!("{chunk}")) {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(ended[index], 0, "nothing behind the end of a choice: {chunk}");
            texts[index] += choice["text"].as_str().unwrap();
            ended[index] += usize::from(choice["finish_reason"].is_string());
        }
    }
    assert_eq!(ended, vec![1; n]);
    texts
}

#[test]
fn choices_are_what_the_request_is_alone_with_each_seed() {
    for (max_sequences, queue_max_per_uid) in [(4, 8), (1, 8), (2, 0), (1, 0)] {
        let house = house(
            Options { max_sequences, ..Options::default() },
            Settings { queue_max_per_uid, ..Settings::default() },
        );
        let expected = alone(&house, 5..10);
        assert!(expected.iter().any(|text| *text != expected[0]), "seeds make a difference: {expected:?}");
        let reply = house.post(TEXT, ask(json!({ "n": 5 })));
        let body = reply.json();
        let choices = body["choices"].as_array().unwrap_or_else(|| panic!("{body}"));
        for (i, choice) in choices.iter().enumerate() {
            assert_eq!((&choice["index"], &choice["text"]), (&i.into(), &expected[i].as_str().into()));
        }
        assert_eq!(choices.len(), 5);
        assert_eq!(body["sotto"]["seed"], 5);
        let ndjson = "accept: application/x-ndjson\r\n";
        let fields = ask(json!({ "n": 5, "stream": true, "stream_options": { "include_usage": true } }));
        let streamed = house.send("POST", TEXT, ndjson, &fields.to_string());
        assert_eq!(joined(&streamed, 5), expected, "{max_sequences} {queue_max_per_uid}");
        let lines = streamed.lines();
        let told: Vec<&Value> = lines.iter().filter(|chunk| chunk["usage"].is_object()).collect();
        assert_eq!(told.len(), 1, "usage comes once");
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(told[0]["usage"][key], body["usage"][key], "{key}");
        }
        let one = house.post(TEXT, ask(json!({}))).json();
        assert_eq!(body["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"], "the prompt counts once");
        assert!(body["usage"]["completion_tokens"].as_u64() > one["usage"]["completion_tokens"].as_u64());
    }
}

#[test]
fn the_seed_behind_the_largest_is_the_first() {
    let house = house(Options::default(), Settings::default());
    let last = (1_u64 << 53) - 1;
    let body = house.post(TEXT, ask(json!({ "n": 2, "seed": last }))).json();
    assert_eq!(body["choices"][1]["text"].as_str().unwrap(), alone(&house, [0])[0]);
}

#[test]
fn a_request_with_choices_is_one_request() {
    let rate = Rate { requests: 2, tokens: 0 };
    let house = house(Options::default(), Settings { rate, ..Settings::default() });
    let statuses = [8, 8, 1].map(|n| house.post(TEXT, ask(json!({ "n": n, "max_tokens": 2 }))).status);
    assert_eq!(statuses, [200, 200, 429]);
}

#[test]
fn a_chat_names_the_speaker_of_each_choice_and_is_done_once() {
    let house = House::new(HttpOptions::default());
    let fields = json!({ "messages": super::hi(), "max_tokens": 3, "n": 3, "stream": true, "seed": 1 });
    let data = house.post(CHAT, fields).data();
    let (done, chunks) = data.split_last().unwrap();
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    for i in 0..3 {
        let mut own = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == i);
        assert_eq!(own.next().unwrap()["delta"], json!({ "role": "assistant", "content": "" }));
        assert_eq!(own.next_back().unwrap()["delta"], json!({}));
        assert!(own.all(|choice| choice["finish_reason"].is_null()));
    }
    assert_eq!(done, "[DONE]");
    let first = &chunks[0];
    let fingerprint = first["system_fingerprint"].as_str().unwrap();
    assert!(
        fingerprint.contains(env!("CARGO_PKG_VERSION"))
            && fingerprint.contains(first["model"].as_str().unwrap())
    );
    assert!(
        chunks.iter().all(|chunk| ["id", "model", "created", "system_fingerprint"]
            .iter()
            .all(|k| chunk[k] == first[k]))
    );
}

/// A stream of endless choices that has begun, and the id of the request.
fn begun(house: &House) -> (BufReader<UnixStream>, String) {
    let fields =
        ask(json!({ "n": 4, "stream": true, "max_tokens": 400, "sotto": { "min_tokens": 400 } })).to_string();
    let mut stream = house.connect();
    let head = format!("POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{fields}", fields.len());
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut id = String::new();
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ends before the second choice");
        if let Some(value) = line.strip_prefix("x-request-id: ") {
            id = value.trim().to_owned();
        }
        if line.contains("\"index\":1") {
            return (reader, id);
        }
    }
}

fn under_way(house: &House) -> usize {
    let status = house.send("GET", "/sotto/v1/status", "", "").json();
    status["generations"].as_array().unwrap().len()
}

/// Soon nothing is under way any more.
fn ends(house: &House) {
    let began = clock::now_us();
    while under_way(house) > 0 {
        assert!(clock::now_us() - began < 20_000_000, "the choices go on");
    }
}

#[test]
fn who_leaves_and_who_cancels_ends_all_choices() {
    let house = house(Options { max_sequences: 2, ..Options::default() }, Settings::default());
    let (reader, _) = begun(&house);
    assert!(under_way(&house) >= 2);
    drop(reader);
    ends(&house);
    let (mut reader, id) = begun(&house);
    assert_eq!(house.send("DELETE", &format!("/sotto/v1/generations/{id}"), "", "").status, 204);
    let mut rest = String::new();
    let last = loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0);
        if line.contains("\"error\"") {
            break line;
        }
        rest += &line;
    };
    assert!(last.contains("\"cancelled\"") && !rest.contains("[DONE]"), "{last}");
    ends(&house);
}
