//! Q2_K (ggml-common.h): blocks of 256 2-bit codes; 16 sub-blocks of 16 with 4-bit scales and minima.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, of_halves, pairs_of_8};

/// 256 weights, `d * scale * code - dmin * min`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ2K {
    /// Of each sub-block: scale in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Codes: of each half, 32 bytes of four.
    pub qs: [u8; 64],
    /// Scale of the scales, f16.
    pub d: U16,
    /// Scale of the minima, f16.
    pub dmin: U16,
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);

impl Block<8> for BlockQ2K {
    const SCALES: Share = Share::Half;
    const MINS: Share = Share::Half;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), float(self.dmin))
    }

    #[inline]
    fn scales(&self) -> [[i8; 2]; 8] {
        of_halves(|k| (self.scales[k] & 15) as i8)
    }

    #[inline]
    fn mins(&self) -> [[u8; 2]; 8] {
        of_halves(|k| self.scales[k] >> 4)
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        pairs_of_8(&self.qs).map(|group| group.map(|q| q as i8))
    }
}
