//! `smmla`: two rows by two tokens, eight products to a lane.

use std::arch::aarch64::*;

use super::dotprod::alone;
use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod,i8mm", 2, true);

/// `acc` plus eight products in each lane: row 0 and token 0, row 0 and token 1, row 1 and token 0, row 1 and token 1. The
/// intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn dot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the function has the instruction, which touches nothing but the registers named.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Lanes of two registers in turn: those of the first halves, those of the second halves.
#[inline]
#[target_feature(enable = "neon")]
fn zip(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
    let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
    [vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))]
}

/// The sums of a group of the quad that begins `I` quads behind `place`, not yet ended: of each half or of the group in the
/// first, of two tokens each, two rows in a register.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn quad<const Q: usize, const T: usize, const F: usize, const I: usize>(
    place: &Place<'_>,
    x: &[&Q8Four; F],
) -> [[int32x4_t; T]; 2] {
    let packing = const { &packing(Q) };
    let mask = mask::<Q>();
    let mut acc = [magic(), if halves(packing) { magic() } else { [vdupq_n_s32(0); T] }];
    // A step and the next one: eight weights.
    macro_rules! steps {
        ($($first:literal $second:literal)*) => {$(
            let (a, b) = (two_bits::<Q, I, $first>(place), two_bits::<Q, I, $second>(place));
            for half in 0..2 {
                let low = zip(a[half][0], b[half][0]);
                let one = packing.high == 1;
                let high = zip(a[half][1], if one { vshrq_n_u8::<1>(a[half][1]) } else { b[half][1] });
                let step = $first + 4 * half;
                let mut w = [vdupq_n_s8(0); 2];
                for (rows, w) in w.iter_mut().enumerate() {
                    *w = codes::<Q, true>([low[rows], high[rows]], step, mask);
                }
                for t in (0..T).step_by(2) {
                    let x = two_tokens(x[t / FOUR], step, t % FOUR);
                    for (rows, w) in w.into_iter().enumerate() {
                        let sum = &mut acc[if halves(packing) { half } else { 0 }][t + rows];
                        *sum = dot(*sum, w, x);
                    }
                }
            }
        )*};
    }
    steps!(0 1  2 3);
    acc
}

/// The codes of a step and the next one of tokens `t` and `t + 1`.
#[inline]
#[target_feature(enable = "neon")]
fn two_tokens(x: &Q8Four, step: usize, t: usize) -> int8x16_t {
    // SAFETY: the 16 codes are there; the load takes any alignment.
    unsafe { vld1q_s8(x.codes[step + t / 2].as_ptr()) }
}

/// Adds the products of the `j`-th group of a run to those found.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn tile<const Q: usize, const T: usize, const F: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&Q8Four; F],
    run: &Run<2>,
    j: usize,
    first: usize,
    found: &mut Found<T, N>,
) {
    let packing = const { &packing(Q) };
    macro_rules! finish {
        ($i:literal $acc:ident) => {
            let factors = run.quad::<Q>(j, first + $i);
            for f in 0..F {
                let (tokens, start) = Token::four::<Q>(x[f]);
                finish!($i $acc factors tokens start f: 0 1);
            }
        };
        ($i:literal $acc:ident $factors:ident $tokens:ident $start:ident $f:ident: $($two:literal)*) => {$(
            let t = FOUR * $f + 2 * $two;
            if t < T {
                let token = $tokens.with(|x| two::<$two>(x));
                for rows in 0..2 {
                    let mut exact = [vdupq_n_f32(0.0); 2];
                    for half in 0..2 {
                        let start = if packing.bias != 0 { two::<$two>($start[half]) } else { $start[half] };
                        exact[half] = vsubq_f32(vreinterpretq_f32_s32($acc[$i][half][t + rows]), start);
                    }
                    let found = &mut found[t + rows][$i];
                    *found = finish::<Q, 2>(&$factors, rows, &token, exact, *found);
                }
            }
        )*};
    }
    macro_rules! quads {
        ($($i:literal)*) => {{
            let mut acc = [[[vdupq_n_s32(0); T]; 2]; N];
            $(if $i < N {
                acc[$i] = quad::<Q, T, F, $i>(place, x);
                if halves(packing) {
                    pin!(acc[$i].as_flattened_mut());
                    finish!($i acc);
                }
            })*
            if !halves(packing) {
                // What the sums are multiplied with is loaded behind this: before, it would have no room.
                $(if $i < N {
                    pin!(&mut acc[$i][0]);
                })*
                $(if $i < N {
                    finish!($i acc);
                })*
            }
        }};
    }
    quads!(0 1);
}

/// Lanes of two tokens, twice.
#[inline]
#[target_feature(enable = "neon")]
fn two<const TWO: i32>(x: float32x4_t) -> float32x4_t {
    vreinterpretq_f32_f64(vdupq_laneq_f64::<TWO>(vreinterpretq_f64_f32(x)))
}

/// Sums, as [`tile`] has them: two rows of two tokens in a register.
#[inline]
#[target_feature(enable = "neon")]
fn begin<const T: usize, const N: usize>(sums: &[&mut [f32; PANEL]; T], first: usize) -> Found<T, N> {
    let mut found = super::begin(sums, first);
    for [a, b] in found.as_chunks_mut::<2>().0 {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (vzip1q_f32(*a, *b), vzip2q_f32(*a, *b));
        }
    }
    found
}

/// Puts them back.
#[inline]
#[target_feature(enable = "neon")]
fn end<const T: usize, const N: usize>(found: &Found<T, N>, sums: &mut [&mut [f32; PANEL]; T], first: usize) {
    let mut found = *found;
    for [a, b] in found.as_chunks_mut::<2>().0 {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (vuzp1q_f32(*a, *b), vuzp2q_f32(*a, *b));
        }
    }
    super::end(&found, sums, first);
}

peak!("neon,dotprod,i8mm", "smmla", "4s", "16b", 32);
