//! Q4_K (ggml-common.h): blocks of 256 4-bit codes; 8 sub-blocks of 32 with 6-bit scales and minima.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 256 weights, `d * scale * code - dmin * min`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: U16,
    /// Scale of the minima, f16.
    pub dmin: U16,
    /// 8 scales and 8 minima of 6 bits.
    pub scales: [u8; 12],
    /// Codes: each 32 bytes hold sub-block 2i in the low nibbles and 2i + 1 in the high ones.
    pub qs: [u8; 128],
}

impl BlockQ4K {
    /// Scales and minima of the 8 sub-blocks, 0 to 63 each.
    #[must_use]
    pub fn scales_and_mins(&self) -> ([u8; 8], [u8; 8]) {
        let s = &self.scales;
        let scale = |j: usize| if j < 4 { s[j] & 63 } else { s[j + 4] & 15 | s[j - 4] >> 6 << 4 };
        let min = |j: usize| if j < 4 { s[j + 4] & 63 } else { s[j + 4] >> 4 | s[j] >> 6 << 4 };
        (std::array::from_fn(scale), std::array::from_fn(min))
    }

    /// The weights as floats.
    pub fn unpack(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (f16::from_bits(self.d.get()).to_f32(), f16::from_bits(self.dmin.get()).to_f32());
        let (scales, mins) = self.scales_and_mins();
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
            let codes = &self.qs[j / 2 * 32..];
            for (y, byte) in out.iter_mut().zip(codes) {
                let code = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
                *y = scale * f32::from(code) - min;
            }
        }
    }
}
