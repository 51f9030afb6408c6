//! Codes of blocks in 256-bit registers: what a product of any tier from AVX2 on begins with. Loops, not
//! `array::from_fn` or `map`: a closure with features stays a call in those, which have none.

use std::arch::x86_64::*;

use crate::quant::{
    Block, BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTQ1_0, BlockTQ2_0, E2M1, IQ4,
};

/// A block whose codes this architecture unpacks.
pub(super) trait Codes<const G: usize>: Block<G> {
    /// [`Block::codes`], a group in each register.
    ///
    /// # Safety
    /// The processor has AVX2.
    unsafe fn registers(&self) -> [__m256i; G];
}

#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(x: &[T; 32]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half<T>(x: &[T; 16]) -> __m128i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

/// 32 nibbles of 16 bytes: low ones first.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(bytes: &[u8; 16]) -> __m256i {
    let b = load_half(bytes);
    low_4(_mm256_set_m128i(_mm_srli_epi16::<4>(b), b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn low_4(x: __m256i) -> __m256i {
    _mm256_and_si256(x, _mm256_set1_epi8(15))
}

/// Nibbles of 8 groups: each 32 bytes hold group 2i in the low ones and 2i + 1 in the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles_of_8(bytes: &[u8; 128]) -> [__m256i; 8] {
    let mut all = [_mm256_setzero_si256(); 8];
    for (two, bytes) in all.as_chunks_mut::<2>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        let bytes = load(bytes);
        *two = [low_4(bytes), low_4(_mm256_srli_epi16::<4>(bytes))];
    }
    all
}

/// 2-bit codes of 8 groups: each 32 bytes hold four groups, the first in the lowest bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs_of_8(bytes: &[u8; 64]) -> [__m256i; 8] {
    let mut all = [_mm256_setzero_si256(); 8];
    let three = _mm256_set1_epi8(3);
    for (four, bytes) in all.as_chunks_mut::<4>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        let bytes = load(bytes);
        *four = [
            _mm256_and_si256(bytes, three),
            _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), three),
            _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), three),
            _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), three),
        ];
    }
    all
}

/// `value` in each byte where bit `j` of `bits` is set, else 0.
#[inline]
#[target_feature(enable = "avx2")]
fn where_bit(bits: __m256i, j: usize, value: i8) -> __m256i {
    let bit = _mm256_set1_epi8((1_u8 << j).cast_signed());
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit), _mm256_set1_epi8(value))
}

/// 5-bit codes: nibbles, and 16 where bit `i` of `high` is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fives(low: &[u8; 16], high: [u8; 4]) -> __m256i {
    let high = _mm256_set1_epi32(i32::from_le_bytes(high));
    // Byte i / 8 of the four to byte i, and of it bit i % 8.
    let spread = _mm256_set_epi64x(
        0x0303_0303_0303_0303,
        0x0202_0202_0202_0202,
        0x0101_0101_0101_0101,
        0x0000_0000_0000_0000,
    );
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let high = _mm256_and_si256(_mm256_shuffle_epi8(high, spread), bit);
    let high = _mm256_and_si256(_mm256_cmpeq_epi8(high, bit), _mm256_set1_epi8(16));
    _mm256_or_si256(nibbles(low), high)
}

/// The entry of `table` for each code.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(table: &[i8; 16], codes: __m256i) -> __m256i {
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_half(table)), codes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn minus(codes: __m256i, n: i8) -> __m256i {
    _mm256_sub_epi8(codes, _mm256_set1_epi8(n))
}

/// The first digit of fractions in base 3, minus 1: one more from 86 / 256 on, and from 171 / 256 on.
#[inline]
#[target_feature(enable = "avx2")]
fn digit(bytes: __m256i) -> __m256i {
    let from = |n: i8| _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, _mm256_set1_epi8(n)), bytes);
    let less = _mm256_add_epi8(from(86), from(171_u8.cast_signed()));
    _mm256_sub_epi8(_mm256_set1_epi8(-1), less)
}

/// Fractions in base 3 with each of their digits at the front.
#[inline]
#[target_feature(enable = "avx2")]
fn digits(bytes: __m256i) -> [__m256i; 5] {
    let mut all = [bytes; 5];
    for n in 1..5 {
        let last = all[n - 1];
        all[n] = _mm256_add_epi8(last, _mm256_add_epi8(last, last));
    }
    all
}

macro_rules! codes {
    ($($block:ident, $groups:literal: |$b:ident| $registers:expr;)*) => {
        $(impl Codes<$groups> for $block {
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn registers(&self) -> [__m256i; $groups] {
                let $b = self;
                $registers
            }
        })*
    };
}

codes! {
    BlockQ4_0, 1: |b| [minus(nibbles(&b.qs), 8)];
    BlockQ4_1, 1: |b| [nibbles(&b.qs)];
    BlockQ5_0, 1: |b| [minus(fives(&b.qs, b.qh), 16)];
    BlockQ5_1, 1: |b| [fives(&b.qs, b.qh)];
    BlockQ8_0, 1: |b| [load(&b.qs)];
    BlockQ2K, 8: |b| pairs_of_8(&b.qs);
    BlockQ3K, 8: |b| {
        let (mut codes, high) = (pairs_of_8(&b.qs), load(&b.hmask));
        for (j, codes) in codes.iter_mut().enumerate() {
            *codes = minus(_mm256_or_si256(*codes, where_bit(high, j, 4)), 4);
        }
        codes
    };
    BlockQ4K, 8: |b| nibbles_of_8(&b.qs);
    BlockQ5K, 8: |b| {
        let (mut codes, high) = (nibbles_of_8(&b.qs), load(&b.qh));
        for (j, codes) in codes.iter_mut().enumerate() {
            *codes = _mm256_or_si256(*codes, where_bit(high, j, 16));
        }
        codes
    };
    BlockQ6K, 8: |b| {
        let mut codes = pairs_of_8(&b.qh);
        for (four, low) in codes.as_chunks_mut::<4>().0.iter_mut().zip(b.ql.as_chunks::<64>().0) {
            let low = low.as_chunks::<32>().0;
            let (first, second) = (load(&low[0]), load(&low[1]));
            let low = [first, second, _mm256_srli_epi16::<4>(first), _mm256_srli_epi16::<4>(second)];
            for (codes, low) in four.iter_mut().zip(low) {
                *codes = minus(_mm256_or_si256(low_4(low), _mm256_slli_epi16::<4>(*codes)), 32);
            }
        }
        codes
    };
    BlockIQ4NL, 1: |b| [look_up(&IQ4, nibbles(&b.qs))];
    BlockIQ4XS, 8: |b| {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (codes, bytes) in codes.iter_mut().zip(&b.qs) {
            *codes = look_up(&IQ4, nibbles(bytes));
        }
        codes
    };
    BlockTQ1_0, 8: |b| {
        let full = digits(load(&b.qs_32));
        let half = digits(_mm256_broadcastsi128_si256(load_half(&b.qs_16)));
        let four = digits(_mm256_set1_epi32(i32::from_le_bytes(b.qh)));
        // Two digits of 16 bytes make a group, and four digits of 4 bytes the half of one.
        let last = _mm256_blend_epi32::<0b1010_1010>(four[0], four[1]);
        let last = _mm256_blend_epi32::<0b1100_1100>(last, _mm256_blend_epi32::<0b1010_1010>(four[2], four[3]));
        let halves = |low, high| _mm256_blend_epi32::<0b1111_0000>(low, high);
        let [g0, g1, g2, g3, g4] = full;
        let (g5, g6, g7) = (halves(half[0], half[1]), halves(half[2], half[3]), halves(half[4], last));
        [digit(g0), digit(g1), digit(g2), digit(g3), digit(g4), digit(g5), digit(g6), digit(g7)]
    };
    BlockTQ2_0, 8: |b| {
        let mut codes = pairs_of_8(&b.qs);
        for codes in &mut codes {
            *codes = minus(*codes, 1);
        }
        codes
    };
    BlockMXFP4, 1: |b| [look_up(&E2M1, nibbles(&b.qs))];
}
