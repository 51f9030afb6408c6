//! What a model file holds.

use std::path::Path;

use clap::Args;
use serde_json::json;

use super::show::{self, Show, Step, Table, count, size};
use super::{Failure, backend};
use crate::format;
use crate::format::hf::onnx::{self, GraphDir};
use crate::model::KvType;
use crate::model::summary::Summary;
use crate::model::vocab;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A model file or the name of an installed model; without it the model in the box
    model: Option<String>,
    /// Positions to count the memory for
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    context: u32,
    /// Read all of a packed file, and compare it with its checksums
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the summary of a model; nothing but its header is read, unless it is to be verified.
pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let file = backend::model_file(args.model.as_deref())?;
    if let Some((dir, graph)) = onnx::find(&file.path).filter(|_| !args.verify) {
        return of_graph(&onnx::open(&dir, &graph).map_err(Failure::usage)?, args.json);
    }
    if args.verify {
        verify(&file.path)?;
    }
    let summary = Summary::open(&file.path).map_err(Failure::usage)?;
    let n_ctx = args.context as usize;
    let n_ctx = summary.hyper.as_ref().map_or(n_ctx, |h| n_ctx.min(h.n_ctx_train));
    if args.json {
        show::json(&object(&summary, n_ctx))?;
    } else {
        describe(&summary, n_ctx).print()?;
    }
    match summary.runs {
        Ok(()) => Ok(()),
        Err(why) => Err(Failure::new(1, format!("sotto cannot run it: {why}"))),
    }
}

/// Prints what the files beside an ONNX graph say of it.
fn of_graph(dir: &GraphDir, json: bool) -> Result<(), Failure> {
    let tokenizer = vocab::of_graph(dir).map_err(Failure::usage)?;
    let pool = serde_json::to_value(dir.pool).unwrap_or_default();
    if json {
        return show::json(&json!({
            "file": dir.graph.display().to_string(),
            "file_bytes": dir.bytes,
            "architecture": dir.architecture,
            "generates": dir.generates,
            "pooling": if dir.generates { serde_json::Value::Null } else { pool },
            "unit_length": dir.unit,
            "n_ctx_train": dir.n_ctx,
            "n_vocab": tokenizer.n_vocab(),
            "chat_template": dir.chat_template.is_some(),
        }));
    }
    let mut table = Table::default();
    let mut line = |key: &str, value: &str| table.line(key, value);
    line("file", &format!("{}, {}", dir.graph.display(), size(dir.bytes)));
    line("architecture", &format!("{}, an ONNX graph that sotto-onnx runs", dir.architecture));
    match (dir.generates, pool.as_str(), dir.unit) {
        (true, ..) => line("makes", "text"),
        (false, pool, unit) => {
            let length = if unit { ", of length 1" } else { "" };
            let how = pool.unwrap_or_default();
            line(
                "makes",
                &format!("vectors of texts: {how} of their tokens, where the graph does not say{length}"),
            );
        }
    }
    line("context", &format!("{} tokens", dir.n_ctx));
    line("vocabulary", &format!("{} tokens", tokenizer.n_vocab()));
    table.print()
}

fn verify(path: &Path) -> Result<(), Failure> {
    let checkpoint = format::open(path).map_err(Failure::usage)?;
    if !checkpoint.has_checksums() {
        let message = "has no checksums; those of packed files can be verified (sotto pack)";
        return Err(Failure::usage(format!("{}: {message}", path.display())));
    }
    let mut show = Show::silent();
    let mut progress = |done, total| show.step(Step::Verifying, done, total);
    let verified = checkpoint.verify(&mut progress);
    show.finish();
    verified.map_err(|e| Failure::new(1, e))
}

fn describe(s: &Summary, n_ctx: usize) -> Table {
    let mut table = Table::default();
    let mut line = |key: &str, value: &str| table.line(key, value);
    line("file", &format!("{}, {}", s.path.display(), size(s.file_bytes)));
    for (key, value) in [("name", &s.name), ("license", &s.license)] {
        if let Some(value) = value {
            line(key, value);
        }
    }
    line("architecture", &s.architecture);
    line("weights", &count(s.parameters));
    let bytes: u64 = s.types.iter().map(|t| t.2).sum();
    for (name, n, n_bytes) in &s.types {
        let share = 100.0 * *n_bytes as f64 / bytes.max(1) as f64;
        line("", &format!("{name:<6}{n:>14} weights{:>12}{share:>8.1} %", size(*n_bytes)));
    }
    if let Some(h) = &s.hyper {
        line("layers", &format!("{} of width {}, feed-forward {}", h.n_layer, h.n_embd, h.n_ff));
        line("heads", &format!("{} of width {}, {} for keys and values", h.n_head, h.head_dim, h.n_head_kv));
        if h.n_expert > 0 {
            line("experts", &format!("{}, of which a token uses {}", h.n_expert, h.n_expert_used));
        }
        line("context", &format!("{} tokens", h.n_ctx_train));
    }
    let kind = s.tokenizer.as_ref().map(|(model, pre)| match pre {
        Some(pre) => format!("{model}, {pre}"),
        None => model.clone(),
    });
    line("vocabulary", &format!("{} tokens, {}", s.n_vocab, kind.as_deref().unwrap_or("no tokenizer")));
    if let Some(source) = &s.packed {
        line("packed", &format!("made of {source}"));
    }
    let chat = if s.chat { "template in the file" } else { "no template: texts are continued as they stand" };
    line("chat", chat);
    let mut key = "memory";
    for kv in KvType::ALL {
        let Some(m) = s.memory(n_ctx, kv) else { continue };
        let all = m.weights + m.kv + m.scratch;
        line(
            key,
            &format!(
                "{} at {n_ctx} positions: weights {}, {} cache {}, buffers {}",
                size(all),
                size(m.weights),
                kv.name(),
                size(m.kv),
                size(m.scratch)
            ),
        );
        key = "";
    }
    table
}

fn object(s: &Summary, n_ctx: usize) -> serde_json::Value {
    let types: Vec<_> = s
        .types
        .iter()
        .map(|(name, n, bytes)| json!({ "type": name, "parameters": n, "bytes": bytes }))
        .collect();
    let sizes = s.hyper.as_ref().map(|h| {
        json!({
            "n_layer": h.n_layer,
            "n_embd": h.n_embd,
            "n_ff": h.n_ff,
            "n_head": h.n_head,
            "n_head_kv": h.n_head_kv,
            "head_dim": h.head_dim,
            "n_expert": h.n_expert,
            "n_expert_used": h.n_expert_used,
            "n_ctx_train": h.n_ctx_train,
        })
    });
    let memory = KvType::ALL.into_iter().filter_map(|kv| {
        let m = s.memory(n_ctx, kv)?;
        Some(json!({
            "n_ctx": n_ctx,
            "kv_type": kv.name(),
            "weights_bytes": m.weights,
            "kv_bytes": m.kv,
            "scratch_bytes": m.scratch,
            "total_bytes": m.weights + m.kv + m.scratch,
        }))
    });
    json!({
        "file": s.path.display().to_string(),
        "file_bytes": s.file_bytes,
        "name": s.name,
        "license": s.license,
        "architecture": s.architecture,
        "parameters": s.parameters,
        "types": types,
        "sizes": sizes,
        "packed": s.packed.is_some(),
        "n_vocab": s.n_vocab,
        "tokenizer": s.tokenizer.as_ref().map(|(model, pre)| json!({ "model": model, "pre": pre })),
        "chat_template": s.chat,
        "memory": memory.collect::<Vec<_>>(),
        "runs": s.runs.is_ok(),
        "why_not": s.runs.as_ref().err(),
    })
}
