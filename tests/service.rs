//! One model through every door: the same prompts by the command line in its own process, by the command line through
//! the daemon, over the socket in its three shapes, and over a bus, called and streamed. All must say the same, and
//! what independent implementations say (`fixtures/SOURCES.md`).
#![cfg(all(feature = "dbus", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skips"
)]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sotto::base::Token;
use sotto::model::{Model, vocab};
use support::gguf::{SLOW, llama};
use support::http::{Call, ask, get, post};
use support::{Daemon, Folder, bus, fixture, have, run, shared, sotto, stderr, stdout, stories};
use zbus::{OwnedFd, OwnedObjectPath, Variant};

const N_TOKENS: u32 = 64;
const NAME: &str = "org.sotto.Sotto1";
const PATH: &str = "/org/sotto/Sotto1";
const MANAGER: &str = "org.sotto.Sotto1.Manager";

/// What a model should say to a prompt.
struct Row {
    prompt: String,
    text: String,
    ids: Vec<Token>,
    /// Distance of the two best logits at each step.
    gaps: Vec<f64>,
}

/// The prompts of `variant` with what should follow.
fn golden(variant: &str) -> Vec<Row> {
    let path = shared("models/stories260k/golden_greedy.json")
        .unwrap_or_else(|| fixture("stories260k/golden_greedy.json"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all: Value = serde_json::from_slice(&bytes).unwrap();
    all["variants"][variant].as_array().unwrap().iter().map(row).collect()
}

/// A row of a golden file.
fn row(row: &Value) -> Row {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let id = |value: &Value| Token(u32::try_from(value.as_u64().unwrap()).unwrap());
    Row {
        prompt: text(&row["prompt"]),
        text: text(&row["text"]),
        ids: row["greedy_ids"].as_array().unwrap().iter().map(id).collect(),
        gaps: row["top2_gap"].as_array().unwrap().iter().map(|gap| gap.as_f64().unwrap()).collect(),
    }
}

/// One leading space is the tokenizer's habit.
fn bare(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// Holds `answers` to the golden rows: one may part only where the two best logits were close, and at least
/// `n_equal_min` are equal in full.
fn compare(variant: &str, model: &Path, rows: &[Row], answers: &[String], n_equal_min: usize) {
    let gap_max = if variant.starts_with('f') { 0.02 } else { 0.25 };
    let model = Model::open(model).unwrap();
    let tokenizer = vocab::tokenizer(model.checkpoint()).unwrap();
    let mut n_equal = 0;
    for (row, answer) in rows.iter().zip(answers) {
        if bare(answer) == bare(&row.text) {
            n_equal += 1;
            continue;
        }
        let parts = |n: &usize| {
            let text = tokenizer.decode(&row.ids[..=*n]);
            !bare(answer).as_bytes().starts_with(bare(&String::from_utf8_lossy(&text)).as_bytes())
        };
        let step = (0..row.ids.len()).find(parts).unwrap_or(row.ids.len() - 1);
        let gap = row.gaps[step];
        println!("{variant}: {:?} parts at step {step}, where the gap is {gap}", row.prompt);
        assert!(
            gap < gap_max,
            "{variant}: {:?} parts at step {step}, gap {gap}\n{answer}\n{}",
            row.prompt,
            row.text
        );
    }
    assert!(
        n_equal >= n_equal_min,
        "{variant}: {n_equal} of {} rows are equal, {n_equal_min} wanted",
        rows.len()
    );
}

/// The answers to all prompts by the command line with these flags.
fn by_sotto(flags: &[&str], rows: &[Row]) -> Vec<String> {
    let tokens = N_TOKENS.to_string();
    rows.iter()
        .map(|row| {
            let mut command = sotto(&["complete", "--temperature", "0", "--max-tokens", &tokens]);
            let output = command.args(flags).arg(&row.prompt).output().unwrap();
            assert!(output.status.success(), "{flags:?}: {}", stderr(&output));
            stdout(&output)
        })
        .collect()
}

/// The body that curl gets.
fn curl(socket: &Path, path: &str, body: &Value) -> String {
    let mut child = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--no-buffer",
            "--fail-with-body",
            "--max-time",
            "60",
            "--unix-socket",
        ])
        .arg(socket)
        .args([&format!("http://sotto{path}"), "--data-binary", "@-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{path}: {}{}", stderr(&output), stdout(&output));
    stdout(&output)
}

fn plain(socket: &Path, prompt: &str) -> String {
    let body = json!({ "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0 });
    let answer: Value = serde_json::from_str(&curl(socket, "/v1/completions", &body)).unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], N_TOKENS, "{answer}");
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

fn server_sent(socket: &Path, prompt: &str) -> String {
    let body = json!({ "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "stream": true });
    let stream = curl(socket, "/v1/completions", &body);
    let data: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = data.split_last().expect("lines of data");
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (finish, pieces) = chunks.split_last().expect("chunks");
    assert_eq!(finish["choices"][0]["finish_reason"], "length", "{finish}");
    assert!(pieces.iter().all(|piece| piece["choices"][0]["finish_reason"].is_null()));
    pieces.iter().map(|piece| piece["choices"][0]["text"].as_str().unwrap()).collect()
}

fn lines(socket: &Path, prompt: &str) -> String {
    let body = json!({ "input": prompt, "raw": true, "max_tokens": N_TOKENS, "temperature": 0 });
    joined(&curl(socket, "/sotto/v1/generate", &body))
}

/// The text of a stream of events, whose end is checked.
fn joined(stream: &str) -> String {
    let events: Vec<Value> = stream.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (done, events) = events.split_last().expect("events");
    assert_eq!((&done["event"], &done["stop_detail"]), (&json!("done"), &json!("max_tokens")), "{done}");
    assert_eq!(done["usage"]["completion_tokens"], N_TOKENS, "{done}");
    let known = ["queued", "loading", "prefill", "token"];
    assert!(events.iter().all(|e| known.contains(&e["event"].as_str().unwrap())), "{stream}");
    events.iter().filter_map(|event| event["text"].as_str()).collect()
}

/// By `busctl`, which waits for the whole answer.
fn called(address: &str, prompt: &str) -> String {
    let tokens = N_TOKENS.to_string();
    let output = Command::new("busctl")
        .args([&format!("--address={address}"), "--json=short", "--timeout=60", "call", NAME, PATH, MANAGER])
        .args(["Generate", "sa{sv}", prompt, "3", "raw", "b", "true", "max_tokens", "u", &tokens])
        .args(["temperature", "d", "0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let info = &answer["data"][1];
    assert_eq!(info["stop_detail"]["data"], "max_tokens", "{answer}");
    answer["data"][0].as_str().unwrap().to_owned()
}

/// By a client that reads the pipe of `StartGeneration`.
async fn piped(connection: &zbus::Connection, prompt: &str, format: &str) -> String {
    let options = HashMap::from([
        ("raw", Variant::from(true)),
        ("max_tokens", Variant::from(N_TOKENS)),
        ("temperature", Variant::from(0.0)),
        ("format", Variant::from(format)),
    ]);
    let reply = connection
        .call_method(Some(NAME), PATH, Some(MANAGER), "StartGeneration", &(prompt, options))
        .await
        .unwrap();
    let (path, pipe): (OwnedObjectPath, OwnedFd) = reply.body().deserialize().unwrap();
    assert!(path.as_str().starts_with(&format!("{PATH}/generation/")), "{path}");
    let mut stream = String::new();
    std::fs::File::from(std::os::fd::OwnedFd::from(pipe)).read_to_string(&mut stream).unwrap();
    if format == "events" { joined(&stream) } else { stream }
}

#[test]
fn every_door_gives_the_golden_answers() {
    let folder = Folder::new();
    let model = stories();
    let rows = golden("q8_0");
    let model_flag = model.display().to_string();
    let first = by_sotto(&["--local", "--threads", "2", "--model", &model_flag], &rows);
    compare("q8_0", &model, &rows, &first, 4);
    let agree = |door: &str, answers: Vec<String>| {
        for ((row, answer), first) in rows.iter().zip(answers).zip(&first) {
            assert_eq!(&answer, first, "{door}: {:?}", row.prompt);
        }
    };

    let on_bus = have("dbus-daemon", "Generate and StartGeneration").then(|| bus(&folder));
    let daemon =
        Daemon::start_on(&folder, Some(&model), "", on_bus.as_ref().map(|(_, address)| address.as_str()));
    let socket = &daemon.socket;
    agree("sotto --socket", by_sotto(&["--socket", &socket.display().to_string()], &rows));
    if have("curl", "the socket's three shapes by curl") {
        let all =
            |door: fn(&Path, &str) -> String| rows.iter().map(|row| door(socket, &row.prompt)).collect();
        agree("/v1/completions", all(plain));
        agree("/v1/completions, streamed", all(server_sent));
        agree("/sotto/v1/generate", all(lines));
    }
    if let Some((_, address)) = &on_bus {
        if have("busctl", "Generate by busctl") {
            agree("Generate", rows.iter().map(|row| called(address, &row.prompt)).collect());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let builder = zbus::connection::Builder::address(address.as_str());
            let connection = builder.build().await.unwrap();
            for format in ["events", "text"] {
                let mut answers = Vec::new();
                for row in &rows {
                    answers.push(piped(&connection, &row.prompt, format).await);
                }
                agree(&format!("StartGeneration, {format}"), answers);
            }
        });
    }
}

/// The model in the box is the one that its card and its recipe speak of.
#[test]
fn the_model_in_the_box_gives_the_golden_answers() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/story-2.8m-q8_0.gguf");
    let bytes = std::fs::read(fixture("story/golden.json")).unwrap();
    let all: Value = serde_json::from_slice(&bytes).unwrap();
    let rows: Vec<Row> = all["rows"].as_array().unwrap().iter().map(row).collect();
    // Without naming a file: the command line finds it by itself.
    let n_tokens = rows[0].ids.len().to_string();
    let answers: Vec<String> = rows
        .iter()
        .map(|row| {
            let output =
                run(&["complete", "--local", "--temperature", "0", "--max-tokens", &n_tokens, &row.prompt]);
            assert!(output.status.success(), "{}", stderr(&output));
            stdout(&output)
        })
        .collect();
    compare("q8_0", &model, &rows, &answers, 1);
}

/// A bus that restarts takes its services along; this one comes back by itself.
#[test]
fn a_bus_that_comes_back_has_the_daemon_again() {
    if !have("dbus-daemon", "the return of a bus") || !have("busctl", "the return of a bus") {
        return;
    }
    let folder = Folder::new();
    let (first, address) = bus(&folder);
    let mut daemon = Daemon::start_on(&folder, Some(&stories()), "", Some(&address));
    drop(first);
    daemon.logged("the bus is lost");
    let (_second, address) = bus(&folder);
    daemon.logged("the bus is back");
    assert!(!called(&address, "Once").is_empty());
}

/// A machine that goes down stops the bus first: the daemon ends all the same, and well.
#[test]
fn a_daemon_that_has_lost_its_bus_can_be_ended() {
    if !have("dbus-daemon", "an end without a bus") {
        return;
    }
    let folder = Folder::new();
    let (first, address) = bus(&folder);
    let mut daemon = Daemon::start_on(&folder, Some(&stories()), "", Some(&address));
    drop(first);
    daemon.logged("the bus is lost");
    let since = sotto::os::clock::now_us();
    daemon.process.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
    let us = sotto::os::clock::now_us() - since;
    assert!(us < 3_000_000, "{us}");
}

/// Who still waits for an answer when the daemon goes down hears that.
#[test]
fn a_daemon_that_goes_down_ends_every_answer() {
    if !have("dbus-daemon", "the end of answers on a bus") {
        return;
    }
    let folder = Folder::new();
    let model = folder.write("slow.gguf", llama(SLOW).bytes());
    let (_bus, address) = bus(&folder);
    let mut daemon = Daemon::start_on(&folder, Some(&model), "", Some(&address));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let options =
            HashMap::from([("raw", Variant::from(true)), ("max_tokens", Variant::from(16_000_u32))]);
        let reply = connection
            .call_method(Some(NAME), PATH, Some(MANAGER), "StartGeneration", &("w300", options))
            .await
            .unwrap();
        let (_, pipe): (OwnedObjectPath, OwnedFd) = reply.body().deserialize().unwrap();
        let mut pipe = std::io::BufReader::new(std::fs::File::from(std::os::fd::OwnedFd::from(pipe)));
        let mut line = String::new();
        while !line.contains("token") {
            line.clear();
            pipe.read_line(&mut line).unwrap();
        }
        daemon.process.signal(rustix::process::Signal::TERM);
        let mut rest = String::new();
        pipe.read_to_string(&mut rest).unwrap();
        let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["code"]), (&json!("error"), &json!("cancelled")), "{last}");
        assert!(last["message"].as_str().unwrap().contains("going down"), "{last}");
    });
    assert!(daemon.process.ended("the end of the daemon").success());
}

/// Writes the configuration that the daemon of `folder` reads at its next reload; sections may follow that
/// [`Daemon::start`] has not.
fn rewrite(folder: &Folder, config: &str) {
    folder.write(
        "sotto.toml",
        format!("version = 1\n[engine]\nthreads = 1\nnice = 0\ncontext = 16384\n{config}"),
    );
}

#[test]
fn a_reload_takes_effect_and_drops_no_stream() {
    let folder = Folder::new();
    let model = folder.write("slow.gguf", llama(SLOW).bytes());
    let dir = folder.join("models");
    std::fs::create_dir(&dir).unwrap();
    let mut daemon = Daemon::start(&folder, &model, "");
    let socket = daemon.socket.clone();
    let status = |path: &str| ask(&socket, &get(path)).status;
    let body = |fields: &str| format!("{{\"input\":\"w300\",\"raw\":true,\"max_tokens\":1{fields}}}");
    let generate = |fields: &str| ask(&socket, &post("/sotto/v1/generate", body(fields)));
    let long = post("/sotto/v1/generate", r#"{"input":"w300","raw":true,"max_tokens":16000}"#);
    let mut stream = Call::send(&socket, &long);
    stream.head().event("token");
    assert_eq!((status("/metrics"), status("/v1/models/small")), (200, 404));

    // A wrong file leaves all as it is.
    rewrite(&folder, "[api]\nmetrics = 1\n");
    daemon.process.signal(rustix::process::Signal::HUP);
    let refused = daemon.logged("the old configuration stays");
    assert!(refused.contains("sotto.toml:7:11: invalid type: integer `1`"), "{refused}");
    assert_eq!(status("/metrics"), 200);
    stream.event("token");

    std::fs::copy(stories(), dir.join("story.gguf")).unwrap();
    rewrite(
        &folder,
        &format!(
            "kv_type = \"f32\"\n[api]\nmetrics = false\nlenient = true\n[models]\ndirs = [{dir:?}]\n\
             [models.aliases]\nsmall = \"story\"\n[model.story]\ncontext = 100\n[limits]\nrequests_per_minute = 3\n"
        ),
    );
    let drop_in = folder.join("sotto.toml.d");
    std::fs::create_dir(&drop_in).unwrap();
    std::fs::write(drop_in.join("50-limit.toml"), "version = 1\n[limits]\nrequests_per_minute = 2\n")
        .unwrap();
    daemon.process.signal(rustix::process::Signal::HUP);
    daemon.logged("configuration read again from 2 files, 2 models");
    daemon.logged("engine.kv_type: the new value holds from the next start on");
    daemon.logged("model.story.context: the new value holds from the model's next load on");
    assert_eq!(ask(&socket, &get("/metrics")).error("code"), "unknown_route");
    assert_eq!(ask(&socket, &get("/v1/models/small")).json()["id"], "story");
    // The class lets it wait behind the stream; nothing of it is asked of the model but a token.
    let first = generate(",\"bogus\":1");
    assert_eq!((first.status, first.header("sotto-ignored")), (200, Some("bogus")), "{first:?}");
    let left = |answer: &support::http::Answer, name: &str| {
        answer.header(&format!("x-ratelimit-{name}-requests")).map(str::to_owned)
    };
    assert_eq!((left(&first, "limit"), left(&first, "remaining")), (Some("2".into()), Some("1".into())));
    assert_eq!(generate("").status, 200);
    let over = generate("");
    assert_eq!((over.status, over.error("code").as_str()), (429, "rate_limited"), "{over:?}");
    let wait: u64 = over.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (1..=30).contains(&wait) && over.error("message").contains("limits.requests_per_minute"),
        "{over:?}"
    );
    assert_eq!(left(&over, "remaining"), Some("0".into()));
    assert!(left(&over, "reset").unwrap().ends_with('s'));
    // What began before goes on.
    stream.event("token");

    // Without the bound, and back to the first file.
    rewrite(&folder, "[models]\ndirs = []\n");
    std::fs::write(drop_in.join("50-limit.toml"), "").unwrap();
    daemon.process.signal(rustix::process::Signal::HUP);
    daemon.logged("configuration read again from 1 files, 1 models");
    let free = generate("");
    assert_eq!((free.status, left(&free, "limit")), (200, None));
    assert_eq!((status("/metrics"), status("/v1/models/small")), (200, 404));
    stream.event("token");
}

#[test]
fn every_variant_gives_the_golden_answers() {
    for variant in ["f32", "f16", "q8_0", "q4_0"] {
        let name = format!("stories260K-{variant}.gguf");
        let places: [Option<PathBuf>; 2] = [
            shared(&format!("models/stories260k/{name}")),
            Some(fixture(&format!("stories260k/{name}"))).filter(|path| path.is_file()),
        ];
        let Some(model) = places.into_iter().flatten().next() else {
            println!(
                "skipped: the golden answers of {variant}; the full set of fixtures is not beside the checkout"
            );
            continue;
        };
        let rows = golden(variant);
        let answers =
            by_sotto(&["--local", "--threads", "1", "--model", &model.display().to_string()], &rows);
        compare(variant, &model, &rows, &answers, 4);
    }
}
