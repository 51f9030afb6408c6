//! The weights of a block, in place where they are matrices. Shapes are `[rows, columns]`.

use crate::quant::Quant;
use crate::quant::packed::PANEL;

/// A matrix of a checkpoint, or a stretch of its rows.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub quant: Quant,
    /// In panels, not row after row.
    pub packed: bool,
    pub n_rows: usize,
    pub n_cols: usize,
    /// Which of the checkpoint's parts.
    pub part: usize,
    /// First byte there.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

impl Matrix {
    /// Rows `start .. start + n`, in place. Of a packed matrix they begin with a panel.
    fn rows(&self, start: usize, n: usize) -> Self {
        assert!(start + n <= self.n_rows, "rows {start} to {} of {}", start + n, self.n_rows);
        let each = if self.packed { PANEL } else { 1 };
        assert!(start.is_multiple_of(each), "row {start} begins a panel");
        let bytes = self.len / self.n_rows.div_ceil(each);
        let (first, len) = (start / each * bytes, n.div_ceil(each) * bytes);
        Self { n_rows: n, start: self.start + first, len, ..self.clone() }
    }
}

/// A matrix and its bias.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Outputs `start .. start + n`. Of a packed matrix they begin with a panel.
    pub(super) fn rows(&self, start: usize, n: usize) -> Self {
        let bias = self.bias.as_ref().map(|b| b[start..start + n].to_vec());
        Self { weight: self.weight.rows(start, n), bias }
    }

    pub(super) fn n_rows(&self) -> usize {
        self.weight.n_rows
    }
}

/// A norm; with a bias it is a layer norm.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// One block.
#[derive(Debug)]
pub(super) struct Layer {
    pub mixer_norm: Option<Norm>,
    pub mixer: Mixer,
    pub mixer_post_norm: Option<Norm>,
    pub ffn_norm: Option<Norm>,
    pub ffn: FeedForward,
    pub ffn_post_norm: Option<Norm>,
    pub per_layer: Option<PerLayer>,
    pub altup: Option<AltUp>,
    /// The block's output is multiplied with it.
    pub output_scale: Option<f32>,
}

/// What mixes tokens.
#[derive(Debug)]
pub(super) enum Mixer {
    Attention(Box<Attention>),
    ShortConv(ShortConv),
    Mamba2(Mamba2),
    DeltaNet(DeltaNet),
}

impl Mixer {
    /// The matrix that its result goes through, `[n_embd, …]`.
    pub(super) fn output(&self) -> &Linear {
        match self {
            Self::Attention(a) => &a.output,
            Self::ShortConv(c) => &c.output,
            Self::Mamba2(m) => &m.output,
            Self::DeltaNet(d) => &d.output,
        }
    }
}

/// Attention over a cache.
#[derive(Debug)]
pub(super) struct Attention {
    /// `[n_head * head_dim, n_embd]`; with gates `[n_head * 2 * head_dim, n_embd]`, a head's query before its gate.
    pub q: Linear,
    /// Keys and values, `[n_head_kv * head_dim, n_embd]` each; `None`: another layer's are used.
    pub kv: Option<(Linear, Linear)>,
    /// `[n_embd, n_head * head_dim]`.
    pub output: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    /// Ones, `[head_dim]`, where values are divided by their root mean square.
    pub v_norm: Option<Vec<f32>>,
    /// `[n_head]`.
    pub sinks: Option<Vec<f32>>,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Which of the model's angles turn it, if any.
    pub angles: Option<usize>,
    pub window: Option<usize>,
    pub scale: f32,
    /// Which of the cache's keys and values.
    pub cache: usize,
}

/// A gated short convolution (LFM2): `out(c * conv(b * x))`.
#[derive(Debug)]
pub(super) struct ShortConv {
    /// b, c and x, `[3 * n_embd, n_embd]`.
    pub input: Linear,
    /// `[len][n_embd]`.
    pub conv: Vec<f32>,
    /// `[n_embd]`.
    pub conv_bias: Option<Vec<f32>>,
    /// `[n_embd, n_embd]`.
    pub output: Linear,
    /// Which of the cache's states.
    pub state: usize,
}

/// Mamba-2.
#[derive(Debug)]
pub(super) struct Mamba2 {
    /// z `[n_inner]`, x `[n_inner]`, B and C `[n_group * n_state]` each, dt `[n_head]`.
    pub input: Linear,
    /// Over x, B and C, `[len][n_conv]`.
    pub conv: Vec<f32>,
    /// `[n_conv]`.
    pub conv_bias: Option<Vec<f32>>,
    /// Minus e^A_log, `[n_head]`.
    pub a: Vec<f32>,
    /// `[n_head]`.
    pub d: Vec<f32>,
    /// `[n_head]`.
    pub dt_bias: Vec<f32>,
    /// `[n_inner]`, by groups.
    pub norm: Vec<f32>,
    /// `[n_embd, n_inner]`.
    pub output: Linear,
    pub n_inner: usize,
    pub n_group: usize,
    pub n_state: usize,
    pub n_head: usize,
    /// Which of the cache's states.
    pub state: usize,
}

/// A gated delta net.
#[derive(Debug)]
pub(super) struct DeltaNet {
    /// q and k `[n_head_k * dim_k]` each, v `[n_head_v * dim_v]`.
    pub qkv: Linear,
    /// Gates of the output, `[n_head_v * dim_v, n_embd]`.
    pub z: Linear,
    /// How fast states move and fade, `[n_head_v, n_embd]` each.
    pub beta_alpha: BetaAlpha,
    /// Over q, k and v, `[len][n_conv]`.
    pub conv: Vec<f32>,
    /// Minus e^A_log, `[n_head_v]`.
    pub a: Vec<f32>,
    /// `[n_head_v]`.
    pub dt_bias: Vec<f32>,
    /// `[dim_v]`.
    pub norm: Vec<f32>,
    /// `[n_embd, n_head_v * dim_v]`.
    pub output: Linear,
    pub n_head_k: usize,
    pub n_head_v: usize,
    /// Width of a head of queries and keys.
    pub dim_k: usize,
    /// Width of a head of values.
    pub dim_v: usize,
    /// Value head `h` belongs to key head `h % n_head_k`; else to `h / (n_head_v / n_head_k)`.
    pub spread: bool,
    /// Which of the cache's states.
    pub state: usize,
}

/// The two small products of a delta net.
#[derive(Debug)]
pub(super) enum BetaAlpha {
    /// Each on its own.
    Split(Linear, Linear),
    /// One matrix; for each key head the betas of its value heads, then the alphas.
    Mixed(Linear),
}

/// What follows the mixer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Dense),
    Experts(Experts),
}

/// `down(act(gate) * up)`, or `down(act(up))` without a gate.
#[derive(Debug)]
pub(super) struct Dense {
    /// `[n_ff, n_embd]`.
    pub gate: Option<Linear>,
    /// `[n_ff, n_embd]`.
    pub up: Linear,
    /// `[n_embd, n_ff]`.
    pub down: Linear,
    /// Gates below so many deviations above their mean count as nothing (Gemma 3n).
    pub sparse: Option<f32>,
}

impl Dense {
    /// Bytes of its matrices.
    pub(super) fn n_bytes(&self) -> usize {
        let of = |l: &Linear| l.weight.len;
        self.gate.as_ref().map_or(0, of) + of(&self.up) + of(&self.down)
    }
}

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct Experts {
    /// `[n_expert, n_embd]`.
    pub router: Linear,
    /// Added to the routers' shares for the choice alone, `[n_expert]`.
    pub choice_bias: Option<Vec<f32>>,
    pub experts: Vec<Dense>,
    pub n_used: usize,
    /// Always used.
    pub shared: Option<Dense>,
    /// `[1, n_embd]`: how much of it.
    pub shared_gate: Option<Linear>,
}

/// A token's own embedding for this layer joins the stream (Gemma 3n, 4).
#[derive(Debug)]
pub(super) struct PerLayer {
    /// `[width, n_embd]`.
    pub gate: Linear,
    /// `[n_embd, width]`.
    pub proj: Linear,
    pub post_norm: Norm,
}

/// Alternating updates of four streams, and the low-rank detour beside attention (Gemma 3n; Baykal et al.,
/// "Alternating Updates for Efficient Transformers", 2023).
#[derive(Debug)]
pub(super) struct AltUp {
    pub router_norm: Norm,
    /// `[4][n_embd]`.
    pub router: Vec<f32>,
    /// `[16][4]`.
    pub predict: Vec<f32>,
    /// `[4][4]`.
    pub correct: Vec<f32>,
    /// `[n_embd]`.
    pub correct_scale: Vec<f32>,
    /// `[rank, n_embd]`.
    pub laurel_l: Linear,
    /// `[n_embd, rank]`.
    pub laurel_r: Linear,
    pub laurel_post_norm: Norm,
}

/// How the streams of [`AltUp`] begin and end.
#[derive(Debug)]
pub(super) struct AltUpEnds {
    /// Three of `[n_embd, n_embd]`.
    pub proj: Vec<Linear>,
    /// Three of `[n_embd, n_embd]`.
    pub unembd: Vec<Linear>,
}

/// Streams of Gemma 3n.
pub(super) const N_STREAM: usize = 4;

/// Embeddings per layer, made before the first.
#[derive(Debug)]
pub(super) struct PerLayerEmbd {
    /// `[n_vocab, n_layer * width]`.
    pub token_embd: Matrix,
    /// `[n_layer * width, n_embd]`.
    pub model_proj: Linear,
    pub proj_norm: Norm,
    pub width: usize,
}
