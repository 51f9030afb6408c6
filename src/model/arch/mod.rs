//! Architectures as data: one short description each over the one decoder. A new one is a `const` in a file here, a line
//! in [`ALL`] and a golden fixture; new maths adds a value to an enum of this file, never a second decoder.
//!
//! What a file says for itself (biases, fused or split matrices, a tied output, a shared expert) is read from its
//! tensors and stands in no description.

mod gemma;
mod gpt;
mod granite;
mod lfm2;
mod llama;
mod olmo;
mod phi;
mod qwen;

pub use crate::kernel::Act;

/// What an architecture does differently from the others.
#[derive(Debug, PartialEq)]
pub struct Arch {
    /// `general.architecture` in GGUF, and the prefix of its keys.
    pub gguf: &'static str,
    /// Which dimensions of a head turn together, as GGUF's converter leaves the weights.
    pub rope: Rope,
    /// The same in the original checkpoint.
    pub rope_original: Rope,
    /// Which layers turn at all.
    pub rope_layers: RopeLayers,
    /// Kind of the norms on the residual stream.
    pub norm: NormKind,
    /// Where they stand.
    pub norm_at: NormAt,
    /// Tensor of the norm before the feed-forward.
    pub ffn_norm: &'static str,
    /// Tensor of the norm before the output.
    pub output_norm: &'static str,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Values are divided by their root mean square.
    pub v_norm: bool,
    /// Each query head brings a gate for what it attends to.
    pub q_gate: bool,
    /// Each head has a sink: a score without a value.
    pub sinks: bool,
    /// Which layers see a window only, where `attention.sliding_window` is there.
    pub window: Window,
    /// How windowed layers turn.
    pub window_rope: WindowRope,
    /// Scale of attention scores where `attention.scale` is absent.
    pub attn_scale: AttnScale,
    /// Between the products of a feed-forward.
    pub act: Act,
    /// Weights of the chosen experts.
    pub router: Router,
    /// What stands in for attention in recurrent layers.
    pub recurrent: Recurrent,
    /// The file says how wide the feed-forward is. For some its converter writes another number.
    pub states_ff: bool,
    /// The embedding is multiplied with the root of its width.
    pub embd_scale: bool,
    /// Four residual streams around every layer (Gemma 3n).
    pub altup: bool,
}

/// Which two dimensions of a head a rotation takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// Neighbours, (0, 1), (2, 3), … (GGUF's llama: its converter permutes q and k).
    Pairs,
    /// A dimension and the one half of the rotated part further, (0, n/2), (1, n/2 + 1), ….
    Halves,
    /// None: positions have embeddings of their own (`position_embd`).
    Learned,
}

/// Which layers turn queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayers {
    /// All.
    All,
    /// All but every n-th.
    NotEvery(usize),
    /// Those with a window, where any has one; else all.
    Windowed,
    /// All, unless `rope.scaling.finetuned` is false, which says none.
    Finetuned,
}

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and variance, with a bias.
    Layer,
}

/// Where the norms of a sublayer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormAt {
    /// Before it.
    Before,
    /// After it: `post_attention_norm` and `post_ffw_norm`.
    After,
    /// Both.
    Both,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head on its own, before it turns.
    Head,
    /// Each head on its own, after it turned.
    HeadAfterRope,
    /// All heads of a token together, before they turn.
    All,
}

/// Which layers see a window, where the file names none by `attention.sliding_window_pattern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All.
    All,
    /// All but the last of every n.
    NotLastOf(usize),
}

/// How windowed layers turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WindowRope {
    /// As the others, with `rope.freq_base_swa` where it is there.
    Same,
    /// Never stretched; the base is `rope.freq_base_swa`, or that of the others.
    Plain,
    /// Never stretched; the base is `rope.freq_base_swa`, or this.
    PlainAt(f32),
}

/// Scale of attention scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttnScale {
    /// One over the root of the head's width.
    Head,
    /// One.
    One,
    /// As `Head`, but one over the root of `n_embd / n_head` in the model of so many layers (the 27B of Gemma 2 and 3,
    /// whose GGUF does not say it).
    HeadBut(usize),
}

/// How router logits become weights of the chosen experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// Softmax over all; made to sum to one, it is that over the chosen.
    Softmax,
    /// Sigmoids; `exp_probs_b` counts for the choice only.
    Sigmoid,
}

/// Layers that carry a state instead of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrent {
    /// There are none.
    None,
    /// Short convolutions between gates (LFM2).
    ShortConv,
    /// Mamba-2.
    Mamba2,
    /// Gated delta net. Value heads of one key head lie together in the original; GGUF's converter spreads them.
    DeltaNet {
        /// Whether the converter does so for this architecture.
        spread: bool,
    },
}

/// Every architecture.
pub const ALL: &[&Arch] = &[
    &llama::LLAMA,
    &llama::MISTRAL3,
    &llama::SMOLLM3,
    &llama::ERNIE4_5,
    &llama::EXAONE4,
    &llama::HUNYUAN_DENSE,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &qwen::QWEN35,
    &qwen::QWEN3NEXT,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma::GEMMA3N,
    &gemma::GEMMA4,
    &phi::PHI3,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &granite::GRANITE_HYBRID,
    &olmo::OLMO2,
    &lfm2::LFM2,
    &lfm2::LFM2MOE,
    &gpt::GPT_OSS,
    &gpt::STARCODER2,
    &gpt::GPT2,
];

/// The architecture that GGUF names so.
#[must_use]
pub fn by_gguf(name: &str) -> Option<&'static Arch> {
    ALL.iter().copied().find(|a| a.gguf == name)
}

/// The names of all, for messages.
#[must_use]
pub fn names() -> String {
    ALL.iter().map(|a| a.gguf).collect::<Vec<_>>().join(", ")
}
