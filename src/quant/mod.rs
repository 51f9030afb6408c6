//! Layer 1: how weights are stored. Block layouts, sizes, and the reference unpacking that every kernel is held to.

mod block;
mod float;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
pub mod packed;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

pub use block::{Block, Share, blocks, f16_value};
pub use iq4_nl::{BlockIQ4NL, IQ4};
pub use iq4_xs::BlockIQ4XS;
pub use mxfp4::{BlockMXFP4, E2M1};
pub use q2_k::BlockQ2K;
pub use q3_k::BlockQ3K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::{BlockQ4K, Scales6};
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;
pub use tq1_0::{BlockTQ1_0, POW3};
pub use tq2_0::BlockTQ2_0;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::base::limits::N_COLS_MAX;

/// Block format of a tensor, by its ggml name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the field's own names")]
pub enum Quant {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit brain float.
    BF16,
    /// 32 weights: f16 scale, 4-bit codes minus 8.
    Q4_0,
    /// 32 weights: f16 scale and offset, 4-bit codes.
    Q4_1,
    /// 32 weights: f16 scale, 5-bit codes minus 16.
    Q5_0,
    /// 32 weights: f16 scale and offset, 5-bit codes.
    Q5_1,
    /// 32 weights: f16 scale, int8 codes.
    Q8_0,
    /// 256 weights: 2-bit codes, 16 sub-blocks of 16 with 4-bit scales and minima.
    Q2_K,
    /// 256 weights: 3-bit codes, 16 sub-blocks of 16 with 6-bit scales.
    Q3_K,
    /// 256 weights: 4-bit codes, 8 sub-blocks of 32 with 6-bit scales and minima.
    Q4_K,
    /// 256 weights: 5-bit codes, 8 sub-blocks of 32 with 6-bit scales and minima.
    Q5_K,
    /// 256 weights: 6-bit codes, 16 sub-blocks of 16 with int8 scales.
    Q6_K,
    /// 32 weights: f16 scale, 4-bit codes of a table.
    IQ4_NL,
    /// 256 weights: 4-bit codes of the same table, 8 sub-blocks of 32 with 6-bit scales.
    IQ4_XS,
    /// 256 weights: f16 scale, ternary codes, five a byte.
    TQ1_0,
    /// 256 weights: f16 scale, ternary codes, four a byte.
    TQ2_0,
    /// 32 weights: a power of two, 4-bit floats.
    MXFP4,
}

impl Quant {
    /// Number of formats.
    pub const COUNT: usize = Self::ALL.len();
    /// Every format.
    pub const ALL: [Self; 18] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4,
    ];

    /// Name, ggml type number, weights and bytes of a block.
    const fn spec(self) -> (&'static str, u32, usize, usize) {
        match self {
            Self::F32 => ("F32", 0, 1, 4),
            Self::F16 => ("F16", 1, 1, 2),
            Self::BF16 => ("BF16", 30, 1, 2),
            Self::Q4_0 => ("Q4_0", 2, 32, size_of::<BlockQ4_0>()),
            Self::Q4_1 => ("Q4_1", 3, 32, size_of::<BlockQ4_1>()),
            Self::Q5_0 => ("Q5_0", 6, 32, size_of::<BlockQ5_0>()),
            Self::Q5_1 => ("Q5_1", 7, 32, size_of::<BlockQ5_1>()),
            Self::Q8_0 => ("Q8_0", 8, 32, size_of::<BlockQ8_0>()),
            Self::Q2_K => ("Q2_K", 10, 256, size_of::<BlockQ2K>()),
            Self::Q3_K => ("Q3_K", 11, 256, size_of::<BlockQ3K>()),
            Self::Q4_K => ("Q4_K", 12, 256, size_of::<BlockQ4K>()),
            Self::Q5_K => ("Q5_K", 13, 256, size_of::<BlockQ5K>()),
            Self::Q6_K => ("Q6_K", 14, 256, size_of::<BlockQ6K>()),
            Self::IQ4_NL => ("IQ4_NL", 20, 32, size_of::<BlockIQ4NL>()),
            Self::IQ4_XS => ("IQ4_XS", 23, 256, size_of::<BlockIQ4XS>()),
            Self::TQ1_0 => ("TQ1_0", 34, 256, size_of::<BlockTQ1_0>()),
            Self::TQ2_0 => ("TQ2_0", 35, 256, size_of::<BlockTQ2_0>()),
            Self::MXFP4 => ("MXFP4", 39, 32, size_of::<BlockMXFP4>()),
        }
    }

    /// The format with this ggml type number (GGUF tensor info), if it is one of ours.
    #[must_use]
    pub fn from_ggml(n: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|q| q.ggml() == n)
    }

    /// The ggml type number.
    #[must_use]
    pub fn ggml(self) -> u32 {
        self.spec().1
    }

    /// The field's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().0
    }

    /// Weights in one block.
    #[must_use]
    pub fn block_len(self) -> usize {
        self.spec().2
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.spec().3
    }

    /// Bytes of a row of `n_cols` weights; `None` if blocks do not divide it or it is wider than any model's.
    #[must_use]
    pub fn row_bytes(self, n_cols: usize) -> Option<usize> {
        (n_cols <= N_COLS_MAX && n_cols.is_multiple_of(self.block_len()))
            .then(|| n_cols / self.block_len() * self.block_bytes())
    }
}

/// Writes the weights of whole blocks as floats.
pub type Unpack = fn(&[u8], &mut [f32]);

/// What writes weights of `quant` as floats: the definition of every format. It writes as many as both slices have
/// room for; it panics on bytes that are no whole number of blocks.
#[must_use]
pub const fn unpack(quant: Quant) -> Unpack {
    match quant {
        Quant::F32 => float::unpack_f32,
        Quant::F16 => float::unpack_f16,
        Quant::BF16 => float::unpack_bf16,
        Quant::Q4_0 => block::unpack::<BlockQ4_0, 1>,
        Quant::Q4_1 => block::unpack::<BlockQ4_1, 1>,
        Quant::Q5_0 => block::unpack::<BlockQ5_0, 1>,
        Quant::Q5_1 => block::unpack::<BlockQ5_1, 1>,
        Quant::Q8_0 => block::unpack::<BlockQ8_0, 1>,
        Quant::Q2_K => block::unpack::<BlockQ2K, 8>,
        Quant::Q3_K => block::unpack::<BlockQ3K, 8>,
        Quant::Q4_K => block::unpack::<BlockQ4K, 8>,
        Quant::Q5_K => block::unpack::<BlockQ5K, 8>,
        Quant::Q6_K => block::unpack::<BlockQ6K, 8>,
        Quant::IQ4_NL => block::unpack::<BlockIQ4NL, 1>,
        Quant::IQ4_XS => block::unpack::<BlockIQ4XS, 8>,
        Quant::TQ1_0 => block::unpack::<BlockTQ1_0, 8>,
        Quant::TQ2_0 => block::unpack::<BlockTQ2_0, 8>,
        Quant::MXFP4 => block::unpack::<BlockMXFP4, 1>,
    }
}

/// Writes the weights of `bytes` as floats, by [`unpack`].
///
/// # Panics
/// If `bytes` is not exactly `out.len()` weights.
pub fn unpack_row(quant: Quant, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(quant.row_bytes(out.len()), Some(bytes.len()), "{} weights of {}", out.len(), quant.name());
    unpack(quant)(bytes, out);
}

/// Writes weights as Q4_0, with fitted scales.
///
/// # Panics
/// If `out` is not exactly `x.len()` weights of whole blocks.
pub fn narrow_row(x: &[f32], out: &mut [u8]) {
    assert_eq!(Quant::Q4_0.row_bytes(x.len()), Some(out.len()), "{} weights of Q4_0", x.len());
    for (x, out) in x.as_chunks::<32>().0.iter().zip(out.chunks_exact_mut(size_of::<BlockQ4_0>())) {
        out.copy_from_slice(BlockQ4_0::fit(x).as_bytes());
    }
}

/// Writes weights in another format, as ggml's reference rounds them. False where one of them, or the scale of a block, is
/// no number that the format has: infinite, none at all, or beyond its largest.
///
/// # Panics
/// If `out` is not exactly `x.len()` weights, or the format is not one of F32, F16, Q8_0 and Q4_0.
pub fn pack_row(quant: Quant, x: &[f32], out: &mut [u8]) -> bool {
    assert_eq!(quant.row_bytes(x.len()), Some(out.len()), "{} weights of {}", x.len(), quant.name());
    let mut whole = x.iter().all(|x| x.is_finite());
    let finite = |bits: U16| f16_value(bits).is_finite();
    match quant {
        Quant::F32 => {
            for (x, out) in x.iter().zip(out.as_chunks_mut::<4>().0) {
                *out = x.to_le_bytes();
            }
        }
        Quant::F16 => {
            for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
                let half = half::f16::from_f32(*x);
                whole &= half.is_finite();
                *out = half.to_le_bytes();
            }
        }
        Quant::Q8_0 => {
            for (x, out) in x.as_chunks::<32>().0.iter().zip(out.chunks_exact_mut(size_of::<BlockQ8_0>())) {
                let block = BlockQ8_0::pack(x);
                whole &= finite(block.d);
                out.copy_from_slice(block.as_bytes());
            }
        }
        Quant::Q4_0 => {
            for (x, out) in x.as_chunks::<32>().0.iter().zip(out.chunks_exact_mut(size_of::<BlockQ4_0>())) {
                let block = BlockQ4_0::pack(x);
                whole &= finite(block.d);
                out.copy_from_slice(block.as_bytes());
            }
        }
        other => panic!("{} is not written", other.name()),
    }
    whole
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn formats_have_names_numbers_and_sizes() {
        for (i, quant) in Quant::ALL.into_iter().enumerate() {
            assert_eq!(quant as usize, i, "tables are indexed by it");
            assert_eq!(Quant::from_ggml(quant.ggml()), Some(quant));
            assert_eq!(Quant::ALL.iter().filter(|q| q.name() == quant.name()).count(), 1);
        }
        // Q8_1 and Q8_K are never stored; 4 and 5 were withdrawn.
        assert!([4, 5, 9, 15, u32::MAX].iter().all(|n| Quant::from_ggml(*n).is_none()));
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
        unpack_row(Quant::Q8_0, BlockQ8_0::pack(&x).as_bytes(), &mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= max / 127.0 * 0.51));
        unpack_row(Quant::Q4_0, BlockQ4_0::pack(&x).as_bytes(), &mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= max / 8.0 * 1.01));
        unpack_row(Quant::Q8_0, BlockQ8_0::pack(&[0.0; 32]).as_bytes(), &mut y);
        assert_eq!(y, [0.0; 32]);
    }

    /// Random weights, packed: FNV-1a over the bytes, as `gguf.quants.quantize` of the PyPI package gguf 0.19.0 packs the same
    /// floats.
    #[test]
    fn blocks_are_those_of_ggml_bit_for_bit() {
        let mut rng = Rng::new(21);
        let mut x: Vec<f32> = (0..4096).map(|_| (rng.next_f32() - 0.5) * 8.0 * rng.next_f32()).collect();
        x[64..96].fill(0.0);
        for (quant, hash) in [
            (Quant::F16, 0xaad9_6773_6b6b_d22c),
            (Quant::Q8_0, 0x1e9e_c762_b8bb_f740),
            (Quant::Q4_0, 0x29cf_2df7_58fd_5d9e),
        ] {
            let mut bytes = vec![0; quant.row_bytes(x.len()).unwrap()];
            assert!(pack_row(quant, &x, &mut bytes));
            let fnv = |h: u64, byte: &u8| (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            let found = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
            assert_eq!(found, hash, "{}: {found:#018x}", quant.name());
        }
        let mut out = [0; 34];
        for (quant, x, whole) in [
            (Quant::Q8_0, 8e6, true),
            (Quant::Q8_0, 1e7, false),
            (Quant::Q8_0, f32::NAN, false),
            (Quant::Q4_0, 1e6, false),
        ] {
            let n = quant.block_bytes();
            assert_eq!(pack_row(quant, &[x; 32], &mut out[..n]), whole, "{x} as {}", quant.name());
        }
        assert!(!pack_row(Quant::F16, &[1e5], &mut out[..2]) && pack_row(Quant::F16, &[6e4], &mut out[..2]));
        assert!(!pack_row(Quant::F32, &[f32::NAN], &mut out[..4]));
    }

    /// Random blocks with scales below 2, unpacked: FNV-1a over the bits of the floats, as `gguf.quants.dequantize`
    /// of the PyPI package gguf 0.19.0 gives them for the same bytes.
    #[test]
    fn weights_are_those_of_ggml_bit_for_bit() {
        let wanted: [(Quant, &[usize], u64); 15] = [
            (Quant::Q4_0, &[0], 0xeba1_d2ea_c93d_531c),
            (Quant::Q4_1, &[0, 2], 0x69db_a91c_cbcd_675e),
            (Quant::Q5_0, &[0], 0x589a_f203_6cb9_21b2),
            (Quant::Q5_1, &[0, 2], 0x9350_46cb_14b3_faf3),
            (Quant::Q8_0, &[0], 0x6c7a_0d43_e793_4754),
            (Quant::Q2_K, &[80, 82], 0x3842_d365_ed43_0019),
            (Quant::Q3_K, &[108], 0xd67e_d741_1b07_443b),
            (Quant::Q4_K, &[0, 2], 0xd5d0_4b30_3fdc_1f37),
            (Quant::Q5_K, &[0, 2], 0xc206_b4ad_1fba_3b37),
            (Quant::Q6_K, &[208], 0x994e_ae04_cf60_328d),
            (Quant::IQ4_NL, &[0], 0x92ad_f5b9_f1f3_34e3),
            (Quant::IQ4_XS, &[0], 0x8c22_6224_35a4_b9bc),
            (Quant::TQ1_0, &[52], 0xfb7e_e86c_e3e8_2a48),
            (Quant::TQ2_0, &[64], 0xb39c_117a_7cdb_10b1),
            (Quant::MXFP4, &[], 0x250b_22f5_d379_c46b),
        ];
        for (quant, floats, hash) in wanted {
            let mut rng = Rng::new(u64::from(quant.ggml()));
            let mut bytes: Vec<u8> = (0..64 * quant.block_bytes()).map(|_| rng.next_u64() as u8).collect();
            for block in bytes.chunks_exact_mut(quant.block_bytes()) {
                // The highest bit of the exponents of its 16-bit floats.
                floats.iter().for_each(|at| block[at + 1] &= 0xbf);
            }
            let mut out = vec![0.0_f32; 64 * quant.block_len()];
            unpack_row(quant, &bytes, &mut out);
            let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            let found = out.iter().flat_map(|y| y.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
            assert_eq!(found, hash, "{}: {found:#018x}", quant.name());
        }
    }
}
