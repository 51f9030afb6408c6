//! Layer 2: text to tokens and back. Opens no file: a [`Source`] holds what a model's files say about its vocabulary,
//! and [`Tokenizer`] and [`Template`] are made from its parts. GGUF's metadata becomes one in `model/vocab.rs`; the bytes
//! of a `tokenizer.json` or `tokenizer.model` do here.
//!
//! Four families of vocabulary ([`VocabKind`]), and one way through them: text is cut at special tokens first, then
//! into words, then pairs merge by rank (`merge.rs`), or the longest pieces spell them (`wordpiece.rs`). All input is hostile: vocabularies and templates from files, text
//! from clients. The user's text never becomes a control token (`special.rs`).

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
mod wordpiece;

pub use bpe::letter_of;
pub use error::TextError;
pub use hf::TokenizerConfig;
pub use json::Json;
pub use moment::Moment;
pub use pretok::Pre;
pub use source::{Edges, Source, SpacePrefix, VocabKind, WordRules};
pub use special::Special;
pub use stream::Utf8Stream;
pub use template::{Chat, Template, TemplateInput};
pub use tokenizer::Tokenizer;
