//! GPT-2 (Radford et al., 2019), StarCoder2 (Lozhkov et al., 2024) and gpt-oss (OpenAI, "gpt-oss model card", 2025).

use super::llama::LLAMA;
use super::{Act, Arch, NormKind, Rope, Window};

/// GPT-2: learned positions, layer norm, no gate.
pub(super) const GPT2: Arch = Arch {
    gguf: "gpt2",
    states_ff: false,
    rope: Rope::Learned,
    rope_original: Rope::Learned,
    norm: NormKind::Layer,
    act: Act::Gelu,
    ..LLAMA
};

/// StarCoder2: as GPT-2, with rotary positions and grouped heads.
pub(super) const STARCODER2: Arch =
    Arch { gguf: "starcoder2", states_ff: true, rope: Rope::Halves, rope_original: Rope::Halves, ..GPT2 };

/// gpt-oss: sinks, a window on every other layer, experts with biases.
pub(super) const GPT_OSS: Arch = Arch {
    gguf: "gpt-oss",
    rope: Rope::Halves,
    ffn_norm: "post_attention_norm",
    sinks: true,
    window: Window::NotLastOf(2),
    act: Act::ClampedSilu,
    ..LLAMA
};
