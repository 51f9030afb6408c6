//! The weights and merges of attention, AVX2.

use std::arch::x86_64::*;

use super::avx2::{exp, load, store, sum};
use crate::base::limits::ATTN_BLOCK;
use crate::kernel::scalar;
use crate::kernel::tensor::Scores;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weigh(products: &mut [f32; ATTN_BLOCK], how: Scores) -> (f32, f32) {
    let parts = products.as_chunks_mut::<8>().0;
    let nothing = _mm256_set1_ps(f32::NEG_INFINITY);
    let mut max = nothing;
    for part in &mut *parts {
        if how.cap > 0.0 {
            part.iter_mut().filter(|x| **x != f32::NEG_INFINITY).for_each(|x| *x = how.of(*x));
        } else {
            store(_mm256_mul_ps(load(part), _mm256_set1_ps(how.scale)), part);
        }
        max = _mm256_max_ps(max, load(part));
    }
    let half = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps::<1>(max));
    let half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    let max = _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    let mut total = _mm256_setzero_ps();
    for part in parts {
        let x = load(part);
        let p = exp(_mm256_sub_ps(x, _mm256_set1_ps(max)));
        // An absent key is to have no weight at all.
        let p = _mm256_and_ps(p, _mm256_cmp_ps::<_CMP_NEQ_UQ>(x, nothing));
        total = _mm256_add_ps(total, p);
        store(p, part);
    }
    (max, sum(total))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn blend(y: &mut [f32], a: f32, x: &[f32], b: f32) {
    let ((ys, y_tail), (xs, x_tail)) = (y.as_chunks_mut::<8>(), x.as_chunks::<8>());
    for (y, x) in ys.iter_mut().zip(xs) {
        store(_mm256_fmadd_ps(load(x), _mm256_set1_ps(b), _mm256_mul_ps(load(y), _mm256_set1_ps(a))), y);
    }
    scalar::blend(y_tail, a, x_tail, b);
}
