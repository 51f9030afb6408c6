//! Gemma 1 to 4 (Gemma team, "Gemma 3 Technical Report", 2025; Gemma 3n and 4: their reference implementation in
//! transformers).

use super::llama::LLAMA;
use super::{Act, Arch, AttnScale, NormAt, QkNorm, Rope, Window, WindowRope};

/// Gemma 1.
pub(super) const GEMMA: Arch =
    Arch { gguf: "gemma", rope: Rope::Halves, act: Act::Gelu, embd_scale: true, ..LLAMA };

/// Gemma 2: windows on every other layer, soft caps, norms on both sides.
pub(super) const GEMMA2: Arch = Arch {
    gguf: "gemma2",
    norm_at: NormAt::Both,
    window: Window::NotLastOf(2),
    attn_scale: AttnScale::HeadBut(46),
    ..GEMMA
};

/// Gemma 3: five windowed layers to a global one, each with its own base.
pub(super) const GEMMA3: Arch = Arch {
    gguf: "gemma3",
    qk_norm: QkNorm::Head,
    window: Window::NotLastOf(6),
    window_rope: WindowRope::PlainAt(10_000.0),
    attn_scale: AttnScale::HeadBut(62),
    ..GEMMA2
};

/// Gemma 3n: four residual streams, a low-rank detour beside attention, embeddings per layer, shared keys and values.
pub(super) const GEMMA3N: Arch = Arch {
    gguf: "gemma3n",
    v_norm: true,
    window: Window::NotLastOf(5),
    attn_scale: AttnScale::One,
    altup: true,
    ..GEMMA3
};

/// Gemma 4: embeddings per layer, shared keys and values, wider heads on global layers.
pub(super) const GEMMA4: Arch = Arch { gguf: "gemma4", altup: false, ..GEMMA3N };
