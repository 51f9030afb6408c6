//! What Gemma 3n and 4 add around their layers: embeddings of a token for each layer, and in 3n four residual streams of
//! which one goes through a layer (Baykal et al., "Alternating Updates for Efficient Transformers", 2023; the reference
//! implementation in transformers).

use super::attention::norm_in_place;
use super::decoder::Step;
use super::layer::{AltUp, AltUpEnds, N_STREAM, PerLayer, PerLayerEmbd};
use super::scratch::Scratch;
use crate::base::Token;
use crate::kernel::ops;

/// The stream that goes through the layers.
const ACTIVE: usize = 0;
/// Least mean square of a stream that is brought to the size of another.
const LEAST: f32 = 1e-5;

/// `s.per_layer = (norm(W · x / sqrt(n_embd)) + embedding * sqrt(width)) / sqrt(2)`, a stretch for each layer.
pub(super) fn per_layer_embeddings(
    step: &Step<'_>,
    s: &mut Scratch,
    p: &PerLayerEmbd,
    tokens: impl Iterator<Item = Token>,
) {
    let (n, h) = (step.n, step.model.hyper());
    let (e, all, eps) = (h.n_embd, p.model_proj.n_rows(), h.norm_eps);
    let out = &mut s.per_layer[..n * all];
    step.multiply(step.coded(&s.x[..n * e], e, &mut s.q8), &mut [step.product(&p.model_proj, out)]);
    let (own, kernels) = (step.model.weights(&p.token_embd), step.pool.kernels());
    let (shrink, grow) = (1.0 / (e as f32).sqrt(), (p.width as f32).sqrt());
    for (row, token) in out.chunks_exact_mut(all).zip(tokens) {
        for (i, part) in row.chunks_exact_mut(p.width).enumerate() {
            part.iter_mut().for_each(|x| *x *= shrink);
            norm_in_place(kernels, part, &p.proj_norm.weight, eps);
            own.unpack_part(token.index(), i * p.width, &mut s.per_layer_gate[..p.width]);
            for (x, y) in part.iter_mut().zip(&s.per_layer_gate) {
                *x = (*x + y * grow) * std::f32::consts::FRAC_1_SQRT_2;
            }
        }
    }
}

/// The four streams of the embeddings in `s.x`.
pub(super) fn begin(step: &Step<'_>, s: &mut Scratch, ends: &AltUpEnds) {
    let (e, len) = (step.model.hyper().n_embd, step.n * step.model.hyper().n_embd);
    s.streams[..len].copy_from_slice(&s.x[..len]);
    for (i, proj) in ends.proj.iter().enumerate() {
        let stream = &mut s.streams[(i + 1) * len..(i + 2) * len];
        step.multiply(step.coded(&s.x[..len], e, &mut s.q8), &mut [step.product(proj, stream)]);
        as_large_as(stream, &s.x[..len], e);
    }
}

/// The mean of the streams, projected back, in `s.x`.
pub(super) fn end(step: &Step<'_>, s: &mut Scratch, ends: &AltUpEnds) {
    let (e, len) = (step.model.hyper().n_embd, step.n * step.model.hyper().n_embd);
    s.x[..len].copy_from_slice(&s.streams[..len]);
    for (i, proj) in ends.unembd.iter().enumerate() {
        let stream = &s.streams[(i + 1) * len..(i + 2) * len];
        step.multiply(step.coded(stream, e, &mut s.q8), &mut [step.product(proj, &mut s.out[..len])]);
        as_large_as(&mut s.out[..len], &s.streams[..len], e);
        ops::add_scaled(&mut s.x[..len], 1.0, &s.out[..len]);
    }
    s.x[..len].iter_mut().for_each(|x| *x /= N_STREAM as f32);
}

/// Brings each row to the root mean square of the other's.
fn as_large_as(rows: &mut [f32], other: &[f32], width: usize) {
    for (row, other) in rows.chunks_exact_mut(width).zip(other.chunks_exact(width)) {
        let by = ops::root_mean_square(other) / ops::root_mean_square(row).max(LEAST.sqrt());
        row.iter_mut().for_each(|x| *x *= by);
    }
}

/// How much the router makes of `x`, `tanh(router · norm(x) / n_embd)`.
fn route(step: &Step<'_>, a: &AltUp, x: &[f32], buf: &mut [f32]) -> [f32; N_STREAM] {
    let (kernels, eps) = (step.pool.kernels(), step.model.hyper().norm_eps);
    kernels.rms_norm(x, &a.router_norm.weight, eps, buf);
    let mut out = [0.0; N_STREAM];
    for (y, w) in out.iter_mut().zip(a.router.chunks_exact(x.len())) {
        *y = ops::dot(w, buf) / x.len() as f32;
    }
    ops::tanh(&mut out);
    out
}

/// `s.predicted`: each stream with what the others say of it; `s.x` the active one.
pub(super) fn predict(step: &Step<'_>, s: &mut Scratch, a: &AltUp) {
    let (n, e) = (step.n, step.model.hyper().n_embd);
    let len = n * e;
    let streams = &s.streams[..N_STREAM * len];
    for t in 0..n {
        let of = |i: usize| i * len + t * e..i * len + (t + 1) * e;
        let modes = route(step, a, &streams[of(ACTIVE)], &mut s.norm[..e]);
        for k in 0..N_STREAM {
            let y = &mut s.predicted[of(k)];
            y.copy_from_slice(&streams[of(k)]);
            for i in 0..N_STREAM {
                let weights = &a.predict[(k * N_STREAM + i) * N_STREAM..][..N_STREAM];
                ops::add_scaled(y, ops::dot(weights, &modes), &streams[of(i)]);
            }
        }
    }
    s.x[..len].copy_from_slice(&s.predicted[ACTIVE * len..(ACTIVE + 1) * len]);
}

/// `s.laurel.1 = x + norm(R · L · x)` of the layer's normed input.
pub(super) fn detour(step: &Step<'_>, s: &mut Scratch, a: &AltUp) {
    let (n, h) = (step.n, step.model.hyper());
    let (e, rank, kernels) = (h.n_embd, a.laurel_l.n_rows(), step.pool.kernels());
    let x = &s.norm[..n * e];
    let (low, out) = (&mut s.laurel.0[..n * rank], &mut s.laurel.1[..n * e]);
    step.multiply(step.normed(&s.norm, &s.norm_q8), &mut [step.product(&a.laurel_l, low)]);
    step.multiply(step.coded(low, rank, &mut s.q8), &mut [step.product(&a.laurel_r, out)]);
    for (row, x) in out.chunks_exact_mut(e).zip(x.chunks_exact(e)) {
        norm_in_place(kernels, row, &a.laurel_post_norm.weight, h.norm_eps);
        ops::add_scaled(row, 1.0, x);
    }
}

/// `s.x = (s.x + detour) / sqrt(2)`.
pub(super) fn join_detour(step: &Step<'_>, s: &mut Scratch) {
    let len = step.n * step.model.hyper().n_embd;
    for (x, y) in s.x[..len].iter_mut().zip(&s.laurel.1) {
        *x = (*x + y) * std::f32::consts::FRAC_1_SQRT_2;
    }
}

/// The streams after the layer whose active stream came out as `s.x`; the others take in the token's embedding for
/// this layer.
pub(super) fn correct(step: &Step<'_>, s: &mut Scratch, a: &AltUp, own: Option<(usize, &PerLayer)>) {
    let (n, e) = (step.n, step.model.hyper().n_embd);
    let len = n * e;
    for t in 0..n {
        let of = |i: usize| i * len + t * e..i * len + (t + 1) * e;
        let x = &s.x[t * e..(t + 1) * e];
        let modes = route(step, a, x, &mut s.norm[..e]);
        let new = &mut s.out[..e];
        for ((y, x), p) in new.iter_mut().zip(x).zip(&s.predicted[of(ACTIVE)]) {
            *y = x - p;
        }
        for i in 0..N_STREAM {
            let by = ops::dot(&a.correct[i * N_STREAM..(i + 1) * N_STREAM], &modes) + 1.0;
            let y = &mut s.streams[of(i)];
            y.copy_from_slice(&s.predicted[of(i)]);
            ops::add_scaled(y, by, new);
        }
    }
    let Some((index, p)) = own else { return };
    for (x, y) in s.x[..len].chunks_exact_mut(e).zip(s.streams[..len].chunks_exact(e)) {
        for ((x, y), w) in x.iter_mut().zip(y).zip(&a.correct_scale) {
            *x = y * w;
        }
    }
    gate_per_layer(step, s, index, p);
    for i in (0..N_STREAM).filter(|i| *i != ACTIVE) {
        ops::add_scaled(&mut s.streams[i * len..(i + 1) * len], 1.0, &s.norm[..len]);
    }
}

/// `s.norm = norm(W · (gelu(gate · s.x) * own))` with the tokens' embeddings for layer `index`.
pub(super) fn gate_per_layer(step: &Step<'_>, s: &mut Scratch, index: usize, p: &PerLayer) {
    let (n, e, width) = (step.n, step.model.hyper().n_embd, p.gate.n_rows());
    let all = step.model.hyper().n_layer * width;
    let gate = &mut s.per_layer_gate[..n * width];
    step.multiply(step.coded(&s.x[..n * e], e, &mut s.q8), &mut [step.product(&p.gate, gate)]);
    for (row, own) in gate.chunks_exact_mut(width).zip(s.per_layer.chunks_exact(all)) {
        ops::geglu(row, &own[index * width..(index + 1) * width]);
    }
    step.multiply(step.coded(gate, width, &mut s.q8), &mut [step.product(&p.proj, &mut s.out[..n * e])]);
    step.norm(&s.out[..n * e], &p.post_norm, &mut s.norm[..n * e]);
}
