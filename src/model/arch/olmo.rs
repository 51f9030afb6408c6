//! OLMo 2 and 3 (Ai2, "2 OLMo 2 Furious", 2024). Both have the architecture `olmo2` in GGUF; 3 has windows.

use super::llama::LLAMA;
use super::{Arch, NormAt, QkNorm, Rope, Window, WindowRope};

/// OLMo 2 and 3: norms after the sublayers, one over all queries and one over all keys.
pub(super) const OLMO2: Arch = Arch {
    gguf: "olmo2",
    rope: Rope::Halves,
    norm_at: NormAt::After,
    qk_norm: QkNorm::All,
    window: Window::NotLastOf(4),
    window_rope: WindowRope::Plain,
    ..LLAMA
};
