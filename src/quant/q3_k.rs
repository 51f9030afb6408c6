//! Q3_K (ggml-common.h): blocks of 256 3-bit codes; 16 sub-blocks of 16 with 6-bit scales.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, of_halves, pairs_of_8};

/// 256 weights, `d * (scale - 32) * (code - 4)`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: that of weight `i` in group `j` of 32 is bit `j` of byte `i`.
    pub hmask: [u8; 32],
    /// Low two bits, as in Q2_K.
    pub qs: [u8; 64],
    /// 16 scales of 6 bits: low four in the nibbles of 8 bytes, low nibbles first; high two in the last 4 bytes.
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: U16,
}

const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl Block<8> for BlockQ3K {
    const SCALES: Share = Share::Half;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    #[inline]
    fn scales(&self) -> [[i8; 2]; 8] {
        of_halves(|k| {
            let low = self.scales[k % 8] >> (4 * (k / 8)) & 15;
            let high = self.scales[8 + k % 4] >> (2 * (k / 4)) & 3;
            (low | high << 4) as i8 - 32
        })
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        let low = pairs_of_8(&self.qs);
        std::array::from_fn(|j| {
            std::array::from_fn(|i| (low[j][i] | (self.hmask[i] >> j & 1) << 2) as i8 - 4)
        })
    }
}
