//! Q4_0 (ggml-common.h): blocks of 32 4-bit codes with one f16 scale.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles};

/// 32 weights, `d * (code - 8)`; the low nibbles are the first 16, the high ones the last 16.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, f16.
    pub d: U16,
    /// Codes, two a byte.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Block<1> for BlockQ4_0 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [nibbles(&self.qs).map(|q| q as i8 - 8)]
    }
}

impl BlockQ4_0 {
    /// A near block: the weight of largest magnitude becomes -8, whatever its sign.
    #[must_use]
    pub fn pack(x: &[f32; 32]) -> Self {
        let max = x.iter().fold(0.0_f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let d = max / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let code = |v: f32| (v * inverse + 8.5).clamp(0.0, 15.0) as u8;
        Self {
            d: U16::new(f16::from_f32(d).to_bits()),
            qs: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4),
        }
    }
}
