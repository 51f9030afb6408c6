//! Slow proofs on programs as they ship; run by hand, with their results in `docs/performance.md`:
//!
//! ```sh
//! SOTTO_SHAPE=llama-3.2-1b-q4_0.gguf cargo test --profile dist --test proofs -- --ignored --nocapture --test-threads 1
//! ```
//!
//! `SOTTO_SHAPE` names a model file with the shapes of Llama 3.2 1B in Q4_0; its weights may be random.
#![cfg(all(feature = "dbus", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it measured"
)]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sotto::base::Token;
use sotto::door::http::HttpOptions;
use sotto::engine::{
    Caching, Caller, Class, Door, Effort, Engine, Event, GenerationId, Input, Mock, Offer, Options, Request,
    Sampling, Settings, Sink, Task, median,
};
use sotto::os::clock;
use support::http::{Call, ask, post};
use support::{Daemon, Folder, Inside, Running, bus, engine, have, sotto, stories};
use zbus::zvariant::Variant;

fn shape() -> PathBuf {
    std::env::var_os("SOTTO_SHAPE").expect("SOTTO_SHAPE names a model file").into()
}

/// Words that no vocabulary has as a whole.
fn long_prompt(n_words: usize) -> String {
    (0..n_words).map(|i| format!("w{} ", i * 7919 % 1000)).collect()
}

/// Processor time of all threads of a process, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |task: std::fs::DirEntry| -> Option<f64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(|t| of(t.ok()?)).sum::<f64>() / 1e9
}

#[test]
#[ignore = "slow: waits 5 s; a dist build is what counts"]
fn an_idle_daemon_is_small() {
    let folder = Folder::new();
    let on_bus = have("dbus-daemon", "idle on a bus").then(|| bus(&folder));
    let daemon = Daemon::start_on(&folder, None, "", on_bus.as_ref().map(|(_, address)| address.as_str()));
    std::thread::sleep(Duration::from_secs(5));
    let (rss, anonymous) = (daemon.memory_kib("VmRSS"), daemon.memory_kib("RssAnon"));
    println!("idle without a model: VmRSS {rss} KiB, of them {anonymous} anonymous");
    assert!(rss * 1024 <= 6_000_000, "{rss} KiB, at most 6 MB");
}

/// How often threads of a process went to sleep of their own accord.
fn n_sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    tasks.filter_map(|t| of(t.ok()?)).sum()
}

/// Signs of life go out every 10 s; nothing else wakes an idle daemon, with a model in memory or without.
/// Requests of next to nothing but many values, and of texts that are too long, refused: while they are read and after.
#[test]
#[ignore = "slow: waits most of a minute, sends 21 MB"]
fn what_is_refused_leaves_no_memory() {
    let folder = Folder::new();
    if !have("dbus-daemon", "21 MB on the bus") {
        return;
    }
    let (_bus, address) = bus(&folder);
    let daemon = Daemon::start_on(&folder, Some(&stories()), "", Some(&address));
    ask(&daemon.socket, &post("/sotto/v1/generate", r#"{"input": "Once", "raw": true, "max_tokens": 4}"#));
    let mut kib = vec![daemon.memory_kib("VmRSS")];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let body = ("hi", HashMap::from([("messages", Variant::from(vec![("user", ""); 1_000_000]))]));
        let manager = Some("org.sotto.Sotto1.Manager");
        let refused =
            client.call_method(Some("org.sotto.Sotto1"), "/org/sotto/Sotto1", manager, "Generate", &body);
        let refused = refused.await.unwrap_err().to_string();
        assert!(refused.contains("body_too_large"), "{refused}");
    });
    kib.push(daemon.memory_kib("VmRSS"));
    // Until a look of those at rest is over.
    std::thread::sleep(Duration::from_secs(15));
    kib.push(daemon.memory_kib("VmRSS"));
    let messages = vec![json!({"role": "user", "content": ""}); 80_000];
    let refused =
        ask(&daemon.socket, &post("/v1/chat/completions", json!({"messages": messages}).to_string()));
    assert_eq!(refused.status, 400, "{refused:?}");
    kib.push(daemon.memory_kib("VmRSS"));
    std::thread::sleep(Duration::from_secs(15));
    kib.push(daemon.memory_kib("VmRSS"));
    for _ in 0..3 {
        let long = json!({"input": "word ".repeat(200_000), "raw": true}).to_string();
        let refused = ask(&daemon.socket, &post("/sotto/v1/generate", long));
        assert!(refused.text().contains("context_too_long"), "{refused:?}");
    }
    kib.push(daemon.memory_kib("VmRSS"));
    std::thread::sleep(Duration::from_secs(15));
    kib.push(daemon.memory_kib("VmRSS"));
    println!(
        "VmRSS before, after 1,000,000 messages on the bus, 15 s later, after 80,000 at the socket, 15 s later, after three \
         texts of 1 MB, 15 s later: {kib:?} KiB"
    );
    assert!(kib.iter().all(|then| *then <= kib[0] + 48 * 1024), "{kib:?}");
    assert!(kib[4].max(kib[6]) <= kib[0] + 2 * 1024, "{kib:?}");
}

#[test]
#[ignore = "slow: waits for a minute"]
fn an_idle_daemon_wakes_for_its_watchdog_alone() {
    let folders = [Folder::new(), Folder::new()];
    let on_bus = have("dbus-daemon", "idle on a bus").then(|| bus(&folders[0]));
    let address = on_bus.as_ref().map(|(_, address)| address.as_str());
    let with = Daemon::start_on(&folders[0], Some(&stories()), "", address);
    let without = Daemon::start_on(&folders[1], None, "", None);
    ask(&with.socket, &post("/sotto/v1/generate", r#"{"input": "Once", "raw": true, "max_tokens": 4}"#));
    // Until the last look of those that work asks for is over.
    std::thread::sleep(Duration::from_secs(12));
    let pids = [with.process.pid(), without.process.pid()];
    let before = pids.map(n_sleeps);
    std::thread::sleep(Duration::from_secs(60));
    let woken = [0, 1].map(|i| n_sleeps(pids[i]) - before[i]);
    println!("woken in 60 s: {} times with a model, {} without", woken[0], woken[1]);
    assert!(woken.iter().all(|n| *n <= 6), "{woken:?}");
}

/// Tokens of one answer in a second, and in all.
const PER_S: u64 = 2_000;
const N_TOKENS: u64 = 1_000;
/// Pairs that are measured. What the mock itself takes for a token is most of it, and grows with the answer.
const N_PAIRS: usize = 15;

/// Processor time of a thread that calls `write` as often as an answer has tokens, and as fast, in microseconds each.
fn paced_us(mut write: impl FnMut()) -> f64 {
    let own = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts it");
        text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("a number") / 1e3
    };
    let (before, began) = (own(), clock::now_us());
    for i in 0..N_TOKENS {
        let due = began + i * 1_000_000 / PER_S;
        std::thread::sleep(Duration::from_micros(due.saturating_sub(clock::now_us())));
        write();
    }
    (own() - before) / N_TOKENS as f64
}

/// Takes what an answer has and tells of its end.
struct Deaf(std::sync::mpsc::Sender<()>);

impl Sink for Deaf {
    fn offer(&mut self, event: &Event) -> Offer {
        if matches!(event, Event::Done(_)) {
            self.0.send(()).expect("somebody waits");
        }
        Offer::Taken
    }
}

/// What a token of the endless mock costs an engine in this process to make, where nobody hears it.
fn unheard_us(engine: &Engine) -> f64 {
    let request = Request {
        id: GenerationId::from_bits(u128::from(clock::now_us())),
        caller: Caller { uid: 0, pid: None, door: Door::Local },
        model: Some("mock-endless".into()),
        task: Task::Generate,
        input: Input::Text("again and again".into()),
        input_field: "input",
        effort: Effort::None,
        sampling: Sampling::default(),
        max_tokens: Some(N_TOKENS as u32),
        stop: Vec::new(),
        cache: Caching::Off,
        class: Class::Interactive,
        deadline_ms: None,
    };
    let (done, ended) = std::sync::mpsc::channel();
    let before = cpu_s(std::process::id());
    let handle = engine.submit(request, Box::new(Deaf(done))).expect("it is taken");
    ended.recv().expect("it ends");
    drop(handle);
    (cpu_s(std::process::id()) - before) * 1e6 / N_TOKENS as f64
}

/// Reads to the end, as a client does: what comes, when it comes. The first piece, and how many.
fn drained(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<(Vec<u8>, u64)> {
    let read = move || {
        let (mut bytes, mut first, mut n) = ([0; 4_096], Vec::new(), 0);
        while let Some(len) = from.read(&mut bytes).ok().filter(|len| *len > 0) {
            n += 1;
            if n == 100 {
                first = bytes[..len].to_vec();
            }
        }
        (first, n)
    };
    sotto::os::thread::start("reader", read).expect("a thread")
}

/// What a token costs on its way out, in microseconds of processor time of the whole daemon: above an engine that nobody
/// hears, and above what a bare write to the same reader takes.
#[test]
#[ignore = "slow, and wants a quiet machine"]
fn a_token_costs_little_on_its_way_out() {
    let folder = Folder::new();
    if !have("dbus-daemon", "what a token costs") {
        return;
    }
    let (_bus, address) = bus(&folder);
    let daemon = Daemon::mock(&folder, &format!("tokens_per_s={PER_S}"), "", Some(&address));
    let pid = daemon.process.pid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime
        .block_on(async { zbus::connection::Builder::address(address.as_str()).build().await })
        .unwrap();
    let cost = |from: Box<dyn Read + Send>| {
        let before = cpu_s(pid);
        let (line, n) = drained(from).join().expect("it reads");
        ((cpu_s(pid) - before) * 1e6 / N_TOKENS as f64, line, n)
    };
    let pipe = || {
        let options = HashMap::from([
            ("model", Variant::from("mock-endless")),
            ("max_tokens", Variant::from(N_TOKENS as u32)),
        ]);
        let manager = Some("org.sotto.Sotto1.Manager");
        let (name, path) = (Some("org.sotto.Sotto1"), "/org/sotto/Sotto1");
        let reply = runtime
            .block_on(client.call_method(
                name,
                path,
                manager,
                "StartGeneration",
                &("again and again", options),
            ))
            .unwrap();
        let (_, pipe): (zbus::OwnedObjectPath, zbus::OwnedFd) = reply.body().deserialize().unwrap();
        cost(Box::new(std::fs::File::from(std::os::fd::OwnedFd::from(pipe))))
    };
    let socket = || {
        let body = json!({"model": "mock-endless", "input": "again and again", "max_tokens": N_TOKENS});
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(&post("/sotto/v1/generate", body.to_string())).unwrap();
        cost(Box::new(stream))
    };
    let bare = |mut to: Box<dyn Write>, from: Box<dyn Read + Send>, line: &[u8], paced: f64| {
        let reader = drained(from);
        let us = paced_us(|| to.write_all(line).expect("it is read")) - paced;
        drop(to);
        reader.join().unwrap();
        us
    };
    let bare_pipe = |line: &[u8], paced| {
        let (reader, writer) = std::io::pipe().unwrap();
        bare(Box::new(writer), Box::new(reader), line, paced)
    };
    let bare_socket = |line: &[u8], paced| {
        let (reader, writer) = UnixStream::pair().unwrap();
        bare(Box::new(writer), Box::new(reader), line, paced)
    };
    let mock = format!("tokens_per_s={PER_S}").parse().unwrap();
    let options = Options { mock: Some(mock), threads: 1, n_ctx: 16_384, ..Options::default() };
    let settings = Settings { models: Mock::models(), ..Settings::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    unheard_us(&engine);
    pipe();
    let mut above = [const { Vec::new() }; 4];
    for _ in 0..N_PAIRS {
        let (unheard, paced) = (unheard_us(&engine), paced_us(|| ()));
        let (piped, line, n_pipe) = pipe();
        let pipe = bare_pipe(&line, paced);
        let (sent, line, n_socket) = socket();
        let socket = bare_socket(&line, paced);
        println!(
            "us a token: a bare sleep {paced:.1}, unheard {unheard:.1}; pipe {piped:.1}, bare write {pipe:.1}, {n_pipe} pieces; \
             socket {sent:.1}, bare write {socket:.1}, {n_socket} pieces"
        );
        above[0].push(piped - unheard - pipe);
        above[1].push(sent - unheard - socket);
        above[2].push(piped - paced - pipe);
        above[3].push(sent - paced - socket);
    }
    let [pipe, socket, pipe_all, socket_all] = above.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[N_PAIRS / 2]
    });
    println!(
        "above a bare write, medians: pipe {pipe:.1} us, socket {socket:.1} us; with the making of a token by the mock \
         {pipe_all:.1} and {socket_all:.1} us"
    );
    assert!(pipe <= 10.0 && socket <= 30.0, "pipe {pipe}, socket {socket}");
}

#[test]
#[ignore = "slow: reads a 1B model and a long prompt"]
fn asking_a_1b_model_needs_the_file_the_cache_and_little_more() {
    let file = shape();
    let mut command = sotto(&["ask", "--local", "--context", "2048", "--max-tokens", "8", "--model"]);
    command.arg(&file).arg(long_prompt(515)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Running(command.spawn().expect("sotto starts"));
    let mut peak = 0_u64;
    let status = loop {
        if let Some(status) = process.0.try_wait().expect("it is ours") {
            break status;
        }
        let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        peak = peak.max(line.trim_matches([' ', '\t', 'k', 'B']).parse().unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success());
    let (file, cache) = (file.metadata().expect("the shape is there").len(), 2048 * 16 * 8 * 64 * 2 * 2);
    let rest = peak.saturating_sub(file + cache);
    println!("ask: VmHWM {peak} bytes, file {file}, cache {cache}, the rest {rest}");
    assert!(rest <= 25_000_000, "{rest} bytes, at most 25 MB");
}

#[test]
#[ignore = "slow: a long prefill of a 1B model"]
fn who_leaves_a_long_prefill_costs_a_layer_at_most() {
    let folder = Folder::new();
    let mut daemon = Daemon::start_on(&folder, Some(&shape()), "", None);
    let pid = daemon.process.pid();
    let body = |n: usize| json!({"input": long_prompt(n), "raw": true, "max_tokens": 4}).to_string();
    // The first answer loads.
    ask(&daemon.socket, &post("/sotto/v1/generate", body(3)));
    let mut call = Call::send(&daemon.socket, &post("/sotto/v1/generate", body(515)));
    call.head();
    let mut total = 0;
    let marks: Vec<(f64, f64)> = (0..3)
        .map(|_| {
            let event = call.event("prefill");
            total = event["total"].as_u64().expect("a number");
            (event["done"].as_f64().expect("a number"), cpu_s(pid))
        })
        .collect();
    assert!(total >= 2_000, "a prompt of {total} tokens");
    let chunk = (marks[2].1 - marks[1].1) * 128.0 / (marks[2].0 - marks[1].0);
    let layer = chunk / 16.0;
    // Into the middle of a chunk.
    std::thread::sleep(Duration::from_secs_f64(chunk / 4.0));
    let before = cpu_s(pid);
    let closed_us = clock::now_us();
    drop(call);
    let line = daemon.logged("failed, cancelled");
    let noticed_ms = (clock::now_us() - closed_us) / 1000;
    std::thread::sleep(Duration::from_millis(200));
    let spent = cpu_s(pid) - before;
    println!("{}", line.trim());
    println!(
        "after the close: {spent:.3} s of CPU, logged after {noticed_ms} ms; a layer of a chunk takes {layer:.3} s, a chunk {chunk:.2} s"
    );
    assert!(spent <= layer, "{spent} s after the close, a layer takes {layer} s");
    let next = ask(&daemon.socket, &post("/sotto/v1/generate", body(1)));
    assert!(next.text().contains("\"done\""), "the next request is served: {next:?}");
}

#[test]
#[ignore = "slow: a long prefill of a 1B model"]
fn no_layer_begins_after_the_close_of_a_long_prefill() {
    let inside = Inside::start(engine(shape(), 2, 2_048), HttpOptions::default());
    let body = json!({"input": long_prompt(515), "raw": true, "max_tokens": 4}).to_string();
    let mut call = Call::send(&inside.socket, &post("/sotto/v1/generate", body));
    call.head().event("prefill");
    let event = call.event("prefill");
    let after = inside.layers_after_the_close(call);
    println!("{after} layers begun after the close at {} of {} tokens", event["done"], event["total"]);
    assert!(after <= 1, "{after} layers");
}

/// The time to the first token tells nobody what another user has asked.
#[test]
#[ignore = "slow, and wants a quiet machine"]
fn anothers_prompt_is_answered_no_sooner_than_a_new_one() {
    const N: usize = 101;
    let engine = engine(stories(), 1, 512);
    // Prompts of 400 tokens that differ from the first on.
    let prompt = |salt: usize| -> Vec<Token> {
        let mut bits = salt as u64;
        let mut next = || {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Token(3 + (bits >> 33) as u32 % 90)
        };
        (0..400).map(|_| next()).collect()
    };
    // Microseconds until the first text.
    let first = |id: usize, uid: u32, salt: usize| {
        let request = Request {
            id: GenerationId::from_bits(id as u128),
            caller: Caller { uid, pid: None, door: Door::Local },
            model: None,
            task: Task::Generate,
            input: Input::Tokens(prompt(salt)),
            input_field: "input",
            effort: Effort::None,
            sampling: Sampling { min_tokens: 1, ..Sampling::default() },
            max_tokens: Some(1),
            stop: Vec::new(),
            cache: Caching::Own,
            class: Class::Interactive,
            deadline_ms: None,
        };
        let (told, heard) = std::sync::mpsc::channel();
        let began = clock::now_us();
        let _handle = engine.submit(request, Box::new(Ends(told))).unwrap();
        heard.recv_timeout(Duration::from_secs(60)).unwrap() - began
    };
    // Its own, again; another's; one that nobody had.
    let mut us = [const { Vec::new() }; 3];
    for i in 0..N {
        first(10 * i, 5, 2 * i);
        let of_two = [(1, 6, 2 * i), (2, 7, 2 * i + 1)];
        for (kind, uid, salt) in if i % 2 == 0 { of_two } else { [of_two[1], of_two[0]] } {
            us[kind].push(first(10 * i + kind, uid, salt) as f64);
        }
        us[0].push(first(10 * i + 3, 5, 2 * i) as f64);
    }
    let [own, anothers, new] = us.map(|us| median(&us));
    println!(
        "first token after {own:.0} us (its own again), {anothers:.0} us (another's), {new:.0} us (new)"
    );
    println!("another's of new: {:.3}", anothers / new);
    assert!(own < 0.7 * new, "what is kept is sooner");
    assert!((anothers / new - 1.0).abs() < 0.05, "another's is not");
}

/// Tells when an answer ended.
struct Ends(std::sync::mpsc::Sender<u64>);

impl Sink for Ends {
    fn offer(&mut self, event: &Event) -> Offer {
        if matches!(event, Event::Done(_)) {
            // Who hears of it may have given up.
            _ = self.0.send(clock::now_us());
        }
        Offer::Taken
    }
}

/// Four streams of the socket, beside four sequences of `sotto bench`, in turn.
#[test]
#[ignore = "slow, and wants a quiet machine"]
fn four_streams_are_as_fast_as_four_sequences_in_process() {
    // One thread, and as many as there are where nobody says.
    for threads in ["1", "0"] {
        four_streams(threads);
    }
}

fn four_streams(threads: &str) {
    const N: usize = 512;
    let folder = Folder::new();
    let daemon = Daemon::start_on(&folder, Some(&shape()), &format!("threads = {threads}\n"), None);
    let body = json!({"tokens": [3], "max_tokens": N, "min_tokens": N, "temperature": 0, "cache": false});
    let request = post("/sotto/v1/generate", body.to_string());
    // The first answer loads.
    ask(&daemon.socket, &request);
    let streams = || {
        let mut calls: Vec<Call> = (0..4).map(|_| Call::send(&daemon.socket, &request)).collect();
        let began = clock::now_us();
        for call in &mut calls {
            let done = call.head().event("done");
            assert_eq!(done["usage"]["completion_tokens"], N, "{done}");
        }
        (4 * N) as f64 * 1e6 / (clock::now_us() - began) as f64
    };
    let in_process = || {
        let mut bench = sotto(&["bench", "--json", "--batch", "4", "--prompt", "1", "--repeat", "1"]);
        if threads != "0" {
            bench.args(["--threads", threads]);
        }
        let output =
            bench.args(["--pack", "memory", "--generate", &N.to_string()]).arg(shape()).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        told["decode_tok_s"].as_f64().unwrap()
    };
    let mut ratios: Vec<f64> = (0..9)
        .map(|_| {
            let (streamed, alone) = (streams(), in_process());
            println!("streams {streamed:.0} tokens/s, in process {alone:.0}: {:.3}", streamed / alone);
            streamed / alone
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!("threads = {threads}: median {:.3}, from {:.3} to {:.3}", ratios[4], ratios[0], ratios[8]);
    assert!(ratios[4] >= 0.9, "{ratios:?}");
}

#[test]
#[ignore = "of a dist build"]
fn the_daemon_is_small_on_disk() {
    let len = std::fs::metadata(env!("CARGO_BIN_EXE_sottod")).expect("it is built").len();
    println!("sottod: {len} bytes");
    assert!(len <= 6_000_000, "{len} bytes, at most 6 MB");
}
