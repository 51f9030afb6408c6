//! How the daemon behaves beside others: what it refuses, gives up, and when it rests or ends. The state of the machine
//! comes from files that the tests write.
#![cfg(all(feature = "dbus", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it measured"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sotto::door::http::HttpOptions;
use sotto::engine::{Engine, ModelFile, ModelState, Options, Settings, Status};
use sotto::os::tree::Tree;
use sotto::os::{clock, thread};
use support::gguf::{SLOW, llama};
use support::http::{Call, ask, get, post};
use support::{Folder, Inside, NO_CACHE, Running, bus, have, stories, until};

const NATIVE: &str = "/sotto/v1/generate";
const ZONE: &str = "machine/sys/class/thermal/thermal_zone0";

/// A machine of files.
struct Machine(Folder);

impl Machine {
    fn new() -> Self {
        let machine = Self(Folder::new());
        machine.says("machine/proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n");
        machine
    }

    fn says(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// A house on this machine, with the small model.
    fn house(&self, settings: Settings) -> Inside {
        let tree = Tree::new(self.0.join("machine"));
        let options = Options { threads: 1, n_ctx: 512, tree, ..Options::default() };
        let kernels = sotto::kernel::select(None).unwrap();
        Inside::start(Engine::start(kernels, options, small(settings)).unwrap(), HttpOptions::default())
    }
}

/// The same with the small model, by two names.
fn small(settings: Settings) -> Settings {
    let models = ["inside", "other"].map(|id| ModelFile { id: id.into(), path: stories() }).into();
    Settings { models, default_model: Some("inside".into()), ..settings }
}

/// The text of an answer, and how many tokens of its prompt were kept from an earlier one.
fn answer(house: &Inside, input: &str, n: u32) -> (String, u64) {
    let body = json!({"input": input, "raw": true, "max_tokens": n, "temperature": 0});
    let answer = ask(&house.socket, &post(NATIVE, body.to_string()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let events: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text = events.iter().filter(|e| e["event"] == "token").filter_map(|e| e["text"].as_str()).collect();
    let done = events.last().unwrap();
    assert_eq!(done["event"], "done", "{done}");
    (text, done["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
}

fn state(house: &Inside) -> ModelState {
    house.engine.models()[0].state
}

fn metric(house: &Inside, name: &str) -> f64 {
    metric_of(&house.socket, name)
}

fn metric_of(socket: &Path, name: &str) -> f64 {
    let page = ask(socket, &get("/metrics"));
    let line = page.text().lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    line.unwrap_or_else(|| panic!("{name}:\n{}", page.text())).trim().parse().unwrap()
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_numbers() {
    let machine = Machine::new();
    machine.says("machine/proc/self/cgroup", "0::/small\n");
    machine.says("machine/sys/fs/cgroup/small/memory.max", "1048576\n");
    // All of it is page cache, and therefore free.
    machine.says("machine/sys/fs/cgroup/small/memory.current", "1048576\n");
    machine.says("machine/sys/fs/cgroup/small/memory.stat", "inactive_file 1048576\n");
    let house = machine.house(Settings::default());
    let refused = ask(&house.socket, &post(NATIVE, r#"{"input":"Once","raw":true,"max_tokens":2}"#));
    assert_eq!(
        (refused.status, refused.error("code")),
        (503, "insufficient_memory".into()),
        "{}",
        refused.text()
    );
    let message = refused.error("message");
    for words in
        ["MiB are needed (weights 1", "75 % of the 1 there are by /sys/fs/cgroup/small/memory.max", "q8_0"]
    {
        assert!(message.contains(words), "{message}");
    }
    let number = |key| refused.error(key).parse::<u64>().unwrap();
    assert!(number("need") > number("have") && number("have") < 1 << 20, "{}", refused.text());
    assert_eq!(state(&house), ModelState::Failed);
    // The limit is raised, and the next request is served.
    machine.says("machine/sys/fs/cgroup/small/memory.max", "104857600\n");
    answer(&house, "Once", 2);
    assert_eq!(state(&house), ModelState::Loaded);
    let bound = Settings { memory_max_bytes: 1 << 19, ..Settings::default() };
    let refused = ask(&machine.house(bound).socket, &post(NATIVE, r#"{"input":"Once","raw":true}"#));
    assert!(refused.error("message").contains("models.memory_max_mib is 0"), "{}", refused.text());
}

#[test]
fn a_hot_processor_rests_and_says_the_same() {
    let machine = Machine::new();
    machine.says("machine/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0");
    machine.says(&format!("{ZONE}/type"), "cpu-thermal");
    machine.says(&format!("{ZONE}/temp"), "50000");
    let house = machine.house(Settings::default());
    let cool = answer(&house, "Once upon a time", 100);
    assert_eq!(metric(&house, "sotto_paused_seconds_total{cause=\"thermal\"}"), 0.0);
    machine.says(&format!("{ZONE}/temp"), "79500");
    // The look finds an engine at work.
    let under_way = std::thread::scope(|threads| {
        let asked = threads.spawn(|| answer(&house, "Once upon a time", 400));
        until("an engine that rests", || {
            house.engine.look_at_machine();
            (house.engine.status().rest > 800).then_some(())
        });
        let hot = answer(&house, "Once upon a time", 100);
        assert_eq!(hot.0, cool.0);
        asked.join().unwrap()
    });
    assert!(under_way.0.starts_with(&cool.0));
    let rested = metric(&house, "sotto_paused_seconds_total{cause=\"thermal\"}");
    assert!(rested > 0.0, "{rested}");
    // At rest nothing is held back any more.
    until("an engine at rest", || {
        house.engine.look_at_machine();
        (house.engine.status() == Status::default()).then_some(())
    });
}

#[test]
fn what_is_kept_is_given_up_while_memory_is_short() {
    let machine = Machine::new();
    let house = machine.house(Settings { keep_s: None, ..Settings::default() });
    let prompt = "Once upon a time there was a little girl. ".repeat(8);
    answer(&house, &prompt, 2);
    assert!(answer(&house, &prompt, 2).1 > 0);
    machine.says("machine/proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 30000 kB\n");
    house.engine.look_at_machine();
    assert!(house.engine.status().memory_short);
    until("prefixes to be gone", || (metric(&house, "sotto_prefix_cache_bytes") == 0.0).then_some(()));
    assert_eq!(answer(&house, &prompt, 2).1, 0);
    assert_eq!(metric(&house, "sotto_prefix_cache_bytes"), 0.0, "none are kept");
    // It lasts, and the model goes as well.
    until("the model to be gone", || {
        house.engine.look_at_machine();
        (state(&house) == ModelState::Available).then_some(())
    });
}

/// A limit that falls while an answer is under way: it goes on, what is kept goes, another model is refused.
#[test]
fn a_limit_that_is_hit_disturbs_no_answer() {
    let machine = Machine::new();
    machine.says("machine/proc/self/cgroup", "0::/small\n");
    let has = |max: u64, current: u64| {
        machine.says("machine/sys/fs/cgroup/small/memory.max", &format!("{max}\n"));
        machine.says("machine/sys/fs/cgroup/small/memory.current", &format!("{current}\n"));
        machine.says("machine/sys/fs/cgroup/small/memory.stat", "inactive_file 0\n");
    };
    has(104_857_600, 10_485_760);
    let house = machine.house(Settings { max_loaded: 2, keep_s: None, ..Settings::default() });
    let alone = answer(&house, "Once upon a time", 300);
    let prompt = "Once upon a time there was a little girl. ".repeat(8);
    answer(&house, &prompt, 2);
    let body = json!({"input": "Once upon a time", "raw": true, "max_tokens": 300, "temperature": 0});
    let mut call = Call::send(&house.socket, &post(NATIVE, body.to_string()));
    call.head().event("token");
    has(10_485_760, 10_485_000);
    house.engine.look_at_machine();
    assert!(house.engine.status().memory_short);
    let body = json!({"model": "other", "input": "Once", "raw": true, "max_tokens": 2}).to_string();
    let refused = ask(&house.socket, &post(NATIVE, body));
    assert_eq!((refused.status, refused.error("code")), (503, "insufficient_memory".into()));
    let events: Vec<Value> =
        call.lines_to_end().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 300, "{events:?}");
    assert!(alone.0.ends_with(events[events.len() - 2]["text"].as_str().unwrap()));
    until("prefixes to be gone", || (metric(&house, "sotto_prefix_cache_bytes") == 0.0).then_some(()));
}

#[test]
fn a_model_that_nobody_uses_goes() {
    let machine = Machine::new();
    let house = machine.house(Settings { keep_s: Some(1), ..Settings::default() });
    answer(&house, "Once", 2);
    assert_eq!(state(&house), ModelState::Loaded);
    let began = clock::now_us();
    until("the model to be gone", || (state(&house) == ModelState::Available).then_some(()));
    assert!(clock::now_us() - began > 500_000);
    let house = machine.house(Settings { keep_s: Some(1), ..Settings::default() });
    house.engine.preload([("inside".to_owned(), true)]);
    until("the model", || (state(&house) == ModelState::Loaded).then_some(()));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(state(&house), ModelState::Loaded, "it was asked to stay");
}

/// A model that does not fit takes nobody's place, and one that fits takes those of as many as it needs.
#[test]
fn models_go_for_another_one_only_if_that_helps() {
    let machine = Machine::new();
    let bound = |memory_max_bytes, max_loaded| {
        small(Settings { memory_max_bytes, max_loaded, ..Settings::default() })
    };
    let house = machine.house(Settings::default());
    let states = || house.engine.models().iter().map(|model| model.state).collect::<Vec<_>>();
    let other = || {
        let body = json!({"model": "other", "input": "Once", "raw": true, "max_tokens": 2}).to_string();
        ask(&house.socket, &post(NATIVE, body))
    };
    answer(&house, "Once", 2);
    house.engine.reload(bound(1 << 19, 1));
    let refused = other();
    assert_eq!(refused.error("code"), "insufficient_memory", "{}", refused.text());
    assert_eq!(states(), [ModelState::Loaded, ModelState::Failed]);
    answer(&house, "Once", 2);
    // Two are allowed, and there is room for one and a half.
    let need: u64 = refused.error("need").parse().unwrap();
    house.engine.reload(bound(need / 2 * 3, 2));
    assert_eq!(other().status, 200);
    assert_eq!(states(), [ModelState::Available, ModelState::Loaded]);
    house.engine.reload(bound(0, 2));
    answer(&house, "Once", 2);
    assert_eq!(states(), [ModelState::Loaded, ModelState::Loaded]);
}

/// As systemd does: the socket is the starter's, and the daemon is started anew when it has ended and somebody waits.
struct Activated {
    listener: UnixListener,
    folder: Folder,
    n: usize,
    /// Where the daemon says how it is.
    notify: Option<PathBuf>,
    /// The address of its bus.
    bus: Option<String>,
}

impl Activated {
    fn start(&mut self) -> Running {
        let running = self.begin(&[]);
        let log = self.folder.join(&format!("log{}", self.n));
        until("a daemon", || std::fs::read_to_string(&log).unwrap().contains("ready, kernels").then_some(()));
        running
    }

    /// The same with more arguments; it may not be ready yet.
    fn begin(&mut self, arguments: &[&str]) -> Running {
        self.n += 1;
        let config = self.folder.write(
            "sotto.toml",
            "version = 1\n[daemon]\nidle_exit_s = 60\n[models]\ndirs = []\n[engine]\nthreads = 1\n",
        );
        let log = std::fs::File::create(self.folder.join(&format!("log{}", self.n))).unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api; exec \"$0\" --bus \"${DBUS_SESSION_BUS_ADDRESS:+session}${NO_BUS:-}\" --config \"$@\"",
        ]);
        command.arg(env!("CARGO_BIN_EXE_sottod")).arg(config).args(arguments);
        if let Some(path) = &self.notify {
            command.env("NOTIFY_SOCKET", path);
        }
        match &self.bus {
            Some(address) => command.env("DBUS_SESSION_BUS_ADDRESS", address),
            None => command.env_remove("DBUS_SESSION_BUS_ADDRESS").env("NO_BUS", "none"),
        };
        command.envs([NO_CACHE]).stdout(Stdio::null()).stderr(log);
        command.stdin(std::os::fd::OwnedFd::from(self.listener.try_clone().unwrap()));
        Running(command.spawn().unwrap())
    }
}

/// The same on the bus: a call just then is answered, or the daemon has no name any more and the bus starts the next one
/// for it. It is never refused, and the end takes no time.
#[test]
#[ignore = "slow: waits for the end of an idle minute, the shortest that the configuration takes"]
fn who_calls_while_an_idle_daemon_ends_is_answered_or_is_the_next_ones() {
    const N: u64 = 8;
    if !have("dbus-daemon", "calls while an idle daemon ends") {
        return;
    }
    let one = |i: u64| {
        let folder = Folder::new();
        let (_bus, address) = bus(&folder);
        let listener = UnixListener::bind(folder.join("api.sock")).unwrap();
        let mut house = Activated { listener, folder, n: 0, notify: None, bus: Some(address.clone()) };
        let mut daemon = house.start();
        let due = clock::now_us() + 60_000_000;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answered = runtime.block_on(async {
            let client = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
            let at = if i + 1 == N { due + 3_000_000 } else { due + 4_000 * i - 12_000 };
            tokio::time::sleep(Duration::from_micros(at - clock::now_us())).await;
            let body = ("a", std::collections::HashMap::<&str, zbus::Variant<'_>>::new());
            let manager = Some("org.sotto.Sotto1.Manager");
            match client
                .call_method(Some("org.sotto.Sotto1"), "/org/sotto/Sotto1", manager, "Tokenize", &body)
                .await
            {
                Ok(_) => true,
                Err(e) => {
                    let e = e.to_string();
                    // No tokens without a model: an answer like any other.
                    let told = e.contains("unknown_model");
                    assert!(
                        told || e.contains("ServiceUnknown") || e.contains("NameHasNoOwner"),
                        "call {i}: {e}"
                    );
                    told
                }
            }
        });
        if !answered {
            let then = clock::now_us();
            assert!(daemon.ended("a daemon that nobody uses").success());
            assert!(clock::now_us() - then < 1_000_000, "its end takes {} us", clock::now_us() - then);
        }
        answered
    };
    let all: Vec<_> = (0..N).map(|i| thread::start("caller", move || one(i)).unwrap()).collect();
    let answered: Vec<bool> = all.into_iter().map(|one| one.join().unwrap()).collect();
    println!("answered: {answered:?}");
    assert!(!answered.last().unwrap(), "nothing ended: {answered:?}");
}

/// Callers that come just when a daemon ends, a few milliseconds before and after: it answers, or the next one does.
#[test]
#[ignore = "slow: waits for the end of an idle minute, the shortest that the configuration takes"]
fn who_comes_while_an_idle_daemon_ends_is_answered() {
    const N: u64 = 64;
    let one = |i: u64| {
        let folder = Folder::new();
        let path = folder.join("api.sock");
        let mut house =
            Activated { listener: UnixListener::bind(&path).unwrap(), folder, n: 0, notify: None, bus: None };
        let mut daemon = house.start();
        let due = clock::now_us() + 60_000_000;
        // A millisecond apart; the last one comes when it is over for certain.
        let at = if i + 1 == N { due + 3_000_000 } else { due + 1_000 * i - 24_000 };
        std::thread::sleep(Duration::from_micros(at - clock::now_us()));
        let mut caller = UnixStream::connect(&path).unwrap();
        caller.write_all(&get("/healthz")).unwrap();
        caller.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        let mut said = [0; 12];
        let first = caller.read_exact(&mut said);
        let by_first = first.is_ok();
        if !by_first {
            let status = daemon.ended("a daemon that nobody uses");
            assert!(status.success(), "{status}");
            let _next = house.start();
            caller.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"HTTP/1.1 200", "caller {i}");
        }
        assert_eq!(&said, b"HTTP/1.1 200", "caller {i}");
        by_first
    };
    let all: Vec<_> = (0..N).map(|i| thread::start("caller", move || one(i)).unwrap()).collect();
    let by_first: Vec<bool> = all.into_iter().map(|one| one.join().unwrap()).collect();
    let n_first = by_first.iter().filter(|first| **first).count();
    println!("{n_first} of {N} were answered by the one that ended, the others by the next one");
    assert!(n_first > 0 && n_first < N as usize - 1, "none came while it ended: {by_first:?}");
    assert!(!by_first.last().unwrap(), "nothing ended: {by_first:?}");
}

/// Each start has somebody waiting at the socket already, and ends by a signal, every fourth by one that cannot be heard.
#[test]
#[ignore = "slow: a thousand starts"]
fn a_thousand_cold_starts() {
    const N: usize = 1_000;
    let folder = Folder::new();
    let path = folder.join("api.sock");
    let mut house =
        Activated { listener: UnixListener::bind(&path).unwrap(), folder, n: 0, notify: None, bus: None };
    let model = stories().display().to_string();
    let body = json!({"input": "Once", "raw": true, "max_tokens": 4, "temperature": 0}).to_string();
    let (mut first, mut times) = (None, Vec::new());
    for i in 0..N {
        let waiting = Call::send(&path, &post(NATIVE, &body));
        let began = clock::now_us();
        let mut daemon = house.begin(&["--model", &model]);
        let answer = waiting.finish();
        times.push((clock::now_us() - began) / 1_000);
        assert_eq!(answer.status, 200, "start {i}: {answer:?}");
        let said: Vec<String> = answer.tokens().into_iter().map(str::to_owned).collect();
        assert!(said.len() == 4 && *first.get_or_insert_with(|| said.clone()) == said, "start {i}: {said:?}");
        let hard = i % 4 == 3;
        daemon.signal(if hard { Signal::KILL } else { Signal::TERM });
        assert_eq!(daemon.ended("its end").success(), !hard, "start {i}");
        std::fs::remove_file(house.folder.join(&format!("log{}", house.n))).unwrap();
    }
    times.sort_unstable();
    println!(
        "start to whole answer, ms: median {}, 99 % {}, most {}",
        times[N / 2],
        times[N / 100 * 99],
        times[N - 1]
    );
}

/// What a daemon tells its service manager, whose socket this is, within so many seconds.
fn told(manager: &UnixDatagram, s: u64) -> Vec<String> {
    let until = clock::now_us() + s * 1_000_000;
    let (mut all, mut bytes) = (Vec::new(), [0; 4_096]);
    while let Some(left) = until.checked_sub(clock::now_us()).filter(|left| *left > 0) {
        manager.set_read_timeout(Some(Duration::from_micros(left))).unwrap();
        if let Ok(n) = manager.recv(&mut bytes) {
            all.push(String::from_utf8_lossy(&bytes[..n]).into_owned());
        }
    }
    all
}

/// The watchdog is fed while a long prompt is read, and not while the engine does not move, which `/healthz` tells too.
#[test]
#[ignore = "slow: waits for a minute"]
fn a_watchdog_tells_frozen_from_busy() {
    let house = |name: &str| {
        let folder = Folder::new();
        let manager = UnixDatagram::bind(folder.join(name)).unwrap();
        let path = folder.join("api.sock");
        (
            Activated { listener: UnixListener::bind(&path).unwrap(), folder, n: 0, notify: None, bus: None },
            manager,
            path,
        )
    };
    let fed = |told: &[String]| told.iter().filter(|one| one.contains("WATCHDOG=1")).count();
    let begin = |house: &mut Activated, name: &str, arguments: &[&str]| {
        house.notify = Some(house.folder.join(name));
        house.begin(arguments)
    };

    let (mut busy, manager, path) = house("busy");
    let model = busy.folder.write("slow.gguf", llama(SLOW).bytes()).display().to_string();
    let _daemon = begin(&mut busy, "busy", &["--model", &model]);
    let tokens: Vec<usize> = (0..16_000).map(|i| 300 + i % 200).collect();
    let body = json!({"tokens": tokens, "max_tokens": 16_000, "temperature": 0}).to_string();
    let calls: Vec<Call> = (0..4).map(|_| Call::send(&path, &post(NATIVE, &body))).collect();
    let said = told(&manager, 35);
    assert!(said.iter().any(|one| one.contains("READY=1")) && fed(&said) == 3, "{said:?}");
    assert_eq!(ask(&path, &get("/healthz")).status, 200);
    drop(calls);

    for at_work in [true, false] {
        let (mut frozen, manager, path) = house("frozen");
        let daemon = begin(&mut frozen, "frozen", &["--mock", "tokens_per_s=20"]);
        let mut call = Call::send(&path, &post(NATIVE, r#"{"model": "mock-endless", "input": "again"}"#));
        call.head().event("token");
        if !at_work {
            drop(call);
            until("an engine at rest", || (metric_of(&path, "sotto_active_sequences") == 0.0).then_some(()));
            call = Call::send(&path, &get("/healthz"));
        }
        let tid = until("its engine", || thread_named(daemon.pid(), "engine"));
        let mut freeze = Command::new("python3");
        freeze.args(["-c", FREEZE, &tid.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut freeze = Running(freeze.spawn().unwrap());
        let (mut out, mut held) = (freeze.0.stdout.take().unwrap(), [0; 5]);
        if out.read_exact(&mut held).is_err() {
            println!(
                "skipped: an engine that does not move; a thread can be held by root alone, with python3"
            );
            return;
        }
        if !at_work {
            call = Call::send(&path, &post(NATIVE, r#"{"input": "again"}"#));
        }
        let said = told(&manager, 35);
        assert!(
            said.iter().any(|one| one.contains("READY=1")) && fed(&said) <= 1,
            "at work {at_work}: {said:?}"
        );
        let health = ask(&path, &get("/healthz"));
        assert_eq!(health.status, 503, "at work {at_work}: {health:?}");
        drop(freeze);
        until("an engine that moves again", || (ask(&path, &get("/healthz")).status == 200).then_some(()));
        drop(call);
    }
}

/// The thread of this name of a process.
fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let mut named =
        tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    named.next()?.file_name()?.to_str()?.parse().ok()
}

/// Holds a thread, and no other of its process, until it is ended itself (`ptrace`: seize, interrupt).
const FREEZE: &str = "
import ctypes, sys, time
libc, tid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
for request in 0x4206, 0x4207:
    if libc.ptrace(request, tid, None, None) != 0:
        sys.exit(f'errno {ctypes.get_errno()}')
print('held', flush=True)
time.sleep(600)
";
