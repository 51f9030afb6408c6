//! Row by row arithmetic that only some architectures need: plain Rust with the same bits in every tier. What shows in
//! a profile moves into the tiers' tables.

use super::{LANES, math, scalar};

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al., "Layer Normalization", 2016).
///
/// # Panics
/// If lengths differ.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), weight.len(), bias.len()), (y.len(), y.len(), y.len()), "lengths of a norm");
    let n = x.len() as f32;
    let mean = sum(x) / n;
    for (y, x) in y.iter_mut().zip(x) {
        *y = x - mean;
    }
    let scale = 1.0 / (square_sum(y) / n + eps).sqrt();
    for ((y, w), b) in y.iter_mut().zip(weight).zip(bias) {
        *y = *y * scale * w + b;
    }
}

/// `x = x * weight / sqrt(mean(x²) + eps)`, for rows of any length.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (square_sum(x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x *= scale * w;
    }
}

/// `x /= sqrt(Σ x² + eps)`, times `scale`.
pub fn l2_norm(x: &mut [f32], eps: f32, scale: f32) {
    let by = scale / (square_sum(x) + eps).sqrt();
    x.iter_mut().for_each(|x| *x *= by);
}

/// `sqrt(mean(x²))`.
#[must_use]
pub fn root_mean_square(x: &[f32]) -> f32 {
    (square_sum(x) / x.len() as f32).sqrt()
}

/// `gate = gelu(gate) * up`, the tanh form (Shazeer, "GLU Variants Improve Transformer", 2020).
pub fn geglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = math::gelu(*g) * u;
    }
}

/// `x = gelu(x)`, the tanh form.
pub fn gelu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = math::gelu(*x));
}

/// `x = silu(x)`.
pub fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = math::silu(*x));
}

/// gpt-oss: `gate = g * sigmoid(1.702 g) * (u + 1)` with `g = min(gate, 7)` and `u` within ±7.
pub fn clamped_swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        let x = g.min(7.0);
        *g = x * math::sigmoid(1.702 * x) * (u.clamp(-7.0, 7.0) + 1.0);
    }
}

/// `x *= silu(gate)`.
pub fn mul_silu(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x *= math::silu(*g);
    }
}

/// `x *= sigmoid(gate)`.
pub fn gate(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x *= math::sigmoid(*g);
    }
}

/// `x = cap * tanh(x / cap)` (Gemma 2).
pub fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * math::tanh(*x / cap));
}

/// `x = tanh(x)`.
pub fn tanh(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = math::tanh(*x));
}

/// Keeps what is `by` deviations above the mean, less that bound; the rest becomes 0 (Gemma 3n's sparse
/// feed-forward).
pub fn above(x: &mut [f32], by: f32) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let mut lanes = [0.0; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += (x - mean) * (x - mean);
        }
    }
    let bound = mean + by * (math::sum(lanes) / n).sqrt();
    x.iter_mut().for_each(|x| *x = (*x - bound).max(0.0));
}

/// `y += a * x`.
pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// One token of a causal convolution of each channel, in place: `row = bias + Σ_j weight[j] * input[t - (len - 1) + j]`
/// with `weight` `[len][n]` and the inputs before in `state`, oldest first, `[len - 1][n]`.
///
/// # Panics
/// If shapes do not agree.
pub fn convolve(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, state: &mut [f32]) {
    let n = row.len();
    let before = state.len() / n;
    assert_eq!((state.len(), weight.len()), (before * n, (before + 1) * n), "shape of a convolution");
    assert!(bias.is_none_or(|b| b.len() == n), "length of a bias");
    for (c, x) in row.iter_mut().enumerate() {
        let mut y = bias.map_or(0.0, |b| b[c]);
        for j in 0..before {
            y += weight[j * n + c] * state[j * n + c];
        }
        y += weight[before * n + c] * *x;
        for j in 1..before {
            state[(j - 1) * n + c] = state[j * n + c];
        }
        if before > 0 {
            state[(before - 1) * n + c] = *x;
        }
        *x = y;
    }
}

/// One token of one head of a gated delta net (Yang et al., "Gated Delta Networks", 2024): the state `[d_k][d_v]`
/// fades by `decay`, its value for the key moves towards `v` by `beta`, and `y = q · state`.
///
/// # Panics
/// If shapes do not agree.
pub fn delta_step(state: &mut [f32], q: &[f32], k: &[f32], v: &[f32], decay: f32, beta: f32, y: &mut [f32]) {
    let d_v = v.len();
    assert_eq!((state.len(), q.len(), y.len()), (k.len() * d_v, k.len(), d_v), "shape of a delta step");
    y.fill(0.0);
    for (row, k) in state.chunks_exact_mut(d_v).zip(k) {
        for (s, y) in row.iter_mut().zip(&mut *y) {
            *s *= decay;
            *y += *s * k;
        }
    }
    for (y, v) in y.iter_mut().zip(v) {
        *y = (v - *y) * beta;
    }
    for (row, k) in state.chunks_exact_mut(d_v).zip(k) {
        add_scaled(row, *k, y);
    }
    y.fill(0.0);
    for (row, q) in state.chunks_exact(d_v).zip(q) {
        add_scaled(y, *q, row);
    }
}

/// One token of one head of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024): each row of the state
/// `[head_dim][d_state]` fades by `decay` and takes in `dt * x[i] * b`; `y[i] = state[i] · c + d * x[i]`.
///
/// # Panics
/// If shapes do not agree.
pub fn scan_step(
    state: &mut [f32],
    x: &[f32],
    (b, c): (&[f32], &[f32]),
    decay: f32,
    dt: f32,
    d: f32,
    y: &mut [f32],
) {
    let n = b.len();
    assert_eq!((state.len(), c.len(), y.len()), (x.len() * n, n, x.len()), "shape of a scan step");
    for ((row, x), y) in state.chunks_exact_mut(n).zip(x).zip(y) {
        for (s, b) in row.iter_mut().zip(b) {
            *s = *s * decay + dt * x * b;
        }
        let mut lanes = [0.0; LANES];
        scalar::dot(row, c, &mut lanes);
        *y = math::sum(lanes) + d * x;
    }
}

/// What a state fades by in one step: `e^(a * dt)` and `dt = softplus(x)`.
#[must_use]
pub fn decay(a: f32, x: f32) -> (f32, f32) {
    let dt = math::softplus(x);
    ((a * dt).exp(), dt)
}

/// `1 / (1 + e^-x)`.
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    math::sigmoid(x)
}

/// `x` as shares `e^x / Σ e^x`.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    x.iter_mut().for_each(|x| *x = math::exp(*x - max));
    let sum = sum(x);
    x.iter_mut().for_each(|x| *x /= sum);
}

/// `Σ x * y`.
#[must_use]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    scalar::dot(x, y, &mut lanes);
    math::sum(lanes)
}

fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x;
        }
    }
    math::sum(lanes)
}

fn square_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    scalar::dot(x, x, &mut lanes);
    math::sum(lanes)
}
