//! What comes from outside and is wrong, on the programs as they are: files, requests, clients that leave, readers that
//! stall. Each row asserts the code, the numbers in the message, and what a user should see after it: the daemon
//! answers on, others are not touched, memory stays where it was.
#![cfg(feature = "http")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it measured"
)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sotto::door::http::{self, HttpOptions};
use sotto::engine::{Engine, ModelFile, Options, Status};
use support::gguf::{self, F32, SLOW, TINY, V};
use support::http::{Call, ask, get, post};
use support::{Daemon, Ending, Folder, run, sotto, stderr, stdout, stories, until};

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

/// A kind of damage with what must be said about it.
struct Damage {
    name: &'static str,
    bytes: Vec<u8>,
    words: Vec<String>,
}

/// A truncated, a lying and an oversized file of each sort.
fn damaged() -> Vec<Damage> {
    let whole = gguf::llama(TINY).bytes();
    let n = whole.len();
    let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let with = |change: &dyn Fn(&mut gguf::File)| {
        let mut file = gguf::llama(TINY);
        change(&mut file);
        file.bytes()
    };
    let row = |name, bytes, w: &[&str]| Damage { name, bytes, words: words(w) };
    vec![
        row("empty", Vec::new(), &["0 bytes long"]),
        row(
            "another kind",
            b"PK\x03\x04 and so on".to_vec(),
            &["begins with bytes [50, 4b, 03, 04]", "GGUF"],
        ),
        row("cut in the header", whole[..10].to_vec(), &["needs 8 bytes, 2 remain", "cut short"]),
        row("cut in the metadata", whole[..200].to_vec(), &["at most", "possible here"]),
        row(
            "cut in the weights",
            whole[..n - 100].to_vec(),
            &["output_norm.weight", "needs 128 bytes, 28 remain"],
        ),
        row("version", with(&|f| f.version = 9), &["GGUF version 9", "2 and 3"]),
        row(
            "tensors",
            with(&|f| f.n_tensors = Some(1 << 40)),
            &["tensor count says 1099511627776", "at most 1653 possible here"],
        ),
        row("keys", with(&|f| f.n_keys = Some(1 << 40)), &["metadata count says 1099511627776", "at most"]),
        row(
            "a string beyond the file",
            with(&|f| f.set("general.name", V::Raw(8, u64::MAX.to_le_bytes().to_vec()))),
            &["general.name", "needs 18446744073709551615 bytes"],
        ),
        row(
            "an array beyond the file",
            with(&|f| {
                f.set("x", V::Raw(9, [&10_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat()))
            }),
            &["key x", "says 1152921504606846976"],
        ),
        row(
            "a shape beyond the addresses",
            with(&|f| f.tensor("output.weight").dims = vec![1 << 40, 1 << 40]),
            &["output.weight", "1099511627776"],
        ),
        row(
            "no rows",
            with(&|f| f.tensor("output.weight").dims = vec![32, 0]),
            &["output.weight", "[32, 0]", "a dimension is 0"],
        ),
        row(
            "half a block",
            with(&|f| f.tensor("output.weight").dims = vec![33, 512]),
            &["output.weight", "multiple of 32"],
        ),
        row(
            "an offset beyond the file",
            with(&|f| f.tensor("output_norm.weight").offset = Some(1 << 50)),
            &["output_norm.weight", "1125899906", "needs 128 bytes, 0 remain"],
        ),
        row(
            "overlapping tensors",
            with(&|f| f.tensor("output_norm.weight").offset = Some(0)),
            &["begins inside tensor", "ends at byte"],
        ),
        row(
            "an offset beside the alignment",
            with(&|f| f.tensor("output_norm.weight").offset = Some(8)),
            &["output_norm.weight", "alignment 32"],
        ),
        row(
            "two of one name",
            with(&|f| f.tensor("output_norm.weight").name = "output.weight".into()),
            &["tensor output.weight", "occurs twice"],
        ),
        row(
            "an unknown type",
            with(&|f| f.tensor("output.weight").kind = 77),
            &["tensor output.weight", "type number 77", "Q4_K (12)"],
        ),
        row(
            "a norm in blocks",
            with(&|f| {
                let norm = f.tensor("output_norm.weight");
                (norm.kind, norm.data) = (gguf::Q8_0, vec![0; 34]);
            }),
            &["output_norm.weight", "Q8_0", "F32, F16 or BF16"],
        ),
        row(
            "no architecture",
            with(&|f| f.keys.retain(|(key, _)| key != "general.architecture")),
            &["general.architecture is absent"],
        ),
        row(
            "an architecture of the future",
            with(&|f| f.set("general.architecture", V::Str("mammoth".into()))),
            &["architecture mammoth is not supported", "llama"],
        ),
        row(
            "a missing tensor",
            with(&|f| f.tensors.retain(|t| t.name != "blk.0.ffn_up.weight")),
            &["blk.0.ffn_up.weight is absent"],
        ),
        row(
            "a tensor too many",
            with(&|f| f.tensor("output_norm.weight").name = "output_norm.waste".into()),
            &["output_norm.weight is absent"],
        ),
        row(
            "other sizes than the tensors",
            with(&|f| f.set("llama.feed_forward_length", V::U32(64))),
            &["blk.0.ffn_gate.weight", "32 rows of 32", "64 rows of 32"],
        ),
        row(
            "four billion layers",
            with(&|f| f.set("llama.block_count", V::U32(u32::MAX))),
            &["llama.block_count is 4294967295", "1 to 1024"],
        ),
        row(
            "no heads",
            with(&|f| f.set("llama.attention.head_count", V::U32(0))),
            &["llama.attention.head_count is 0", "1 to"],
        ),
        row(
            "a norm that divides by nothing",
            with(&|f| f.set("llama.attention.layer_norm_rms_epsilon", V::F32(f32::NAN))),
            &["layer_norm_rms_epsilon", "NaN", "finite number"],
        ),
        row(
            "a vocabulary of another size",
            with(&|f| f.set("tokenizer.ggml.tokens", V::Strings(vec!["<unk>".into(), "<s>".into()]))),
            &["2", "512"],
        ),
        row(
            "a begin token outside the vocabulary",
            with(&|f| f.set("tokenizer.ggml.bos_token_id", V::U32(9999))),
            &["9999", "512"],
        ),
        row(
            "a vector of more floats",
            with(&|f| {
                let norm = f.tensor("output_norm.weight");
                (norm.kind, norm.dims, norm.data) = (F32, vec![64], vec![0; 256]);
            }),
            &["output_norm.weight", "1 rows of 64", "1 rows of 32"],
        ),
    ]
}

#[test]
fn damaged_files_are_refused_by_name_and_number() {
    let folder = Folder::new();
    for damage in damaged() {
        let file = folder.write("m.gguf", &damage.bytes);
        let words: Vec<&str> = damage.words.iter().map(String::as_str).collect();
        let model = file.display().to_string();
        // In a process that may have 1 GB of addresses: what a file claims is never allocated.
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sotto")])
            .args(["complete", "--model", &model, "--threads", "1", "--max-tokens", "1", "x"])
            .env_remove("SOTTO_MODEL")
            .output()
            .unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{}: {message}{}", damage.name, stdout(&output));
        assert!(output.stdout.is_empty() && message.starts_with("sotto: "), "{}: {message}", damage.name);
        assert!(message.contains("m.gguf"), "{}: {message}", damage.name);
        says(&message, &words);
    }
}

#[test]
fn a_daemon_with_a_damaged_file_says_so_and_lives() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let all = damaged();
    for (i, damage) in all.iter().enumerate() {
        std::fs::write(models.join(format!("m{i}.gguf")), &damage.bytes).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    let before = answers(&daemon);
    let idle = daemon.memory_kib("VmRSS");
    for (i, damage) in all.iter().enumerate() {
        let body = json!({"model": format!("m{i}"), "input": "x", "raw": true}).to_string();
        let answer = ask(&daemon.socket, &post(NATIVE, &body));
        let code =
            if damage.name == "an architecture of the future" { "unsupported_model" } else { "load_failed" };
        assert_eq!(
            (answer.status, answer.error("code").as_str()),
            (503, code),
            "{}: {answer:?}",
            damage.name
        );
        // A message on the wire is bounded; it keeps its beginning.
        says(&answer.error("message"), &[&format!("m{i}.gguf")]);
    }
    assert_eq!(answers(&daemon), before);
    let grown = daemon.memory_kib("VmRSS").saturating_sub(idle);
    assert!(grown < 4_096, "{} refused files cost {grown} KiB", all.len());
}

/// Templates are programs from strangers: what one does past every bound ends its own request.
#[test]
fn a_template_that_never_ends_costs_its_own_request() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let double =
        "{% set ns = namespace(s=[1,2]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    let nest =
        "{% set ns = namespace(s=1) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}";
    let itself = "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns|string|length }}";
    let hostile = [
        ("double", format!("{double}{{{{ ns.s|length }}}}")),
        ("nest", format!("{nest}{{{{ ns.s == ns.s }}}}{{{{ ns.s|string|length }}}}")),
        ("itself", itself.to_owned()),
    ];
    for (name, template) in &hostile {
        let mut file = gguf::llama(TINY);
        file.set("tokenizer.chat_template", V::Str(template.clone()));
        std::fs::write(models.join(format!("{name}.gguf")), file.bytes()).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    let before = answers(&daemon);
    daemon.forget_peak();
    let idle = daemon.memory_kib("VmHWM");
    for (name, _) in hostile {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "hi"}]}).to_string();
        let answer = ask(&daemon.socket, &post(CHAT, &body));
        assert_eq!(
            (answer.status, answer.error("code").as_str()),
            (400, "invalid_value"),
            "{name}: {answer:?}"
        );
        assert_eq!(answer.error("param"), "messages");
        says(&answer.error("message"), &[name, "chat template"]);
        assert_eq!(answers(&daemon), before, "{name}");
    }
    let grown = daemon.memory_kib("VmHWM").saturating_sub(idle);
    assert!(grown < 4_096, "hostile templates cost {grown} KiB");
}

#[test]
fn a_cache_that_cannot_be_had_is_refused_with_its_size() {
    let folder = Folder::new();
    let mut file = gguf::llama(TINY);
    file.set("llama.context_length", V::U32(1 << 24));
    let model = folder.write("long.gguf", file.bytes()).display().to_string();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sotto")])
        .args(["complete", "--model", &model, "--threads", "1", "--context", "16777216", "x"])
        .env_remove("SOTTO_MODEL")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // One layer, one head of 16 numbers, keys and values, 2 bytes each.
    let need = (1_u64 << 24) * 16 * 2 * 2;
    says(&stderr(&output), &[&format!("{need} bytes"), "16777216 positions", "smaller context"]);
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
        (NATIVE, json!({"input": "x", "top_p": 0}), 400, "invalid_value", Some("top_p"), &["0"][..]),
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
            &["tokens", "512"][..],
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "context_too_long",
            Some("messages"),
            &["tokens", "512"][..],
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
            &[][..],
        ),
        (
            CHAT,
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            400,
            "invalid_value",
            Some("messages[0].role"),
            &[][..],
        ),
        ("/v1/completions", json!({"prompt": "x", "n": 3}), 400, "unsupported_field", Some("n"), &[][..]),
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
        b"POST /sotto/v1/generate HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
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
    assert!(grown < 12_288, "two bodies of 100 MB cost {grown} KiB");
}

/// A daemon whose prompts take seconds to read, with a time limit for stalled readers of 1 s.
fn slow(folder: &Folder) -> Daemon {
    let model = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    Daemon::start(folder, &model, "[api]\nstall_timeout_s = 1\nkeepalive_s = 1\n")
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
    let mut daemon = slow(&folder);
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

/// A door in this process, where the layers that begin can be counted.
#[test]
fn hardly_a_layer_begins_after_the_close() {
    let folder = Folder::new();
    let path = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    let models = vec![ModelFile { id: "slow".into(), path }];
    let options = Options { models, threads: 1, n_ctx: 16_384, ..Options::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options).unwrap();
    let socket = folder.join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (closing, closed) = tokio::sync::watch::channel(false);
    let door = engine.clone();
    let thread = sotto::os::thread::start("door", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            http::serve(door, listener, HttpOptions::default(), closed).await;
        });
    });
    let mut call = Call::send(&socket, &prompt(9_000, 5));
    let read = call.head().event("prefill")["done"].as_u64().unwrap();
    let before = engine.layers_begun();
    drop(call);
    until("an engine at rest", || (engine.status() == Status::default()).then_some(()));
    let after = engine.layers_begun() - before;
    println!("read {read} of 9000 tokens; {after} layers of {} begun after the close", SLOW.n_layer);
    // One that began while the close was under way, and one for a busy machine.
    assert!(after <= 2, "{after} layers begun after the close");
    closing.send(true).unwrap();
    thread.unwrap().join().unwrap();
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
        (vec!["inspect", "."], 2, vec!["not a regular file"]),
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
    ];
    for (args, words) in rows {
        let output = Command::new(env!("CARGO_BIN_EXE_sottod")).args(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        says(&stderr(&output), &words);
    }
    assert!(!Path::new(&socket).exists(), "a daemon that did not start leaves nothing behind");
}
