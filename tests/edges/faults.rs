//! What goes wrong around a daemon: it is killed, the disk is full, a model's file goes away or is cut under the map.
//! Streams end without a last word where the process died, nothing on disk is damaged, and the next request succeeds.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use zbus::zvariant::Variant;
use zbus::{OwnedFd as Passed, OwnedObjectPath};

use super::support::gguf::{self, SLOW};
use super::support::http::{Call, ask, get, post};
use super::support::{Daemon, Folder, Running, bus, have, stories, until};
use super::{CHAT, NATIVE, answers, prompt, says};

const NAME: &str = "org.sotto.Sotto1";
const PATH: &str = "/org/sotto/Sotto1";

/// Files of the cache that are no whole packed model, and how many are.
fn cached(folder: &Folder) -> (Vec<PathBuf>, usize) {
    let all = std::fs::read_dir(folder.join("cache/packed"))
        .map(|entries| entries.map(|e| e.unwrap().path()).collect());
    let all: Vec<PathBuf> = all.unwrap_or_default();
    let (whole, other): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|path| path.extension().is_some_and(|ending| ending == "gguf"));
    for path in &whole {
        let checked = super::run(&["inspect", "--verify", &path.display().to_string()]);
        assert!(checked.status.success(), "{}: {}", path.display(), super::stderr(&checked));
    }
    (other, whole.len())
}

/// No event and no mark in `lines` says that a stream is over.
fn breaks_off(lines: &[String]) {
    for word in [
        "\"event\":\"done\"",
        "\"event\":\"error\"",
        "{\"error\"",
        "[DONE]",
        "finish_reason\":\"",
        "\"usage\":{",
    ] {
        assert!(!lines.iter().any(|line| line.contains(word)), "{word} in {lines:?}");
    }
}

/// The pipe of an answer without end.
async fn endless(client: &zbus::Connection) -> Result<std::fs::File, zbus::Error> {
    let options = std::collections::HashMap::from([("model", Variant::from("mock-endless"))]);
    let body = ("again and again", options);
    let reply = client
        .call_method(Some(NAME), PATH, Some("org.sotto.Sotto1.Manager"), "StartGeneration", &body)
        .await?;
    let (_, pipe): (OwnedObjectPath, Passed) = reply.body().deserialize()?;
    Ok(std::fs::File::from(OwnedFd::from(pipe)))
}

#[test]
fn a_kill_in_mid_stream_is_the_end_of_the_streams_alone() {
    let folder = Folder::new();
    let on_bus = have("dbus-daemon", "a kill on the bus").then(|| bus(&folder));
    let address = on_bus.as_ref().map(|(_, address)| address.as_str());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = || Daemon::mock(&folder, "tokens_per_s=1000", "", address);
    let client = address.map(|address| {
        runtime.block_on(async { zbus::connection::Builder::address(address).build().await.unwrap() })
    });
    let mut daemon = start();
    for round in 0..3 {
        let body = json!({"model": "mock-endless", "input": "again"}).to_string();
        let mut lines = Call::send(&daemon.socket, &post(NATIVE, body));
        let message = json!([{"role": "user", "content": "again"}]);
        let body = json!({"model": "mock-endless", "messages": message, "stream": true}).to_string();
        let mut chunks = Call::send(&daemon.socket, &post(CHAT, body));
        lines.head().event("token");
        chunks.head();
        while !chunks.line().expect("a chunk").contains("\"content\"") {}
        let mut pipe = client.as_ref().map(|client| runtime.block_on(endless(client)).unwrap());
        let mut some = [0; 1];
        if let Some(pipe) = &mut pipe {
            pipe.read_exact(&mut some).unwrap();
        }
        daemon.process.signal(Signal::KILL);
        assert_eq!(daemon.process.ended("a killed daemon").signal(), Some(9));
        breaks_off(&lines.lines_to_end());
        breaks_off(&chunks.lines_to_end());
        if let Some(mut pipe) = pipe {
            let mut rest = Vec::new();
            pipe.read_to_end(&mut rest).unwrap();
            breaks_off(&String::from_utf8_lossy(&rest).lines().map(str::to_owned).collect::<Vec<_>>());
        }
        // Its socket is still there, and nobody's.
        assert!(daemon.socket.exists());
        daemon = start();
        let next = ask(&daemon.socket, &post(NATIVE, json!({"input": "said"}).to_string()));
        says(next.text(), &[r#""event":"done""#]);
        if let Some(client) = &client {
            runtime.block_on(async { drop(endless(client).await.unwrap()) });
        }
        assert!(!daemon.log().contains("panicked"), "round {round}: {}", daemon.log());
    }
}

/// Whenever a daemon dies, a model that it packs into the cache is there as a whole or not at all, and what is left over
/// of it goes.
#[test]
fn a_kill_while_a_model_is_packed_damages_nothing() {
    let folder = Folder::new();
    let model = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    let wanted = {
        let daemon = Daemon::start(&folder, &model, "pack = \"off\"\n");
        ask(&daemon.socket, &prompt(3, 8)).body
    };
    let text = |body: &[u8]| -> Vec<Value> {
        let events = String::from_utf8_lossy(body)
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect::<Vec<Value>>();
        events.into_iter().filter(|e| e["event"] == "token").map(|e| e["text"].clone()).collect()
    };
    let mut n_half = 0;
    for i in 0..8_u64 {
        drop(std::fs::remove_dir_all(folder.join("cache")));
        let mut daemon = Daemon::start(&folder, &model, "pack = \"cache\"\n");
        std::thread::sleep(std::time::Duration::from_millis(3 * i));
        daemon.process.signal(Signal::KILL);
        daemon.process.ended("a killed daemon");
        n_half += usize::from(!cached(&folder).0.is_empty());
        let daemon = Daemon::start(&folder, &model, "pack = \"cache\"\n");
        assert_eq!(
            text(&ask(&daemon.socket, &prompt(3, 8)).body),
            text(&wanted),
            "killed after {} ms",
            3 * i
        );
        assert_eq!(cached(&folder).1, 1, "{:?}", cached(&folder));
    }
    println!("{n_half} of 8 died within the file");
}

/// A daemon whose cache is on a full disk, with a socket on another; `None` where disks cannot be made.
fn on_a_full_disk(folder: &Folder, model: &Path) -> Option<Running> {
    let config = "version = 1\n[models]\ndirs = []\n[engine]\nthreads = 1\npack = \"cache\"\n";
    let (config, disk) = (folder.write("sotto.toml", config), folder.join("disk"));
    std::fs::create_dir_all(&disk).unwrap();
    let script = "mount -t tmpfs -o size=64k tmpfs \"$0\" && mkdir \"$0/cache\" && \
                  { cat /dev/zero > \"$0/full\"; exec \"$@\"; } 2> \"$LOG\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(&disk);
    command.arg(env!("CARGO_BIN_EXE_sottod")).arg("--config").arg(config).arg("--model").arg(model);
    command.arg("--socket").arg(folder.join("api.sock")).args(["--bus", "none"]);
    command.env("CACHE_DIRECTORY", disk.join("cache")).env("LOG", folder.join("log")).stdin(Stdio::null());
    let mut daemon = Running(command.stderr(Stdio::null()).spawn().ok()?);
    until("a daemon, or its end", || {
        let said = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        let ended = daemon.0.try_wait().unwrap();
        (said.contains("ready, kernels") || ended.is_some()).then_some(ended.is_none())
    })
    .then_some(daemon)
}

#[test]
fn a_full_disk_costs_the_cache_alone() {
    let folder = Folder::new();
    let Some(_daemon) = on_a_full_disk(&folder, &stories()) else {
        println!("skipped: a full disk; unshare may not mount one");
        return;
    };
    let body = json!({"input": "Once", "raw": true, "max_tokens": 4, "temperature": 0}).to_string();
    let full = ask(&folder.join("api.sock"), &post(NATIVE, &body));
    let other = Folder::new();
    let daemon = Daemon::start(&other, &stories(), "pack = \"off\"\n");
    let there = ask(&daemon.socket, &post(NATIVE, &body));
    assert_eq!((full.status, full.tokens()), (200, there.tokens()), "{full:?}");
    says(full.text(), &[r#""event":"done""#]);
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    says(&log, &["is not packed into a file", "bytes of room are needed", "are free"]);
}

/// A file that lost its name lasts as long as somebody has it.
#[test]
fn a_model_that_is_deleted_under_the_map_is_read_on() {
    let folder = Folder::new();
    let model = folder.write("slow.gguf", gguf::llama(SLOW).bytes());
    let daemon = Daemon::start(&folder, &model, "pack = \"off\"\n");
    let alone = ask(&daemon.socket, &prompt(33, 40));
    let mut call = Call::send(&daemon.socket, &prompt(33, 2_000));
    call.head().event("token");
    std::fs::remove_file(&model).unwrap();
    let beside = ask(&daemon.socket, &prompt(33, 40));
    assert_eq!(beside.tokens(), alone.tokens());
    assert_eq!(call.event("done")["usage"]["completion_tokens"], 2_000);
    let after = ask(&daemon.socket, &prompt(33, 40));
    assert_eq!(after.tokens(), alone.tokens());
}

/// A file that is cut short under the map ends the process (`os/map.rs`); the next one says what is wrong with it, and
/// serves as soon as it is whole again.
#[test]
fn a_model_that_is_cut_under_the_map_ends_the_process_and_is_told_of_by_the_next() {
    let folder = Folder::new();
    let bytes = gguf::llama(SLOW).bytes();
    let model = folder.write("slow.gguf", &bytes);
    let mut daemon = Daemon::start(&folder, &model, "pack = \"off\"\n");
    let alone = ask(&daemon.socket, &prompt(3, 4));
    let mut call = Call::send(&daemon.socket, &prompt(33, 9_000));
    call.head().event("token");
    let file = std::fs::OpenOptions::new().write(true).open(&model).unwrap();
    file.set_len(bytes.len() as u64 / 2).unwrap();
    assert_eq!(daemon.process.ended("a daemon without its model").signal(), Some(Signal::BUS.as_raw()));
    breaks_off(&call.lines_to_end());
    let daemon = Daemon::start(&folder, &model, "pack = \"off\"\n");
    let refused = ask(&daemon.socket, &prompt(3, 4));
    assert_eq!((refused.status, refused.error("code")), (503, "load_failed".into()), "{refused:?}");
    says(&refused.error("message"), &["slow.gguf", "bytes", "cut short"]);
    std::fs::rename(folder.write("whole.gguf", &bytes), &model).unwrap();
    daemon.process.signal(Signal::HUP);
    let again = until("a whole model", || {
        let answer = ask(&daemon.socket, &prompt(3, 4));
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(again.tokens(), alone.tokens());
}

/// Where the cache has a packed file the model's own is not mapped: cutting it touches nobody.
#[test]
fn a_model_that_was_packed_earlier_does_not_need_its_file() {
    let folder = Folder::new();
    let model = folder.write("story.gguf", std::fs::read(stories()).unwrap());
    let start = || Daemon::start(&folder, &model, "pack = \"cache\"\n");
    let before = answers(&start());
    if cached(&folder).1 == 0 {
        println!("skipped: a packed model without its file; this tier packs nothing");
        return;
    }
    let daemon = start();
    assert_eq!(answers(&daemon), before);
    std::fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(100).unwrap();
    assert_eq!(answers(&daemon), before);
}

/// A pipe with the name of a model, which nobody writes to, costs its own request alone.
#[test]
fn a_pipe_is_no_model() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    std::fs::copy(stories(), models.join("story.gguf")).unwrap();
    let made = Command::new("mkfifo").arg(models.join("pipe.gguf")).status().unwrap();
    assert!(made.success());
    let config = format!("[models]\ndirs = [{models:?}]\ndefault = \"story\"\n");
    let daemon = Daemon::start_on(&folder, None, &config, None);
    let body = json!({"model": "pipe", "input": "Once", "raw": true}).to_string();
    let refused = ask(&daemon.socket, &post(NATIVE, body));
    assert!(refused.status >= 400, "{refused:?}");
    answers(&daemon);
}

/// A file whose opening does not return, as on a disk that does not answer: another process has a lease on it, and gives
/// it up when its input ends.
fn unanswered(file: &Path) -> Option<Running> {
    let script = "import fcntl, os, signal, sys\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                  file = os.open(sys.argv[1], os.O_RDWR)\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
                  print('held', flush=True)\nsys.stdin.read()";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Running(command.spawn().unwrap());
    let mut said = [0; 4];
    holder.0.stdout.as_mut().unwrap().read_exact(&mut said).ok().map(|()| holder)
}

/// A model on a disk that does not answer costs those who ask for it until their time is over, and nobody else.
#[test]
fn a_disk_that_does_not_answer_holds_nobody_else() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    for name in ["here.gguf", "gone.gguf"] {
        std::fs::copy(stories(), models.join(name)).unwrap();
    }
    if !have("python3", "a disk that does not answer") {
        return;
    }
    let Some(mut holder) = unanswered(&models.join("gone.gguf")) else {
        println!("skipped: a disk that does not answer; no lease can be had here");
        return;
    };
    let config = format!("[models]\ndirs = [{models:?}]\ndefault = \"here\"\nmax_loaded = 2\n");
    let daemon = Daemon::start_on(&folder, None, &config, None);
    let to_gone = |deadline_ms: u64| {
        let body = json!({"model": "gone", "input": "Once", "raw": true, "max_tokens": 4, "deadline_ms": deadline_ms});
        post(NATIVE, body.to_string())
    };
    let mut waits = Call::send(&daemon.socket, &to_gone(600_000));
    let over = ask(&daemon.socket, &to_gone(700));
    assert_eq!((over.status, over.error("code")), (504, "deadline_exceeded".into()), "{over:?}");
    says(&over.error("message"), &["gone", "not open after 0.7 s", "deadline_ms"]);
    assert_eq!(over.error("param"), "deadline_ms");
    // Another model answers, texts become tokens, the models are told of, and the daemon is well.
    answers(&daemon);
    let tokens = json!({"model": "here", "text": "Once"}).to_string();
    assert_eq!(ask(&daemon.socket, &post("/sotto/v1/tokenize", tokens)).status, 200);
    says(ask(&daemon.socket, &get("/v1/models")).text(), &["gone", "here"]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&daemon.socket, &get(path)).status, 200, "{path}");
    }
    // Who leaves while the file is awaited is forgotten at once; who stays has an answer when it is there.
    let queued = || ask(&daemon.socket, &get("/sotto/v1/status")).json()["queue_length"].as_u64();
    assert_eq!(queued(), Some(1));
    let leaves = Call::send(&daemon.socket, &to_gone(600_000));
    until("a second one that waits", || (queued() == Some(2)).then_some(()));
    drop(leaves);
    until("one that waits", || (queued() == Some(1)).then_some(()));
    drop(holder.0.stdin.take());
    assert_eq!(waits.head().event("done")["usage"]["completion_tokens"], 4);
}

/// Who starts where the socket of another was removed has the path from then on.
#[test]
fn the_end_of_a_daemon_leaves_the_socket_of_another() {
    let folder = Folder::new();
    let mut first = Daemon::start(&folder, &stories(), "");
    std::fs::remove_file(&first.socket).unwrap();
    let second = Daemon::start(&folder, &stories(), "");
    first.process.signal(Signal::TERM);
    assert!(first.process.ended("the first daemon").success());
    answers(&second);
}
