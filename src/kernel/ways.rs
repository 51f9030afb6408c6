//! Kernels that give the same bits in two ways: which one a processor is faster with, its own measurement says.

use super::tensor::{Packed, Q8Acts, Rows};
use super::{Hints, PANEL, Pool};
use crate::os::clock;
use crate::os::pages::Pages;
use crate::quant::Quant;

/// Columns of what is measured: a panel of them lies in the cache.
const COLS: usize = 2_048;
/// Tokens for which both ways are measured.
const TOKENS: [usize; 5] = [4, 6, 8, 12, 16];
/// Runs of each, of which the fastest counts: others disturb, nothing helps.
const RUNS: usize = 12;

impl Pool {
    /// Finds from how many tokens on products with packed weights of `quant` are faster by codes that are unpacked first
    /// (`docs/kernels.md`), within a few milliseconds, on this thread. `None` where there is one way only.
    #[must_use]
    pub fn measure_unpack_from(&self, quant: Quant) -> Option<usize> {
        let kernels = self.kernels();
        if !kernels.two_ways[quant as usize] {
            return None;
        }
        // Whatever stands where the floats are: 0x2222 is 0.012, and a power of two of 0x22 is normal.
        let bytes = vec![0x22; PANEL * quant.row_bytes(COLS)?];
        let rows = Rows::new(quant, PANEL, COLS, &bytes).ok()?;
        let mut panel = Pages::new(Packed::panel_bytes(&rows)).ok()?;
        Packed::pack_panel(&rows, 0, &mut panel);
        let most = TOKENS[TOKENS.len() - 1];
        let x: Vec<f32> = (0..most * COLS).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
        let (mut acts, mut sums) = (Q8Acts::new(most, COLS), vec![[0.0; PANEL]; most]);
        let mut fastest = |acts: &Q8Acts, n: usize, unpack_from: usize| {
            let run = |_| {
                let start = clock::now_ns();
                kernels.packed(quant, &panel, Hints { next: &[], unpack_from }, &acts.view(), &mut sums[..n]);
                clock::now_ns().saturating_sub(start)
            };
            (0..RUNS).map(run).min()
        };
        let mut from = most + 1;
        for n in TOKENS.into_iter().rev() {
            self.quantize(&x[..n * COLS], COLS, &mut acts);
            if fastest(&acts, n, 0) >= fastest(&acts, n, usize::MAX) {
                break;
            }
            from = n;
        }
        Some(from)
    }
}
