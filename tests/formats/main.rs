//! Model files: what a directory becomes against GGUF's converter, models in several files, and bad files.
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

#[path = "../support/mod.rs"]
mod support;

mod classes;
mod fuzzed;
mod hostile;
mod packed;
mod peak;
mod translation;
