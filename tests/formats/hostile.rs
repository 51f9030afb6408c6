//! Files from anywhere: each bad one gets an error that names the place and the numbers, never a panic, and no
//! allocation that its own size does not explain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbtest::arbtest;
use serde_json::{Value, json};
use sotto::base::SharedBytes;
use sotto::format::hf::{self, Shard, Texts};
use sotto::format::{self, FormatError, gguf};
use sotto::model::{Model, vocab};

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
    vocab::tokenizer(&checkpoint).map(drop).map_err(|e| e.to_string())
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

/// Each row: what is written over an entry of a good file, and what is said of it, in short whatever the file says.
#[test]
fn each_error_names_the_entry_of_the_file() {
    let folder = Folder::new();
    let dir = corpus().join("hf/good");
    std::fs::copy(dir.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let good: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let long = "\u{1b}[2J".repeat(1 << 19);
    let template = |list: Value| json!({ "chat_template": list });
    let rows = [
        ("config.json", json!({"hidden_size": "4"}), "hidden_size is \"4\", an integer wanted"),
        (
            "config.json",
            json!({"text_config": {"rms_norm_eps": []}}),
            "text_config.rms_norm_eps is a list of 0",
        ),
        (
            "config.json",
            json!({"layer_types": ["conv"], "rope_theta": "1e4"}),
            "rope_theta is \"1e4\", a number",
        ),
        (
            "config.json",
            json!({"rope_scaling": {"type": "linear", "factor": "2"}}),
            "rope_scaling.factor is \"2\"",
        ),
        (
            "config.json",
            json!({"rope_parameters": {"full_attention": {"rope_type": 1}}}),
            "rope_parameters.full_attention.rope_type is 1, a string wanted",
        ),
        (
            "config.json",
            json!({"architectures": 7}),
            "architectures is 7, a list with the name of a class wanted",
        ),
        ("config.json", json!({"architectures": [long]}), "architectures names \\u{1b}[2J"),
        ("config.json", json!({"hidden_act": long}), "hidden_act is \\u{1b}[2J"),
        ("config.json", json!({"rope_scaling": {"type": long}}), "rope_scaling.rope_type is \\u{1b}[2J"),
        (
            "config.json",
            json!({"eos_token_id": [1, "2"]}),
            "eos_token_id[1] is \"2\", the id of a token wanted",
        ),
        ("generation_config.json", json!([]), "the whole is a list of 0 values, an object wanted"),
        (
            "generation_config.json",
            json!({"eos_token_id": -1}),
            "eos_token_id is -1, the id of a token wanted",
        ),
        ("tokenizer_config.json", json!("x"), "the whole is string \"x\", an object wanted"),
        ("tokenizer_config.json", template(json!(7)), "chat_template is 7, a text, or a list of objects"),
        ("tokenizer_config.json", template(json!(["x"])), "chat_template[0] is \"x\", a text, or a list"),
        (
            "tokenizer_config.json",
            template(json!([{"name": "default", "template": 7}])),
            "chat_template[0].template is 7",
        ),
        (
            "model.safetensors.index.json",
            json!({"weight_map": {"a": [long]}}),
            "weight_map.a is sequence, a string",
        ),
        ("model.safetensors.index.json", json!({"weight_map": {"a": long}}), "names the file \"\\u{1b}[2J"),
    ];
    for (name, entries, wanted) in rows {
        let mut config = good.clone();
        let file = if name == "config.json" { &mut config } else { &mut entries.clone() };
        if name == "config.json" {
            file.as_object_mut().unwrap().extend(entries.as_object().unwrap().clone());
        }
        let file = file.to_string();
        folder.write("config.json", config.to_string());
        let weights = folder.join("model.safetensors");
        if name == "model.safetensors.index.json" {
            std::fs::remove_file(&weights).unwrap();
        }
        let path = folder.write(name, file);
        let said = verdict(&folder.join("config.json"));
        if name != "config.json" {
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::copy(dir.join("model.safetensors"), &weights).unwrap();
        assert!(said.contains(&format!("{name}: {wanted}")), "{said}, wanted: {name}: {wanted}");
        assert!(said.len() < 1_500 && !said.contains(char::is_control), "{} bytes: {said}", said.len());
    }
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
