//! What a file says of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hyper::Hyper;
use super::kv::{KvType, Layout};
use super::load::Model;
use super::scratch::Scratch;
use super::{ModelError, vocab};
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::base::{Strings, brief};
use crate::format;

/// What a file says of itself, read without its weights. Its texts are as messages show them, whatever the file's are.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// `general.name`, if it has one.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.license`, if it has one.
    pub license: Option<String>,
    /// Whether the decoder runs it; otherwise why not.
    pub runs: Result<(), String>,
    /// Its sizes, where they could be read.
    pub hyper: Option<Hyper>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Weights and bytes of each type, most bytes first.
    pub types: Vec<(&'static str, u64, u64)>,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// `tokenizer.ggml.model` and `.pre`, or the file of a directory.
    pub tokenizer: Option<(String, Option<String>)>,
    /// Its matrices are packed: the name of the file that it was made of.
    pub packed: Option<String>,
    /// It has a chat template.
    pub chat: bool,
    /// What a sequence keeps, and bytes of the buffers of a step.
    needs: Option<(Layout, u64)>,
}

impl Summary {
    /// Reads the header of `path`.
    ///
    /// # Errors
    /// When it is no GGUF with a known set of types.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = Arc::new(format::open(path)?);
        let owned = |key: &str| -> Result<Option<String>, ModelError> { Ok(file.str(key)?.map(brief)) };
        let mut types: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        let mut parameters = 0_u64;
        for (_, t) in file.tensors() {
            let n = (t.n_cols as u64).saturating_mul(t.n_rows as u64);
            let of = types.entry(t.quant.name()).or_default();
            of.0 += n;
            of.1 += t.range.len() as u64;
            parameters += n;
        }
        let mut types: Vec<_> = types.into_iter().map(|(name, (n, bytes))| (name, n, bytes)).collect();
        types.sort_by_key(|t| std::cmp::Reverse(t.2));
        let model = Model::new(file.clone());
        let turns_text = vocab::tokenizer(&file);
        let architecture = owned("general.architecture")?.unwrap_or_default();
        let directory = || {
            let name = if file.tokenizer_json().is_some() { "tokenizer.json" } else { "tokenizer.model" };
            file.tokenizer_json().or(file.tokenizer_model()).map(|_| (name.to_owned(), None))
        };
        let tokenizer = match owned("tokenizer.ggml.model")? {
            Some(model) => Some((model, owned("tokenizer.ggml.pre")?)),
            None => directory(),
        };
        let n_vocab = match &turns_text {
            Ok(tokenizer) => tokenizer.n_vocab(),
            Err(_) => file.strings("tokenizer.ggml.tokens")?.map_or(0, Strings::len),
        };
        Ok(Self {
            path: path.into(),
            name: owned("general.name")?,
            architecture,
            license: owned("general.license")?,
            hyper: model.as_ref().ok().map(|m| m.hyper().clone()),
            needs: model.as_ref().ok().map(|m| (m.layout().clone(), Scratch::bytes(m, PREFILL_CHUNK_MAX, 1))),
            runs: model.and(turns_text).map(drop).map_err(|e| e.to_string()),
            file_bytes: file.n_bytes(),
            parameters,
            types,
            n_vocab,
            tokenizer,
            packed: match file.is_packed() {
                true => {
                    let source = file.str(format::pack::SOURCE)?.unwrap_or_default();
                    Some(brief(source.rsplitn(5, ' ').last().unwrap_or_default()))
                }
                false => None,
            },
            chat: file.str("tokenizer.chat_template")?.is_some(),
        })
    }

    /// The type that most bytes have.
    #[must_use]
    pub fn quantization(&self) -> &'static str {
        self.types.first().map_or("", |t| t.0)
    }

    /// Bytes needed to run it at `n_ctx` positions with a cache of type `kv`: the file, the cache, the buffers of a step.
    #[must_use]
    pub fn memory(&self, n_ctx: usize, kv: KvType) -> Option<Memory> {
        let (layout, scratch) = self.needs.as_ref()?;
        Some(Memory {
            weights: self.file_bytes,
            kv: layout.bytes(kv, n_ctx, PREFILL_CHUNK_MAX),
            scratch: *scratch,
        })
    }
}

/// Bytes of memory by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights: mapped from the file, shared and reclaimable.
    pub weights: u64,
    /// KV cache at full context.
    pub kv: u64,
    /// Buffers of a step.
    pub scratch: u64,
}
