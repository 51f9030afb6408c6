//! Attention of a layer: queries, keys and values, their norms and turns, the cache.

use super::decoder::{Feed, Step};
use super::layer::Attention;
use super::profile::Op;
use super::scratch::Scratch;
use crate::base::limits::{HEAD_DIM_MAX, N_FEED_MAX};
use crate::kernel::{self, Heads, Kernels, Scores, ops};

use super::arch::QkNorm;

/// `s.attn = attention(s.norm)`, the tokens' keys and values stored on the way.
pub(super) fn mix(step: &Step<'_>, s: &mut Scratch, feeds: &mut [Feed<'_>], a: &Attention) {
    let (n, model) = (step.n, step.model);
    let (n_q, n_kv) = (a.n_head * a.head_dim, a.n_head_kv * a.head_dim);
    let arch = model.arch();
    let input = step.normed(&s.norm, &s.norm_q8);
    let (q, k, v) = (&mut s.q[..n * n_q], &mut s.k[..n * n_kv], &mut s.v[..n * n_kv]);
    // With gates the product brings twice as much, which is taken apart below.
    let q_rows = if arch.q_gate { &mut s.proj[..2 * n * n_q] } else { &mut *q };
    match &a.kv {
        Some((wk, wv)) => {
            step.multiply(input, &mut [step.product(&a.q, q_rows), step.product(wk, k), step.product(wv, v)])
        }
        None => step.multiply(input, &mut [step.product(&a.q, q_rows)]),
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
    let (kernels, eps) = (step.pool.kernels(), model.hyper().norm_eps);
    let turns = a.angles.map(|table| step.turns(&s.cos, &s.sin, table));
    let turned = |t: usize, row: &mut [f32], norm: Option<&[f32]>| {
        let last = arch.qk_norm == QkNorm::HeadAfterRope;
        if !last {
            norm_heads(kernels, row, norm, eps);
        }
        if let Some(turns) = turns {
            turns.turn(t, row, a.head_dim);
        }
        if last {
            norm_heads(kernels, row, norm, eps);
        }
    };
    for (feed, span) in feeds.iter_mut().zip(step.spans) {
        let queries = |t: usize, row: &mut [f32]| {
            turned(span.first + t, row, a.q_norm.as_deref());
            if let Some((beta, n_ctx_orig)) = model.scales().temperature {
                let by = 1.0 + beta * ((1 + (span.pos + t) / n_ctx_orig) as f32).ln();
                row.iter_mut().for_each(|x| *x *= by);
            }
        };
        let (q, k, v) = (&mut q[span.of(n_q)], &mut k[span.of(n_kv)], &mut v[span.of(n_kv)]);
        match a.kv {
            Some(_) => {
                let blocks = feed.kv.blocks_mut(a.cache);
                step.pool.store_heads(Heads { q, k, v }, blocks, span.pos, &|t, Heads { q, k, v }| {
                    queries(t, q);
                    turned(span.first + t, k, a.k_norm.as_deref());
                    norm_heads(kernels, v, a.v_norm.as_deref(), eps);
                });
            }
            None => step.pool.for_each_row(q, n_q, &queries),
        }
    }
    step.mark(Op::Heads);
    let attn = &mut s.attn[..n * n_q];
    let of = |i: usize| kernel::Attention {
        q: &q[step.spans[i].of(n_q)],
        cache: feeds[i].kv.blocks(a.cache),
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

/// Norms stretches of `row` as long as `weight`, in place: heads, or all heads of a token.
fn norm_heads(kernels: &Kernels, row: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let Some(weight) = weight else { return };
    for part in row.chunks_exact_mut(weight.len()) {
        norm_in_place(kernels, part, weight, eps);
    }
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
