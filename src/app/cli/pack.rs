//! A model's packed form as a file.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::show::{self, Show, Step, Table, size};
use super::{Failure, backend};
use crate::base::limits::N_THREADS_MAX;
use crate::format::pack::identity;
use crate::kernel::Pool;
use crate::model::{Model, Packer};
use crate::os::interrupt::Noticed;
use crate::os::thread;

/// Bytes that are packed between two looks at Ctrl-C.
const SLICE: usize = 16 << 20;
/// What a program that Ctrl-C ended says.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// A model file or the name of an installed model; without it the model in the box
    model: Option<String>,
    /// The file to write [default: MODEL.packed.gguf beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// Threads that pack [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Writes the file; under its name stands all of it or nothing.
pub(super) fn run(args: &PackArgs) -> Result<(), Failure> {
    let file = backend::model_file(args.model.as_deref())?;
    let model = Model::open(&file.path).map_err(Failure::usage)?;
    let path =
        args.output.clone().unwrap_or_else(|| file.path.with_file_name(format!("{}.packed.gguf", file.id)));
    if !args.force && path.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{}: is there; --force writes over it", path.display())));
    }
    let source = identity(&file.path).unwrap_or_default();
    let image = Packer::image(&model, &source).map_err(Failure::usage)?;
    let bytes = image.len() as u64;
    let n_packed = image.tensors.iter().filter(|t| t.to.packed).count();
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let n_threads = args.threads.map_or(thread::n_cores().min(N_THREADS_MAX), |n| n as usize);
    let pool = Pool::new(kernels, n_threads).map_err(Failure::internal)?;

    // From here on Ctrl-C takes the unfinished file away.
    let interrupted = Noticed::new();
    let mut show = Show::silent();
    show.stoppable = true;
    let mut packer = Packer::file(&model, image, &path, 0).map_err(Failure::usage)?;
    while packer.work(&pool, SLICE).map_err(Failure::usage)? {
        if interrupted.came() {
            return Err(Failure::new(
                EXIT_INTERRUPTED,
                format!("stopped; {} is not written", path.display()),
            ));
        }
        let (done, total) = packer.progress();
        show.step(Step::Packing, done, total);
    }
    show.finish();
    if args.json {
        return show::json(&json!({
            "file": path.display().to_string(),
            "file_bytes": bytes,
            "source": file.path.display().to_string(),
            "source_bytes": model.file_bytes(),
            "packed_tensors": n_packed,
        }));
    }
    let mut table = Table::default();
    table.line("file", &format!("{}, {}", path.display(), size(bytes)));
    table.line("made of", &format!("{}, {}", file.path.display(), size(model.file_bytes())));
    table.line("packed", &format!("{n_packed} tensors"));
    table.print()
}
