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

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sotto::door::http::HttpOptions;
use sotto::os::clock;
use support::http::{Call, ask, post};
use support::{Daemon, Folder, Inside, Running, bus, engine, have, sotto};

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

/// Four streams of the socket, beside four sequences of `sotto bench`, in turn.
#[test]
#[ignore = "slow, and wants a quiet machine"]
fn four_streams_are_as_fast_as_four_sequences_in_process() {
    const N: usize = 128;
    let folder = Folder::new();
    let daemon = Daemon::start_on(&folder, Some(&shape()), "", None);
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
        let mut bench =
            sotto(&["bench", "--json", "--threads", "1", "--batch", "4", "--prompt", "1", "--repeat", "1"]);
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
    println!("median {:.3}, from {:.3} to {:.3}", ratios[4], ratios[0], ratios[8]);
    assert!(ratios[4] >= 0.9, "{ratios:?}");
}

#[test]
#[ignore = "of a dist build"]
fn the_daemon_is_small_on_disk() {
    let len = std::fs::metadata(env!("CARGO_BIN_EXE_sottod")).expect("it is built").len();
    println!("sottod: {len} bytes");
    assert!(len <= 6_000_000, "{len} bytes, at most 6 MB");
}
