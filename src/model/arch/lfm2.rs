//! LFM2 and 2.5 (Liquid AI, "LFM2 Technical Report", 2025): short convolutions, attention on a few layers.

use super::llama::LLAMA;
use super::{Arch, QkNorm, Recurrent, Rope, Router};

/// LFM2.
pub(super) const LFM2: Arch = Arch {
    gguf: "lfm2",
    rope: Rope::Halves,
    output_norm: "token_embd_norm",
    qk_norm: QkNorm::Head,
    recurrent: Recurrent::ShortConv,
    ..LLAMA
};

/// LFM2 with experts after the first layers.
pub(super) const LFM2MOE: Arch = Arch { gguf: "lfm2moe", router: Router::Sigmoid, ..LFM2 };
