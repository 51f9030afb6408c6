//! A model as a GGUF file of its own.

mod check;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use check::{Compared, Peer, Speed};

use super::Failure;
use super::output;
use super::show::{self, Show, Step, Table, count, size};
use crate::format::open_weights;
use crate::kernel::Pool;
use crate::model::import::TYPES;
use crate::model::{Import, Model, Plan, vocab};
use crate::os::cpus;
use crate::os::interrupt::Noticed;
use crate::os::tree::Tree;
use crate::quant::Quant;
use crate::side::graph::GraphError;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// A directory of Hugging Face, an ONNX graph of a decoder or the directory of one, or a GGUF file of floats
    model: PathBuf,
    /// The file to write [default: MODEL-TYPE.gguf beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The type of matrices (f32, f16, q8_0, q4_0)
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0", value_parser = quant)]
    quant: Quant,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// Threads that quantize [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
    /// Do not compare the file with the ONNX graph that it was made of
    #[arg(long)]
    no_check: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The value of `--type`.
fn quant(name: &str) -> Result<Quant, String> {
    let known = TYPES.into_iter().find(|quant| quant.name().eq_ignore_ascii_case(name));
    known.ok_or_else(|| "f32, f16, q8_0 and q4_0 are taken".into())
}

/// Where the file goes when nobody says it: beside the model, under its name.
fn beside(model: &Path, quant: Quant) -> PathBuf {
    // `.` and links have a name of their own.
    let model = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let stem = if model.is_dir() { model.file_name() } else { model.file_stem() };
    let stem = stem.unwrap_or_default().to_string_lossy();
    model.with_file_name(format!("{stem}-{}.gguf", quant.name().to_lowercase()))
}

/// Writes the file; under its name stands all of it, held to its graph, or nothing.
pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let path = args.output.clone().unwrap_or_else(|| beside(&args.model, args.quant));
    output::may_be_written(&path, args.force)?;
    let source = Arc::new(open_weights(&args.model).map_err(Failure::usage)?);
    let source_bytes = source.n_bytes();
    let plan = Plan::new(source.clone(), args.quant).map_err(Failure::usage)?;
    let (bytes, types, lost) = (plan.n_bytes(), plan.types(), plan.lost.clone());
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let n_threads = args.threads.map_or(cpus::n_threads(&Tree::default(), &[]), |n| n as usize);
    let pool = Pool::new(kernels, n_threads).map_err(Failure::internal)?;

    // From here on Ctrl-C takes the unfinished file away.
    let interrupted = Noticed::new();
    let mut show = Show::silent();
    show.stoppable = true;
    let write = |plan: Plan, path: &Path, show: &mut Show| -> Result<Unchecked, Failure> {
        let mut import = Import::new(plan, path).map_err(Failure::usage)?;
        output::write(path, Step::Writing, (&interrupted, show), &mut || {
            let more = import.work(&pool, output::SLICE).map_err(Failure::usage)?;
            Ok(more.then(|| import.progress()))
        })?;
        Ok(Unchecked(Some(path.to_owned())))
    };
    let ended = |failure: Failure| if interrupted.came() { output::stopped(&path) } else { failure };
    // That there is nothing to compare with is told, but is no failure.
    let (mut peer, mut unchecked) = match args.no_check {
        true => (None, None),
        false => match Peer::of(&args.model, check::window(&source), n_threads, &interrupted, &mut show)
            .map_err(ended)?
        {
            Some(Ok(peer)) => (Some(peer), None),
            Some(Err(e @ GraphError::NoHelper { .. })) => (None, Some(e.to_string())),
            Some(Err(e)) => {
                let what =
                    format!("{e}; with --no-check the file is written, and not compared with its graph");
                return Err(ended(Failure::new(1, what)));
            }
            None => (None, None),
        },
    };
    // Weights as floats first: quantized ones are away from the graph's by more than a wrong configuration may be.
    let mut floats = None;
    if let Some(peer) = peer.as_mut().filter(|_| args.quant != Quant::F32) {
        let beside = path.with_extension("floats.gguf");
        output::may_be_written(&beside, false)?;
        let plan = Plan::new(source.clone(), Quant::F32).map_err(Failure::usage)?;
        match write(plan, &beside, &mut show) {
            Ok(_goes) => {
                floats = Some(peer.hold(&beside, check::of_floats(&source), &mut show).map_err(ended)?);
            }
            Err(e) if interrupted.came() => return Err(e),
            Err(e) => {
                unchecked = Some(format!("weights as floats, before they were quantized: {}", e.message))
            }
        }
    }
    let written = write(plan, &path, &mut show)?;
    let model = Model::open(&path).map_err(Failure::internal)?;
    vocab::tokenizer(model.checkpoint()).map_err(Failure::internal)?;
    let checked = match &mut peer {
        Some(peer) => {
            let bound = match args.quant {
                Quant::F32 => check::of_floats(&source),
                quant => check::of_type(quant),
            };
            let found = peer.hold(&path, bound, &mut show).map_err(ended)?;
            Some((found, peer.speeds(&path, &mut show).map_err(ended)?))
        }
        None => None,
    };
    if interrupted.came() {
        return Err(output::stopped(&path));
    }
    written.keep();
    show.finish();
    if args.json {
        let types: Vec<_> = types
            .iter()
            .map(|(quant, n, bytes)| json!({"type": quant.name(), "tensors": n, "bytes": bytes}))
            .collect();
        return show::json(&json!({
            "file": path.display().to_string(),
            "file_bytes": bytes,
            "source": args.model.display().to_string(),
            "source_bytes": source_bytes,
            "architecture": model.architecture(),
            "parameters": model.parameters(),
            "types": types,
            "lost": lost,
            "checked": checked.as_ref().map(|(found, speeds)| object(floats.as_ref().unwrap_or(found), found, speeds)),
            "unchecked": unchecked,
        }));
    }
    let mut table = Table::default();
    table.line("file", &format!("{}, {}", path.display(), size(bytes)));
    table.line("made of", &format!("{}, {}", args.model.display(), size(source_bytes)));
    table.line("model", &format!("{}, {} weights", model.architecture(), count(model.parameters())));
    for (i, (quant, n, bytes)) in types.iter().enumerate() {
        let line =
            format!("{}: {n} {}, {}", quant.name(), if *n == 1 { "tensor" } else { "tensors" }, size(*bytes));
        table.line(if i == 0 { "types" } else { "" }, &line);
    }
    for (i, what) in lost.iter().enumerate() {
        table.line(if i == 0 { "not said" } else { "" }, what);
    }
    if let Some((found, [graph, file])) = &checked {
        let said = |Compared { distance, n, n_same }: &Compared| {
            format!("logits {distance:.1e} from the graph's, the likeliest is the same in {n_same} of {n}")
        };
        if let Some(floats) = &floats {
            table.line("as floats", &said(floats));
        }
        table.line("as written", &said(found));
        for (key, what, speed) in [("speed", "graph", graph), ("", "file", file)] {
            let Speed { prefill, decode } = speed;
            let what =
                format!("{what}: {prefill:.0} tokens/s read, {decode:.1} written, {n_threads} threads");
            table.line(key, &what);
        }
    }
    if let Some(why) = unchecked {
        table.line("not checked", &why);
    }
    table.print()
}

/// A file that goes again unless it is kept.
struct Unchecked(Option<PathBuf>);

impl Unchecked {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unchecked {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that cannot be taken away stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What a comparison found, for machines: with weights as floats, as they were written, and how fast.
fn object(floats: &Compared, written: &Compared, [graph, file]: &[Speed; 2]) -> serde_json::Value {
    let speed =
        |speed: &Speed| json!({"prefill_tokens_per_s": speed.prefill, "decode_tokens_per_s": speed.decode});
    json!({
        "distance_as_floats": floats.distance,
        "distance": written.distance,
        "places": written.n,
        "same_likeliest": written.n_same,
        "graph": speed(graph),
        "file": speed(file),
    })
}
