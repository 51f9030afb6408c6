//! `tokenizer_config.json`: names of the special tokens. (Its chat template is read with the other files of a directory.)

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::super::TextError;
use super::super::source::Edges;
use super::lists::Id;

/// What a `tokenizer_config.json` says; what it says besides is for other programs.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub struct TokenizerConfig {
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    /// Whether bos goes before a prompt.
    pub(in super::super) add_bos_token: Option<bool>,
    /// Whether eos follows a text that is whole.
    pub(in super::super) add_eos_token: Option<bool>,
    /// Special tokens by their ids, which are written as text.
    #[serde(default)]
    pub(super) added_tokens_decoder: BTreeMap<String, AddedBody>,
}

/// The name of a token, which may stand in an object with its edges.
#[derive(Debug)]
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token's text, or an object with it as content,")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
        Ok(Name(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Name, A::Error> {
        let mut content = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "content" => content = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        content.map(Name).ok_or_else(|| A::Error::missing_field("content"))
    }
}

/// A token that was added to a vocabulary.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct AddedBody {
    /// In `tokenizer.json`; elsewhere it is the key.
    pub(super) id: Option<Id>,
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
pub(in super::super) const FILE: &str = "tokenizer_config.json";

impl TokenizerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is no JSON, or a field that is used has another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        serde_json::from_slice(bytes).map_err(|e| TextError::json(FILE, bytes, &e))
    }

    /// The text of the token that begins a text.
    pub(in super::super) fn bos(&self) -> Option<&str> {
        self.bos_token.as_ref().map(|name| name.0.as_str())
    }

    /// The text of the token that ends a text.
    pub(in super::super) fn eos(&self) -> Option<&str> {
        self.eos_token.as_ref().map(|name| name.0.as_str())
    }
}
