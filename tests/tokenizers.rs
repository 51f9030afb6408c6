//! Tokens and rendered templates against results that others made: llama.cpp for the vocabularies of GGUF files, the
//! PyPI packages tokenizers and sentencepiece for those of model folders.
//!
//! `SOTTO_VOCABS` names a folder of vocabulary files with their results, `SOTTO_TOKENIZERS` one of folders with a
//! `tokenizer.json`; without them the sets beside the repository, in `shared/fixtures/`, are used, and the small one in
//! `tests/fixtures/tokenizers`. What is absent is said; a folder that was named must have something to run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skipped"
)]
#![allow(clippy::disallowed_methods, reason = "the gate chooses fixtures by the environment")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use sotto::base::Token;
use sotto::format::gguf;
use sotto::model::vocab;
use sotto::text::{Pre, Special, TextError, Tokenizer};

/// The folder that `variable` names, else `name` beside the repository if it is there.
fn fixtures(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures").join(name);
    if !path.is_dir() {
        println!("skipped: {name}; {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn small() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers")
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// The paths in `dir`, sorted.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The bytes of a file, or of its packed form, unpacked by the program xz.
fn unpacked(path: &Path) -> Vec<u8> {
    if path.is_file() {
        return fs::read(path).unwrap();
    }
    let packed = path.with_added_extension("xz");
    let out = Command::new("xz").arg("-dc").arg(&packed).stdin(Stdio::null()).output().expect("xz runs");
    assert!(out.status.success(), "{}: xz failed", packed.display());
    out.stdout
}

fn ids(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<u32> {
    let mut out = Vec::new();
    tokenizer.encode(text, special, &mut out);
    out.iter().map(|t| t.0).collect()
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn tokens(ids: &[u32]) -> Vec<Token> {
    ids.iter().copied().map(Token).collect()
}

/// Bytes that no token stands for: they are lost.
fn missing(tokenizer: &Tokenizer) -> [bool; 256] {
    let (mut missing, mut piece) = ([true; 256], Vec::new());
    for id in 0..tokenizer.n_vocab() {
        piece.clear();
        tokenizer.piece_into(Token(u32::try_from(id).unwrap()), &mut piece);
        if let [byte] = piece[..] {
            missing[usize::from(byte)] = false;
        }
    }
    missing
}

/// What was compared and what differs.
#[derive(Default)]
struct Tally {
    n: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: impl FnOnce() -> String,
        found: T,
        wanted: T,
    ) {
        self.n += 1;
        if found != wanted {
            self.wrong.push(format!("{}\n  found {found:?}\n wanted {wanted:?}", what()));
        }
    }

    fn finish(self, at_least: usize) {
        let Self { n, wrong } = self;
        println!("{n} compared, {} wrong", wrong.len());
        assert!(wrong.is_empty(), "{} of {n} are wrong:\n{}", wrong.len(), wrong.join("\n"));
        assert!(n >= at_least, "only {n} compared, at least {at_least} wanted");
    }
}

#[test]
fn tokens_of_gguf_files_are_those_of_llama_cpp() {
    let Some(dir) = fixtures("SOTTO_VOCABS", "vocab") else { return };
    let (mut tally, mut n_files) = (Tally::default(), 0);
    for path in entries(&dir) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(name) = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".gguf") else { continue };
        let file = |end: &str| dir.join(format!("{name}.{end}"));
        let gguf = gguf::parse(name, Arc::new(unpacked(&file("gguf")))).unwrap();
        let tokenizer = Tokenizer::new(vocab::source(&gguf).unwrap().unwrap()).unwrap();
        n_files += 1;
        let spells_bytes = gguf.str("tokenizer.ggml.model").unwrap() == Some("gpt2");
        let missing = missing(&tokenizer);
        let mut check = |text: &str, special: Special, wanted: Vec<u32>| {
            let found = ids(&tokenizer, text, special);
            if special == Special::AsText {
                // SentencePiece writes spaces so, and cannot tell the two.
                let kept = if spells_bytes { text.into() } else { text.replace('\u{2581}', " ") };
                let kept = kept.bytes().filter(|&byte| !missing[usize::from(byte)]).collect();
                let back: Vec<u8> = tokenizer.decode(&tokens(&found), false);
                tally.compare(|| format!("{name} {text:?} comes back"), back, kept);
                let forged = found.iter().any(|&id| tokenizer.is_special(Token(id)));
                tally.compare(|| format!("{name} {text:?} becomes a control token"), forged, false);
            }
            tally.compare(|| format!("{name} {special:?} {text:?}"), found, wanted);
        };
        let inputs = fs::read_to_string(file("gguf.inp")).unwrap();
        let outputs = fs::read_to_string(file("gguf.out")).unwrap();
        for (text, line) in inputs.split("\n__ggml_vocab_test__\n").zip(outputs.split('\n')) {
            let wanted = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            check(text, Special::AsText, wanted);
        }
        let hard = json(&file("hard.json"));
        for case in hard["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            check(text, Special::AsText, numbers(&case["ids"]));
            let parsed = case.get("ids_parse_special").unwrap_or(&case["ids"]);
            check(text, Special::Parse, numbers(parsed));
        }
        let mut hello: Vec<u32> =
            tokenizer.bos().filter(|_| tokenizer.add_bos()).iter().map(|t| t.0).collect();
        hello.extend(ids(&tokenizer, "Hello world", Special::AsText));
        tally.compare(|| format!("{name} with bos"), hello, numbers(&hard["hello_world_with_special"]));
    }
    println!("{n_files} vocabularies");
    tally.finish(800);
}
