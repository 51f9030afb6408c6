//! `tokenizer_config.json`: names of the special tokens. (Its chat template is read with the other files of a directory.)

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::TextError;
use super::super::source::Edges;

/// What a `tokenizer_config.json` says; what it says besides is for other programs.
#[derive(Debug, Default, Deserialize)]
pub struct TokenizerConfig {
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    /// Whether bos goes before a prompt.
    pub(in super::super) add_bos_token: Option<bool>,
    /// Special tokens by their ids, which are written as text.
    #[serde(default)]
    pub(super) added_tokens_decoder: BTreeMap<String, AddedBody>,
}

/// The name of a token, with or without its edges.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Name {
    Bare(String),
    Full { content: String },
}

/// A token that was added to a vocabulary.
#[derive(Debug, Deserialize)]
pub(super) struct AddedBody {
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
}

impl AddedBody {
    pub(super) fn edges(&self) -> Edges {
        Edges { left: self.lstrip, right: self.rstrip, word: self.single_word }
    }
}

/// The name of the file in messages.
pub(super) const FILE: &str = "tokenizer_config.json";

impl TokenizerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is no JSON, or a field that is used has another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        serde_json::from_slice(bytes).map_err(|e| TextError::json(FILE, &e))
    }

    /// The text of the token that begins a text.
    pub(in super::super) fn bos(&self) -> Option<&str> {
        self.bos_token.as_ref().map(Name::text)
    }

    /// The text of the token that ends a text.
    pub(in super::super) fn eos(&self) -> Option<&str> {
        self.eos_token.as_ref().map(Name::text)
    }
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Self::Bare(text) | Self::Full { content: text } => text,
        }
    }
}
