//! Plain Advanced SIMD, as every 64-bit ARM core has it (Cortex-A53, A72): four floats or 16 bytes at a time.

use std::arch::aarch64::*;

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
pub(in crate::kernel) const NEON: Kernels = Kernels {
    tier: Tier::Neon,
    quantize,
    arrange: Some(super::packed::arrange_steps),
    rms_norm,
    swiglu,
    rope_pairs,
    rope_halves,
    store_f16,
    store_q8,
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
.with_packed(super::packed::NEON)
.with_peak(super::packed::neon_peak);

#[target_feature(enable = "neon")]
pub(super) fn load(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: four floats are there; the load takes any alignment.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
pub(super) fn store(x: float32x4_t, y: &mut [f32; 4]) {
    // SAFETY: there is room for four floats; the store takes any alignment.
    unsafe { vst1q_f32(y.as_mut_ptr(), x) }
}

#[target_feature(enable = "neon")]
fn load_codes(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
pub(super) fn load_f16(x: &[f16; 4]) -> float32x4_t {
    // SAFETY: eight bytes are there; the load takes any alignment.
    let bits = unsafe { vld1_u16(x.as_ptr().cast()) };
    vcvt_f32_f16(vreinterpret_f16_u16(bits))
}

#[target_feature(enable = "neon")]
fn float(bits: U16) -> f32 {
    vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits.get()))))
}

#[target_feature(enable = "neon")]
pub(super) fn exp(x: float32x4_t) -> float32x4_t {
    let x = vmaxq_f32(vdupq_n_f32(math::EXP_RANGE.0), x);
    let x = vminq_f32(vdupq_n_f32(math::EXP_RANGE.1), x);
    let n = vrndnq_f32(vmulq_n_f32(x, std::f32::consts::LOG2_E));
    let r = vfmsq_f32(x, n, vdupq_n_f32(math::LN_2.0));
    let r = vfmsq_f32(r, n, vdupq_n_f32(math::LN_2.1));
    let mut p = vdupq_n_f32(0.0);
    for c in math::EXP {
        p = vfmaq_f32(vdupq_n_f32(c), p, r);
    }
    let y = vaddq_f32(vfmaq_f32(r, vmulq_f32(p, r), r), vdupq_n_f32(1.0));
    let power = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
    vmulq_f32(y, vreinterpretq_f32_s32(power))
}

/// The sum of four lanes as a tree.
#[target_feature(enable = "neon")]
pub(super) fn sum(x: float32x4_t) -> f32 {
    vaddvq_f32(x)
}

#[target_feature(enable = "neon")]
fn unpack_f16(bytes: &[u8], out: &mut [f32]) {
    let (body, tail) = bytes.as_chunks::<8>();
    let (ys, rest) = out.as_chunks_mut::<4>();
    for (w, y) in body.iter().zip(ys) {
        // SAFETY: eight bytes are there; the load takes any alignment.
        let bits = unsafe { vld1_u8(w.as_ptr()) };
        store(vcvt_f32_f16(vreinterpret_f16_u8(bits)), y);
    }
    quant::unpack(Quant::F16)(tail, rest);
}

#[target_feature(enable = "neon")]
fn unpack_bf16(bytes: &[u8], out: &mut [f32]) {
    let (body, tail) = bytes.as_chunks::<8>();
    let (ys, rest) = out.as_chunks_mut::<4>();
    for (w, y) in body.iter().zip(ys) {
        // SAFETY: eight bytes are there; the load takes any alignment.
        let bits = vreinterpret_u16_u8(unsafe { vld1_u8(w.as_ptr()) });
        store(vreinterpretq_f32_u32(vshll_n_u16::<16>(bits)), y);
    }
    quant::unpack(Quant::BF16)(tail, rest);
}

#[target_feature(enable = "neon")]
fn dot(w: &[f32], x: &[f32], lanes: &mut [f32; LANES]) {
    let (ws, w_tail) = w.as_chunks::<LANES>();
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let mut acc = [vdupq_n_f32(0.0); LANES / 4];
    for (a, lane) in acc.iter_mut().zip(lanes.as_chunks::<4>().0) {
        *a = load(lane);
    }
    for (w, x) in ws.iter().zip(xs) {
        for ((a, w), x) in acc.iter_mut().zip(w.as_chunks::<4>().0).zip(x.as_chunks::<4>().0) {
            *a = vfmaq_f32(*a, load(w), load(x));
        }
    }
    for (a, lane) in acc.iter().zip(lanes.as_chunks_mut::<4>().0) {
        store(*a, lane);
    }
    scalar::dot(w_tail, x_tail, lanes);
}

#[target_feature(enable = "neon")]
fn quantize(x: &[f32], out: &mut [Q8Block]) {
    for (x, block) in x.as_chunks::<Q8_BLOCK>().0.iter().zip(out) {
        let mut max = vdupq_n_f32(0.0);
        for x in x.as_chunks::<4>().0 {
            // A NaN where one of the two is, as in the definition.
            max = vmaxq_f32(max, vabsq_f32(load(x)));
        }
        let max = vmaxvq_f32(max);
        let inverse = scalar::q8_inverse(max);
        let mut n = vdupq_n_s32(0);
        for (x, codes) in x.as_chunks::<8>().0.iter().zip(block.codes.as_chunks_mut::<8>().0) {
            let [low, high] = x.as_chunks::<4>().0 else { continue };
            let (low, high) = (
                vcvtnq_s32_f32(vmulq_n_f32(load(low), inverse)),
                vcvtnq_s32_f32(vmulq_n_f32(load(high), inverse)),
            );
            n = vaddq_s32(n, vaddq_s32(low, high));
            let bytes = vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
            // SAFETY: there is room for eight bytes; the store takes any alignment.
            unsafe { vst1_s8(codes.as_mut_ptr(), bytes) };
        }
        block.scale = max / 127.0;
        block.sum = block.scale * vaddvq_s32(n) as f32;
        (block.first, block.both) = (scalar::pair(&block.codes[..16]), scalar::pair(&block.codes));
    }
}

#[target_feature(enable = "neon")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    dot(x, x, &mut lanes);
    let scale = scalar::norm_scale(lanes, x.len(), eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

#[target_feature(enable = "neon")]
fn swiglu(gate: &mut [f32], up: &[f32]) {
    let (gs, g_tail) = gate.as_chunks_mut::<4>();
    let (us, u_tail) = up.as_chunks::<4>();
    let one = vdupq_n_f32(1.0);
    for (g, u) in gs.iter_mut().zip(us) {
        let x = load(g);
        store(vmulq_f32(vdivq_f32(x, vaddq_f32(one, exp(vnegq_f32(x)))), load(u)), g);
    }
    scalar::swiglu(g_tail, u_tail);
}

#[target_feature(enable = "neon")]
fn store_f16(x: &[f32], y: &mut [f16]) {
    let (xs, x_tail) = x.as_chunks::<4>();
    let (ys, y_tail) = y.as_chunks_mut::<4>();
    for (x, y) in xs.iter().zip(ys) {
        let bits = vreinterpret_u16_f16(vcvt_f16_f32(load(x)));
        // SAFETY: there is room for four 16-bit floats; the store takes any alignment.
        unsafe { vst1_u16(y.as_mut_ptr().cast(), bits) };
    }
    scalar::store_f16(x_tail, y_tail);
}

#[target_feature(enable = "neon")]
fn rope_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let body = cos.len() / 4 * 4;
    let (turned, rest) = head.split_at_mut(2 * body);
    let angles = cos.as_chunks::<4>().0.iter().zip(sin.as_chunks::<4>().0);
    for (pairs, (cos, sin)) in turned.as_chunks_mut::<8>().0.iter_mut().zip(angles) {
        let (cos, sin) = (load(cos), load(sin));
        // SAFETY: eight floats are there; the load takes any alignment.
        let float32x4x2_t(a, b) = unsafe { vld2q_f32(pairs.as_ptr()) };
        let turned = float32x4x2_t(
            vsubq_f32(vmulq_f32(a, cos), vmulq_f32(b, sin)),
            vaddq_f32(vmulq_f32(a, sin), vmulq_f32(b, cos)),
        );
        // SAFETY: there is room for eight floats; the store takes any alignment.
        unsafe { vst2q_f32(pairs.as_mut_ptr(), turned) };
    }
    scalar::rope_pairs(rest, &cos[body..], &sin[body..]);
}

#[target_feature(enable = "neon")]
fn rope_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    let (a4, a_tail) = first.as_chunks_mut::<4>();
    let (b4, b_tail) = second[..cos.len()].as_chunks_mut::<4>();
    let ((c4, c_tail), (s4, s_tail)) = (cos.as_chunks::<4>(), sin.as_chunks::<4>());
    for ((a, b), (cos, sin)) in a4.iter_mut().zip(b4).zip(c4.iter().zip(s4)) {
        let (x, y, cos, sin) = (load(a), load(b), load(cos), load(sin));
        store(vsubq_f32(vmulq_f32(x, cos), vmulq_f32(y, sin)), a);
        store(vaddq_f32(vmulq_f32(x, sin), vmulq_f32(y, cos)), b);
    }
    for ((a, b), (cos, sin)) in a_tail.iter_mut().zip(b_tail).zip(c_tail.iter().zip(s_tail)) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

#[target_feature(enable = "neon")]
fn store_q8(x: &[f32], codes: &mut [i8], scales: &mut [f16]) {
    let ((xs, x_tail), (cs, c_tail)) = (x.as_chunks::<Q8_BLOCK>(), codes.as_chunks_mut::<Q8_BLOCK>());
    let (full, last) = scales.split_at_mut(xs.len());
    for ((x, codes), scale) in xs.iter().zip(cs).zip(full) {
        let mut max = vdupq_n_f32(0.0);
        for x in x.as_chunks::<4>().0 {
            // A number where one of the two is, as in the definition.
            max = vmaxnmq_f32(max, vabsq_f32(load(x)));
        }
        *scale = f16::from_f32(vmaxnmvq_f32(max) / 127.0);
        let inverse = scalar::stored_inverse(*scale);
        for (x, codes) in x.as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
            let [low, high] = x.as_chunks::<4>().0 else { continue };
            let (low, high) = (
                vcvtnq_s32_f32(vmulq_n_f32(load(low), inverse)),
                vcvtnq_s32_f32(vmulq_n_f32(load(high), inverse)),
            );
            let bytes = vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
            // SAFETY: there is room for eight bytes; the store takes any alignment.
            unsafe { vst1_s8(codes.as_mut_ptr(), vmax_s8(bytes, vdup_n_s8(-127))) };
        }
    }
    scalar::store_q8(x_tail, c_tail, last);
}

/// Products of 16 codes, in eight sums of two. Weights from -128 to 127, activations within ±127: at most
/// 2 · 128 · 127 = 32,512, which fits 16 bits.
#[target_feature(enable = "neon")]
fn pairs(w: int8x16_t, x: int8x16_t) -> int16x8_t {
    vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vget_high_s8(w), vget_high_s8(x))
}

/// Products of four rows and a token (`R` = 4, `T` = 1) or of a row and four tokens: a lane each. The integer sums of a
/// group are exact, and each lane has one float sum, groups in ascending order, with the operations of packed products: the
/// same bits for all of them.
#[target_feature(enable = "neon")]
fn tile<B: Codes<G>, const G: usize, const R: usize, const T: usize>(
    rows: [&[B]; R],
    x: [&[Q8Block]; T],
) -> [f32; 4] {
    let mut sum = vdupq_n_f32(0.0);
    for b in 0..rows[0].len() {
        let mut dots = [[vdupq_n_s32(0); 4]; G];
        let (mut d, mut dmin) = ([0.0; 4], [0.0; 4]);
        // Of the group: `dmin` times the minimum. Of halves: minima times sums of codes.
        let mut mins = [[0.0; 4]; G];
        for (r, row) in rows.iter().enumerate() {
            let block = &row[b];
            // SAFETY: this function has Advanced SIMD.
            let codes = unsafe { block.registers() };
            let floats = block.floats(|bits| float(bits));
            let (scales, minima) = (block.scales(), block.mins());
            for (t, x) in x.iter().enumerate() {
                let lane = r * T + t;
                (d[lane], dmin[lane]) = floats;
                for (j, w) in codes.iter().enumerate() {
                    let i = G * b + j;
                    let x_codes = x[i].codes.as_chunks::<16>().0;
                    let pairs = [pairs(w[0], load_codes(&x_codes[0])), pairs(w[1], load_codes(&x_codes[1]))];
                    let scale = [i32::from(scales[j][0]), i32::from(scales[j][1])];
                    dots[j][lane] = match B::SCALES {
                        Share::Block => vpadalq_s16(vpaddlq_s16(pairs[0]), pairs[1]),
                        Share::Group => vmulq_n_s32(vpadalq_s16(vpaddlq_s16(pairs[0]), pairs[1]), scale[0]),
                        Share::Half => halves(pairs, scale),
                    };
                    let min = [i32::from(minima[j][0]), i32::from(minima[j][1])];
                    mins[j][lane] = match B::MINS {
                        Share::Block => 0.0,
                        Share::Group => floats.1 * min[0] as f32,
                        Share::Half => {
                            let [first, second] = scalar::halves(&[1; Q8_BLOCK], &x[i].codes);
                            (min[0] * first + min[1] * second) as f32
                        }
                    };
                }
            }
        }
        for (j, (dots, mins)) in dots.iter().zip(&mins).enumerate() {
            let i = G * b + j;
            let (mut scales, mut sums) = ([0.0; 4], [0.0; 4]);
            for lane in 0..4 {
                (scales[lane], sums[lane]) = (x[lane % T][i].scale, x[lane % T][i].sum);
            }
            let exact = vpaddq_s32(vpaddq_s32(dots[0], dots[1]), vpaddq_s32(dots[2], dots[3]));
            sum = vfmaq_f32(sum, vcvtq_f32_s32(exact), vmulq_f32(load(&d), load(&scales)));
            sum = match B::MINS {
                Share::Block => sum,
                Share::Group => vfmsq_f32(sum, load(mins), load(&sums)),
                Share::Half => vfmsq_f32(sum, load(mins), vmulq_f32(load(&dmin), load(&scales))),
            };
        }
    }
    let mut out = [0.0; 4];
    store(sum, &mut out);
    out
}

/// The sums of two halves of a group, each times its integer.
#[target_feature(enable = "neon")]
fn halves(sums: [int16x8_t; 2], times: [i32; 2]) -> int32x4_t {
    vmlaq_n_s32(vmulq_n_s32(vpaddlq_s16(sums[0]), times[0]), vpaddlq_s16(sums[1]), times[1])
}

/// Products by codes: four tokens at a time as long as there are so many, then four rows at a time, of which the last may
/// be the same.
#[target_feature(enable = "neon")]
fn product<B: Codes<G>, const G: usize>(w: &[u8], x: &Q8View<'_>, out: &mut [f32]) {
    let n_rows = out.len() / x.n_tokens;
    let row_bytes = w.len() / n_rows;
    let row = |r: usize| -> &[B] { quant::blocks(&w[r * row_bytes..(r + 1) * row_bytes]) };
    let in_fours = x.n_tokens / 4 * 4;
    for t in (0..in_fours).step_by(4) {
        for r in 0..n_rows {
            let sums = tile::<B, G, 1, 4>([row(r)], std::array::from_fn(|i| x.row(t + i)));
            out[r * x.n_tokens + t..][..4].copy_from_slice(&sums);
        }
    }
    for t in in_fours..x.n_tokens {
        for first in (0..n_rows).step_by(4) {
            let rows = std::array::from_fn(|i| row((first + i).min(n_rows - 1)));
            let sums = tile::<B, G, 4, 1>(rows, [x.row(t)]);
            for (r, sum) in (first..n_rows).zip(sums) {
                out[r * x.n_tokens + t] = sum;
            }
        }
    }
}

/// The weights as floats; a multiplication and a subtraction, each rounded, as the definition has them.
#[target_feature(enable = "neon")]
fn unpack<B: Codes<G>, const G: usize>(bytes: &[u8], out: &mut [f32]) {
    let groups = out.as_chunks_mut::<16>().0.as_chunks_mut::<2>().0.as_chunks_mut::<G>().0;
    for (block, out) in quant::blocks::<B>(bytes).iter().zip(groups) {
        // SAFETY: this function has Advanced SIMD.
        let codes = unsafe { block.registers() };
        let (d, dmin) = block.floats(|bits| float(bits));
        let (scales, mins) = (block.scales(), block.mins());
        for (j, (codes, out)) in codes.iter().zip(out).enumerate() {
            for (i, (codes, out)) in codes.iter().zip(out).enumerate() {
                let (scale, min) = (d * f32::from(scales[j][i]), dmin * f32::from(mins[j][i]));
                let (low, high) = (vmovl_s8(vget_low_s8(*codes)), vmovl_s8(vget_high_s8(*codes)));
                let fours = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
                for (codes, y) in fours.into_iter().zip(out.as_chunks_mut::<4>().0) {
                    let product = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(codes)), scale);
                    store(vsubq_f32(product, vdupq_n_f32(min)), y);
                }
            }
        }
    }
}
