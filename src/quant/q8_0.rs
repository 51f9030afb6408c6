//! Q8_0 (ggml-common.h): blocks of 32 int8 codes with one f16 scale.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share};

/// 32 weights, `d * qs[i]`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: U16,
    /// Codes.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Block<1> for BlockQ8_0 {
    const SCALES: Share = Share::Block;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    fn codes(&self) -> [[i8; 32]; 1] {
        [self.qs]
    }
}

impl BlockQ8_0 {
    /// The block that ggml's reference makes (`quantize_row_q8_0_ref` in ggml-quants.c), bit for bit: the largest
    /// magnitude becomes 127.
    #[must_use]
    pub fn pack(x: &[f32; 32]) -> Self {
        let max = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let d = max / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        Self {
            d: U16::new(f16::from_f32(d).to_bits()),
            qs: std::array::from_fn(|i| (x[i] * inverse).round() as i8),
        }
    }
}
