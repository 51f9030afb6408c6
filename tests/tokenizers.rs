//! Tokens and rendered templates against results that others made: llama.cpp for the vocabularies of GGUF files, the
//! PyPI packages tokenizers and sentencepiece for those of model folders.
//!
//! `SOTTO_VOCABS` names a folder of vocabulary files with their results, `SOTTO_TOKENIZERS` one of folders with a
//! `tokenizer.json`, `SOTTO_FIXTURES` one of models; without them the sets beside the repository, in `shared/fixtures/`,
//! are used, and the small one in `tests/fixtures/tokenizers`. What is absent is said; a folder that was named must have something to run.

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
use std::time::{Duration, Instant};

use serde_json::Value;
use sotto::base::Token;
use sotto::format::gguf;
use sotto::format::pack::Image;
use sotto::model::vocab;
use sotto::os::map::Map;
use sotto::text::{
    Chat, Json, Moment, Pre, Source, Special, TemplateInput, TextError, Tokenizer, TokenizerConfig, VocabKind,
};

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
        // The same from a packed file, whose pieces and tables are used in place.
        let tables = vocab::tables(&gguf);
        assert!(!tables.is_empty(), "{name}");
        let mut image = Image::new(&gguf, "", &tables, &[]).unwrap();
        let packed = gguf::parse(name, Arc::new(image.header(&[]).to_vec())).unwrap();
        let in_place = Tokenizer::new(vocab::source(&packed).unwrap().unwrap()).unwrap();
        n_files += 1;
        let spells_bytes = gguf.str("tokenizer.ggml.model").unwrap() == Some("gpt2");
        let missing = missing(&tokenizer);
        let mut check = |text: &str, special: Special, wanted: Vec<u32>| {
            let found = ids(&tokenizer, text, special);
            if special == Special::AsText {
                // SentencePiece writes spaces so, and cannot tell the two.
                let kept = if spells_bytes { text.into() } else { text.replace('\u{2581}', " ") };
                let kept = kept.bytes().filter(|&byte| !missing[usize::from(byte)]).collect();
                let back: Vec<u8> = tokenizer.decode(&tokens(&found));
                tally.compare(|| format!("{name} {text:?} comes back"), back, kept);
                let forged = found.iter().any(|&id| tokenizer.is_special(Token(id)));
                tally.compare(|| format!("{name} {text:?} becomes a control token"), forged, false);
            }
            tally.compare(|| format!("{name} packed {text:?}"), ids(&in_place, text, special), found.clone());
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

/// The tokenizer of a model folder.
fn of_folder(dir: &Path) -> Tokenizer {
    let config = fs::read(dir.join("tokenizer_config.json")).ok();
    let config = config.map(|bytes| TokenizerConfig::parse(&bytes).unwrap());
    let model = dir.join("tokenizer.model");
    let source = if model.is_file() {
        Source::from_sentencepiece(&fs::read(model).unwrap(), config.as_ref())
    } else {
        Source::from_tokenizer_json(&unpacked(&dir.join("tokenizer.json")), config.as_ref())
    };
    Tokenizer::new(source.unwrap_or_else(|e| panic!("{}: {e}", dir.display()))).unwrap()
}

#[test]
fn tokens_of_model_folders_are_those_of_their_makers() {
    let (mut tally, mut n_folders) = (Tally::default(), 0);
    let given = fixtures("SOTTO_TOKENIZERS", "tokenizers");
    if let Some(dir) = &given {
        assert!(entries(dir).iter().any(|dir| dir.is_dir()), "{}: no folder with a tokenizer", dir.display());
    }
    for dir in given.iter().chain([&small()]).flat_map(|dir| entries(dir)) {
        let (name, expected) = (dir.file_name().unwrap().display().to_string(), dir.join("expected.json"));
        if !dir.is_dir() {
            continue;
        }
        let tokenizer = of_folder(&dir);
        n_folders += 1;
        for case in json(&expected)["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let bos = tokenizer.bos().filter(|_| tokenizer.add_bos() && case["add_special"] == true);
            let encoded = |special: Special| -> Vec<u32> {
                bos.iter().map(|t| t.0).chain(ids(&tokenizer, text, special)).collect()
            };
            let found = encoded(Special::Parse);
            tally.compare(|| format!("{name} {text:?}"), found.clone(), numbers(&case["ids"]));
            let as_text = encoded(Special::AsText);
            let forged = as_text[bos.iter().count()..].iter().any(|&id| tokenizer.is_special(Token(id)));
            tally.compare(|| format!("{name} {text:?} becomes a control token"), forged, false);
            let wanted = numbers(case.get("ids_special_as_text").unwrap_or(&case["ids"]));
            tally.compare(|| format!("{name} {text:?} as text"), as_text, wanted);
            let found = tokens(&found);
            for (back, key) in [
                (tokenizer.decode_with_control(&found), "decoded"),
                (tokenizer.decode(&found), "decoded_skip_special"),
            ] {
                let wanted = case[key].as_str().unwrap();
                tally.compare(
                    || format!("{name} {text:?} {key}"),
                    String::from_utf8_lossy(&back).as_ref(),
                    wanted,
                );
            }
        }
    }
    println!("{n_folders} folders");
    tally.finish(if given.is_some() { 2000 } else { 1200 });
}

/// The pre-tokenizer that a component of a `tokenizer.json` stands for.
fn pre_of(component: &Value) -> Pre {
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let both = serde_json::json!({"type": "Sequence", "pretokenizers": [component, bytes]});
    let file = serde_json::json!({"pre_tokenizer": both, "model": {"vocab": {"a": 0}}}).to_string();
    match Source::from_tokenizer_json(file.as_bytes(), None).map(|source| source.model) {
        Ok(VocabKind::Bytes { pre, .. }) => pre,
        other => panic!("{component}: {other:?}"),
    }
}

#[test]
fn words_are_those_that_the_expressions_find() {
    let file = json(&small().join("words.json"));
    let texts = file["texts"].as_array().unwrap();
    let of_gguf = file["gguf"].as_object().unwrap().iter();
    let of_gguf = of_gguf.map(|(name, rows)| (name.clone(), Pre::named(Some(name)).unwrap(), rows));
    let of_json = file["tokenizer_json"].as_array().unwrap().iter();
    let of_json = of_json
        .map(|part| (part["pre_tokenizer"].to_string(), pre_of(&part["pre_tokenizer"]), &part["words"]));
    let mut tally = Tally::default();
    for (name, pre, rows) in of_gguf.chain(of_json) {
        for (text, row) in texts.iter().zip(rows.as_array().unwrap()) {
            let (text, mut found) = (text.as_str().unwrap(), Vec::new());
            if !text.is_empty() {
                pre.words(text, |word| found.push(word.len().to_string()));
            }
            tally.compare(|| format!("{name} {text:?}"), found.join(" ").as_str(), row.as_str().unwrap());
        }
    }
    tally.finish(2000);
}

/// The GGUF file and the folder of one model have the same vocabulary, so every text has the same tokens.
#[test]
fn folders_and_gguf_files_of_one_model_agree() {
    let Some(dir) = fixtures("SOTTO_FIXTURES", "models") else { return };
    let texts: Vec<String> = json(&small().join("words.json"))["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect();
    let mut tally = Tally::default();
    let stories = dir.join("../../models/stories260k");
    let models = entries(&dir).into_iter().map(|dir| (dir.join("model.gguf"), dir.join("hf")));
    let stories = (stories.join("stories260K-f32.gguf"), stories.join("hf"));
    for (file, folder) in models.chain([stories]).filter(|(_, folder)| folder.is_dir()) {
        let tokenizer = of_folder(&folder);
        if !file.is_file() {
            continue;
        }
        let name = file.display().to_string();
        let gguf = gguf::parse(&name, Arc::new(fs::read(&file).unwrap())).unwrap();
        let other = Tokenizer::new(vocab::source(&gguf).unwrap().unwrap()).unwrap();
        tally.compare(
            || format!("{name} bos"),
            (tokenizer.add_bos(), tokenizer.bos()),
            (other.add_bos(), other.bos()),
        );
        for text in &texts {
            for special in [Special::AsText, Special::Parse] {
                let (a, b) = (ids(&tokenizer, text, special), ids(&other, text, special));
                tally.compare(|| format!("{name} {text:?}"), a, b);
            }
        }
    }
    if tally.n == 0 {
        println!("skipped: folders against GGUF files; {} has no models with both", dir.display());
    }
    tally.finish(0);
}

/// A mebibyte of `unit`.
fn run(unit: &str) -> String {
    unit.repeat((1 << 20) / unit.len())
}

/// The longest text that is taken, of one kind of character, costs seconds at most: nothing is quadratic. A pass of
/// this length takes well under a second; a quadratic one would take hours.
#[test]
fn long_runs_take_time_in_proportion() {
    let bound = Duration::from_secs(30);
    let mut slowest = (Duration::ZERO, String::new());
    let mut timed = |what: String, work: &dyn Fn()| {
        let start = Instant::now();
        work();
        let took = start.elapsed();
        assert!(took < bound, "{what} took {took:?}, {bound:?} are allowed");
        if took > slowest.0 {
            slowest = (took, what);
        }
    };
    // Hard for what looks ahead or goes back.
    let ends = ["a", "A", " ", "\n ", "1", "'", "漢A", "\u{301}", "\u{200d}", "!a", "\u{3000}!"];
    for unit in ends {
        let text = run(unit) + "x";
        // One name for each pattern.
        for name in json(&small().join("words.json"))["gguf"].as_object().unwrap().keys() {
            let pre = Pre::named(Some(name)).unwrap();
            timed(format!("{name} {unit:?}"), &|| pre.words(&text, |_| {}));
        }
    }
    // Hard for what merges or looks for special tokens: one word each.
    for dir in entries(&small()).into_iter().filter(|dir| dir.is_dir()) {
        let (tokenizer, name) = (of_folder(&dir), dir.file_name().unwrap().display());
        for unit in ["a", " ", "\n", "🙂", "\u{2581}", "<|bos|", "<|bos|>"] {
            let text = run(unit);
            timed(format!("{name} {unit:?}"), &|| {
                tokenizer.encode(&text, Special::Parse, &mut Vec::new());
            });
            timed(format!("{name} {unit:?} in a chat"), &|| {
                let chat = Chat {
                    messages: vec![Json::message("user", &text)],
                    variables: Vec::new(),
                    add_generation_prompt: true,
                    moment: Moment::from_unix(0),
                    must_read: Vec::new(),
                };
                let render = |_: &TemplateInput| Ok::<_, TextError>(text.clone());
                tokenizer.encode_chat(render, &chat).unwrap();
            });
        }
    }
    println!("slowest: {} in {:?}", slowest.1, slowest.0);
}

/// What a vocabulary costs: one file a run, so that nothing else is in memory.
///
/// ```sh
/// SOTTO_VOCAB=FILE cargo test --release --test tokenizers -- --ignored --nocapture what_a_vocabulary_costs
/// ```
///
/// FILE is a GGUF file or a `tokenizer.json`.
#[test]
#[ignore = "a measurement"]
fn what_a_vocabulary_costs() {
    // Processor time, which a busy machine does not change much.
    let clock = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
    };
    let kib = |key: &str| -> i64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let path = PathBuf::from(std::env::var_os("SOTTO_VOCAB").expect("SOTTO_VOCAB names a file"));
    let load = || {
        let map = Arc::new(Map::open(&path).unwrap());
        let source = if path.extension().is_some_and(|e| e == "json") {
            Source::from_tokenizer_json((*map).as_ref(), None).unwrap()
        } else {
            let gguf = gguf::parse("a file", map).unwrap();
            vocab::source(&gguf).unwrap().unwrap()
        };
        Tokenizer::new(source).unwrap()
    };
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    let (anon, file) = (kib("RssAnon"), kib("RssFile"));
    let start = clock();
    let tokenizer = load();
    let first = clock() - start;
    let (anon, file) = (kib("RssAnon") - anon, kib("RssFile") - file);
    println!(
        "{} tokens: {anon} KiB anonymous, {file} KiB of the file, peak {} KiB",
        tokenizer.n_vocab(),
        kib("VmHWM")
    );
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let start = clock();
            drop(load());
            clock() - start
        })
        .collect();
    times.sort_unstable();
    let start = clock();
    let mut out = Vec::new();
    for _ in 0..20 {
        out.clear();
        tokenizer.encode(&text, Special::AsText, &mut out);
    }
    let took = (clock() - start) / 20;
    let speed = text.len() as f64 / took.as_secs_f64() / 1e6;
    println!("loads in {first:?}, then min {:?} median {:?}; {speed:.1} MB/s of prose", times[0], times[2]);
}
