//! A model as a GGUF file of its own.

mod check;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use check::{Check, Speed};

use super::Failure;
use super::pack::{EXIT_INTERRUPTED, SLICE};
use super::show::{self, Show, Step, Table, count, size};
use crate::format::open_weights;
use crate::kernel::Pool;
use crate::model::import::TYPES;
use crate::model::{Import, Model, Plan, vocab};
use crate::os::cpus;
use crate::os::interrupt::Noticed;
use crate::os::tree::Tree;
use crate::quant::Quant;

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

/// Writes the file; under its name stands all of it or nothing.
pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let path = args.output.clone().unwrap_or_else(|| beside(&args.model, args.quant));
    if !args.force && path.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{}: is there; --force writes over it", path.display())));
    }
    let source = Arc::new(open_weights(&args.model).map_err(Failure::usage)?);
    let source_bytes = source.n_bytes();
    let plan = Plan::new(source, args.quant).map_err(Failure::usage)?;
    let (bytes, types, lost) = (plan.n_bytes(), plan.types(), plan.lost.clone());
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let n_threads = args.threads.map_or(cpus::n_threads(&Tree::default(), &[]), |n| n as usize);
    let pool = Pool::new(kernels, n_threads).map_err(Failure::internal)?;

    // From here on Ctrl-C takes the unfinished file away.
    let interrupted = Noticed::new();
    let mut show = Show::silent();
    show.stoppable = true;
    let mut import = Import::new(plan, &path).map_err(Failure::usage)?;
    while import.work(&pool, SLICE).map_err(Failure::usage)? {
        let (done, total) = import.progress();
        if interrupted.came() && done < total {
            return Err(Failure::new(
                EXIT_INTERRUPTED,
                format!("stopped; {} is not written", path.display()),
            ));
        }
        show.step(Step::Writing, done, total);
    }
    drop((import, interrupted, pool));
    let model = written(&path)?;
    let checked = match args.no_check {
        true => None,
        false => check::check(&args.model, (&path, args.quant), n_threads, &mut show)?,
    };
    show.finish();
    // Why there is no comparison is told, but is no failure: the file is whole.
    let (checked, unchecked) = match checked.transpose() {
        Ok(checked) => (checked, None),
        Err(e) => (None, Some(e.to_string())),
    };
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
            "checked": checked.as_ref().map(object),
            "unchecked": unchecked,
        }))
        .and_then(|()| agrees(checked.as_ref(), &path));
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
    if let Some(Check { distance, n, n_same, graph, file, threads, .. }) = &checked {
        table.line(
            "checked",
            &format!("logits {distance:.1e} from the graph's, the likeliest is the same in {n_same} of {n}"),
        );
        for (key, what, speed) in [("speed", "graph", graph), ("", "file", file)] {
            let Speed { prefill, decode } = speed;
            let what = format!("{what}: {prefill:.0} tokens/s read, {decode:.1} written, {threads} threads");
            table.line(key, &what);
        }
    }
    if let Some(why) = unchecked {
        table.line("not checked", &why);
    }
    table.print()?;
    agrees(checked.as_ref(), &path)
}

/// What a comparison found, for machines.
fn object(check: &Check) -> serde_json::Value {
    let speed =
        |speed: &Speed| json!({"prefill_tokens_per_s": speed.prefill, "decode_tokens_per_s": speed.decode});
    json!({
        "distance": check.distance,
        "bound": check.bound,
        "places": check.n,
        "same_likeliest": check.n_same,
        "threads": check.threads,
        "graph": speed(&check.graph),
        "file": speed(&check.file),
    })
}

/// Whether the file says what its graph says.
fn agrees(check: Option<&Check>, path: &Path) -> Result<(), Failure> {
    match check {
        Some(Check { distance, bound, .. }) if distance.is_nan() || distance > bound => Err(Failure::new(
            1,
            format!(
                "{}: its logits are {distance:.2} from those of the graph, more than the {bound} that its type explains: the \
                 graph computes something that the configuration beside it does not tell; run the graph itself",
                path.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// What was written, read back: a model with a vocabulary, or the command has failed. Whatever else is to be said of it
/// begins here.
fn written(path: &Path) -> Result<Model, Failure> {
    let model = Model::open(path).map_err(Failure::internal)?;
    vocab::tokenizer(model.checkpoint()).map_err(Failure::internal)?;
    Ok(model)
}
