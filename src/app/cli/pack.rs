//! A model's packed form as a file.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::show::{self, Show, Step, Table, size};
use super::{Failure, backend, output, perplexity};
use crate::engine::{Divergence, ModelFile, Solo};
use crate::format::pack::identity;
use crate::kernel::Pool;
use crate::model::{Model, Pack, Packer};
use crate::os::cpus;
use crate::os::interrupt::Noticed;
use crate::os::tree::Tree;
use crate::quant::Quant;

#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// A model file or the name of an installed model; without it the model in the box
    model: Option<String>,
    /// The file to write [default: MODEL.packed.gguf beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Narrow the output matrix to this format (q4_0), and tell by how much that changes what is foretold
    #[arg(long, value_name = "FORMAT", value_parser = head)]
    head: Option<Quant>,
    /// A text file to tell that by [default: a short text of its own]
    #[arg(long, value_name = "FILE", requires = "head")]
    text: Option<PathBuf>,
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

/// What a narrowed output matrix is measured by where no other text is named.
const TEXT: &str = "\
The lighthouse stood on a rock that the sea had almost finished. Every evening the keeper climbed its two hundred \
and eleven steps, wiped the salt from the glass and lit the lamp, although no ship had come that way for years. \"It \
is not for the ships,\" he told the boy who brought his bread. \"A light that is lit only when somebody looks is a \
mirror.\"

In winter the storms came from the north-west. They took the fence, then the goat shed, and in the third year the \
lower part of the path. The boy, who was a young man by then, learnt to build: first a wall of stones without \
mortar, which fell, then one with a footing, which did not. He wrote down what he had done, with the date and the \
weather, because he had noticed that he remembered his mistakes as smaller than they were.

A report on the harbour, published in 1912, lists 48 vessels, 3 cranes and a depth of 7.5 metres at low water. It \
says nothing about the light. The engineer who signed it had been asked for figures, and gave them: tonnage by \
month, the price of coal, the number of days lost to fog. Yet in the margin of his own copy, in pencil, stands a \
sentence that was never printed: the men steer by a lamp that is on no chart.

To repair such a lamp you need a screwdriver, a clean cloth and patience. Turn off the gas. Lift the chimney \
straight up; if it sticks, warm it with your hands and do not twist. Trim the wick until its edge is even, and no \
longer than a fingernail. When it burns without smoke, it is right. If it smokes, it is too long, and you begin \
again.
";

/// Tokens of a text that are compared, at most.
const N_COMPARED: usize = 512;

/// The value of `--head`.
fn head(name: &str) -> Result<Quant, String> {
    (name == "q4_0").then_some(Quant::Q4_0).ok_or_else(|| "q4_0 is taken".into())
}

/// Writes the file; under its name stands all of it or nothing.
pub(super) fn run(args: &PackArgs) -> Result<(), Failure> {
    let file = backend::model_file(args.model.as_deref())?;
    let model = Model::open(&file.path).map_err(Failure::usage)?;
    let path =
        args.output.clone().unwrap_or_else(|| file.path.with_file_name(format!("{}.packed.gguf", file.id)));
    output::may_be_written(&path, args.force)?;
    let source = identity(&file.path).unwrap_or_default();
    // Before the work: a text that cannot be read.
    let text = args.text.as_deref().map_or_else(|| Ok(TEXT.to_owned()), perplexity::text_of)?;
    let image = Packer::image(&model, &source, args.head).map_err(Failure::usage)?;
    let bytes = image.len() as u64;
    let n_packed = image.tensors.iter().filter(|t| t.to.packed).count();
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let n_threads = args.threads.map_or(cpus::n_threads(&Tree::default(), &[]), |n| n as usize);
    let pool = Pool::new(kernels, n_threads).map_err(Failure::internal)?;

    // From here on Ctrl-C takes the unfinished file away.
    let interrupted = Noticed::new();
    let mut show = Show::silent();
    show.stoppable = true;
    let mut packer = Packer::file(&model, image, &path, 0).map_err(Failure::usage)?;
    output::write(&path, Step::Packing, (&interrupted, &mut show), &mut || {
        let more = packer.work(&pool, output::SLICE).map_err(Failure::usage)?;
        Ok(more.then(|| packer.progress()))
    })?;
    drop((packer, interrupted, pool));
    let cost = match args.head {
        None => None,
        Some(_) => {
            let open =
                |file: &ModelFile| Solo::open(kernels, file, n_threads, Pack::Off, None, &mut |_, _| {});
            let (wide, narrow) =
                (open(&file)?, open(&ModelFile { id: file.id.clone(), path: path.clone() })?);
            let mut progress = |done, total| show.step(Step::Measuring, done, total);
            Some(wide.divergence(&narrow, &text, N_COMPARED, &mut progress)?)
        }
    };
    show.finish();
    let same = |d: &Divergence| d.n_same as f64 / d.n_tokens as f64;
    if args.json {
        return show::json(&json!({
            "file": path.display().to_string(),
            "file_bytes": bytes,
            "source": file.path.display().to_string(),
            "source_bytes": model.file_bytes(),
            "packed_tensors": n_packed,
            "divergence": cost.map(|d| d.value()),
            "same_likeliest": cost.as_ref().map(same),
            "tokens_compared": cost.map(|d| d.n_tokens),
        }));
    }
    let mut table = Table::default();
    table.line("file", &format!("{}, {}", path.display(), size(bytes)));
    table.line("made of", &format!("{}, {}", file.path.display(), size(model.file_bytes())));
    table.line("packed", &format!("{n_packed} tensors"));
    if let Some(d) = &cost {
        let (value, share) = (d.value(), 100.0 * same(d));
        let n = d.n_tokens;
        table.line(
            "divergence",
            &format!("{value:.4} nats a token, the likeliest is the same in {share:.1} % of {n}"),
        );
    }
    table.print()
}
