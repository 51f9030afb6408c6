//! One GGUF file, and the same bytes as one of two of a set.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sotto::format::{gguf, join};

fuzz_target!(|data: &[u8]| {
    if let Ok(checkpoint) = gguf::parse("f", Arc::new(data.to_vec())) {
        shared::use_all(&checkpoint);
    }
    // A second file begins where the second magic stands.
    let second = data.windows(4).skip(4).position(|w| w == b"GGUF").map_or(data.len(), |at| at + 4);
    let parse = |bytes: &[u8]| gguf::parse("f", Arc::new(bytes.to_vec()));
    if let (Ok(a), Ok(b)) = (parse(&data[..second]), parse(&data[second..]))
        && let Ok(checkpoint) = join(vec![a, b])
    {
        shared::use_all(&checkpoint);
    }
});
