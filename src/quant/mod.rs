//! Layer 1: how weights are stored. Block layouts, sizes, and the reference unpacking that every kernel is held to.

mod float;
mod q4_0;
mod q4_k;
mod q6_k;
mod q8_0;

pub use q4_0::BlockQ4_0;
pub use q4_k::BlockQ4K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

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

/// The blocks of `bytes`, in place.
///
/// # Panics
/// If `bytes` is no whole number of blocks.
#[must_use]
pub fn blocks<B: FromBytes + Immutable + KnownLayout + Unaligned>(bytes: &[u8]) -> &[B] {
    match <[B]>::ref_from_bytes(bytes) {
        Ok(blocks) => blocks,
        Err(_) => panic!("{} bytes are no whole number of blocks of {}", bytes.len(), size_of::<B>()),
    }
}

/// Writes the weights of `bytes` as floats: the definition of every format.
///
/// # Panics
/// If `bytes` is not exactly `out.len()` weights.
pub fn unpack_row(quant: Quant, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(quant.row_bytes(out.len()), Some(bytes.len()), "{} weights of {}", out.len(), quant.name());
    match quant {
        Quant::F32 => float::unpack_f32(bytes, out),
        Quant::F16 => float::unpack_f16(bytes, out),
        Quant::BF16 => float::unpack_bf16(bytes, out),
        Quant::Q4_0 => unpack_blocks(bytes, out, BlockQ4_0::unpack),
        Quant::Q8_0 => unpack_blocks(bytes, out, BlockQ8_0::unpack),
        Quant::Q4_K => unpack_blocks(bytes, out, BlockQ4K::unpack),
        Quant::Q6_K => unpack_blocks(bytes, out, BlockQ6K::unpack),
    }
}

/// `out` block by block.
fn unpack_blocks<B, const N: usize>(bytes: &[u8], out: &mut [f32], unpack: impl Fn(&B, &mut [f32; N]))
where
    B: FromBytes + Immutable + KnownLayout + Unaligned,
{
    for (block, out) in blocks::<B>(bytes).iter().zip(out.as_chunks_mut::<N>().0) {
        unpack(block, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn sizes_are_those_of_the_structs() {
        assert_eq!(size_of::<BlockQ4_0>(), Quant::Q4_0.block_bytes());
        assert_eq!(size_of::<BlockQ8_0>(), Quant::Q8_0.block_bytes());
        assert_eq!(size_of::<BlockQ4K>(), Quant::Q4_K.block_bytes());
        assert_eq!(size_of::<BlockQ6K>(), Quant::Q6_K.block_bytes());
        assert_eq!(Quant::Q4_K.row_bytes(512), Some(288));
        assert_eq!(Quant::Q4_K.row_bytes(500), None);
        assert_eq!(Quant::F32.row_bytes(N_COLS_MAX + 1), None);
    }

    /// Packing then unpacking loses at most half a step of each block.
    #[test]
    fn packing_is_close() {
        let mut rng = Rng::new(5);
        let x: [f32; 32] = std::array::from_fn(|_| rng.next_f32() - 0.5);
        let max = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let mut y = [0.0; 32];
        BlockQ8_0::pack(&x).unpack(&mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= max / 127.0 * 0.51));
        BlockQ4_0::pack(&x).unpack(&mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= max / 8.0 * 1.01));
        BlockQ8_0::pack(&[0.0; 32]).unpack(&mut y);
        assert_eq!(y, [0.0; 32]);
    }
}
