//! Every buffer of a step, sized at load: the hot path allocates nothing.

use super::layer::{FeedForward, Mixer, N_STREAM};
use super::load::Model;
use crate::kernel::{Attention, Q8Acts};

/// Widths of the buffers: the largest that any layer needs, in floats a token.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    embd: usize,
    vocab: usize,
    /// Queries, and what a mixer gives.
    inner: usize,
    /// Keys, and values.
    kv: usize,
    /// What a mixer's fused first product gives; gates of a mixer.
    proj: usize,
    /// Heads with a step of their own, of a recurrent mixer.
    heads: usize,
    /// Room that attention wants, whatever the number of tokens.
    attn_room: usize,
    ff: usize,
    /// Where all gates of a token are wanted before one lets anything through.
    sparse: usize,
    experts: usize,
    /// Embeddings per layer: of one, and of all.
    per_layer: (usize, usize),
    streams: usize,
    /// Detour of a layer.
    laurel: usize,
    pairs: usize,
    tables: usize,
}

impl Widths {
    fn of(model: &Model) -> Self {
        let h = model.hyper();
        let mut w = Self { embd: h.n_embd, vocab: h.n_vocab, ..Self::default() };
        for angles in model.angles() {
            w.pairs = w.pairs.max(angles.n_pairs());
            w.tables += 1;
        }
        if let Some(p) = model.per_layer() {
            w.per_layer = (p.width, p.model_proj.n_rows());
        }
        for layer in model.layers() {
            let (inner, kv, proj, heads) = match &layer.mixer {
                Mixer::Attention(a) => {
                    w.attn_room = w.attn_room.max(Attention::room(a.n_head, a.head_dim));
                    (a.n_head * a.head_dim, a.n_head_kv * a.head_dim, 2 * a.n_head * a.head_dim, 0)
                }
                Mixer::ShortConv(c) => (h.n_embd, 0, c.input.n_rows(), 0),
                Mixer::Mamba2(m) => (m.n_inner, 0, m.input.n_rows(), m.n_head),
                // Two numbers a head stand there too, however narrow heads are.
                Mixer::DeltaNet(d) => (d.n_head_v * d.dim_v.max(2), 0, d.qkv.n_rows(), d.n_head_v),
            };
            w.inner = w.inner.max(inner);
            w.kv = w.kv.max(kv);
            w.proj = w.proj.max(proj);
            w.heads = w.heads.max(heads);
            let ff = match &layer.ffn {
                FeedForward::Dense(d) => {
                    if d.sparse.is_some() {
                        w.sparse = w.sparse.max(d.up.n_rows());
                    }
                    d.up.n_rows()
                }
                FeedForward::Experts(x) => {
                    w.experts = w.experts.max(x.experts.len());
                    let widest = x.experts.iter().chain(&x.shared).map(|d| d.up.n_rows());
                    widest.max().unwrap_or(0)
                }
            };
            w.ff = w.ff.max(ff);
            if let Some(a) = &layer.altup {
                (w.streams, w.laurel) = (N_STREAM, w.laurel.max(a.laurel_l.n_rows()));
            }
        }
        w
    }

    /// Widest input of a product beside those of gates.
    fn other(&self) -> usize {
        self.embd.max(self.inner).max(self.per_layer.0).max(self.laurel)
    }

    /// Experts make each token's input, output and choice again.
    fn expert_embd(&self) -> usize {
        if self.experts > 0 { self.embd } else { 0 }
    }
}

/// Buffers of one step over at most `n_tokens_max` tokens. All row-major, a row a token.
pub(super) struct Scratch {
    /// The residual stream, `[n_tokens, n_embd]`.
    pub x: Vec<f32>,
    /// Normed input of a sublayer, `[n_tokens, n_embd]`.
    pub norm: Vec<f32>,
    /// Output of a sublayer that is not added to the stream at once, `[n_tokens, n_embd]`.
    pub out: Vec<f32>,
    /// Queries, `[n_tokens, n_head * head_dim]`.
    pub q: Vec<f32>,
    /// `[n_tokens, n_head_kv * head_dim]`.
    pub k: Vec<f32>,
    /// `[n_tokens, n_head_kv * head_dim]`.
    pub v: Vec<f32>,
    /// What attention or a recurrence gives, `[n_tokens, n_head * head_dim]`.
    pub attn: Vec<f32>,
    /// What its threads tell one another.
    pub attn_room: Vec<f32>,
    /// First product of a mixer, where more than queries come of it, `[n_tokens, …]`.
    pub proj: Vec<f32>,
    /// Gates of a mixer's output, `[n_tokens, n_head * head_dim]`.
    pub z: Vec<f32>,
    /// Betas and alphas of a recurrence, `[n_tokens, 2 * n_head]`.
    pub steps: Vec<f32>,
    /// What a gate lets through, `[n_tokens, n_ff]`.
    pub gate: Vec<f32>,
    /// `[n_tokens, n_ff]`, where it is not made together with the gate.
    pub up: Vec<f32>,
    /// Router's logits, `[n_tokens, n_expert]`, then the weights of the chosen.
    pub shares: Vec<f32>,
    /// Inputs of one expert, `[n_tokens, n_embd]`.
    pub expert_in: Vec<f32>,
    /// Its outputs, `[n_tokens, n_embd]`.
    pub expert_out: Vec<f32>,
    /// The tokens that it serves.
    pub expert_tokens: Vec<usize>,
    /// Embeddings per layer, `[n_tokens, n_layer * width]`.
    pub per_layer: Vec<f32>,
    /// Those of one layer on their way, `[n_tokens, width]`.
    pub per_layer_gate: Vec<f32>,
    /// Streams of Gemma 3n, `[4][n_tokens, n_embd]`.
    pub streams: Vec<f32>,
    /// What a layer predicts of them, `[4][n_tokens, n_embd]`.
    pub predicted: Vec<f32>,
    /// Its detour, `[n_tokens, rank]` and `[n_tokens, n_embd]`.
    pub laurel: (Vec<f32>, Vec<f32>),
    /// Codes of `norm`.
    pub norm_q8: Q8Acts,
    /// Codes of other inputs of products, each until the next one.
    pub q8: Q8Acts,
    /// Codes of what a gate lets through.
    pub gate_q8: Q8Acts,
    /// `[n_tables][n_tokens, n_rot / 2]`.
    pub cos: Vec<f32>,
    /// `[n_tables][n_tokens, n_rot / 2]`.
    pub sin: Vec<f32>,
    /// `[n_logit_rows, n_vocab]`.
    pub logits: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(model: &Model, n_tokens_max: usize, n_logit_rows: usize) -> Self {
        let w = Widths::of(model);
        let of = |width: usize| vec![0.0; n_tokens_max * width];
        Self {
            x: of(w.embd),
            norm: of(w.embd),
            out: of(w.embd),
            q: of(w.inner),
            k: of(w.kv),
            v: of(w.kv),
            attn: of(w.inner),
            attn_room: vec![0.0; w.attn_room],
            proj: of(w.proj),
            z: of(w.inner),
            steps: of(2 * w.heads),
            gate: of(w.ff),
            up: of(w.sparse),
            shares: of(w.experts),
            expert_in: of(w.expert_embd()),
            expert_out: of(w.expert_embd()),
            expert_tokens: Vec::with_capacity(n_tokens_max),
            per_layer: of(w.per_layer.1),
            per_layer_gate: of(w.per_layer.0),
            streams: of(w.streams * w.embd),
            predicted: of(w.streams * w.embd),
            laurel: (of(w.laurel), of(if w.laurel > 0 { w.embd } else { 0 })),
            norm_q8: Q8Acts::new(n_tokens_max, w.embd),
            q8: Q8Acts::new(n_tokens_max, w.other()),
            gate_q8: Q8Acts::new(n_tokens_max, w.ff),
            cos: of(w.tables * w.pairs),
            sin: of(w.tables * w.pairs),
            logits: vec![0.0; n_logit_rows * w.vocab],
        }
    }

    /// Bytes of the buffers for these sizes, before they are made.
    pub(super) fn bytes(model: &Model, n_tokens_max: usize, n_logit_rows: usize) -> u64 {
        let w = Widths::of(model);
        let laurel = if w.laurel > 0 { w.laurel + w.embd } else { 0 };
        let floats = 3 * w.embd
            + 3 * w.inner
            + 2 * w.kv
            + w.proj
            + 2 * w.heads
            + w.ff
            + w.sparse
            + w.experts
            + 2 * w.expert_embd()
            + w.per_layer.0
            + w.per_layer.1
            + 2 * w.streams * w.embd
            + laurel
            + 2 * w.tables * w.pairs;
        let codes: usize = [w.embd, w.other(), w.ff].map(|n| Q8Acts::bytes(n_tokens_max, n)).iter().sum();
        (codes
            + n_tokens_max * (4 * floats + size_of::<usize>())
            + 4 * (w.attn_room + n_logit_rows * w.vocab)) as u64
    }
}
