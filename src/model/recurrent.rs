//! Layers that carry a state instead of keys and values. Tokens go through them one by one, so that a step may be cut
//! anywhere; the heads of a token are independent and shared among the threads.

use super::decoder::{Feed, Step};
use super::layer::{BetaAlpha, DeltaNet, Mamba2, ShortConv};
use super::profile::Op;
use super::scratch::Scratch;
use crate::kernel::ops;

/// `s.attn = c * conv(b * x)` with `(b, c, x) = W_in · s.norm`.
pub(super) fn short_conv(step: &Step<'_>, s: &mut Scratch, feeds: &mut [Feed<'_>], c: &ShortConv) {
    let (n, e) = (step.n, step.model.hyper().n_embd);
    let proj = &mut s.proj[..n * 3 * e];
    step.multiply(step.normed(&s.norm, &s.norm_q8), &mut [step.product(&c.input, proj)]);
    step.mark(Op::Qkv);
    let attn = &mut s.attn[..n * e];
    for (feed, span) in feeds.iter_mut().zip(step.spans) {
        let state = feed.kv.state(c.state);
        let rows = proj[span.of(3 * e)].chunks_exact_mut(3 * e);
        for (row, y) in rows.zip(attn[span.of(e)].chunks_exact_mut(e)) {
            let (b, rest) = row.split_at_mut(e);
            let (c_gate, x) = rest.split_at_mut(e);
            x.iter_mut().zip(&*b).for_each(|(x, b)| *x *= b);
            ops::convolve(x, &c.conv, c.conv_bias.as_deref(), &mut state.conv);
            for ((y, c), x) in y.iter_mut().zip(&*c_gate).zip(&*x) {
                *y = c * x;
            }
        }
    }
}

/// `s.attn = norm(scan(conv(x), B, C, dt) * silu(z))` with `(z, x, B, C, dt) = W_in · s.norm`.
pub(super) fn mamba2(step: &Step<'_>, s: &mut Scratch, feeds: &mut [Feed<'_>], m: &Mamba2) {
    let (n, eps) = (step.n, step.model.hyper().norm_eps);
    let (width, n_bc) = (m.input.n_rows(), m.n_group * m.n_state);
    let n_conv = m.n_inner + 2 * n_bc;
    let proj = &mut s.proj[..n * width];
    step.multiply(step.normed(&s.norm, &s.norm_q8), &mut [step.product(&m.input, proj)]);
    step.mark(Op::Qkv);
    let (head_dim, per_group) = (m.n_inner / m.n_head, m.n_inner / m.n_group);
    for (feed, span) in feeds.iter_mut().zip(step.spans) {
        let (n, state) = (span.n, feed.kv.state(m.state));
        let proj = &mut proj[span.of(width)];
        for row in proj.chunks_exact_mut(width) {
            let mixed = &mut row[m.n_inner..m.n_inner + n_conv];
            ops::convolve(mixed, &m.conv, m.conv_bias.as_deref(), &mut state.conv);
            ops::silu(mixed);
        }
        let proj = &*proj;
        // By heads, [n_head][n_tokens, head_dim]: each is written by one thread.
        let by_head = &mut s.z[..n * m.n_inner];
        step.pool.for_each_pair(m.n_head, &mut state.state, by_head, &|h, state, out| {
            let group = h / (m.n_head / m.n_group);
            for (row, y) in proj.chunks_exact(width).zip(out.chunks_exact_mut(head_dim)) {
                let mixed = &row[m.n_inner..];
                let x = &mixed[h * head_dim..(h + 1) * head_dim];
                let b = &mixed[m.n_inner + group * m.n_state..][..m.n_state];
                let c = &mixed[m.n_inner + n_bc + group * m.n_state..][..m.n_state];
                let (decay, dt) = ops::decay(m.a[h], mixed[n_conv + h] + m.dt_bias[h]);
                ops::scan_step(state, x, (b, c), decay, dt, m.d[h], y);
            }
        });
        let (by_head, attn) = (&*by_head, &mut s.attn[span.of(m.n_inner)]);
        step.pool.for_each_row(attn, m.n_inner, &|t, row| {
            for (h, y) in row.chunks_exact_mut(head_dim).enumerate() {
                y.copy_from_slice(&by_head[(h * n + t) * head_dim..][..head_dim]);
            }
            ops::mul_silu(row, &proj[t * width..t * width + m.n_inner]);
            for (y, w) in row.chunks_exact_mut(per_group).zip(m.norm.chunks_exact(per_group)) {
                ops::rms_norm_in_place(y, w, eps);
            }
        });
    }
}

/// Inside the root of the norm of queries and keys, which the models fix.
const L2_EPS: f32 = 1e-6;

/// `s.attn = norm(delta(q, k, v, beta, decay)) * silu(z)` with `(q, k, v) = silu(conv(W_qkv · s.norm))`.
pub(super) fn delta_net(step: &Step<'_>, s: &mut Scratch, feeds: &mut [Feed<'_>], d: &DeltaNet) {
    let (n, eps) = (step.n, step.model.hyper().norm_eps);
    let (n_k, n_v, dim_k, dim) = (d.n_head_k, d.n_head_v, d.dim_k, d.dim_v);
    let (width, n_inner) = (d.qkv.n_rows(), n_v * dim);
    let (proj, z) = (&mut s.proj[..n * width], &mut s.z[..n * n_inner]);
    let (betas, alphas) = s.steps[..2 * n * n_v].split_at_mut(n * n_v);
    match &d.beta_alpha {
        BetaAlpha::Split(beta, alpha) => {
            step.multiply(
                step.normed(&s.norm, &s.norm_q8),
                &mut [
                    step.product(&d.qkv, proj),
                    step.product(&d.z, z),
                    step.product(beta, betas),
                    step.product(alpha, alphas),
                ],
            );
        }
        BetaAlpha::Mixed(both) => {
            // Before they are needed, queries hold the mixed ones.
            let mixed = &mut s.attn[..2 * n * n_v];
            let products =
                &mut [step.product(&d.qkv, proj), step.product(&d.z, z), step.product(both, &mut *mixed)];
            step.multiply(step.normed(&s.norm, &s.norm_q8), products);
            let each = n_v / n_k;
            let split = betas.chunks_exact_mut(each).zip(alphas.chunks_exact_mut(each));
            for (mixed, (beta, alpha)) in mixed.chunks_exact(2 * each).zip(split) {
                beta.copy_from_slice(&mixed[..each]);
                alpha.copy_from_slice(&mixed[each..]);
            }
        }
    }
    step.mark(Op::Qkv);
    for (feed, span) in feeds.iter_mut().zip(step.spans) {
        let state = feed.kv.state(d.state);
        for row in proj[span.of(width)].chunks_exact_mut(width) {
            ops::convolve(row, &d.conv, None, &mut state.conv);
        }
    }
    let (root, n_keys) = (1.0 / (dim_k as f32).sqrt(), n_k * dim_k);
    step.pool.for_each_row(proj, width, &|_, row| {
        ops::silu(row);
        let (q, k) = row[..2 * n_keys].split_at_mut(n_keys);
        q.chunks_exact_mut(dim_k).for_each(|q| ops::l2_norm(q, L2_EPS, root));
        k.chunks_exact_mut(dim_k).for_each(|k| ops::l2_norm(k, L2_EPS, 1.0));
    });
    for (feed, span) in feeds.iter_mut().zip(step.spans) {
        let (n, state) = (span.n, feed.kv.state(d.state));
        let (proj, z) = (&proj[span.of(width)], &z[span.of(n_inner)]);
        let (betas, alphas) = (&betas[span.of(n_v)], &alphas[span.of(n_v)]);
        // By heads, [n_head_v][n_tokens, head_dim]: each is written by one thread.
        let by_head = &mut s.q[..n * n_inner];
        step.pool.for_each_pair(n_v, &mut state.state, by_head, &|h, state, out| {
            let key_head = if d.spread { h % n_k } else { h / (n_v / n_k) };
            for (t, (row, y)) in proj.chunks_exact(width).zip(out.chunks_exact_mut(dim)).enumerate() {
                let key = |from: usize| &row[from + key_head * dim_k..][..dim_k];
                let (q, k, v) = (key(0), key(n_keys), &row[2 * n_keys + h * dim..][..dim]);
                let (decay, _) = ops::decay(d.a[h], alphas[t * n_v + h] + d.dt_bias[h]);
                ops::delta_step(state, q, k, v, decay, ops::sigmoid(betas[t * n_v + h]), y);
            }
        });
        let (by_head, attn) = (&*by_head, &mut s.attn[span.of(n_inner)]);
        step.pool.for_each_row(attn, n_inner, &|t, row| {
            for (h, y) in row.chunks_exact_mut(dim).enumerate() {
                y.copy_from_slice(&by_head[(h * n + t) * dim..][..dim]);
                ops::rms_norm_in_place(y, &d.norm, eps);
            }
            ops::mul_silu(row, &z[t * n_inner..(t + 1) * n_inner]);
        });
    }
}
