//! Files from anywhere: each bad one gets an error that names the place and the numbers, never a panic, and no
//! allocation that its own size does not explain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbtest::arbtest;
use sotto::base::SharedBytes;
use sotto::format::hf::{self, Shard, Texts};
use sotto::format::{self, FormatError, gguf};
use sotto::model::{Model, vocab};
use sotto::text::Tokenizer;

use crate::peak;
use crate::support::gguf as made;
use crate::support::{Folder, run, stderr};

/// Memory for a file of any size: names, messages, tables that begin with a few entries.
const ANY: usize = 64 << 10;
/// Memory for each byte of a file: a tensor's entry of 60 bytes becomes a name, a shape and a place.
const EACH: usize = 8;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bad")
}

/// What is said about `path`, or `OK`.
fn verdict(path: &Path) -> String {
    let said = if path.starts_with(corpus().join("vocab")) { vocabulary(path) } else { model(path) };
    said.map_or_else(|e| e, |()| "OK".into())
}

fn model(path: &Path) -> Result<(), String> {
    format::open(path).map_err(|e| e.to_string())?;
    // What the keys mean is the next layer's.
    Model::open(path).map(drop).map_err(|e| e.to_string())
}

fn vocabulary(path: &Path) -> Result<(), String> {
    let checkpoint = format::open(path).map_err(|e| e.to_string())?;
    let source = vocab::source(&checkpoint).map_err(|e| e.to_string())?.ok_or("no tokenizer")?;
    Tokenizer::new(source).map(drop).map_err(|e| e.to_string())
}

/// Bytes of a file, or of all files of a directory or set.
fn bytes_of(path: &Path) -> usize {
    if path.is_file() && !path.starts_with(corpus().join("split")) {
        return bytes_of_one(path);
    }
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let files = std::fs::read_dir(folder.expect("it has a folder")).expect("it is there");
    files.map(|entry| bytes_of_one(&entry.expect("it is there").path())).sum()
}

fn bytes_of_one(path: &Path) -> usize {
    std::fs::metadata(path).expect("it is there").len() as usize
}

#[test]
fn each_bad_file_is_refused_in_its_words() {
    let mut rows = Vec::new();
    for table in ["expected.tsv", "found.tsv"] {
        let text = std::fs::read_to_string(corpus().join(table)).unwrap_or_default();
        rows.extend(text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>()));
    }
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for row in &rows {
        let (name, words) = row.split_first().unwrap();
        let path = corpus().join(name);
        let top = path.strip_prefix(corpus()).unwrap().components().take(2).collect::<PathBuf>();
        seen.insert(corpus().join(top));
        let (said, most) = peak::of(|| verdict(&path));
        let fits = words.iter().all(|w| said.contains(w)) && (said == "OK") == (words[0] == "OK");
        if !fits {
            wrong.push(format!("{name}: {said}\n    wanted: {words:?}"));
        }
        if most > ANY + EACH * bytes_of(&path) {
            wrong.push(format!("{name}: {most} bytes of memory for {} of file", bytes_of(&path)));
        }
    }
    for folder in ["gguf", "split", "vocab", "hf"] {
        for entry in std::fs::read_dir(corpus().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !seen.contains(&path) {
                wrong.push(format!("{} has no row in expected.tsv", path.display()));
            }
        }
    }
    assert!(rows.len() > 100 && wrong.is_empty(), "{} rows\n{}", rows.len(), wrong.join("\n"));
}

/// Texts that would be large as files.
#[test]
fn bombs_of_json_are_refused() {
    let folder = Folder::new();
    let dir = corpus().join("hf/good");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.join(name), folder.join(name)).unwrap();
    }
    let refused = |file: &str, text: String, words: &[&str]| {
        let kept = std::fs::read(folder.join(file)).ok();
        folder.write(file, &text);
        let (said, most) = peak::of(|| verdict(&folder.join("config.json")));
        assert!(words.iter().all(|w| said.contains(w)), "{words:?} wanted: {said}");
        assert!(most <= ANY + EACH * (text.len() + 4096), "{said}: {most} bytes for {}", text.len());
        match kept {
            Some(bytes) => drop(folder.write(file, bytes)),
            None => std::fs::remove_file(folder.join(file)).unwrap(),
        }
    };
    let keys: String = (0..400_000).map(|i| format!("\"{i:07}\":0,")).collect();
    refused("config.json", format!("{{{keys}\"x\":0}}"), &["more than 65536 values"]);
    refused("config.json", format!("[{}0]", "0,".repeat(4_000_000)), &["more than 65536 values"]);
    refused("config.json", " ".repeat(9 << 20), &["9437184 bytes", "8388608"]);
    refused("generation_config.json", "[".repeat(1 << 20), &["generation_config.json", "recursion limit"]);
    refused("chat_template.jinja", "x".repeat(300_000), &["300000 bytes", "262144"]);
    refused("tokenizer_config.json", "{\"chat_template\": ".repeat(1000), &["tokenizer_config.json"]);
    let long = format!("{{\"chat_template\": \"{}\"}}", "x".repeat(300_000));
    refused("tokenizer_config.json", long, &["300000 bytes", "262144"]);
    assert_eq!(verdict(&folder.join("config.json")), "OK");
}

/// A file cut anywhere is refused, whatever is cut.
#[test]
fn every_beginning_of_a_file_is_refused() {
    let whole = std::fs::read(corpus().join("gguf/good.gguf")).unwrap();
    for version in [1, 2, 3] {
        let name = if version == 3 { "good".to_owned() } else { format!("good-v{version}") };
        let whole = std::fs::read(corpus().join(format!("gguf/{name}.gguf"))).unwrap();
        for n in 0..whole.len() {
            let cut: SharedBytes = Arc::new(whole[..n].to_vec());
            assert!(gguf::parse("cut", cut).is_err(), "version {version}, {n} of {} bytes", whole.len());
        }
    }
    assert!(gguf::parse("whole", Arc::new(whole)).is_ok());

    let dir = corpus().join("hf/good");
    let (config, weights) = (
        std::fs::read(dir.join("config.json")).unwrap(),
        std::fs::read(dir.join("model.safetensors")).unwrap(),
    );
    assert!(directory(config.clone(), weights.clone()).is_ok());
    for n in 0..weights.len() {
        assert!(directory(config.clone(), weights[..n].to_vec()).is_err(), "{n} bytes of weights");
    }
    for n in 0..config.len() {
        assert!(directory(config[..n].to_vec(), weights.clone()).is_err(), "{n} bytes of config.json");
    }
}

fn directory(config: Vec<u8>, weights: Vec<u8>) -> Result<format::Checkpoint, FormatError> {
    let texts = Texts { config, ..Texts::default() };
    hf::translate("d", &texts, vec![Shard { file: "d/w".into(), bytes: Arc::new(weights), map: None }])
}

/// Every value of a checkpoint can be asked for in every way, every tensor has its bytes.
fn use_all(checkpoint: &format::Checkpoint) {
    for (key, _) in checkpoint.metadata() {
        let _ = (checkpoint.uint(key), checkpoint.float(key), checkpoint.bool(key), checkpoint.str(key));
        let _ = (checkpoint.strings(key).map(|s| s.map(|s| s.len())), checkpoint.floats(key));
        let _ = (checkpoint.small_ints(key), checkpoint.ints(key), checkpoint.bools(key));
        let _ = checkpoint.uint_per_layer(key, 2);
    }
    for (name, info) in checkpoint.tensors() {
        assert_eq!(checkpoint.bytes(info).len(), info.range.len(), "{name}");
        let row_bytes = info.quant.row_bytes(info.n_cols).expect("the reader checked it");
        assert_eq!(row_bytes * info.n_rows, info.range.len(), "{name}");
    }
    checkpoint.populate(0, usize::MAX);
}

/// Good files with some bytes changed: an error or a consistent checkpoint, in bounded memory.
#[test]
fn changed_bytes_never_panic() {
    let read = |name: &str| std::fs::read(corpus().join(name)).unwrap();
    let ggufs = [read("gguf/good.gguf"), read("gguf/good-v1.gguf"), read("gguf/good-v2.gguf")];
    let (config, weights) = (read("hf/good/config.json"), read("hf/good/model.safetensors"));
    arbtest(|u| {
        let change = |u: &mut arbtest::arbitrary::Unstructured<'_>, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            for _ in 0..u.int_in_range(1..=8)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] =
                    if u.ratio(1, 4)? { *u.choose(&[0, 255, 128, 1, b'"', b'9'])? } else { u.arbitrary()? };
            }
            Ok(bytes)
        };
        let which = u.choose_index(ggufs.len())?;
        let bytes = change(u, &ggufs[which])?;
        let len = bytes.len();
        let (found, most) = peak::of(|| gguf::parse("f", Arc::new(bytes)));
        assert!(most <= ANY + EACH * len, "{most} bytes for {len}");
        if let Ok(checkpoint) = found {
            use_all(&checkpoint);
        }
        let (config, weights) = match u.ratio(1, 2)? {
            true => (change(u, &config)?, weights.clone()),
            false => (config.clone(), change(u, &weights)?),
        };
        let len = config.len() + weights.len();
        let (found, most) = peak::of(|| directory(config, weights));
        assert!(most <= ANY + EACH * len, "{most} bytes for {len}");
        if let Ok(checkpoint) = found {
            use_all(&checkpoint);
        }
        Ok(())
    });
}

/// Weights are not looked at when a model is opened. Scales that are not finite make logits that are not, and who asks is
/// told that the file is damaged.
#[test]
fn weights_that_are_not_finite_are_a_damaged_file() {
    let folder = Folder::new();
    let mut file = made::llama(made::TINY);
    for scale in [[0x00, 0x7e], [0x00, 0x7c]] {
        file.tensor("output.weight")
            .data
            .chunks_exact_mut(34)
            .for_each(|block| block[..2].copy_from_slice(&scale));
        let model = folder.write("nan.gguf", file.bytes());
        assert_eq!(verdict(&model), "OK");
        let (text, model) = (folder.write("text", "x".repeat(99)), model.display().to_string());
        let (text, one) = (text.display().to_string(), ["--threads", "1"]);
        for (command, pos) in [
            // A begin token, then four bytes: the space before the text has three.
            (["complete", "x", "--model", &model], 4),
            // Windows of four tokens, of which the last is foretold from the third.
            (["perplexity", &model, &text, "--context=4"], 2),
        ] {
            let output = run(&[&command[..], &one].concat());
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{said}");
            let wanted = format!(
                "sotto: damaged_model: model nan: its weights give values that are not finite, after the token at \
                 position {pos}; the file is damaged: check its checksum and get it anew"
            );
            assert!(said.starts_with(&wanted), "{said}");
        }
    }
}
