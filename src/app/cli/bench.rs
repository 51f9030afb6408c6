//! How fast a model runs here.

use clap::{Args, Subcommand};
use serde_json::json;

use super::show::{self, Show, Step, Table, count, size, speed};
use super::{Failure, backend, ceilings};
use crate::base::limits::{N_FEED_MAX, PACK_CACHE_GIB};
use crate::engine::{Solo, SpeedOptions, median};
use crate::model::{Cost, KvType, Op, Pack, Precision, Profile};
use crate::os::process;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// A model file or the name of an installed model; without it the model in the box
    model: Option<String>,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
    /// How many of them decode a single sequence [default: those of --threads, else as many as are fastest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads_decode: Option<u32>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    prompt: u32,
    /// Tokens decoded
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    generate: u32,
    /// Tokens that stand in the cache before the prompt, and before what is decoded
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    depth: u32,
    /// Sequences that are decoded at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=N_FEED_MAX as i64))]
    batch: u32,
    /// How keys and values are stored: f16, q8_0 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    kv: KvType,
    /// How often; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// How weights are read: as the file has them (off), packed into memory, or into a file of the cache
    #[arg(long, value_name = "HOW", default_value = "cache", value_parser = pack)]
    pack: Pack,
    /// Measure the machine instead: how fast memory is read and 8-bit numbers are multiplied at best
    #[arg(long)]
    machine: bool,
    /// Tell what each operation costs, in a run of its own
    #[arg(long)]
    profile: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure the products of every tensor type on one thread instead
    Kernels {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The value of `--pack`.
pub(super) fn pack(name: &str) -> Result<Pack, String> {
    Pack::from_name(name).ok_or_else(|| format!("one of {:?} is taken", Pack::ALL.map(Pack::name)))
}

fn kv_type(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| format!("one of {:?} is taken", KvType::ALL.map(KvType::name)))
}

/// Opens a model to measure it.
pub(super) fn open(
    model: Option<&str>,
    threads: Option<u32>,
    pack: Pack,
    show: &mut Show,
) -> Result<Solo, Failure> {
    let file = backend::model_file(model)?;
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let mut progress = |done, total| show.step(Step::Loading, done, total);
    let (threads, cache) = (threads.unwrap_or(0) as usize, crate::app::cache(PACK_CACHE_GIB));
    Ok(Solo::open(kernels, &file, threads, pack, cache.as_ref(), &mut progress)?)
}

/// Measures and prints.
pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if let Some(What::Kernels { json }) = args.what {
        return ceilings::kernels(json);
    }
    if args.machine {
        return ceilings::machine(args.model.as_deref(), args.threads, args.json);
    }
    let mut show = Show::silent();
    let solo = open(args.model.as_deref(), args.threads, args.pack, &mut show)?;
    let options = SpeedOptions {
        n_prompt: args.prompt as usize,
        n_generate: args.generate as usize,
        depth: args.depth as usize,
        batch: args.batch as usize,
        n_repeat: args.repeat as usize,
        threads_decode: args.threads_decode.or(args.threads).unwrap_or(0) as usize,
        profile: args.profile,
    };
    let precision = Precision { kv: args.kv, ..Precision::default() };
    let mut progress = |done, total| show.step(Step::Measuring, done, total);
    let measured = solo.speed(precision, options, &mut progress)?;
    show.finish();
    let (prefill, decode) = (median(&measured.prefill_tok_s), median(&measured.decode_tok_s));
    let model = solo.model();
    let weights_gb_s = decode / f64::from(args.batch) * model.step_bytes() as f64 / 1e9;
    let peak = process::peak_rss_bytes();
    let ceilings = args.profile.then(|| at_best(args, solo.threads())).transpose()?;
    if args.json {
        return show::json(&json!({
            "model": solo.id(),
            "architecture": model.architecture(),
            "quantization": model.quantization(),
            "parameters": model.parameters(),
            "file_bytes": solo.file_bytes(),
            "step_bytes": model.step_bytes(),
            "tier": solo.tier(),
            "threads": solo.threads(),
            "threads_decode": measured.threads_decode,
            "packed": solo.is_packed(),
            "prompt": args.prompt,
            "generate": args.generate,
            "depth": args.depth,
            "batch": args.batch,
            "kv": args.kv.name(),
            "repeat": args.repeat,
            "load_ms": solo.load_ms(),
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
            "prefill_runs_tok_s": measured.prefill_tok_s,
            "decode_runs_tok_s": measured.decode_tok_s,
            "weights_gb_s": weights_gb_s,
            "peak_rss_bytes": peak,
            "profiles": measured.profiles.as_ref().map(|[prefill, decode]| json!({
                "prefill": costs(prefill),
                "decode": costs(decode),
            })),
            "ceilings": ceilings.map(|c| json!({ "int8_gmac_s": c.gmac_s, "read_gb_s": c.gb_s })),
        }));
    }
    let runs = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        format!("{} to {} in {} runs", speed(least), speed(most), values.len())
    };
    let mut table = Table::default();
    let (id, weights, kind) = (solo.id(), count(model.parameters()), model.quantization());
    table.line("model", &format!("{id}, {weights} weights, {kind}, {}", size(solo.file_bytes())));
    let decoding = match measured.threads_decode {
        n if n == solo.threads() => String::new(),
        n => format!(", {n} decode"),
    };
    table.line("kernels", &format!("{}, {} threads{decoding}", solo.tier(), solo.threads()));
    table.line("load", &format!("{:.0} ms", solo.load_ms()));
    let behind = match args.depth {
        0 => String::new(),
        n => format!(" behind {n}"),
    };
    let sequences = match args.batch {
        1 => String::new(),
        n => format!(" of {n} sequences"),
    };
    for (key, n, value, all) in [
        ("prefill", format!("{} tokens", args.prompt), prefill, &measured.prefill_tok_s),
        ("decode", format!("{} tokens{sequences}", args.generate), decode, &measured.decode_tok_s),
    ] {
        table.line(key, &format!("{:>6} tokens/s of {n}{behind}; {}", speed(value), runs(all)));
    }
    table.line("weights", &format!("{weights_gb_s:.1} GB/s in decode, {} a step", size(model.step_bytes())));
    table.line("peak memory", &peak.map_or_else(|| "unknown".into(), size));
    for (name, profile) in ["prefill", "decode"].into_iter().zip(measured.profiles.iter().flatten()) {
        for (op, cost) in Op::ALL.into_iter().map(|op| (op, profile.cost(op))).filter(|(_, cost)| cost.ns > 0)
        {
            let share = cost.ns as f64 / profile.total_ns() as f64;
            let per_ns = |n: u64| n as f64 / cost.ns as f64;
            let rate = match (cost.macs, ceilings) {
                (1.., Some(most)) => {
                    let [macs, bytes] = [per_ns(cost.macs), per_ns(cost.bytes)];
                    let (share, of) = match (macs / most.gmac_s, bytes / most.gb_s) {
                        (a, b) if a > b => (a, "multiplying"),
                        (_, b) => (b, "reading"),
                    };
                    format!("{macs:>7.1} GMAC/s {bytes:>6.1} GB/s, {:.0} % of {of} at best", 100.0 * share)
                }
                _ => String::new(),
            };
            let ms = cost.ns as f64 / 1e6;
            table.line(name, &format!("{:<9} {:>5.1} % {ms:>9.2} ms {rate}", op.name(), 100.0 * share));
        }
    }
    if let Some(Ceilings { gmac_s, gb_s }) = ceilings {
        table
            .line("at best", &format!("{gmac_s:.0} GMAC/s, {gb_s:.1} GB/s read in pages as the weights are"));
    }
    table.print()
}

/// What operations are measured by.
#[derive(Clone, Copy)]
struct Ceilings {
    gmac_s: f64,
    /// Of pages such as the weights are in.
    gb_s: f64,
}

fn at_best(args: &BenchArgs, threads: usize) -> Result<Ceilings, Failure> {
    let file = (args.pack != Pack::Memory).then_some(args.model.as_deref()).flatten();
    let found = ceilings::measure(file, threads)?;
    let of_file =
        if args.pack == Pack::Memory { None } else { Some(found.mapped_gb_s.unwrap_or(found.small_gb_s)) };
    Ok(Ceilings { gmac_s: found.int8_gmac_s, gb_s: of_file.unwrap_or(found.huge_gb_s) })
}

/// What operations cost, by their names.
fn costs(profile: &Profile) -> serde_json::Value {
    let all = Op::ALL.into_iter().map(|op| {
        let Cost { ns, bytes, macs } = profile.cost(op);
        (op.name().to_owned(), json!({ "ns": ns, "bytes": bytes, "macs": macs }))
    });
    serde_json::Value::Object(all.collect())
}
