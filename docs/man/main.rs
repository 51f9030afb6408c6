//! `cargo run --example pages -- DIR` writes the manual pages and shell completions into a folder.

mod pages;

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let usage = || std::io::Error::other("usage: pages DIR");
    pages::write(&dir.ok_or_else(usage)?)
}
