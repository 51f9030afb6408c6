//! Layer 1: how weights are stored. Block layouts, sizes, and the reference unpacking that every kernel is held to.

use crate::base::limits::N_COLS_MAX;

/// Block format of a tensor, by its ggml name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the field's own names")]
#[repr(usize)]
pub enum Quant {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit brain float.
    BF16,
    /// 32 weights: f16 scale, 4-bit codes minus 8.
    Q4_0,
    /// 32 weights: f16 scale, int8 codes.
    Q8_0,
    /// 256 weights: 8 sub-blocks of 32 with 6-bit scales and minima.
    Q4_K,
    /// 256 weights: 16 sub-blocks of 16 with int8 scales.
    Q6_K,
}

impl Quant {
    /// Number of formats.
    pub const COUNT: usize = 7;
    /// Every format.
    pub const ALL: [Self; Self::COUNT] =
        [Self::F32, Self::F16, Self::BF16, Self::Q4_0, Self::Q8_0, Self::Q4_K, Self::Q6_K];

    /// The format with this ggml type number (GGUF tensor info), if it is one of ours.
    #[must_use]
    pub fn from_ggml(n: u32) -> Option<Self> {
        Some(match n {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// The field's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Weights in one block.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of `n_cols` weights; `None` if blocks do not divide it or it is wider than any model's.
    #[must_use]
    pub fn row_bytes(self, n_cols: usize) -> Option<usize> {
        (n_cols <= N_COLS_MAX && n_cols.is_multiple_of(self.block_len()))
            .then(|| n_cols / self.block_len() * self.block_bytes())
    }
}
