//! What encoders cost, in figures for `docs/performance.md`; and real encoders that tests do not carry along:
//!
//! cargo test --release --features onnx --test onnx -- --ignored --nocapture --test-threads 1
//!
//! With `SOTTO_MINILM` as `tests/onnx/export.py` says, those that it makes are looked at too.
#![allow(clippy::disallowed_methods, reason = "where real encoders are is said by the environment")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sotto::os::clock::now_us;

use crate::encoders::{cosine, embed};
use crate::support::http::{ask, post};
use crate::support::{self, Daemon, Folder, stderr, stdout, until};
use crate::{cases, children, fixture};

/// Requests of one sentence each, and sentences at once.
const N_REQUESTS: usize = 200;
const N_SENTENCES: usize = 2_000;

/// A number of `/proc/PID/status`, in MiB.
fn mib(pid: i32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap() / 1024
}

/// The encoders that are here, each with the least cosine to the vectors of 32-bit floats.
fn encoders() -> Vec<(PathBuf, f64)> {
    let mut all: Vec<(PathBuf, f64)> =
        support::shared("models/minilm-l6-v2").map(|folder| (folder, 0.99)).into_iter().collect();
    match std::env::var_os("SOTTO_MINILM").map(PathBuf::from) {
        Some(made) => {
            all.extend(
                [("script", 0.999_9), ("dynamo", 0.999_9), ("dynamic", 0.85)]
                    .map(|(k, bar)| (made.join(k), bar)),
            );
        }
        None => println!("skipped: encoders of 32-bit floats; no SOTTO_MINILM (tests/onnx/export.py)"),
    }
    if all.is_empty() {
        println!("skipped: real encoders; no shared models");
        all.push((fixture("bert-int8"), 0.0));
    }
    all
}

fn sentences(folder: &Path) -> Vec<Value> {
    let told = if folder.join("expected.json").is_file() {
        folder.to_owned()
    } else {
        support::shared("models/minilm-l6-v2").unwrap()
    };
    cases(&told).into_iter().filter(|c| !c["text"].as_str().unwrap().contains('\n')).collect()
}

#[test]
#[ignore = "slow: seconds of work for each encoder; a release build is what counts"]
fn what_encoders_cost() {
    for (folder, bar) in encoders() {
        let cases = sentences(&folder);
        let texts: Vec<&str> = cases.iter().map(|c| c["text"].as_str().unwrap()).collect();
        for threads in [1, 2] {
            let home = Folder::new();
            let config = format!("threads = {threads}\n[models]\ndirs = []\nkeep_s = 2\n");
            let daemon = Daemon::start(&home, &folder, &config);
            let one = |text: &str| {
                let since = now_us();
                let body = json!({"model": "embed", "input": text}).to_string();
                let answer = ask(&daemon.socket, &post("/v1/embeddings", body)).json();
                (now_us() - since, answer["data"][0]["embedding"].clone())
            };
            let (first, _) = one(texts[0]);
            let mut times = Vec::new();
            let mut worst = 1.0_f64;
            for i in 0..N_REQUESTS {
                let case = &cases[i % cases.len()];
                let (us, vector) = one(case["text"].as_str().unwrap());
                times.push(us);
                if case["embedding_f32"].is_array() {
                    worst = worst.min(cosine(&vector, &case["embedding_f32"]));
                }
            }
            times.sort_unstable();
            let helper = children(daemon.process.pid());
            assert_eq!(helper.len(), 1);
            let resident = [mib(helper[0], "VmRSS"), mib(helper[0], "VmHWM")];
            until("the end of the helper", || children(daemon.process.pid()).is_empty().then_some(()));
            let many: String = texts.iter().cycle().take(N_SENTENCES).flat_map(|text| [text, "\n"]).collect();
            let since = now_us();
            let output = embed(&folder, &many, &["--threads", &threads.to_string()]);
            let seconds = (now_us() - since) as f64 / 1e6;
            assert!(output.status.success(), "{} {}", stderr(&output), stdout(&output));
            println!(
                "{}, {threads} threads: first request {:.0} ms, then p50 {:.1} ms, p95 {:.1} ms; {N_SENTENCES} sentences \
                 {:.0} a second; helper {} MiB, peak {}, none once idle; cosine to float32 {worst:.6}",
                folder.display(),
                first as f64 / 1e3,
                times[times.len() / 2] as f64 / 1e3,
                times[times.len() * 95 / 100] as f64 / 1e3,
                N_SENTENCES as f64 / seconds,
                resident[0],
                resident[1],
            );
            assert!(worst >= bar, "{worst}");
        }
    }
}
