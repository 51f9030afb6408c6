//! [`targets::doors::bus`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::doors::bus(data));
