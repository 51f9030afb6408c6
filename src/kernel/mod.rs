//! Layer 2: the arithmetic of a decoder, once for each instruction set. `scalar` is plain Rust and the definition;
//! a faster tier replaces some of its functions and inherits the rest. `docs/kernels.md` tells how to add one.
//!
//! Within a tier a number has the same bits however the work was cut into batches, chunks and threads: each output
//! has one order of float operations. Integers are equal in all tiers, floats within the bounds of `check`.

#[cfg(target_arch = "aarch64")]
mod arm;
mod attention;
mod cache;
#[cfg(test)]
mod check;
mod math;
mod matmul;
mod mix;
pub mod ops;
mod pool;
mod scalar;
mod tensor;
mod ways;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::Attention;
pub use cache::{BlockShape, Blocks, BlocksMut, Budget, Heads, KvType, Page};
use half::{bf16, f16};
pub use pool::Pool;
pub use tensor::{
    Act, Epilogue, Gated, Input, Output, Packed, Product, Q8Acts, Rows, Scores, ShapeError, Weights,
};

use zerocopy::{FromBytes, Immutable};

use crate::base::limits::ATTN_BLOCK;
use crate::quant::Quant;
use crate::quant::packed::{self, PANEL, Packing};
use tensor::{FOUR, Panels, Q8Block, Q8Four, Q8View};

/// Instruction-set level, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Plain Rust: every machine.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// x86-64 with AVX-VNNI as well (small ones since 2021).
    AvxVnni,
    /// x86-64 with AVX-512 F, BW and VNNI (servers since 2019).
    Avx512,
    /// 64-bit ARM with Advanced SIMD: all of them.
    Neon,
    /// 64-bit ARM with dot products of bytes (Cortex-A55, A76 and later).
    Dotprod,
    /// 64-bit ARM with matrix products of bytes as well (Neoverse V1, Cortex-A710 and later).
    I8mm,
}

impl Tier {
    /// Every tier.
    pub const ALL: [Self; 7] =
        [Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Neon, Self::Dotprod, Self::I8mm];

    /// The name in `SOTTO_CPU` and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
        }
    }

    /// The tier of this name.
    ///
    /// # Errors
    /// When there is none; the message names the choices.
    pub fn from_name(name: &str) -> Result<Self, TierError> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| TierError::Unknown { name: name.into(), known: names(&Self::ALL) })
    }

    /// The kernels of this tier, or the feature that this machine lacks for it.
    fn kernels(self) -> Result<&'static Kernels, &'static str> {
        match self {
            Self::Scalar => Ok(&SCALAR),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => x86::avx_vnni(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::AvxVnni | Self::Avx512 => Err("an x86-64 processor"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Ok(&arm::NEON),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => arm::dotprod(),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => arm::i8mm(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::Dotprod | Self::I8mm => Err("a 64-bit ARM processor"),
        }
    }
}

/// A tier that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TierError {
    /// No tier has this name.
    #[error("SOTTO_CPU={name} names no kernel tier; this machine has: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The choices.
        known: String,
    },
    /// The machine lacks what it needs.
    #[error("SOTTO_CPU={name} needs {missing}, which this machine lacks; it has: {known}")]
    Unsupported {
        /// What was asked for.
        name: &'static str,
        /// The missing feature.
        missing: &'static str,
        /// The choices.
        known: String,
    },
}

/// The tiers that this machine can run, lowest first.
#[must_use]
pub fn available() -> Vec<Tier> {
    Tier::ALL.into_iter().filter(|t| t.kernels().is_ok()).collect()
}

fn names(tiers: &[Tier]) -> String {
    let runs = tiers.iter().filter(|t| t.kernels().is_ok());
    runs.map(|t| t.name()).collect::<Vec<_>>().join(", ")
}

/// The kernels of the tier asked for, or of the best one that this machine has.
///
/// # Errors
/// When the machine lacks a feature of the tier asked for.
pub fn select(asked: Option<Tier>) -> Result<&'static Kernels, TierError> {
    let best = || available().into_iter().next_back().unwrap_or(Tier::Scalar);
    let tier = asked.unwrap_or_else(best);
    let unsupported =
        |missing| TierError::Unsupported { name: tier.name(), missing, known: names(&Tier::ALL) };
    tier.kernels().map_err(unsupported)
}

/// Float sums are carried in this many lanes, element `i` in lane `i % LANES`, and added up as a tree.
const LANES: usize = 16;
/// Tokens from which on codes of packed weights are unpacked first, as long as nothing was measured.
const UNPACK_FROM: usize = 9;
/// Weights of a row that are unpacked at a time: whole blocks of every format.
const STRETCH: usize = 256;
/// Whether this architecture has tiers that read activations by fours ([`Q8Four`]).
const BY_FOURS: bool = cfg!(target_arch = "aarch64");
/// Weights that share one scale of the activations' codes.
pub const Q8_BLOCK: usize = 32;

type UnpackFn = unsafe fn(&[u8], &mut [f32]);
type Q8Fn = unsafe fn(&[u8], &Q8View<'_>, &mut [f32]);
/// Takes a panel, hints, activations and the sums `[n_tokens][PANEL]`.
type PackedFn = unsafe fn(&[u8], Hints<'_>, &Q8View<'_>, &mut [[f32; PANEL]]);
type QuantizeFn = unsafe fn(&[f32], &mut [Q8Block]);
type ArrangeFn = unsafe fn([&[Q8Block]; FOUR], &mut [Q8Four]);
type RmsNormFn = unsafe fn(&[f32], &[f32], f32, &mut [f32]);
type SwigluFn = unsafe fn(&mut [f32], &[f32]);
type RopeFn = unsafe fn(&mut [f32], &[f32], &[f32]);
type StoreF16Fn = unsafe fn(&[f32], &mut [f16]);
/// Rows of floats, so many apart.
type Strided<'a> = (&'a [f32], usize);
type StridedMut<'a> = (&'a mut [f32], usize);
/// Takes rows `a`, their number, panels, rows `c`, and whether to add to those.
type MixFn<T> = unsafe fn(Strided<'_>, usize, &Panels<'_, T>, StridedMut<'_>, bool);
/// Takes 16 rows of weights and writes them as columns, so many of them.
type TurnFn = unsafe fn(&[[f32; STRETCH]; PANEL], &mut [[f32; PANEL]; STRETCH], usize);
type WeighFn = unsafe fn(&mut [f32; ATTN_BLOCK], Scores) -> (f32, f32);
type BlendFn = unsafe fn(&mut [f32], f32, &[f32], f32);
type PeakFn = unsafe fn(u32) -> u64;
type StoreQ8Fn = unsafe fn(&[f32], &mut [i8], &mut [f16]);

/// What a product with a panel may know beside its operands. It changes no bit.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "the kernels of other processors heed none")
)]
struct Hints<'a> {
    /// The panel that will be read next, or nothing: it may be brought nearer meanwhile.
    next: &'a [u8],
    /// From how many tokens on codes are unpacked before they are multiplied.
    unpack_from: usize,
}

impl Default for Hints<'_> {
    fn default() -> Self {
        Self { next: &[], unpack_from: UNPACK_FROM }
    }
}

/// Kernels of one tier. A `&'static Kernels` is proof that the machine has its features: only [`select`] gives one.
#[derive(Clone, Copy)]
pub struct Kernels {
    tier: Tier,
    unpack: [UnpackFn; Quant::COUNT],
    /// None: weights of this format are multiplied with float activations.
    q8: [Option<Q8Fn>; Quant::COUNT],
    packed: [Option<PackedFn>; Quant::COUNT],
    /// Whether those heed [`Hints::unpack_from`].
    two_ways: [bool; Quant::COUNT],
    quantize: QuantizeFn,
    /// None: products with packed weights take tokens as they lie.
    arrange: Option<ArrangeFn>,
    rms_norm: RmsNormFn,
    swiglu: SwigluFn,
    rope_pairs: RopeFn,
    rope_halves: RopeFn,
    store_f16: StoreF16Fn,
    store_q8: StoreQ8Fn,
    mix_f16: MixFn<f16>,
    mix_bf16: MixFn<bf16>,
    mix_f32: MixFn<f32>,
    mix_i8: MixFn<i8>,
    turn: TurnFn,
    weigh: WeighFn,
    blend: BlendFn,
    peak: PeakFn,
}

const SCALAR: Kernels = Kernels {
    tier: Tier::Scalar,
    unpack: scalar::UNPACK,
    q8: scalar::PRODUCTS,
    packed: scalar::PACKED,
    two_ways: [false; Quant::COUNT],
    quantize: scalar::quantize,
    arrange: None,
    rms_norm: scalar::rms_norm,
    swiglu: scalar::swiglu,
    rope_pairs: scalar::rope_pairs,
    rope_halves: scalar::rope_halves,
    store_f16: scalar::store_f16,
    store_q8: scalar::store_q8,
    mix_f16: scalar::mix_f16,
    mix_bf16: scalar::mix_bf16,
    mix_f32: scalar::mix_f32,
    mix_i8: scalar::mix_i8,
    turn: scalar::turn,
    weigh: scalar::weigh,
    blend: scalar::blend,
    peak: scalar::peak,
};

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.tier.name())
    }
}

impl Kernels {
    /// The same with another function to unpack `quant`.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_unpack(mut self, quant: Quant, f: UnpackFn) -> Self {
        self.unpack[quant as usize] = f;
        self
    }

    /// The same with other functions to unpack `quant` and to multiply it with codes.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_blocks(mut self, quant: Quant, unpack: UnpackFn, product: Q8Fn) -> Self {
        self.unpack[quant as usize] = unpack;
        self.q8[quant as usize] = Some(product);
        self
    }

    /// The same with another measure of the best that it could do.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_peak(mut self, peak: PeakFn) -> Self {
        self.peak = peak;
        self
    }

    /// The same with other functions to multiply packed weights.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    const fn with_packed(mut self, packed: [Option<PackedFn>; Quant::COUNT]) -> Self {
        self.packed = packed;
        self
    }

    /// The same, with two ways to multiply some formats.
    #[cfg(target_arch = "x86_64")]
    const fn with_two_ways(mut self, two_ways: [bool; Quant::COUNT]) -> Self {
        self.two_ways = two_ways;
        self
    }

    /// The tier.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether weights of `quant` are multiplied with 8-bit codes of the activations.
    #[must_use]
    pub fn takes_codes(&self, quant: Quant) -> bool {
        self.q8[quant as usize].is_some()
    }

    /// `y[i] = x[i] * weight[i] / sqrt(mean(x²) + eps)` (Zhang and Sennrich, "Root Mean Square Layer
    /// Normalization", 2019).
    ///
    /// # Panics
    /// If lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        assert_eq!((x.len(), weight.len()), (y.len(), y.len()), "lengths of a norm");
        // SAFETY: the machine has the features of this table (`select`); lengths are equal.
        unsafe { (self.rms_norm)(x, weight, eps, y) }
    }

    /// `gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]` (Shazeer, "GLU Variants Improve Transformer", 2020).
    ///
    /// # Panics
    /// If lengths differ.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        // SAFETY: the machine has the features of this table (`select`); lengths are equal.
        unsafe { (self.swiglu)(gate, up) }
    }

    /// `gate[i] = act(gate[i]) * up[i]`.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn gate(&self, act: Act, gate: &mut [f32], up: &[f32]) {
        match act {
            Act::Silu => self.swiglu(gate, up),
            Act::Gelu => ops::geglu(gate, up),
            Act::ClampedSilu => ops::clamped_swiglu(gate, up),
        }
    }

    /// Turns neighbouring pairs of the first `2 * cos.len()` dimensions of a head.
    ///
    /// # Panics
    /// If the head is narrower than that, or `cos` and `sin` differ in length.
    pub fn rope_pairs(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(
            2 * cos.len() <= head.len() && cos.len() == sin.len(),
            "{} pairs in a head of {}",
            cos.len(),
            head.len()
        );
        // SAFETY: the machine has the features of this table (`select`); lengths agree.
        unsafe { (self.rope_pairs)(head, cos, sin) }
    }

    /// Turns pairs half of the rotated part apart, of the first `2 * cos.len()` dimensions of a head.
    ///
    /// # Panics
    /// If the head is narrower than that, or `cos` and `sin` differ in length.
    pub fn rope_halves(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(
            2 * cos.len() <= head.len() && cos.len() == sin.len(),
            "{} pairs in a head of {}",
            cos.len(),
            head.len()
        );
        // SAFETY: the machine has the features of this table (`select`); lengths agree.
        unsafe { (self.rope_halves)(head, cos, sin) }
    }

    /// Rounds to 16-bit floats, ties to even.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn store_f16(&self, x: &[f32], y: &mut [f16]) {
        assert_eq!(x.len(), y.len(), "lengths of a store");
        // SAFETY: the machine has the features of this table (`select`); lengths are equal.
        unsafe { (self.store_f16)(x, y) }
    }

    /// 8-bit codes of one token's activations.
    fn quantize(&self, x: &[f32], out: &mut [Q8Block]) {
        assert_eq!(x.len(), out.len() * Q8_BLOCK, "activations in blocks");
        // SAFETY: the machine has the features of this table (`select`); lengths agree.
        unsafe { (self.quantize)(x, out) }
    }

    /// Whether codes of `n` tokens are to be arranged by fours as well.
    fn arranges(&self, n: usize) -> bool {
        n > 1 && self.arrange.is_some()
    }

    /// Puts the blocks of four tokens each side by side, in the order of this tier: `[n_tokens, n_blocks]` becomes
    /// `[n_tokens / 4, n_blocks]`. Panics where it has none.
    fn arrange(&self, blocks: &[Q8Block], n_blocks: usize, fours: &mut [Q8Four]) {
        let n = blocks.len() / n_blocks;
        assert_eq!(
            (n * n_blocks, n.div_ceil(FOUR) * n_blocks),
            (blocks.len(), fours.len()),
            "tokens by fours"
        );
        let arrange = self.arrange.expect("asked by arranges before");
        for (i, fours) in fours.chunks_exact_mut(n_blocks).enumerate() {
            // The last one stands for those that are lacking.
            let row = |k: usize| &blocks[(i * FOUR + k).min(n - 1) * n_blocks..][..n_blocks];
            // SAFETY: the machine has the features of this table (`select`); rows are as long as what is made of them.
            unsafe { arrange(std::array::from_fn(row), fours) }
        }
    }

    /// `sums[t][r] = Σ_c w[r][c] · x[t][c]` for the rows of a panel by 8-bit codes. Panics where there is no such kernel.
    fn packed(
        &self,
        quant: Quant,
        panel: &[u8],
        hints: Hints<'_>,
        x: &Q8View<'_>,
        sums: &mut [[f32; PANEL]],
    ) {
        let bytes = Packing::of(quant).map(|packing| packing.sections(x.n_cols)[4]);
        assert_eq!((bytes, sums.len()), (Some(panel.len()), x.n_tokens), "panel of {}", quant.name());
        let kernel = self.packed[quant as usize].expect("formats that are packed have one");
        // SAFETY: the machine has the features of this table (`select`); panel, columns and sums agree.
        unsafe { kernel(panel, hints, x, sums) }
    }

    /// `tile[r][t] = Σ_c w[r][c] · x[t][c]` for the rows in `w` by 8-bit codes. Panics where there is no such kernel.
    fn rows_q8(&self, quant: Quant, w: &[u8], x: &Q8View<'_>, tile: &mut [f32]) {
        let row_bytes = quant.row_bytes(x.n_cols).unwrap_or(0);
        assert_eq!(
            w.len() * x.n_tokens,
            tile.len() * row_bytes,
            "{} rows for {} tokens",
            quant.name(),
            x.n_tokens
        );
        let kernel = self.q8[quant as usize].expect("asked by takes_codes before");
        // SAFETY: the machine has the features of this table (`select`); rows, columns and tile agree.
        unsafe { kernel(w, x, tile) }
    }

    /// `sums[t][r] = Σ_c w[r][c] · x[t][c]` for up to 16 rows in `w`, with float activations `x` `[n_tokens, n_cols]`.
    fn rows_f32(&self, quant: Quant, w: &[u8], x: &[f32], n_cols: usize, sums: &mut [[f32; PANEL]]) {
        let row_bytes = quant.row_bytes(n_cols).unwrap_or(0);
        let n_rows = w.len() / row_bytes;
        assert!(w.len() == n_rows * row_bytes && n_rows <= PANEL, "{} rows of {}", n_rows, quant.name());
        let at = |col: usize| col / quant.block_len() * quant.block_bytes();
        self.floats(x, n_cols, sums, n_rows, |r, start, weights| {
            self.unpack(quant, &w[r * row_bytes..][at(start)..at(start + weights.len())], weights);
        });
    }

    /// The same for a panel, with the same bits. Slow for formats with blocks: what asks for floats is there to be exact.
    fn packed_f32(&self, quant: Quant, panel: &[u8], x: &[f32], n_cols: usize, sums: &mut [[f32; PANEL]]) {
        let (n, len, x_rows) = (sums.len(), n_cols * PANEL, (x, n_cols));
        // `None` where they are not aligned, as no file of ours has them.
        fn read<T: FromBytes + Immutable>(panel: &[u8], len: usize) -> Option<&[T]> {
            Some(<[T]>::ref_from_prefix_with_elems(panel, len).ok()?.0)
        }
        macro_rules! mix {
            ($kernel:ident) => {
                read(panel, len).map(|b| {
                    let panels = Panels { b, stride: len, n: 1, n_k: n_cols };
                    self.mix(self.$kernel, x_rows, n, panels, (sums.as_flattened_mut(), PANEL), false);
                })
            };
        }
        let done = match quant {
            Quant::F16 => mix!(mix_f16),
            Quant::BF16 => mix!(mix_bf16),
            Quant::F32 => mix!(mix_f32),
            _ => None,
        };
        if done.is_none() {
            self.floats(x, n_cols, sums, PANEL, |r, start, weights| {
                packed::unpack_part(quant, panel, n_cols, r, start, weights);
            });
        }
    }

    /// The same, where `unpack` writes weights of a row from a column on.
    fn floats(
        &self,
        x: &[f32],
        n_cols: usize,
        sums: &mut [[f32; PANEL]],
        n_rows: usize,
        unpack: impl Fn(usize, usize, &mut [f32]),
    ) {
        let (mut rows, mut panel) = ([[0.0; STRETCH]; PANEL], [[0.0; PANEL]; STRETCH]);
        for start in (0..n_cols).step_by(STRETCH) {
            let n_k = STRETCH.min(n_cols - start);
            for (r, row) in rows.iter_mut().enumerate().take(n_rows) {
                unpack(r, start, &mut row[..n_k]);
            }
            // SAFETY: the machine has the features of this table (`select`); n_k is at most STRETCH.
            unsafe { (self.turn)(&rows, &mut panel, n_k) };
            let b = Panels { b: panel[..n_k].as_flattened(), stride: n_k * PANEL, n: 1, n_k };
            let (n, c) = (sums.len(), (sums.as_flattened_mut(), PANEL));
            self.mix(self.mix_f32, (&x[start..], n_cols), n, b, c, start > 0);
        }
    }

    /// Stores one row as 8-bit codes with a scale for each 32 (the last block may be shorter).
    ///
    /// # Panics
    /// If lengths do not agree.
    pub fn store_q8(&self, x: &[f32], codes: &mut [i8], scales: &mut [f16]) {
        assert_eq!((x.len(), x.len().div_ceil(Q8_BLOCK)), (codes.len(), scales.len()), "lengths of a store");
        // SAFETY: the machine has the features of this table (`select`); lengths agree.
        unsafe { (self.store_q8)(x, codes, scales) }
    }

    /// `c[r][16 p + i] = Σ_k a[r][k] · b[p][k][i]` for `n_rows` rows, by one of this table's kernels: one sum an output,
    /// k ascending, which with `add` goes on from what `c` is.
    fn mix<T>(
        &self,
        kernel: MixFn<T>,
        a: Strided<'_>,
        n_rows: usize,
        b: Panels<'_, T>,
        c: StridedMut<'_>,
        add: bool,
    ) {
        if n_rows == 0 || b.n == 0 {
            return;
        }
        let fits = |len: usize, n: usize, stride: usize, last: usize| len >= (n - 1) * stride + last;
        assert!(
            fits(a.0.len(), n_rows, a.1, b.n_k)
                && fits(b.b.len(), b.n, b.stride, PANEL * b.n_k)
                && fits(c.0.len(), n_rows, c.1, PANEL * b.n)
                && a.1 >= b.n_k
                && b.stride >= PANEL * b.n_k
                && c.1 >= PANEL * b.n,
            "{n_rows} rows times {} panels",
            b.n
        );
        // SAFETY: the machine has the features of this table (`select`); all rows and panels are there.
        unsafe { kernel(a, n_rows, &b, c, add) }
    }

    /// Makes scores of products, and weights `exp(score - max)` of those; what is minus infinity has none. Returns the
    /// maximum and the sum of the weights.
    fn weigh(&self, products: &mut [f32; ATTN_BLOCK], how: Scores) -> (f32, f32) {
        // SAFETY: the machine has the features of this table (`select`).
        unsafe { (self.weigh)(products, how) }
    }

    /// `y = y * a + x * b`. Panics if lengths differ.
    fn blend(&self, y: &mut [f32], a: f32, x: &[f32], b: f32) {
        assert_eq!(y.len(), x.len(), "lengths of a blend");
        // SAFETY: the machine has the features of this table (`select`); lengths are equal.
        unsafe { (self.blend)(y, a, x, b) }
    }

    /// Does `n_rounds` of the tier's best 8-bit multiplications, in registers alone, and tells how many multiplications
    /// with an addition those are: no product by codes can be faster.
    #[must_use]
    pub fn peak(&self, n_rounds: u32) -> u64 {
        // SAFETY: the machine has the features of this table (`select`).
        unsafe { (self.peak)(n_rounds) }
    }

    /// The weights in `bytes`, whole blocks, as floats. Panics if `out` has not as many.
    fn unpack(&self, quant: Quant, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(quant.row_bytes(out.len()), Some(bytes.len()), "weights in {}", quant.name());
        // SAFETY: the machine has the features of this table (`select`); the bytes are those of `out`.
        unsafe { (self.unpack[quant as usize])(bytes, out) }
    }
}
