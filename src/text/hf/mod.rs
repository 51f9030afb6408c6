//! `tokenizer.json` and `tokenizer_config.json`, the files of Hugging Face's tokenizers: byte-level and SentencePiece
//! BPE with the components that families of this program use. Reads bytes, opens no file.
//!
//! Added tokens are looked for in text as it was written, whether the file asks for it before or behind its normalizer:
//! what is found must not depend on text around it, and chat templates keep user's text and tokens apart there.

mod config;
mod lists;
mod parts;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::pretok::Pre;
use super::source::{Source, SpacePrefix, VocabKind, WordRules};
use super::vocab::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, byte_of};
use super::{Edges, TextError};
use crate::base::json;
use crate::base::limits::{COMPONENT_BYTES_MAX, N_VOCAB_MAX};
use crate::base::{Strings, Token, shown};

pub(super) use config::FILE as CONFIG_FILE;
pub use config::TokenizerConfig;
pub(super) use lists::Arena;

use config::AddedBody;
use lists::{Id, MergeList, TOO_LONG, VocabList};
use parts::{Kind, Parts};

/// Longest word that WordPiece spells where the file says nothing.
const WORD_CHARS: usize = 100;

/// The name of the file in messages.
const FILE: &str = "tokenizer.json";

/// The parts of the file that are used; truncation and padding are not.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct File<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(default)]
    added_tokens: Vec<AddedBody>,
    model: Model,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: VocabList,
    #[serde(default)]
    merges: MergeList,
    unk_token: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
}

impl Source {
    /// What a `tokenizer.json` says, and the `tokenizer_config.json` beside it if there is one. Memory beyond `bytes` is
    /// that of the pieces and merges with 4 bytes for each.
    ///
    /// # Errors
    /// When the file is no JSON of this form, has a component that is not in the closed list, or contradicts itself.
    pub fn from_tokenizer_json(bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Self, TextError> {
        let file: File<'_> = serde_json::from_slice(bytes).map_err(|e| TextError::json(FILE, bytes, &e))?;
        let (normalizer, pre_tokenizer, decoder, post_processor) = (
            component("normalizer", file.normalizer)?,
            component("pre_tokenizer", file.pre_tokenizer)?,
            component("decoder", file.decoder)?,
            component("post_processor", file.post_processor)?,
        );
        let model = file.model;
        let kind = check(&model)?;
        let mut parts = Parts::read(kind, &normalizer, &pre_tokenizer, &decoder, &post_processor)?;
        let byte_fallback = !parts.spells_bytes && model.byte_fallback == Some(true);
        let mut table = Table::new(model.vocab, byte_fallback)?;
        for (i, body) in file.added_tokens.iter().enumerate() {
            let at = format!("added_tokens[{i}]");
            let Some(Id(id)) = body.id else {
                return Err(TextError::file(FILE, format!("{at}.id is absent")));
            };
            table.add(FILE, &at, id, body)?;
        }
        let (pieces, mut kinds, edges) = table.finish();
        let find = |file, key: &str, text: &str| {
            let absent = || {
                let text = shown(text.as_bytes());
                TextError::file(file, format!("{key} is {text}; neither model.vocab nor added_tokens has it"))
            };
            find(&pieces, text).ok_or_else(absent)
        };
        let unk = model.unk_token.as_deref().map(|text| find(FILE, "model.unk_token", text)).transpose()?;
        if let Some(unk) = unk
            && kinds[unk.index()] == CONTROL
        {
            kinds[unk.index()] = UNKNOWN;
        }
        let one = |tokens: &[(String, u32)], place| match tokens {
            [] => Ok(None),
            [(text, id)] => {
                let found = find(FILE, "post_processor: a special token", text)?.0;
                if found != *id {
                    let text = shown(text.as_bytes());
                    let what = format!("post_processor has {text} as token {id}, the vocabulary as {found}");
                    return Err(TextError::file(FILE, what));
                }
                Ok(Some(Token(*id)))
            }
            more => {
                let what =
                    format!("post_processor: {} tokens go {place} a text, one is supported", more.len());
                Err(TextError::file(FILE, what))
            }
        };
        let (begin, close) = (one(&parts.begins, "before")?, one(&parts.closes, "behind")?);
        let named = |key, text: Option<&str>| text.map(|text| find(CONFIG_FILE, key, text)).transpose();
        let bos = named("bos_token", config.and_then(TokenizerConfig::bos))?;
        if let (Some(bos), Some(begin)) = (bos, begin)
            && bos != begin
        {
            let (begin, bos) = (begin.0, bos.0);
            let what = format!("bos_token is token {bos}, but post_processor of {FILE} has {begin}");
            return Err(TextError::file(CONFIG_FILE, what));
        }
        let eos = named("eos_token", config.and_then(TokenizerConfig::eos))?;
        let close = match config.and_then(|c| c.add_eos_token) {
            Some(true) => close.or(eos),
            Some(false) => None,
            None => close,
        };
        let merges = model.merges.0.into_strings();
        let vocab = if let Some(tidy) = parts.words {
            let rules = WordRules {
                inside: model.continuing_subword_prefix.unwrap_or_else(|| "##".into()),
                max_chars: model.max_input_chars_per_word.unwrap_or(WORD_CHARS),
                ..tidy
            };
            VocabKind::Words { rules }
        } else if parts.spells_bytes {
            let pre = Pre::new(parts.take_patterns(), model.ignore_merges == Some(true));
            VocabKind::Bytes { pre, merges }
        } else {
            VocabKind::Merges { merges }
        };
        Ok(Self {
            model: vocab,
            pieces,
            kinds,
            trusted: true,
            edges,
            nfc: parts.nfc,
            bos: bos.or(begin),
            eos,
            eot: None,
            unk,
            fuse_unk: model.fuse_unk == Some(true),
            add_bos: config.and_then(|c| c.add_bos_token).unwrap_or(begin.is_some()),
            close,
            space_prefix: parts.prefix.unwrap_or(SpacePrefix::Never),
            strips_space: parts.strips || kind == Kind::WordPiece,
        })
    }
}

/// The component `key` as a tree.
fn component(key: &str, raw: Option<&RawValue>) -> Result<Value, TextError> {
    let Some(raw) = raw else { return Ok(Value::Null) };
    let n = raw.get().len();
    if n > COMPONENT_BYTES_MAX {
        let what = format!("{key} has {n} bytes, at most {COMPONENT_BYTES_MAX} are read");
        return Err(TextError::file(FILE, what));
    }
    let wrong = |e| TextError::file(FILE, format!("{key}: {}", json::why(raw.get().as_bytes(), &e)));
    serde_json::from_str(raw.get()).map_err(wrong)
}

/// The kind of the model; refuses others, and habits that no family here has.
fn check(model: &Model) -> Result<Kind, TextError> {
    let refuse = |key: &str, found: String, known| {
        Err(TextError::Component { file: FILE, at: format!("model.{key}"), found, known })
    };
    let kind = match model.kind.as_deref() {
        None | Some("BPE") => Kind::Bpe,
        Some("WordPiece") => Kind::WordPiece,
        Some(other) => return refuse("type", shown(other.as_bytes()), "BPE or WordPiece"),
    };
    if model.vocab.ids.is_empty() {
        let found = "a list, or nothing".to_owned();
        return refuse("vocab", found, "an object of pieces with their ids");
    }
    if let Some(p) = model.dropout.filter(|p| *p > 0.0) {
        return refuse("dropout", p.to_string(), "BPE without it");
    }
    for (key, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_deref().filter(|affix| kind == Kind::Bpe && !affix.is_empty()) {
            return refuse(key, shown(affix.as_bytes()), "BPE without it");
        }
    }
    Ok(kind)
}

/// A component, shortened.
fn shown_value(value: &Value) -> String {
    shown(
        value["type"]
            .as_str()
            .map_or_else(
                || value.to_string(),
                |kind| match &value["pattern"] {
                    Value::Null => kind.to_owned(),
                    pattern => format!("{kind} {pattern}"),
                },
            )
            .as_bytes(),
    )
}

/// The token of this text, whatever it is for.
pub(super) fn find(pieces: &Strings, text: &str) -> Option<Token> {
    (0..).zip(pieces.iter()).find(|(_, piece)| *piece == text.as_bytes()).map(|(id, _)| Token(id))
}

/// A vocabulary that grows by added tokens.
pub(super) struct Table {
    pieces: Arena,
    /// By id, the place in `pieces`.
    places: Vec<Option<u32>>,
    kinds: Vec<u8>,
    edges: Vec<(Token, Edges)>,
}

impl Table {
    /// Of the list of a `tokenizer.json`.
    fn new(list: VocabList, byte_fallback: bool) -> Result<Self, TextError> {
        let n = list.ids.iter().map(|&id| id as usize + 1).max().unwrap_or(0);
        let (mut places, mut kinds) = (vec![None; n], vec![UNUSED; n]);
        for (place, &id) in (0_u32..).zip(&list.ids) {
            let (piece, id) = (list.pieces.get(place as usize), id as usize);
            if let Some(other) = places[id].replace(place) {
                let other = shown(list.pieces.get(other as usize));
                let what = format!("model.vocab: pieces {other} and {} have id {id}", shown(piece));
                return Err(TextError::file(FILE, what));
            }
            kinds[id] = if byte_fallback && byte_of(piece).is_some() { BYTE } else { NORMAL };
        }
        Ok(Self { pieces: list.pieces, places, kinds, edges: Vec::new() })
    }

    /// Of pieces in the order of their ids.
    pub(super) fn in_order(pieces: Arena, kinds: Vec<u8>) -> Self {
        let places = (0..).map(Some).take(kinds.len()).collect();
        Self { pieces, places, kinds, edges: Vec::new() }
    }

    /// Adds what `config` lists besides.
    pub(super) fn add_all(&mut self, config: &TokenizerConfig) -> Result<(), TextError> {
        for (key, body) in &config.added_tokens_decoder {
            let at = format!("added_tokens_decoder[{}]", shown(key.as_bytes()));
            let Some(id) = key.parse().ok().filter(|id: &u32| (*id as usize) < N_VOCAB_MAX) else {
                let what = format!("{at}: the key is no token's id, from 0 to {}", N_VOCAB_MAX - 1);
                return Err(TextError::file(CONFIG_FILE, what));
            };
            self.add(CONFIG_FILE, &at, id, body)?;
        }
        Ok(())
    }

    /// Makes token `id` special or user-defined; adds it if it is new. `key` is where `file` has it, for messages.
    fn add(&mut self, file: &'static str, key: &str, id: u32, body: &AddedBody) -> Result<(), TextError> {
        let at = id as usize;
        if at >= self.kinds.len() {
            self.places.resize(at + 1, None);
            self.kinds.resize(at + 1, UNUSED);
        }
        let text = body.content.as_bytes();
        match self.places[at] {
            Some(place) if self.pieces.get(place as usize) != text => {
                let (found, text) = (shown(self.pieces.get(place as usize)), shown(text));
                let what = format!("{key}.content is {text}, but token {id} of the vocabulary is {found}");
                return Err(TextError::file(file, what));
            }
            Some(_) => {}
            None => {
                self.places[at] = u32::try_from(self.pieces.len()).ok();
                if !self.pieces.push(text) {
                    return Err(TextError::file(file, format!("{key}: {TOO_LONG}")));
                }
            }
        }
        if self.kinds[at] != UNKNOWN {
            self.kinds[at] = if body.special { CONTROL } else { USER_DEFINED };
        }
        if body.edges() != Edges::default() {
            self.edges.push((Token(id), body.edges()));
        }
        Ok(())
    }

    /// Pieces by id, ggml's token types, and edges.
    pub(super) fn finish(self) -> (Strings, Vec<u8>, Vec<(Token, Edges)>) {
        let Self { pieces, places, kinds, edges } = self;
        let in_order = pieces.len() == places.len() && (0..).zip(&places).all(|(i, &place)| place == Some(i));
        if in_order {
            return (pieces.into_strings(), kinds, edges);
        }
        let mut sorted = Arena::default();
        for place in places {
            // No longer than what came in.
            let _fits = sorted.push(place.map_or(&[], |place| pieces.get(place as usize)));
        }
        (sorted.into_strings(), kinds, edges)
    }
}
