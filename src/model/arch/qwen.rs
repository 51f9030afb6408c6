//! Qwen 2 to 3.5 (Qwen team, "Qwen2.5 Technical Report", 2024; "Qwen3 Technical Report", 2025).

use super::llama::LLAMA;
use super::{Arch, QkNorm, Recurrent, Rope};

/// Qwen 2 and 2.5: biases of q, k and v.
pub(super) const QWEN2: Arch = Arch { gguf: "qwen2", rope: Rope::Halves, ..LLAMA };

/// Qwen 3.
pub(super) const QWEN3: Arch = Arch { gguf: "qwen3", qk_norm: QkNorm::Head, ..QWEN2 };

/// Qwen 3 with experts.
pub(super) const QWEN3MOE: Arch = Arch { gguf: "qwen3moe", ..QWEN3 };

/// Qwen3-Next: gated delta nets, every fourth layer gated attention; experts with a shared one.
pub(super) const QWEN3NEXT: Arch = Arch {
    gguf: "qwen3next",
    ffn_norm: "post_attention_norm",
    q_gate: true,
    recurrent: Recurrent::DeltaNet { spread: false },
    ..QWEN3
};

/// Qwen 3.5: as Qwen3-Next, dense.
pub(super) const QWEN35: Arch =
    Arch { gguf: "qwen35", recurrent: Recurrent::DeltaNet { spread: true }, ..QWEN3NEXT };
