//! Products with packed weights, AVX2. A few tokens are multiplied with codes as they are read; more, with codes
//! that were unpacked before, some groups at a time, which stay in the first-level cache.
//!
//! Codes of up to 6 bits are unsigned, as `vpmaddubsw` takes its first operand, and `Σ (code - bias) · x` is summed in
//! 16 bits: each of a lane's two sums begins with `-bias · Σ x` and goes up by products of unsigned codes. They may wrap
//! on the way, which changes nothing, because the end fits: 16 (half a group: 8) products of at most 16 · 127 (32 · 127).
//! Only a single `vpmaddubsw` must not saturate: 2 · 63 · 127 fits. Codes of 8 bits go the other way, signs to the
//! activations, each pair widened at once.

use std::arch::asm;
use std::arch::x86_64::*;

use super::panel::{
    Part, Plan, Sections, Two, as_floats, codes, doubled, floats, integers, load, load16, moved, plan,
};
use crate::kernel::tensor::{Pair, Q8Block, Q8View};
use crate::kernel::{PANEL, PackedFn, Q8_BLOCK};
use crate::quant::Quant;
use crate::quant::packed::Integers;

/// Indexed by format.
pub(super) const PRODUCTS: [Option<PackedFn>; Quant::COUNT] = {
    let mut all: [Option<PackedFn>; Quant::COUNT] = [None; Quant::COUNT];
    macro_rules! set {
        ($($quant:ident)*) => { $(all[Quant::$quant as usize] = Some(product::<{ Quant::$quant as usize }>);)* };
    }
    set!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4);
    all
};

/// Bytes of a line of a cache.
const LINE: usize = 64;
/// Tokens of a tile: their sums are half of the registers.
const TILE: usize = 4;
/// Tokens up to which codes are not unpacked before: it would cost more than it saves.
const FEW: usize = 8;
/// Groups that are unpacked at a time: a block of the formats with the longest ones.
const UNIT: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
fn load_floats(x: &[f32; 8]) -> __m256 {
    // SAFETY: eight floats are there; the load takes any alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn store_floats(x: __m256, y: &mut [f32; 8]) {
    // SAFETY: there is room for eight floats; the store takes any alignment.
    unsafe { _mm256_storeu_ps(y.as_mut_ptr(), x) }
}

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

/// Keeps float sums in memory from group to group: for all the compiler knows they are read here. Registers are needed for
/// the exact sums.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn leave<const T: usize>(sums: &mut [[f32; PANEL]; T]) {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", in(reg) sums.as_mut_ptr(), options(nostack, preserves_flags)) };
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

/// What the exact sums of a group are multiplied with, and its minima.
#[derive(Clone, Copy)]
struct Factors {
    /// Of each half.
    scales: [Two; 2],
    d: [__m256; 2],
    /// That of the group; of halves, what theirs are multiplied with.
    min: [__m256; 2],
    half_mins: [Two; 2],
}

impl Factors {
    /// Those of a group, the `j`-th of its block, with the floats of that.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn read(plan: &Plan, part: &Part<'_>, j: usize, d: [__m256; 2], dmin: [__m256; 2]) -> Self {
        let (scales, mins) = integers(&plan.packing, part, j);
        let min = match plan.packing.integers {
            Integers::ScaleAndMin6 => {
                let [low, high] = as_floats(mins[0]);
                [_mm256_mul_ps(dmin[0], low), _mm256_mul_ps(dmin[1], high)]
            }
            _ => dmin,
        };
        Self { scales, d, min, half_mins: [doubled(mins[0]), doubled(mins[1])] }
    }
}

/// Step `$step` of [`products`].
macro_rules! step {
    ($plan:expr, $x:expr, $scales:expr, $w:ident, $acc:ident, $exact:ident, $step:literal) => {
        let w = $w!($step);
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

/// The exact sum of each token of `$x` and each row over a group, whose codes of a step are `$w!(step)`. A macro, because
/// what is not unrolled and inlined here costs ten times the time.
macro_rules! products {
    ($plan:expr, $x:expr, $scales:expr, $w:ident) => {{
        let mut exact = [[_mm256_setzero_si256(); 2]; T];
        let mut acc = exact;
        step!($plan, $x, $scales, $w, acc, exact, 0);
        step!($plan, $x, $scales, $w, acc, exact, 1);
        step!($plan, $x, $scales, $w, acc, exact, 2);
        step!($plan, $x, $scales, $w, acc, exact, 3);
        step!($plan, $x, $scales, $w, acc, exact, 4);
        step!($plan, $x, $scales, $w, acc, exact, 5);
        step!($plan, $x, $scales, $w, acc, exact, 6);
        step!($plan, $x, $scales, $w, acc, exact, 7);
        exact
    }};
}

/// Adds what the exact sums of a group stand for to the float sums. A macro for the same reason.
macro_rules! add {
    ($plan:expr, $f:expr, $x:expr, $exact:expr, $sums:ident) => {
        leave($sums);
        for ((x, exact), sums) in $x.into_iter().zip($exact).zip(&mut *$sums) {
            let scale = _mm256_set1_ps(x.scale);
            for (i, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let mut exact = exact[i];
                if $plan.back {
                    let bias = _mm256_madd_epi16(times($plan.bias, x.both), $f.scales[0][i]);
                    exact = _mm256_add_epi32(exact, bias);
                }
                let by = _mm256_mul_ps($f.d[i], scale);
                let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), by, load_floats(sums));
                if $plan.packing.mins {
                    sum = match $plan.packing.integers {
                        Integers::HalvesAndMins => {
                            let [first, second] = both_halves(x);
                            let exact = _mm256_add_epi32(
                                _mm256_madd_epi16(first, $f.half_mins[0][i]),
                                _mm256_madd_epi16(second, $f.half_mins[1][i]),
                            );
                            let by = _mm256_mul_ps($f.min[i], scale);
                            _mm256_fnmadd_ps(_mm256_cvtepi32_ps(exact), by, sum)
                        }
                        _ => _mm256_fnmadd_ps($f.min[i], _mm256_set1_ps(x.sum), sum),
                    };
                }
                store_floats(sum, sums);
            }
        }
    };
}

/// Brings a panel into the second-level cache, so many lines for each group of the one before it: by itself a
/// processor of Zen 3 reads as if it computed and read in turns.
struct Ahead {
    at: *const u8,
    lines: usize,
}

impl Ahead {
    fn new(next: &[u8], n_groups: usize) -> Self {
        Self { at: next.as_ptr(), lines: next.len().div_ceil(LINE * n_groups) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn group(&mut self) {
        for _ in 0..self.lines {
            _mm_prefetch::<_MM_HINT_T1>(self.at.cast());
            self.at = self.at.wrapping_add(LINE);
        }
    }
}

/// Adds the products of a panel with tokens `x` to their sums. Each has one float sum, groups in ascending order.
///
/// # Safety
/// The panel has the sections of its columns, and each of `x` a block for every group.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const Q: usize, const T: usize>(
    sections: Sections<'_>,
    ahead: &mut Ahead,
    n_groups: usize,
    x: [*const Q8Block; T],
    sums: &mut [[f32; PANEL]; T],
) {
    let plan = &const { plan(Q) };
    let packing = &plan.packing;
    for b in 0..n_groups / packing.groups {
        // SAFETY: the caller's promise.
        let block = unsafe { sections.part(b * packing.groups) };
        let d = floats(packing, &block, 0);
        let dmin = if packing.mins { floats(packing, &block, 1) } else { d };
        for j in 0..packing.groups {
            let g = b * packing.groups + j;
            ahead.group();
            // SAFETY: the caller's promise.
            let part = unsafe { sections.part(g) };
            // SAFETY: the caller's promise.
            let x: [&Q8Block; T] = std::array::from_fn(|t| unsafe { &*x[t].add(g) });
            let factors = Factors::read(plan, &part, j, d, dmin);
            macro_rules! w {
                ($step:literal) => {
                    codes!(plan, &part, $step)
                };
            }
            let exact = products!(plan, x, factors.scales, w);
            add!(plan, factors, x, exact, sums);
        }
    }
}

/// Some groups of a panel, their codes a byte each.
#[derive(Clone, Copy)]
struct Unpacked {
    codes: [Two; 8],
    factors: Factors,
}

/// As [`tile`], of unpacked groups, with the same bits.
///
/// # Safety
/// Each of `x` has a block for every group.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpacked_tile<const Q: usize, const T: usize>(
    groups: &[Unpacked],
    x: [*const Q8Block; T],
    sums: &mut [[f32; PANEL]; T],
) {
    let plan = &const { plan(Q) };
    for (g, group) in groups.iter().enumerate() {
        // SAFETY: the caller's promise.
        let x: [&Q8Block; T] = std::array::from_fn(|t| unsafe { &*x[t].add(g) });
        macro_rules! w {
            ($step:literal) => {
                group.codes[$step]
            };
        }
        let exact = products!(plan, x, group.factors.scales, w);
        add!(plan, group.factors, x, exact, sums);
    }
}

/// Unpacks groups `first ..` of a panel.
///
/// # Safety
/// The panel has the sections of its columns, and those groups.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<const Q: usize>(
    sections: Sections<'_>,
    ahead: &mut Ahead,
    first: usize,
    out: &mut [Unpacked],
) {
    let plan = &const { plan(Q) };
    let packing = &plan.packing;
    for (g, out) in (first..).zip(out) {
        ahead.group();
        // SAFETY: the caller's promise.
        let part = unsafe { sections.part(g) };
        let d = floats(packing, &part, 0);
        let dmin = if packing.mins { floats(packing, &part, 1) } else { d };
        out.factors = Factors::read(plan, &part, g % packing.groups, d, dmin);
        out.codes[0] = codes!(plan, &part, 0);
        out.codes[1] = codes!(plan, &part, 1);
        out.codes[2] = codes!(plan, &part, 2);
        out.codes[3] = codes!(plan, &part, 3);
        out.codes[4] = codes!(plan, &part, 4);
        out.codes[5] = codes!(plan, &part, 5);
        out.codes[6] = codes!(plan, &part, 6);
        out.codes[7] = codes!(plan, &part, 7);
    }
}

/// `vpmaddubsw` and `vpaddw` on eight sums, what a product with codes of up to 6 bits mostly is.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn peak(n_rounds: u32) -> u64 {
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

/// The products of a panel with all tokens. `next` is the panel that will be read after it.
#[target_feature(enable = "avx2,fma,f16c")]
fn product<const Q: usize>(panel: &[u8], next: &[u8], x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
    let plan = const { plan(Q) };
    let packing = plan.packing;
    assert!(
        x.n_cols.is_multiple_of(Q8_BLOCK * packing.groups)
            && panel.len() == packing.sections(x.n_cols)[4]
            && x.blocks.len() == sums.len() * x.n_cols / Q8_BLOCK,
        "a panel of {} columns",
        x.n_cols
    );
    sums.fill([0.0; PANEL]);
    let n_groups = x.n_cols / Q8_BLOCK;
    let sections = Sections::new(&packing, panel, x.n_cols);
    let mut ahead = Ahead::new(next, n_groups);
    if plan.wide || sums.len() <= FEW {
        for t in (0..sums.len()).step_by(TILE) {
            match sums.len() - t {
                1 => some::<Q, 1>(sections, &mut ahead, x, t, sums),
                2 => some::<Q, 2>(sections, &mut ahead, x, t, sums),
                3 => some::<Q, 3>(sections, &mut ahead, x, t, sums),
                _ => some::<Q, TILE>(sections, &mut ahead, x, t, sums),
            }
            ahead.lines = 0;
        }
        return;
    }
    let zero = Factors {
        scales: [[_mm256_setzero_si256(); 2]; 2],
        d: [_mm256_setzero_ps(); 2],
        min: [_mm256_setzero_ps(); 2],
        half_mins: [[_mm256_setzero_si256(); 2]; 2],
    };
    let mut unit = [Unpacked { codes: [[_mm256_setzero_si256(); 2]; 8], factors: zero }; UNIT];
    for first in (0..n_groups).step_by(UNIT) {
        let unit = &mut unit[..UNIT.min(n_groups - first)];
        // SAFETY: the panel was checked above, and these groups are below n_groups.
        unsafe { unpack::<Q>(sections, &mut ahead, first, unit) };
        for t in (0..sums.len()).step_by(TILE) {
            match sums.len() - t {
                1 => some_unpacked::<Q, 1>(unit, first, x, t, sums),
                2 => some_unpacked::<Q, 2>(unit, first, x, t, sums),
                3 => some_unpacked::<Q, 3>(unit, first, x, t, sums),
                _ => some_unpacked::<Q, TILE>(unit, first, x, t, sums),
            }
        }
    }
}

/// The blocks of `T` tokens from `t` on, from group `first` on.
fn blocks<const T: usize>(x: &Q8View<'_>, t: usize, first: usize) -> [*const Q8Block; T] {
    let n_groups = x.n_cols / Q8_BLOCK;
    std::array::from_fn(|i| x.blocks.as_ptr().wrapping_add((t + i) * n_groups + first))
}

/// The products of a panel, which [`product`] checked, with `T` tokens from `t` on.
#[target_feature(enable = "avx2,fma,f16c")]
fn some<const Q: usize, const T: usize>(
    sections: Sections<'_>,
    ahead: &mut Ahead,
    x: &Q8View<'_>,
    t: usize,
    sums: &mut [[f32; PANEL]],
) {
    let Some(sums) = sums[t..].first_chunk_mut() else { return };
    // SAFETY: `product` checked the panel, and that each of these tokens has all its blocks.
    unsafe { tile::<Q, T>(sections, ahead, x.n_cols / Q8_BLOCK, blocks(x, t, 0), sums) };
}

/// The same, of groups `first ..`, unpacked.
#[target_feature(enable = "avx2,fma,f16c")]
fn some_unpacked<const Q: usize, const T: usize>(
    groups: &[Unpacked],
    first: usize,
    x: &Q8View<'_>,
    t: usize,
    sums: &mut [[f32; PANEL]],
) {
    let Some(sums) = sums[t..].first_chunk_mut() else { return };
    // SAFETY: `product` checked that each of these tokens has all its blocks; these groups are some of them.
    unsafe { unpacked_tile::<Q, T>(groups, blocks(x, t, first), sums) };
}
