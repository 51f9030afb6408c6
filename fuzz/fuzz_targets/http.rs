//! [`targets::doors::http`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::doors::http(data));
