//! MXFP4 (ggml-common.h; OCP Microscaling Formats 1.0): blocks of 32 4-bit floats with one 8-bit power of two.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles};

/// Twice the value of each 4-bit float (E2M1), so that all are whole; the scale is halved in turn.
pub const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights, `2^(e - 128) * E2M1[code]`; codes as in Q4_0.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockMXFP4 {
    /// Exponent (E8M0). 255 is no exception, as in ggml.
    pub e: u8,
    /// Codes, two a byte.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockMXFP4>() == 17);

impl Block<1> for BlockMXFP4 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, _: impl Fn(U16) -> f32) -> (f32, f32) {
        let e = u32::from(self.e);
        // 2^-128 and 2^-127 are denormals.
        (f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 }), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [nibbles(&self.qs).map(|q| E2M1[usize::from(q)])]
    }
}
