//! Q4_1 (ggml-common.h): blocks of 32 4-bit codes with an f16 scale and an f16 offset.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles};

/// 32 weights, `d * code + m`; codes as in Q4_0.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, f16.
    pub d: U16,
    /// Offset, f16.
    pub m: U16,
    /// Codes, two a byte.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl Block<1> for BlockQ4_1 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Group;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), -float(self.m))
    }

    #[inline]
    fn mins(&self) -> [[u8; 2]; 1] {
        [[1; 2]]
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [nibbles(&self.qs).map(|q| q as i8)]
    }
}
