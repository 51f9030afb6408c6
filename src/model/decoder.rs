//! The forward pass, the only one. It branches on the architecture per layer, never per element.

use super::arch::Rope;
use super::kv::Kv;
use super::load::{Layer, Linear, Model};
use super::scratch::Scratch;
use super::{Acts, ModelError, Precision};
use crate::base::Token;
use crate::kernel::{Attention, Epilogue, Input, Pool, Product, Weights};

/// Which logits a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the step only fills the cache.
    None,
    /// Those after the last token.
    Last,
    /// Those after each token.
    All,
}

/// A part of a layer that is about to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Attention: the layer's first part.
    Attention,
    /// The products of the feed-forward with gate and up.
    FeedForward,
    /// Its product with down.
    Down,
}

/// A step was stopped between two parts of a layer. Its positions hold nothing; the cache is as before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// The buffers that a model needs to run, and how exactly it does.
pub struct Decoder {
    scratch: Scratch,
    precision: Precision,
    n_tokens_max: usize,
    n_logit_rows: usize,
}

impl Decoder {
    /// Buffers for steps of at most `n_tokens_max` tokens and the logits of at most `n_logit_rows` of them.
    #[must_use]
    pub fn new(model: &Model, precision: Precision, n_tokens_max: usize, n_logit_rows: usize) -> Self {
        let scratch = Scratch::new(model.hyper(), n_tokens_max, n_logit_rows);
        Self { scratch, precision, n_tokens_max, n_logit_rows }
    }

    /// A cache of `n_ctx` positions for `model`, in this decoder's precision.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn kv(&self, model: &Model, n_ctx: usize) -> Result<Kv, ModelError> {
        let h = model.hyper();
        Kv::new(self.precision.kv, h.n_layer, n_ctx, h.n_head_kv, h.head_dim)
    }

    /// Bytes of a decoder with these sizes, without its cache.
    #[must_use]
    pub fn bytes(model: &Model, n_tokens_max: usize, n_logit_rows: usize) -> u64 {
        Scratch::bytes(model.hyper(), n_tokens_max, n_logit_rows)
    }

    /// Runs `tokens` at the positions after those in `kv` and returns the wanted logits,
    /// `[1 or n_tokens, n_vocab]`. `go_on` is asked before each part of each layer; false stops the step.
    ///
    /// A token's logits have the same bits however the sequence was cut into steps and whatever the number of
    /// threads.
    ///
    /// # Errors
    /// [`Stopped`] when `go_on` said so.
    ///
    /// # Panics
    /// If there are no tokens, more than the buffers hold, more than `kv` has room for, or one that is not in the
    /// vocabulary.
    pub fn step(
        &mut self,
        model: &Model,
        pool: &Pool,
        kv: &mut Kv,
        tokens: &[Token],
        want: Want,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<&[f32], Stopped> {
        let (n, pos, h) = (tokens.len(), kv.len(), model.hyper());
        assert!(n > 0 && n <= self.n_tokens_max, "{n} tokens in a step of 1 to {}", self.n_tokens_max);
        assert!(pos + n <= kv.n_ctx(), "{n} tokens at {pos} in a cache of {}", kv.n_ctx());
        let s = &mut self.scratch;

        for (token, row) in tokens.iter().zip(s.x.chunks_exact_mut(h.n_embd)) {
            model.token_embd().unpack(token.index(), row);
        }
        let pairs = h.n_rot / 2;
        for t in 0..n {
            let at = t * pairs..(t + 1) * pairs;
            model.angles().at(pos + t, &mut s.cos[at.clone()], &mut s.sin[at]);
        }
        for (i, layer) in model.layers().iter().enumerate() {
            if !go_on(Part::Attention) {
                return Err(Stopped);
            }
            attention(s, self.precision, model, pool, kv, i, layer, pos, n);
            feed_forward(s, self.precision, model, pool, layer, n, go_on)?;
        }
        kv.advance(pos + n);

        let (first, rows) = match want {
            Want::None => return Ok(&[]),
            Want::Last => (n - 1, 1),
            Want::All => (0, n),
        };
        assert!(rows <= self.n_logit_rows, "logits of {rows} tokens, room for {}", self.n_logit_rows);
        let of = first * h.n_embd..(first + rows) * h.n_embd;
        norm(pool, &s.x[of], model.output_norm(), h.norm_eps, &mut s.norm[..rows * h.n_embd]);
        let logits = &mut s.logits[..rows * h.n_vocab];
        let product = Product {
            weights: Weights::Rows(model.output()),
            y: logits,
            epilogue: Epilogue { bias: model.output_bias(), add: false },
        };
        multiply(pool, self.precision, &s.norm[..rows * h.n_embd], h.n_embd, &mut s.q8, &mut [product]);
        Ok(&s.logits[..rows * h.n_vocab])
    }
}

/// `x += W_o · attention(norm(x))`, the tokens' keys and values stored on the way.
#[expect(clippy::too_many_arguments, reason = "the state of a step, handed down once")]
fn attention(
    s: &mut Scratch,
    precision: Precision,
    model: &Model,
    pool: &Pool,
    kv: &mut Kv,
    index: usize,
    layer: &Layer,
    pos: usize,
    n: usize,
) {
    let h = model.hyper();
    let (n_q, n_kv) = (h.n_head * h.head_dim, h.n_head_kv * h.head_dim);
    let (q, k, v) = (&mut s.q[..n * n_q], &mut s.k[..n * n_kv], &mut s.v[..n * n_kv]);
    norm(pool, &s.x[..n * h.n_embd], &layer.attn_norm, h.norm_eps, &mut s.norm[..n * h.n_embd]);
    multiply(
        pool,
        precision,
        &s.norm[..n * h.n_embd],
        h.n_embd,
        &mut s.q8,
        &mut [
            product(model, &layer.attn_q, q, false),
            product(model, &layer.attn_k, k, false),
            product(model, &layer.attn_v, v, false),
        ],
    );
    let kernels = pool.kernels();
    let pairs = h.n_rot / 2;
    let (cos, sin) = (&s.cos, &s.sin);
    let turn = |t: usize, row: &mut [f32]| {
        let (cos, sin) = (&cos[t * pairs..(t + 1) * pairs], &sin[t * pairs..(t + 1) * pairs]);
        for head in row.chunks_exact_mut(h.head_dim) {
            match model.arch().rope {
                Rope::Pairs => kernels.rope_pairs(head, cos, sin),
                Rope::Halves => kernels.rope_halves(head, cos, sin),
            }
        }
    };
    pool.for_each_row(q, n_q, &turn);
    pool.for_each_row(k, n_kv, &turn);
    for t in 0..n {
        let of = t * n_kv..(t + 1) * n_kv;
        kv.store(kernels, index, pos + t, &k[of.clone()], &v[of]);
    }
    let (keys, values) = kv.view(index);
    pool.attention(
        &Attention {
            q,
            k: keys,
            v: values,
            n_ctx: kv.n_ctx(),
            n_head: h.n_head,
            n_head_kv: h.n_head_kv,
            head_dim: h.head_dim,
            pos,
            scale: h.attn_scale,
        },
        &mut s.attn[..n * n_q],
    );
    let out = product(model, &layer.attn_output, &mut s.x[..n * h.n_embd], true);
    multiply(pool, precision, &s.attn[..n * n_q], n_q, &mut s.q8, &mut [out]);
}

/// `x += W_down · (silu(W_gate · norm(x)) * (W_up · norm(x)))`.
fn feed_forward(
    s: &mut Scratch,
    precision: Precision,
    model: &Model,
    pool: &Pool,
    layer: &Layer,
    n: usize,
    go_on: &mut dyn FnMut(Part) -> bool,
) -> Result<(), Stopped> {
    if !go_on(Part::FeedForward) {
        return Err(Stopped);
    }
    let h = model.hyper();
    let (gate, up) = (&mut s.gate[..n * h.n_ff], &mut s.up[..n * h.n_ff]);
    norm(pool, &s.x[..n * h.n_embd], &layer.ffn_norm, h.norm_eps, &mut s.norm[..n * h.n_embd]);
    multiply(
        pool,
        precision,
        &s.norm[..n * h.n_embd],
        h.n_embd,
        &mut s.q8,
        &mut [product(model, &layer.ffn_gate, gate, false), product(model, &layer.ffn_up, up, false)],
    );
    if !go_on(Part::Down) {
        return Err(Stopped);
    }
    let kernels = pool.kernels();
    pool.for_each_row(gate, h.n_ff, &|t, row| kernels.swiglu(row, &up[t * h.n_ff..(t + 1) * h.n_ff]));
    let down = product(model, &layer.ffn_down, &mut s.x[..n * h.n_embd], true);
    multiply(pool, precision, gate, h.n_ff, &mut s.q8, &mut [down]);
    Ok(())
}

/// `y = norm(x) * weight`, row by row.
fn norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let (kernels, n) = (pool.kernels(), weight.len());
    pool.for_each_row(y, n, &|t, row| kernels.rms_norm(&x[t * n..(t + 1) * n], weight, eps, row));
}

/// The product of `linear` into `y`, with its bias; onto `y` if `add`.
fn product<'a>(model: &'a Model, linear: &'a Linear, y: &'a mut [f32], add: bool) -> Product<'a> {
    Product {
        weights: Weights::Rows(model.rows(&linear.weight)),
        y,
        epilogue: Epilogue { bias: linear.bias.as_deref(), add },
    }
}

/// All `products` of one input `x` `[n_tokens, n_cols]`, whose codes are made once.
fn multiply(
    pool: &Pool,
    precision: Precision,
    x: &[f32],
    n_cols: usize,
    q8: &mut crate::kernel::Q8Acts,
    products: &mut [Product<'_>],
) {
    let takes_codes = |p: &Product<'_>| {
        let Weights::Rows(rows) = p.weights;
        pool.kernels().takes_codes(rows.quant())
    };
    let q8 = match precision.acts {
        Acts::Q8 if products.iter().any(takes_codes) => {
            pool.quantize(x, n_cols, q8);
            Some(&*q8)
        }
        _ => None,
    };
    pool.matmul(Input { x, n_cols, q8 }, products);
}
