//! What callers say and hear stays between them and the model: words that nothing else has are looked for everywhere else.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::support::http::{Call, ask, get, post};
use super::support::{Daemon, Folder, NO_CACHE, Running, bus, have, stories, until};
use super::{CHAT, NATIVE};

const CANARY: &str = "Quaxolotl";

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn is_in(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|part| part.eq_ignore_ascii_case(CANARY.as_bytes()))
}

#[test]
fn what_is_said_is_nowhere_else() {
    let folder = Folder::new();
    let on_bus =
        (have("dbus-daemon", "words on the bus") && have("busctl", "words on the bus")).then(|| bus(&folder));
    let address = on_bus.as_ref().map(|(_, address)| address.as_str());
    let mut daemon = Daemon::mock(&folder, "", "[daemon]\nlog_level = \"debug\"\n", address);
    let say = format!("say {CANARY} to me");
    let asked = [
        (
            CHAT,
            json!({"messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": say}], "stop": [CANARY.repeat(2)]}),
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": say}], "user": CANARY, "logprobs": true, "n": 2}),
        ),
        ("/v1/completions", json!({"prompt": say, "stream": true})),
        (NATIVE, json!({"input": say})),
        ("/v1/embeddings", json!({"input": [say, CANARY]})),
        ("/sotto/v1/tokenize", json!({"text": say})),
    ];
    for (route, body) in asked {
        let answer = ask(&daemon.socket, &post(route, body.to_string()));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // What is wrong is told without what was said.
    for (route, body) in [
        (NATIVE, json!({"input": say.repeat(20_000)})),
        (NATIVE, json!({"input": say, "temperature": CANARY})),
        (NATIVE, json!({"input": say, "model": "mock-internal"})),
        (NATIVE, json!({"input": say, "class": CANARY})),
        (CHAT, json!({"messages": [{"role": CANARY, "content": say}]})),
        (CHAT, json!({"messages": [{"role": "user", "content": say}], "tools": [CANARY]})),
        ("/v1/embeddings", json!({"input": [say, 1]})),
    ] {
        let answer = ask(&daemon.socket, &post(route, body.to_string()));
        let events = answer.text();
        assert!(answer.status >= 400 || events.contains("\"internal\""), "{answer:?}");
        let told = events.lines().filter(|line| line.contains("error")).collect::<String>();
        assert!(!told.is_empty() && !is_in(told.as_bytes()), "{told}");
    }
    let broken = ask(&daemon.socket, &post(NATIVE, format!("{{\"input\": \"{CANARY}\", ")));
    assert!(broken.status == 400 && !is_in(&broken.body), "{broken:?}");
    // One that leaves in the middle.
    let mut call =
        Call::send(&daemon.socket, &post(NATIVE, json!({"input": say, "model": "mock-endless"}).to_string()));
    call.head();
    drop(call);
    daemon.logged("cancelled");
    if let Some(address) = address {
        for options in [&["0"][..], &["1", "class", "s", CANARY]] {
            let mut busctl = Command::new("busctl");
            busctl.args([&format!("--address={address}"), "call", "org.sotto.Sotto1", "/org/sotto/Sotto1"]);
            busctl.args(["org.sotto.Sotto1.Manager", "Generate", "sa{sv}", &say]).args(options);
            let output = busctl.output().unwrap();
            assert!(output.status.success() || !is_in(&output.stderr), "{output:?}");
        }
    }
    for page in ["/metrics", "/sotto/v1/status", "/v1/models"] {
        let answer = ask(&daemon.socket, &get(page));
        assert!(answer.status == 200 && !is_in(&answer.body), "{page}: {}", answer.text());
    }
    daemon.process.signal(rustix::process::Signal::HUP);
    daemon.logged("configuration");
    daemon.process.signal(rustix::process::Signal::TERM);
    daemon.process.ended("the daemon's end");
    let log = daemon.log();
    assert!(log.contains("finished, ") && log.contains("failed, "), "{log}");
    for file in files(&folder.join("")) {
        assert!(!is_in(&std::fs::read(&file).unwrap_or_default()), "{} has it", file.display());
    }
}

/// The same of a model with weights, its packed form, and what is kept of prompts: also of the words that it answers.
#[test]
fn what_a_model_reads_and_writes_is_nowhere_else() {
    let folder = Folder::new();
    let mut daemon =
        Daemon::start(&folder, &stories(), "pack = \"cache\"\n[daemon]\nlog_level = \"debug\"\n");
    let say =
        format!("Once upon a time {CANARY} went into the wood, and there it met the others. ").repeat(4);
    let body =
        json!({"input": say, "raw": true, "max_tokens": 60, "min_tokens": 60, "temperature": 0}).to_string();
    let said: Vec<String> = (0..2)
        .map(|_| {
            let answer = ask(&daemon.socket, &post(NATIVE, &body));
            let events =
                answer.text().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            events.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
        })
        .collect();
    assert!(said[0] == said[1] && said[0].len() > 60, "{said:?}");
    for page in ["/metrics", "/sotto/v1/status"] {
        let answer = ask(&daemon.socket, &get(page));
        assert!(answer.status == 200 && !is_in(&answer.body), "{page}: {}", answer.text());
    }
    daemon.process.signal(rustix::process::Signal::TERM);
    daemon.process.ended("the daemon's end");
    // From its middle, so that it is no word of the vocabulary alone.
    let middle: String = said[0].chars().skip(20).take(30).collect();
    for file in files(&folder.join("")) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let has = bytes.windows(middle.len()).any(|part| part == middle.as_bytes());
        assert!(!has && !is_in(&bytes), "{} has it", file.display());
    }
}

/// A template may say what it likes when it refuses a conversation; what it does not say of itself is not passed on.
#[test]
fn a_template_quotes_nobody() {
    let folder = Folder::new();
    for (template, told) in [
        ("{{ raise_exception('I do not like: ' + messages[0]['content']) }}", "I do not like: \u{2026}"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ] {
        let template = folder.write("chat.jinja", template);
        let config = format!("[model.story260k-f32]\ntemplate = {template:?}\n");
        let model = folder.write("story260k-f32.gguf", std::fs::read(stories()).unwrap());
        let daemon = Daemon::start(&folder, &model, &config);
        let body = json!({"messages": [{"role": "user", "content": format!("{CANARY} secret")}]}).to_string();
        let refused = ask(&daemon.socket, &post(CHAT, body));
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.error("message").contains(told) && !is_in(&refused.body), "{refused:?}");
        assert!(!is_in(daemon.log().as_bytes()));
    }
}

/// A daemon that dies leaves no image of its memory, whatever the limit for that is.
#[test]
fn a_death_leaves_no_core() {
    let folder = Folder::new();
    let (socket, log) = (folder.join("api.sock"), folder.join("log"));
    let config = folder.write("sotto.toml", "version = 1\n[models]\ndirs = []\n");
    let raise = "ulimit -c unlimited";
    if !Command::new("sh").args(["-c", raise]).status().is_ok_and(|status| status.success()) {
        println!("skipped: images of memory; the limit cannot be raised");
        return;
    }
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{raise} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_sottod"), "--config"]);
    command.arg(config).arg("--socket").arg(&socket).args(["--bus", "none", "--mock"]);
    command.current_dir(folder.join("")).stdin(Stdio::null()).stderr(std::fs::File::create(log).unwrap());
    let mut daemon = Running(command.envs([NO_CACHE]).spawn().unwrap());
    let body = json!({"input": CANARY}).to_string();
    until("an answer", || {
        std::os::unix::net::UnixStream::connect(&socket).ok()?;
        Some(ask(&socket, &post(NATIVE, &body)))
    });
    daemon.signal(rustix::process::Signal::ABORT);
    let status = daemon.ended("the daemon's end");
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    assert!(files(&folder.join("")).iter().all(|file| !is_in(&std::fs::read(file).unwrap_or_default())));
}
