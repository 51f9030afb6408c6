//! Q8_0 (ggml-common.h): blocks of 32 int8 codes with one f16 scale.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 32 weights, `d * qs[i]`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: U16,
    /// Codes.
    pub qs: [i8; 32],
}

impl BlockQ8_0 {
    /// The weights as floats.
    pub fn unpack(&self, out: &mut [f32; 32]) {
        let d = f16::from_bits(self.d.get()).to_f32();
        for (y, q) in out.iter_mut().zip(self.qs) {
            *y = d * f32::from(q);
        }
    }

    /// The nearest block: the largest magnitude becomes 127.
    #[must_use]
    pub fn pack(x: &[f32; 32]) -> Self {
        let max = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        Self {
            d: U16::new(f16::from_f32(max / 127.0).to_bits()),
            qs: std::array::from_fn(|i| (x[i] * inverse).round() as i8),
        }
    }
}
