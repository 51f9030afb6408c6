//! Plain Advanced SIMD, as every 64-bit ARM core has it (Cortex-A53, A72): four floats or 16 bytes at a time.

use std::arch::aarch64::*;

use half::f16;

use crate::base::limits::ATTN_BLOCK;
use crate::kernel::tensor::{Q8Row, Q8View, Scores};
use crate::kernel::{Kernels, LANES, Q8_BLOCK, SCALAR, Tier, math, scalar};
use crate::quant::{self, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8_0, Quant};

/// What this tier has; the rest is the scalar tier's.
pub(in crate::kernel) const NEON: Kernels = Kernels {
    tier: Tier::Neon,
    dot,
    quantize,
    rms_norm,
    swiglu,
    store_f16,
    attend_f16,
    attend_f32,
    ..SCALAR
}
.with_unpack(Quant::F16, unpack_f16)
.with_unpack(Quant::BF16, unpack_bf16)
.with_q8(Quant::Q4_0, q4_0)
.with_q8(Quant::Q8_0, q8_0)
.with_q8(Quant::Q4_K, q4_k)
.with_q8(Quant::Q6_K, q6_k);

#[target_feature(enable = "neon")]
fn load(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: four floats are there; the load takes any alignment.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn store(x: float32x4_t, y: &mut [f32; 4]) {
    // SAFETY: there is room for four floats; the store takes any alignment.
    unsafe { vst1q_f32(y.as_mut_ptr(), x) }
}

#[target_feature(enable = "neon")]
fn load_bytes(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_u8(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn load_codes(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn load_f16(x: &[f16; 4]) -> float32x4_t {
    // SAFETY: eight bytes are there; the load takes any alignment.
    let bits = unsafe { vld1_u16(x.as_ptr().cast()) };
    vcvt_f32_f16(vreinterpret_f16_u16(bits))
}

#[target_feature(enable = "neon")]
fn exp(x: float32x4_t) -> float32x4_t {
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
fn sum(x: float32x4_t) -> f32 {
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
    scalar::unpack_f16(tail, rest);
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
    scalar::unpack_bf16(tail, rest);
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
fn quantize(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]) {
    let blocks = x.as_chunks::<Q8_BLOCK>().0.iter().zip(codes.as_chunks_mut::<Q8_BLOCK>().0);
    for (((x, codes), scale), total) in blocks.zip(scales).zip(sums) {
        let mut max = vdupq_n_f32(0.0);
        for x in x.as_chunks::<4>().0 {
            // The number of the two where one is a NaN, as in the definition.
            max = vmaxnmq_f32(max, vabsq_f32(load(x)));
        }
        let max = vmaxnmvq_f32(max);
        let inverse = scalar::q8_inverse(max);
        let mut n = vdupq_n_s32(0);
        for (x, codes) in x.as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
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
        *scale = max / 127.0;
        *total = *scale * vaddvq_s32(n) as f32;
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

macro_rules! attend {
    ($name:ident, $type:ty, $load:ident, $float:expr) => {
        #[target_feature(enable = "neon")]
        fn $name(q: &[f32], k: &[$type], v: &[$type], how: Scores, out: &mut [f32]) -> (f32, f32) {
            let d = q.len();
            let n = k.len() / d;
            let mut scores = [f32::NEG_INFINITY; ATTN_BLOCK];
            let (qs, q_tail) = q.as_chunks::<4>();
            let mut max = f32::NEG_INFINITY;
            for (score, k) in scores.iter_mut().zip(k.chunks_exact(d)) {
                let (ks, k_tail) = k.as_chunks::<4>();
                let mut acc = vdupq_n_f32(0.0);
                for (q, k) in qs.iter().zip(ks) {
                    acc = vfmaq_f32(acc, load(q), $load(k));
                }
                let tail: f32 = q_tail.iter().zip(k_tail).map(|(q, k)| q * $float(*k)).sum();
                *score = how.of(sum(acc) + tail);
                max = max.max(*score);
            }
            let mut total = vdupq_n_f32(0.0);
            for part in &mut scores.as_chunks_mut::<4>().0[..n.div_ceil(4)] {
                let x = load(part);
                let p = vreinterpretq_u32_f32(exp(vsubq_f32(x, vdupq_n_f32(max))));
                // Absent keys have a score of minus infinity, whose exponential is to be nothing at all.
                let absent = vceqq_f32(x, vdupq_n_f32(f32::NEG_INFINITY));
                let p = vreinterpretq_f32_u32(vbicq_u32(p, absent));
                total = vaddq_f32(total, p);
                store(p, part);
            }
            let (ys, y_tail) = out.as_chunks_mut::<4>();
            let body = ys.len() * 4;
            for (i, y) in ys.iter_mut().enumerate() {
                let mut acc = vdupq_n_f32(0.0);
                for (p, v) in scores.iter().zip(v.chunks_exact(d)) {
                    let [v] = v[i * 4..i * 4 + 4].as_chunks::<4>().0 else { continue };
                    acc = vfmaq_n_f32(acc, $load(v), *p);
                }
                store(acc, y);
            }
            for (i, y) in y_tail.iter_mut().enumerate() {
                *y = scores.iter().zip(v.chunks_exact(d)).map(|(p, v)| p * $float(v[body + i])).sum();
            }
            (max, sum(total))
        }
    };
}

attend!(attend_f16, f16, load_f16, |x: f16| x.to_f32());
attend!(attend_f32, f32, load, |x: f32| x);

/// Products of 16 codes, in eight sums of two. Weights from -128 to 127, activations within ±127: at most
/// 2 · 128 · 127 = 32,512, which fits 16 bits.
#[target_feature(enable = "neon")]
fn pairs(w: int8x16_t, x: int8x16_t) -> int16x8_t {
    vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vget_high_s8(w), vget_high_s8(x))
}

/// Products of 32 codes, in four sums.
#[target_feature(enable = "neon")]
fn dot_codes(w: [int8x16_t; 2], x: &[i8; 32]) -> int32x4_t {
    let [x0, x1] = x.as_chunks::<16>().0 else { return vdupq_n_s32(0) };
    vpadalq_s16(vpaddlq_s16(pairs(w[0], load_codes(x0))), pairs(w[1], load_codes(x1)))
}

/// A kernel that takes rows and tokens in small tiles, so that unpacked weights serve several tokens and several
/// sums are under way at a time. Each output has one accumulator, blocks in ascending order: the tile's shape changes
/// no bit.
macro_rules! q8_kernel {
    ($name:ident, $block:ty, $tile:ident) => {
        #[target_feature(enable = "neon")]
        fn $name(w: &[u8], x: &Q8View<'_>, tile: &mut [f32]) {
            let n_rows = tile.len() / x.n_tokens;
            let row_bytes = w.len() / n_rows;
            let row = |r: usize| -> &[$block] { quant::blocks(&w[r * row_bytes..(r + 1) * row_bytes]) };
            let mut t = 0;
            while t < x.n_tokens {
                let few = x.n_tokens - t < 4;
                let mut r = 0;
                while r < n_rows {
                    if few && n_rows - r >= 4 {
                        let sums = $tile::<4, 1>(std::array::from_fn(|i| row(r + i)), [x.row(t)]);
                        for (i, [y]) in sums.into_iter().enumerate() {
                            tile[(r + i) * x.n_tokens + t] = y;
                        }
                        r += 4;
                    } else if few {
                        let [[y]] = $tile::<1, 1>([row(r)], [x.row(t)]);
                        tile[r * x.n_tokens + t] = y;
                        r += 1;
                    } else {
                        let [y] = $tile::<1, 4>([row(r)], std::array::from_fn(|i| x.row(t + i)));
                        tile[r * x.n_tokens + t..][..4].copy_from_slice(&y);
                        r += 1;
                    }
                }
                t += if few { 1 } else { 4 };
            }
        }
    };
}

q8_kernel!(q4_0, BlockQ4_0, tile_q4_0);
q8_kernel!(q8_0, BlockQ8_0, tile_q8_0);
q8_kernel!(q4_k, BlockQ4K, tile_q4_k);
q8_kernel!(q6_k, BlockQ6K, tile_q6_k);

/// `acc + scale * sums`.
#[target_feature(enable = "neon")]
fn add_scaled(acc: float32x4_t, sums: int32x4_t, scale: f32) -> float32x4_t {
    vfmaq_n_f32(acc, vcvtq_f32_s32(sums), scale)
}

#[target_feature(enable = "neon")]
fn tile_q4_0<const R: usize, const T: usize>(rows: [&[BlockQ4_0]; R], x: [Q8Row<'_>; T]) -> [[f32; T]; R] {
    let mut acc = [[vdupq_n_f32(0.0); T]; R];
    for b in 0..rows[0].len() {
        for (row, acc) in rows.iter().zip(&mut acc) {
            let d = f16::from_bits(row[b].d.get()).to_f32();
            let (bytes, eight) = (load_bytes(&row[b].qs), vdupq_n_s8(8));
            let low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight);
            let high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes)), eight);
            for (x, acc) in x.iter().zip(acc) {
                *acc = add_scaled(*acc, dot_codes([low, high], &x.codes[b]), d * x.scales[b]);
            }
        }
    }
    acc.map(|row| row.map(|a| sum(a)))
}

#[target_feature(enable = "neon")]
fn tile_q8_0<const R: usize, const T: usize>(rows: [&[BlockQ8_0]; R], x: [Q8Row<'_>; T]) -> [[f32; T]; R] {
    let mut acc = [[vdupq_n_f32(0.0); T]; R];
    for b in 0..rows[0].len() {
        for (row, acc) in rows.iter().zip(&mut acc) {
            let d = f16::from_bits(row[b].d.get()).to_f32();
            let [w0, w1] = row[b].qs.as_chunks::<16>().0 else { continue };
            let w = [load_codes(w0), load_codes(w1)];
            for (x, acc) in x.iter().zip(acc) {
                *acc = add_scaled(*acc, dot_codes(w, &x.codes[b]), d * x.scales[b]);
            }
        }
    }
    acc.map(|row| row.map(|a| sum(a)))
}

#[target_feature(enable = "neon")]
fn tile_q4_k<const R: usize, const T: usize>(rows: [&[BlockQ4K]; R], x: [Q8Row<'_>; T]) -> [[f32; T]; R] {
    let mut acc = [[vdupq_n_f32(0.0); T]; R];
    for b in 0..rows[0].len() {
        for (row, acc) in rows.iter().zip(&mut acc) {
            let block = &row[b];
            let (d, dmin) =
                (f16::from_bits(block.d.get()).to_f32(), f16::from_bits(block.dmin.get()).to_f32());
            let (scales, mins) = block.scales_and_mins();
            let mins: [f32; 8] = std::array::from_fn(|j| -dmin * f32::from(mins[j]));
            for (x, acc) in x.iter().zip(&mut *acc) {
                let sums = x.sums[8 * b..8 * b + 8].as_chunks::<4>().0;
                for (m, s) in mins.as_chunks::<4>().0.iter().zip(sums) {
                    *acc = vfmaq_f32(*acc, load(m), load(s));
                }
            }
            for (j, bytes) in block.qs.as_chunks::<32>().0.iter().enumerate() {
                let [b0, b1] = bytes.as_chunks::<16>().0 else { continue };
                let (b0, b1) = (load_bytes(b0), load_bytes(b1));
                let low = |v| vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
                let high = |v| vreinterpretq_s8_u8(vshrq_n_u8::<4>(v));
                for (i, w) in [(2 * j, [low(b0), low(b1)]), (2 * j + 1, [high(b0), high(b1)])] {
                    let scale = i32::from(scales[i]);
                    for (x, acc) in x.iter().zip(&mut *acc) {
                        let dot = vmulq_n_s32(dot_codes(w, &x.codes[8 * b + i]), scale);
                        *acc = add_scaled(*acc, dot, d * x.scales[8 * b + i]);
                    }
                }
            }
        }
    }
    acc.map(|row| row.map(|a| sum(a)))
}

#[target_feature(enable = "neon")]
fn tile_q6_k<const R: usize, const T: usize>(rows: [&[BlockQ6K]; R], x: [Q8Row<'_>; T]) -> [[f32; T]; R] {
    let mut acc = [[vdupq_n_f32(0.0); T]; R];
    for b in 0..rows[0].len() {
        for (row, acc) in rows.iter().zip(&mut acc) {
            let block = &row[b];
            let d = f16::from_bits(block.d.get()).to_f32();
            for j in 0..8 {
                let (half, quarter) = (j / 4, j % 4);
                let low = &block.ql[half * 64 + quarter % 2 * 32..][..32];
                let high = &block.qh[half * 32..][..32];
                let shift = vdupq_n_s8(-2 * quarter as i8);
                let code = |low: &[u8; 16], high: &[u8; 16]| {
                    let (low, high) = (load_bytes(low), load_bytes(high));
                    let low = if quarter < 2 { vandq_u8(low, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(low) };
                    let high = vandq_u8(vshlq_u8(high, shift), vdupq_n_u8(3));
                    vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(low, vshlq_n_u8::<4>(high))), vdupq_n_s8(32))
                };
                let ([l0, l1], [h0, h1]) = (low.as_chunks::<16>().0, high.as_chunks::<16>().0) else {
                    continue;
                };
                let w = [code(l0, h0), code(l1, h1)];
                let scales = [i32::from(block.scales[2 * j]), i32::from(block.scales[2 * j + 1])];
                for (x, acc) in x.iter().zip(&mut *acc) {
                    let [x0, x1] = x.codes[8 * b + j].as_chunks::<16>().0 else { continue };
                    let first = vpaddlq_s16(pairs(w[0], load_codes(x0)));
                    let second = vpaddlq_s16(pairs(w[1], load_codes(x1)));
                    let dot = vmlaq_n_s32(vmulq_n_s32(first, scales[0]), second, scales[1]);
                    *acc = add_scaled(*acc, dot, d * x.scales[8 * b + j]);
                }
            }
        }
    }
    acc.map(|row| row.map(|a| sum(a)))
}
