//! [`targets::onnx_graph`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::onnx_graph(data));
