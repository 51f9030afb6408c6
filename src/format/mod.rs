//! Layer 2: bytes of files become named tensors and metadata. Everything here is hostile input: checked
//! arithmetic, no allocation beyond the files' own size, errors that name the key or tensor and the numbers.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod checkpoint;
mod error;
pub mod gguf;
pub mod hf;
mod json;
mod meta;
mod open;
pub mod pack;
mod safetensors;
mod split;
mod value;

pub use checkpoint::{Checkpoint, Origin, TensorInfo};
pub use error::FormatError;
pub use meta::Meta;
pub use open::{open, open_weights};
pub use split::join;
pub use value::{Array, Kind, Value};
