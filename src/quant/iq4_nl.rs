//! IQ4_NL (ggml-common.h): blocks of 32 4-bit codes that look a value up, with one f16 scale.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles};

/// What the 4-bit codes of IQ4_NL and IQ4_XS stand for: steps that grow with the distance from 0.
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 weights, `d * IQ4[code]`; codes as in Q4_0.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockIQ4NL {
    /// Scale, f16.
    pub d: U16,
    /// Codes, two a byte.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIQ4NL>() == 18);

impl Block<1> for BlockIQ4NL {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [nibbles(&self.qs).map(|q| IQ4[usize::from(q)])]
    }
}
