//! [`targets::gguf_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::gguf_file(data));
