//! What stands on the callers' side: a mock to test them with, the commands that look at a daemon, the examples, manual
//! pages and completions.
#![cfg(all(feature = "dbus", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skips, also in its helpers"
)]

mod examples;
mod mock;
#[path = "../../docs/man/pages.rs"]
mod pages;
mod read;
mod screens;
#[path = "../support/mod.rs"]
mod support;
mod whole_interface;
