//! AVX2.
//!
//! Codes of up to 6 bits are unsigned, as `vpmaddubsw` takes its first operand, and `Σ (code - bias) · x` is summed in
//! 16 bits: each of a lane's two sums begins with `-bias · Σ x` and goes up by products of unsigned codes. They may wrap
//! on the way, which changes nothing, because the end fits: 16 (half a group: 8) products of at most 16 · 127 (32 · 127).
//! Only a single `vpmaddubsw` must not saturate: 2 · 63 · 127 fits. Codes of 8 bits go the other way, signs to the
//! activations, each pair widened at once.

use std::arch::asm;
use std::arch::x86_64::*;

use super::panel::{Part, Plan, Sections, integers, plan};
use super::{Ahead, UNIT, blocks, leave, ymm};
use crate::kernel::tensor::{Pair, Q8Block, Q8View};
use crate::kernel::{Hints, PANEL, PackedFn, Q8_BLOCK};
use crate::quant::Quant;
use crate::quant::packed::{Float, Integers, Packing};

/// 16 rows: the first eight, the others.
type Two = [__m256i; 2];

/// The activations of a step for every row.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn four<const STEP: usize>(codes: &[i8; Q8_BLOCK]) -> __m256i {
    const { assert!(4 * STEP + 4 <= Q8_BLOCK) };
    // SAFETY: the four codes are there, by the assertion; the load takes any alignment. Made of four bytes it would be
    // merged with those of other steps, and cost shuffles.
    _mm256_set1_epi32(unsafe { codes.as_ptr().add(4 * STEP).cast::<i32>().read_unaligned() })
}

/// Keeps sums in registers from step to step: for all the compiler knows they are changed here, and memory is read.
/// Without it the loads of all steps go to the front and the sums onto the stack, at half the speed.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pin<const T: usize>(sums: &mut [Two; T]) {
    for sum in sums.as_flattened_mut() {
        // SAFETY: no instruction; the register comes out as it went in.
        unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nostack, preserves_flags)) };
    }
}

/// `n` times sums of codes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn times(n: i16, pair: Pair) -> __m256i {
    _mm256_mullo_epi16(_mm256_set1_epi32(pair as i32), _mm256_set1_epi16(n))
}

/// Sums of the codes of both halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn both_halves(x: &Q8Block) -> Two {
    let (first, both) = (_mm256_set1_epi32(x.first as i32), _mm256_set1_epi32(x.both as i32));
    [first, _mm256_sub_epi16(both, first)]
}

/// A byte of each row as pairs of 16-bit numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widened(bytes: __m128i) -> Two {
    let (low, high) = (_mm_unpacklo_epi8(bytes, bytes), _mm_unpackhi_epi8(bytes, bytes));
    [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
}

/// Activations of each half times minima.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn of_halves(x: &Q8Block, first_min: __m256i, second_min: __m256i) -> __m256i {
    let [first, second] = both_halves(x);
    _mm256_add_epi32(_mm256_madd_epi16(first, first_min), _mm256_madd_epi16(second, second_min))
}

/// Step `$step` of [`products`].
macro_rules! step {
    ($v:ident, $plan:expr, $x:expr, $scales:expr, $w:tt, $acc:ident, $exact:ident, $step:literal) => {
        let w = step_codes!($v, $plan, $w, $step);
        if !$plan.wide && ($step == 0 || $plan.halves && $step == 4) {
            for (acc, x) in $acc.iter_mut().zip($x) {
                *acc = match $plan.halves {
                    _ if $plan.bias == 0 => [_mm256_setzero_si256(); 2],
                    false => [times(-$plan.bias, x.both); 2],
                    true => {
                        [_mm256_mullo_epi16(both_halves(x)[$step / 4], _mm256_set1_epi16(-$plan.bias)); 2]
                    }
                };
            }
        }
        for ((acc, exact), x) in $acc.iter_mut().zip(&mut $exact).zip($x) {
            let x = four::<$step>(&x.codes);
            for i in 0..2 {
                if $plan.wide {
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(x, w[i]));
                    exact[i] = _mm256_add_epi32(exact[i], _mm256_madd_epi16(pairs, $scales[0][i]));
                } else {
                    acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(w[i], x));
                }
            }
        }
        pin(if $plan.wide { &mut $exact } else { &mut $acc });
        if !$plan.wide && ($step == 7 || $plan.halves && $step == 3) {
            for (acc, exact) in $acc.iter().zip(&mut $exact) {
                for i in 0..2 {
                    let sum = _mm256_madd_epi16(acc[i], $scales[$step / 4][i]);
                    let whole = $step == 3 || !$plan.halves;
                    exact[i] = if whole { sum } else { _mm256_add_epi32(exact[i], sum) };
                }
            }
        }
    };
}

/// The exact sum of each token of `$x` and each row over a group.
macro_rules! products {
    ($v:ident, $plan:expr, $x:expr, $scales:expr, $w:tt) => {{
        let mut exact = [[_mm256_setzero_si256(); 2]; T];
        let mut acc = exact;
        step!($v, $plan, $x, $scales, $w, acc, exact, 0);
        step!($v, $plan, $x, $scales, $w, acc, exact, 1);
        step!($v, $plan, $x, $scales, $w, acc, exact, 2);
        step!($v, $plan, $x, $scales, $w, acc, exact, 3);
        step!($v, $plan, $x, $scales, $w, acc, exact, 4);
        step!($v, $plan, $x, $scales, $w, acc, exact, 5);
        step!($v, $plan, $x, $scales, $w, acc, exact, 6);
        step!($v, $plan, $x, $scales, $w, acc, exact, 7);
        if $plan.back {
            for (exact, x) in exact.iter_mut().zip($x) {
                for i in 0..2 {
                    let bias = _mm256_madd_epi16(times($plan.bias, x.both), $scales[0][i]);
                    exact[i] = _mm256_add_epi32(exact[i], bias);
                }
            }
        }
        exact
    }};
}

kernels!("avx2,fma,f16c", ymm, 4, products);

/// `vpmaddubsw` and `vpaddw` on eight sums, what a product with codes of up to 6 bits mostly is.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernel) fn peak(n_rounds: u32) -> u64 {
    let (w, x) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5));
    let mut sums = [[_mm256_setzero_si256(); 2]; 4];
    for _ in 0..n_rounds {
        for sum in sums.as_flattened_mut() {
            let mut w = [[w; 2]];
            // So that the product is not made once for all rounds.
            pin(&mut w);
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w[0][0], x));
        }
        pin(&mut sums);
    }
    u64::from(n_rounds) * 8 * 32
}
