//! `sotto-onnx`: runs one model that is an ONNX graph, by tract, for the program at the other end of standard input or of
//! the socket that systemd passed. A program of its own, so that neither the daemon nor the command line carries tract.
//!
//! A graph is input from outside: what is wrong with it is an error of this process at worst, which serves one model and
//! no other (`side::graph` tells how the two sides talk).

mod decoder;
mod encoder;
mod graph;
mod int8;
mod read;
mod serve;

use std::process::ExitCode;

use sotto::os::{process, socket, thread};

/// What is wrong with a graph, or with what is asked of it.
#[derive(Debug, thiserror::Error)]
enum OnnxError {
    /// It is no graph.
    #[error("the file is no ONNX graph, or is damaged: {what}; get it anew")]
    Damaged { what: String },
    /// It has something that is not known here.
    #[error("the graph {what}; export it anew, or by another exporter, or use another model")]
    Unsupported { what: String },
    /// tract cannot run it.
    #[error(
        "tract, which runs graphs, cannot run this one: {what}; export it anew, or by another exporter, or use another model"
    )]
    Run { what: String },
    /// It wants too much.
    #[error(
        "the graph wants {n} bytes of memory at once, more than it may have; give it shorter texts, or use a smaller model"
    )]
    Memory { n: String },
}

/// Most of tract's words that are passed on.
const SAID_CHARS_MAX: usize = 240;

impl OnnxError {
    /// By the words of tract, which tell the way there from the outside in.
    fn run(e: &tract_onnx::prelude::TractError) -> Self {
        let said = format!("{e:#}");
        if said.contains("Loop detected") {
            return Self::Damaged { what: "its nodes feed one another in a circle".into() };
        }
        Self::Run { what: short(&said) }
    }

    /// By what it stopped at.
    fn stopped(said: &str) -> Self {
        // The words of `alloc::Layout`.
        match said.split_once("allocate").and_then(|(_, rest)| rest.split_once("size: ")) {
            Some((_, n)) => Self::Memory { n: n.chars().take_while(char::is_ascii_digit).collect() },
            None => {
                let what = format!("its shapes or values do not fit together ({})", short(said));
                Self::Run { what }
            }
        }
    }
}

/// As much of it as a message takes.
fn short(said: &str) -> String {
    match said.char_indices().nth(SAID_CHARS_MAX) {
        Some((at, _)) => format!("{} …", &said[..at]),
        None => said.to_owned(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        #[expect(clippy::print_stderr, reason = "who started it by hand, or the journal, reads it")]
        Err(message) => {
            eprintln!("sotto-onnx: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    if std::env::args_os().nth(1).is_some() {
        let version = env!("CARGO_PKG_VERSION");
        return Err(format!("version {version}; it takes no arguments: sotto and sottod start it"));
    }
    // systemd ends its own.
    if std::env::var_os("LISTEN_FDS").is_none() {
        process::end_with_parent().map_err(|e| e.to_string())?;
    }
    let stream = socket::passed_stream()
        .map_err(|e| format!("{e}; sotto and sottod start this program for a model that is an ONNX graph"))?;
    // Others with graphs may run as the same user.
    process::forbid_dumps().map_err(|e| e.to_string())?;
    let watched = stream.try_clone().map_err(|e| e.to_string())?;
    // Nobody waits for what a graph is at any more: it may be at it for ever.
    let leave = move || socket::hung_up(&watched).is_ok().then(|| std::process::exit(0));
    thread::start("watch", leave).map_err(|e| e.to_string())?;
    serve::serve(stream).map_err(|e| e.to_string())
}
