//! Products with packed weights, AVX2: a lane of a register is a row, two registers are the 16 rows of a panel.
//!
//! Codes of up to 6 bits are unsigned, as `vpmaddubsw` takes its first operand, and `Σ (code - bias) · x` is summed in
//! 16 bits: each of a lane's two sums begins with `-bias · Σ x` and goes up by products of unsigned codes. They may wrap
//! on the way, which changes nothing, because the end fits: 16 (half a group: 8) products of at most 16 · 127 (32 · 127).
//! Only a single `vpmaddubsw` must not saturate: 2 · 63 · 127 fits. Codes of 8 bits go the other way, signs to the
//! activations, each pair widened at once.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::kernel::tensor::{Pair, Q8Block, Q8View};
use crate::kernel::{PANEL, PackedFn, Q8_BLOCK};
use crate::quant::packed::{Float, Integers, Packing};
use crate::quant::{E2M1, Quant};

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

/// 16 rows: the first eight, the others.
type Two = [__m256i; 2];

/// What is known of a format when its kernel is compiled.
#[derive(Clone, Copy)]
struct Plan {
    packing: Packing,
    /// Codes are signed, of 8 bits.
    wide: bool,
    /// Both halves of a group have a scale.
    halves: bool,
    /// Taken off the unsigned codes in 16-bit sums.
    bias: i16,
    /// It is put back behind: the codes were unsigned, and only their sums would not have fitted.
    back: bool,
    /// E2M1 with `bias` added.
    table: Option<[u8; 16]>,
}

const fn plan(quant: usize) -> Plan {
    let Some(packing) = Packing::of(Quant::ALL[quant]) else { panic!("a format without blocks") };
    let halves = matches!(packing.integers, Integers::Halves | Integers::Halves6 | Integers::HalvesAndMins);
    let mut plan =
        Plan { packing, wide: packing.low == 8, halves, bias: packing.bias as i16, back: false, table: None };
    if let Some(values) = packing.table {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = values[i] as u8;
            i += 1;
        }
        plan.table = Some(table);
    }
    if let Quant::MXFP4 = Quant::ALL[quant] {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = (E2M1[i] + 12) as u8;
            i += 1;
        }
        plan.table = Some(table);
        plan.bias = 12;
    } else if packing.table.is_some() {
        plan.wide = true;
    } else if packing.high == 1 && packing.bias == 0 {
        plan.bias = 16;
        plan.back = true;
    }
    plan
}

/// What a panel has for one group, or for the floats one block.
struct Part<'a> {
    low: &'a [u8],
    high: &'a [u8],
    integers: &'a [u8],
    floats: &'a [u8],
}

#[target_feature(enable = "avx2,fma,f16c")]
fn load(bytes: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn load16(bytes: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

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

/// Bits `FROM ..` of each byte as bits `TO ..`, of which `mask` are kept.
macro_rules! moved {
    ($x:expr, $from:expr, $to:expr, $mask:expr) => {{
        const LEFT: i32 = if $to > $from { $to - $from } else { 0 };
        const RIGHT: i32 = if $from > $to { $from - $to } else { 0 };
        let x = _mm256_srli_epi16::<RIGHT>(_mm256_slli_epi16::<LEFT>($x));
        _mm256_and_si256(x, _mm256_set1_epi8($mask as i8))
    }};
}

/// Codes of the step `$step` of a group: 8 rows in each of two registers. A macro, because what is not unrolled and
/// inlined here costs ten times the time.
macro_rules! codes {
    ($plan:expr, $part:expr, $step:literal) => {{
        let (packing, part) = (&$plan.packing, $part);
        let mut out = [_mm256_setzero_si256(); 2];
        for (i, out) in out.iter_mut().enumerate() {
            let low = match packing.low {
                2 => moved!(load(part.low, $step % 2 * 64 + 32 * i), $step / 2 * 2, 0, 3),
                4 => moved!(load(part.low, $step % 4 * 64 + 32 * i), $step / 4 * 4, 0, 15),
                _ => load(part.low, $step * 64 + 32 * i),
            };
            *out = match (packing.high, packing.low) {
                (0, _) => low,
                (1, 2) => _mm256_or_si256(low, moved!(load(part.high, 32 * i), $step, 2, 4)),
                (1, _) => _mm256_or_si256(low, moved!(load(part.high, 32 * i), $step, 4, 16)),
                _ => {
                    let high = load(part.high, $step % 2 * 64 + 32 * i);
                    _mm256_or_si256(low, moved!(high, $step / 2 * 2, 4, 48))
                }
            };
            if let Some(table) = &$plan.table {
                *out = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(table, 0)), *out);
            }
        }
        out
    }};
}

/// A byte of each row as pairs of 16-bit numbers.
#[target_feature(enable = "avx2,fma,f16c")]
fn doubled(bytes: __m128i) -> Two {
    let (low, high) = (_mm_unpacklo_epi8(bytes, bytes), _mm_unpackhi_epi8(bytes, bytes));
    [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
}

/// The bytes of each row as 32-bit floats.
#[target_feature(enable = "avx2,fma,f16c")]
fn as_floats(bytes: __m128i) -> [__m256; 2] {
    [
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))),
    ]
}

/// Integers of a group, the `j`-th of its block: what sums of its halves are multiplied with, and the minima: bytes of
/// each row, of both halves or of the group.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn integers(packing: &Packing, part: &Part<'_>, j: usize) -> ([Two; 2], [__m128i; 2]) {
    let byte = |i: usize| load16(part.integers, i * PANEL);
    let nibble = _mm_set1_epi8(15);
    let high = |x: __m128i| _mm_and_si128(_mm_srli_epi16::<4>(x), nibble);
    let none = [_mm_setzero_si128(); 2];
    match packing.integers {
        Integers::None => ([[_mm256_set1_epi16(1); 2]; 2], none),
        Integers::Scale => ([doubled(byte(j)); 2], none),
        Integers::Halves => ([doubled(byte(2 * j)), doubled(byte(2 * j + 1))], none),
        Integers::HalvesAndMins => {
            let (scales, mins) = (byte(2 * j), byte(2 * j + 1));
            let scales = [doubled(_mm_and_si128(scales, nibble)), doubled(high(scales))];
            (scales, [_mm_and_si128(mins, nibble), high(mins)])
        }
        Integers::ScaleAndMin6 | Integers::Halves6 => {
            let (low, top) = (byte(j), byte(8 + j / 2));
            let top = if j.is_multiple_of(2) { top } else { _mm_srli_epi16::<4>(top) };
            let two = _mm_set1_epi8(0x30);
            let first =
                _mm_or_si128(_mm_and_si128(low, nibble), _mm_and_si128(_mm_slli_epi16::<4>(top), two));
            let second = _mm_or_si128(high(low), _mm_and_si128(_mm_slli_epi16::<2>(top), two));
            if packing.integers == Integers::ScaleAndMin6 {
                return ([doubled(first); 2], [second; 2]);
            }
            let signed = |x| doubled(_mm_sub_epi8(x, _mm_set1_epi8(32)));
            ([signed(first), signed(second)], none)
        }
    }
}

/// Float `i` of a block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn floats(packing: &Packing, part: &Part<'_>, i: usize) -> [__m256; 2] {
    let at = i * 2 * PANEL;
    let (low, high) = (load16(part.floats, at), load16(part.floats, at + 16));
    match packing.float {
        Float::F16 => [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)],
        Float::BF16 => {
            let wide = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)));
            [wide(low), wide(high)]
        }
    }
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

/// Adds the products of a panel of `n_cols` columns with tokens `x` to their sums. Each has one float sum, groups in
/// ascending order. The panel `next` comes into the second-level cache meanwhile: by itself a processor of Zen 3 reads as if
/// it computed and read in turns.
///
/// # Safety
/// `panel` has the sections of so many columns, and each of `x` a block for every 32 of them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const Q: usize, const T: usize>(
    panel: &[u8],
    next: &[u8],
    n_cols: usize,
    x: [&[Q8Block]; T],
    sums: &mut [[f32; PANEL]; T],
) {
    let plan = &const { plan(Q) };
    let packing = &plan.packing;
    let [low, high, integers_at, floats_at, _] = packing.sections(n_cols);
    let [low_len, high_len, integers_len, floats_len] = packing.parts();
    let n_groups = n_cols / Q8_BLOCK;
    let (mut ahead, lines) = (next.as_ptr(), next.len().div_ceil(LINE * n_groups));
    for b in 0..n_groups / packing.groups {
        // SAFETY: the caller's promise: there are so many blocks, each with its integers and floats.
        let part = |start: usize, i: usize, len: usize| unsafe {
            panel.get_unchecked(start + i * len..start + (i + 1) * len)
        };
        let floats_of = part(floats_at, b, floats_len);
        let integers_of = part(integers_at, b, integers_len);
        let block = Part { low: &[], high: &[], integers: integers_of, floats: floats_of };
        let d = floats(packing, &block, 0);
        let dmin = if packing.mins { floats(packing, &block, 1) } else { d };
        for j in 0..packing.groups {
            let g = b * packing.groups + j;
            for _ in 0..lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(LINE);
            }
            let part = Part { low: part(low, g, low_len), high: part(high, g, high_len), ..block };
            // SAFETY: the caller's promise.
            let x: [&Q8Block; T] = std::array::from_fn(|t| unsafe { x[t].get_unchecked(g) });
            let (scales, mins) = integers(packing, &part, j);
            // The exact sum of each token and row.
            let mut exact = [[_mm256_setzero_si256(); 2]; T];
            let mut acc = exact;
            macro_rules! steps {
                ($($step:literal)*) => { $({
                    let w = codes!(plan, &part, $step);
                    if !plan.wide && ($step == 0 || plan.halves && $step == 4) {
                        for (acc, x) in acc.iter_mut().zip(x) {
                            *acc = match plan.halves {
                                _ if plan.bias == 0 => [_mm256_setzero_si256(); 2],
                                false => [times(-plan.bias, x.both); 2],
                                true => [_mm256_mullo_epi16(both_halves(x)[$step / 4], _mm256_set1_epi16(-plan.bias)); 2],
                            };
                        }
                    }
                    for t in 0..T {
                        let x = four::<$step>(&x[t].codes);
                        for i in 0..2 {
                            if plan.wide {
                                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(x, w[i]));
                                exact[t][i] = _mm256_add_epi32(exact[t][i], _mm256_madd_epi16(pairs, scales[0][i]));
                            } else {
                                acc[t][i] = _mm256_add_epi16(acc[t][i], _mm256_maddubs_epi16(w[i], x));
                            }
                        }
                    }
                    pin(if plan.wide { &mut exact } else { &mut acc });
                    if !plan.wide && ($step == 7 || plan.halves && $step == 3) {
                        for t in 0..T {
                            for i in 0..2 {
                                let sum = _mm256_madd_epi16(acc[t][i], scales[$step / 4][i]);
                                exact[t][i] =
                                    if $step == 3 || !plan.halves { sum } else { _mm256_add_epi32(exact[t][i], sum) };
                            }
                        }
                    }
                })* };
            }
            steps!(0 1 2 3 4 5 6 7);
            let group_min = match packing.integers {
                Integers::ScaleAndMin6 => {
                    let [low, high] = as_floats(mins[0]);
                    [_mm256_mul_ps(dmin[0], low), _mm256_mul_ps(dmin[1], high)]
                }
                _ => dmin,
            };
            let half_mins = [doubled(mins[0]), doubled(mins[1])];
            for ((x, exact), sums) in x.into_iter().zip(exact).zip(&mut *sums) {
                let scale = _mm256_set1_ps(x.scale);
                for (i, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let mut exact = exact[i];
                    if plan.back {
                        let bias = _mm256_madd_epi16(times(plan.bias, x.both), scales[0][i]);
                        exact = _mm256_add_epi32(exact, bias);
                    }
                    let by = _mm256_mul_ps(d[i], scale);
                    let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), by, load_floats(sums));
                    if packing.mins {
                        sum = match packing.integers {
                            Integers::HalvesAndMins => {
                                let [first, second] = both_halves(x);
                                let exact = _mm256_add_epi32(
                                    _mm256_madd_epi16(first, half_mins[0][i]),
                                    _mm256_madd_epi16(second, half_mins[1][i]),
                                );
                                _mm256_fnmadd_ps(
                                    _mm256_cvtepi32_ps(exact),
                                    _mm256_mul_ps(dmin[i], scale),
                                    sum,
                                )
                            }
                            _ => _mm256_fnmadd_ps(group_min[i], _mm256_set1_ps(x.sum), sum),
                        };
                    }
                    store_floats(sum, sums);
                }
            }
        }
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

/// The products of a panel with all tokens, four at a time as long as there are so many.
#[target_feature(enable = "avx2,fma,f16c")]
fn product<const Q: usize>(panel: &[u8], next: &[u8], x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
    let packing = const { plan(Q) }.packing;
    assert!(
        x.n_cols.is_multiple_of(Q8_BLOCK * packing.groups) && panel.len() == packing.sections(x.n_cols)[4],
        "a panel of {} columns",
        x.n_cols
    );
    sums.fill([0.0; PANEL]);
    let mut first = 0;
    while first < sums.len() {
        let next = if first == 0 { next } else { &[] };
        first += match sums.len() - first {
            1 => some::<Q, 1>(panel, next, x, first, sums),
            2 => some::<Q, 2>(panel, next, x, first, sums),
            3 => some::<Q, 3>(panel, next, x, first, sums),
            _ => some::<Q, 4>(panel, next, x, first, sums),
        };
    }
}

/// The products of a panel with `T` tokens from `first` on; tells how many those are.
#[target_feature(enable = "avx2,fma,f16c")]
fn some<const Q: usize, const T: usize>(
    panel: &[u8],
    next: &[u8],
    x: &Q8View<'_>,
    first: usize,
    sums: &mut [[f32; PANEL]],
) -> usize {
    let Some(sums) = sums[first..].first_chunk_mut() else { return T };
    // SAFETY: `product` checked the panel, and a row of a view has a block for every 32 columns.
    unsafe { tile::<Q, T>(panel, next, x.n_cols, std::array::from_fn(|t| x.row(first + t)), sums) };
    T
}
