//! Layer 2: text to tokens and back. Knows no file format: a [`Source`] holds what a model file says about its
//! vocabulary, and [`Tokenizer`] and [`Template`] are made from its parts.
//!
//! Two families of vocabulary: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`), named as in GGUF's
//! `tokenizer.ggml.model`. Both cut text at special tokens first, then merge pairs by rank (`merge.rs`). All input
//! is hostile: vocabularies and templates from files, text from clients. The user's text never becomes a control
//! token (`special.rs`).

mod bpe;
mod error;
mod hf;
mod index;
mod json;
mod merge;
mod moment;
mod pretok;
mod python;
mod sentencepiece;
mod source;
mod special;
mod split;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod unicode;
mod vocab;

pub use error::TextError;
pub use hf::TokenizerConfig;
pub use json::Json;
pub use moment::Moment;
pub use pretok::Pre;
pub use source::{Edges, Source, SpacePrefix, VocabKind};
pub use special::Special;
pub use stream::Utf8Stream;
pub use template::{Chat, Template, TemplateInput};
pub use tokenizer::Tokenizer;
