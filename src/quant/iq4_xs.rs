//! IQ4_XS (ggml-common.h): blocks of 256 4-bit codes that look a value up; 8 sub-blocks of 32 with 6-bit scales.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Share, nibbles, of_groups};
use super::iq4_nl::IQ4;

/// 256 weights, `d * (scale - 32) * IQ4[code]`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct BlockIQ4XS {
    /// Scale of the scales, f16.
    pub d: U16,
    /// High two bits of the scales.
    pub scales_h: U16,
    /// Low four bits of the scales, two a byte.
    pub scales_l: [u8; 4],
    /// Codes: 16 bytes for each sub-block, as in Q4_0.
    pub qs: [[u8; 16]; 8],
}

const _: () = assert!(size_of::<BlockIQ4XS>() == 136);

impl Block<8> for BlockIQ4XS {
    const SCALES: Share = Share::Group;
    const MINS: Share = Share::Block;

    #[inline]
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32) {
        (float(self.d), 0.0)
    }

    #[inline]
    fn scales(&self) -> [[i8; 2]; 8] {
        of_groups(|j| {
            let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
            let high = (self.scales_h.get() >> (2 * j) & 3) as u8;
            (low | high << 4) as i8 - 32
        })
    }

    fn codes(&self) -> [[i8; 32]; 8] {
        self.qs.map(|group| nibbles(&group).map(|q| IQ4[usize::from(q)]))
    }
}
