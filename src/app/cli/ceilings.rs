//! `bench --machine` and `bench kernels`: what the machine and the kernels can do, without a model's other work.

use serde_json::json;

use super::show::{self, Show, Step, Table};
use super::{Failure, backend};
use crate::engine::{self, KERNEL_TOKENS, Machine};
use crate::os::map::Map;

/// Smallest file that is read to measure: smaller ones stay in a processor's cache.
const LEAST_FILE: usize = 64 << 20;

/// Measures with a number of threads, 0 being all; reading from the model's file too, where it is large enough.
pub(super) fn measure(model: Option<&str>, threads: usize) -> Result<Machine, Failure> {
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    // Any file does, so a model is not even opened as one.
    let file = match model {
        None => None,
        Some(_) => Some(Map::open(&backend::model_file(model)?.path).map_err(Failure::usage)?),
    };
    let bytes = file.as_ref().map(AsRef::<[u8]>::as_ref).filter(|bytes| bytes.len() >= LEAST_FILE);
    engine::machine(kernels, threads, bytes).map_err(Failure::usage)
}

/// Measures with one thread and with all, or with the number that was asked for, and prints.
pub(super) fn machine(model: Option<&str>, threads: Option<u32>, json: bool) -> Result<(), Failure> {
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let found: Vec<Machine> = match threads {
        Some(n) => vec![measure(model, n as usize)?],
        None => {
            let all = measure(model, 0)?;
            if all.threads == 1 { vec![all] } else { vec![measure(model, 1)?, all] }
        }
    };
    let tier = kernels.tier().name();
    if json {
        let all = found.iter().map(|m| {
            json!({
                "threads": m.threads,
                "int8_gmac_s": m.int8_gmac_s,
                "read_huge_gb_s": m.huge_gb_s,
                "read_small_gb_s": m.small_gb_s,
                "read_mapped_gb_s": m.mapped_gb_s,
            })
        });
        return show::json(&json!({ "tier": tier, "ceilings": all.collect::<Vec<_>>() }));
    }
    let mut table = Table::default();
    table.line("kernels", tier);
    for m in &found {
        let mapped = m.mapped_gb_s.map_or_else(String::new, |rate| format!(", of a mapped file {rate:.1}"));
        let read =
            format!("reads {:.1} GB/s in large pages, {:.1} in small{mapped}", m.huge_gb_s, m.small_gb_s);
        let key = if m.threads == 1 { "1 thread".into() } else { format!("{} threads", m.threads) };
        table.line(&key, &format!("{:.0} GMAC/s of 8-bit numbers; {read}", m.int8_gmac_s));
    }
    table.print()
}

/// Measures the products of every tensor type.
pub(super) fn kernels(json: bool) -> Result<(), Failure> {
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let mut show = Show::silent();
    let mut progress = |done, total| show.step(Step::Measuring, done, total);
    let (peak, speeds) = engine::kernel_speeds(kernels, &mut progress).map_err(Failure::usage)?;
    show.finish();
    let tier = kernels.tier().name();
    if json {
        let all = speeds.iter().map(|s| {
            json!({ "type": s.quant.name(), "rows_gmac_s": s.rows_gmac_s, "packed_gmac_s": s.packed_gmac_s })
        });
        let all: Vec<_> = all.collect();
        return show::json(
            &json!({ "tier": tier, "tokens": KERNEL_TOKENS, "peak_gmac_s": peak, "types": all }),
        );
    }
    let mut table = Table::default();
    table.line("kernels", &format!("{tier}, 1 thread, at most {peak:.0} GMAC/s"));
    table.line("tokens", &format!("{} rows, packed", heads()));
    for s in &speeds {
        let rates = |all: &[f64]| all.iter().map(|rate| format!("{rate:7.1}")).collect::<String>();
        table.line(s.quant.name(), &format!("{}  {}", rates(&s.rows_gmac_s), rates(&s.packed_gmac_s)));
    }
    table.print()
}

/// The numbers of tokens above the columns.
fn heads() -> String {
    let heads: String = KERNEL_TOKENS.iter().map(|n| format!("{n:7}")).collect();
    format!("{heads}  {heads}  GMAC/s from")
}
