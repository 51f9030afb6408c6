//! Q5_0 (ggml-common.h): blocks of 32 5-bit codes with one f16 scale.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles};

/// 32 weights, `d * (code - 16)`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: U16,
    /// Fifth bits, that of code `i` is bit `i % 8` of byte `i / 8`.
    pub qh: [u8; 4],
    /// Low four bits, as in Q4_0.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

/// The codes 0 to 31 of Q5_0 and Q5_1.
#[inline]
pub(super) fn codes(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let mut codes = nibbles(qs);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (qh[i / 8] >> (i % 8) & 1) << 4;
    }
    codes
}

impl Block<1> for BlockQ5_0 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [codes(&self.qs, self.qh).map(|q| q as i8 - 16)]
    }
}
