//! How well a model foretells a text.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::show::{self, Show, Step, Table, speed};
use super::{Failure, bench};
use crate::base::limits::TEXT_FILE_BYTES_MAX;
use crate::engine::Solo;
use crate::model::{self, Pack};
use crate::os::clock;

#[derive(Debug, Args)]
pub(super) struct PerplexityArgs {
    /// A model file or the name of an installed model
    model: String,
    /// A text file
    file: PathBuf,
    /// Tokens of a window [default: 512, at most the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=16_777_216))]
    context: Option<u32>,
    /// Read the first N windows only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
    /// How weights are read: as the file has them (off), packed into memory, or into a file of the cache
    #[arg(long, value_name = "HOW", default_value = "cache", value_parser = bench::pack)]
    pack: Pack,
    /// How exactly to compute
    #[arg(long, value_enum, default_value_t = Precision::Default)]
    precision: Precision,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How exactly to compute.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    /// As answers are computed
    Default,
    /// Activations and cache in 32-bit floats
    F32,
}

/// Tokens of a window where nobody says otherwise, as in llama.cpp.
const N_CTX: usize = 512;

/// The text of a file.
pub(super) fn text_of(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path);
    let path = path.display();
    let unread = |e| Failure::usage(format!("{path}: {e}; name a text file"));
    // Pipes and devices tell no length.
    let (file, mut text) = (file.map_err(unread)?, Vec::new());
    file.take(TEXT_FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(unread)?;
    if text.len() as u64 > TEXT_FILE_BYTES_MAX {
        let message = format!("{path}: more than the {TEXT_FILE_BYTES_MAX} bytes that are taken");
        return Err(Failure::usage(message));
    }
    String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format!("{path}: not UTF-8 at byte {at}; name a text file, in UTF-8"))
    })
}

/// Measures and prints.
pub(super) fn run(args: &PerplexityArgs) -> Result<(), Failure> {
    let text = text_of(&args.file)?;
    let mut show = Show::silent();
    let solo = bench::open(Some(&args.model), args.threads, args.pack, &mut show)?;
    let n_ctx = args.context.map_or(N_CTX.min(solo.model().hyper().n_ctx_train), |n| n as usize);
    let precision = match args.precision {
        Precision::Default => model::Precision::default(),
        Precision::F32 => model::Precision::F32,
    };
    let began = clock::now_us();
    let mut progress = |so_far: &crate::engine::Perplexity, n_windows: usize| {
        let word = || match so_far.n_windows {
            0 => "perplexity".to_owned(),
            _ => format!("perplexity {:.4}", so_far.value()),
        };
        show.step_with(Step::Windows, so_far.n_windows as u64, n_windows as u64, word);
    };
    let n_windows_max = args.windows.map(|n| n as usize);
    let found = solo.perplexity(&text, precision, n_ctx, n_windows_max, &mut progress)?;
    let tok_s = (found.n_windows * n_ctx) as f64 * 1e6 / clock::now_us().saturating_sub(began).max(1) as f64;
    show.finish();
    print(args, &solo, &found, n_ctx, tok_s)
}

fn print(
    args: &PerplexityArgs,
    solo: &Solo,
    found: &crate::engine::Perplexity,
    n_ctx: usize,
    tok_s: f64,
) -> Result<(), Failure> {
    let precision = match args.precision {
        Precision::Default => "default",
        Precision::F32 => "f32",
    };
    if args.json {
        return show::json(&json!({
            "model": solo.id(),
            "file": args.file.display().to_string(),
            "perplexity": found.value(),
            "perplexity_error": found.error(),
            "n_ctx": n_ctx,
            "windows": found.n_windows,
            "tokens_scored": found.n_tokens,
            "precision": precision,
            "tok_s": tok_s,
            "tier": solo.tier(),
            "threads": solo.threads(),
        }));
    }
    let mut table = Table::default();
    table.line("perplexity", &format!("{:.4} ± {:.4}", found.value(), found.error()));
    table
        .line("windows", &format!("{} of {n_ctx} tokens, {} tokens scored", found.n_windows, found.n_tokens));
    table.line("computed", &format!("precision {precision}, {}, {} threads", solo.tier(), solo.threads()));
    table.line("speed", &format!("{} tokens/s", speed(tok_s)));
    table.print()
}
