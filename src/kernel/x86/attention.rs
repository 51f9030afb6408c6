//! The products, weights and merges of attention, AVX2.

use std::arch::x86_64::*;
use std::array::from_fn;

use half::f16;

use super::avx2::{exp, load, load_f16, store, sum};
use crate::base::limits::ATTN_BLOCK;
use crate::kernel::tensor::{Panels, Scores};
use crate::kernel::{PANEL, Strided, StridedMut, scalar};

#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(x: &[i8; 8]) -> __m256 {
    // SAFETY: eight bytes are there; the load takes any alignment.
    let bytes = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
}

/// Products of rows with panels: a tile is some rows and panels, each sum in a register from the first to the last `k`.
/// Eight to twelve sums are under way, which hides the latency of one.
macro_rules! mix {
    ($name:ident, $type:ty, $load:ident) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $name(a: Strided<'_>, n_rows: usize, b: &Panels<'_, $type>, mut c: StridedMut<'_>) {
            #[target_feature(enable = "avx2,fma,f16c")]
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
                let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
                for k in 0..b.n_k {
                    for (i, panel) in panels.iter().enumerate() {
                        // SAFETY: all slices have `n_k` elements; the compiler does not see it and would ask each time.
                        let [low, high] = unsafe { panel.get_unchecked(k) }.as_chunks::<8>().0 else { continue };
                        let w = [$load(low), $load(high)];
                        for (a, sums) in a.iter().zip(&mut sums) {
                            // SAFETY: as above.
                            let x = _mm256_set1_ps(unsafe { *a.get_unchecked(k) });
                            sums[i] = [_mm256_fmadd_ps(x, w[0], sums[i][0]), _mm256_fmadd_ps(x, w[1], sums[i][1])];
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    let c = &mut c[(r + i) * *c_stride + p * PANEL..][..P * PANEL];
                    for (c, sum) in c.as_chunks_mut::<8>().0.iter_mut().zip(sums.as_flattened()) {
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

mix!(mix_f16, f16, load_f16);
mix!(mix_f32, f32, load);
mix!(mix_i8, i8, load_i8);

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
