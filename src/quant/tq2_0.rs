//! TQ2_0 (ggml-common.h): blocks of 256 ternary codes of 2 bits with one f16 scale.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, pairs_of_8};

/// 256 weights, `d * (code - 1)`. No file has a code 3; it would be a weight of 2.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockTQ2_0 {
    /// Codes, as in Q2_K.
    pub qs: [u8; 64],
    /// Scale, f16.
    pub d: U16,
}

const _: () = assert!(size_of::<BlockTQ2_0>() == 66);

impl Block<8> for BlockTQ2_0 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        pairs_of_8(&self.qs).map(|group| group.map(|q| q as i8 - 1))
    }
}
