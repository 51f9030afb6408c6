//! What follows the mixer of a layer: one network, or the chosen ones of many.

use super::arch::{Act, Router};
use super::decoder::{Part, Step, Stopped};
use super::layer::{Dense, Experts, FeedForward, Norm};
use super::load::Scales;
use super::profile::Op;
use super::scratch::Scratch;
use crate::base::limits::N_EXPERT_MAX;
use crate::kernel::{Input, Output, Product, Q8Acts, ops};

/// `ffn(s.norm)`: says whether it was added to the stream, where `norm` does not follow; else it is in `s.out`.
pub(super) fn run(
    step: &Step<'_>,
    s: &mut Scratch,
    ffn: &FeedForward,
    norm: Option<&Norm>,
    go_on: &mut dyn FnMut(Part) -> bool,
) -> Result<bool, Stopped> {
    let len = step.n * step.model.hyper().n_embd;
    match ffn {
        FeedForward::Dense(d) => {
            let bufs = Buffers { gate: &mut s.gate, up: &mut s.up, q8: &mut s.gate_q8 };
            let down = step.last_product(&d.down, norm, &mut s.x[..len], &mut s.out[..len]);
            let added = down.epilogue.add;
            dense(step, d, step.normed(&s.norm, &s.norm_q8), down, bufs, go_on).map(|()| added)
        }
        FeedForward::Experts(x) => experts(step, s, x, go_on).map(|()| false),
    }
}

/// What gates let through.
struct Buffers<'a> {
    /// `[n, n_ff]`.
    gate: &'a mut [f32],
    /// `[n, n_ff]`, where it is not made together with the gate.
    up: &'a mut [f32],
    q8: &'a mut Q8Acts,
}

/// `down · (act(gate · x) * (up · x))` for the rows of an input, where `down` says.
fn dense(
    step: &Step<'_>,
    d: &Dense,
    input: Input<'_>,
    down: Product<'_>,
    Buffers { gate, up, q8 }: Buffers<'_>,
    go_on: &mut dyn FnMut(Part) -> bool,
) -> Result<(), Stopped> {
    let (n, n_ff) = (input.n_tokens(), d.up.n_rows());
    let (gate, act) = (&mut gate[..n * n_ff], step.model.arch().act);
    let mut coded = false;
    match (&d.gate, d.sparse) {
        (Some(w), None) => {
            coded = step.reads_codes(&d.down);
            let y = if coded { Output::Codes(&mut *q8) } else { Output::Floats(&mut *gate) };
            step.multiply(input, &mut [step.gated(w, &d.up, y)]);
            step.mark(Op::GateUp);
        }
        // What a gate lets through depends on all of them.
        (Some(w), Some(by)) => {
            let up = &mut up[..n * n_ff];
            step.multiply(input, &mut [step.product(w, gate), step.product(&d.up, up)]);
            step.mark(Op::GateUp);
            let (kernels, up) = (step.pool.kernels(), &*up);
            step.pool.for_each_row(gate, n_ff, &|t, row| {
                ops::above(row, by);
                kernels.gate(act, row, &up[t * n_ff..(t + 1) * n_ff]);
            });
        }
        (None, _) => {
            step.multiply(input, &mut [step.product(&d.up, gate)]);
            step.mark(Op::GateUp);
            step.pool.for_each_row(gate, n_ff, &|_, row| match act {
                Act::Gelu => ops::gelu(row),
                Act::Silu | Act::ClampedSilu => ops::silu(row),
            });
        }
    }
    step.mark(Op::Act);
    if !go_on(Part::Down) {
        return Err(Stopped);
    }
    let input = match coded {
        true => Input { x: &[], n_cols: n_ff, q8: Some(&*q8) },
        false => step.coded(gate, n_ff, q8),
    };
    step.multiply(input, &mut [down]);
    step.mark(Op::Down);
    Ok(())
}

/// The chosen experts of each token, one expert after the other over all tokens that chose it: a token's sum has one
/// order, whatever batch it is in.
fn experts(
    step: &Step<'_>,
    s: &mut Scratch,
    x: &Experts,
    go_on: &mut dyn FnMut(Part) -> bool,
) -> Result<(), Stopped> {
    let (n, e, n_expert) = (step.n, step.model.hyper().n_embd, x.experts.len());
    let (input, shares) = (step.normed(&s.norm, &s.norm_q8), &mut s.shares[..n * n_expert]);
    step.multiply(input, &mut [step.product(&x.router, shares)]);
    let (router, scales) = (step.model.arch().router, step.model.scales());
    step.pool.for_each_row(shares, n_expert, &|_, row| choose(row, x, router, scales));

    let out = &mut s.out[..n * e];
    match &x.shared {
        None => out.fill(0.0),
        Some(shared) => {
            let down = step.product(&shared.down, &mut *out);
            let bufs = Buffers { gate: &mut s.gate, up: &mut s.up, q8: &mut s.gate_q8 };
            dense(step, shared, input, down, bufs, go_on)?;
            if let Some(gate) = &x.shared_gate {
                let how_much = &mut s.expert_in[..n];
                step.multiply(input, &mut [step.product(gate, how_much)]);
                for (row, g) in out.chunks_exact_mut(e).zip(&*how_much) {
                    let g = ops::sigmoid(*g);
                    row.iter_mut().for_each(|x| *x *= g);
                }
            }
        }
    }
    for (i, expert) in x.experts.iter().enumerate() {
        let weight = |t: usize| shares[t * n_expert + i];
        s.expert_tokens.clear();
        s.expert_tokens.extend((0..n).filter(|t| weight(*t) != 0.0));
        let tokens = &s.expert_tokens;
        if tokens.is_empty() {
            continue;
        }
        let (xs, ys) = (&mut s.expert_in[..tokens.len() * e], &mut s.expert_out[..tokens.len() * e]);
        for (row, t) in xs.chunks_exact_mut(e).zip(tokens) {
            row.copy_from_slice(&input.x[t * e..(t + 1) * e]);
        }
        let down = step.product(&expert.down, &mut *ys);
        let bufs = Buffers { gate: &mut s.gate, up: &mut s.up, q8: &mut s.gate_q8 };
        dense(step, expert, step.coded(xs, e, &mut s.q8), down, bufs, go_on)?;
        for (row, t) in ys.chunks_exact(e).zip(tokens) {
            ops::add_scaled(&mut out[t * e..(t + 1) * e], weight(*t), row);
        }
    }
    Ok(())
}

/// Turns a token's router logits into the weights of the chosen experts, 0 for the others.
fn choose(row: &mut [f32], x: &Experts, router: Router, scales: &Scales) {
    match router {
        Router::Sigmoid => row.iter_mut().for_each(|x| *x = ops::sigmoid(*x)),
        Router::Softmax => ops::softmax(row),
    }
    let rank = |row: &[f32], i: usize| row[i] + x.choice_bias.as_ref().map_or(0.0, |b| b[i]);
    let mut chosen = [false; N_EXPERT_MAX];
    for _ in 0..x.n_used {
        // Of equals the first.
        let left = (0..row.len()).filter(|&i| !chosen[i]);
        let best = left.reduce(|best, i| if rank(row, i) > rank(row, best) { i } else { best });
        best.into_iter().for_each(|i| chosen[i] = true);
    }
    let sum: f32 = row.iter().zip(&chosen).filter(|(_, c)| **c).map(|(x, _)| x).sum();
    // The models' own guard against a sum of nothing; all shares of a softmax may be tiny, but the chosen are not.
    let sum = if router == Router::Sigmoid { sum + 1e-6 } else { sum };
    let by = scales.experts / if scales.experts_sum_to_one { sum } else { 1.0 };
    for (x, c) in row.iter_mut().zip(&chosen) {
        *x = if *c { *x * by } else { 0.0 };
    }
}
