//! Against the files that llama.cpp's converter and quantizer made of the same weights.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sotto::base::Token;
use sotto::format::{self, Array, Checkpoint, Value};
use sotto::model::{Model, Precision, vocab};
use sotto::quant::Quant;
use sotto::text::{Source, Special};

use crate::proto::{safetensors, small_files, weights_of};
use crate::support::golden::{Expected, Run, distance, pool, stored_rows};
use crate::support::{Folder, have, shared};
use crate::{floats, import, names};

fn models() -> Vec<PathBuf> {
    let Some(folder) = shared("fixtures/models") else {
        println!("skipped: directories against their GGUF; there is no full set of fixtures");
        return Vec::new();
    };
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|path| path.join("hf").is_dir());
    all.sort();
    all
}

fn plain(file: &Checkpoint, key: &str, value: &Value) -> String {
    match value {
        Value::Str(_) => file.str(key).unwrap().unwrap().to_owned(),
        Value::Array(Array::Strings(all)) => {
            format!("{:?}", all.iter().map(String::from_utf8_lossy).collect::<Vec<_>>())
        }
        Value::Array(_) => match (file.ints(key), file.bools(key), file.floats(key)) {
            (Ok(Some(all)), ..) => format!("{all:?}"),
            (_, Ok(Some(all)), _) => format!("{all:?}"),
            (.., Ok(Some(all))) => format!("{all:?}"),
            _ => panic!("{key}: an array of another kind"),
        },
        other => format!("{other:?}"),
    }
}

/// Keys in which the two may differ: names, what the converter leaves out or knows by itself, and ends of vocabularies.
const OWN: [&str; 7] = [
    "general.name",
    "general.file_type",
    "general.alignment",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_bos_token",
];

#[test]
fn directories_become_the_converters_files() {
    let mut n = 0;
    for path in models() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (folder, theirs) = (Folder::new(), path.join("model.gguf"));
        let to = folder.join("m.gguf");
        let lost = match import(&path.join("hf"), Quant::F32, &to) {
            Ok(lost) => lost,
            Err(e) => {
                let known = name == "qwen35" && e.contains("qwen35") && e.contains("delta net");
                assert!(known, "{name}: {e}");
                println!("{name}: refused");
                continue;
            }
        };
        let ours = format::open(&to).unwrap();
        assert!(vocab::tokenizer(&ours).is_ok(), "{name}");
        let model = Model::open(&to).unwrap();
        let expected = Expected::open(&path.join("expected.safetensors"));
        let pool = pool(2);
        let rows = stored_rows(&mut Run::new(&model, &pool, Precision::F32, 64), &expected);
        let error = distance(&rows[1], &expected.floats("final_logits"));
        assert!(error <= 2e-5, "{name}: {error:.1e}");
        n += 1;
        let Ok(theirs) = format::open(&theirs) else { continue };
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for tensor in names(&ours) {
            let (a, b) = (floats(&ours, &tensor), floats(&theirs, &tensor));
            let (ia, ib) = (ours.tensor(&tensor).unwrap(), theirs.tensor(&tensor).unwrap());
            assert_eq!(ia.shape, ib.shape, "{name}: {tensor}");
            let close = |(a, b): (&f32, &f32)| match &*tensor {
                "rope_freqs.weight" => (a - b).abs() <= 2.5e-7 * b.abs(),
                _ => a.to_bits() == b.to_bits(),
            };
            assert!(a.iter().zip(&b).all(close), "{name}: {tensor}");
        }
        let keys = |file: &Checkpoint| -> BTreeMap<String, String> {
            file.metadata().map(|(key, value)| (key.to_owned(), plain(file, key, value))).collect()
        };
        let (ours, theirs) = (keys(&ours), keys(&theirs));
        let mut other = Vec::new();
        for (key, value) in &theirs {
            let more = key.starts_with("general.") && !ours.contains_key(key);
            if !more && !OWN.contains(&key.as_str()) && ours.get(key) != Some(value) {
                let short = |text: &str| text.chars().take(300).collect::<String>();
                other.push(format!(
                    "{key}: {}, not {}",
                    ours.get(key).map_or("absent".into(), |v| short(v)),
                    short(value)
                ));
            }
        }
        println!("{name}: {error:.1e}, {} keys; not said: {lost:?}; other: {other:#?}", ours.len());
        assert!(other.is_empty(), "{name}: {other:#?}");
    }
    assert!(n == 0 || n >= 18, "{n} directories");
}

#[test]
fn vocabularies_give_the_same_tokens() {
    let texts = [
        "Hello, world! It's 12345 o'clock.",
        "  two spaces\n\n\tand a tab  ",
        "caf\u{e9} \u{4e2d}\u{6587} \u{1f642} a\u{301}",
        "",
        " x",
    ];
    for path in models() {
        let folder = Folder::new();
        let to = folder.join("m.gguf");
        if import(&path.join("hf"), Quant::F16, &to).is_err() {
            continue;
        }
        let of = |path| vocab::tokenizer(&format::open(path).unwrap()).unwrap();
        let (ours, theirs) = (of(&to), of(&path.join("hf")));
        for text in texts {
            let [a, b]: [Vec<Token>; 2] = [&ours, &theirs].map(|tokenizer| {
                let mut tokens = Vec::new();
                tokenizer.encode(text, Special::Parse, &mut tokens);
                tokens
            });
            assert_eq!(a, b, "{}: {text:?}", path.display());
            assert_eq!(ours.decode(&a), theirs.decode(&b), "{}: {text:?}", path.display());
        }
        assert_eq!((ours.bos(), ours.add_bos()), (theirs.bos(), theirs.add_bos()), "{}", path.display());
        assert!(theirs.ends().iter().all(|end| ours.is_end(*end)), "{}", path.display());
    }
}

/// Vocabularies of real models, from their `tokenizer.json` alone, through a file: the tokens are those of their makers.
#[test]
fn real_vocabularies_keep_their_tokens() {
    let Some(folder) = shared("fixtures/tokenizers").filter(|_| have("xz", "real vocabularies")) else {
        println!("skipped: real vocabularies; there is no full set of fixtures");
        return;
    };
    for (name, model, lost) in [
        ("gpt2", "gpt2", ""),
        ("smollm2", "gpt2", ""),
        ("llama3", "gpt2", ""),
        (
            "qwen3",
            "gpt2",
            "that token 128247 is text, though spelt like the end of an answer, that text is put into Unicode's form C first",
        ),
        ("llama2", "llama", ""),
        ("gemma4", "gemma4", ""),
    ] {
        let (from, to) = (Folder::new(), Folder::new());
        let packed = folder.join(name).join("tokenizer.json.xz");
        let json = Command::new("xz").arg("-dc").arg(packed).stdin(Stdio::null()).output().unwrap().stdout;
        small_files(&from);
        std::fs::remove_file(from.join("tokenizer_config.json")).unwrap();
        from.write("tokenizer.json", &json);
        let source = Source::from_tokenizer_json(&json, None).unwrap();
        let n = source.pieces.len() as u64;
        let config = std::fs::read_to_string(from.join("config.json")).unwrap();
        // A few rows more, as models have them.
        from.write(
            "config.json",
            config.replace("\"vocab_size\": 290", &format!("\"vocab_size\": {}", n + 3)),
        );
        from.write("model.safetensors", safetensors(&weights_of(n + 3)));
        let path = to.join("m.gguf");
        let found = import(&from.join(""), Quant::Q8_0, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.join(", "), lost, "{name}");
        let file = format::open(&path).unwrap();
        assert_eq!(file.str("tokenizer.ggml.model").unwrap(), Some(model), "{name}");
        assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap().unwrap().len() as u64, n + 3, "{name}");
        let tokenizer = vocab::tokenizer(&file).unwrap();
        let expected = std::fs::read_to_string(folder.join(name).join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        let (mut n_same, mut other) = (0, Vec::new());
        for case in expected["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let bos = tokenizer.bos().filter(|_| tokenizer.add_bos() && case["add_special"] == true);
            let mut found: Vec<Token> = bos.into_iter().collect();
            tokenizer.encode(text, Special::Parse, &mut found);
            let found: Vec<u64> = found.iter().map(|t| t.0.into()).collect();
            let wanted: Vec<u64> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            match found == wanted {
                true => n_same += 1,
                false => other.push(text.to_owned()),
            }
        }
        println!("{name}: {n_same} texts have the same tokens, {other:?} others");
        // Those that form C changes, and what it has in common with ends.
        let most = if name == "qwen3" { 11 } else { 0 };
        assert!(n_same > 100 && other.len() <= most, "{name}: {n_same} the same, {other:?}");
    }
}

/// Weights that ggml quantized, from the floats that it had: the same bytes.
#[test]
fn blocks_are_those_that_ggml_makes() {
    let Some(folder) = shared("fixtures/quants") else {
        println!("skipped: blocks against ggml's; there is no full set of fixtures");
        return;
    };
    let own = Folder::new();
    let open = |name: &str| format::open(&folder.join(format!("{name}.gguf"))).unwrap();
    let theirs = [Quant::Q8_0, Quant::Q4_0].map(|quant| (quant, open(quant.name())));
    let exact = open("F16");
    for from in ["F16", "BF16"] {
        for asked in [Quant::Q8_0, Quant::Q4_0] {
            let to = own.join(&format!("{from}-{}.gguf", asked.name()));
            import(&folder.join(format!("{from}.gguf")), asked, &to).unwrap();
            let ours = format::open(&to).unwrap();
            for tensor in names(&ours) {
                let info = ours.tensor(&tensor).unwrap();
                let Some((_, theirs)) = theirs.iter().find(|(quant, _)| *quant == info.quant) else {
                    assert_eq!(info.quant, Quant::F32);
                    continue;
                };
                let same = ours.bytes(info) == theirs.bytes(theirs.tensor(&tensor).unwrap());
                assert!(same, "{from} as {}: {tensor}", asked.name());
                // As the table of the fixtures has it: 0.085 and 0.005.
                let error = distance(&floats(&ours, &tensor), &floats(&exact, &tensor));
                let wanted = if info.quant == Quant::Q8_0 { 0.0053 } else { 0.0847 };
                assert!((error / wanted - 1.0).abs() < 0.02, "{tensor}: {error}, {wanted} wanted");
            }
        }
    }
}
