//! The forward pass, the only one. It branches on the architecture per layer, never per element.

use std::sync::Arc;

use super::arch::Rope;
use super::kv::{Budget, Kv, Paging};
use super::layer::{Layer, Linear, Mixer, Norm};
use super::load::Model;
use super::pooling::Pooled;
use super::profile::{Op, Profile};
use super::scratch::Scratch;
use super::{Acts, ModelError, Precision, altup, attention, feed_forward, recurrent};
use crate::base::Token;
use crate::base::limits::N_FEED_MAX;
use crate::kernel::{Epilogue, Gated, Input, Kernels, Output, Pool, Product, Q8_BLOCK, Q8Acts, Weights, ops};

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
    profile: Option<Profile>,
}

/// What a sequence brings to a step.
#[derive(Debug)]
pub struct Feed<'a> {
    /// What it keeps, with room for its tokens.
    pub kv: &'a mut Kv,
    /// Its next tokens, at the positions after those in `kv`.
    pub tokens: &'a [Token],
    /// Its logits.
    pub want: Want,
    /// Takes its states, if it is to become a vector.
    pub pooled: Option<&'a mut Pooled>,
}

/// Tokens of a step that belong to one sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    /// The first one, in the step.
    pub first: usize,
    pub n: usize,
    /// Its position, in the sequence.
    pub pos: usize,
}

impl Span {
    /// Rows of `width` of its tokens.
    pub(super) fn of(&self, width: usize) -> std::ops::Range<usize> {
        self.first * width..(self.first + self.n) * width
    }
}

/// One step on its way through the layers.
pub(super) struct Step<'a> {
    pub model: &'a Model,
    pub pool: &'a Pool,
    pub precision: Precision,
    profile: Option<&'a Profile>,
    /// Tokens of each sequence, one after the other.
    pub spans: &'a [Span],
    /// Tokens of all.
    pub n: usize,
}

impl Decoder {
    /// Buffers for steps of at most `n_tokens_max` tokens and the logits of at most `n_logit_rows` of them.
    #[must_use]
    pub fn new(model: &Model, precision: Precision, n_tokens_max: usize, n_logit_rows: usize) -> Self {
        let scratch = Scratch::new(model, n_tokens_max, n_logit_rows);
        Self { scratch, precision, n_tokens_max, n_logit_rows, profile: None }
    }

    /// Begins to count what the operations of steps cost.
    pub fn begin_profile(&mut self) {
        self.profile = Some(Profile::new());
    }

    /// Ends it.
    pub fn end_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }

    /// A sequence of `model` with room for `n_ctx` positions, in this decoder's precision.
    ///
    /// # Errors
    /// When the memory cannot be had, or the model has no positions for so many.
    pub fn kv(&self, model: &Model, n_ctx: usize) -> Result<Kv, ModelError> {
        model.check_positions(n_ctx)?;
        let paging = Arc::new(Paging::new(model.layout(), self.precision.kv));
        let mut kv = Kv::new(&paging, &Budget::new(u64::MAX), n_ctx, self.n_tokens_max)?;
        kv.reserve_all().map(|()| kv)
    }

    /// Bytes of a decoder with these sizes, without its cache.
    #[must_use]
    pub fn bytes(model: &Model, n_tokens_max: usize, n_logit_rows: usize) -> u64 {
        Scratch::bytes(model, n_tokens_max, n_logit_rows)
    }

    /// Runs the tokens of all `feeds` and returns the wanted logits, of one sequence after the other,
    /// `[0, 1 or its tokens, n_vocab]`. `go_on` is asked before each part of each layer; false stops the step.
    ///
    /// A token's logits have the same bits however its sequence was cut into steps, whatever other sequences come
    /// along, and whatever the number of threads.
    ///
    /// # Errors
    /// [`Stopped`] when `go_on` said so.
    ///
    /// # Panics
    /// If there are no feeds or more than [`N_FEED_MAX`], one has no tokens or more than its `kv` has room for, a token is
    /// not in the vocabulary, or all are more than the buffers hold.
    pub fn step(
        &mut self,
        model: &Model,
        pool: &Pool,
        feeds: &mut [Feed<'_>],
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<&[f32], Stopped> {
        let h = model.hyper();
        assert!((1..=N_FEED_MAX).contains(&feeds.len()), "{} sequences in a step", feeds.len());
        let (mut spans, mut n, mut n_logit_rows) = ([Span::default(); N_FEED_MAX], 0, 0);
        for (span, feed) in spans.iter_mut().zip(&*feeds) {
            let (own, pos) = (feed.tokens.len(), feed.kv.len());
            assert!(own > 0 && pos + own <= feed.kv.n_ctx(), "{own} tokens at {pos} of {}", feed.kv.n_ctx());
            *span = Span { first: n, n: own, pos };
            n += own;
            n_logit_rows += feed.n_logit_rows();
        }
        assert!(n <= self.n_tokens_max, "{n} tokens in a step of 1 to {}", self.n_tokens_max);
        assert!(n_logit_rows <= self.n_logit_rows, "{n_logit_rows} logits, room for {}", self.n_logit_rows);
        let s = &mut self.scratch;
        let spans = &spans[..feeds.len()];
        let profile = self.profile.as_ref();
        profile.iter().for_each(|profile| profile.begin());
        let step = Step { model, pool, precision: self.precision, profile, spans, n };

        step.embed(s, feeds);
        step.mark(Op::Embed);
        for (i, layer) in model.layers().iter().enumerate() {
            if let Err(stopped) = step.layer(s, feeds, i, layer, go_on) {
                feeds.iter_mut().for_each(|feed| feed.kv.stopped());
                return Err(stopped);
            }
        }
        for (feed, span) in feeds.iter_mut().zip(spans) {
            feed.kv.advance(span.pos + span.n);
        }
        let pools = feeds.iter().any(|feed| feed.pooled.is_some());
        if n_logit_rows == 0 && !pools {
            return Ok(&[]);
        }
        if let Some(ends) = model.altup() {
            altup::end(&step, s, ends);
        }
        for (feed, span) in feeds.iter_mut().zip(spans) {
            let Some(pooled) = &mut feed.pooled else { continue };
            let rows = pooled.rows(span.n);
            let of = (span.first + rows.start) * h.n_embd..(span.first + rows.end) * h.n_embd;
            let states = &mut s.norm[..of.len()];
            step.norm(&s.x[of], model.output_norm(), states);
            pooled.take(states);
        }
        if n_logit_rows == 0 {
            step.mark(Op::Norm);
            return Ok(&[]);
        }
        let mut rows = 0;
        for (feed, span) in feeds.iter().zip(spans) {
            let own = feed.n_logit_rows();
            let of = (span.first + span.n - own) * h.n_embd..(span.first + span.n) * h.n_embd;
            step.norm(&s.x[of], model.output_norm(), &mut s.norm[rows * h.n_embd..(rows + own) * h.n_embd]);
            rows += own;
        }
        step.mark(Op::Norm);
        let logits = &mut s.logits[..rows * h.n_vocab];
        let product = Product {
            weights: model.output(),
            y: Output::Floats(&mut *logits),
            epilogue: Epilogue { bias: model.output_bias(), ..Epilogue::default() },
        };
        step.multiply(step.coded(&s.norm[..rows * h.n_embd], h.n_embd, &mut s.q8), &mut [product]);
        let scales = model.scales();
        if scales.logits != 1.0 {
            logits.iter_mut().for_each(|x| *x *= scales.logits);
        }
        if scales.logit_cap > 0.0 {
            pool.for_each_row(logits, h.n_vocab, &|_, row| ops::soft_cap(row, scales.logit_cap));
        }
        step.mark(Op::Head);
        Ok(&s.logits[..rows * h.n_vocab])
    }
}

impl Feed<'_> {
    fn n_logit_rows(&self) -> usize {
        match self.want {
            Want::None => 0,
            Want::Last => 1,
            Want::All => self.tokens.len(),
        }
    }
}

impl Step<'_> {
    /// The stream's beginning: embeddings of tokens, and of positions where they have some; the angles of the step.
    fn embed(&self, s: &mut Scratch, feeds: &[Feed<'_>]) {
        let (model, h) = (self.model, self.model.hyper());
        let scale = model.scales().embd;
        let tables = s.cos.len().checked_div(model.angles().len()).unwrap_or(0);
        let tokens = feeds.iter().zip(self.spans).flat_map(|(feed, span)| {
            feed.tokens.iter().enumerate().map(|(i, token)| (*token, span.pos + i, feed.kv.n_ctx()))
        });
        for (t, ((token, pos, n_ctx), row)) in tokens.zip(s.x.chunks_exact_mut(h.n_embd)).enumerate() {
            model.token_embd().unpack_part(token.index(), 0, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
            if let Some(positions) = model.position_embd() {
                let own = &mut s.norm[..h.n_embd];
                positions.unpack_part(pos, 0, own);
                ops::add_scaled(row, 1.0, own);
            }
            for (i, angles) in model.angles().iter().enumerate() {
                let at = i * tables + t * angles.n_pairs()..i * tables + (t + 1) * angles.n_pairs();
                angles.at(pos, n_ctx, &mut s.cos[at.clone()], &mut s.sin[at]);
            }
        }
        if let Some(p) = model.per_layer() {
            let tokens = feeds.iter().flat_map(|feed| feed.tokens.iter().copied());
            altup::per_layer_embeddings(self, s, p, tokens);
        }
        if let Some(ends) = model.altup() {
            altup::begin(self, s, ends);
        }
    }

    fn layer(
        &self,
        s: &mut Scratch,
        feeds: &mut [Feed<'_>],
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
        self.mark(Op::Norm);
        match &layer.mixer {
            Mixer::Attention(a) => attention::mix(self, s, feeds, a),
            Mixer::ShortConv(c) => recurrent::short_conv(self, s, feeds, c),
            Mixer::Mamba2(m) => recurrent::mamba2(self, s, feeds, m),
            Mixer::DeltaNet(d) => recurrent::delta_net(self, s, feeds, d),
        }
        let (output, norm) = (layer.mixer.output(), layer.mixer_post_norm.as_ref());
        let n_cols = output.weight.n_cols;
        let last = self.last_product(output, norm, &mut s.x[..len], &mut s.out[..len]);
        let added = last.epilogue.add;
        self.mark(Op::Attention);
        self.multiply(self.coded(&s.attn[..self.n * n_cols], n_cols, &mut s.q8), &mut [last]);
        self.mark(Op::Output);
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
        self.mark(Op::Norm);
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

    /// Makes the input of a sublayer: the stream, normed where the layer does so, and its codes.
    fn input(&self, s: &mut Scratch, norm: Option<&Norm>) {
        let (kernels, n_cols, eps) =
            (self.pool.kernels(), self.model.hyper().n_embd, self.model.hyper().norm_eps);
        let (x, y) = (&s.x[..self.n * n_cols], &mut s.norm[..self.n * n_cols]);
        let row = |t: usize, y: &mut [f32]| {
            let x = &x[t * n_cols..(t + 1) * n_cols];
            match norm {
                Some(norm) => norm_row(kernels, x, norm, eps, y),
                None => y.copy_from_slice(x),
            }
        };
        match self.takes_codes(n_cols) {
            true => self.pool.for_each_row_coded(y, n_cols, &mut s.norm_q8, &row),
            false => self.pool.for_each_row(y, n_cols, &row),
        }
    }

    /// What [`Self::input`] made, as the input of products.
    pub(super) fn normed<'a>(&self, norm: &'a [f32], codes: &'a Q8Acts) -> Input<'a> {
        let n_cols = self.model.hyper().n_embd;
        let q8 = self.takes_codes(n_cols).then_some(codes);
        Input { x: &norm[..self.n * n_cols], n_cols, q8 }
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
        self.pool.for_each_row(y, n, &|t, y| norm_row(kernels, &x[t * n..(t + 1) * n], norm, eps, y));
    }

    /// The product of `linear` into `y`, with its bias.
    pub(super) fn product<'a>(&'a self, linear: &'a Linear, y: &'a mut [f32]) -> Product<'a> {
        Product {
            weights: self.model.weights(&linear.weight),
            y: Output::Floats(y),
            epilogue: Epilogue { bias: linear.bias.as_deref(), ..Epilogue::default() },
        }
    }

    /// The product of `gate` into `y`, which lets through that of `up`.
    pub(super) fn gated<'a>(&'a self, gate: &'a Linear, up: &'a Linear, y: Output<'a>) -> Product<'a> {
        let (of, bias) = (self.model.weights(&up.weight), up.bias.as_deref());
        let gated = Some(Gated { up: of, bias, act: self.model.arch().act });
        Product {
            y,
            epilogue: Epilogue { bias: gate.bias.as_deref(), gated, add: false },
            ..self.product(gate, &mut [])
        }
    }

    /// What came since the last mark was `op`.
    pub(super) fn mark(&self, op: Op) {
        if let Some(profile) = self.profile {
            profile.mark(op);
        }
    }

    /// Whether codes are made of inputs of so many columns: products with blocks want them.
    pub(super) fn takes_codes(&self, n_cols: usize) -> bool {
        self.precision.acts == Acts::Q8 && n_cols.is_multiple_of(Q8_BLOCK)
    }

    /// Whether a product with `weights` reads codes alone.
    pub(super) fn reads_codes(&self, weights: &Linear) -> bool {
        self.takes_codes(weights.weight.n_cols) && self.pool.kernels().takes_codes(weights.weight.quant)
    }

    /// `x` `[n_tokens, n_cols]` as the input of products, with its codes.
    pub(super) fn coded<'a>(&self, x: &'a [f32], n_cols: usize, q8: &'a mut Q8Acts) -> Input<'a> {
        if !self.takes_codes(n_cols) {
            return Input { x, n_cols, q8: None };
        }
        self.pool.quantize(x, n_cols, q8);
        self.mark(Op::Codes);
        Input { x, n_cols, q8: Some(q8) }
    }

    /// All `products` of one input.
    pub(super) fn multiply(&self, input: Input<'_>, products: &mut [Product<'_>]) {
        if let Some(profile) = self.profile {
            let n_tokens = input.n_tokens() as u64;
            for w in products.iter().flat_map(weights) {
                let n = w.n_rows() as u64 * input.n_cols as u64;
                let bytes = n / w.quant().block_len() as u64 * w.quant().block_bytes() as u64;
                profile.add(bytes, n * n_tokens);
            }
        }
        self.pool.matmul(input, products);
    }

    /// The step's angles `table`.
    pub(super) fn turns<'a>(&self, cos: &'a [f32], sin: &'a [f32], table: usize) -> Turns<'a> {
        let n_pairs = self.model.angles()[table].n_pairs();
        let of = table * (cos.len() / self.model.angles().len());
        let (kernels, rope) = (self.pool.kernels(), self.model.rope());
        Turns { kernels, rope, n_pairs, cos: &cos[of..], sin: &sin[of..] }
    }
}

/// Angles of a step's tokens.
#[derive(Clone, Copy)]
pub(super) struct Turns<'a> {
    kernels: &'static Kernels,
    rope: Rope,
    n_pairs: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Turns<'_> {
    /// Turns the heads of a row of token `t`.
    pub(super) fn turn(&self, t: usize, row: &mut [f32], head_dim: usize) {
        let at = t * self.n_pairs..(t + 1) * self.n_pairs;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        for head in row.chunks_exact_mut(head_dim) {
            match self.rope {
                Rope::Pairs => self.kernels.rope_pairs(head, cos, sin),
                Rope::Halves | Rope::Learned => self.kernels.rope_halves(head, cos, sin),
            }
        }
    }
}

/// `y = norm(x)`, of a row.
fn norm_row(kernels: &Kernels, x: &[f32], norm: &Norm, eps: f32, y: &mut [f32]) {
    match &norm.bias {
        None => kernels.rms_norm(x, &norm.weight, eps, y),
        Some(bias) => ops::layer_norm(x, &norm.weight, bias, eps, y),
    }
}

/// The matrices of a product.
fn weights<'a>(p: &Product<'a>) -> impl Iterator<Item = Weights<'a>> + use<'a> {
    [Some(p.weights), p.epilogue.gated.map(|gated| gated.up)].into_iter().flatten()
}
