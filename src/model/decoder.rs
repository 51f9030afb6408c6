//! The forward pass, the only one. It branches on the architecture per layer, never per element.

use super::arch::Rope;
use super::kv::Kv;
use super::layer::{Layer, Linear, Mixer, Norm};
use super::load::Model;
use super::scratch::Scratch;
use super::{Acts, ModelError, Precision, altup, attention, feed_forward, recurrent};
use crate::base::Token;
use crate::kernel::{Epilogue, Input, Pool, Product, Q8Acts, ops};

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
    /// Attention, or what stands in for it: the layer's first part.
    Attention,
    /// The products of the feed-forward with gate and up.
    FeedForward,
    /// Its product with down; of a mixture, each expert.
    Down,
}

/// A step was stopped between two parts of a layer. Its positions hold nothing; the cache is as before the step, and
/// empty where the model has recurrent layers, whose states cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// The buffers that a model needs to run, and how exactly it does.
pub struct Decoder {
    scratch: Scratch,
    precision: Precision,
    n_tokens_max: usize,
    n_logit_rows: usize,
}

/// One step on its way through the layers.
pub(super) struct Step<'a> {
    pub model: &'a Model,
    pub pool: &'a Pool,
    pub precision: Precision,
    /// Position of the first token.
    pub pos: usize,
    /// Tokens.
    pub n: usize,
}

impl Decoder {
    /// Buffers for steps of at most `n_tokens_max` tokens and the logits of at most `n_logit_rows` of them.
    #[must_use]
    pub fn new(model: &Model, precision: Precision, n_tokens_max: usize, n_logit_rows: usize) -> Self {
        let scratch = Scratch::new(model, n_tokens_max, n_logit_rows);
        Self { scratch, precision, n_tokens_max, n_logit_rows }
    }

    /// A cache of `n_ctx` positions for `model`, in this decoder's precision.
    ///
    /// # Errors
    /// When the memory cannot be had, or the model has no positions for so many.
    pub fn kv(&self, model: &Model, n_ctx: usize) -> Result<Kv, ModelError> {
        match model.n_ctx_max() {
            Some(max) if max < n_ctx => Err(ModelError::Positions { asked: n_ctx, max }),
            _ => Kv::new(model.layout(), self.precision.kv, n_ctx, self.n_tokens_max),
        }
    }

    /// Bytes of a decoder with these sizes, without its cache.
    #[must_use]
    pub fn bytes(model: &Model, n_tokens_max: usize, n_logit_rows: usize) -> u64 {
        Scratch::bytes(model, n_tokens_max, n_logit_rows)
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
        let step = Step { model, pool, precision: self.precision, pos, n };

        step.embed(s, tokens, kv.n_ctx());
        for (i, layer) in model.layers().iter().enumerate() {
            if let Err(stopped) = step.layer(s, kv, i, layer, go_on) {
                kv.stopped();
                return Err(stopped);
            }
        }
        kv.advance(pos + n);

        let (first, rows) = match want {
            Want::None => return Ok(&[]),
            Want::Last => (n - 1, 1),
            Want::All => (0, n),
        };
        assert!(rows <= self.n_logit_rows, "logits of {rows} tokens, room for {}", self.n_logit_rows);
        if let Some(ends) = model.altup() {
            altup::end(&step, s, ends);
        }
        let of = first * h.n_embd..(first + rows) * h.n_embd;
        let logits = &mut s.logits[..rows * h.n_vocab];
        step.norm(&s.x[of], model.output_norm(), &mut s.norm[..rows * h.n_embd]);
        let product = Product {
            weights: model.output(),
            y: &mut *logits,
            epilogue: Epilogue { bias: model.output_bias(), add: false },
        };
        step.multiply(&s.norm[..rows * h.n_embd], h.n_embd, &mut s.q8, &mut [product]);
        let scales = model.scales();
        if scales.logits != 1.0 {
            logits.iter_mut().for_each(|x| *x *= scales.logits);
        }
        if scales.logit_cap > 0.0 {
            pool.for_each_row(logits, h.n_vocab, &|_, row| ops::soft_cap(row, scales.logit_cap));
        }
        Ok(&s.logits[..rows * h.n_vocab])
    }
}

impl Step<'_> {
    /// The stream's beginning: embeddings of tokens, and of positions where they have some; the angles of the step.
    fn embed(&self, s: &mut Scratch, tokens: &[Token], n_ctx: usize) {
        let (model, h) = (self.model, self.model.hyper());
        let scale = model.scales().embd;
        for (t, (token, row)) in tokens.iter().zip(s.x.chunks_exact_mut(h.n_embd)).enumerate() {
            model.token_embd().unpack_part(token.index(), 0, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
            if let Some(positions) = model.position_embd() {
                let own = &mut s.norm[..h.n_embd];
                positions.unpack_part(self.pos + t, 0, own);
                ops::add_scaled(row, 1.0, own);
            }
        }
        let tables = s.cos.len().checked_div(model.angles().len()).unwrap_or(0);
        for (i, angles) in model.angles().iter().enumerate() {
            let pairs = angles.n_pairs();
            for t in 0..self.n {
                let at = i * tables + t * pairs..i * tables + (t + 1) * pairs;
                angles.at(self.pos + t, n_ctx, &mut s.cos[at.clone()], &mut s.sin[at]);
            }
        }
        if let Some(p) = model.per_layer() {
            altup::per_layer_embeddings(self, s, p, tokens);
        }
        if let Some(ends) = model.altup() {
            altup::begin(self, s, ends);
        }
    }

    fn layer(
        &self,
        s: &mut Scratch,
        kv: &mut Kv,
        index: usize,
        layer: &Layer,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<(), Stopped> {
        if !go_on(Part::Attention) {
            return Err(Stopped);
        }
        let len = self.n * self.model.hyper().n_embd;
        if let Some(a) = &layer.altup {
            altup::predict(self, s, a);
        }
        self.input(s, layer.mixer_norm.as_ref());
        if let Some(a) = &layer.altup {
            altup::detour(self, s, a);
        }
        match &layer.mixer {
            Mixer::Attention(a) => attention::mix(self, s, kv, a),
            Mixer::ShortConv(c) => recurrent::short_conv(self, s, kv.state(c.state), c),
            Mixer::Mamba2(m) => recurrent::mamba2(self, s, kv.state(m.state), m),
            Mixer::DeltaNet(d) => recurrent::delta_net(self, s, kv.state(d.state), d),
        }
        let (output, norm) = (layer.mixer.output(), layer.mixer_post_norm.as_ref());
        let n_cols = output.weight.n_cols;
        let last = self.last_product(output, norm, &mut s.x[..len], &mut s.out[..len]);
        let added = last.epilogue.add;
        self.multiply(&s.attn[..self.n * n_cols], n_cols, &mut s.q8, &mut [last]);
        if !added {
            self.join(s, norm);
        }
        if layer.altup.is_some() {
            altup::join_detour(self, s);
        }

        if !go_on(Part::FeedForward) {
            return Err(Stopped);
        }
        self.input(s, layer.ffn_norm.as_ref());
        let norm = layer.ffn_post_norm.as_ref();
        if !feed_forward::run(self, s, &layer.ffn, norm, go_on)? {
            self.join(s, norm);
        }

        match (&layer.altup, &layer.per_layer) {
            (Some(a), p) => altup::correct(self, s, a, p.as_ref().map(|p| (index, p))),
            (None, Some(p)) => {
                altup::gate_per_layer(self, s, index, p);
                ops::add_scaled(&mut s.x[..len], 1.0, &s.norm[..len]);
            }
            (None, None) => {}
        }
        if let Some(scale) = layer.output_scale {
            s.x[..len].iter_mut().for_each(|x| *x *= scale);
        }
        Ok(())
    }

    /// Input of a sublayer: the stream, normed where the layer does so.
    fn input(&self, s: &mut Scratch, norm: Option<&Norm>) {
        let len = self.n * self.model.hyper().n_embd;
        match norm {
            Some(norm) => self.norm(&s.x[..len], norm, &mut s.norm[..len]),
            None => s.norm[..len].copy_from_slice(&s.x[..len]),
        }
    }

    /// The product that ends a sublayer: onto the stream `x` where nothing comes between, else into `out`, which is then
    /// to [`Self::join`] it.
    pub(super) fn last_product<'a>(
        &'a self,
        linear: &'a Linear,
        norm: Option<&Norm>,
        x: &'a mut [f32],
        out: &'a mut [f32],
    ) -> Product<'a> {
        let add = norm.is_none() && self.model.scales().residual == 1.0;
        let mut product = self.product(linear, if add { x } else { out });
        product.epilogue.add = add;
        product
    }

    /// Adds a sublayer's output `s.out` to the stream, normed and scaled where the model does so.
    fn join(&self, s: &mut Scratch, norm: Option<&Norm>) {
        let len = self.n * self.model.hyper().n_embd;
        let out = match norm {
            Some(norm) => {
                self.norm(&s.out[..len], norm, &mut s.norm[..len]);
                &s.norm
            }
            None => &s.out,
        };
        ops::add_scaled(&mut s.x[..len], self.model.scales().residual, &out[..len]);
    }

    /// `y = norm(x)`, row by row.
    pub(super) fn norm(&self, x: &[f32], norm: &Norm, y: &mut [f32]) {
        let (kernels, n, eps) = (self.pool.kernels(), norm.weight.len(), self.model.hyper().norm_eps);
        self.pool.for_each_row(y, n, &|t, row| {
            let x = &x[t * n..(t + 1) * n];
            match &norm.bias {
                None => kernels.rms_norm(x, &norm.weight, eps, row),
                Some(bias) => ops::layer_norm(x, &norm.weight, bias, eps, row),
            }
        });
    }

    /// The product of `linear` into `y`, with its bias.
    pub(super) fn product<'a>(&'a self, linear: &'a Linear, y: &'a mut [f32]) -> Product<'a> {
        Product {
            weights: self.model.weights(&linear.weight),
            y,
            epilogue: Epilogue { bias: linear.bias.as_deref(), add: false },
        }
    }

    /// All `products` of one input `x` `[n_tokens, n_cols]`, whose codes are made once.
    pub(super) fn multiply(&self, x: &[f32], n_cols: usize, q8: &mut Q8Acts, products: &mut [Product<'_>]) {
        let takes_codes = |p: &Product<'_>| self.pool.kernels().takes_codes(p.weights.quant());
        let q8 = match self.precision.acts {
            Acts::Q8 if products.iter().any(takes_codes) => {
                self.pool.quantize(x, n_cols, q8);
                Some(&*q8)
            }
            _ => None,
        };
        self.pool.matmul(Input { x, n_cols, q8 }, products);
    }

    /// Turns all heads of `rows` `[n_tokens, n_head * head_dim]` by the step's angles `table`.
    pub(super) fn turn(&self, cos: &[f32], sin: &[f32], table: usize, rows: &mut [f32], head_dim: usize) {
        let (model, kernels) = (self.model, self.pool.kernels());
        let pairs = model.angles()[table].n_pairs();
        let start = table * (cos.len() / model.angles().len());
        self.pool.for_each_row(rows, rows.len() / self.n, &|t, row| {
            let at = start + t * pairs..start + (t + 1) * pairs;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for head in row.chunks_exact_mut(head_dim) {
                match model.rope() {
                    Rope::Pairs => kernels.rope_pairs(head, cos, sin),
                    Rope::Halves | Rope::Learned => kernels.rope_halves(head, cos, sin),
                }
            }
        });
    }
}
