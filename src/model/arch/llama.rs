//! Llama 1 to 3.2, Mistral without a window, SmolLM2, and the other checkpoints that are converted as `llama`
//! (Touvron et al., "LLaMA", 2023; Meta, "The Llama 3 Herd of Models", 2024).

use super::{Arch, Rope};

/// RMS norm before attention and feed-forward, rotary positions, grouped heads, SwiGLU.
pub(super) const LLAMA: Arch = Arch { gguf: "llama", rope: Rope::Pairs };
