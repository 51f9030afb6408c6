//! A model by its path.

use std::path::Path;
use std::sync::Arc;

use super::{Checkpoint, FormatError, hf, split};
use crate::os::map::Map;

/// Why an ONNX graph is not opened here.
const GRAPH: &str = "is an ONNX graph, which sotto-onnx runs as it is (sotto embed, complete, ask, the daemon); of a decoder \
                     `sotto import` makes a file for this";

/// Opens a model: a GGUF file (any one of several that belong together), or a directory in the layout of Hugging
/// Face (or a file of safetensors or `config.json` in one).
///
/// # Errors
/// When a file cannot be mapped, or what is there is no whole, consistent model.
pub fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    if let Some((_, graph)) = hf::onnx::find(path) {
        let file = graph.display().to_string();
        return Err(FormatError::Set { file, why: GRAPH.into() });
    }
    if path.is_dir() {
        return hf::open(path);
    }
    let in_directory = path.extension().is_some_and(|e| e == "safetensors")
        || path.file_name().is_some_and(|n| n == "config.json" || n == "model.safetensors.index.json");
    match path.parent() {
        Some(dir) if in_directory => hf::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }),
        _ => split::open(path, Arc::new(Map::open(path)?)),
    }
}

/// Opens a model whose weights are to be written anew: what [`open`] opens, and an ONNX graph of a decoder, or a directory
/// with one and no safetensors.
///
/// # Errors
/// As [`open`].
pub fn open_weights(path: &Path) -> Result<Checkpoint, FormatError> {
    match hf::onnx::find(path) {
        Some((dir, graph)) => {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { &dir };
            hf::onnx::weights(dir, &graph)
        }
        None => open(path),
    }
}
