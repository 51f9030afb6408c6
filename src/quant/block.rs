//! What formats with blocks have in common: any block is groups of 32 weights with small integers and two floats.

use half::f16;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// How many weights share an integer scale or minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of the block: there are no integers, the floats say it alone.
    Block,
    /// A group of 32.
    Group,
    /// Half a group, 16.
    Half,
}

/// A block of `G` groups of 32 weights. Weight `i` of group `j` is
/// `d * scales[j][i / 16] * codes[j][i] - dmin * mins[j][i / 16]`, evaluated from left to right in f32.
pub trait Block<const G: usize>: FromBytes + Immutable + KnownLayout + Unaligned {
    /// Who shares a scale. Of `Block` they are 1, of `Group` both halves have the same.
    const SCALES: Share;
    /// Who shares a minimum, as above. Of `Block` they are 0 and so is `dmin`; codes then are signed, from -128 to
    /// 127. With minima codes are 0 to 31.
    const MINS: Share;

    /// `(d, dmin)`. `float` is the value of a 16-bit float's bits: kernels have their own instruction for it.
    fn floats(&self, float: impl Fn(U16) -> f32) -> (f32, f32);

    /// Scale of each half of each group.
    #[inline]
    fn scales(&self) -> [[i8; 2]; G] {
        [[1; 2]; G]
    }

    /// Minimum of each half of each group.
    #[inline]
    fn mins(&self) -> [[u8; 2]; G] {
        [[0; 2]; G]
    }

    /// The codes of each group.
    fn codes(&self) -> [[i8; 32]; G];
}

/// The value of a 16-bit float's bits.
#[must_use]
pub fn f16_value(bits: U16) -> f32 {
    f16::from_bits(bits.get()).to_f32()
}

/// The blocks of `bytes`, in place.
///
/// # Panics
/// If `bytes` is no whole number of blocks.
#[must_use]
pub fn blocks<B: FromBytes + Immutable + KnownLayout + Unaligned>(bytes: &[u8]) -> &[B] {
    match <[B]>::ref_from_bytes(bytes) {
        Ok(blocks) => blocks,
        Err(_) => panic!("{} bytes are no whole number of blocks of {}", bytes.len(), size_of::<B>()),
    }
}

/// Writes the weights of whole blocks as floats.
pub(super) fn unpack<B: Block<G>, const G: usize>(bytes: &[u8], out: &mut [f32]) {
    let groups = out.as_chunks_mut::<32>().0.as_chunks_mut::<G>().0;
    for (block, out) in blocks::<B>(bytes).iter().zip(groups) {
        let (d, dmin) = block.floats(f16_value);
        let integers = block.codes().into_iter().zip(block.scales()).zip(block.mins());
        for (out, ((codes, scales), mins)) in out.iter_mut().zip(integers) {
            let halves = out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0);
            for ((out, codes), (scale, min)) in halves.zip(scales.into_iter().zip(mins)) {
                let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
                for (y, code) in out.iter_mut().zip(codes) {
                    *y = scale * f32::from(*code) - min;
                }
            }
        }
    }
}

/// 4-bit codes of a group in 16 bytes: the low nibbles are the first 16.
#[inline]
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    for (i, byte) in bytes.iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + 16] = byte >> 4;
    }
    codes
}

/// 4-bit codes of 8 groups: each 32 bytes hold group 2i in the low nibbles and 2i + 1 in the high ones.
#[inline]
pub(super) fn nibbles_of_8(bytes: &[u8; 128]) -> [[u8; 32]; 8] {
    std::array::from_fn(|j| std::array::from_fn(|i| bytes[j / 2 * 32 + i] >> (4 * (j % 2)) & 15))
}

/// 2-bit codes of 8 groups: each 32 bytes hold four groups, the first in the lowest bits.
#[inline]
pub(super) fn pairs_of_8(bytes: &[u8; 64]) -> [[u8; 32]; 8] {
    std::array::from_fn(|j| std::array::from_fn(|i| bytes[j / 4 * 32 + i] >> (2 * (j % 4)) & 3))
}

/// Scales or minima of groups, by their number; both halves have the same.
#[inline]
pub(super) fn of_groups<T: Copy, const G: usize>(each: impl Fn(usize) -> T) -> [[T; 2]; G] {
    let mut all = [[each(0); 2]; G];
    for (j, both) in all.iter_mut().enumerate() {
        *both = [each(j); 2];
    }
    all
}

/// Scales or minima of halves of groups, by their number.
#[inline]
pub(super) fn of_halves<T: Copy, const G: usize>(each: impl Fn(usize) -> T) -> [[T; 2]; G] {
    let mut all = [[each(0); 2]; G];
    for (k, one) in all.as_flattened_mut().iter_mut().enumerate() {
        *one = each(k);
    }
    all
}
