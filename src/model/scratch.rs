//! Every buffer of a step, sized at load: the hot path allocates nothing.

use super::load::Hyper;
use crate::kernel::Q8Acts;

/// Buffers of one step over at most `n_tokens_max` tokens. All row-major, a row a token.
pub(super) struct Scratch {
    /// The residual stream, `[n_tokens, n_embd]`.
    pub x: Vec<f32>,
    /// Normed input of a sublayer, `[n_tokens, n_embd]`.
    pub norm: Vec<f32>,
    /// `[n_tokens, n_head * head_dim]`.
    pub q: Vec<f32>,
    /// `[n_tokens, n_head_kv * head_dim]`.
    pub k: Vec<f32>,
    /// `[n_tokens, n_head_kv * head_dim]`.
    pub v: Vec<f32>,
    /// What attention gives, `[n_tokens, n_head * head_dim]`.
    pub attn: Vec<f32>,
    /// `[n_tokens, n_ff]`, then the product with `up`.
    pub gate: Vec<f32>,
    /// `[n_tokens, n_ff]`.
    pub up: Vec<f32>,
    /// Codes of the input of the next product.
    pub q8: Q8Acts,
    /// `[n_tokens, n_rot / 2]`.
    pub cos: Vec<f32>,
    /// `[n_tokens, n_rot / 2]`.
    pub sin: Vec<f32>,
    /// `[n_logit_rows, n_vocab]`.
    pub logits: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(h: &Hyper, n_tokens_max: usize, n_logit_rows: usize) -> Self {
        let of = |width: usize| vec![0.0; n_tokens_max * width];
        let widest = h.n_embd.max(h.n_ff).max(h.n_head * h.head_dim);
        Self {
            x: of(h.n_embd),
            norm: of(h.n_embd),
            q: of(h.n_head * h.head_dim),
            k: of(h.n_head_kv * h.head_dim),
            v: of(h.n_head_kv * h.head_dim),
            attn: of(h.n_head * h.head_dim),
            gate: of(h.n_ff),
            up: of(h.n_ff),
            q8: Q8Acts::new(n_tokens_max, widest),
            cos: of(h.n_rot / 2),
            sin: of(h.n_rot / 2),
            logits: vec![0.0; n_logit_rows * h.n_vocab],
        }
    }

    /// Bytes of the buffers for these sizes, before they are made.
    pub(super) fn bytes(h: &Hyper, n_tokens_max: usize, n_logit_rows: usize) -> u64 {
        let per_token =
            2 * h.n_embd + 2 * h.n_head * h.head_dim + 2 * h.n_head_kv * h.head_dim + 2 * h.n_ff + h.n_rot;
        let widest = h.n_embd.max(h.n_ff).max(h.n_head * h.head_dim);
        (n_tokens_max * (4 * per_token + widest + widest / 8) + 4 * n_logit_rows * h.n_vocab) as u64
    }
}
