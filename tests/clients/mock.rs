//! `sottod --mock` through both doors.

use std::path::Path;

use serde_json::{Value, json};
use sotto::os::clock;

use crate::support::http::{Answer, Call, ask, get, post};
use crate::support::{Daemon, Folder, have, stderr};

const CHAT: &str = "/v1/chat/completions";
const NATIVE: &str = "/sotto/v1/generate";

fn chat(socket: &Path, model: &str, more: Value) -> Answer {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": "Grüße, mock" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask(socket, &post(CHAT, body.to_string()))
}

#[test]
fn a_mock_repeats_what_it_is_told_through_the_true_doors() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "", "", None);
    for more in [json!({}), json!({ "temperature": 2, "seed": 5 })] {
        let answer = chat(&daemon.socket, "mock", more).json();
        assert_eq!(answer["choices"][0]["message"]["content"], "Grüße, mock");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        // A token is a byte; the frame of a message and the beginning of the answer have 19.
        assert_eq!(
            (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]),
            (&32.into(), &13.into())
        );
    }
    let cut = chat(&daemon.socket, "mock", json!({ "stop": "mo", "max_tokens": 12 })).json();
    assert_eq!(cut["choices"][0]["message"]["content"], "Grüße, ", "stop strings are those of the engine");
    let endless = chat(&daemon.socket, "mock-endless", json!({ "max_tokens": 40 })).json();
    assert_eq!(endless["choices"][0]["message"]["content"], "Grüße, mockGrüße, mockGrüße, mockG");
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
    let raw = ask(&daemon.socket, &post("/v1/completions", r#"{"prompt":"as it stands"}"#)).json();
    assert_eq!(raw["choices"][0]["text"], "as it stands");
    let tokens = ask(&daemon.socket, &post("/sotto/v1/tokenize", r#"{"text":"<|im_end|>"}"#)).json();
    assert_eq!(tokens["count"], 10, "a text never becomes a control token");
    let long = "x".repeat(20_000);
    let refused = ask(&daemon.socket, &post(NATIVE, json!({ "input": long }).to_string()));
    assert_eq!((refused.status, refused.error("code").as_str()), (400, "context_too_long"));
    let thinks = chat(&daemon.socket, "mock", json!({ "reasoning_effort": "high" }));
    assert_eq!(thinks.error("code"), "unsupported_field");
}

/// Codes with their status; those within an answer come behind the first text, so not in its place.
const REFUSED: [(&str, u16); 10] = [
    ("not_authorized", 403),
    ("model_busy", 409),
    ("session_busy", 409),
    ("queue_full", 429),
    ("rate_limited", 429),
    ("insufficient_memory", 503),
    ("shutting_down", 503),
    ("load_failed", 503),
    ("unsupported_model", 503),
    ("deadline_exceeded", 504),
];
const BROKEN: [(&str, u16); 4] =
    [("damaged_model", 503), ("cancelled", 499), ("stalled", 499), ("internal", 500)];

#[test]
fn a_mock_fails_with_every_code_that_a_request_alone_cannot_cause() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "fail_after=3", "", None);
    let listed = ask(&daemon.socket, &get("/v1/models")).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2 + REFUSED.len() + BROKEN.len());
    for (code, status) in REFUSED.into_iter().chain(BROKEN) {
        let answer = chat(&daemon.socket, &format!("mock-{code}"), json!({}));
        assert_eq!((answer.status, answer.error("code").as_str()), (status, code));
        let retries = answer.header("retry-after").is_some();
        assert_eq!(retries, status == 429 || status == 503, "{code}");
    }
    for (code, _) in BROKEN {
        let body = json!({ "model": format!("mock-{code}"), "input": "abcdef" }).to_string();
        let mut call = Call::send(&daemon.socket, &post(NATIVE, body));
        assert_eq!(call.head().status, 200, "{code}");
        let text: String = (0..3).map(|_| call.event("token")["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(text, "abc", "{code}");
        let rest = call.lines_to_end();
        assert!(rest.len() == 1 && rest[0].contains(&format!("\"code\":\"{code}\"")), "{rest:?}");
    }
}

#[test]
fn a_mock_stays_one_over_a_reload() {
    let folder = Folder::new();
    let mut daemon = Daemon::mock(&folder, "", "", None);
    let listed = || ask(&daemon.socket, &get("/v1/models")).json()["data"].as_array().unwrap().len();
    let before = listed();
    daemon.process.signal(rustix::process::Signal::HUP);
    assert!(daemon.logged("configuration read again").contains(&format!("{before} models")));
    let listed = ask(&daemon.socket, &get("/v1/models")).json()["data"].as_array().unwrap().len();
    assert_eq!(listed, before);
    assert_eq!(chat(&daemon.socket, "mock", json!({})).status, 200);
}

#[test]
fn a_mock_fails_in_turn_and_takes_its_time() {
    let folder = Folder::new();
    let behaviour = "tokens_per_s=200,prefill_tokens_per_s=1000,load_ms=100,fail=queue_full@3";
    let daemon = Daemon::mock(&folder, behaviour, "", None);
    let ask_again = || {
        let began = clock::now_us();
        let status = chat(&daemon.socket, "mock", json!({})).status;
        (status, (clock::now_us() - began) / 1_000)
    };
    // 32 tokens are read; of 13 and the end the first comes with them.
    let (first, ms) = ask_again();
    assert!(first == 200 && ms >= 100 + 32 + 65, "{first} after {ms} ms");
    let (second, ms) = ask_again();
    assert!(second == 200 && ms >= 32 + 65, "{second} after {ms} ms");
    assert_eq!([ask_again().0, ask_again().0], [429, 200]);
    let loads = ask(&daemon.socket, &post(NATIVE, r#"{"input":"a","model":"mock-endless","max_tokens":2}"#));
    // Within a quarter of a second nothing is told but its beginning and its end.
    let told: Vec<&str> = loads.text().lines().filter(|line| line.contains("\"loading\"")).collect();
    assert!(told.len() <= 2, "{told:?}");
    let loading = told.last().unwrap();
    let event: Value = serde_json::from_str(loading).unwrap();
    assert!(event["done"] == event["total"] && event["model"] == "mock-endless", "{loading}");
}

#[test]
fn a_mock_that_waits_is_cancelled_at_once() {
    let folder = Folder::new();
    let mut daemon = Daemon::mock(&folder, "tokens_per_s=1", "", None);
    let mut call = Call::send(&daemon.socket, &post(NATIVE, r#"{"input":"abcdef"}"#));
    call.head().event("token");
    let began = clock::now_us();
    drop(call);
    let ending = daemon.ending(25);
    assert_eq!(ending.word, "cancelled");
    assert!(clock::now_us() - began < 900_000, "before its next token");
}

#[test]
fn who_reads_events_sees_a_long_prompt_being_read() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "prefill_tokens_per_s=500", "", None);
    let body = json!({ "input": "x".repeat(2_000), "max_tokens": 1 }).to_string();
    let began = clock::now_us();
    let mut call = Call::send(&daemon.socket, &post(NATIVE, body));
    let first = call.head().event("prefill");
    let seen_us = clock::now_us() - began;
    assert!(first["done"].as_u64() < first["total"].as_u64(), "{first}");
    call.event("token");
    let all_us = clock::now_us() - began;
    assert!(seen_us < all_us / 2, "the first news after {seen_us} of {all_us} us");
}

#[test]
fn a_mock_answers_on_the_bus() {
    if !have("dbus-daemon", "a mock on the bus") || !have("busctl", "a mock on the bus") {
        return;
    }
    let folder = Folder::new();
    let (_bus, address) = crate::support::bus(&folder);
    let _daemon = Daemon::mock(&folder, "", "", Some(&address));
    let call = |options: &[&str]| {
        let mut busctl = std::process::Command::new("busctl");
        busctl.args([&format!("--address={address}"), "call", "--json=short", "org.sotto.Sotto1"]);
        busctl.args(["/org/sotto/Sotto1", "org.sotto.Sotto1.Manager", "Generate", "sa{sv}", "said"]);
        busctl.args(options).output().unwrap()
    };
    let answered = call(&["0"]);
    let reply: Value =
        serde_json::from_slice(&answered.stdout).unwrap_or_else(|e| panic!("{e}: {answered:?}"));
    assert_eq!(reply["data"][0], "said");
    let full = call(&["1", "model", "s", "mock-queue_full"]);
    assert!(!full.status.success() && stderr(&full).contains("queue_full: the mock"), "{}", stderr(&full));
}

#[test]
fn what_a_mock_cannot_do_is_said() {
    let start = |arguments: &[&str]| {
        let mut sottod = std::process::Command::new(env!("CARGO_BIN_EXE_sottod"));
        sottod.args(arguments).output().unwrap()
    };
    let wrong = start(&["--mock", "speed=3"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        stderr(&wrong).contains("\"speed\" is no key of a mock; there are tokens_per_s"),
        "{}",
        stderr(&wrong)
    );
    let both = start(&["--mock", "", "--model", "x.gguf"]);
    assert_eq!(both.status.code(), Some(2), "{}", stderr(&both));
}
