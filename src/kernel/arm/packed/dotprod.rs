//! `sdot`: four products to a lane, the activations of a step by element.

use std::arch::aarch64::*;

use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod", 1, true);
alone!("neon,dotprod", true);

/// `acc` plus four products in each lane, of `w` with the four codes of `x` at `LANE`. The intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: usize>(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the function has the instruction, which touches nothing but the registers named.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Adds the products of a step of `F` fours, of which `T` tokens are there.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn multiply<const T: usize, const F: usize>(sums: &mut [int32x4_t; T], w: int8x16_t, x: [int8x16_t; F]) {
    macro_rules! tokens {
        ($($t:literal)*) => {$(
            if $t < T {
                sums[$t] = dot::<{ $t % FOUR }>(sums[$t], w, x[$t / FOUR]);
            }
        )*};
    }
    tokens!(0 1 2 3 4 5 6 7);
}

/// The codes of fours at a step.
#[inline]
#[target_feature(enable = "neon")]
fn at_step<const F: usize, const STEP: usize>(x: &[&Q8Four; F]) -> [int8x16_t; F] {
    let mut out = [vdupq_n_s8(0); F];
    for (out, x) in out.iter_mut().zip(x) {
        *out = vreinterpretq_s8_u8(load_alone!(x.codes.as_flattened(), 0, 16 * STEP));
    }
    out
}

/// The sums of a group of the quad that begins `I` quads behind `place`, not yet ended.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn quad<const Q: usize, const T: usize, const F: usize, const I: usize>(
    place: &Place<'_>,
    x: &[&Q8Four; F],
) -> [[int32x4_t; T]; 2] {
    let packing = const { &packing(Q) };
    let mask = mask::<Q>();
    let mut acc = [magic(), if halves(packing) { magic() } else { [vdupq_n_s32(0); T] }];
    macro_rules! steps {
        ($($first:literal $second:literal)*) => {$(
            let w = two_codes::<Q, I, $first>(place, mask);
            multiply(&mut acc[0], w[0], at_step::<F, $first>(x));
            multiply(&mut acc[if halves(packing) { 1 } else { 0 }], w[1], at_step::<F, $second>(x));
        )*};
    }
    steps!(0 4  1 5  2 6  3 7);
    acc
}

/// The sums of a group, of a token and four quads.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn exact<const Q: usize, const T: usize, const N: usize>(place: &Place<'_>, x: &Q8Block) -> Exact<T, N> {
    const { assert!(T == 1 && N == 4) };
    let packing = const { &packing(Q) };
    let start = start::<Q>([vdupq_n_u32(x.first), vdupq_n_u32(x.both)]);
    let x = [load_alone!(x.codes, 0, 0), load_alone!(x.codes, 0, 16)].map(|x| vreinterpretq_s8_u8(x));
    let mask = mask::<Q>();
    let mut acc = [magic(), if halves(packing) { magic() } else { [vdupq_n_s32(0); N] }];
    macro_rules! steps {
        ($($i:literal)*) => {
            steps!(0 4: $($i)*);
            steps!(1 5: $($i)*);
            steps!(2 6: $($i)*);
            steps!(3 7: $($i)*);
        };
        ($first:literal $second:literal: $($i:literal)*) => {
            let w = [$(two_codes::<Q, $i, $first>(place, mask)),*];
            for (w, i) in w.into_iter().zip([$($i),*]) {
                acc[0][i] = dot::<{ $first % 4 }>(acc[0][i], w[0], x[$first / 4]);
                let sum = &mut acc[if halves(packing) { 1 } else { 0 }][i];
                *sum = dot::<{ $second % 4 }>(*sum, w[1], x[$second / 4]);
            }
        };
    }
    if packing.high == 0 {
        steps!(0 1 2 3);
    } else {
        // Fewer at a time have room.
        steps!(0 1);
        pin!(acc.as_flattened_mut());
        steps!(2 3);
    }
    let mut exact = [[[vdupq_n_f32(0.0); N]; T]; 2];
    for half in 0..2 {
        for i in 0..N {
            exact[half][0][i] = vsubq_f32(vreinterpretq_f32_s32(acc[half][i]), start[half]);
        }
    }
    exact
}

/// Adds the products of the `j`-th group of a run to those found.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn tile<const Q: usize, const T: usize, const F: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&Q8Four; F],
    run: &Run<1>,
    j: usize,
    first: usize,
    found: &mut Found<T, N>,
) {
    let packing = const { &packing(Q) };
    let one = vreinterpretq_f32_u8(hidden(vreinterpretq_u8_f32(vdupq_n_f32(1.0))));
    macro_rules! finish {
        ($i:literal $acc:ident) => {
            let factors = run.quad::<Q>(j, first + $i);
            for f in 0..F {
                let (tokens, start) = Token::four::<Q>(x[f]);
                finish!($i $acc factors tokens start f: 0 1 2 3);
            }
        };
        ($i:literal $acc:ident $factors:ident $tokens:ident $start:ident $f:ident: $($lane:literal)*) => {$(
            let t = FOUR * $f + $lane;
            if t < T {
                let mut exact = [vdupq_n_f32(0.0); 2];
                for half in 0..2 {
                    let sum = vreinterpretq_f32_s32($acc[$i][half][t]);
                    // By element there is a product with 1, which the compiler would not leave, and no difference.
                    exact[half] = if packing.bias != 0 {
                        vfmsq_laneq_f32::<$lane>(sum, one, $start[half])
                    } else {
                        vsubq_f32(sum, $start[half])
                    };
                }
                let token = $tokens.with(|x| vdupq_laneq_f32::<$lane>(x));
                found[t][$i] = finish::<Q, 1>(&$factors, 0, &token, exact, found[t][$i]);
            }
        )*};
    }
    // A quad with all tokens at a time: that many sums stay in registers beside those found.
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

peak!("neon,dotprod", "sdot", "4s", "16b", 16);
