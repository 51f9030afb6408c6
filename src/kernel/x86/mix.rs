//! Products of rows of floats with panels of floats or codes, AVX2: those of attention, and those with weights that are
//! floats.

use std::arch::x86_64::*;
use std::array::from_fn;

use half::{bf16, f16};

use super::avx2::{load, load_f16, store};
use crate::kernel::mix::mix;
use crate::kernel::tensor::Panels;
use crate::kernel::{PANEL, STRETCH, Strided, StridedMut};

#[target_feature(enable = "avx2,fma,f16c")]
fn load_bf16(x: &[bf16; 8]) -> __m256 {
    // SAFETY: sixteen bytes are there; the load takes any alignment.
    let bits = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(x: &[i8; 8]) -> __m256 {
    // SAFETY: eight bytes are there; the load takes any alignment.
    let bytes = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
}

/// As [`scalar::turn`], eight rows and columns at a time; columns behind the last one are whatever they are.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn turn(rows: &[[f32; STRETCH]; PANEL], panel: &mut [[f32; PANEL]; STRETCH], n: usize) {
    for (k, panel) in panel.as_chunks_mut::<8>().0.iter_mut().enumerate().take(n.div_ceil(8)) {
        for (half, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
            let row = |r: usize| load(&rows[r].as_chunks().0[k]);
            // Pairs of rows, then fours, then eights.
            let two: [[__m256; 2]; 4] = from_fn(|i| {
                let (a, b) = (row(2 * i), row(2 * i + 1));
                [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
            });
            let four: [[__m256; 4]; 2] = from_fn(|i| {
                let ([a, b], [c, d]) = (two[2 * i], two[2 * i + 1]);
                [
                    _mm256_shuffle_ps::<0x44>(a, c),
                    _mm256_shuffle_ps::<0xee>(a, c),
                    _mm256_shuffle_ps::<0x44>(b, d),
                    _mm256_shuffle_ps::<0xee>(b, d),
                ]
            });
            for (j, (a, b)) in four[0].into_iter().zip(four[1]).enumerate() {
                store(_mm256_permute2f128_ps::<0x20>(a, b), &mut panel[j].as_chunks_mut().0[half]);
                store(_mm256_permute2f128_ps::<0x31>(a, b), &mut panel[j + 4].as_chunks_mut().0[half]);
            }
        }
    }
}

/// A tile is some rows and panels, each sum in a register from the first to the last `k`.
macro_rules! tile {
    ($type:ty, $load:ident) => {
        #[target_feature(enable = "avx2,fma,f16c")]
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
            let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
            if add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let c = &c[(r + i) * *c_stride + p * PANEL..][..P * PANEL];
                    for (sum, c) in sums.as_flattened_mut().iter_mut().zip(c.as_chunks::<8>().0) {
                        *sum = load(c);
                    }
                }
            }
            for k in 0..b.n_k {
                for (i, panel) in panels.iter().enumerate() {
                    // SAFETY: all slices have `n_k` elements; the compiler does not see it and would ask each time.
                    let [low, high] = unsafe { panel.get_unchecked(k) }.as_chunks::<8>().0 else { continue };
                    let w = [$load(low), $load(high)];
                    for (a, sums) in a.iter().zip(&mut sums) {
                        // SAFETY: as above.
                        let x = _mm256_set1_ps(unsafe { *a.get_unchecked(k) });
                        sums[i] =
                            [_mm256_fmadd_ps(x, w[0], sums[i][0]), _mm256_fmadd_ps(x, w[1], sums[i][1])];
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
    };
}

mix!("avx2,fma,f16c", mix_f16, f16, load_f16, tile);
mix!("avx2,fma,f16c", mix_bf16, bf16, load_bf16, tile);
mix!("avx2,fma,f16c", mix_f32, f32, load, tile);
mix!("avx2,fma,f16c", mix_i8, i8, load_i8, tile);
