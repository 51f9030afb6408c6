//! `sdot`: four products to a lane, the activations of a step by element.

use std::arch::aarch64::*;

use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod", 1);
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

/// What is taken off the sums of a token and a group, see [`start`].
type Ready = [float32x4_t; 2];

#[inline]
#[target_feature(enable = "neon")]
fn nothing() -> Ready {
    [vdupq_n_f32(MAGIC); 2]
}

/// Those of a tile for a run of groups.
#[inline]
#[target_feature(enable = "neon")]
fn get_ready<const Q: usize, const T: usize>(x: &[&[Q8Block]; T], ready: &mut [[Ready; 4]; RUN]) {
    if const { packing(Q).bias } != 0 {
        for (t, x) in x.iter().enumerate() {
            for (ready, x) in ready.iter_mut().zip(*x) {
                ready[t] = start::<Q>(x);
            }
        }
    }
}

/// The sums of a group of the quad that begins `I` quads behind `place`, not yet ended. They begin with `FIRST` and `SECOND` of
/// [`magic`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn quad<const Q: usize, const T: usize, const I: usize, const FIRST: usize, const SECOND: usize>(
    place: &Place<'_>,
    x: &[[int8x16_t; 2]; T],
    g: usize,
) -> [[int32x4_t; T]; 2] {
    let packing = const { &packing(Q) };
    let mask = mask::<Q>();
    let mut acc = [magic::<T, FIRST>(g), [vdupq_n_s32(0); T]];
    if halves(packing) {
        acc[1] = magic::<T, SECOND>(g);
    }
    macro_rules! steps {
        ($($first:literal $second:literal)*) => {$(
            let w = two_codes::<Q, I, $first>(place, mask);
            for (sum, x) in acc[0].iter_mut().zip(x) {
                *sum = dot::<{ $first % 4 }>(*sum, w[0], x[$first / 4]);
            }
            for (sum, x) in acc[if halves(packing) { 1 } else { 0 }].iter_mut().zip(x) {
                *sum = dot::<{ $second % 4 }>(*sum, w[1], x[$second / 4]);
            }
        )*};
    }
    steps!(0 4  1 5  2 6  3 7);
    acc
}

/// The sums of a group, of a token and four quads.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn exact<const Q: usize, const T: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&Q8Block; T],
    g: usize,
) -> Exact<T, N> {
    const { assert!(T == 1 && N == 4) };
    let packing = const { &packing(Q) };
    let (start, x) = (start::<Q>(x[0]), load_codes(&x[0].codes));
    let mask = mask::<Q>();
    let mut acc = [magic::<N, 0>(g), if halves(packing) { magic::<N, 4>(g) } else { [vdupq_n_s32(0); N] }];
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
fn tile<const Q: usize, const T: usize>(
    place: &Place<'_>,
    x: &[&Q8Block; T],
    start: &[Ready; 4],
    run: &Run<1>,
    j: usize,
    first: usize,
    found: &mut Found<T>,
) {
    let packing = const { &packing(Q) };
    let start = if packing.bias != 0 { start } else { &[nothing(); 4] };
    let mut codes = [[vdupq_n_s8(0); 2]; T];
    for (codes, x) in codes.iter_mut().zip(x) {
        *codes = load_codes(&x.codes);
    }
    macro_rules! finish {
        ($i:literal $acc:ident) => {
            let factors = run.quad::<Q>(j, first + $i);
            for t in 0..T {
                let mut exact = [vdupq_n_f32(0.0); 2];
                for half in 0..2 {
                    exact[half] = vsubq_f32(vreinterpretq_f32_s32($acc[$i][half][t]), start[t][half]);
                }
                found[t][$i] = finish::<Q, 1>(&factors, 0, &Token::new::<Q>(x[t]), exact, found[t][$i]);
            }
        };
    }
    // A quad with all tokens at a time: that many sums stay in registers beside those found.
    macro_rules! quads {
        ($($i:literal)*) => {{
            let mut acc = [[[vdupq_n_s32(0); T]; 2]; QUADS];
            $(
                acc[$i] = quad::<Q, T, $i, { 4 * $i }, { 16 + 4 * $i }>(place, &codes, j);
                if halves(packing) {
                    pin!(acc[$i].as_flattened_mut());
                    finish!($i acc);
                }
            )*
            if !halves(packing) {
                // What the sums are multiplied with is loaded behind this: before, it would have no room.
                $(pin!(&mut acc[$i][0]);)*
                $(finish!($i acc);)*
            }
        }};
    }
    quads!(0 1);
}

peak!("neon,dotprod", "sdot", "4s", "16b", 16);
