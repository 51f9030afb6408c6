//! Attention of a layer: queries, keys and values, their norms and turns, the cache.

use super::decoder::{Feed, Step};
use super::layer::Attention;
use super::profile::Op;
use super::scratch::Scratch;
use crate::base::limits::{HEAD_DIM_MAX, N_FEED_MAX};
use crate::kernel::{self, Kernels, Scores, ops};

use super::arch::QkNorm;

/// `s.attn = attention(s.norm)`, the tokens' keys and values stored on the way.
pub(super) fn mix(step: &Step<'_>, s: &mut Scratch, feeds: &mut [Feed<'_>], a: &Attention) {
    let (n, h, model) = (step.n, step.model.hyper(), step.model);
    let (n_q, n_kv) = (a.n_head * a.head_dim, a.n_head_kv * a.head_dim);
    let arch = model.arch();
    let x = &s.norm[..n * h.n_embd];
    let (q, k, v) = (&mut s.q[..n * n_q], &mut s.k[..n * n_kv], &mut s.v[..n * n_kv]);
    // With gates the product brings twice as much, which is taken apart below.
    let q_rows = if arch.q_gate { &mut s.proj[..2 * n * n_q] } else { &mut *q };
    match &a.kv {
        Some((wk, wv)) => step.multiply(
            x,
            h.n_embd,
            &mut s.q8,
            &mut [step.product(&a.q, q_rows), step.product(wk, k), step.product(wv, v)],
        ),
        None => step.multiply(x, h.n_embd, &mut s.q8, &mut [step.product(&a.q, q_rows)]),
    }
    step.mark(Op::Qkv);
    if arch.q_gate {
        let (d, z) = (a.head_dim, &mut s.z[..n * n_q]);
        let heads = s.proj[..2 * n * n_q].chunks_exact(2 * d);
        for ((head, q), z) in heads.zip(q.chunks_exact_mut(d)).zip(z.chunks_exact_mut(d)) {
            q.copy_from_slice(&head[..d]);
            z.copy_from_slice(&head[d..]);
        }
    }
    let norms = |step: &Step<'_>, q: &mut [f32], k: &mut [f32]| {
        norm_heads(step, q, a.q_norm.as_deref());
        if a.kv.is_some() {
            norm_heads(step, k, a.k_norm.as_deref());
        }
    };
    if arch.qk_norm != QkNorm::HeadAfterRope {
        norms(step, q, k);
    }
    if let Some(table) = a.angles {
        step.turn(&s.cos, &s.sin, table, q, a.head_dim);
        if a.kv.is_some() {
            step.turn(&s.cos, &s.sin, table, k, a.head_dim);
        }
    }
    if arch.qk_norm == QkNorm::HeadAfterRope {
        norms(step, q, k);
    }
    if let Some((beta, n_ctx_orig)) = model.scales().temperature {
        for span in step.spans {
            for (t, row) in q[span.of(n_q)].chunks_exact_mut(n_q).enumerate() {
                let by = 1.0 + beta * ((1 + (span.pos + t) / n_ctx_orig) as f32).ln();
                row.iter_mut().for_each(|x| *x *= by);
            }
        }
    }
    if a.kv.is_some() {
        norm_heads(step, v, a.v_norm.as_deref());
        for (feed, span) in feeds.iter_mut().zip(step.spans) {
            let rows = k[span.of(n_kv)].chunks_exact(n_kv).zip(v[span.of(n_kv)].chunks_exact(n_kv));
            for (t, (k, v)) in rows.enumerate() {
                feed.kv.store(step.pool.kernels(), a.cache, span.pos + t, k, v);
            }
        }
    }
    step.mark(Op::Heads);
    let attn = &mut s.attn[..n * n_q];
    let of = |i: usize| kernel::Attention {
        q: &q[step.spans[i].of(n_q)],
        cache: feeds[i].kv.cache(a.cache),
        n_head: a.n_head,
        pos: step.spans[i].pos,
        window: a.window,
        scores: Scores { scale: a.scale, cap: model.scales().attn_cap },
        sinks: a.sinks.as_deref(),
    };
    let mut sequences = [of(0); N_FEED_MAX];
    sequences.iter_mut().enumerate().take(feeds.len()).for_each(|(i, a)| *a = of(i));
    step.pool.attention(&sequences[..feeds.len()], &mut s.attn_room, attn);
    if arch.q_gate {
        let z = &s.z[..n * n_q];
        step.pool.for_each_row(attn, n_q, &|t, row| ops::gate(row, &z[t * n_q..(t + 1) * n_q]));
    }
}

/// Norms stretches of `rows` as long as `weight`, in place: heads, or all heads of a token.
fn norm_heads(step: &Step<'_>, rows: &mut [f32], weight: Option<&[f32]>) {
    let Some(weight) = weight else { return };
    let (kernels, eps) = (step.pool.kernels(), step.model.hyper().norm_eps);
    step.pool.for_each_row(rows, rows.len() / step.n, &|_, row| {
        for part in row.chunks_exact_mut(weight.len()) {
            norm_in_place(kernels, part, weight, eps);
        }
    });
}

/// `x = x * weight / sqrt(mean(x²) + eps)`.
pub(super) fn norm_in_place(kernels: &Kernels, x: &mut [f32], weight: &[f32], eps: f32) {
    if x.len() > HEAD_DIM_MAX {
        return ops::rms_norm_in_place(x, weight, eps);
    }
    let mut y = [0.0; HEAD_DIM_MAX];
    let y = &mut y[..x.len()];
    kernels.rms_norm(x, weight, eps, y);
    x.copy_from_slice(y);
}
