//! The arguments of products and attention: weights in place, activations, outputs.

use std::ops::Range;

use super::{BY_FOURS, Kernels, Q8_BLOCK};
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::quant::packed::{self, PANEL};
use crate::quant::{self, Quant};

/// A matrix whose bytes do not fit its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{n_rows} rows of {n_cols} weights in {} do not take {len} bytes", quant.name())]
pub struct ShapeError {
    quant: Quant,
    n_rows: usize,
    n_cols: usize,
    len: usize,
}

/// A matrix as GGUF stores it: `n_rows` rows of `n_cols` weights, row after row, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    quant: Quant,
    n_rows: usize,
    n_cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    /// The matrix in `bytes`.
    ///
    /// # Errors
    /// When the length does not follow from the shape.
    pub fn new(quant: Quant, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Result<Self, ShapeError> {
        let shape = ShapeError { quant, n_rows, n_cols, len: bytes.len() };
        let row_bytes = quant.row_bytes(n_cols).filter(|b| *b > 0).ok_or(shape)?;
        match row_bytes.checked_mul(n_rows) == Some(bytes.len()) {
            true => Ok(Self { quant, n_rows, n_cols, row_bytes, bytes }),
            false => Err(shape),
        }
    }

    /// The format of its blocks.
    #[must_use]
    pub fn quant(&self) -> Quant {
        self.quant
    }

    /// Number of rows: outputs of a product.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Weights of a row: inputs of a product.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Writes the `out.len()` weights of row `i` from column `start` on, whole blocks, as floats.
    ///
    /// # Panics
    /// If there are no such weights, or blocks do not begin and end there.
    pub fn unpack_part(&self, i: usize, start: usize, out: &mut [f32]) {
        let per_block = (self.quant.block_len(), self.quant.block_bytes());
        assert!(start.is_multiple_of(per_block.0) && start + out.len() <= self.n_cols, "part of a row");
        let row = self.stretch(i, i + 1);
        let at = |col: usize| col / per_block.0 * per_block.1;
        quant::unpack_row(self.quant, &row[at(start)..at(start + out.len())], out);
    }

    /// The bytes of rows `start .. end`.
    pub(super) fn stretch(&self, start: usize, end: usize) -> &'a [u8] {
        &self.bytes[start * self.row_bytes..end * self.row_bytes]
    }
}

/// A matrix in panels of 16 rows ([`crate::quant::packed`]), 64-byte aligned where that is to be fast.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    quant: Quant,
    n_rows: usize,
    n_cols: usize,
    panel_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// The matrix in `bytes`.
    ///
    /// # Errors
    /// When the length does not follow from the shape.
    pub fn new(quant: Quant, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Result<Self, ShapeError> {
        let shape = ShapeError { quant, n_rows, n_cols, len: bytes.len() };
        match packed::bytes(quant, n_rows, n_cols) == Some(bytes.len()) {
            true => {
                Ok(Self { quant, n_rows, n_cols, panel_bytes: packed::panel_bytes(quant, n_cols), bytes })
            }
            false => Err(shape),
        }
    }

    /// Bytes of a panel of `rows`.
    #[must_use]
    pub fn panel_bytes(rows: &Rows<'_>) -> usize {
        packed::panel_bytes(rows.quant, rows.n_cols)
    }

    /// Packs the rows of panel `i` of `rows` into `out`.
    ///
    /// # Panics
    /// If there is no such panel, or `out` has another length than [`Self::panel_bytes`].
    pub fn pack_panel(rows: &Rows<'_>, i: usize, out: &mut [u8]) {
        assert_eq!(Self::panel_bytes(rows), out.len(), "room for a panel");
        out.fill(0);
        (packed::pack_panel(rows.quant))(
            rows.stretch(i * PANEL, ((i + 1) * PANEL).min(rows.n_rows)),
            rows.n_cols,
            out,
        );
    }

    /// The format that was packed.
    #[must_use]
    pub fn quant(&self) -> Quant {
        self.quant
    }

    /// The bytes of panel `i`.
    pub(super) fn panel(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.panel_bytes..(i + 1) * self.panel_bytes]
    }

    /// As [`Rows::unpack_part`], with the same bits; groups of 32 of a format with blocks begin and end there.
    ///
    /// # Panics
    /// If there are no such weights.
    pub fn unpack_part(&self, i: usize, start: usize, out: &mut [f32]) {
        assert!(i < self.n_rows && start + out.len() <= self.n_cols, "part of a row");
        packed::unpack_part(self.quant, self.panel(i / PANEL), self.n_cols, i % PANEL, start, out);
    }
}

/// Weights of a product.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// As the file has them.
    Rows(Rows<'a>),
    /// As kernels read them.
    Packed(Packed<'a>),
}

impl Weights<'_> {
    /// The format of its blocks.
    #[must_use]
    pub fn quant(&self) -> Quant {
        match self {
            Self::Rows(w) => w.quant,
            Self::Packed(w) => w.quant,
        }
    }

    /// Number of rows: outputs of a product.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        match self {
            Self::Rows(w) => w.n_rows,
            Self::Packed(w) => w.n_rows,
        }
    }

    /// Weights of a row: inputs of a product.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        match self {
            Self::Rows(w) => w.n_cols,
            Self::Packed(w) => w.n_cols,
        }
    }

    /// Writes the `out.len()` weights of row `i` from column `start` on, whole blocks, as floats.
    ///
    /// # Panics
    /// If there are no such weights, or blocks do not begin and end there.
    pub fn unpack_part(&self, i: usize, start: usize, out: &mut [f32]) {
        match self {
            Self::Rows(w) => w.unpack_part(i, start, out),
            Self::Packed(w) => w.unpack_part(i, start, out),
        }
    }
}

/// What happens to a product's sums on their way out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to each token's sums, `[n_rows]`.
    pub bias: Option<&'a [f32]>,
    /// Another product of the same input, of as many rows: the sums become `act(sums) * up`.
    pub gated: Option<Gated<'a>>,
    /// Add to what the output holds, instead of replacing it.
    pub add: bool,
}

/// What a gate lets through.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a> {
    /// The matrix.
    pub up: Weights<'a>,
    /// Added to its sums, `[n_rows]`.
    pub bias: Option<&'a [f32]>,
    /// The activation.
    pub act: Act,
}

/// What stands between the products of a feed-forward (Shazeer, "GLU Variants Improve Transformer", 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    Gelu,
    /// SiLU with a factor of 1.702, gate and up clamped, 1 added to up (gpt-oss).
    ClampedSilu,
}

impl Epilogue<'_> {
    /// Adds biases to the sums of some rows, `[n_tokens][PANEL]`, and lets through what the gate says. `ups` are the sums of as many
    /// rows of the other matrix.
    pub(super) fn gate(
        &self,
        kernels: &Kernels,
        sums: &mut [[f32; PANEL]],
        ups: &mut [[f32; PANEL]],
        rows: Range<usize>,
    ) {
        let Some(gated) = self.gated else { return };
        for (sums, bias) in [(&mut *sums, self.bias), (&mut *ups, gated.bias)] {
            let Some(bias) = bias else { continue };
            for sums in sums {
                sums.iter_mut().zip(&bias[rows.clone()]).for_each(|(sum, bias)| *sum += bias);
            }
        }
        kernels.gate(gated.act, sums.as_flattened_mut(), ups.as_flattened());
    }

    /// Writes the sums of one token's rows from `first` on.
    pub(super) fn write(&self, sums: &[f32; PANEL], first: usize, y: &mut [f32]) {
        // That of a gate was added before.
        let bias = self.bias.filter(|_| self.gated.is_none()).map(|bias| &bias[first..first + y.len()]);
        // A whole panel has a known length, which is faster.
        match (y.first_chunk_mut::<PANEL>(), bias, self.add) {
            (Some(y), None, false) => *y = *sums,
            (Some(y), None, true) => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
            (_, None, _) => {
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = if self.add { *y } else { 0.0 } + sum;
                }
            }
            (_, Some(bias), _) => {
                for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                    *y = if self.add { *y } else { 0.0 } + (sum + bias);
                }
            }
        }
    }
}

/// One matrix product `y[t][r] = Σ_c weights[r][c] · x[t][c]`.
#[derive(Debug)]
pub struct Product<'a> {
    /// The matrix.
    pub weights: Weights<'a>,
    /// Where its results go.
    pub y: Output<'a>,
    /// What is added.
    pub epilogue: Epilogue<'a>,
}

/// Where the results of a product go.
#[derive(Debug)]
pub enum Output<'a> {
    /// Floats, `[n_tokens, n_rows]`.
    Floats(&'a mut [f32]),
    /// Codes alone, for the product that comes next; whole blocks of 32 rows.
    Codes(&'a mut Q8Acts),
}

/// Activations of one or more products.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[n_tokens, n_cols]`; nothing where all the matrices are multiplied with codes.
    pub x: &'a [f32],
    /// Width.
    pub n_cols: usize,
    /// Codes of `x` ([`super::Pool::quantize`]) for the matrices that are multiplied with them.
    pub q8: Option<&'a Q8Acts>,
}

impl Input<'_> {
    /// Its tokens, checked against what kernels take.
    pub(crate) fn n_tokens(&self) -> usize {
        let n = match self.q8 {
            Some(q8) if self.x.is_empty() => q8.n_tokens,
            _ => n_tokens(self.x, self.n_cols),
        };
        assert!(
            self.q8.is_none_or(|q8| (q8.n_tokens, q8.n_cols) == (n, self.n_cols)),
            "codes of another input"
        );
        n
    }
}

/// Activations as 8-bit codes, in blocks of 32.
#[derive(Debug)]
pub struct Q8Acts {
    /// `[n_tokens, n_cols / 32]`.
    blocks: Vec<Q8Block>,
    /// `[n_tokens / 4, n_cols / 32]`; none where no tier wants them.
    fours: Vec<Q8Four>,
    n_tokens: usize,
    n_cols: usize,
}

/// 32 activations of a token and what kernels need beside them, so that one pointer a token is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(16))]
pub(super) struct Q8Block {
    /// Within ±127.
    pub codes: [i8; Q8_BLOCK],
    /// Sums of codes of the first half and of the whole. A product with codes of weights that were made unsigned begins
    /// with their multiple.
    pub first: Pair,
    pub both: Pair,
    /// What a code of 1 stands for.
    pub scale: f32,
    /// Scale times the sum of the codes: formats with minima need it.
    pub sum: f32,
}

/// Tokens of a [`Q8Four`].
pub(super) const FOUR: usize = 4;

/// The blocks of four tokens side by side, as kernels for several tokens read them: made once, where the codes are made,
/// and not by each panel of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Q8Four {
    /// In the order of the tier, [`Kernels::arrange`].
    pub codes: [[i8; FOUR * 4]; Q8_BLOCK / 4],
    /// The rest of the blocks.
    pub first: [Pair; FOUR],
    pub both: [Pair; FOUR],
    pub scale: [f32; FOUR],
    pub sum: [f32; FOUR],
}

/// Two 16-bit sums of codes: those in places 0 and 1 of every four, in the lower bits, and those in places 2 and 3.
pub(super) type Pair = u32;

impl Q8Acts {
    /// Room for `n_tokens_max` tokens of `n_cols_max` activations.
    #[must_use]
    pub fn new(n_tokens_max: usize, n_cols_max: usize) -> Self {
        let n_blocks = n_cols_max.div_ceil(Q8_BLOCK);
        Self {
            blocks: vec![Q8Block::default(); n_tokens_max * n_blocks],
            fours: vec![Q8Four::default(); n_fours(n_tokens_max, n_blocks)],
            n_tokens: 0,
            n_cols: 0,
        }
    }

    /// Bytes of the codes of a batch of tokens of `n_cols` activations.
    #[must_use]
    pub fn bytes(n_tokens: usize, n_cols: usize) -> usize {
        let n_blocks = n_cols.div_ceil(Q8_BLOCK);
        n_tokens * n_blocks * size_of::<Q8Block>() + n_fours(n_tokens, n_blocks) * size_of::<Q8Four>()
    }

    /// Sets the shape and gives what is to be filled, of all tokens: the blocks, and the fours that are made of them.
    pub(super) fn reshape(&mut self, n_tokens: usize, n_cols: usize) -> (&mut [Q8Block], &mut [Q8Four]) {
        assert!(n_cols.is_multiple_of(Q8_BLOCK), "{n_cols} activations in blocks of {Q8_BLOCK}");
        (self.n_tokens, self.n_cols) = (n_tokens, n_cols);
        let n_blocks = n_cols / Q8_BLOCK;
        (&mut self.blocks[..n_tokens * n_blocks], &mut self.fours[..n_fours(n_tokens, n_blocks)])
    }

    pub(super) fn view(&self) -> Q8View<'_> {
        let Self { n_tokens, n_cols, .. } = *self;
        let n_blocks = n_cols / Q8_BLOCK;
        let (blocks, fours) =
            (&self.blocks[..n_tokens * n_blocks], &self.fours[..n_fours(n_tokens, n_blocks)]);
        Q8View { blocks, fours, n_tokens, n_cols }
    }
}

/// Fours of a batch; a token alone has none.
pub(super) fn n_fours(n_tokens: usize, n_blocks: usize) -> usize {
    if BY_FOURS && n_tokens > 1 { n_tokens.div_ceil(FOUR) * n_blocks } else { 0 }
}

/// The codes of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Q8View<'a> {
    /// `[n_tokens, n_cols / 32]`.
    pub blocks: &'a [Q8Block],
    /// The same by fours, `[n_tokens / 4, n_cols / 32]`, for tiers that want it ([`Kernels::arrange`]).
    #[cfg_attr(
        not(target_arch = "aarch64"),
        expect(dead_code, reason = "the kernels of other processors take tokens as they lie")
    )]
    pub fours: &'a [Q8Four],
    pub n_tokens: usize,
    pub n_cols: usize,
}

impl<'a> Q8View<'a> {
    /// Codes of token `t`, `[n_cols / 32]`.
    pub(super) fn row(&self, t: usize) -> &'a [Q8Block] {
        let n = self.n_cols / Q8_BLOCK;
        &self.blocks[t * n..(t + 1) * n]
    }
}

/// Some panels of 16 columns, `stride` apart, of which each has `n_k` rows: `[n][n_k][16]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panels<'a, T> {
    pub b: &'a [T],
    pub stride: usize,
    pub n: usize,
    pub n_k: usize,
}

/// How a product of query and key becomes a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// What it is multiplied with.
    pub scale: f32,
    /// Bounds it softly, `cap * tanh(score / cap)`; 0: not at all (Gemma 2).
    pub cap: f32,
}

impl Scores {
    /// The score of a product.
    #[inline]
    pub(super) fn of(self, product: f32) -> f32 {
        let score = product * self.scale;
        if self.cap > 0.0 { self.cap * super::math::tanh(score / self.cap) } else { score }
    }
}

/// Tokens of `x`, checked against what kernels take.
pub(super) fn n_tokens(x: &[f32], n_cols: usize) -> usize {
    let n = x.len() / n_cols;
    assert!(n * n_cols == x.len() && n <= PREFILL_CHUNK_MAX, "{} activations in rows of {n_cols}", x.len());
    n
}
