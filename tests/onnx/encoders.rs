//! Vectors of texts by encoders.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::http::{ask, post};
use crate::support::{self, Daemon, Folder, run, sotto, stderr, stdout, until};
use serde_json::{Value, json};
use sotto::base::Token;
use sotto::base::rng::Rng;
use sotto::format::hf::onnx::Pool;
use sotto::os::message::Frames;
use sotto::side::graph;

use crate::{HELPER, cases, children, fixture};

pub(crate) fn cosine(a: &Value, b: &Value) -> f64 {
    let numbers =
        |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let (a, b) = (numbers(a), numbers(b));
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

pub(crate) fn embed(model: &std::path::Path, input: &str, more: &[&str]) -> Output {
    assert!(std::path::Path::new(HELPER).is_file());
    let model = model.display().to_string();
    let threads: &[&str] = if more.contains(&"--threads") { &[] } else { &["--threads", "1"] };
    let args = [&["embed", "--model", &model], threads, more].concat();
    let mut child =
        sotto(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = sotto::os::thread::start("writer", move || drop(pipe.write_all(input.as_bytes()))).unwrap();
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Each text's vector is that of onnxruntime, in whichever company it is read.
#[test]
fn vectors_are_those_of_onnxruntime() {
    for (folder, key, bar) in [
        (Some(fixture("bert")), "vector", 0.999_999),
        (Some(fixture("bert-int8")), "vector", 0.999_9),
        (Some(fixture("roberta")), "vector", 0.999_999),
        (support::shared("models/minilm-l6-v2"), "embedding_onnx", 0.999_9),
        (support::shared("models/minilm-l6-v2"), "embedding_f32", 0.99),
    ] {
        let Some(folder) = folder else { continue };
        // A text of several lines can not be given by lines.
        let cases: Vec<Value> =
            cases(&folder).into_iter().filter(|c| !c["text"].as_str().unwrap().contains('\n')).collect();
        let texts: Vec<&str> = cases.iter().map(|c| c["text"].as_str().unwrap()).collect();
        let output = embed(&folder, &(texts.join("\n") + "\n"), &["--json", "--truncate"]);
        let all: Value =
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
        let vectors = all["embeddings"].as_array().unwrap();
        assert_eq!(vectors.len(), cases.len());
        let mut worst: f64 = 1.0;
        for (vector, case) in vectors.iter().zip(&cases) {
            worst = worst.min(cosine(vector, &case[key]));
        }
        println!("{}, {key}: worst cosine {worst:.9}", folder.display());
        assert!(worst >= bar, "{worst}");
        let cut: Vec<usize> =
            cases.iter().enumerate().filter(|(_, case)| case["truncated"] == true).map(|(i, _)| i).collect();
        assert_eq!(all["truncated"], json!(cut));
        assert_eq!(stderr(&output).matches("was cut").count(), cut.len());
    }
}

#[test]
fn raw_numbers_are_those_of_json() {
    let text = "the cat sat on the mat";
    let json: Value = serde_json::from_str(&stdout(&embed(&fixture("bert"), text, &["--json"]))).unwrap();
    let raw = embed(&fixture("bert"), text, &["--dimensions", "3"]).stdout;
    let numbers: Vec<f64> =
        raw.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    assert_eq!(numbers.len(), 3);
    let first = json!(json["embeddings"][0].as_array().unwrap()[..3]);
    assert!(cosine(&json!(numbers), &first) > 0.999_999_9);
}

#[test]
fn a_text_that_is_too_long_is_refused_or_cut() {
    let long = "cat ".repeat(60);
    let output = embed(&fixture("bert"), &format!("cat\n{long}\n"), &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("has room for 48"), "{}", stderr(&output));
    let output = embed(&fixture("bert"), &format!("cat\n{long}\n"), &["--json", "--truncate"]);
    let all: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&all["truncated"], &all["tokens"]), (&json!([1]), &json!(3 + 48)));
}

/// What is wrong with a graph is said, and nothing else happens.
#[test]
fn hostile_graphs_are_refused() {
    let whole = std::fs::read(fixture("bert/model.onnx")).unwrap();
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("cut".into(), whole[..whole.len() / 2].to_vec()),
        ("noise".into(), (0..5_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
    ];
    for entry in std::fs::read_dir(fixture("bad")).unwrap() {
        let path = entry.unwrap().path();
        files.push((path.file_stem().unwrap().display().to_string(), std::fs::read(path).unwrap()));
    }
    assert_eq!(files.len(), 15);
    let folder = Folder::new();
    let words = [
        ("climbs", "no plain name"),
        ("absolute", "no plain name"),
        ("missing", "model.onnx_data"),
        ("beyond", "bytes at 1099511627776"),
        ("unknown-operator", "Frobnicate"),
        ("unknown-input", "pixels"),
        ("nobody-makes", "nowhere"),
        ("whole-numbers", "load_failed"),
    ];
    for (name, bytes) in files {
        let dir = folder.join(&name);
        std::fs::create_dir(&dir).unwrap();
        for file in ["tokenizer.json", "config.json", "sentence_bert_config.json"] {
            std::fs::copy(fixture("bert").join(file), dir.join(file)).unwrap();
        }
        std::fs::write(dir.join("model.onnx"), bytes).unwrap();
        let output = embed(&dir, "the cat\n", &["--json"]);
        let said = stderr(&output);
        println!("{name}: {said}");
        assert!(matches!(output.status.code(), Some(2 | 70)), "{name}: {:?}", output.status);
        assert!(said.contains(&format!("model {name}: ")) && said.len() < 1_000, "{name}: {said}");
        if let Some((_, word)) = words.iter().find(|(of, _)| *of == name) {
            assert!(said.contains(word), "{name}: {said}");
        }
    }
}

/// Whatever bytes of a graph are other ones, it is opened or refused: the helper neither dies nor takes for ever.
#[test]
fn damaged_graphs_are_opened_or_refused() {
    let folder = Folder::new();
    let mut random = Rng::new(19);
    let (mut n_opened, mut n_refused) = (0, 0);
    for (name, generates) in [("bert", false), ("bert-int8", false), ("roberta", false), ("causal", true)] {
        let whole = std::fs::read(fixture(name).join("model.onnx")).unwrap();
        // Most of a file is weights, whose bytes may be any: what is looked for is the rest.
        let texts: Vec<usize> = (1..whole.len())
            .filter(|i| whole[i - 1].is_ascii_graphic() || whole[*i].is_ascii_graphic())
            .collect();
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(3) {
                bytes[texts[random.below(texts.len())]] = random.below(256) as u8;
            }
            let path = folder.write("model.onnx", &bytes);
            let helper = graph::Helper { socket: None, programs: vec![HELPER.into()] };
            let open = graph::Open { generates, pool: Pool::Mean, unit: true, threads: 1 };
            let mut started = graph::Graph::start(&helper, &path, None, &open).unwrap();
            match started.open(Duration::from_secs(20)) {
                Ok(opened) => {
                    assert!(opened.is_some(), "{name}: takes more than 20 s");
                    n_opened += 1;
                }
                Err(graph::GraphError::Refused { what }) => {
                    assert!(!what.is_empty());
                    n_refused += 1;
                }
                // It names a file beside it.
                Err(graph::GraphError::Name { .. } | graph::GraphError::File { .. }) => n_refused += 1,
                Err(e) => panic!("{name}: {e}"),
            }
        }
    }
    println!("{n_opened} were opened, {n_refused} refused");
    assert!(n_refused > 40, "{n_refused}");
}

/// Nobody waits for a pipe's writer, be it the graph or what lies beside it.
#[test]
fn pipes_are_no_graphs() {
    let folder = Folder::new();
    for (name, graph, pipe) in
        [("beside", "bad/missing.onnx", "model.onnx_data"), ("itself", "bert/config.json", "pipe.onnx")]
    {
        let dir = folder.join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(fixture("bert/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        std::fs::copy(fixture(graph), dir.join("model.onnx")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, dir.join(pipe), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let model = if name == "itself" { dir.join(pipe) } else { dir };
        let said = stderr(&embed(&model, "the cat\n", &["--json"]));
        assert!(said.contains("not a regular file"), "{name}: {said}");
    }
}

/// A context beyond the positions of the graph is none.
#[test]
fn a_text_is_no_longer_than_the_graph_reads() {
    let folder = Folder::new();
    let dir = folder.join("long");
    std::fs::create_dir(&dir).unwrap();
    for file in ["tokenizer.json", "config.json", "model.onnx"] {
        std::fs::copy(fixture("bert").join(file), dir.join(file)).unwrap();
    }
    std::fs::write(dir.join("sentence_bert_config.json"), r#"{"max_seq_length": 100000}"#).unwrap();
    let said = stderr(&embed(&dir, &"cat ".repeat(100), &["--json"]));
    assert!(said.contains("has room for 64"), "{said}");
    let cut = stdout(&embed(&dir, &"cat ".repeat(100), &["--json", "--truncate"]));
    assert!(cut.contains("\"tokens\":64"), "{cut}");
}

/// Nobody is worked for who has left: an answer may take for ever. This one would be too long for a frame.
#[test]
fn a_helper_ends_when_its_caller_leaves() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(HELPER).stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
    let mut frames = Frames::new(ours, graph::VERSION, Some(Duration::from_secs(60))).unwrap();
    let open = json!({"generates": false, "pool": "mean", "unit": true, "threads": 1}).to_string();
    let file = std::fs::File::open(fixture("bert/model.onnx")).unwrap();
    frames.send(graph::ask::OPEN, open.as_bytes(), &[file.as_fd()]).unwrap();
    assert_eq!(frames.wait().unwrap().kind, graph::say::OPENED);
    let mut body = Vec::new();
    graph::texts_into(&vec![&[Token(7); 48][..]; 40_000], &mut body);
    frames.send(graph::ask::EMBED, &body, &[]).unwrap();
    drop(frames);
    let status = until("its end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// A helper that is killed is one that is started anew; beside it everything goes on.
#[test]
fn a_daemon_outlives_its_helpers() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &fixture("bert"), "");
    let socket = daemon.socket.clone();
    let ask = |path: &str, body: Value| ask(&socket, &post(path, body.to_string())).json();
    let vectors = |input: Value| ask("/v1/embeddings", json!({"model": "embed", "input": input}));
    let first = vectors(json!(["the cat", "a"]));
    assert_eq!(first["model"], "bert", "{first}");
    let wanted = vectors(json!("the cat"))["data"][0]["embedding"].clone();
    assert!(cosine(&first["data"][0]["embedding"], &wanted) > 0.999_999);
    let models = run(&["status", "--json", "--socket", daemon.socket.to_str().unwrap()]);
    assert!(stdout(&models).contains("\"loaded\""), "{}", stdout(&models));
    for _ in 0..3 {
        let helper = children(daemon.process.pid());
        assert_eq!(helper.len(), 1, "one model, one helper");
        let pid = rustix::process::Pid::from_raw(helper[0]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Nobody's request has to fail for it.
        let again = vectors(json!("the cat"));
        assert!(again["data"][0]["embedding"].is_array(), "{again}");
        assert!(cosine(&again["data"][0]["embedding"], &wanted) > 0.999_999);
    }
    let generated = ask("/sotto/v1/generate", json!({"model": "bert", "input": "a", "raw": true}));
    assert_eq!(generated["error"]["code"], "unsupported_model", "{generated}");
    daemon.process.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
}
