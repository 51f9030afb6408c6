//! `sotto status`, `ps`, `cancel`, `doctor`: what one sees of a daemon, and the same answers through it as without.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::http::{Call, ask, get, post};
use crate::support::{Daemon, Folder, Running, run, sotto, stderr, stdout, stories, until};

const NATIVE: &str = "/sotto/v1/generate";

fn status(daemon: &Daemon) -> Value {
    ask(&daemon.socket, &get("/sotto/v1/status")).json()
}

/// The command line's answer about `daemon`.
fn told(daemon: &Daemon, args: &[&str]) -> String {
    let socket = daemon.socket.display().to_string();
    let output = run(&[args, &["--socket", &socket]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn the_way_of_a_request_is_seen() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "tokens_per_s=10,prefill_tokens_per_s=200", "", None);
    let idle = status(&daemon);
    assert_eq!((&idle["generations"], &idle["callers"]), (&json!([]), &0.into()));
    assert!(idle["memory"]["resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(idle["temperature_c"].is_null() || idle["temperature_c"].is_f64());

    // Five chunks of 128 tokens, two thirds of a second each.
    let body =
        json!({ "input": "x".repeat(600), "model": "mock-endless", "class": "background" }).to_string();
    let mut call = Call::send(&daemon.socket, &post(NATIVE, body));
    let reads = until("a prompt half read", || {
        let seen = status(&daemon)["generations"][0].clone();
        (seen["state"] == "prefill" && !seen["prefill_left_ms"].is_null()).then_some(seen)
    });
    let rate = reads["tokens_per_s"].as_f64().unwrap();
    assert!((20.0..=210.0).contains(&rate), "{reads}");
    let left = reads["prompt_tokens"].as_u64().unwrap() - reads["prompt_done"].as_u64().unwrap();
    assert!(
        left > 0 && reads["prefill_left_ms"].as_f64().unwrap() <= 1e3 * left as f64 / rate + 10.0,
        "{reads}"
    );
    assert_eq!((&reads["class"], &reads["model"]), (&"background".into(), &"mock-endless".into()));

    let writes = until("an answer under way", || {
        let seen = status(&daemon)["generations"][0].clone();
        (seen["completion_tokens"].as_u64() > Some(4)).then_some(seen)
    });
    assert_eq!((&writes["state"], &writes["prompt_done"]), (&"decode".into(), &writes["prompt_tokens"]));
    assert!(writes["tokens_per_s"].as_f64().unwrap() <= 11.0, "{writes}");
    let all = status(&daemon);
    assert_eq!((&all["callers"], &all["active_generations"]), (&1.into(), &1.into()));
    let model = all["models"].as_array().unwrap().iter().find(|m| m["id"] == "mock-endless").unwrap();
    assert_eq!(model["state"], "loaded");
    assert!(
        model["weights_bytes"].as_u64().unwrap() > 0 && model["kv_bytes"].as_u64().unwrap() > 0,
        "{model}"
    );

    let id = writes["id"].as_str().unwrap();
    let screen = told(&daemon, &["status"]);
    for words in ["kernels ", "mock: available (default)", "mock-endless: loaded, weights ", "1 running", id]
    {
        assert!(screen.contains(words), "{words:?} in {screen}");
    }
    let listed = told(&daemon, &["ps"]);
    assert!(listed.lines().count() == 2 && listed.contains(id) && listed.contains("619/619"), "{listed}");
    assert_eq!(serde_json::from_str::<Value>(&told(&daemon, &["ps", "--json"])).unwrap()[0]["id"], id);
    assert_eq!(told(&daemon, &["cancel", id]), "");
    let last = call.head().lines_to_end().pop().unwrap();
    assert!(last.contains("\"code\":\"cancelled\""), "{last}");
    until("a daemon at rest", || (status(&daemon)["generations"] == json!([])).then_some(()));
    assert_eq!(told(&daemon, &["ps"]).lines().count(), 1, "the head alone");
    let none = run(&["cancel", "nonsense", "--socket", &daemon.socket.display().to_string()]);
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("unknown_object"), "{}", stderr(&none));
}

#[test]
fn a_watch_goes_on_line_by_line() {
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "", "", None);
    let socket = daemon.socket.display().to_string();
    for (flags, begins) in
        [(&["status", "--watch"][..], "ready, 0 running"), (&["status", "--watch", "--json"], "{")]
    {
        let mut command = sotto(&[flags, &["--socket", &socket]].concat());
        let mut watch = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            assert!(line.starts_with(begins), "{line}");
        }
    }
    drop(daemon);
    let gone = run(&["status", "--watch", "--socket", &socket]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(stderr(&gone).contains("no daemon answers"), "{}", stderr(&gone));
}

#[test]
fn a_doctor_tells_what_is_wrong_and_what_helps() {
    let folder = Folder::new();
    let mut daemon = Daemon::mock(&folder, "", "", None);
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    std::fs::copy(stories(), models.join("small.gguf")).unwrap();
    let config = format!("version = 1\n[models]\ndirs = [{:?}]\n", models.display().to_string());
    let config = folder.write("doctor.toml", config).display().to_string();
    let socket = daemon.socket.display().to_string();
    let flags = ["doctor", "--config", &config, "--socket", &socket];
    let fine = run(&flags);
    assert_eq!(fine.status.code(), Some(0), "{}{}", stdout(&fine), stderr(&fine));
    for words in [
        "fine   socket",
        "fine   daemon        sottod",
        "fine   model         small takes",
        "processor     kernels",
    ] {
        assert!(stdout(&fine).contains(words), "{words:?} in {}", stdout(&fine));
    }
    std::fs::write(models.join("broken.gguf"), b"GGUF").unwrap();
    daemon.process.signal(rustix::process::Signal::TERM);
    daemon.process.ended("the daemon");
    let wrong = run(&[&flags[..], &["--json"]].concat());
    assert_eq!(wrong.status.code(), Some(1), "{}", stdout(&wrong));
    let found: Value = serde_json::from_str(&stdout(&wrong)).unwrap();
    let of = |what: &str| {
        let all = found["found"].as_array().unwrap().iter().filter(|f| f["what"] == what);
        all.map(|f| (f["how"].as_str().unwrap(), f["remedy"].is_string())).collect::<Vec<_>>()
    };
    assert_eq!(of("socket"), [("wrong", true)]);
    assert_eq!(of("model"), [("wrong", true), ("fine", false)]);
    assert_eq!(of("configuration"), [("fine", false)]);
    assert!(stderr(&wrong).contains("2 of "), "{}", stderr(&wrong));
}

/// An answer without what differs from call to call.
fn told_object(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    let mut object: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["id", "timings"] {
        assert!(object.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    object
}

#[test]
fn answers_are_the_same_through_a_daemon_and_in_process() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let (model, socket) = (stories().display().to_string(), daemon.socket.display().to_string());
    let who = [["--model", &*model], ["--socket", &socket]];
    let how = ["--seed", "11", "--max-tokens", "24"];
    for command in [&["ask", "Tell me of a cat"][..], &["complete", "Once upon a time"]] {
        let [here, there] = who.map(|who| run(&[command, &how, &who].concat()));
        assert!(here.status.success() && !here.stdout.is_empty(), "{}", stderr(&here));
        assert_eq!(here.stdout, there.stdout, "{command:?}");
        let [here, there] = who.map(|who| told_object(&run(&[command, &how, &["--json"], &who].concat())));
        assert_eq!(here, there, "{command:?}");
    }
    let [here, there] = who.map(|who| {
        let input = folder.write("said", "Hello\nAnd then?\n");
        let mut chat = sotto(&[&["chat"][..], &how, &who].concat());
        chat.stdin(std::fs::File::open(input).unwrap()).output().unwrap()
    });
    assert!(here.status.success() && stdout(&here).lines().count() >= 2, "{}", stderr(&here));
    assert_eq!(here.stdout, there.stdout, "chat from a pipe");
}

#[test]
fn models_are_loaded_and_let_go_of() {
    let folder = Folder::new();
    let socket = folder.join("canned.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let events = "{\"event\":\"loading\",\"model\":\"m\",\"done\":1,\"total\":2}\n\
                  {\"event\":\"loaded\",\"model\":\"m\",\"load_ms\":1250}\n";
    let failed = "{\"event\":\"error\",\"code\":\"load_failed\",\"message\":\"cut short\"}\n";
    let busy = "{\"error\":{\"message\":\"it answers\",\"type\":\"invalid_request_error\",\"code\":\"model_busy\",\"param\":null}}\n";
    let replies = [("200 OK", events), ("200 OK", failed), ("204 No Content", ""), ("409 Conflict", busy)];
    // What a daemon sends by proto/openapi.yaml, and what it is asked.
    let asked = sotto::os::thread::start("canned", move || {
        let one = |(status, body): (&str, &str)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let first = lines.next().unwrap();
            assert!(lines.any(|line| line.is_empty()), "the head ends");
            let length =
                if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            write!(stream, "HTTP/1.1 {status}\r\n{length}\r\n{body}").unwrap();
            first
        };
        replies.map(one)
    })
    .unwrap();
    let path = socket.display().to_string();
    let tell = |args: &[&str]| run(&[args, &["--socket", &path]].concat());
    let loaded = tell(&["load", "a b"]);
    assert!(loaded.status.success() && stdout(&loaded).is_empty(), "{}", stderr(&loaded));
    assert_eq!(stderr(&loaded), "sotto: model m is loaded in 1.2 s\n");
    let damaged = tell(&["load", "m", "--json"]);
    assert_eq!(
        (damaged.status.code(), stderr(&damaged).as_str()),
        (Some(2), "sotto: load_failed: cut short\n")
    );
    assert!(tell(&["unload", "m"]).status.success());
    let refused = tell(&["unload", "m", "--force"]);
    assert_eq!(
        (refused.status.code(), stderr(&refused).as_str()),
        (Some(2), "sotto: model_busy: it answers\n")
    );
    let lines = asked.join().unwrap();
    let route = |line: &String| line.trim_end_matches(" HTTP/1.1").replace("/sotto/v1/models", "");
    let wanted = ["POST /a%20b/load", "POST /m/load", "POST /m/unload", "POST /m/unload?force=true"];
    assert_eq!(lines.each_ref().map(route), wanted);
}
