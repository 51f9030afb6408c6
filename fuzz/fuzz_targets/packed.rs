//! [`targets::packed_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::packed_file(data));
