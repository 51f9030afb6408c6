//! Products on all threads, a panel of 16 rows at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::{Out, Pool};
use super::tensor::{FOUR, Input, Output, Product, Q8Acts, Q8Block, Q8Four, Q8View, Weights};
use super::{Hints, Kernels, PANEL, Q8_BLOCK};
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::quant::Quant;

/// Most products of one call (those of a delta net).
const N_PRODUCT_MAX: usize = 4;
/// Tokens up to which a product's sums are few: it is not worth clearing room for a whole chunk.
const N_SMALL: usize = 16;
/// Panels of a block of codes.
const CODED: usize = Q8_BLOCK / PANEL;

impl Pool {
    /// Computes all `products` of one input.
    ///
    /// # Panics
    /// If shapes do not agree or there are more than four products.
    pub fn matmul(&self, input: Input<'_>, products: &mut [Product<'_>]) {
        let n = input.n_tokens();
        assert!(products.len() <= N_PRODUCT_MAX, "{} products at once", products.len());
        let mut out = [(Place::Floats(Out::new(&mut [])), 0); N_PRODUCT_MAX];
        let mut n_units = 0;
        for (p, out) in products.iter_mut().zip(&mut out) {
            let (n_rows, n_cols) = (p.weights.n_rows(), p.weights.n_cols());
            assert_eq!(n_cols, input.n_cols, "columns of a product");
            let gated = p.epilogue.gated;
            let up = gated.map_or((n_rows, n_cols), |g| (g.up.n_rows(), g.up.n_cols()));
            assert_eq!(up, (n_rows, n_cols), "shape of a gated product");
            let biases = [p.epilogue.bias, gated.and_then(|g| g.bias)];
            assert!(biases.iter().flatten().all(|b| b.len() == n_rows), "length of a bias");
            let place = match &mut p.y {
                Output::Floats(y) => {
                    assert_eq!(y.len(), n * n_rows, "shape of a product");
                    Place::Floats(Out::new(y))
                }
                Output::Codes(q8) => {
                    assert!(!p.epilogue.add, "nothing is added to codes");
                    let (blocks, fours) = q8.reshape(n, n_rows);
                    Place::Codes(Out::new(blocks), Out::new(fours))
                }
            };
            n_units += n_rows.div_ceil(PANEL * place.panels());
            *out = (place, n_units);
        }
        let codes = input.q8.map(Q8Acts::view);
        let (kernels, unpack_from) = (self.kernels(), self.unpack_from());
        let job = Matmul { kernels, unpack_from, input, codes, products, out, n };
        let shares = Shares::new(n_units, self.n_active());
        if n <= N_SMALL {
            self.run(&|| job.work::<N_SMALL>(&shares));
        } else {
            self.run(&|| job.work::<PREFILL_CHUNK_MAX>(&shares));
        }
    }
}

/// Where the results of a product go, of whichever rows.
#[derive(Clone, Copy)]
enum Place {
    Floats(Out<f32>),
    Codes(Out<Q8Block>, Out<Q8Four>),
}

impl Place {
    /// Panels that one thread computes one after the other: those of a block of codes.
    fn panels(&self) -> usize {
        match self {
            Self::Floats(_) => 1,
            Self::Codes(..) => CODED,
        }
    }
}

/// Products of one input under way.
struct Matmul<'a> {
    kernels: &'static Kernels,
    /// [`Hints::unpack_from`] of each format.
    unpack_from: [u8; Quant::COUNT],
    input: Input<'a>,
    codes: Option<Q8View<'a>>,
    products: &'a [Product<'a>],
    /// Of each product its output, and the units (of [`Place::panels`]) that those up to it have.
    out: [(Place, usize); N_PRODUCT_MAX],
    /// Tokens.
    n: usize,
}

impl Matmul<'_> {
    /// One thread's share, of at most `N` tokens.
    fn work<const N: usize>(&self, shares: &Shares) {
        let n = self.n;
        let (mut sums, mut ups, mut block) = ([[0.0; PANEL]; N], [[0.0; PANEL]; N], [[0.0; Q8_BLOCK]; N]);
        let (sums, ups, block) = (&mut sums[..n], &mut ups[..n], &mut block[..n]);
        let mut own = 0..0;
        let mut claim = || {
            if own.is_empty() {
                own = shares.claim();
            }
            own.next().map(|unit| self.find(unit))
        };
        let mut following = claim();
        while let Some((p, place, unit)) = following {
            following = claim();
            let first = unit * place.panels();
            for panel in first..first + place.panels() {
                let after = match &following {
                    _ if panel + 1 < first + place.panels() => bytes(&p.weights, panel + 1),
                    Some((p, place, unit)) => bytes(&p.weights, unit * place.panels()),
                    None => &[],
                };
                let n_rows = p.weights.n_rows();
                let rows = panel * PANEL..((panel + 1) * PANEL).min(n_rows);
                match p.epilogue.gated {
                    None => self.panel_sums::<N>(&p.weights, panel, after, sums),
                    Some(gated) => {
                        self.panel_sums::<N>(&p.weights, panel, bytes(&gated.up, panel), sums);
                        self.panel_sums::<N>(&gated.up, panel, after, ups);
                        p.epilogue.gate(self.kernels, sums, ups, rows.clone());
                    }
                }
                for (t, sums) in sums.iter().enumerate() {
                    let y = match &place {
                        // SAFETY: the rows are below n_rows and t < n_tokens, so they lie inside `y`; each row is in one
                        // panel, each panel is taken by one thread.
                        Place::Floats(y) => unsafe { y.slice(t * n_rows + rows.start, rows.len()) },
                        Place::Codes(..) => &mut block[t][(panel - first) * PANEL..][..PANEL],
                    };
                    p.epilogue.write(sums, rows.start, y);
                }
            }
            if let Place::Codes(blocks, fours) = place {
                let n_blocks = p.weights.n_rows() / Q8_BLOCK;
                for (i, floats) in block.chunks(FOUR).enumerate() {
                    let mut four = [Q8Block::default(); FOUR];
                    let four = &mut four[..floats.len()];
                    self.kernels.quantize(floats.as_flattened(), four);
                    // SAFETY: unit < n_blocks and the tokens are below n_tokens, so their blocks lie inside; each unit is taken
                    // by one thread.
                    unsafe { blocks.scatter(i * FOUR * n_blocks + unit, n_blocks, four) };
                    if self.kernels.arranges(n) {
                        // SAFETY: as above, of fours.
                        let fours = unsafe { fours.slice(i * n_blocks + unit, 1) };
                        self.kernels.arrange(four, 1, fours);
                    }
                }
            }
        }
    }

    /// The product that unit `i` of all belongs to, its output, and which of its units that is.
    fn find(&self, i: usize) -> (&Product<'_>, Place, usize) {
        let at = self.out.iter().position(|(_, end)| i < *end).unwrap_or(0);
        let first = if at == 0 { 0 } else { self.out[at - 1].1 };
        (&self.products[at], self.out[at].0, i - first)
    }

    /// Sums of the rows of a panel for all tokens, `[n_tokens][PANEL]`. `next` is what will be read after it.
    fn panel_sums<const N: usize>(
        &self,
        weights: &Weights<'_>,
        panel: usize,
        next: &[u8],
        sums: &mut [[f32; PANEL]],
    ) {
        let (kernels, input) = (self.kernels, &self.input);
        let rows = panel * PANEL..((panel + 1) * PANEL).min(weights.n_rows());
        match (weights, &self.codes) {
            (Weights::Packed(w), Some(codes)) if kernels.takes_codes(w.quant()) => {
                let hints = Hints { next, unpack_from: usize::from(self.unpack_from[w.quant() as usize]) };
                kernels.packed(w.quant(), w.panel(panel), hints, codes, sums);
            }
            (Weights::Packed(w), _) => {
                kernels.packed_f32(w.quant(), w.panel(panel), input.x, input.n_cols, sums);
            }
            (Weights::Rows(w), Some(codes)) if kernels.takes_codes(w.quant()) => {
                let mut tile = [[0.0; N]; PANEL];
                let tile = &mut tile.as_flattened_mut()[..rows.len() * sums.len()];
                kernels.rows_q8(w.quant(), w.stretch(rows.start, rows.end), codes, tile);
                for (r, row) in tile.chunks_exact(sums.len()).enumerate() {
                    for (sums, sum) in sums.iter_mut().zip(row) {
                        sums[r] = *sum;
                    }
                }
            }
            (Weights::Rows(w), _) => {
                kernels.rows_f32(w.quant(), w.stretch(rows.start, rows.end), input.x, input.n_cols, sums);
            }
        }
    }
}

/// The bytes of a panel; none of rows, which are read as they lie.
fn bytes<'a>(weights: &Weights<'a>, panel: usize) -> &'a [u8] {
    match weights {
        Weights::Packed(w) => w.panel(panel),
        Weights::Rows(_) => &[],
    }
}

/// Hands out `0 .. n` in stretches that shrink towards the end: a thread reads in one go, and a late one holds up the
/// others little.
struct Shares {
    next: AtomicUsize,
    n: usize,
    /// Which part of what is left a stretch is.
    part: usize,
}

impl Shares {
    /// The first stretch is small enough for a thread four times slower than the others. Shorter ones cost more than they
    /// save: what a processor reads ahead by itself, behind a stretch's end, is lost.
    fn new(n: usize, n_threads: usize) -> Self {
        Self { next: AtomicUsize::new(0), n, part: 4 * n_threads }
    }

    /// The next stretch; empty when all are taken.
    fn claim(&self) -> Range<usize> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let end = (start + ((self.n - start) / self.part).max(1)).min(self.n);
            // Relaxed: the counter hands out numbers, it orders nothing.
            match self.next.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return start..end,
                Err(now) => start = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the last of threads is through that need so long for a panel, as [`Matmul::work`] goes.
    fn end(n: usize, costs: &[u64]) -> u64 {
        let shares = Shares::new(n, costs.len());
        let mut own = vec![0..0; costs.len()];
        let mut claim = |i: usize| {
            if Range::is_empty(&own[i]) {
                own[i] = shares.claim();
            }
            own[i].next()
        };
        let mut following: Vec<Option<usize>> = (0..costs.len()).map(&mut claim).collect();
        let (mut now, mut seen) = (vec![0; costs.len()], vec![0; n]);
        while let Some(i) = (0..costs.len()).filter(|i| following[*i].is_some()).min_by_key(|i| now[*i]) {
            seen[following[i].take().expect("filtered")] += 1;
            following[i] = claim(i);
            now[i] += costs[i];
        }
        assert!(seen.iter().all(|times| *times == 1), "each panel once");
        now.into_iter().max().unwrap_or(0)
    }

    /// Cores of two kinds, or one that others steal from, do not hold up the rest; equal shares would, by the slowest.
    #[test]
    fn a_slow_thread_takes_less() {
        for costs in [&[10][..], &[10, 10], &[10, 13], &[10, 40], &[10, 10, 40, 40], &[10, 10, 10, 40]] {
            for n in [4, 36, 96, 512, 8016] {
                let rate: f64 = costs.iter().map(|c| 1.0 / *c as f64).sum();
                let (found, best) = (end(n, costs) as f64, n as f64 / rate);
                // Panels are whole, and one is claimed ahead.
                let bound = 1.05 * best + 2.0 * costs[costs.len() - 1] as f64;
                assert!(found <= bound, "{n} panels, {costs:?}: {found} instead of {best}");
            }
        }
    }
}
