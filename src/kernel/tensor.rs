//! The arguments of products and attention: weights in place, activations, outputs.

use half::f16;

use super::Q8_BLOCK;
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::quant::packed::{self, PANEL, Packing};
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

    /// Writes row `i` as floats, `[n_cols]`.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn unpack(&self, i: usize, out: &mut [f32]) {
        quant::unpack_row(self.quant, self.stretch(i, i + 1), out);
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
    /// When the length does not follow from the shape, or the format is never packed.
    pub fn new(quant: Quant, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Result<Self, ShapeError> {
        let shape = ShapeError { quant, n_rows, n_cols, len: bytes.len() };
        let packing = Packing::of(quant).ok_or(shape)?;
        match quant.row_bytes(n_cols).is_some() && packing.bytes(n_rows, n_cols) == Some(bytes.len()) {
            true => Ok(Self { quant, n_rows, n_cols, panel_bytes: packing.sections(n_cols)[4], bytes }),
            false => Err(shape),
        }
    }

    /// Bytes of a panel of `rows`; `None` if their format is never packed.
    #[must_use]
    pub fn panel_bytes(rows: &Rows<'_>) -> Option<usize> {
        Packing::of(rows.quant).map(|packing| packing.sections(rows.n_cols)[4])
    }

    /// Packs the rows of panel `i` of `rows` into `out`.
    ///
    /// # Panics
    /// If the format is never packed, there is no such panel, or `out` has another length than [`Self::panel_bytes`].
    pub fn pack_panel(rows: &Rows<'_>, i: usize, out: &mut [u8]) {
        let pack = packed::pack_panel(rows.quant).expect("a format that is packed");
        assert_eq!(Self::panel_bytes(rows), Some(out.len()), "room for a panel");
        out.fill(0);
        pack(rows.stretch(i * PANEL, ((i + 1) * PANEL).min(rows.n_rows)), rows.n_cols, out);
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
}

/// What happens to a product's sums on their way out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to each token's sums, `[n_rows]`.
    pub bias: Option<&'a [f32]>,
    /// Add to what the output holds, instead of replacing it.
    pub add: bool,
}

/// One matrix product `y[t][r] = Σ_c weights[r][c] · x[t][c]`.
#[derive(Debug)]
pub struct Product<'a> {
    /// The matrix.
    pub weights: Weights<'a>,
    /// The output, `[n_tokens, n_rows]`.
    pub y: &'a mut [f32],
    /// What is added.
    pub epilogue: Epilogue<'a>,
}

/// Activations of one or more products.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[n_tokens, n_cols]`.
    pub x: &'a [f32],
    /// Width.
    pub n_cols: usize,
    /// Codes of `x` ([`super::Pool::quantize`]) for the matrices that are multiplied with them.
    pub q8: Option<&'a Q8Acts>,
}

/// Activations as 8-bit codes within ±127, a scale for each 32 of a token.
#[derive(Debug)]
pub struct Q8Acts {
    /// `[n_tokens, n_cols]`.
    codes: Vec<i8>,
    /// `[n_tokens, n_cols / 32]`.
    scales: Vec<f32>,
    /// Scale times sum of the codes of each block, `[n_tokens, n_cols / 32]`; formats with minima need it.
    sums: Vec<f32>,
    /// Sums of codes of each block, `[n_tokens, n_cols / 32]`.
    pairs: Vec<Pairs>,
    n_tokens: usize,
    n_cols: usize,
}

/// Of each half of a block the sums of codes 0 and 1 of every four, and of codes 2 and 3: two 16-bit numbers each, the
/// first in the lower bits. A product with codes of weights that were made unsigned begins with their multiple.
pub(super) type Pairs = [u32; 2];

/// What becomes of one token's activations; fields as in [`Q8Acts`].
#[derive(Debug)]
pub(super) struct Q8Mut<'a> {
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub pairs: &'a mut [Pairs],
}

impl Q8Acts {
    /// Room for `n_tokens_max` tokens of `n_cols_max` activations.
    #[must_use]
    pub fn new(n_tokens_max: usize, n_cols_max: usize) -> Self {
        let n = n_tokens_max * n_cols_max.next_multiple_of(Q8_BLOCK);
        let blocks = n / Q8_BLOCK;
        Self {
            codes: vec![0; n],
            scales: vec![0.0; blocks],
            sums: vec![0.0; blocks],
            pairs: vec![[0; 2]; blocks],
            n_tokens: 0,
            n_cols: 0,
        }
    }

    /// Sets the shape and gives the arrays to fill, of all tokens.
    pub(super) fn reshape(&mut self, n_tokens: usize, n_cols: usize) -> Q8Mut<'_> {
        assert!(n_cols.is_multiple_of(Q8_BLOCK), "{n_cols} activations in blocks of {Q8_BLOCK}");
        (self.n_tokens, self.n_cols) = (n_tokens, n_cols);
        let (n, blocks) = (n_tokens * n_cols, n_tokens * n_cols / Q8_BLOCK);
        Q8Mut {
            codes: &mut self.codes[..n],
            scales: &mut self.scales[..blocks],
            sums: &mut self.sums[..blocks],
            pairs: &mut self.pairs[..blocks],
        }
    }

    pub(super) fn view(&self) -> Q8View<'_> {
        let (n, blocks) = (self.n_tokens * self.n_cols, self.n_tokens * self.n_cols / Q8_BLOCK);
        Q8View {
            codes: &self.codes[..n],
            scales: &self.scales[..blocks],
            sums: &self.sums[..blocks],
            pairs: &self.pairs[..blocks],
            n_tokens: self.n_tokens,
            n_cols: self.n_cols,
        }
    }
}

/// The codes of a batch; fields as in [`Q8Acts`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Q8View<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [f32],
    pub pairs: &'a [Pairs],
    pub n_tokens: usize,
    pub n_cols: usize,
}

/// One token's codes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Q8Row<'a> {
    /// `[n_blocks][32]`.
    pub codes: &'a [[i8; Q8_BLOCK]],
    /// `[n_blocks]`.
    pub scales: &'a [f32],
    /// `[n_blocks]`.
    pub sums: &'a [f32],
    /// `[n_blocks]`.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "no tier but scalar")
    )]
    pub pairs: &'a [Pairs],
}

impl<'a> Q8View<'a> {
    /// Codes of token `t`.
    pub(super) fn row(&self, t: usize) -> Q8Row<'a> {
        let (n, blocks) = (self.n_cols, self.n_cols / Q8_BLOCK);
        Q8Row {
            codes: self.codes[t * n..(t + 1) * n].as_chunks().0,
            scales: &self.scales[t * blocks..(t + 1) * blocks],
            sums: &self.sums[t * blocks..(t + 1) * blocks],
            pairs: &self.pairs[t * blocks..(t + 1) * blocks],
        }
    }
}

/// Keys or values of one layer, `[n_head_kv][n_slots][head_dim]`, or a stretch of them.
#[derive(Clone, Copy, Debug)]
pub enum KvView<'a> {
    /// 16-bit floats.
    F16(&'a [f16]),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 8-bit codes, a scale for each 32 of a row.
    Q8(Q8Rows<'a>),
}

impl KvView<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::F32(x) => x.len(),
            Self::Q8(x) => x.codes.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows `start .. end`, of `width` values each.
    pub(super) fn rows(&self, width: usize, start: usize, end: usize) -> Self {
        match self {
            Self::F16(x) => Self::F16(&x[start * width..end * width]),
            Self::F32(x) => Self::F32(&x[start * width..end * width]),
            Self::Q8(x) => {
                let blocks = width.div_ceil(Q8_BLOCK);
                Self::Q8(Q8Rows {
                    codes: &x.codes[start * width..end * width],
                    scales: &x.scales[start * blocks..end * blocks],
                })
            }
        }
    }
}

/// Rows as 8-bit codes within ±127: the value is `scale * code`, a scale for each 32 of a row (the last block of a row
/// may be shorter).
#[derive(Clone, Copy, Debug)]
pub struct Q8Rows<'a> {
    /// `[n_rows, width]`.
    pub codes: &'a [i8],
    /// `[n_rows, width / 32, rounded up]`.
    pub scales: &'a [f16],
}

impl Q8Rows<'_> {
    /// Row `i` as floats.
    pub(super) fn unpack(&self, i: usize, out: &mut [f32]) {
        let (width, blocks) = (out.len(), out.len().div_ceil(Q8_BLOCK));
        let codes = self.codes[i * width..(i + 1) * width].chunks(Q8_BLOCK);
        let scales = &self.scales[i * blocks..(i + 1) * blocks];
        for ((out, codes), scale) in out.chunks_mut(Q8_BLOCK).zip(codes).zip(scales) {
            let scale = scale.to_f32();
            for (y, code) in out.iter_mut().zip(codes) {
                *y = scale * f32::from(*code);
            }
        }
    }
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
