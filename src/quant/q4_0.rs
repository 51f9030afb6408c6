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
    /// The block of least squared error among those of some scales. Each begins with the largest weight as -7.1 to
    /// -8.9, takes the nearest codes, then the scale that fits these best (least squares), and the codes nearest under
    /// that.
    #[must_use]
    pub fn fit(x: &[f32; 32]) -> Self {
        let max = x.iter().fold(0.0_f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let near = Self::pack(x);
        let fitted = (-9..=9_i8).filter_map(|step| {
            let inverse = (f32::from(step) * 0.1 - 8.0) / max;
            let codes = x.map(|v| (v * inverse).round_ties_even().clamp(-8.0, 7.0));
            let both: f32 = x.iter().zip(&codes).map(|(v, q)| v * q).sum();
            let d = f16::from_f32(both / codes.iter().map(|q| q * q).sum::<f32>());
            (d.is_finite() && d != f16::ZERO).then(|| Self::nearest(d, x))
        });
        let all = std::iter::once(near).chain(fitted).map(|block| (block.error(x), block));
        all.fold((f32::INFINITY, near), |least, one| if one.0 < least.0 { one } else { least }).1
    }

    /// The nearest codes with this scale, which is not 0.
    fn nearest(d: f16, x: &[f32; 32]) -> Self {
        let inverse = 1.0 / d.to_f32();
        let code = |v: f32| ((v * inverse).round_ties_even().clamp(-8.0, 7.0) + 8.0) as u8;
        Self { d: U16::new(d.to_bits()), qs: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4) }
    }

    /// Sum of the squares of what is off.
    fn error(&self, x: &[f32; 32]) -> f32 {
        let d = f16::from_bits(self.d.get()).to_f32();
        let codes = nibbles(&self.qs).map(|q| f32::from(q) - 8.0);
        x.iter().zip(codes).map(|(v, q)| (v - d * q) * (v - d * q)).sum()
    }

    /// The block that ggml's reference makes (`quantize_row_q4_0_ref` in ggml-quants.c), bit for bit: the weight of largest
    /// magnitude becomes -8, whatever its sign.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn a_fitted_block_is_nearer() {
        let (mut rng, mut sums) = (Rng::new(9), [0.0; 2]);
        for _ in 0..1_000 {
            let x: [f32; 32] = std::array::from_fn(|_| (rng.next_f32() + rng.next_f32() - 1.0) * 0.1);
            let errors = [BlockQ4_0::pack(&x), BlockQ4_0::fit(&x)].map(|block| block.error(&x));
            assert!(errors[1] <= errors[0], "{errors:?}");
            sums = [sums[0] + errors[0], sums[1] + errors[1]];
        }
        assert!(sums[1] < 0.9 * sums[0], "{sums:?}");
        for odd in [0.0, 1e-30, f32::NAN, f32::INFINITY] {
            let mut x = [odd; 32];
            x[3] = 1.0;
            let _ = BlockQ4_0::fit(&x);
        }
        assert_eq!(BlockQ4_0::fit(&[0.0; 32]).error(&[0.0; 32]), 0.0);
    }
}
