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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// Lengths of rows around that of the lanes.
    const LENGTHS: [usize; 6] = [1, 3, LANES - 1, LANES, LANES + 1, 5 * LANES + 3];
    const EPS: f32 = 1e-5;

    fn row(rng: &mut Rng, n: usize, within: f32) -> Vec<f32> {
        (0..n).map(|_| (2.0 * rng.next_f32() - 1.0) * within).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    fn near(what: &str, y: &[f32], exact: &[f64]) {
        assert_eq!(y.len(), exact.len(), "{what}");
        for (y, exact) in y.iter().zip(exact) {
            assert!((f64::from(*y) - exact).abs() < 4e-6 * (1.0 + exact.abs()), "{what}: {y} for {exact}");
        }
    }

    fn sigmoid_of(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn gelu_of(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
    }

    #[test]
    fn elements_are_those_of_their_definitions() {
        type Op = fn(&mut [f32], &[f32]);
        type Definition = fn(f64, f64) -> f64;
        let all: [(&str, Op, Definition); 9] = [
            ("gelu", |x, _| gelu(x), |x, _| gelu_of(x)),
            ("geglu", geglu, |x, u| gelu_of(x) * u),
            ("silu", |x, _| silu(x), |x, _| x * sigmoid_of(x)),
            ("mul_silu", mul_silu, |x, g| x * g * sigmoid_of(g)),
            ("gate", gate, |x, g| x * sigmoid_of(g)),
            ("clamped_swiglu", clamped_swiglu, |x, u| {
                let g = x.min(7.0);
                g * sigmoid_of(1.702 * g) * (u.clamp(-7.0, 7.0) + 1.0)
            }),
            ("soft_cap", |x, _| soft_cap(x, 3.0), |x, _| 3.0 * (x / 3.0).tanh()),
            ("tanh", |x, _| tanh(x), |x, _| x.tanh()),
            ("add_scaled", |x, y| add_scaled(x, -0.5, y), |x, y| x - 0.5 * y),
        ];
        let mut rng = Rng::new(1);
        for n in LENGTHS {
            // Beyond the bounds of what is clamped.
            let (x, other) = (row(&mut rng, n, 10.0), row(&mut rng, n, 10.0));
            for (what, op, definition) in all {
                let mut y = x.clone();
                op(&mut y, &other);
                let exact = wide(&x).into_iter().zip(wide(&other)).map(|(x, u)| definition(x, u));
                near(what, &y, &exact.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn rows_are_normed_by_all_of_them() {
        let mut rng = Rng::new(2);
        for n in LENGTHS {
            let [x, weight, bias] = [4.0, 2.0, 2.0].map(|within| row(&mut rng, n, within));
            let (x64, w64, b64) = (wide(&x), wide(&weight), wide(&bias));
            let len = n as f64;
            let mean = x64.iter().sum::<f64>() / len;
            let variance = x64.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len;
            let squares = x64.iter().map(|x| x * x).sum::<f64>();
            let eps = f64::from(EPS);

            let mut y = vec![0.0; n];
            layer_norm(&x, &weight, &bias, EPS, &mut y);
            let exact = (0..n).map(|i| (x64[i] - mean) / (variance + eps).sqrt() * w64[i] + b64[i]);
            near("layer_norm", &y, &exact.collect::<Vec<_>>());

            y.copy_from_slice(&x);
            rms_norm_in_place(&mut y, &weight, EPS);
            let exact = x64.iter().zip(&w64).map(|(x, w)| x * w / (squares / len + eps).sqrt());
            near("rms_norm_in_place", &y, &exact.collect::<Vec<_>>());

            y.copy_from_slice(&x);
            l2_norm(&mut y, EPS, 0.5);
            let exact = x64.iter().map(|x| 0.5 * x / (squares + eps).sqrt());
            near("l2_norm", &y, &exact.collect::<Vec<_>>());

            y.copy_from_slice(&x);
            above(&mut y, 0.5);
            let exact = x64.iter().map(|x| (x - (mean + 0.5 * variance.sqrt())).max(0.0));
            near("above", &y, &exact.collect::<Vec<_>>());

            y.copy_from_slice(&x);
            softmax(&mut y);
            let total = x64.iter().map(|x| x.exp()).sum::<f64>();
            near("softmax", &y, &x64.iter().map(|x| x.exp() / total).collect::<Vec<_>>());

            near("root_mean_square", &[root_mean_square(&x)], &[(squares / len).sqrt()]);
            near("dot", &[dot(&x, &weight)], &[x64.iter().zip(&w64).map(|(x, w)| x * w).sum()]);
        }
        // Neither overflows.
        let mut far = [1000.0, -1000.0, 1000.0];
        softmax(&mut far);
        near("softmax", &far, &[0.5, 0.0, 0.5]);
    }

    /// Token by token as over the whole sequence at once.
    #[test]
    fn a_convolution_sees_what_came_before() {
        let mut rng = Rng::new(3);
        let n_tokens = 7;
        for (len, n) in [(1, 3), (2, 1), (4, 5)] {
            let (weight, bias) = (row(&mut rng, len * n, 1.0), row(&mut rng, n, 1.0));
            let x = row(&mut rng, n_tokens * n, 1.0);
            let mut state = vec![0.0; (len - 1) * n];
            for (t, token) in x.chunks_exact(n).enumerate() {
                let mut y = token.to_vec();
                convolve(&mut y, &weight, Some(&bias), &mut state);
                let of = |c: usize| {
                    let past = (0..len).filter(|j| t + j + 1 >= len);
                    let terms =
                        past.map(|j| f64::from(weight[j * n + c]) * f64::from(x[(t + j + 1 - len) * n + c]));
                    f64::from(bias[c]) + terms.sum::<f64>()
                };
                near("convolve", &y, &(0..n).map(of).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn states_step_as_their_papers_say() {
        let mut rng = Rng::new(4);
        for (n_k, n_v) in [(1, 1), (3, 5), (LANES + 1, LANES)] {
            let (q, k, v) = (row(&mut rng, n_k, 1.0), row(&mut rng, n_k, 1.0), row(&mut rng, n_v, 1.0));
            let before = row(&mut rng, n_k * n_v, 1.0);
            let (mut state, mut y) = (before.clone(), vec![9.0; n_v]);
            delta_step(&mut state, &q, &k, &v, 0.75, 0.5, &mut y);
            let (q, k, v) = (wide(&q), wide(&k), wide(&v));
            let mut exact: Vec<f64> = wide(&before).iter().map(|s| 0.75 * s).collect();
            for j in 0..n_v {
                let known: f64 = (0..n_k).map(|i| k[i] * exact[i * n_v + j]).sum();
                (0..n_k).for_each(|i| exact[i * n_v + j] += k[i] * 0.5 * (v[j] - known));
            }
            let read = (0..n_v).map(|j| (0..n_k).map(|i| q[i] * exact[i * n_v + j]).sum());
            near("y of a delta step", &y, &read.collect::<Vec<f64>>());
            near("state of a delta step", &state, &exact);
        }
        for (width, n_state) in [(1, 1), (3, LANES + 1), (LANES, 4)] {
            let x = row(&mut rng, width, 1.0);
            let (b, c) = (row(&mut rng, n_state, 1.0), row(&mut rng, n_state, 1.0));
            let before = row(&mut rng, width * n_state, 1.0);
            let (mut state, mut y) = (before.clone(), vec![9.0; width]);
            scan_step(&mut state, &x, (&b, &c), 0.75, 0.5, 2.0, &mut y);
            let (x, b, c, before) = (wide(&x), wide(&b), wide(&c), wide(&before));
            let at = |i: usize, j: usize| 0.75 * before[i * n_state + j] + 0.5 * x[i] * b[j];
            let exact: Vec<f64> = (0..width * n_state).map(|of| at(of / n_state, of % n_state)).collect();
            let read = (0..width).map(|i| (0..n_state).map(|j| at(i, j) * c[j]).sum::<f64>() + 2.0 * x[i]);
            near("y of a scan step", &y, &read.collect::<Vec<_>>());
            near("state of a scan step", &state, &exact);
        }
        for x in [-30.0_f32, -1.0, 0.0, 2.0, 30.0] {
            let dt = f64::from(x).exp().ln_1p();
            let (by, step) = decay(-0.5, x);
            near("decay", &[by, step, sigmoid(x)], &[(-0.5 * dt).exp(), dt, sigmoid_of(f64::from(x))]);
        }
    }
}
