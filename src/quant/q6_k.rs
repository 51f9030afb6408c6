//! Q6_K (ggml-common.h): blocks of 256 6-bit codes; 16 sub-blocks of 16 with int8 scales.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, of_halves, pairs_of_8};

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

const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl Block<8> for BlockQ6K {
    const SCALES: Share = Share::Half;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    #[inline]
    fn scales(&self) -> [[i8; 2]; 8] {
        of_halves(|k| self.scales[k])
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        let high = pairs_of_8(&self.qh);
        std::array::from_fn(|j| {
            let (half, quarter) = (j / 4, j % 4);
            let low = &self.ql[half * 64 + quarter % 2 * 32..][..32];
            std::array::from_fn(|i| (low[i] >> (4 * (quarter / 2)) & 15 | high[j][i] << 4) as i8 - 32)
        })
    }
}
