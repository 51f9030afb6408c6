//! Models that are ONNX graphs: their tokens, and with the feature `onnx` what the helper program makes of texts.
#![cfg(feature = "http")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skips"
)]

#[cfg(feature = "onnx")]
mod beside;
#[cfg(feature = "onnx")]
mod decoders;
#[cfg(feature = "onnx")]
mod encoders;
#[cfg(feature = "onnx")]
mod measured;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use serde_json::Value;
use sotto::format::hf::onnx;
use sotto::text::{Source, Special, Tokenizer};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/onnx")).join(name)
}

fn cases(folder: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read(folder.join("expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    all["cases"].as_array().unwrap().clone()
}

/// The tokens of texts, as Hugging Face's tokenizers have them.
#[test]
fn texts_become_the_tokens_of_the_vocabulary() {
    let folders = [Some(fixture("bert")), Some(fixture("roberta")), support::shared("models/minilm-l6-v2")];
    for folder in folders.into_iter().flatten() {
        let (dir, graph) = onnx::find(&folder).unwrap();
        let read = onnx::open(&dir, &graph).unwrap();
        let source = Source::from_tokenizer_json((*read.tokenizer_json).as_ref(), None).unwrap();
        let tokenizer = Tokenizer::new(source).unwrap();
        for case in cases(&folder) {
            let mut tokens: Vec<_> = tokenizer.bos().into_iter().collect();
            tokenizer.encode(case["text"].as_str().unwrap(), Special::AsText, &mut tokens);
            tokens.extend(tokenizer.close());
            let ids: Vec<u64> = tokens.iter().map(|t| u64::from(t.0)).collect();
            let wanted: Vec<u64> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(ids, wanted, "{}", case["text"]);
        }
    }
}

#[test]
fn a_directory_tells_how_its_texts_become_vectors() {
    let (dir, graph) = onnx::find(&fixture("bert")).unwrap();
    let read = onnx::open(&dir, &graph).unwrap();
    assert_eq!((read.architecture.as_str(), read.n_ctx, read.unit), ("bert", 48, true));
    assert_eq!((read.pool, read.generates), (onnx::Pool::Mean, false));
    assert_eq!(onnx::find(&graph), Some((dir, graph)));
    assert_eq!(onnx::find(&fixture("bert/1_Pooling")), None);
    assert!(onnx::encodes(&fixture("bert")) && !onnx::encodes(&fixture("bad")));
}

#[cfg(not(feature = "onnx"))]
#[test]
fn without_the_helper_it_is_said_how_to_get_it() {
    // A build with the feature may have left one beside.
    let folder = support::Folder::new();
    let program = folder.join("sotto");
    std::fs::copy(env!("CARGO_BIN_EXE_sotto"), &program).unwrap();
    let output = std::process::Command::new(program)
        .args(["embed", "the cat", "--json", "--model"])
        .arg(fixture("bert"))
        .output()
        .unwrap();
    let said = support::stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cargo build --release --features onnx"), "{said}");
    println!("skipped: vectors of ONNX graphs; built without the feature onnx");
}

/// The program that the tests mean is built, and lies beside `sotto`.
#[cfg(feature = "onnx")]
const HELPER: &str = env!("CARGO_BIN_EXE_sotto-onnx");

/// The children of a process.
#[cfg(feature = "onnx")]
fn children(of: u32) -> Vec<i32> {
    let list = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after.split_ascii_whitespace().nth(1) == Some(&of.to_string()) && stat.contains("(sotto-onnx)")
    };
    pids.filter(is_child).collect()
}
