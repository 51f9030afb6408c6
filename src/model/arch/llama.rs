//! Llama and its near relatives.

use super::{
    Act, Arch, AttnScale, NormAt, NormKind, QkNorm, Recurrent, Rope, RopeLayers, Router, Window, WindowRope,
};

/// Llama 1 to 3.2, Mistral, SmolLM2 and the other checkpoints that are converted as `llama` (Touvron et al., "LLaMA",
/// 2023; Meta, "The Llama 3 Herd of Models", 2024): RMS norm before attention and feed-forward, rotary positions, grouped
/// heads, SwiGLU. The others are told by what they change of it.
pub(super) const LLAMA: Arch = Arch {
    gguf: "llama",
    rope: Rope::Pairs,
    rope_original: Rope::Halves,
    rope_layers: RopeLayers::All,
    norm: NormKind::Rms,
    norm_at: NormAt::Before,
    ffn_norm: "ffn_norm",
    output_norm: "output_norm",
    qk_norm: QkNorm::None,
    v_norm: false,
    q_gate: false,
    sinks: false,
    window: Window::All,
    window_rope: WindowRope::Same,
    attn_scale: AttnScale::Head,
    act: Act::Silu,
    router: Router::Softmax,
    recurrent: Recurrent::None,
    states_ff: true,
    embd_scale: false,
    altup: false,
};

/// Ministral 3: queries grow with the position by `attention.temperature_scale`.
pub(super) const MISTRAL3: Arch = Arch { gguf: "mistral3", ..LLAMA };

/// SmolLM3: every fourth layer does not turn.
pub(super) const SMOLLM3: Arch = Arch { gguf: "smollm3", rope_layers: RopeLayers::NotEvery(4), ..LLAMA };

/// ERNIE 4.5: trained with neighbouring pairs.
pub(super) const ERNIE4_5: Arch = Arch { gguf: "ernie4_5", rope_original: Rope::Pairs, ..LLAMA };

/// EXAONE 4: norms after the sublayers; where there are windows, only layers with one turn.
pub(super) const EXAONE4: Arch = Arch {
    gguf: "exaone4",
    rope: Rope::Halves,
    rope_layers: RopeLayers::Windowed,
    norm_at: NormAt::After,
    qk_norm: QkNorm::Head,
    window: Window::NotLastOf(4),
    ..LLAMA
};

/// Hunyuan dense: queries and keys are normed after they turned.
pub(super) const HUNYUAN_DENSE: Arch =
    Arch { gguf: "hunyuan-dense", rope: Rope::Halves, qk_norm: QkNorm::HeadAfterRope, ..LLAMA };
