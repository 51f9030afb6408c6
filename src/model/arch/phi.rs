//! Phi-3, 3.5 and 4-mini (Microsoft, "Phi-3 Technical Report", 2024): fused matrices, part of a head turned, longrope.

use super::llama::LLAMA;
use super::{Arch, Rope};

/// Phi-3.
pub(super) const PHI3: Arch = Arch { gguf: "phi3", rope: Rope::Halves, ..LLAMA };
