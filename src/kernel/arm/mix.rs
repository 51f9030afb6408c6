//! Products of rows of floats with panels of floats or codes, Advanced SIMD: those of attention, and those with weights
//! that are floats.

use std::arch::aarch64::*;
use std::array::from_fn;

use half::{bf16, f16};

use super::neon::{load, load_f16, store};
use crate::kernel::mix::mix;
use crate::kernel::tensor::Panels;
use crate::kernel::{PANEL, STRETCH, Strided, StridedMut};

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
fn sixteen_bf16(x: &[bf16; PANEL]) -> [float32x4_t; 4] {
    // SAFETY: 16 of 16 bits are there; the load takes any alignment.
    let uint16x8x2_t(low, high) = unsafe { vld1q_u16_x2(x.as_ptr().cast()) };
    [
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
    ]
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

/// As [`scalar::turn`], four rows and columns at a time; columns behind the last one are whatever they are.
#[target_feature(enable = "neon")]
pub(super) fn turn(rows: &[[f32; STRETCH]; PANEL], panel: &mut [[f32; PANEL]; STRETCH], n: usize) {
    for (k, panel) in panel.as_chunks_mut::<4>().0.iter_mut().enumerate().take(n.div_ceil(4)) {
        for (quarter, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
            let row = |r: usize| vreinterpretq_f64_f32(load(&rows[r].as_chunks().0[k]));
            let two = |a: float64x2_t, b: float64x2_t| {
                let (a, b) = (vreinterpretq_f32_f64(a), vreinterpretq_f32_f64(b));
                [vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(a, b))]
            };
            let (low, high) = (two(row(0), row(1)), two(row(2), row(3)));
            for j in 0..2 {
                let columns = [vzip1q_f64(low[j], high[j]), vzip2q_f64(low[j], high[j])];
                for (i, column) in columns.into_iter().enumerate() {
                    store(vreinterpretq_f32_f64(column), &mut panel[j + 2 * i].as_chunks_mut().0[quarter]);
                }
            }
        }
    }
}

/// A tile is some rows and panels, each sum in a register from the first to the last `k`.
macro_rules! tile {
    ($type:ty, $load:ident) => {
        #[target_feature(enable = "neon")]
        fn tile<const R: usize, const P: usize>(
            (a, a_stride): Strided<'_>,
            r: usize,
            b: &Panels<'_, $type>,
            p: usize,
            (c, c_stride): &mut StridedMut<'_>,
            add: bool,
        ) {
            let a: [&[f32]; R] = from_fn(|i| &a[(r + i) * a_stride..][..b.n_k]);
            let panels: [&[[$type; PANEL]]; P] =
                from_fn(|i| &b.b[(p + i) * b.stride..].as_chunks().0[..b.n_k]);
            let mut sums = [[[vdupq_n_f32(0.0); 4]; P]; R];
            if add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let c = &c[(r + i) * *c_stride + p * PANEL..][..P * PANEL];
                    for (sum, c) in sums.as_flattened_mut().iter_mut().zip(c.as_chunks::<4>().0) {
                        *sum = load(c);
                    }
                }
            }
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
    };
}

mix!("neon", mix_f16, f16, sixteen_f16, tile);
mix!("neon", mix_bf16, bf16, sixteen_bf16, tile);
mix!("neon", mix_f32, f32, sixteen_f32, tile);
mix!("neon", mix_i8, i8, sixteen_i8, tile);
