//! Granite 3 and 4 (IBM): Llama with four multipliers, which are keys of the file; Mamba-2 on most layers of the
//! hybrid.

use super::llama::LLAMA;
use super::{Arch, Recurrent, RopeLayers};

/// Granite 3 and 4, dense.
pub(super) const GRANITE: Arch = Arch { gguf: "granite", ..LLAMA };

/// The same with experts.
pub(super) const GRANITE_MOE: Arch = Arch { gguf: "granitemoe", ..LLAMA };

/// Granite 4 hybrid, dense or with experts; its attention does not turn where the file says so.
pub(super) const GRANITE_HYBRID: Arch =
    Arch { gguf: "granitehybrid", rope_layers: RopeLayers::Finetuned, recurrent: Recurrent::Mamba2, ..LLAMA };
