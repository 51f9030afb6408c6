//! Codes of blocks in 128-bit registers: what a product of any tier of 64-bit Arm begins with.

use std::arch::aarch64::*;

use crate::quant::{
    Block, BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTQ1_0, BlockTQ2_0, E2M1, IQ4, POW3,
};

/// The codes of a group, 16 in each.
pub(super) type Group = [int8x16_t; 2];

/// A block whose codes this architecture unpacks.
pub(super) trait Codes<const G: usize>: Block<G> {
    /// [`Block::codes`], a group in each two registers.
    ///
    /// # Safety
    /// The processor has Advanced SIMD.
    unsafe fn registers(&self) -> [Group; G];
}

#[target_feature(enable = "neon")]
fn load(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_u8(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn load_signed(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

/// 32 bytes.
#[target_feature(enable = "neon")]
fn load_2(x: &[u8; 32]) -> [uint8x16_t; 2] {
    let halves = x.as_chunks::<16>().0;
    [load(&halves[0]), load(&halves[1])]
}

/// Bytes shifted to the right by `n`.
#[target_feature(enable = "neon")]
fn right(x: uint8x16_t, n: usize) -> uint8x16_t {
    vshlq_u8(x, vdupq_n_s8(-(n as i8)))
}

#[target_feature(enable = "neon")]
fn and(x: uint8x16_t, mask: u8) -> uint8x16_t {
    vandq_u8(x, vdupq_n_u8(mask))
}

/// `codes - n`.
#[target_feature(enable = "neon")]
fn minus(codes: [uint8x16_t; 2], n: i8) -> Group {
    codes.map(|x| vsubq_s8(vreinterpretq_s8_u8(x), vdupq_n_s8(n)))
}

/// The codes as they are.
#[target_feature(enable = "neon")]
fn signed(codes: [uint8x16_t; 2]) -> Group {
    codes.map(|x| vreinterpretq_s8_u8(x))
}

/// 32 nibbles of 16 bytes: low ones first.
#[target_feature(enable = "neon")]
fn nibbles(bytes: &[u8; 16]) -> [uint8x16_t; 2] {
    let bytes = load(bytes);
    [and(bytes, 15), vshrq_n_u8::<4>(bytes)]
}

/// Nibbles of 8 groups: each 32 bytes hold group 2i in the low ones and 2i + 1 in the high ones.
#[target_feature(enable = "neon")]
fn nibbles_of_8(bytes: &[u8; 128]) -> [[uint8x16_t; 2]; 8] {
    let bytes = bytes.as_chunks::<32>().0;
    std::array::from_fn(|j| {
        load_2(&bytes[j / 2]).map(|x| if j % 2 == 0 { and(x, 15) } else { vshrq_n_u8::<4>(x) })
    })
}

/// 2-bit codes of 8 groups: each 32 bytes hold four groups, the first in the lowest bits.
#[target_feature(enable = "neon")]
fn pairs_of_8(bytes: &[u8; 64]) -> [[uint8x16_t; 2]; 8] {
    let bytes = bytes.as_chunks::<32>().0;
    std::array::from_fn(|j| load_2(&bytes[j / 4]).map(|x| and(right(x, 2 * (j % 4)), 3)))
}

/// `codes`, and `value` more in each byte where bit `j` of `bits` is set.
#[target_feature(enable = "neon")]
fn or_where_bit(codes: [uint8x16_t; 2], bits: [uint8x16_t; 2], j: usize, value: u8) -> [uint8x16_t; 2] {
    let or = |i: usize| vorrq_u8(codes[i], and(vtstq_u8(bits[i], vdupq_n_u8(1 << j)), value));
    [or(0), or(1)]
}

/// 5-bit codes: nibbles, and 16 where bit `i` of `high` is set.
#[target_feature(enable = "neon")]
fn fives(low: &[u8; 16], high: [u8; 4]) -> [uint8x16_t; 2] {
    let low = nibbles(low);
    let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let code = |i: usize| {
        let bytes = vcombine_u8(vdup_n_u8(high[2 * i]), vdup_n_u8(high[2 * i + 1]));
        vorrq_u8(low[i], and(vtstq_u8(bytes, bit), 16))
    };
    [code(0), code(1)]
}

/// The entry of `table` for each code.
#[target_feature(enable = "neon")]
fn look_up(table: &[i8; 16], codes: [uint8x16_t; 2]) -> Group {
    let table = load_signed(table);
    codes.map(|x| vqtbl1q_s8(table, x))
}

/// The first digit of `bytes * power`, fractions in base 3, minus 1: one more from 86 / 256 on, and from 171 / 256 on.
#[target_feature(enable = "neon")]
fn digit(bytes: uint8x16_t, power: uint8x16_t) -> int8x16_t {
    let x = vmulq_u8(bytes, power);
    let less = vaddq_u8(vcgeq_u8(x, vdupq_n_u8(86)), vcgeq_u8(x, vdupq_n_u8(171)));
    vsubq_s8(vdupq_n_s8(-1), vreinterpretq_s8_u8(less))
}

macro_rules! codes {
    ($($block:ident, $groups:literal: |$b:ident| $registers:expr;)*) => {
        $(impl Codes<$groups> for $block {
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn registers(&self) -> [Group; $groups] {
                let $b = self;
                $registers
            }
        })*
    };
}

codes! {
    BlockQ4_0, 1: |b| [minus(nibbles(&b.qs), 8)];
    BlockQ4_1, 1: |b| [signed(nibbles(&b.qs))];
    BlockQ5_0, 1: |b| [minus(fives(&b.qs, b.qh), 16)];
    BlockQ5_1, 1: |b| [signed(fives(&b.qs, b.qh))];
    BlockQ8_0, 1: |b| {
        let halves = b.qs.as_chunks::<16>().0;
        [[load_signed(&halves[0]), load_signed(&halves[1])]]
    };
    BlockQ2K, 8: |b| pairs_of_8(&b.qs).map(|codes| signed(codes));
    BlockQ3K, 8: |b| {
        let (low, high) = (pairs_of_8(&b.qs), load_2(&b.hmask));
        std::array::from_fn(|j| minus(or_where_bit(low[j], high, j, 4), 4))
    };
    BlockQ4K, 8: |b| nibbles_of_8(&b.qs).map(|codes| signed(codes));
    BlockQ5K, 8: |b| {
        let (low, high) = (nibbles_of_8(&b.qs), load_2(&b.qh));
        std::array::from_fn(|j| signed(or_where_bit(low[j], high, j, 16)))
    };
    BlockQ6K, 8: |b| {
        let (low, high) = (b.ql.as_chunks::<32>().0, pairs_of_8(&b.qh));
        std::array::from_fn(|j| {
            let (half, quarter) = (j / 4, j % 4);
            let low = load_2(&low[2 * half + quarter % 2]);
            let code = |i: usize| {
                let low = if quarter < 2 { and(low[i], 15) } else { vshrq_n_u8::<4>(low[i]) };
                vorrq_u8(low, vshlq_n_u8::<4>(high[j][i]))
            };
            minus([code(0), code(1)], 32)
        })
    };
    BlockIQ4NL, 1: |b| [look_up(&IQ4, nibbles(&b.qs))];
    BlockIQ4XS, 8: |b| std::array::from_fn(|j| look_up(&IQ4, nibbles(&b.qs[j])));
    BlockTQ1_0, 8: |b| {
        let (full, half) = (load_2(&b.qs_32), load(&b.qs_16));
        let four = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(b.qh)));
        let power = |n: usize| vdupq_n_u8(POW3[n]);
        // The last 16 weights: four digits of 4 bytes.
        let powers = load(&std::array::from_fn(|i| POW3[i / 4]));
        std::array::from_fn(|j| match j {
            0..5 => full.map(|x| digit(x, power(j))),
            5 | 6 => [digit(half, power(2 * j - 10)), digit(half, power(2 * j - 9))],
            _ => [digit(half, power(4)), digit(four, powers)],
        })
    };
    BlockTQ2_0, 8: |b| pairs_of_8(&b.qs).map(|codes| minus(codes, 1));
    BlockMXFP4, 1: |b| [look_up(&E2M1, nibbles(&b.qs))];
}
