//! Why a model cannot be used.

use crate::base::brief;
use crate::format::FormatError;
use crate::os::map::MapError;

/// A model file that cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The file cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An architecture that the decoder does not know.
    #[error("{file}: architecture {} is not supported; supported: {known}", brief(found))]
    Architecture {
        /// The file.
        file: String,
        /// What it names.
        found: String,
        /// Those that work.
        known: String,
    },
    /// A hyperparameter out of range.
    #[error(
        "{file}: {key} is {}, {wanted}; the file is damaged or made by an unknown converter",
        brief(found)
    )]
    Hyper {
        /// The file.
        file: String,
        /// Its key.
        key: String,
        /// Its value.
        found: String,
        /// The range.
        wanted: String,
    },
    /// Nothing that turns text into tokens.
    #[error(
        "{file}: there is no tokenizer (tokenizer.ggml.model in a GGUF file, tokenizer.json or tokenizer.model in a directory); \
         fetch the whole model"
    )]
    NoTokenizer {
        /// The model.
        file: String,
    },
    /// More positions than the model has embeddings for.
    #[error(
        "a context of {asked} is more than the {max} positions that this model has; ask for at most {max}"
    )]
    Positions {
        /// What was asked for.
        asked: usize,
        /// What there is.
        max: usize,
    },
    /// A tensor that must be there.
    #[error("{file}: tensor {tensor} is absent; the file is no complete {arch} model")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A tensor of another shape than the hyperparameters say.
    #[error(
        "{file}: tensor {tensor} has {found_rows} rows of {found_cols}, {rows} rows of {cols} follow from the metadata"
    )]
    TensorShape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Rows it has.
        found_rows: usize,
        /// Columns it has.
        found_cols: usize,
        /// Rows it should have.
        rows: usize,
        /// Columns it should have.
        cols: usize,
    },
    /// A tensor that this architecture has no use for: ignoring it would compute something else.
    #[error(
        "{file}: tensor {} has no place in a {arch} model; a newer kind of model, or a damaged file",
        brief(tensor)
    )]
    UnknownTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A packed tensor of which a matrix begins within a panel.
    #[error(
        "{file}: tensor {tensor} is packed, but row {row} of it, within a panel of 16, begins a matrix; pack the model anew"
    )]
    Panels {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
    },
    /// A matrix that is stored column after column.
    #[error(
        "{file}: tensor {tensor} is stored column after column, as graphs have it; make a GGUF file of it (sotto import)"
    )]
    Turned {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A norm or bias in a block format.
    #[error("{file}: tensor {tensor} is stored as {found}; norms and biases are F32, F16 or BF16")]
    VectorType {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// The vocabulary cannot be used.
    #[error("{file}: {source}")]
    Vocabulary {
        /// The file, with the key where the reason does not name it.
        file: String,
        /// Why.
        source: crate::text::TextError,
    },
    /// A chat template in a file of its own.
    #[error("{file}: the chat template cannot be read: {source}")]
    Template {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The cache does not fit.
    #[error("{need} bytes for a KV cache of {n_ctx} positions cannot be had; ask for a smaller context")]
    KvMemory {
        /// Bytes wanted.
        need: u64,
        /// Positions wanted.
        n_ctx: usize,
    },
    /// The worker threads cannot be started.
    #[error("{n} worker threads cannot be started: {source}")]
    Threads {
        /// Threads wanted.
        n: usize,
        /// The system's word.
        source: std::io::Error,
    },
}
