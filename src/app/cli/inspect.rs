//! What a model file holds.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::show::Show;
use super::{Failure, backend};
use crate::model::KvType;
use crate::model::summary::Summary;

/// Prints the summary of `file`.
pub(super) fn run(file: Option<PathBuf>, n_ctx: usize) -> Result<(), Failure> {
    let path = backend::file_or_box(file)?;
    let summary = Summary::open(&path).map_err(Failure::usage)?;
    let mut show = Show::new(true);
    let shown = show.text(&describe(&summary, n_ctx));
    show.finish();
    shown?;
    match summary.runs {
        Ok(()) => Ok(()),
        Err(why) => Err(Failure { code: 1, message: format!("sotto cannot run it: {why}") }),
    }
}

fn describe(s: &Summary, n_ctx: usize) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Metadata comes from outside: no control character reaches the terminal. Writing to a string cannot fail.
        let clean: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "{key:<14}{clean}");
    };
    line("file", format!("{}, {}", s.path.display(), bytes(s.file_bytes)));
    for (key, value) in [("name", &s.name), ("license", &s.license)] {
        if let Some(value) = value {
            line(key, value.clone());
        }
    }
    line("architecture", s.architecture.clone());
    line("weights", count(s.parameters));
    for (name, n, size) in &s.types {
        line("", format!("{name:<6}{:>12} weights{:>12}", n, bytes(*size)));
    }
    if let Some(h) = &s.hyper {
        line("layers", format!("{} of width {}, feed-forward {}", h.n_layer, h.n_embd, h.n_ff));
        line("heads", format!("{} of width {}, {} for keys and values", h.n_head, h.head_dim, h.n_head_kv));
        line("context", format!("{} tokens", h.n_ctx_train));
    }
    let kind = s.tokenizer.as_ref().map(|(model, pre)| match pre {
        Some(pre) => format!("{model}, {pre}"),
        None => model.clone(),
    });
    line("vocabulary", format!("{} tokens, {}", s.n_vocab, kind.as_deref().unwrap_or("no tokenizer")));
    line(
        "chat",
        if s.chat { "template in the file" } else { "no template: texts are continued as they stand" }.into(),
    );
    let n_ctx = s.hyper.as_ref().map_or(n_ctx, |h| n_ctx.min(h.n_ctx_train));
    if let Some(m) = s.memory(n_ctx, KvType::F16) {
        let all = m.weights + m.kv + m.scratch;
        line(
            "memory",
            format!(
                "{} at {n_ctx} positions: weights {} (mapped), cache {}, buffers {}",
                bytes(all),
                bytes(m.weights),
                bytes(m.kv),
                bytes(m.scratch)
            ),
        );
    }
    out
}

/// Bytes for a person, in powers of 1000.
fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// A count for a person.
fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n}"),
        1_000_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}
