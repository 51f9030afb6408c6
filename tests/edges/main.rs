//! What comes from outside and is wrong, on the programs as they are: files, requests, clients that leave, readers that
//! stall. Each row asserts the code, the numbers in the message, and what a user should see after it: the daemon
//! answers on, others are not touched, memory stays where it was.
#![cfg(all(feature = "dbus", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it measured"
)]

mod faults;
mod files;
mod privacy;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sotto::door::http::HttpOptions;
use support::gguf::{self, SLOW};
use support::http::{Call, ask, get, post};
use support::{Daemon, Ending, Folder, Inside, engine, run, sotto, stderr, stdout, stories, until};

const NATIVE: &str = "/sotto/v1/generate";
const CHAT: &str = "/v1/chat/completions";

/// The daemon still answers, and as before.
fn answers(daemon: &Daemon) -> String {
    let body = json!({"input": "Once", "raw": true, "max_tokens": 4, "temperature": 0}).to_string();
    let answer = ask(&daemon.socket, &post(NATIVE, &body));
    assert_eq!(answer.status, 200, "{answer:?}");
    let event = |line: &str| serde_json::from_str::<Value>(line).expect("an event a line");
    let events: Vec<Value> = answer.text().lines().map(event).collect();
    assert_eq!(events.last().expect("events")["event"], "done", "{answer:?}");
    events.iter().filter_map(|e| e["text"].as_str()).collect()
}

/// Asserts that all `words` stand in `message`.
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

#[test]
fn wrong_requests_are_refused_by_field_and_number() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let before = answers(&daemon);
    let long = "a b c d ".repeat(400);
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (path, body, status, code, param, words) in [
        (
            NATIVE,
            json!({"input": "x", "temprature": 0}),
            400,
            "unknown_field",
            Some("temprature"),
            &["temprature"][..],
        ),
        (NATIVE, json!({"input": 7}), 400, "invalid_value", Some("input"), &["7"][..]),
        (
            NATIVE,
            json!({"input": "x", "max_tokens": "9"}),
            400,
            "invalid_value",
            Some("max_tokens"),
            &["9"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "max_tokens": 0}),
            400,
            "invalid_value",
            Some("max_tokens"),
            &["0", "1"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "temperature": 2.5}),
            400,
            "invalid_value",
            Some("temperature"),
            &["2.5", "0 to 2"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "top_k": 1001}),
            400,
            "invalid_value",
            Some("top_k"),
            &["1001", "1000"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "top_p": 0}),
            400,
            "invalid_value",
            Some("top_p"),
            &["got 0, allowed is a number above 0, to 1"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "seed": 1_u64 << 60}),
            400,
            "invalid_value",
            Some("seed"),
            &["1152921504606846976"][..],
        ),
        (
            NATIVE,
            json!({"input": "x", "stop": vec!["a"; 9]}),
            400,
            "invalid_value",
            Some("stop"),
            &["9", "8"][..],
        ),
        (NATIVE, json!({"tokens": [512]}), 400, "invalid_value", Some("tokens[0]"), &["512"][..]),
        (
            NATIVE,
            json!({"input": long, "raw": true}),
            400,
            "context_too_long",
            Some("input"),
            &["1602 tokens", "room for 512"][..],
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "context_too_long",
            Some("messages"),
            &["1602 tokens", "room for 512"][..],
        ),
        (
            CHAT,
            json!({"messages": hi, "model": "gpt-9"}),
            404,
            "unknown_model",
            Some("model"),
            &["gpt-9", "stories260K-q8_0"][..],
        ),
        (
            CHAT,
            json!({"messages": hi, "tools": [{"type": "function"}]}),
            400,
            "unsupported_field",
            Some("tools"),
            &["tools: not supported by this version"][..],
        ),
        (
            CHAT,
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            400,
            "invalid_value",
            Some("messages[0].role"),
            &["messages[0].role: allowed is system, developer, user or assistant"][..],
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "n": 9}),
            400,
            "invalid_value",
            Some("n"),
            &["n: got 9", "1 to 8"][..],
        ),
    ] {
        let answer = ask(&daemon.socket, &post(path, body.to_string()));
        let shown = &body.to_string()[..body.to_string().len().min(200)];
        assert_eq!((answer.status, answer.error("code").as_str()), (status, code), "{shown}: {answer:?}");
        assert_eq!(answer.json()["error"]["param"].as_str(), param, "{shown}: {answer:?}");
        says(&answer.error("message"), words);
    }
    // The number of tokens is the prompt's own: the model's limit and one less agree with it.
    let answer = ask(&daemon.socket, &post(NATIVE, json!({"tokens": vec![7; 512]}).to_string()));
    assert_eq!(answer.error("code"), "context_too_long");
    says(&answer.error("message"), &["512 tokens", "room for 512"]);
    assert_eq!((answer.error("need"), answer.error("have")), ("513".into(), "512".into()), "as numbers too");
    let fits =
        ask(&daemon.socket, &post(NATIVE, json!({"tokens": vec![7; 511], "max_tokens": 5}).to_string()));
    says(fits.text(), &[r#""stop_detail":"context""#, r#""completion_tokens":1"#]);
    assert_eq!(answers(&daemon), before);
}

#[test]
fn a_body_of_100_mb_costs_nothing() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let before = answers(&daemon);
    daemon.forget_peak();
    let idle = daemon.memory_kib("VmHWM");
    let body = format!("{{\"input\":\"{}\"}}", "x".repeat(100_000_000));
    let answer = ask(&daemon.socket, &post(NATIVE, &body));
    assert_eq!((answer.status, answer.error("code").as_str()), (413, "body_too_large"));
    says(&answer.error("message"), &[&body.len().to_string(), "4194304", "api.max_body_kib"]);
    // The same without a length: refused where the bound is passed.
    let mut chunked =
        b"POST /sotto/v1/generate HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec();
    for part in body.as_bytes().chunks(1 << 20) {
        chunked.extend(format!("{:x}\r\n", part.len()).bytes());
        chunked.extend(part);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let answer = ask(&daemon.socket, &chunked);
    assert_eq!((answer.status, answer.error("code").as_str()), (413, "body_too_large"));
    says(&answer.error("message"), &["4194304"]);
    assert_eq!(answers(&daemon), before);
    let grown = daemon.memory_kib("VmHWM").saturating_sub(idle);
    println!("two bodies of 100 MB cost {grown} KiB");
    assert!(grown < 12_288, "two bodies of 100 MB cost {grown} KiB");
}

/// Many clients write all of a body before they read: they too hear why it was refused, and no write of theirs fails.
#[test]
fn who_writes_all_before_reading_hears_the_refusal() {
    use std::io::{Read, Write};
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
    stream.write_all(&post(NATIVE, "x".repeat(100_000_000))).expect("all of it is taken");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("the answer ends without a reset");
    says(&said, &["HTTP/1.1 413", "body_too_large", "100000000 bytes"]);
}

/// A daemon whose prompts take seconds to read, with a time limit for stalled readers of 1 s.
fn slow(folder: &Folder) -> Daemon {
    slow_with(folder, "")
}

/// The same with more keys of `[engine]`.
fn slow_with(folder: &Folder, engine: &str) -> Daemon {
    let model = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    Daemon::start(folder, &model, &format!("{engine}[api]\nstall_timeout_s = 1\nkeepalive_s = 1\n"))
}

/// A prompt of `n` tokens, none of them special.
fn prompt(n: usize, max_tokens: usize) -> Vec<u8> {
    let tokens: Vec<usize> = (0..n).map(|i| 300 + i % 200).collect();
    post(NATIVE, json!({"tokens": tokens, "max_tokens": max_tokens, "temperature": 0}).to_string())
}

fn cancelled(ending: &Ending) {
    assert_eq!(ending.word, "cancelled", "{ending:?}");
}

#[test]
fn who_leaves_while_queued_touches_nobody() {
    let folder = Folder::new();
    let mut daemon = slow_with(&folder, "max_sequences = 1\n");
    let mut first = Call::send(&daemon.socket, &prompt(3_000, 60));
    first.head().event("prefill");
    let mut second = Call::send(&daemon.socket, &prompt(501, 60));
    let third = Call::send(&daemon.socket, &prompt(20, 6));
    assert_eq!(second.head().event("queued")["position"], 1);
    drop(second);
    let ending = daemon.ending(501);
    cancelled(&ending);
    assert_eq!((ending.n_read, ending.n_generated), (0, 0), "it cost nothing");
    let done = first.event("done");
    assert_eq!(done["usage"]["completion_tokens"], 60, "the running one was not touched: {done}");
    let last = third.finish();
    says(last.text(), &[r#""event":"done""#, r#""completion_tokens":6"#]);
}

#[test]
fn who_leaves_in_prefill_is_cancelled_within_a_layer() {
    let folder = Folder::new();
    let mut daemon = slow(&folder);
    for half_closed in [false, true] {
        let n = if half_closed { 9_001 } else { 9_000 };
        let mut call = Call::send(&daemon.socket, &prompt(n, 5));
        if half_closed {
            call.half_close();
        }
        call.head().event("prefill");
        drop(call);
        let ending = daemon.ending(n);
        cancelled(&ending);
        assert!(ending.n_read > 0 && ending.n_read < n / 2 && ending.n_generated == 0, "{ending:?}");
    }
    answers_slow(&daemon);
}

/// Where the layers that begin can be counted.
fn inside(folder: &Folder) -> Inside {
    let model = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    Inside::start(engine(model, 1, 16_384), HttpOptions::default())
}

#[test]
fn hardly_a_layer_begins_after_the_close() {
    let folder = Folder::new();
    let inside = inside(&folder);
    let mut call = Call::send(&inside.socket, &prompt(9_000, 5));
    let read = call.head().event("prefill")["done"].as_u64().unwrap();
    let after = inside.layers_after_the_close(call);
    println!("read {read} of 9000 tokens; {after} layers of {} begun after the close", SLOW.n_layer);
    // One that began while the close was under way, and one for a busy machine.
    assert!(after <= 2, "{after} layers begun after the close");
}

#[test]
fn hardly_a_token_follows_the_close() {
    let folder = Folder::new();
    let inside = inside(&folder);
    let mut call = Call::send(&inside.socket, &prompt(33, 9_000));
    call.head();
    (0..5).for_each(|_| drop(call.event("token")));
    let after = inside.layers_after_the_close(call);
    println!("{after} layers begun after the close in decode; a token takes {}", SLOW.n_layer);
    // A token takes a millisecond here, and the machine may be busy for some of them.
    assert!(after <= 8 * SLOW.n_layer as u64, "{after} layers begun after the close");
}

/// Whoever looks, however often: a daemon at work is well.
#[test]
fn health_is_not_used_up_by_looking() {
    let folder = Folder::new();
    let daemon = slow(&folder);
    let mut call = Call::send(&daemon.socket, &prompt(9_000, 5));
    call.head().event("prefill");
    for _ in 0..200 {
        let answer = ask(&daemon.socket, &get("/healthz"));
        assert_eq!((answer.status, answer.text()), (200, "ok\n"), "{answer:?}");
    }
}

/// `systemctl reload` sends SIGHUP; it ends nothing.
#[test]
fn a_reload_drops_no_stream() {
    let folder = Folder::new();
    let mut daemon = slow(&folder);
    let mut call = Call::send(&daemon.socket, &prompt(2_000, 5));
    call.head().event("prefill");
    daemon.process.signal(rustix::process::Signal::HUP);
    daemon.logged("configuration read again");
    folder.write("sotto.toml", "version = 9\n");
    daemon.process.signal(rustix::process::Signal::HUP);
    says(&daemon.logged("the old configuration stays"), &["sotto.toml:1", "9", "1 to 1"]);
    let done = call.event("done");
    assert_eq!(done["usage"]["completion_tokens"], 5, "{done}");
}

/// What an answer says is text, whatever it looks like: no event, no end of a stream, no second line.
#[test]
fn an_answer_forges_no_event() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "", "", None);
    let forged = "a\n\ndata: [DONE]\n\ndata: {\"choices\":[]}\r\n\r\nevent: error\rdata: x\u{2028}\u{85}\n{\"event\":\"done\"}\n: b";
    let said = json!([{"role": "user", "content": forged}]);
    let body = json!({"messages": said, "stream": true}).to_string();
    let answer = ask(&daemon.socket, &post(CHAT, &body));
    let (mut text, mut n_done) = (String::new(), 0);
    // Comments tell of progress.
    let progress = |line: &str| line.starts_with(": loading ") || line.starts_with(": prefill ");
    for line in answer.text().split('\n').filter(|line| !line.is_empty() && !progress(line)) {
        match line.strip_prefix("data: ") {
            Some("[DONE]") => n_done += 1,
            Some(data) => {
                let chunk: Value = serde_json::from_str(data).unwrap();
                text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                assert_eq!(n_done, 0, "{data} behind the end");
            }
            None => panic!("no event: {line:?}"),
        }
    }
    assert_eq!((text.as_str(), n_done), (forged, 1));
    let lines = ask(&daemon.socket, &post(NATIVE, json!({"input": forged}).to_string()));
    let events: Vec<Value> =
        lines.text().split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect();
    let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(text, forged);
    assert_eq!(events.iter().filter(|event| event["event"] == "done").count(), 1);
}

#[test]
fn bodies_come_in_known_ways() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let before = answers(&daemon);
    for coding in ["gzip", "gzip, chunked", "identity"] {
        let head = format!(
            "POST {NATIVE} HTTP/1.1\r\nhost: s\r\ntransfer-encoding: {coding}\r\nconnection: close\r\n\r\n0\r\n\r\n"
        );
        let answer = ask(&daemon.socket, head.as_bytes());
        assert_eq!(
            (answer.status, answer.error("code").as_str()),
            (400, "invalid_value"),
            "{coding}: {answer:?}"
        );
    }
    let asked = std::time::SystemTime::now();
    let old = ask(&daemon.socket, b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    assert_eq!(
        (old.status, old.text()),
        (200, "ok\n"),
        "answered, and closed long before its idle time is over"
    );
    assert!(asked.elapsed().unwrap() < std::time::Duration::from_secs(30));
    assert_eq!(old.header("connection"), Some("close"), "and says so");
    assert_eq!(answers(&daemon), before);
}

#[test]
fn who_leaves_in_decode_is_cancelled() {
    let folder = Folder::new();
    let mut daemon = slow(&folder);
    let mut call = Call::send(&daemon.socket, &prompt(33, 9_000));
    call.head();
    (0..5).for_each(|_| drop(call.event("token")));
    drop(call);
    let ending = daemon.ending(33);
    cancelled(&ending);
    assert!((5..4_000).contains(&ending.n_generated), "{ending:?}");
    answers_slow(&daemon);
}

/// Who stops reading is paused, then ended; who keeps the connection hears why; others go on meanwhile.
#[test]
fn a_reader_that_stalls_is_ended_and_the_next_is_served() {
    let folder = Folder::new();
    let mut daemon = slow(&folder);
    let mut call = Call::send(&daemon.socket, &prompt(44, 15_000));
    call.head().event("token");
    let waiting = Call::send(&daemon.socket, &prompt(10, 3));
    let ending = daemon.ending(44);
    assert_eq!(ending.word, "stalled", "{ending:?}");
    assert!(ending.n_generated < 15_000, "it was paused: {ending:?}");
    let next = waiting.finish();
    says(next.text(), &[r#""event":"done""#]);
    let rest = call.lines_to_end();
    let last: Value = serde_json::from_str(rest.last().expect("lines")).unwrap();
    assert_eq!((&last["event"], &last["code"]), (&json!("error"), &json!("stalled")), "{last}");
    says(last["message"].as_str().unwrap(), &["not read for 1 s"]);
}

fn answers_slow(daemon: &Daemon) {
    let answer = ask(&daemon.socket, &prompt(3, 2));
    says(answer.text(), &[r#""event":"done""#, r#""completion_tokens":2"#]);
    until("an idle daemon", || (ask(&daemon.socket, &get("/healthz")).text() == "ok\n").then_some(()));
}

/// The command line: what it prints where, and its exit codes.
#[test]
fn the_command_line_says_what_is_wrong() {
    let folder = Folder::new();
    let stories = stories().display().to_string();
    let nowhere = folder.join("none.sock").display().to_string();
    let big = folder.write("big.txt", "x".repeat((1 << 20) + 1));
    let rows: Vec<(Vec<&str>, i32, Vec<&str>)> = vec![
        (vec!["ask", "hi", "--socket", &nowhere], 2, vec!["none.sock", "start sottod", "--local"]),
        (vec!["complete", "--model", "gone.gguf", "x"], 2, vec!["gone.gguf", "no such file"]),
        (
            vec!["complete", "--local", "--model", "gone", "x"],
            2,
            vec!["no model gone", "/usr/share/sotto/models"],
        ),
        (vec!["complete", "--model", &stories, "--temperature", "3", "x"], 2, vec!["0 to 2"]),
        (vec!["complete", "--model", &stories, "--max-tokens", "0", "x"], 2, vec!["max-tokens", "0"]),
        (vec!["complete", "--model", &stories, "--context", "1", "x"], 2, vec!["context", "1"]),
        (
            vec!["complete", "--model", &stories, "--context", "4", "one two three four"],
            2,
            vec!["tokens", "room for 4"],
        ),
        (vec!["complete", "--model", &stories, "--stop", "", "x"], 2, vec!["stop", "0 bytes", "256"]),
        (vec!["inspect", "/dev/null"], 2, vec!["/dev/null", "not a regular file"]),
        (vec!["inspect", "."], 2, vec!["config.json"]),
        (vec!["inspct", "hi"], 2, vec!["inspect"]),
    ];
    for (args, code, words) in rows {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}: {}", stdout(&output));
        says(&stderr(&output), &words);
    }
    let mut input = sotto(&["complete", "--model", &stories, "--max-tokens", "1"]);
    let output = input.stdin(std::fs::File::open(&big).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    says(&stderr(&output), &["1048576 bytes"]);
    let inspected = run(&["inspect", &stories]);
    assert!(inspected.status.success());
    says(&stdout(&inspected), &["llama", "Q8_0", "5 of width 64", "512 tokens"]);
}

/// What a daemon does not start with.
#[test]
fn the_daemon_says_what_is_wrong() {
    let folder = Folder::new();
    let text = |name: &str, body: &str| folder.write(name, body).display().to_string();
    let unknown = text("unknown.toml", "version = 1\n[engine]\ncontxt = 5\n");
    let range = text("range.toml", "version = 1\n[engine]\nprefill_chunk = 999\n");
    let old = text("old.toml", "version = 3\n");
    let socket = folder.join("s").display().to_string();
    let rows: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec!["--config", &unknown], vec!["unknown.toml", "3", "contxt"]),
        (vec!["--config", &range], vec!["range.toml", "999", "128"]),
        (vec!["--config", &old], vec!["old.toml", "3"]),
        (vec!["--config", "/nowhere.toml"], vec!["/nowhere.toml"]),
        (vec!["--model", "/nowhere.gguf", "--socket", &socket], vec!["/nowhere.gguf", "no such file"]),
        (vec!["--socket", "/nowhere/at/all/s", "--bus", "none"], vec!["/nowhere/at/all/s", "--socket"]),
        (vec!["--bus", "sometimes"], vec!["sometimes", "none"]),
        (vec!["--mock", "--bus", "session", "--socket", &socket], vec!["no-such-bus"]),
    ];
    for (args, words) in rows {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_sottod"));
        daemon.args(&args).env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/no-such-bus");
        let output = daemon.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        says(&stderr(&output), &words);
    }
    assert!(!Path::new(&socket).exists(), "a daemon that did not start leaves nothing behind");
}
