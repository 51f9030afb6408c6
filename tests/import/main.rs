//! `sotto import`: what it writes computes what the graph did and is what other programs make of the same weights; and files
//! from anywhere do no harm.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that says what it measured, or stops")]

#[path = "../support/mod.rs"]
mod support;

mod command;
mod graphs;
mod hostile;
#[path = "../formats/peak.rs"]
mod peak;
mod peers;
mod proto;
mod same;

use std::path::Path;
use std::sync::Arc;

use sotto::format::{self, Checkpoint};
use sotto::model::{Import, ImportError, Plan};
use sotto::quant::{Quant, unpack_row};
use support::golden::pool;

/// Imports a model to `to`; what the file does not say of its vocabulary.
fn import(model: &Path, quant: Quant, to: &Path) -> Result<Vec<String>, String> {
    let source = format::open_weights(model).map_err(|e| e.to_string())?;
    write(Plan::new(Arc::new(source), quant), to)
}

fn write(plan: Result<Plan, ImportError>, to: &Path) -> Result<Vec<String>, String> {
    let plan = plan.map_err(|e| e.to_string())?;
    let (lost, n_bytes) = (plan.lost.clone(), plan.n_bytes());
    let mut import = Import::new(plan, to).map_err(|e| e.to_string())?;
    let pool = pool(2);
    // A little at a time.
    while import.work(&pool, 10_000).map_err(|e| e.to_string())? {}
    assert_eq!(import.progress(), (n_bytes, n_bytes));
    assert_eq!(std::fs::metadata(to).unwrap().len(), n_bytes);
    Ok(lost)
}

/// The weights of a tensor as floats, row after row.
fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let info = file.tensor(name).unwrap_or_else(|| panic!("{}: {name} is absent", file.file()));
    let mut out = vec![0.0; info.n_rows * info.n_cols];
    let bytes = file.bytes(info);
    for (row, out) in bytes.chunks_exact(bytes.len() / info.n_rows).zip(out.chunks_exact_mut(info.n_cols)) {
        unpack_row(info.quant, row, out);
    }
    out
}

/// The names of the tensors, sorted.
fn names(file: &Checkpoint) -> Vec<String> {
    let mut names: Vec<_> = file.tensors().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    names
}
