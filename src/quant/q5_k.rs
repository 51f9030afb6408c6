//! Q5_K (ggml-common.h): blocks of 256 5-bit codes; 8 sub-blocks of 32 with 6-bit scales and minima.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles_of_8, of_groups};
use super::q4_k::Scales6;

/// 256 weights, `d * scale * code - dmin * min`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, f16.
    pub d: U16,
    /// Scale of the minima, f16.
    pub dmin: U16,
    /// 8 scales and 8 minima.
    pub scales: Scales6,
    /// Fifth bits: that of weight `i` in sub-block `j` is bit `j` of byte `i`.
    pub qh: [u8; 32],
    /// Low four bits, as in Q4_K.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == 176);

impl Block<8> for BlockQ5K {
    const SCALES: Share = Share::Group;
    const MINS: Share = Share::Group;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), float(self.dmin))
    }

    #[inline]
    fn scales(&self) -> [[i8; 2]; 8] {
        of_groups(|j| self.scales.scale(j))
    }

    #[inline]
    fn mins(&self) -> [[u8; 2]; 8] {
        of_groups(|j| self.scales.min(j))
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        let low = nibbles_of_8(&self.qs);
        std::array::from_fn(|j| std::array::from_fn(|i| (low[j][i] | (self.qh[i] >> j & 1) << 4) as i8))
    }
}
