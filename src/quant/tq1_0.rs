//! TQ1_0 (ggml-common.h): blocks of 256 ternary codes, five a byte, with one f16 scale.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share};

/// 256 weights, `d * (code - 1)` with codes 0 to 2. A byte is a fraction of 256 in base 3: digit `n` is the whole part
/// of `3 * (byte * 3^n mod 256) / 256`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockTQ1_0 {
    /// Digits 0 to 4 are 160 weights, 32 of each digit. (ggml has these and the next bytes as one field.)
    pub qs_32: [u8; 32],
    /// Digits 0 to 4 are the next 80 weights, 16 of each.
    pub qs_16: [u8; 16],
    /// Digits 0 to 3 are the last 16 weights, 4 of each.
    pub qh: [u8; 4],
    /// Scale, f16.
    pub d: U16,
}

const _: () = assert!(size_of::<BlockTQ1_0>() == 54);

/// Powers of 3 that bring each digit of a byte to its front.
pub const POW3: [u8; 5] = [1, 3, 9, 27, 81];

impl Block<8> for BlockTQ1_0 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        let digit = |byte: u8, n: usize| ((u16::from(byte.wrapping_mul(POW3[n])) * 3) >> 8) as i8 - 1;
        std::array::from_fn(|j| {
            std::array::from_fn(|i| match 32 * j + i {
                k @ 0..160 => digit(self.qs_32[k % 32], k / 32),
                k @ 160..240 => digit(self.qs_16[k % 16], (k - 160) / 16),
                k => digit(self.qh[k % 4], (k - 240) / 4),
            })
        })
    }
}
