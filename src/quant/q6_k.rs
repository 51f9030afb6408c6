//! Q6_K (ggml-common.h): blocks of 256 6-bit codes; 16 sub-blocks of 16 with int8 scales.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 256 weights, `d * scale * (code - 32)`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low four bits: of each half, 64 bytes; nibbles low then high.
    pub ql: [u8; 128],
    /// High two bits: of each half, 32 bytes of four.
    pub qh: [u8; 64],
    /// Scales of the 16 sub-blocks.
    pub scales: [i8; 16],
    /// Scale of the scales, f16.
    pub d: U16,
}

impl BlockQ6K {
    /// Codes minus 32 of quarter `j` (0 to 7, 32 weights each).
    #[must_use]
    pub fn codes(&self, j: usize) -> [i8; 32] {
        let (half, quarter) = (j / 4, j % 4);
        let low = &self.ql[half * 64 + quarter % 2 * 32..][..32];
        let high = &self.qh[half * 32..][..32];
        std::array::from_fn(|i| {
            let low = if quarter < 2 { low[i] & 15 } else { low[i] >> 4 };
            (low | (high[i] >> (2 * quarter) & 3) << 4) as i8 - 32
        })
    }

    /// The weights as floats.
    pub fn unpack(&self, out: &mut [f32; 256]) {
        let d = f16::from_bits(self.d.get()).to_f32();
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (i, (y, q)) in out.iter_mut().zip(self.codes(j)).enumerate() {
                *y = d * f32::from(self.scales[2 * j + i / 16]) * f32::from(q);
            }
        }
    }
}
