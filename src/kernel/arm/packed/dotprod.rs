//! `sdot`: four products to a lane, the activations of a step by element.

use std::arch::aarch64::*;

use super::*;
use crate::kernel::PackedFn;
use crate::kernel::tensor::Q8View;

products!("neon,dotprod", |packing: &Packing| if halves(packing) { 2 } else { 4 });

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

/// The sums of group `g`, of the quads at `place`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
#[expect(unused_assignments, reason = "nothing is loaded behind the last steps")]
pub(super) fn exact<const Q: usize, const T: usize, const N: usize>(
    place: &Place<'_>,
    x: &[&[Q8Block]; T],
    g: usize,
) -> Exact<T, N> {
    let packing = const { &packing(Q) };
    let mut acc = [[[vdupq_n_s32(0); N]; T]; 2];
    let mut codes_of_x = [[vdupq_n_s8(0); 2]; T];
    for (t, to) in codes_of_x.iter_mut().enumerate() {
        *to = load_codes(&x[t][g].codes);
        let [first, second] = start::<Q>(&x[t][g]);
        (acc[0][t], acc[1][t]) = ([first; N], [second; N]);
    }
    let load = |step: usize, i: usize| [bits::<Q>(place, i, step), bits::<Q>(place, i + 1, step)];
    let mut four = [load(0, 0), load(4, 0)];
    // Two steps of two quads; steps share a load in most formats. The next ones are loaded while these are multiplied.
    macro_rules! steps {
        ($($first:literal $second:literal, then $next:expr;)*) => {
            $(steps!($first $second $next; 0 2);)*
        };
        ($first:literal $second:literal $next:expr; $($i:literal)*) => {$(
            if $i < N {
                let next = match $i + 2 < N {
                    true => [load($first, $i + 2), load($second, $i + 2)],
                    false => [load($next[0], 0), load($next[1], 0)],
                };
                for (i, bits) in four[0].into_iter().enumerate() {
                    let w = codes::<Q>(bits, $first);
                    for t in 0..T {
                        let sum = &mut acc[0][t][$i + i];
                        *sum = dot::<{ $first % 4 }>(*sum, w, codes_of_x[t][$first / 4]);
                    }
                }
                if T > 1 {
                    pin!(acc[0].as_flattened_mut());
                }
                for (i, bits) in four[1].into_iter().enumerate() {
                    let w = codes::<Q>(bits, $second);
                    for t in 0..T {
                        let sum = &mut acc[if halves(packing) { 1 } else { 0 }][t][$i + i];
                        *sum = dot::<{ $second % 4 }>(*sum, w, codes_of_x[t][$second / 4]);
                    }
                }
                if T > 1 {
                    pin!(acc[0].as_flattened_mut());
                    if halves(packing) {
                        pin!(acc[1].as_flattened_mut());
                    }
                }
                four = next;
            }
        )*};
    }
    steps!(0 4, then [2, 6]; 2 6, then [1, 5]; 1 5, then [3, 7]; 3 7, then [3, 7];);
    let mut exact = [[[vdupq_n_f32(0.0); N]; T]; 2];
    for half in 0..2 {
        for t in 0..T {
            for i in 0..N {
                exact[half][t][i] = ended(acc[half][t][i]);
            }
        }
    }
    exact
}

peak!("neon,dotprod", "sdot", "4s", "16b", 16);
