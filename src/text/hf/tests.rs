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
    assert_eq!(t.close(), None);
    config["add_eos_token"] = json!(true);
    let think = Token(u32::try_from(n + 2).expect("small"));
    assert_eq!(tokenizer(&bytes(), Some(&config)).close(), Some(think));
    let mut closed = bytes();
    closed["post_processor"]["single"] = json!([{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<s>"}}]);
    let t = tokenizer(&closed, None);
    assert_eq!((t.close(), t.add_bos()), (Some(Token(u32::try_from(n).expect("small"))), false));
    config["add_eos_token"] = json!(false);
    assert_eq!(tokenizer(&closed, Some(&config)).close(), None);
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
        ("post_processor", json!({"type": "BertProcessing"}), "cls and of sep"),
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

/// Each row: where a good file is changed, to what, and what is said of it.
#[test]
fn each_error_names_the_keys_that_lead_to_it() {
    let processor = |ids: Value| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {}}],
            "special_tokens": {"a": {"ids": ids}}})
    };
    let long = "x".repeat(10 << 20);
    for (at, value, wanted) in [
        ("", json!(7), "the whole is integer `7`, an object wanted"),
        ("/model", json!(long), "model is string \"xxx"),
        ("/model/type", json!(long), "model.type is \"xxx"),
        ("/model/type", json!(7), "model.type is integer `7`, a string wanted"),
        (
            "/model/vocab",
            json!("a"),
            "model.vocab is string \"a\", an object of pieces with their ids wanted",
        ),
        ("/model/vocab", json!({"a": 1, "b": 1}), "model.vocab: pieces \"a\" and \"b\" have id 1"),
        (
            "/model/vocab/ab",
            json!(-1),
            "model.vocab.ab is integer `-1`, a token's id, from 0 to 1048575, wanted",
        ),
        ("/model/vocab/▁", json!(1 << 20), "model.vocab[\"▁\"] is integer `1048576`, a token's id"),
        ("/model/vocab/a", json!("2"), "model.vocab.a is string \"2\", a token's id"),
        ("/model/merges", json!({}), "model.merges is map, a list of merges wanted"),
        (
            "/model/merges/1",
            json!("a b c"),
            "model.merges[1] is string \"a b c\", two pieces with a space between",
        ),
        ("/model/merges/1", json!("ab"), "model.merges[1] is string \"ab\", two pieces"),
        ("/model/merges/0", json!(["a", "b", "c"]), "model.merges[0]: invalid length 3, expected two pieces"),
        ("/model/merges/0", json!(7), "model.merges[0] is integer `7`, two pieces"),
        ("/model/merges/1/0", json!(null), "model.merges[1][0] is null, a piece wanted"),
        ("/model/fuse_unk", json!("yes"), "model.fuse_unk is string \"yes\", a boolean wanted"),
        ("/model/dropout", json!(0.1), "model.dropout is 0.1, which is not supported"),
        (
            "/model/unk_token",
            json!("y"),
            "model.unk_token is \"y\"; neither model.vocab nor added_tokens has it",
        ),
        ("/added_tokens", json!({}), "added_tokens is map, a sequence wanted"),
        ("/added_tokens/0", json!("<unk>"), "added_tokens[0] is string \"<unk>\", an object wanted"),
        ("/added_tokens/0/id", json!(null), "added_tokens[0].id is absent"),
        ("/added_tokens/0/id", json!(1 << 20), "added_tokens[0].id is integer `1048576`, a token's id"),
        ("/added_tokens/0/content", json!(7), "added_tokens[0].content is integer `7`, a string wanted"),
        ("/added_tokens/0/content", json!("x"), "added_tokens[0].content is \"x\", but token 0"),
        ("/added_tokens/0", json!({"id": 0}), "added_tokens[0]: missing field `content`"),
        ("/added_tokens/0/special", json!(1), "added_tokens[0].special is integer `1`, a boolean wanted"),
        ("/normalizer/normalizers/0", json!({"type": "NFKC"}), "normalizer.normalizers[0] is \"NFKC\""),
        ("/normalizer/normalizers", json!(1), "normalizer is \"Sequence\", which is not supported"),
        ("/decoder/decoders/2/type", json!("x".repeat(1000)), "decoder.decoders[2] is \"xxx"),
        (
            "/post_processor",
            processor(json!([3])),
            "post_processor has \"a\" as token 3, the vocabulary as 2",
        ),
        ("/post_processor", processor(json!([1, 2])), "post_processor is \"TemplateProcessing\""),
    ] {
        let mut file = spaces();
        (file["post_processor"], file["model"]["dropout"]) = (Value::Null, Value::Null);
        *file.pointer_mut(at).expect("a place") = value;
        let said = said(&file);
        let said = said.strip_prefix("tokenizer.json: ").expect("the file");
        assert!(said.starts_with(wanted) && said.len() < 600, "{at}: {said}, wanted: {wanted}");
    }
    for (config, wanted) in [
        (json!(null), "the whole is null, an object wanted"),
        (json!({"bos_token": 7}), "bos_token is integer `7`, a token's text, or an object with it"),
        (json!({"eos_token": {"x": "y"}, "z": 1}), "eos_token: missing field `content`"),
        (json!({"eos_token": {"content": [long]}}), "eos_token.content is sequence, a string wanted"),
        (json!({"eos_token": long}), "eos_token is \"xxx"),
        (json!({"add_bos_token": 1}), "add_bos_token is integer `1`, a boolean wanted"),
        (
            json!({"added_tokens_decoder": {"5": "x"}}),
            "added_tokens_decoder.5 is string \"x\", an object wanted",
        ),
    ] {
        let said = read(&spaces(), Some(&config)).expect_err("must fail").to_string();
        let said = said.strip_prefix("tokenizer_config.json: ").expect("the file");
        assert!(said.starts_with(wanted) && said.len() < 600, "{said}, wanted: {wanted}");
    }
    let said = Source::from_tokenizer_json(br#"{"model": {"merges": [["a", "b"], ["c" 3]]}}"#, None);
    let said = said.expect_err("must fail").to_string();
    assert!(said.contains("model.merges[1][0]: expected `,` or `]` at line 1 column 40"), "{said}");
}

#[test]
fn two_tokens_of_one_text_are_told_by_their_ids() {
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
