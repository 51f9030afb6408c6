//! Tokens against results that others made: llama.cpp. The files lie beside the repository, in `shared/fixtures/`; what is absent is counted
//! and said.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that stops and says what it skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use sotto::base::Token;
use sotto::format::gguf::Gguf;
use sotto::text::{Source, Special, Tokenizer, VocabKind};

fn fixtures(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures").join(name);
    if !path.is_dir() {
        println!("skipped: 1, {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The vocabulary file, unpacked by the program xz.
fn unpacked(packed: &Path, name: &str) -> Vec<u8> {
    let out = Command::new("xz").arg("-dc").arg(packed).stdin(Stdio::null()).output().expect("xz runs");
    assert!(out.status.success(), "{name}: xz failed");
    out.stdout
}

/// What the file says about its vocabulary.
fn source(gguf: &Gguf) -> Source {
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let token = |k: &str| gguf.uint(&key(k)).unwrap().map(|id| Token(u32::try_from(id).unwrap()));
    Source {
        model: match gguf.str(&key("model")).unwrap() {
            Some("gpt2") => VocabKind::Bpe,
            Some("llama") => VocabKind::Spm,
            other => panic!("vocabulary of kind {other:?}"),
        },
        pre: gguf.str(&key("pre")).unwrap().map(str::to_owned),
        pieces: gguf.strings(&key("tokens")).unwrap().unwrap().clone(),
        kinds: gguf.small_ints(&key("token_type")).unwrap().unwrap_or_default(),
        scores: gguf.floats(&key("scores")).unwrap().unwrap_or_default(),
        merges: gguf.strings(&key("merges")).unwrap().cloned(),
        bos: token("bos_token_id"),
        eos: token("eos_token_id"),
        eot: token("eot_token_id"),
        unk: token("unknown_token_id"),
        add_bos: gguf.bool(&key("add_bos_token")).unwrap(),
        add_eos: gguf.bool(&key("add_eos_token")).unwrap(),
        add_space_prefix: gguf.bool(&key("add_space_prefix")).unwrap(),
    }
}

fn ids(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<u32> {
    let mut out = Vec::new();
    tokenizer.encode(text, special, &mut out);
    out.iter().map(|t| t.0).collect()
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let Some(dir) = fixtures("vocab") else { return };
    let (mut n, mut wrong) = (0, Vec::new());
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        let file = |end: &str| dir.join(format!("ggml-vocab-{name}.{end}"));
        let gguf = Gguf::parse(name, Arc::new(unpacked(&file("gguf.xz"), name))).unwrap();
        let tokenizer = Tokenizer::new(source(&gguf)).unwrap();
        let mut check = |text: &str, special: Special, wanted: Vec<u32>| {
            let found = ids(&tokenizer, text, special);
            n += 1;
            if found != wanted {
                wrong.push(format!("{name} {special:?} {text:?}\n  found {found:?}\n wanted {wanted:?}"));
            }
            let tokens: Vec<Token> = found.into_iter().map(Token).collect();
            // SentencePiece writes spaces so, and cannot tell the two.
            let kept = if name.ends_with("-spm") || name == "phi-3" {
                text.replace('\u{2581}', " ")
            } else {
                text.into()
            };
            if special == Special::AsText && tokenizer.decode(&tokens) != kept.as_bytes() {
                wrong.push(format!("{name} {text:?} comes back as {:?}", tokenizer.decode(&tokens)));
            }
        };
        let inputs = fs::read_to_string(file("gguf.inp")).unwrap();
        let outputs = fs::read_to_string(file("gguf.out")).unwrap();
        let inputs = inputs.split("\n__ggml_vocab_test__\n");
        for (text, line) in inputs.zip(outputs.split('\n')) {
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
        let begins = numbers(&hard["hello_world_with_special"]).first().copied();
        let bos = tokenizer.bos().map(|t| t.0);
        assert_eq!(
            tokenizer.add_bos(),
            begins == bos,
            "{name}: bos {bos:?}, llama.cpp begins with {begins:?}"
        );
    }
    println!("{n} encodings, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{} of {n} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(n > 2000, "only {n} encodings compared");
}
