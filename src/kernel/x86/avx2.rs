//! AVX2 with FMA and F16C: eight floats or 32 bytes at a time, straight from rows as GGUF stores them.

use std::arch::x86_64::*;

use half::f16;
use zerocopy::little_endian::U16;

use super::codes::Codes;
use super::{attention, mix};
use crate::kernel::tensor::{Q8Block, Q8View};
use crate::kernel::{Kernels, LANES, Q8_BLOCK, SCALAR, Tier, math, scalar};
use crate::quant::{
    self, BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTQ1_0, BlockTQ2_0, Quant, Share,
};

/// What this tier has; the rest is the scalar tier's.
pub(super) const AVX2: Kernels = Kernels {
    tier: Tier::Avx2,
    quantize,
    rms_norm,
    swiglu,
    store_f16,
    mix_f16: mix::mix_f16,
    mix_bf16: mix::mix_bf16,
    mix_f32: mix::mix_f32,
    mix_i8: mix::mix_i8,
    turn: mix::turn,
    weigh: attention::weigh,
    blend: attention::blend,
    ..SCALAR
}
.with_unpack(Quant::F16, unpack_f16)
.with_unpack(Quant::BF16, unpack_bf16)
.with_blocks(Quant::Q4_0, unpack::<BlockQ4_0, 1>, product::<BlockQ4_0, 1>)
.with_blocks(Quant::Q4_1, unpack::<BlockQ4_1, 1>, product::<BlockQ4_1, 1>)
.with_blocks(Quant::Q5_0, unpack::<BlockQ5_0, 1>, product::<BlockQ5_0, 1>)
.with_blocks(Quant::Q5_1, unpack::<BlockQ5_1, 1>, product::<BlockQ5_1, 1>)
.with_blocks(Quant::Q8_0, unpack::<BlockQ8_0, 1>, product::<BlockQ8_0, 1>)
.with_blocks(Quant::Q2_K, unpack::<BlockQ2K, 8>, product::<BlockQ2K, 8>)
.with_blocks(Quant::Q3_K, unpack::<BlockQ3K, 8>, product::<BlockQ3K, 8>)
.with_blocks(Quant::Q4_K, unpack::<BlockQ4K, 8>, product::<BlockQ4K, 8>)
.with_blocks(Quant::Q5_K, unpack::<BlockQ5K, 8>, product::<BlockQ5K, 8>)
.with_blocks(Quant::Q6_K, unpack::<BlockQ6K, 8>, product::<BlockQ6K, 8>)
.with_blocks(Quant::IQ4_NL, unpack::<BlockIQ4NL, 1>, product::<BlockIQ4NL, 1>)
.with_blocks(Quant::IQ4_XS, unpack::<BlockIQ4XS, 8>, product::<BlockIQ4XS, 8>)
.with_blocks(Quant::TQ1_0, unpack::<BlockTQ1_0, 8>, product::<BlockTQ1_0, 8>)
.with_blocks(Quant::TQ2_0, unpack::<BlockTQ2_0, 8>, product::<BlockTQ2_0, 8>)
.with_blocks(Quant::MXFP4, unpack::<BlockMXFP4, 1>, product::<BlockMXFP4, 1>)
.with_packed(super::packed::AVX2)
.with_two_ways(super::packed::TWO_WAYS)
.with_peak(super::packed::avx2_peak);

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: eight floats are there; the load takes any alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store(x: __m256, y: &mut [f32; 8]) {
    // SAFETY: there is room for eight floats; the store takes any alignment.
    unsafe { _mm256_storeu_ps(y.as_mut_ptr(), x) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn load_codes(x: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn load_half(x: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_f16(x: &[f16; 8]) -> __m256 {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn float(bits: U16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits.get()))))
}

/// The sum of eight lanes as a tree.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp(x: __m256) -> __m256 {
    // The operand order lets a NaN through.
    let x = _mm256_max_ps(_mm256_set1_ps(math::EXP_RANGE.0), x);
    let x = _mm256_min_ps(_mm256_set1_ps(math::EXP_RANGE.1), x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(math::LN_2.0), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(math::LN_2.1), r);
    let mut p = _mm256_setzero_ps();
    for c in math::EXP {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r), _mm256_set1_ps(1.0));
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_mul_ps(y, _mm256_castsi256_ps(power))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_f16(bytes: &[u8], out: &mut [f32]) {
    let (body, tail) = bytes.as_chunks::<16>();
    let (ys, rest) = out.as_chunks_mut::<8>();
    for (w, y) in body.iter().zip(ys) {
        store(_mm256_cvtph_ps(load_half(w)), y);
    }
    quant::unpack(Quant::F16)(tail, rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_bf16(bytes: &[u8], out: &mut [f32]) {
    let (body, tail) = bytes.as_chunks::<16>();
    let (ys, rest) = out.as_chunks_mut::<8>();
    for (w, y) in body.iter().zip(ys) {
        let bits = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_half(w)));
        store(_mm256_castsi256_ps(bits), y);
    }
    quant::unpack(Quant::BF16)(tail, rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot(w: &[f32], x: &[f32], lanes: &mut [f32; LANES]) {
    let (ws, w_tail) = w.as_chunks::<LANES>();
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let [low, high] = lanes.as_chunks_mut::<8>().0 else { return };
    let (mut a, mut b) = (load(low), load(high));
    for (w, x) in ws.iter().zip(xs) {
        let ([w0, w1], [x0, x1]) = (w.as_chunks::<8>().0, x.as_chunks::<8>().0) else { continue };
        a = _mm256_fmadd_ps(load(w0), load(x0), a);
        b = _mm256_fmadd_ps(load(w1), load(x1), b);
    }
    store(a, low);
    store(b, high);
    scalar::dot(w_tail, x_tail, lanes);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], out: &mut [Q8Block]) {
    let sign = _mm256_set1_ps(-0.0);
    for (x, block) in x.as_chunks::<Q8_BLOCK>().0.iter().zip(out) {
        let [a, b, c, d] = x.as_chunks::<8>().0 else { continue };
        let (a, b, c, d) = (load(a), load(b), load(c), load(d));
        let abs = |v| _mm256_andnot_ps(sign, v);
        let m = _mm256_max_ps(_mm256_max_ps(abs(a), abs(b)), _mm256_max_ps(abs(c), abs(d)));
        let m = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m));
        let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        let max = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        // These instructions forget a NaN on one of their sides.
        let nans = _mm256_or_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, b), _mm256_cmp_ps::<_CMP_UNORD_Q>(c, d));
        let max = if _mm256_movemask_ps(nans) == 0 { max } else { f32::NAN };
        let inverse = _mm256_set1_ps(scalar::q8_inverse(max));
        let int = |v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
        let (a, b, c, d) = (int(a), int(b), int(c), int(d));
        let n = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
        // Packs work within 128-bit lanes: put the eight groups of four back in order.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // A NaN would become -128.
        let bytes = _mm256_max_epi8(bytes, _mm256_set1_epi8(-127));
        // SAFETY: there is room for 32 bytes; the store takes any alignment.
        unsafe { _mm256_storeu_si256(block.codes.as_mut_ptr().cast(), bytes) };
        block.scale = max / 127.0;
        let n = _mm_add_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256::<1>(n));
        let n = _mm_add_epi32(n, _mm_shuffle_epi32::<0b00_00_11_10>(n));
        let n = _mm_add_epi32(n, _mm_shuffle_epi32::<0b00_00_00_01>(n));
        block.sum = block.scale * _mm_cvtsi128_si32(n) as f32;
        // Sums of two codes, then of every second of those in each half.
        let n = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let n = _mm256_add_epi16(n, _mm256_shuffle_epi32::<0b00_00_11_10>(n));
        let n = _mm256_add_epi16(n, _mm256_shuffle_epi32::<0b00_00_00_01>(n));
        let (first, second) = (_mm256_castsi256_si128(n), _mm256_extracti128_si256::<1>(n));
        block.first = _mm_cvtsi128_si32(first) as u32;
        block.both = _mm_cvtsi128_si32(_mm_add_epi16(first, second)) as u32;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    dot(x, x, &mut lanes);
    let scale = scalar::norm_scale(lanes, x.len(), eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn swiglu(gate: &mut [f32], up: &[f32]) {
    let (gs, g_tail) = gate.as_chunks_mut::<8>();
    let (us, u_tail) = up.as_chunks::<8>();
    let one = _mm256_set1_ps(1.0);
    for (g, u) in gs.iter_mut().zip(us) {
        let x = load(g);
        let e = exp(_mm256_xor_ps(x, _mm256_set1_ps(-0.0)));
        store(_mm256_mul_ps(_mm256_div_ps(x, _mm256_add_ps(one, e)), load(u)), g);
    }
    scalar::swiglu(g_tail, u_tail);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn store_f16(x: &[f32], y: &mut [f16]) {
    let (xs, x_tail) = x.as_chunks::<8>();
    let (ys, y_tail) = y.as_chunks_mut::<8>();
    for (x, y) in xs.iter().zip(ys) {
        let bits = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(load(x));
        // SAFETY: there is room for eight 16-bit floats; the store takes any alignment.
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), bits) };
    }
    scalar::store_f16(x_tail, y_tail);
}

/// Sixteen 16-bit numbers: eight times the first, eight times the second.
#[target_feature(enable = "avx2,fma,f16c")]
fn halves<T: Copy + Into<i16>>(x: [T; 2]) -> __m256i {
    _mm256_set_m128i(_mm_set1_epi16(x[1].into()), _mm_set1_epi16(x[0].into()))
}

/// The sum of each of four registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn four_sums([a, b, c, d]: [__m256i; 4]) -> __m128i {
    let x = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

/// Products of four rows, a lane each, with some tokens. The float operations are those of packed weights in their order:
/// one sum, groups ascending.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<B: Codes<G>, const G: usize, const T: usize>(rows: [&[B]; 4], x: [&[Q8Block]; T]) -> [[f32; 4]; T] {
    let mut acc = [_mm_setzero_ps(); T];
    for b in 0..rows[0].len() {
        let blocks = rows.map(|row| &row[b]);
        // SAFETY: this function has AVX2.
        let codes = blocks.map(|block| unsafe { block.registers() });
        let floats = blocks.map(|block| block.floats(|bits| float(bits)));
        let d = _mm_setr_ps(floats[0].0, floats[1].0, floats[2].0, floats[3].0);
        let dmin = _mm_setr_ps(floats[0].1, floats[1].1, floats[2].1, floats[3].1);
        let (scales, mins) = (blocks.map(|block| block.scales()), blocks.map(|block| block.mins()));
        for j in 0..G {
            let i = G * b + j;
            let scales = scales.map(|scales| match B::SCALES {
                Share::Block => _mm256_set1_epi16(1),
                Share::Group => _mm256_set1_epi16(i16::from(scales[j][0])),
                Share::Half => halves(scales[j]),
            });
            let [m0, m1, m2, m3] = mins.map(|mins| f32::from(mins[j][0]));
            let min = _mm_mul_ps(dmin, _mm_setr_ps(m0, m1, m2, m3));
            for (x, acc) in x.iter().zip(&mut acc) {
                let own = load_codes(&x[i].codes);
                let sums = std::array::from_fn(|r| {
                    let w = codes[r][j];
                    // Sums of two products fit 16 bits: codes of activations are within ±127, those of weights from
                    // -128 to 127 without minima and up to 31 with them; 2 · 128 · 127 = 32,512.
                    let pairs = match B::MINS {
                        Share::Block => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(own, w)),
                        _ => _mm256_maddubs_epi16(w, own),
                    };
                    _mm256_madd_epi16(pairs, scales[r])
                });
                let scale = _mm_set1_ps(x[i].scale);
                *acc = _mm_fmadd_ps(_mm_cvtepi32_ps(four_sums(sums)), _mm_mul_ps(d, scale), *acc);
                match B::MINS {
                    Share::Block => {}
                    Share::Group => *acc = _mm_fnmadd_ps(min, _mm_set1_ps(x[i].sum), *acc),
                    Share::Half => {
                        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), own);
                        let sums = mins.map(|mins| _mm256_madd_epi16(pairs, halves(mins[j])));
                        let sums = _mm_cvtepi32_ps(four_sums(sums));
                        *acc = _mm_fnmadd_ps(sums, _mm_mul_ps(dmin, scale), *acc);
                    }
                }
            }
        }
    }
    acc.map(|sums| {
        let mut out = [0.0; 4];
        // SAFETY: there is room for four floats; the store takes any alignment.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        out
    })
}

/// Products by codes, in tiles of four rows and four tokens or one.
#[target_feature(enable = "avx2,fma,f16c")]
fn product<B: Codes<G>, const G: usize>(w: &[u8], x: &Q8View<'_>, out: &mut [f32]) {
    let n_rows = out.len() / x.n_tokens;
    let row_bytes = w.len() / n_rows;
    let row = |r: usize| -> &[B] { quant::blocks(&w[r * row_bytes..(r + 1) * row_bytes]) };
    for r in (0..n_rows).step_by(4) {
        // A lane without a row of its own repeats the last one.
        let rows = std::array::from_fn(|i| row((r + i).min(n_rows - 1)));
        let mut t = 0;
        while t < x.n_tokens {
            let mut put = |t: usize, sums: [f32; 4]| {
                for (i, y) in sums.into_iter().enumerate().take(n_rows - r) {
                    out[(r + i) * x.n_tokens + t] = y;
                }
            };
            if x.n_tokens - t >= 4 {
                let sums = tile::<B, G, 4>(rows, std::array::from_fn(|i| x.row(t + i)));
                sums.into_iter().enumerate().for_each(|(i, sums)| put(t + i, sums));
                t += 4;
            } else {
                let [sums] = tile::<B, G, 1>(rows, [x.row(t)]);
                put(t, sums);
                t += 1;
            }
        }
    }
}

/// The weights as floats; a multiplication and a subtraction, each rounded, as the definition has them.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<B: Codes<G>, const G: usize>(bytes: &[u8], out: &mut [f32]) {
    let groups = out.as_chunks_mut::<8>().0.as_chunks_mut::<4>().0.as_chunks_mut::<G>().0;
    for (block, out) in quant::blocks::<B>(bytes).iter().zip(groups) {
        // SAFETY: this function has AVX2.
        let codes = unsafe { block.registers() };
        let (d, dmin) = block.floats(|bits| float(bits));
        let (scales, mins) = (block.scales(), block.mins());
        for (j, (codes, out)) in codes.iter().zip(out).enumerate() {
            let (low, high) = (_mm256_castsi256_si128(*codes), _mm256_extracti128_si256::<1>(*codes));
            let eights = [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)];
            for (i, (codes, y)) in eights.into_iter().zip(out).enumerate() {
                let scale = _mm256_set1_ps(d * f32::from(scales[j][i / 2]));
                let min = _mm256_set1_ps(dmin * f32::from(mins[j][i / 2]));
                let product = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
                store(_mm256_sub_ps(product, min), y);
            }
        }
    }
}
