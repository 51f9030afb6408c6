//! Codes of blocks in 128-bit registers: what a product of any tier of 64-bit Arm begins with. Loops, not
//! `array::from_fn` or `map`: a closure with features stays a call in those, which have none.

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

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_u8(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_signed(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load_2(x: &[u8; 32]) -> [uint8x16_t; 2] {
    let halves = x.as_chunks::<16>().0;
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn and(x: uint8x16_t, mask: u8) -> uint8x16_t {
    vandq_u8(x, vdupq_n_u8(mask))
}

/// `codes - n`.
#[inline]
#[target_feature(enable = "neon")]
fn minus(codes: [uint8x16_t; 2], n: u8) -> Group {
    let n = vdupq_n_u8(n);
    signed([vsubq_u8(codes[0], n), vsubq_u8(codes[1], n)])
}

/// The codes as they are.
#[inline]
#[target_feature(enable = "neon")]
fn signed(codes: [uint8x16_t; 2]) -> Group {
    [vreinterpretq_s8_u8(codes[0]), vreinterpretq_s8_u8(codes[1])]
}

/// The same of 8 groups.
#[inline]
#[target_feature(enable = "neon")]
fn all_minus(codes: [[uint8x16_t; 2]; 8], n: u8) -> [Group; 8] {
    let mut all = [[vdupq_n_s8(0); 2]; 8];
    for (to, codes) in all.iter_mut().zip(&codes) {
        *to = minus(*codes, n);
    }
    all
}

/// 32 nibbles of 16 bytes: low ones first.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(bytes: &[u8; 16]) -> [uint8x16_t; 2] {
    let bytes = load(bytes);
    [and(bytes, 15), vshrq_n_u8::<4>(bytes)]
}

/// Nibbles of 8 groups: each 32 bytes hold group 2i in the low ones and 2i + 1 in the high ones.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles_of_8(bytes: &[u8; 128]) -> [[uint8x16_t; 2]; 8] {
    let mut all = [[vdupq_n_u8(0); 2]; 8];
    for (two, bytes) in all.as_chunks_mut::<2>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        let [b0, b1] = load_2(bytes);
        *two = [[and(b0, 15), and(b1, 15)], [vshrq_n_u8::<4>(b0), vshrq_n_u8::<4>(b1)]];
    }
    all
}

/// 2-bit codes of 8 groups: each 32 bytes hold four groups, the first in the lowest bits.
#[inline]
#[target_feature(enable = "neon")]
fn pairs_of_8(bytes: &[u8; 64]) -> [[uint8x16_t; 2]; 8] {
    let mut all = [[vdupq_n_u8(0); 2]; 8];
    for (four, bytes) in all.as_chunks_mut::<4>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        let [b0, b1] = load_2(bytes);
        *four = [
            [and(b0, 3), and(b1, 3)],
            [and(vshrq_n_u8::<2>(b0), 3), and(vshrq_n_u8::<2>(b1), 3)],
            [and(vshrq_n_u8::<4>(b0), 3), and(vshrq_n_u8::<4>(b1), 3)],
            [vshrq_n_u8::<6>(b0), vshrq_n_u8::<6>(b1)],
        ];
    }
    all
}

/// In each group `j`, `value` more where bit `j` of `bits` is set.
#[inline]
#[target_feature(enable = "neon")]
fn or_bits(mut codes: [[uint8x16_t; 2]; 8], bits: &[u8; 32], value: u8) -> [[uint8x16_t; 2]; 8] {
    let [b0, b1] = load_2(bits);
    for (j, [c0, c1]) in codes.iter_mut().enumerate() {
        let bit = vdupq_n_u8(1 << j);
        *c0 = vorrq_u8(*c0, and(vtstq_u8(b0, bit), value));
        *c1 = vorrq_u8(*c1, and(vtstq_u8(b1, bit), value));
    }
    codes
}

/// 5-bit codes: nibbles, and 16 where bit `i` of `high` is set.
#[inline]
#[target_feature(enable = "neon")]
fn fives(low: &[u8; 16], high: [u8; 4]) -> [uint8x16_t; 2] {
    let low = nibbles(low);
    let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let h0 = vcombine_u8(vdup_n_u8(high[0]), vdup_n_u8(high[1]));
    let h1 = vcombine_u8(vdup_n_u8(high[2]), vdup_n_u8(high[3]));
    [vorrq_u8(low[0], and(vtstq_u8(h0, bit), 16)), vorrq_u8(low[1], and(vtstq_u8(h1, bit), 16))]
}

/// The entry of `table` for each code.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(table: &[i8; 16], codes: [uint8x16_t; 2]) -> Group {
    let table = load_signed(table);
    [vqtbl1q_s8(table, codes[0]), vqtbl1q_s8(table, codes[1])]
}

/// The first digit of `bytes * power`, fractions in base 3, minus 1: one more from 86 / 256 on, and from 171 / 256 on.
#[inline]
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
    BlockQ2K, 8: |b| all_minus(pairs_of_8(&b.qs), 0);
    BlockQ3K, 8: |b| all_minus(or_bits(pairs_of_8(&b.qs), &b.hmask, 4), 4);
    BlockQ4K, 8: |b| all_minus(nibbles_of_8(&b.qs), 0);
    BlockQ5K, 8: |b| all_minus(or_bits(nibbles_of_8(&b.qs), &b.qh, 16), 0);
    BlockQ6K, 8: |b| {
        let mut codes = pairs_of_8(&b.qh);
        for (four, low) in codes.as_chunks_mut::<4>().0.iter_mut().zip(b.ql.as_chunks::<64>().0) {
            let low = low.as_chunks::<32>().0;
            let ([a0, a1], [b0, b1]) = (load_2(&low[0]), load_2(&low[1]));
            let low = [
                [and(a0, 15), and(a1, 15)],
                [and(b0, 15), and(b1, 15)],
                [vshrq_n_u8::<4>(a0), vshrq_n_u8::<4>(a1)],
                [vshrq_n_u8::<4>(b0), vshrq_n_u8::<4>(b1)],
            ];
            for (high, low) in four.iter_mut().zip(&low) {
                *high = [vsliq_n_u8::<4>(low[0], high[0]), vsliq_n_u8::<4>(low[1], high[1])];
            }
        }
        all_minus(codes, 32)
    };
    BlockIQ4NL, 1: |b| [look_up(&IQ4, nibbles(&b.qs))];
    BlockIQ4XS, 8: |b| {
        let mut codes = [[vdupq_n_s8(0); 2]; 8];
        for (codes, bytes) in codes.iter_mut().zip(&b.qs) {
            *codes = look_up(&IQ4, nibbles(bytes));
        }
        codes
    };
    BlockTQ1_0, 8: |b| {
        let ([full0, full1], half) = (load_2(&b.qs_32), load(&b.qs_16));
        let four = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(b.qh)));
        let mut codes = [[vdupq_n_s8(0); 2]; 8];
        let (full, rest) = codes.split_at_mut(5);
        for (codes, power) in full.iter_mut().zip(POW3) {
            *codes = [digit(full0, vdupq_n_u8(power)), digit(full1, vdupq_n_u8(power))];
        }
        for (codes, power) in rest.as_flattened_mut().iter_mut().zip(POW3) {
            *codes = digit(half, vdupq_n_u8(power));
        }
        // The last 16 weights: four digits of 4 bytes.
        let powers = load(&[1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27]);
        codes[7][1] = digit(four, powers);
        codes
    };
    BlockTQ2_0, 8: |b| all_minus(pairs_of_8(&b.qs), 1);
    BlockMXFP4, 1: |b| [look_up(&E2M1, nibbles(&b.qs))];
}
