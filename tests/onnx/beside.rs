//! Helpers that take long, and what goes on beside them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sotto::os::clock;

use crate::support::http::{Call, ask, post};
use crate::support::{Daemon, Folder, run, stdout, until};
use crate::{HELPER, children, fixture};

/// A model of our own decoder's, and graphs, for a daemon that finds them by name.
fn models(folder: &Folder, graphs: &[&str]) -> String {
    let dir = folder.join("models");
    std::fs::create_dir(&dir).unwrap();
    for graph in graphs {
        symlink(fixture(graph), dir.join(graph)).unwrap();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stories260k/stories260K-q8_0.gguf");
    std::fs::copy(own, dir.join("stories.gguf")).unwrap();
    format!("[models]\ndirs = [{:?}]\n", dir.display().to_string())
}

fn generate(model: &str, n: usize) -> Vec<u8> {
    let body = json!({"model": model, "input": "the cat", "raw": true, "temperature": 0, "max_tokens": n});
    post("/sotto/v1/generate", body.to_string())
}

/// The model of our own decoder's answers as if it were alone.
fn answers(daemon: &Daemon) {
    let since = clock::now_us();
    let answer = ask(&daemon.socket, &generate("stories", 8));
    assert!(answer.text().contains("\"done\""), "{answer:?}");
    let took = Duration::from_micros(clock::now_us() - since);
    assert!(took < Duration::from_secs(8), "{took:?}");
}

fn state(daemon: &Daemon, model: &str) -> String {
    let status = run(&["status", "--json", "--socket", daemon.socket.to_str().unwrap()]);
    let status: Value = serde_json::from_str(&stdout(&status)).unwrap();
    let all = status["models"].as_array().unwrap();
    let one = all.iter().find(|m| m["id"] == model).unwrap_or_else(|| panic!("{status}"));
    one["state"].as_str().unwrap().to_owned()
}

/// A graph that is never opened; other models are loaded meanwhile, and who hangs up is waited for by nobody.
#[test]
fn who_waits_for_a_graph_waits_alone() {
    let folder = Folder::new();
    let config = models(&folder, &["bert"]);
    let program = folder.join("sottod");
    std::fs::copy(env!("CARGO_BIN_EXE_sottod"), &program).unwrap();
    let helper = folder.write("sotto-onnx", "#!/bin/sh\nexec sleep 300\n");
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut daemon = Daemon::start_program(&program, &folder, &[], &config, None);
    let body = json!({"model": "bert", "input": "the cat"}).to_string();
    let first = Call::send(&daemon.socket, &post("/v1/embeddings", &body));
    let second = Call::send(&daemon.socket, &post("/v1/embeddings", &body));
    until("the load", || (state(&daemon, "bert") == "loading").then_some(()));
    answers(&daemon);
    assert_eq!(state(&daemon, "bert"), "loading");
    answers(&daemon);
    drop(first);
    answers(&daemon);
    assert_eq!(state(&daemon, "bert"), "loading", "somebody waits for it");
    drop(second);
    until("the end of the load", || (state(&daemon, "bert") == "available").then_some(()));
    answers(&daemon);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
}

/// A helper that stands still within a step.
#[test]
fn who_waits_for_a_helper_waits_alone() {
    let folder = Folder::new();
    let config = models(&folder, &["causal"]) + "max_loaded = 2\n";
    let mut daemon =
        Daemon::start_program(Path::new(env!("CARGO_BIN_EXE_sottod")), &folder, &[], &config, None);
    let written = |lines: &[String]| -> String {
        let events = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let events: Vec<Value> = events.collect();
        let last = events.last().unwrap();
        assert_eq!((&last["event"], &last["usage"]["completion_tokens"]), (&json!("done"), &json!(400)));
        events.iter().filter_map(|event| event["text"].as_str()).collect()
    };
    let wanted = written(&Call::send(&daemon.socket, &generate("causal", 400)).head().lines_to_end());
    answers(&daemon);
    let helper = Pid::from_raw(children(daemon.process.pid())[0]).unwrap();
    let mut call = Call::send(&daemon.socket, &generate("causal", 400));
    call.head().event("token");
    kill_process(helper, Signal::STOP).unwrap();
    // More than it has places for wait with it, one of them leaves.
    let leaver = Call::send(&daemon.socket, &generate("causal", 400));
    let mut others: Vec<_> = (0..4).map(|_| Call::send(&daemon.socket, &generate("causal", 400))).collect();
    answers(&daemon);
    drop(leaver);
    answers(&daemon);
    kill_process(helper, Signal::CONT).unwrap();
    assert!(wanted.ends_with(&written(&call.lines_to_end())));
    for other in &mut others {
        assert_eq!(written(&other.head().lines_to_end()), wanted);
    }
    assert_eq!(children(daemon.process.pid()), [helper.as_raw_nonzero().get()], "none had to be started");
    // Where it is unloaded by force it goes, stopped or not.
    let mut call = Call::send(&daemon.socket, &generate("causal", 400));
    call.head().event("token");
    kill_process(helper, Signal::STOP).unwrap();
    answers(&daemon);
    let socket = daemon.socket.to_str().unwrap();
    assert!(run(&["unload", "causal", "--force", "--socket", socket]).status.success());
    assert!(call.lines_to_end().last().unwrap().contains("unloaded by force"));
    until("the end of the helper", || children(daemon.process.pid()).is_empty().then_some(()));
    assert_eq!(written(&Call::send(&daemon.socket, &generate("causal", 400)).head().lines_to_end()), wanted);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
}

/// A helper that is lost while it opens is not the file's fault; one that always is, is.
#[test]
fn a_helper_that_ends_while_it_opens_is_started_once_more() {
    let folder = Folder::new();
    let config = models(&folder, &["bert"]);
    let program = folder.join("sottod");
    std::fs::copy(env!("CARGO_BIN_EXE_sottod"), &program).unwrap();
    let (once, helper) = (folder.join("once"), HELPER);
    let script = format!(
        "#!/bin/sh\nif mkdir {once:?} 2>/dev/null; then exit 3; fi\nexec {helper:?}\n",
        once = once.display().to_string()
    );
    let helper = folder.write("sotto-onnx", script);
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut daemon = Daemon::start_program(&program, &folder, &[], &config, None);
    let asked =
        || ask(&daemon.socket, &post("/v1/embeddings", json!({"model": "bert", "input": "a"}).to_string()));
    assert_eq!(asked().status, 200);
    let socket = daemon.socket.to_str().unwrap();
    assert!(run(&["unload", "bert", "--socket", socket]).status.success());
    std::fs::write(&helper, "#!/bin/sh\nexit 3\n").unwrap();
    let refused = asked();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.error("message").contains("while it opened the model"), "{refused:?}");
    assert_eq!(daemon.log().matches("another is started").count(), 2, "{}", daemon.log());
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
}
