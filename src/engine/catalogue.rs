//! The models that the engine knows, and what it tells of them.

use std::path::{Path, PathBuf};

use super::{Code, ModelFile};
use crate::format::hf::onnx;

/// State of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Known, not loaded.
    Available,
    /// Being read.
    Loading,
    /// Ready.
    Loaded,
    /// The last load failed.
    Failed,
}

impl ModelState {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a model; the optional part once its header was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: ModelState,
    /// What was wrong at the last load, if it failed.
    pub error: Option<Code>,
    /// It stays until it is unloaded by name.
    pub pinned: bool,
    /// How often it was unloaded by name.
    pub n_unloaded: u64,
    /// Modification time of the file, Unix seconds.
    pub created: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// What the header says.
    pub header: Option<ModelHeader>,
}

/// What a model's header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelHeader {
    /// Such as `llama`.
    pub architecture: String,
    /// The type most weights have, such as `Q4_0`.
    pub quantization: String,
    /// Number of weights.
    pub parameters: u64,
    /// Positions it is, or would be, loaded with.
    pub n_ctx: usize,
    /// Positions it was trained for.
    pub n_ctx_train: usize,
    /// It has a chat template.
    pub chat: bool,
    /// It makes vectors of texts.
    pub embeds: bool,
    /// It continues text.
    pub generates: bool,
    /// Its license, as the file says; empty if it says nothing.
    pub license: String,
}

/// Names that always stand for a model, if there is one.
pub(super) const STANDING_ALIASES: [&str; 3] = ["default", "fast", "embed"];

/// A model of the catalogue.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: PathBuf,
    /// It is an ONNX graph that makes vectors of texts.
    pub encodes: bool,
    pub info: ModelInfo,
}

impl Entry {
    pub(super) fn in_memory(&self) -> bool {
        matches!(self.info.state, ModelState::Loaded | ModelState::Loading)
    }

    /// Whether what is known of it holds for `new` as well: the same file, and nothing wrong with it.
    pub(super) fn is_still(&self, new: &Self) -> bool {
        let file = |e: &Self| (e.path.clone(), e.info.created, e.info.size_bytes);
        self.info.state != ModelState::Failed && file(self) == file(new)
    }

    /// Of a file that nobody has opened yet.
    pub(super) fn new(model: &ModelFile) -> Self {
        let graph = onnx::find(&model.path).map(|(_, graph)| graph);
        let (created, size_bytes) = stat(graph.as_deref().unwrap_or(&model.path));
        let info = ModelInfo {
            id: model.id.clone(),
            state: ModelState::Available,
            error: None,
            pinned: false,
            n_unloaded: 0,
            created,
            size_bytes,
            header: None,
        };
        Self { path: model.path.clone(), encodes: onnx::encodes(&model.path), info }
    }
}

/// Time of modification and size; zeros for a file that is not there (its load will say so).
fn stat(path: &Path) -> (u64, u64) {
    let Ok(meta) = std::fs::metadata(path) else { return (0, 0) };
    let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    (modified.map_or(0, |t| t.as_secs()), meta.len())
}
