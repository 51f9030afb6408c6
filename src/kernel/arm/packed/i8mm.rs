//! `smmla`: two rows by two tokens, eight products to a lane.

use std::arch::aarch64::*;

use super::dotprod::alone;
use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod,i8mm", 2);

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

/// Eight activations of each of two tokens, four times: those of a group.
#[inline]
#[target_feature(enable = "neon")]
fn eights(a: &[i8; Q8_BLOCK], b: &[i8; Q8_BLOCK]) -> [int8x16_t; 4] {
    let mut out = [vdupq_n_s8(0); 4];
    for (out, (a, b)) in
        out.as_chunks_mut::<2>().0.iter_mut().zip(load_codes(a).into_iter().zip(load_codes(b)))
    {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        *out = [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))];
    }
    out
}

/// The sums of a group of the quad that begins `I` quads behind `place`, not yet ended: of each half or of the group in the
/// first, of two tokens each, two rows in a register. They begin with `FIRST` and `SECOND` of [`magic`].
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn quad<const Q: usize, const T: usize, const I: usize, const FIRST: usize, const SECOND: usize>(
    place: &Place<'_>,
    x: &[Ready; 4],
    g: usize,
) -> [[int32x4_t; 4]; 2] {
    let packing = const { &packing(Q) };
    let mask = mask::<Q>();
    let mut acc = [magic::<4, FIRST>(g), [vdupq_n_s32(0); 4]];
    if halves(packing) {
        acc[1] = magic::<4, SECOND>(g);
    }
    // A step and the next one: eight weights.
    macro_rules! steps {
        ($($first:literal $second:literal)*) => {$(
            let (a, b) = (two_bits::<Q, I, $first>(place), two_bits::<Q, I, $second>(place));
            for half in 0..2 {
                let low = zip(a[half][0], b[half][0]);
                let one = packing.high == 1;
                let high = zip(a[half][1], if one { vshrq_n_u8::<1>(a[half][1]) } else { b[half][1] });
                let step = $first + 4 * half;
                for rows in 0..2 {
                    let w = codes::<Q, true>([low[rows], high[rows]], step, mask);
                    for t in (0..T).step_by(2) {
                        let sum = &mut acc[if halves(packing) { half } else { 0 }][t + rows];
                        *sum = dot(*sum, w, x[t].codes[step / 2]);
                    }
                }
            }
        )*};
    }
    steps!(0 1  2 3);
    acc
}

/// What two tokens bring to a group: their codes, what their sums begin with, and what these are multiplied with.
#[derive(Clone, Copy)]
struct Ready {
    codes: [int8x16_t; 4],
    start: [float32x4_t; 2],
    token: Token,
}

#[inline]
#[target_feature(enable = "neon")]
fn nothing() -> Ready {
    let none = vdupq_n_f32(0.0);
    let token = Token { scale: none, sum: none, halves: [none; 2] };
    Ready { codes: [vdupq_n_s8(0); 4], start: [vdupq_n_f32(MAGIC); 2], token }
}

/// Those of a tile for a run of groups, at even places.
#[inline]
#[target_feature(enable = "neon")]
fn get_ready<const Q: usize, const T: usize>(x: &[&[Q8Block]; T], ready: &mut [[Ready; 4]; RUN]) {
    let packing = const { &packing(Q) };
    let by_turns = |a, b| vzip1q_f32(a, b);
    for t in (0..T).step_by(2) {
        for (ready, (a, b)) in ready.iter_mut().zip(x[t].iter().zip(x[t + 1])) {
            let Ready { codes, start, token } = &mut ready[t];
            *codes = eights(&a.codes, &b.codes);
            if packing.bias != 0 {
                let (a, b) = (super::start::<Q>(a), super::start::<Q>(b));
                start[0] = by_turns(a[0], b[0]);
                if halves(packing) {
                    start[1] = by_turns(a[1], b[1]);
                }
            }
            let (a, b) = (Token::new::<Q>(a), Token::new::<Q>(b));
            token.scale = by_turns(a.scale, b.scale);
            if let Integers::HalvesAndMins = packing.integers {
                token.halves = [by_turns(a.halves[0], b.halves[0]), by_turns(a.halves[1], b.halves[1])];
            } else if packing.mins {
                token.sum = by_turns(a.sum, b.sum);
            }
        }
    }
}

/// Adds the products of the `j`-th group of a run to those found.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn tile<const Q: usize, const T: usize>(
    place: &Place<'_>,
    _x: &[&Q8Block; T],
    x: &[Ready; 4],
    run: &Run<2>,
    j: usize,
    first: usize,
    found: &mut Found<T>,
) {
    let packing = const { &packing(Q) };
    macro_rules! finish {
        ($i:literal $acc:ident) => {
            let factors = run.quad::<Q>(j, first + $i);
            for t in 0..T {
                let Ready { start, token, .. } = &x[t - t % 2];
                let mut exact = [vdupq_n_f32(0.0); 2];
                for half in 0..2 {
                    exact[half] = vsubq_f32(vreinterpretq_f32_s32($acc[$i][half][t]), start[half]);
                }
                found[t][$i] = finish::<Q, 2>(&factors, t % 2, token, exact, found[t][$i]);
            }
        };
    }
    macro_rules! quads {
        ($($i:literal)*) => {{
            let mut acc = [[[vdupq_n_s32(0); 4]; 2]; QUADS];
            $(
                acc[$i] = quad::<Q, T, $i, { 4 * $i }, { 16 + 4 * $i }>(place, x, j);
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

/// Sums, as [`tile`] has them: two rows of two tokens in a register.
#[inline]
#[target_feature(enable = "neon")]
fn begin<const T: usize>(sums: &[&mut [f32; PANEL]; T], first: usize) -> Found<T> {
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
fn end<const T: usize>(found: &Found<T>, sums: &mut [&mut [f32; PANEL]; T], first: usize) {
    let mut found = *found;
    for [a, b] in found.as_chunks_mut::<2>().0 {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (vuzp1q_f32(*a, *b), vuzp2q_f32(*a, *b));
        }
    }
    super::end(&found, sums, first);
}

peak!("neon,dotprod,i8mm", "smmla", "4s", "16b", 32);
