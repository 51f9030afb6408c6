//! The products, weights and merges of attention, Advanced SIMD.

use std::arch::aarch64::*;
use std::array::from_fn;

use half::f16;

use super::neon::{exp, load, load_f16, store, sum};
use crate::base::limits::ATTN_BLOCK;
use crate::kernel::tensor::{Panels, Scores};
use crate::kernel::{PANEL, Strided, StridedMut, scalar};

#[target_feature(enable = "neon")]
fn sixteen_f32(x: &[f32; PANEL]) -> [float32x4_t; 4] {
    let x = x.as_chunks::<4>().0;
    [load(&x[0]), load(&x[1]), load(&x[2]), load(&x[3])]
}

#[target_feature(enable = "neon")]
fn sixteen_f16(x: &[f16; PANEL]) -> [float32x4_t; 4] {
    let x = x.as_chunks::<4>().0;
    [load_f16(&x[0]), load_f16(&x[1]), load_f16(&x[2]), load_f16(&x[3])]
}

#[target_feature(enable = "neon")]
fn sixteen_i8(x: &[i8; PANEL]) -> [float32x4_t; 4] {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    let bytes = unsafe { vld1q_s8(x.as_ptr()) };
    let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    ]
}

/// Products of rows with panels: a tile is some rows and panels, each sum in a register from the first to the last `k`.
macro_rules! mix {
    ($name:ident, $type:ty, $load:ident) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $name(a: Strided<'_>, n_rows: usize, b: &Panels<'_, $type>, mut c: StridedMut<'_>) {
            #[target_feature(enable = "neon")]
            fn tile<const R: usize, const P: usize>(
                (a, a_stride): Strided<'_>,
                r: usize,
                b: &Panels<'_, $type>,
                p: usize,
                (c, c_stride): &mut StridedMut<'_>,
            ) {
                let a: [&[f32]; R] = from_fn(|i| &a[(r + i) * a_stride..][..b.n_k]);
                let panels: [&[[$type; PANEL]]; P] =
                    from_fn(|i| &b.b[(p + i) * b.stride..].as_chunks().0[..b.n_k]);
                let mut sums = [[[vdupq_n_f32(0.0); 4]; P]; R];
                for k in 0..b.n_k {
                    for (i, panel) in panels.iter().enumerate() {
                        // SAFETY: all slices have `n_k` elements; the compiler does not see it and would ask each time.
                        let w = $load(unsafe { panel.get_unchecked(k) });
                        for (a, sums) in a.iter().zip(&mut sums) {
                            // SAFETY: as above.
                            let x = unsafe { *a.get_unchecked(k) };
                            for (sum, w) in sums[i].iter_mut().zip(w) {
                                *sum = vfmaq_n_f32(*sum, w, x);
                            }
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    let c = &mut c[(r + i) * *c_stride + p * PANEL..][..P * PANEL];
                    for (c, sum) in c.as_chunks_mut::<4>().0.iter_mut().zip(sums.as_flattened()) {
                        store(*sum, c);
                    }
                }
            }
            let (mut r, n) = (0, b.n);
            while r < n_rows {
                macro_rules! tiles {
                    ($rows:literal $panels:literal) => {{
                        let mut p = 0;
                        while n - p >= $panels {
                            tile::<$rows, $panels>(a, r, b, p, &mut c);
                            p += $panels;
                        }
                        while p < n {
                            tile::<$rows, 1>(a, r, b, p, &mut c);
                            p += 1;
                        }
                        r += $rows;
                    }};
                }
                match n_rows - r {
                    1 => tiles!(1 4),
                    2 => tiles!(2 2),
                    3 => tiles!(3 1),
                    // Seven are four and three, eight are two times four.
                    4 | 7 | 8 => tiles!(4 1),
                    5 => tiles!(5 1),
                    _ => tiles!(6 1),
                }
            }
        }
    };
}

mix!(mix_f16, f16, sixteen_f16);
mix!(mix_f32, f32, sixteen_f32);
mix!(mix_i8, i8, sixteen_i8);

#[target_feature(enable = "neon")]
pub(super) fn weigh(products: &mut [f32; ATTN_BLOCK], how: Scores) -> (f32, f32) {
    let parts = products.as_chunks_mut::<4>().0;
    let nothing = vdupq_n_f32(f32::NEG_INFINITY);
    let mut max = nothing;
    for part in &mut *parts {
        if how.cap > 0.0 {
            part.iter_mut().filter(|x| **x != f32::NEG_INFINITY).for_each(|x| *x = how.of(*x));
        } else {
            store(vmulq_n_f32(load(part), how.scale), part);
        }
        // The number where one of the two is a NaN.
        max = vmaxnmq_f32(max, load(part));
    }
    let max = vmaxnmvq_f32(max);
    let mut total = vdupq_n_f32(0.0);
    for part in parts {
        let x = load(part);
        let p = vreinterpretq_u32_f32(exp(vsubq_f32(x, vdupq_n_f32(max))));
        // An absent key is to have no weight at all.
        let p = vreinterpretq_f32_u32(vbicq_u32(p, vceqq_f32(x, nothing)));
        total = vaddq_f32(total, p);
        store(p, part);
    }
    (max, sum(total))
}

#[target_feature(enable = "neon")]
pub(super) fn blend(y: &mut [f32], a: f32, x: &[f32], b: f32) {
    let ((ys, y_tail), (xs, x_tail)) = (y.as_chunks_mut::<4>(), x.as_chunks::<4>());
    for (y, x) in ys.iter_mut().zip(xs) {
        store(vfmaq_n_f32(vmulq_n_f32(load(y), a), load(x), b), y);
    }
    scalar::blend(y_tail, a, x_tail, b);
}
