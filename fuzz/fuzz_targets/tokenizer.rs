//! A text, a NUL, and a vocabulary, which encodes the text and decodes it: a GGUF file, a `tokenizer.json` (with a NUL
//! and a `tokenizer_config.json` behind it), or a `tokenizer.model`.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sotto::format::gguf;
use sotto::model::vocab;
use sotto::text::{Source, Special, Tokenizer, TokenizerConfig};

fn source(file: &[u8]) -> Option<Source> {
    if file.starts_with(b"GGUF") {
        let checkpoint = gguf::parse("f", Arc::new(file.to_vec())).ok()?;
        return vocab::source(&checkpoint).ok()?;
    }
    if !file.starts_with(b"{") {
        return Source::from_sentencepiece(file, None).ok();
    }
    let (json, config) = shared::pieces(file);
    let config = TokenizerConfig::parse(config).ok();
    Source::from_tokenizer_json(json, config.as_ref()).ok()
}

fuzz_target!(|data: &[u8]| {
    let (text, file) = shared::pieces(data);
    let Some(Ok(tokenizer)) = source(file).map(Tokenizer::new) else { return };
    let text = String::from_utf8_lossy(text);
    for special in [Special::AsText, Special::Parse] {
        let mut tokens = Vec::new();
        tokenizer.encode(&text, special, &mut tokens);
        let n = tokenizer.n_vocab();
        for token in &tokens {
            assert!((token.0 as usize) < n, "token {} of {n}", token.0);
            let _ = (tokenizer.is_end(*token), tokenizer.is_special(*token));
        }
        let _ = (tokenizer.decode(&tokens, false), tokenizer.decode(&tokens, true));
    }
});
