//! A text, a NUL, and a GGUF file: its metadata becomes a tokenizer, which encodes the text and decodes it.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sotto::format::gguf;
use sotto::model::vocab;
use sotto::text::{Special, Tokenizer};

fuzz_target!(|data: &[u8]| {
    let (text, file) = shared::pieces(data);
    let Ok(checkpoint) = gguf::parse("f", Arc::new(file.to_vec())) else { return };
    let Ok(Some(source)) = vocab::source(&checkpoint) else { return };
    let Ok(tokenizer) = Tokenizer::new(source) else { return };
    let text = String::from_utf8_lossy(text);
    for special in [Special::AsText, Special::Parse] {
        let mut tokens = Vec::new();
        tokenizer.encode(&text, special, &mut tokens);
        let n = tokenizer.n_vocab();
        for token in &tokens {
            assert!((token.0 as usize) < n, "token {} of {n}", token.0);
            let _ = (tokenizer.is_end(*token), tokenizer.is_special(*token));
        }
        let _ = tokenizer.decode(&tokens);
    }
});
