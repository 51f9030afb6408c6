//! The weights and merges of attention, Advanced SIMD.

use std::arch::aarch64::*;

use super::neon::{exp, load, store, sum};
use crate::base::limits::ATTN_BLOCK;
use crate::kernel::scalar;
use crate::kernel::tensor::Scores;

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
