//! The definition: plain safe Rust, one obvious loop for each operation.

use half::{bf16, f16};

use super::tensor::{Pair, Panels, Q8Block, Q8View, Scores};
use super::{Hints, LANES, PANEL, PackedFn, Q8_BLOCK, Q8Fn, STRETCH, Strided, StridedMut, UnpackFn, math};
use crate::base::limits::ATTN_BLOCK;
use crate::quant::packed::{Group, Integers, Packing};
use crate::quant::{
    self, Block, BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K,
    BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTQ1_0, BlockTQ2_0, Quant, Share,
};

/// Indexed by format.
pub(super) const UNPACK: [UnpackFn; Quant::COUNT] = {
    let mut all: [UnpackFn; Quant::COUNT] = [quant::unpack(Quant::F32); Quant::COUNT];
    let mut i = 0;
    while i < Quant::COUNT {
        all[i] = quant::unpack(Quant::ALL[i]);
        i += 1;
    }
    all
};

/// Indexed by format. Weights that are floats have none: they are multiplied with float activations.
pub(super) const PRODUCTS: [Option<Q8Fn>; Quant::COUNT] = {
    let mut all: [Option<Q8Fn>; Quant::COUNT] = [None; Quant::COUNT];
    let mut i = 0;
    while i < Quant::COUNT {
        all[i] = match Quant::ALL[i] {
            Quant::F32 | Quant::F16 | Quant::BF16 => None,
            Quant::Q4_0 => Some(product::<BlockQ4_0, 1>),
            Quant::Q4_1 => Some(product::<BlockQ4_1, 1>),
            Quant::Q5_0 => Some(product::<BlockQ5_0, 1>),
            Quant::Q5_1 => Some(product::<BlockQ5_1, 1>),
            Quant::Q8_0 => Some(product::<BlockQ8_0, 1>),
            Quant::Q2_K => Some(product::<BlockQ2K, 8>),
            Quant::Q3_K => Some(product::<BlockQ3K, 8>),
            Quant::Q4_K => Some(product::<BlockQ4K, 8>),
            Quant::Q5_K => Some(product::<BlockQ5K, 8>),
            Quant::Q6_K => Some(product::<BlockQ6K, 8>),
            Quant::IQ4_NL => Some(product::<BlockIQ4NL, 1>),
            Quant::IQ4_XS => Some(product::<BlockIQ4XS, 8>),
            Quant::TQ1_0 => Some(product::<BlockTQ1_0, 8>),
            Quant::TQ2_0 => Some(product::<BlockTQ2_0, 8>),
            Quant::MXFP4 => Some(product::<BlockMXFP4, 1>),
        };
        i += 1;
    }
    all
};

pub(super) const PACKED: [Option<PackedFn>; Quant::COUNT] = {
    let mut all: [Option<PackedFn>; Quant::COUNT] = [None; Quant::COUNT];
    macro_rules! set {
        ($($quant:ident)*) => { $(all[Quant::$quant as usize] = Some(packed::<{ Quant::$quant as usize }>);)* };
    }
    set!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4);
    all
};

/// `lanes[i % LANES] += w[i] * x[i]`.
pub(super) fn dot(w: &[f32], x: &[f32], lanes: &mut [f32; LANES]) {
    for (w, x) in w.chunks(LANES).zip(x.chunks(LANES)) {
        for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
            *lane += w * x;
        }
    }
}

/// Codes are `x / scale` rounded (ties to even) with `scale = max|x| / 127`; sums are `scale * Σ codes`. The scale of a
/// block with a NaN is NaN, so that it is not lost in the codes.
pub(super) fn quantize(x: &[f32], out: &mut [Q8Block]) {
    for (x, block) in x.as_chunks::<Q8_BLOCK>().0.iter().zip(out) {
        let max = x.iter().map(|v| v.abs()).fold(0.0, |m, v| if v > m || v.is_nan() { v } else { m });
        let inverse = q8_inverse(max);
        for (code, x) in block.codes.iter_mut().zip(x) {
            *code = (x * inverse).round_ties_even() as i8;
        }
        block.scale = max / 127.0;
        block.sum = block.scale * block.codes.iter().map(|&c| i32::from(c)).sum::<i32>() as f32;
        (block.first, block.both) = (pair(&block.codes[..16]), pair(&block.codes));
    }
}

/// Sums of some codes.
pub(super) fn pair(codes: &[i8]) -> Pair {
    let sum = |at: usize| -> i16 {
        codes.as_chunks::<4>().0.iter().map(|c| i16::from(c[at]) + i16::from(c[at + 1])).sum()
    };
    u32::from(sum(0) as u16) | u32::from(sum(2) as u16) << 16
}

/// Rounds of the multiplications that products by codes are made of; tells how many those are.
pub(super) fn peak(n_rounds: u32) -> u64 {
    let (w, mut sums) = (std::hint::black_box([3_i8; 64]), [0_i32; 64]);
    for _ in 0..n_rounds {
        for (sum, w) in sums.iter_mut().zip(&w) {
            *sum = sum.wrapping_add(i32::from(*w) * 5);
        }
        std::hint::black_box(&mut sums);
    }
    u64::from(n_rounds) * 64
}

/// All words of `bytes`, once.
pub(super) fn read(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; 16];
    for words in bytes.as_chunks::<8>().0.as_chunks::<16>().0 {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane ^= u64::from_le_bytes(*word);
        }
    }
    lanes.iter().fold(0, |all, lane| all ^ lane)
}

/// What activations are multiplied with to become codes; 0 for a block too small for a finite one.
pub(super) fn q8_inverse(max: f32) -> f32 {
    let inverse = 127.0 / max;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// `tile[r][t]`, blocks of weights in ascending order. A block's sums of codes are whole numbers and exact.
fn product<B: Block<G>, const G: usize>(w: &[u8], x: &Q8View<'_>, tile: &mut [f32]) {
    let n_rows = tile.len() / x.n_tokens;
    for (row, tile) in w.chunks_exact(w.len() / n_rows).zip(tile.chunks_exact_mut(x.n_tokens)) {
        tile.fill(0.0);
        for (b, block) in quant::blocks::<B>(row).iter().enumerate() {
            let (d, dmin) = block.floats(quant::f16_value);
            let (codes, scales, mins) = (block.codes(), block.scales(), block.mins());
            for (t, y) in tile.iter_mut().enumerate() {
                let x = x.row(t);
                for j in 0..G {
                    let (i, [first, second]) = (G * b + j, halves(&codes[j], &x[G * b + j].codes));
                    let dot = i32::from(scales[j][0]) * first + i32::from(scales[j][1]) * second;
                    *y += d * x[i].scale * dot as f32;
                    match B::MINS {
                        Share::Block => {}
                        Share::Group => *y -= dmin * f32::from(mins[j][0]) * x[i].sum,
                        Share::Half => {
                            let [first, second] = halves(&[1; Q8_BLOCK], &x[i].codes);
                            let sum = i32::from(mins[j][0]) * first + i32::from(mins[j][1]) * second;
                            *y -= dmin * x[i].scale * sum as f32;
                        }
                    }
                }
            }
        }
    }
}

/// The same operations as [`product`] in the same order, from a panel.
fn packed<const Q: usize>(panel: &[u8], _: Hints<'_>, x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
    let packing = const { Packing::of(Quant::ALL[Q]).expect("a format with blocks") };
    sums.fill([0.0; PANEL]);
    for g in 0..x.n_cols / Q8_BLOCK {
        let group = Group::read(&packing, panel, x.n_cols, g);
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = x.row(t);
            for (r, y) in sums.iter_mut().enumerate() {
                let ([scale0, scale1], [min0, min1], (d, dmin)) =
                    (group.scales[r], group.mins[r], group.floats[r]);
                let [first, second] = halves(&group.codes[r], &x[g].codes);
                let dot = i32::from(scale0) * first + i32::from(scale1) * second;
                *y += d * x[g].scale * dot as f32;
                match packing.integers {
                    _ if !packing.mins => {}
                    Integers::HalvesAndMins => {
                        let [first, second] = halves(&[1; Q8_BLOCK], &x[g].codes);
                        let sum = i32::from(min0) * first + i32::from(min1) * second;
                        *y -= dmin * x[g].scale * sum as f32;
                    }
                    _ => *y -= dmin * f32::from(min0) * x[g].sum,
                }
            }
        }
    }
}

/// Products of the first 16 codes and of the last 16.
pub(super) fn halves(w: &[i8; Q8_BLOCK], x: &[i8; Q8_BLOCK]) -> [i32; 2] {
    let sum = |start: usize| {
        let pairs = w[start..start + 16].iter().zip(&x[start..start + 16]);
        pairs.map(|(w, x)| i32::from(*w) * i32::from(*x)).sum()
    };
    [sum(0), sum(16)]
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    dot(x, x, &mut lanes);
    let scale = norm_scale(lanes, x.len(), eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

/// What a norm multiplies with, from the lanes of the sum of squares.
pub(super) fn norm_scale(lanes: [f32; LANES], n: usize, eps: f32) -> f32 {
    1.0 / (math::sum(lanes) / n as f32 + eps).sqrt()
}

pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + math::exp(-*g)) * u;
    }
}

pub(super) fn rope_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (([a, b], cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

pub(super) fn rope_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

pub(super) fn store_f16(x: &[f32], y: &mut [f16]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f16::from_f32(*x);
    }
}

/// Codes are `x / scale` rounded (ties to even) with `scale = max|x| / 127` as an f16; a block of up to 32 values has
/// one scale, and blocks do not cross heads.
pub(super) fn store_q8(x: &[f32], codes: &mut [i8], scales: &mut [f16]) {
    for ((x, codes), scale) in x.chunks(Q8_BLOCK).zip(codes.chunks_mut(Q8_BLOCK)).zip(scales) {
        let max = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        *scale = f16::from_f32(max / 127.0);
        let inverse = stored_inverse(*scale);
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
        }
    }
}

/// What the values of a block with this scale are multiplied with to become codes; 0 where that is not finite.
pub(super) fn stored_inverse(scale: f16) -> f32 {
    let inverse = 1.0 / scale.to_f32();
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// `c[r][16 p + i] = Σ_k a[r][k] · b[p][k][i]`, k ascending; with `add` it goes on from what `c` is.
fn mix<T: Copy>(
    (a, a_stride): Strided<'_>,
    n_rows: usize,
    b: &Panels<'_, T>,
    float: fn(T) -> f32,
    (c, c_stride): StridedMut<'_>,
    add: bool,
) {
    for (a, c) in a.chunks(a_stride).zip(c.chunks_mut(c_stride)).take(n_rows) {
        for (panel, c) in b.b.chunks(b.stride).zip(c.as_chunks_mut::<PANEL>().0).take(b.n) {
            if !add {
                c.fill(0.0);
            }
            for (a, b) in a.iter().zip(panel.as_chunks::<PANEL>().0).take(b.n_k) {
                for (c, b) in c.iter_mut().zip(b) {
                    *c += a * float(*b);
                }
            }
        }
    }
}

pub(super) fn mix_f16(a: Strided<'_>, n_rows: usize, b: &Panels<'_, f16>, c: StridedMut<'_>, add: bool) {
    mix(a, n_rows, b, f16::to_f32, c, add);
}

pub(super) fn mix_bf16(a: Strided<'_>, n_rows: usize, b: &Panels<'_, bf16>, c: StridedMut<'_>, add: bool) {
    mix(a, n_rows, b, bf16::to_f32, c, add);
}

pub(super) fn mix_f32(a: Strided<'_>, n_rows: usize, b: &Panels<'_, f32>, c: StridedMut<'_>, add: bool) {
    mix(a, n_rows, b, |x| x, c, add);
}

pub(super) fn mix_i8(a: Strided<'_>, n_rows: usize, b: &Panels<'_, i8>, c: StridedMut<'_>, add: bool) {
    mix(a, n_rows, b, f32::from, c, add);
}

/// `panel[k][r] = rows[r][k]` for the first `n` columns.
pub(super) fn turn(rows: &[[f32; STRETCH]; PANEL], panel: &mut [[f32; PANEL]; STRETCH], n: usize) {
    for (k, panel) in panel.iter_mut().enumerate().take(n) {
        for (x, row) in panel.iter_mut().zip(rows) {
            *x = row[k];
        }
    }
}

/// Products become scores, and those `exp(score - max)`; what is minus infinity becomes 0. Returns (max, sum).
pub(super) fn weigh(products: &mut [f32; ATTN_BLOCK], how: Scores) -> (f32, f32) {
    for x in products.iter_mut().filter(|x| **x != f32::NEG_INFINITY) {
        *x = how.of(*x);
    }
    let max = products.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let mut sum = 0.0;
    for x in products {
        *x = if *x == f32::NEG_INFINITY { 0.0 } else { math::exp(*x - max) };
        sum += *x;
    }
    (max, sum)
}

/// `y = y * a + x * b`.
pub(super) fn blend(y: &mut [f32], a: f32, x: &[f32], b: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = *y * a + x * b;
    }
}
