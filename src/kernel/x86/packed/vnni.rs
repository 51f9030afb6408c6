//! VNNI: `vpdpbusd` adds four products of unsigned codes and signed activations to a sum of 32 bits. Signed codes of 8
//! bits are made unsigned with a bias of 128; a sum begins with `-bias · Σ x`.

use super::panel::Plan;
use crate::kernel::Q8_BLOCK;
use crate::kernel::tensor::Pair;

/// What was added to codes to make them unsigned.
const fn bias(plan: &Plan) -> i32 {
    match (plan.wide, plan.back) {
        (true, _) => 128,
        // The other tiers' sums are of 16 bits, which is why they need one.
        (_, true) => 0,
        _ => plan.bias as i32,
    }
}

/// The sum of a pair.
fn sum(pair: Pair) -> i32 {
    i32::from(pair as i16) + i32::from((pair >> 16) as i16)
}

/// The activations of a step.
fn four<const STEP: usize>(codes: &[i8; Q8_BLOCK]) -> i32 {
    const { assert!(4 * STEP + 4 <= Q8_BLOCK) };
    // SAFETY: the four codes are there, by the assertion.
    unsafe { codes.as_ptr().add(4 * STEP).cast::<i32>().read_unaligned() }
}

/// Step `$step` of [`vnni_products`].
macro_rules! vnni_step {
    ($v:ident, $plan:expr, $x:expr, $scales:expr, $w:tt, $acc:ident, $exact:ident, $step:literal) => {
        let w = step_codes!($v, $plan, $w, $step);
        for (acc, x) in $acc.iter_mut().zip($x) {
            let x = $v::splat(four::<$step>(&x.codes));
            for i in 0..$v::N {
                acc[i] = dot(acc[i], if $plan.wide { $v::flip(w[i]) } else { w[i] }, x);
            }
        }
        if $step == 7 || $plan.halves && $step == 3 {
            let half = $step / 4;
            for ((acc, exact), x) in $acc.iter_mut().zip(&mut $exact).zip($x) {
                for i in 0..$v::N {
                    let plain = $plan.packing.integers == Integers::None;
                    let sum = if plain {
                        acc[i]
                    } else {
                        $v::mul(acc[i], $scales[half * usize::from($plan.halves)][i])
                    };
                    exact[i] = if half == 0 || !$plan.halves { sum } else { $v::add(exact[i], sum) };
                }
                if half == 0 {
                    *acc = [$v::splat(-bias($plan) * (sum(x.both) - sum(x.first))); $v::N];
                }
            }
        }
    };
}

/// The exact sum of each token of `$x` and each row over a group.
macro_rules! vnni_products {
    ($v:ident, $plan:expr, $x:expr, $scales:expr, $w:tt) => {{
        let mut exact = [[$v::zero(); $v::N]; T];
        let mut acc = exact;
        for (acc, x) in acc.iter_mut().zip($x) {
            *acc = [$v::splat(-bias($plan) * sum(if $plan.halves { x.first } else { x.both })); $v::N];
        }
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 0);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 1);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 2);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 3);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 4);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 5);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 6);
        vnni_step!($v, $plan, $x, $scales, $w, acc, exact, 7);
        exact
    }};
}

/// The kernels of a tier whose registers are those of `$v`: `$dot` adds the products of bytes to sums.
macro_rules! vnni {
    ($features:literal, $v:ident, $tile:literal, $dot:path) => {
        use std::arch::x86_64::*;

        use crate::kernel::tensor::{Q8Block, Q8View};
        use crate::kernel::x86::packed::panel::{Part, Plan, Sections, integers, plan};
        use crate::kernel::x86::packed::vnni::{bias, four, sum};
        use crate::kernel::x86::packed::{Ahead, UNIT, blocks, leave, $v};
        use crate::kernel::{Hints, PANEL, PackedFn, Q8_BLOCK};
        use crate::quant::Quant;
        use crate::quant::packed::{Float, Integers, Packing};

        #[target_feature(enable = $features)]
        #[inline]
        fn dot(sum: $v::I, w: $v::I, x: $v::I) -> $v::I {
            $dot(sum, w, x)
        }

        /// A byte of each row as 32 bits.
        #[target_feature(enable = $features)]
        #[inline]
        fn widened(bytes: __m128i) -> [$v::I; $v::N] {
            let mut out = [$v::zero(); $v::N];
            for (i, out) in out.iter_mut().enumerate() {
                *out = $v::signed(bytes, i);
            }
            out
        }

        /// Activations of each half times minima.
        #[target_feature(enable = $features)]
        #[inline]
        fn of_halves(x: &Q8Block, first_min: $v::I, second_min: $v::I) -> $v::I {
            let first = sum(x.first);
            let second = sum(x.both) - first;
            $v::add($v::mul($v::splat(first), first_min), $v::mul($v::splat(second), second_min))
        }

        kernels!($features, $v, $tile, vnni_products);

        /// `vpdpbusd` on as many sums as keep it busy.
        #[target_feature(enable = $features)]
        pub(in crate::kernel) fn peak(n_rounds: u32) -> u64 {
            let (w, x) = ($v::splat(0x0303_0303), $v::splat(0x0505_0505));
            let mut sums = [$v::zero(); 12];
            for _ in 0..n_rounds {
                for sum in &mut sums {
                    *sum = dot(*sum, w, x);
                }
            }
            std::hint::black_box(sums);
            u64::from(n_rounds) * 12 * $v::BYTES as u64
        }
    };
}

/// 256 bits, in the encoding of AVX.
pub(in crate::kernel::x86) mod avx_vnni {
    vnni!("avx2,fma,f16c,avxvnni", ymm, 4, _mm256_dpbusd_avx_epi32);
}

/// 512 bits.
pub(in crate::kernel::x86) mod avx512 {
    vnni!("avx2,fma,f16c,avx512f,avx512bw,avx512vnni", zmm, 8, _mm512_dpbusd_epi32);
}

/// The two as AVX2 can do it, slowly, so that machines without them test all but the instructions.
#[cfg(test)]
pub(in crate::kernel::x86) mod model {
    use std::arch::x86_64::*;

    use super::super::{twice, ymm};

    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot256(sum: ymm::I, w: ymm::I, x: ymm::I) -> ymm::I {
        let even = _mm256_madd_epi16(
            _mm256_and_si256(w, _mm256_set1_epi16(255)),
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
        );
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(x));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot512(sum: twice::I, w: twice::I, x: twice::I) -> twice::I {
        [dot256(sum[0], w[0], x[0]), dot256(sum[1], w[1], x[1])]
    }

    pub(in crate::kernel::x86) mod avx_vnni {
        vnni!("avx2,fma,f16c", ymm, 4, super::dot256);
    }

    pub(in crate::kernel::x86) mod avx512 {
        vnni!("avx2,fma,f16c", twice, 8, super::dot512);
    }
}
