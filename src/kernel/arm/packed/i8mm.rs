//! `smmla`: two rows by two tokens, eight products to a lane.

use std::arch::aarch64::*;

use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod,i8mm", |packing: &Packing| if halves(packing) { 2 } else { 4 });

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

/// The sums of group `g`, of the quads at `place`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
#[expect(unused_assignments, reason = "nothing is loaded behind the last steps")]
fn exact<const Q: usize, const T: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&[Q8Block]; T],
    g: usize,
) -> Exact<T, N> {
    let packing = const { &packing(Q) };
    if T == 1 {
        return dotprod::exact::<Q, T, N>(place, x, g);
    }
    // Tokens in twos.
    let mut acc = [[[[vdupq_n_s32(0); 2]; N]; T]; 2];
    let mut codes_of_x = [[vdupq_n_s8(0); 4]; T];
    for t in (0..T).step_by(2) {
        codes_of_x[t] = eights(&x[t][g].codes, &x[t + 1][g].codes);
        let (a, b) = (start::<Q>(&x[t][g]), start::<Q>(&x[t + 1][g]));
        for half in 0..2 {
            acc[half][t] = [[vzip1q_s32(a[half], b[half]); 2]; N];
        }
    }
    // A step and the next one, which has its bits at the same place, but for a single further bit.
    let load = |step: usize, i: usize| [bits::<Q>(place, i, step), bits::<Q>(place, i, step + 1)];
    let mut four = [load(0, 0), load(4, 0)];
    macro_rules! steps {
        ($($first:literal $second:literal, then $next:expr;)*) => {
            $(steps!($first $second $next; 0 1 2 3);)*
        };
        ($first:literal $second:literal $next:expr; $($i:literal)*) => {$(
            if $i < N {
                let next = match $i + 1 < N {
                    true => [load($first, $i + 1), load($second, $i + 1)],
                    false => [load($next[0], 0), load($next[1], 0)],
                };
                for (half, (two, step)) in four.into_iter().zip([$first, $second]).enumerate() {
                    let low = zip(two[0][0], two[1][0]);
                    let bits = two[0][1];
                    let high = zip(bits, if packing.high == 1 { vshrq_n_u8::<1>(bits) } else { two[1][1] });
                    for rows in 0..2 {
                        let w = codes::<Q>([low[rows], high[rows]], step);
                        for t in (0..T).step_by(2) {
                            let sum = &mut acc[if halves(packing) { half } else { 0 }][t][$i][rows];
                            *sum = dot(*sum, w, codes_of_x[t][step / 2]);
                        }
                    }
                }
                for t in (0..T).step_by(2) {
                    pin!(acc[0][t].as_flattened_mut());
                    if halves(packing) {
                        pin!(acc[1][t].as_flattened_mut());
                    }
                }
                four = next;
            }
        )*};
    }
    steps!(0 4, then [2, 6]; 2 6, then [2, 6];);
    let mut exact = [[[vdupq_n_f32(0.0); N]; T]; 2];
    for half in 0..2 {
        for t in 0..T {
            for i in 0..N {
                let [a, b] = acc[half][t - t % 2][i];
                exact[half][t][i] = ended(if t % 2 == 0 { vuzp1q_s32(a, b) } else { vuzp2q_s32(a, b) });
            }
        }
    }
    exact
}

peak!("neon,dotprod,i8mm", "smmla", "4s", "16b", 32);
