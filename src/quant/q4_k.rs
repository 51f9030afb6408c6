//! Q4_K (ggml-common.h): blocks of 256 4-bit codes; 8 sub-blocks of 32 with 6-bit scales and minima.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles_of_8, of_groups};

/// 256 weights, `d * scale * code - dmin * min`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: U16,
    /// Scale of the minima, f16.
    pub dmin: U16,
    /// 8 scales and 8 minima.
    pub scales: Scales6,
    /// Codes: each 32 bytes hold sub-block 2i in the low nibbles and 2i + 1 in the high ones.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144);

/// 8 scales and 8 minima of 6 bits, as Q4_K and Q5_K have them.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct Scales6(pub [u8; 12]);

impl Scales6 {
    /// Scale of sub-block `j`, 0 to 63.
    #[inline]
    pub(super) fn scale(&self, j: usize) -> i8 {
        let s = &self.0;
        (if j < 4 { s[j] & 63 } else { s[j + 4] & 15 | s[j - 4] >> 6 << 4 }) as i8
    }

    /// Minimum of sub-block `j`, 0 to 63.
    #[inline]
    pub(super) fn min(&self, j: usize) -> u8 {
        let s = &self.0;
        if j < 4 { s[j + 4] & 63 } else { s[j + 4] >> 4 | s[j] >> 6 << 4 }
    }
}

impl Block<8> for BlockQ4K {
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
        nibbles_of_8(&self.qs).map(|group| group.map(|q| q as i8))
    }
}
