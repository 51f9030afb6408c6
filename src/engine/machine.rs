//! What this machine can do at best: the ceilings of prefill and of decoding.

use crate::kernel::{Epilogue, Input, Kernels, Output, Packed, Pool, Product, Q8Acts, Rows, Weights};
use crate::os::pages::Pages;
use crate::os::tree::Tree;
use crate::os::{clock, cpus};
use crate::quant::Quant;
use crate::quant::packed;

/// Bytes that are read over and over: beyond any cache of a small machine.
const BYTES: usize = 256 << 20;
/// How long each figure is measured; the best of its runs counts.
const MICROS: u64 = 300_000;
/// The same for one product of one format.
const KERNEL_MICROS: u64 = 40_000;
/// Multiplications of a run: a millisecond or a few.
const ROUNDS: u32 = 20_000;

/// The ceilings for a number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Threads.
    pub threads: usize,
    /// 10^9 multiplications of 8-bit numbers with an addition a second, of the tier's best instructions on registers.
    pub int8_gmac_s: f64,
    /// 10^9 bytes a second that are read from memory in large pages, as packed weights in memory have them.
    pub huge_gb_s: f64,
    /// The same in small pages.
    pub small_gb_s: f64,
    /// The same from a mapped file whose pages are in the system's cache; `None` without a file.
    pub mapped_gb_s: Option<f64>,
}

/// The best rate of repeated runs of `f`, which tells what it did, in 10^9 a second.
fn best(micros: u64, f: &mut dyn FnMut() -> u64) -> f64 {
    let (began, mut best) = (clock::now_us(), 0.0_f64);
    loop {
        let start = clock::now_ns();
        let done = f();
        best = best.max(done as f64 / clock::now_ns().saturating_sub(start).max(1) as f64);
        if clock::now_us().saturating_sub(began) > micros {
            return best;
        }
    }
}

/// Measures with `threads`; 0 are as many as there are physical cores. `file` is a mapped file that is larger than caches.
///
/// # Errors
/// When threads or memory cannot be had.
pub fn machine(kernels: &'static Kernels, threads: usize, file: Option<&[u8]>) -> std::io::Result<Machine> {
    let threads = if threads == 0 { cpus::n_threads(&Tree::default(), &[]) } else { threads };
    let pool = Pool::new(kernels, threads)?;
    let mut read = |bytes: &[u8]| {
        best(MICROS, &mut || {
            std::hint::black_box(pool.read(bytes));
            bytes.len() as u64
        })
    };
    let filled = |mut pages: Pages| {
        pages.fill(1);
        pages
    };
    let huge_gb_s = read(&filled(Pages::new(BYTES)?));
    let small_gb_s = read(&filled(Pages::small(BYTES)?));
    let mapped_gb_s = file.map(&mut read);
    let int8_gmac_s = best(MICROS, &mut || pool.peak(ROUNDS));
    Ok(Machine { threads, int8_gmac_s, huge_gb_s, small_gb_s, mapped_gb_s })
}

/// Tokens for which products are measured.
pub const KERNEL_TOKENS: [usize; 4] = [1, 4, 8, 64];

/// How fast the products of one format are, from cache, on one thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelSpeed {
    /// The format.
    pub quant: Quant,
    /// 10^9 multiplications with an addition a second with rows as the file has them, for [`KERNEL_TOKENS`].
    pub rows_gmac_s: [f64; KERNEL_TOKENS.len()],
    /// The same packed.
    pub packed_gmac_s: [f64; KERNEL_TOKENS.len()],
}

/// Measures the products of every format with blocks, and the ceiling of the tier, in 10^9 a second. `progress` is told how
/// many formats are done, and how many there are.
///
/// # Errors
/// When memory cannot be had.
pub fn kernel_speeds(
    kernels: &'static Kernels,
    progress: &mut dyn FnMut(u64, u64),
) -> std::io::Result<(f64, Vec<KernelSpeed>)> {
    const ROWS: usize = 16;
    const COLS: usize = 4_096;
    let pool = Pool::new(kernels, 1)?;
    let formats: Vec<Quant> = Quant::ALL.into_iter().filter(|q| kernels.takes_codes(*q)).collect();
    let mut speeds = Vec::new();
    for quant in &formats {
        progress(speeds.len() as u64, formats.len() as u64);
        // Whatever stands where the floats are: 0x2222 is 0.012, and a power of two of 0x22 is normal.
        let bytes = vec![0x22; ROWS * quant.row_bytes(COLS).unwrap_or(0)];
        let panel_bytes = packed::bytes(*quant, ROWS, COLS).unwrap_or(0);
        let mut panel = Pages::new(panel_bytes)?;
        let rows = Rows::new(*quant, ROWS, COLS, &bytes).map_err(std::io::Error::other)?;
        pool.pack(&rows, 0, &mut panel);
        let packed = Packed::new(*quant, ROWS, COLS, &panel).map_err(std::io::Error::other)?;
        let speed = |weights: Weights<'_>| {
            KERNEL_TOKENS.map(|n_tokens| {
                let x: Vec<f32> = (0..n_tokens * COLS).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
                let mut acts = Q8Acts::new(n_tokens, COLS);
                pool.quantize(&x, COLS, &mut acts);
                let (input, mut y) =
                    (Input { x: &x, n_cols: COLS, q8: Some(&acts) }, vec![0.0; n_tokens * ROWS]);
                best(KERNEL_MICROS, &mut || {
                    let times = 64 / n_tokens;
                    for _ in 0..times {
                        let product =
                            Product { weights, y: Output::Floats(&mut y), epilogue: Epilogue::default() };
                        pool.matmul(input, &mut [product]);
                    }
                    (times * n_tokens * ROWS * COLS) as u64
                })
            })
        };
        let (rows_gmac_s, packed_gmac_s) = (speed(Weights::Rows(rows)), speed(Weights::Packed(packed)));
        speeds.push(KernelSpeed { quant: *quant, rows_gmac_s, packed_gmac_s });
    }
    Ok((best(MICROS, &mut || pool.peak(ROUNDS)), speeds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;

    #[test]
    fn every_tier_has_ceilings() {
        for tier in kernel::available() {
            let kernels = kernel::select(Some(tier)).expect("available");
            let pool = Pool::new(kernels, 2).expect("threads");
            assert!(pool.peak(10) >= 2 * 10 * 64, "{tier:?}");
        }
        let pool = Pool::new(kernel::select(None).expect("some"), 2).expect("threads");
        let bytes: Vec<u8> = (0..1_000_u32 * 128).map(|i| (i % 251) as u8).collect();
        let wanted = bytes.as_chunks::<8>().0.iter().fold(0, |all, word| all ^ u64::from_le_bytes(*word));
        assert_eq!(pool.read(&bytes), wanted);
        assert!(best(10, &mut || 1_000) > 0.0);
    }
}
