//! What the reader takes and what it refuses; whole files are compared in `tests/tokenizers.rs`.

use serde_json::{Value, json};

use super::super::bpe::tests::pieces;
use super::*;
use crate::text::{Special, Tokenizer};

/// A byte-level file with the letters, three merges and four added tokens.
fn bytes() -> Value {
    let merges = ["h i", "Ġ hi", "c a"];
    let table = pieces(&merges, &[]);
    let text = |piece: &[u8]| String::from_utf8(piece.to_vec()).expect("UTF-8");
    let vocab: serde_json::Map<String, Value> =
        table.iter().zip(0..).map(|(piece, id): (_, u32)| (text(piece), json!(id))).collect();
    let n = vocab.len();
    json!({
        "version": "1.0",
        "truncation": {"max_length": 512},
        "padding": null,
        "added_tokens": [
            {"id": n, "content": "<s>", "special": true, "normalized": false, "lstrip": false, "rstrip": false,
             "single_word": false},
            {"id": n + 1, "content": "<|im_end|>", "special": false},
            {"id": n + 2, "content": "<think>", "special": false},
            {"id": n + 5, "content": "<|r|>", "special": true, "rstrip": true},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [n], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": vocab, "merges": merges},
    })
}

/// A file of the SentencePiece kind.
fn spaces() -> Value {
    json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "ab": 4, "▁ab": 5, "<0xC3>": 6, "<0xA9>": 7},
            "merges": [["a", "b"], ["▁", "ab"]]},
    })
}

fn read(file: &Value, config: Option<&Value>) -> Result<Source, TextError> {
    let config = config.map(|c| TokenizerConfig::parse(c.to_string().as_bytes())).transpose()?;
    Source::from_tokenizer_json(file.to_string().as_bytes(), config.as_ref())
}

fn tokenizer(file: &Value, config: Option<&Value>) -> Tokenizer {
    Tokenizer::new(read(file, config).expect("reads")).expect("a tokenizer")
}

fn ids(t: &Tokenizer, text: &str, special: Special) -> Vec<u32> {
    let mut out = Vec::new();
    t.encode(text, special, &mut out);
    out.iter().map(|t| t.0).collect()
}

fn said(file: &Value) -> String {
    read(file, None).expect_err("must fail").to_string()
}

#[test]
fn a_byte_level_file_is_followed() {
    let t = tokenizer(&bytes(), None);
    let n = u32::try_from(pieces(&["h i", "Ġ hi", "c a"], &[]).len()).expect("small");
    assert_eq!(t.n_vocab(), n as usize + 6, "ids 3 and 4 behind the vocabulary are unused");
    assert_eq!((t.add_bos(), t.bos()), (true, Some(Token(n))));
    assert_eq!(ids(&t, "hi hi", Special::AsText), [n - 3, n - 2]);
    assert_eq!(ids(&t, "é", Special::AsText), ids(&t, "e\u{301}", Special::AsText), "NFC");
    // User-defined in any text; control tokens only where they are parsed, and what ends a turn is one.
    assert_eq!(ids(&t, "<think>hi", Special::AsText), [n + 2, n - 3]);
    for text in ["<s>", "<|im_end|>", "<|r|>"] {
        let (as_text, parsed) = (ids(&t, text, Special::AsText), ids(&t, text, Special::Parse));
        assert!(parsed.len() == 1 && t.is_special(Token(parsed[0])), "{text}");
        assert!(as_text.iter().all(|&id| !t.is_special(Token(id))), "{text}");
    }
    assert!(t.is_end(Token(n + 1)));
    assert_eq!(ids(&t, "<|r|> \n hi", Special::Parse), [n + 5, n - 3], "white space goes with it");
}

#[test]
fn a_file_with_spaces_is_followed() {
    let t = tokenizer(&spaces(), None);
    assert_eq!(ids(&t, "ab ab", Special::AsText), [5, 5]);
    assert_eq!(ids(&t, "é漢字", Special::AsText), [1, 6, 7, 0]);
    assert_eq!(t.decode(&[Token(5), Token(6), Token(7)]), "abé".as_bytes());
    let mut file = spaces();
    file["normalizer"] = Value::Null;
    let scheme =
        |scheme| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    for (name, wanted) in [("first", [5, 0, 4]), ("always", [5, 0, 5]), ("never", [4, 0, 4])] {
        file["pre_tokenizer"] = scheme(name);
        assert_eq!(ids(&tokenizer(&file, None), "ab<unk>ab", Special::Parse), wanted, "{name}");
    }
    file["pre_tokenizer"] = scheme("sometimes");
    assert!(said(&file).contains("prepend_scheme"));
}

#[test]
fn the_config_names_tokens() {
    let mut config = json!({
        "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "<think>", "add_bos_token": false,
    });
    let t = tokenizer(&bytes(), Some(&config));
    assert!(!t.add_bos() && t.bos().is_some());
    let n = t.n_vocab() - 6;
    assert!(t.is_end(Token(u32::try_from(n + 2).expect("small"))));
    let parse = |c: &Value| TokenizerConfig::parse(c.to_string().as_bytes());
    config["eos_token"] = json!("nowhere");
    let error = read(&bytes(), Some(&config)).expect_err("must fail").to_string();
    assert!(error.contains("eos_token") && error.contains("nowhere"), "{error}");
    config["eos_token"] = json!(7);
    assert!(parse(&config).is_err());
    let other = json!({"bos_token": "<think>"});
    assert!(read(&bytes(), Some(&other)).is_err(), "a text begins with another token than bos");
}

#[test]
fn what_is_not_in_the_list_is_refused_by_name() {
    let cases = [
        ("normalizer", json!({"type": "NFKC"}), "NFKC"),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}), " +"),
        ("normalizer", json!({"type": "Sequence"}), "Sequence"),
        ("normalizer", json!([1]), "[1]"),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"}), "BertPreTokenizer"),
        ("pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated"}), "a+"),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Removed"}),
            "Isolated",
        ),
        ("pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": true}), "add_prefix_space"),
        ("pre_tokenizer", Value::Null, "Metaspace"),
        ("decoder", json!({"type": "WordPiece"}), "WordPiece"),
        ("post_processor", json!({"type": "BertProcessing"}), "BertProcessing"),
        ("post_processor", json!({"type": "TemplateProcessing", "single": []}), "text in them"),
    ];
    for (part, value, wanted) in cases {
        let mut file = bytes();
        file[part] = value;
        let said = said(&file);
        assert!(said.contains(wanted) && said.starts_with("tokenizer.json: "), "{said}");
    }
    for (key, value, wanted) in [
        ("type", json!("Unigram"), "Unigram"),
        ("dropout", json!(0.1), "dropout"),
        ("continuing_subword_prefix", json!("##"), "continuing_subword_prefix"),
        ("end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
        ("unk_token", json!("nowhere"), "nowhere"),
    ] {
        let mut file = bytes();
        file["model"][key] = value;
        let said = said(&file);
        assert!(said.contains(wanted), "{said}");
    }
    let mut file = bytes();
    file["model"] = json!({"type": "Unigram", "vocab": [["a", -1.0]]});
    assert!(said(&file).contains("Unigram"));
}

#[test]
fn contradictions_and_damage_are_told_with_numbers() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = spaces();
        change(&mut file);
        said(&file)
    };
    let model = |key: &'static str, value: Value| with(&move |file| file["model"][key] = value.clone());
    assert!(model("vocab", json!({"a": 1, "b": 1})).contains("\"b\""));
    assert!(model("vocab", json!({"a": 1_048_576})).contains("1048576"));
    assert!(model("vocab", json!({"a": -1})).contains("-1"));
    assert!(
        with(&|file| (file["added_tokens"], file["model"]["vocab"]) = (json!([]), json!({})))
            .contains("<unk>")
    );
    assert!(model("vocab", json!("a")).contains("a vocabulary"));
    assert!(model("merges", json!(["a b c"])).contains("merge 0"));
    assert!(model("merges", json!(["a b", "ab"])).contains("merge 1"));
    assert!(model("merges", json!([["a", "b", "c"]])).contains("3 parts"));
    assert!(model("merges", json!([7])).contains("a merge"));
    let added = |added: Value| with(&move |file| file["added_tokens"] = json!([added]));
    assert!(added(json!({"id": 1, "content": "x"})).contains("token 1"));
    assert!(added(json!({"id": 1_048_576, "content": "x"})).contains("1048576"));
    assert!(added(json!({"content": "x"})).contains("id"));
    let processor = |ids: Value| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {}}],
            "special_tokens": {"a": {"ids": ids}}})
    };
    assert!(with(&|file| file["post_processor"] = processor(json!([3]))).contains("token 3"));
    assert!(with(&|file| file["post_processor"] = processor(json!([1, 2]))).contains("one id"));
    let twice = r#"{"model": {"vocab": {"a": 0, "a": 1}}, "normalizer":
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}"#;
    let source = Source::from_tokenizer_json(twice.as_bytes(), None).expect("reads");
    let error = Tokenizer::new(source).expect_err("two tokens of one text");
    assert_eq!(error, TextError::Twins { first: 0, later: 1 });
}

#[test]
fn no_part_of_a_file_brings_the_reader_down() {
    let whole = bytes().to_string().into_bytes();
    for end in (0..whole.len()).step_by(7) {
        assert!(Source::from_tokenizer_json(&whole[..end], None).is_err(), "{end}");
    }
    let deep = format!("{{\"normalizer\": {}", "[".repeat(1 << 20));
    assert!(Source::from_tokenizer_json(deep.as_bytes(), None).is_err());
    let nested = "[".repeat(50_000) + &"]".repeat(50_000);
    let nested = format!("{{\"normalizer\": {nested}, \"model\": {{\"vocab\": {{}}}}}}");
    assert!(Source::from_tokenizer_json(nested.as_bytes(), None).is_err());
    let long = format!("{{\"decoder\": [{}0], \"model\": {{\"vocab\": {{}}}}}}", "0,".repeat(1 << 20));
    assert!(
        Source::from_tokenizer_json(long.as_bytes(), None)
            .is_err_and(|e| e.to_string().contains("2097155 bytes"))
    );
    let text = "x".repeat(1 << 20);
    let said = said(&json!({"model": text}));
    assert!(said.len() < 600, "{} bytes", said.len());
    arbtest::arbtest(|u| {
        let mut file = whole.clone();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(file.len())?;
            file[at] = u.arbitrary()?;
        }
        if let Ok(t) = Source::from_tokenizer_json(&file, None).and_then(Tokenizer::new) {
            let _ids = ids(&t, "hi <|im_end|> é", Special::Parse);
        }
        Ok(())
    });
}
