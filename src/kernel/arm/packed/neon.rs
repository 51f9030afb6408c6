//! Plain Advanced SIMD: products of codes in 16 bits.
//!
//! A register of codes has four weights of four rows. `smull` makes eight products, of two rows, so a quad has two
//! registers of sums. Codes of up to 6 bits are summed in 16 bits over a group (6 bits: half a group); a sum may wrap on
//! the way, for `-bias · Σx` is added to it and the end fits: two lanes have at most 16 · 16 · 127 (8 · 32 · 127). Codes
//! without a bias are small enough: 16 · 15 · 127, or 8 · 31 · 127 in one lane. Products of signed 8-bit codes are widened
//! in twos: 2 · 128 · 127.

use std::arch::aarch64::*;

use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon", 1, false);
alone!("neon", false);

/// The register as it is, of which the compiler knows nothing any more.
#[inline]
#[target_feature(enable = "neon")]
fn opaque(mut x: int16x8_t) -> int16x8_t {
    // SAFETY: no instruction; the register comes out as it went in.
    unsafe { asm!("/* {0:v} */", inout(vreg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// The activations of a group: those of a token, or of four side by side.
trait Acts {
    /// The first of the codes: of each step those of all tokens.
    fn codes(&self) -> *const i8;
    /// Sums of the codes of token `t`, of the first half and of all.
    fn pairs(&self, t: usize) -> [Pair; 2];
}

impl Acts for Q8Block {
    #[inline]
    fn codes(&self) -> *const i8 {
        self.codes.as_ptr()
    }

    #[inline]
    fn pairs(&self, _: usize) -> [Pair; 2] {
        [self.first, self.both]
    }
}

impl Acts for Q8Four {
    #[inline]
    fn codes(&self) -> *const i8 {
        self.codes.as_flattened().as_ptr()
    }

    #[inline]
    fn pairs(&self, t: usize) -> [Pair; 2] {
        [self.first[t], self.both[t]]
    }
}

/// The four activations of a step of a token, for four rows.
#[inline]
#[target_feature(enable = "neon")]
fn four(x: &impl Acts, step: usize, t: usize) -> int8x16_t {
    // SAFETY: callers have four tokens; the load takes any alignment.
    let x = unsafe { vld1q_dup_s32(x.codes().add(4 * (FOUR * step + t)).cast()) };
    // A compiler that knows that both halves are the same does without `smull2`, and moves the upper half of each register
    // of weights down.
    vreinterpretq_s8_s16(opaque(vreinterpretq_s16_s32(x)))
}

/// Four steps of them, of one token.
#[inline]
#[target_feature(enable = "neon")]
fn steps(x: &impl Acts, half: usize) -> [int8x16_t; 4] {
    // SAFETY: 16 codes are there of each half; the load takes any alignment.
    let int32x4x4_t(a, b, c, d) = unsafe { vld4q_dup_s32(x.codes().add(16 * half).cast()) };
    [vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b), vreinterpretq_s8_s32(c), vreinterpretq_s8_s32(d)]
}

/// `acc` plus products: rows 0 and 1, rows 2 and 3.
#[inline]
#[target_feature(enable = "neon")]
fn add(acc: [int16x8_t; 2], w: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    [vmlal_s8(acc[0], vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(acc[1], w, x)]
}

/// Adds the products of the `j`-th group of a run to those found.
#[inline]
#[target_feature(enable = "neon")]
fn tile<const Q: usize, const T: usize, const F: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&Q8Four; F],
    run: &Run<1>,
    j: usize,
    first: usize,
    found: &mut Found<T, N>,
) {
    let x = x[0];
    let exact = exact::<Q, T, N>(place, x);
    for i in 0..N {
        let factors = run.quad::<Q>(j, first + i);
        for t in 0..T {
            let exact = [exact[0][t][i], exact[1][t][i]];
            let token = Token::new::<Q>(x.scale[t], x.sum[t], x.pairs(t));
            found[t][i] = finish::<Q, 1>(&factors, 0, &token, exact, found[t][i]);
        }
    }
}

/// The sums of a group, of the quads at `place`.
#[inline]
#[target_feature(enable = "neon")]
fn exact<const Q: usize, const T: usize, const N: usize>(place: &Place<'_>, x: &impl Acts) -> Exact<T, N> {
    let packing = const { &packing(Q) };
    let mut exact = [[[vdupq_n_f32(0.0); N]; T]; 2];
    if const { matches!(Quant::ALL[Q], Quant::Q8_0 | Quant::IQ4_NL | Quant::IQ4_XS) } {
        // Two tokens at a time: more have no room.
        macro_rules! two {
            ($t:literal) => {
                [exact[0][$t], exact[0][$t + 1]] = wide::<Q, T, $t, 2, N>(place, x);
            };
        }
        match T {
            1 => [exact[0][0]] = wide::<Q, T, 0, 1, N>(place, x),
            2 => {
                two!(0);
            }
            _ => {
                two!(0);
                two!(2);
            }
        }
        return exact;
    }
    let mut alone = [[vdupq_n_s8(0); 4]; 2];
    if T == 1 {
        alone = [steps(x, 0), steps(x, 1)];
    }
    macro_rules! activations {
        ($step:literal) => {{
            let mut four_of_x = [vdupq_n_s8(0); T];
            for (t, to) in four_of_x.iter_mut().enumerate() {
                *to = if T == 1 { alone[$step / 4][$step % 4] } else { four(x, $step, t) };
            }
            four_of_x
        }};
    }
    // Each step is loaded while the one before it is multiplied.
    macro_rules! steps {
        ($half:literal: $first:literal $($next:literal)*) => {{
            let mut acc = [[[vdupq_n_s16(0); 2]; N]; T];
            let (mut w, mut x4) = (weights::<Q, N>(place, $first), activations!($first));
            $(
                let next = (weights::<Q, N>(place, $next), activations!($next));
                multiply(&mut acc, &w, &x4);
                if T > 1 {
                    pin!(acc.as_flattened_mut().as_flattened_mut());
                }
                (w, x4) = next;
            )*
            multiply(&mut acc, &w, &x4);
            for t in 0..T {
                let bias = vmulq_n_s16(sums_of_steps::<Q>(x.pairs(t), $half), -i16::from(packing.bias));
                for i in 0..N {
                    let [a, b] = acc[t][i];
                    exact[$half][t][i] = vcvtq_f32_s32(if packing.bias != 0 {
                        // Kept together: taken apart, `addp` is three instructions.
                        vpaddlq_s16(vaddq_s16(opaque(vpaddq_s16(a, b)), bias))
                    } else if packing.high == 0 {
                        vpaddlq_s16(vpaddq_s16(a, b))
                    } else {
                        vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b))
                    });
                }
            }
        }};
    }
    if halves(packing) {
        // Neighbours share a load.
        steps!(0: 0 2 1 3);
        steps!(1: 4 6 5 7);
    } else {
        steps!(0: 0 4 2 6 1 5 3 7);
    }
    exact
}

/// The sums of a group of 8-bit codes, of `T` tokens of a tile of `TILE` from `FIRST` on: it is inlined, because each of
/// these has one caller.
#[inline]
#[target_feature(enable = "neon")]
fn wide<const Q: usize, const TILE: usize, const FIRST: usize, const T: usize, const N: usize>(
    place: &Place<'_>,
    x: &impl Acts,
) -> [[float32x4_t; N]; T] {
    let mut sums = [[[vdupq_n_s32(0); 2]; N]; T];
    let mut alone = [vdupq_n_s8(0); 4];
    macro_rules! twos {
        ($($first:literal $second:literal,)*) => {$(
            let w = [weights::<Q, N>(place, $first), weights::<Q, N>(place, $second)];
            if T == 1 && $first % 4 == 0 {
                alone = steps(x, $first / 4);
            }
            for (t, sums) in (FIRST..).zip(&mut sums) {
                let x = match T {
                    1 => [alone[$first % 4], alone[$second % 4]],
                    _ => [four(x, $first, t), four(x, $second, t)],
                };
                for i in 0..N {
                    let products = add(add([vdupq_n_s16(0); 2], w[0][i], x[0]), w[1][i], x[1]);
                    sums[i] = [vpadalq_s16(sums[i][0], products[0]), vpadalq_s16(sums[i][1], products[1])];
                }
            }
            pin!(sums.as_flattened_mut().as_flattened_mut());
        )*};
    }
    twos!(0 1, 2 3, 4 5, 6 7,);
    let mut out = [[vdupq_n_f32(0.0); N]; T];
    for (out, sums) in out.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *out = vcvtq_f32_s32(vpaddq_s32(sums[0], sums[1]));
    }
    out
}

/// The codes of quads at a step.
#[inline]
#[target_feature(enable = "neon")]
fn weights<const Q: usize, const N: usize>(place: &Place<'_>, step: usize) -> [int8x16_t; N] {
    let mask = mask::<Q>();
    let mut w = [vdupq_n_s8(0); N];
    for (i, w) in w.iter_mut().enumerate() {
        *w = codes::<Q, false>(bits::<Q>(place, i, step), step, mask);
    }
    w
}

/// Adds products of quads and tokens.
#[inline]
#[target_feature(enable = "neon")]
fn multiply<const T: usize, const N: usize>(
    acc: &mut [[[int16x8_t; 2]; N]; T],
    w: &[int8x16_t; N],
    x: &[int8x16_t; T],
) {
    for (acc, x) in acc.iter_mut().zip(x) {
        for (acc, w) in acc.iter_mut().zip(w) {
            *acc = add(*acc, *w, *x);
        }
    }
}

/// Sums of activations, of the first two and the last two of every four, over a group or one of its halves; the same for
/// each row.
#[inline]
#[target_feature(enable = "neon")]
fn sums_of_steps<const Q: usize>([first, both]: [Pair; 2], half: usize) -> int16x8_t {
    let both = vreinterpretq_s16_u32(vdupq_n_u32(both));
    let first = vreinterpretq_s16_u32(vdupq_n_u32(first));
    match (halves(const { &packing(Q) }), half) {
        (false, _) => both,
        (true, 0) => first,
        (true, _) => vsubq_s16(both, first),
    }
}

peak!("neon", "smlal", "8h", "8b", 8);
