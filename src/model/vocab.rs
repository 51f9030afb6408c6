//! The tokenizer that a model carries.

use super::ModelError;
use crate::base::limits::N_VOCAB_MAX;
use crate::base::{SharedBytes, Token, shown};
use crate::format::hf::onnx::GraphDir;
use crate::format::{Checkpoint, Origin};
use crate::text::{Pre, Source, SpacePrefix, TextError, Tokenizer, TokenizerConfig, VocabKind};

/// The tokenizer of a model.
///
/// # Errors
/// When it carries none, or what it says of it does not fit together.
pub fn tokenizer(file: &Checkpoint) -> Result<Tokenizer, ModelError> {
    let source = source(file)?.ok_or_else(|| ModelError::NoTokenizer { file: file.file().into() })?;
    let ends = file.eos_token_ids().iter().map(|id| Token(*id));
    let tokenizer = Tokenizer::new(source).map_err(wrong(file, pieces_key(file)))?;
    tokenizer.with_ends(ends).map_err(wrong(file, "eos_token_id in generation_config.json or config.json"))
}

/// The tokenizer beside an ONNX graph.
///
/// # Errors
/// When what it says does not fit together, or is of a kind that is not read.
pub fn of_graph(dir: &GraphDir) -> Result<Tokenizer, ModelError> {
    let found = read(&dir.file, dir.tokenizer_config.as_ref(), Some(&dir.tokenizer_json), None)?;
    let source = found.ok_or_else(|| ModelError::NoTokenizer { file: dir.file.clone() })?;
    let wrong = |source| ModelError::Vocabulary { file: dir.file.clone(), source };
    let tokenizer = Tokenizer::new(source).map_err(wrong)?;
    tokenizer.with_ends(dir.eos.iter().map(|id| Token(*id))).map_err(wrong)
}

/// Tables to find pieces and merges by, with the keys of what they belong to; none where there is no tokenizer.
#[must_use]
pub fn tables(file: &Checkpoint) -> Vec<(&'static str, Vec<u32>)> {
    let keys = ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"];
    let tables = tokenizer(file).map_or([None, None], |tokenizer| tokenizer.tables());
    keys.into_iter().zip(tables).filter_map(|(key, table)| Some((key, table?))).collect()
}

/// Where the pieces of a model's vocabulary stand, for messages.
#[must_use]
pub fn pieces_key(file: &Checkpoint) -> &'static str {
    match (file.origin(), file.tokenizer_json()) {
        (Origin::Gguf { .. }, _) => "tokenizer.ggml.tokens",
        (Origin::HuggingFace, Some(_)) => "tokenizer.json: model.vocab",
        (Origin::HuggingFace, None) => "tokenizer.model: pieces",
    }
}

/// An error about what stands at `key`.
fn wrong(file: &Checkpoint, key: &str) -> impl FnOnce(TextError) -> ModelError {
    let file = format!("{}: {key}", file.file());
    move |source| ModelError::Vocabulary { file, source }
}

/// What the model's files say of its vocabulary; `None` if they say nothing. Piece texts and merges of a GGUF stay in
/// the file.
///
/// # Errors
/// When a key has another type than it should, or lengths do not agree.
pub fn source(file: &Checkpoint) -> Result<Option<Source>, ModelError> {
    match file.origin() {
        Origin::Gguf { .. } => of_gguf(file),
        Origin::HuggingFace => of_directory(file),
    }
}

/// The same, and where pieces of SentencePiece merge by a list but have scores too, with those, as GGUF wants them.
pub(super) fn to_write(file: &Checkpoint) -> Result<Option<Source>, ModelError> {
    match source(file)? {
        Some(Source { model: VocabKind::Merges { .. }, .. }) if file.tokenizer_model().is_some() => {
            read(file.file(), file.tokenizer_config(), None, file.tokenizer_model())
        }
        found => Ok(found),
    }
}

/// `tokenizer.json`, or else `tokenizer.model`, with `tokenizer_config.json`.
fn of_directory(file: &Checkpoint) -> Result<Option<Source>, ModelError> {
    read(file.file(), file.tokenizer_config(), file.tokenizer_json(), file.tokenizer_model())
}

/// Of one of the two; `file` is the directory, for messages.
fn read(
    file: &str,
    config: Option<&SharedBytes>,
    json: Option<&SharedBytes>,
    model: Option<&SharedBytes>,
) -> Result<Option<Source>, ModelError> {
    let wrong = |source| ModelError::Vocabulary { file: file.into(), source };
    let config = config.map(|bytes| TokenizerConfig::parse((**bytes).as_ref())).transpose().map_err(wrong)?;
    let found = match (json, model) {
        (Some(json), _) => Source::from_tokenizer_json((**json).as_ref(), config.as_ref()),
        (None, Some(model)) => Source::from_sentencepiece((**model).as_ref(), config.as_ref()),
        (None, None) => return Ok(None),
    };
    found.map(Some).map_err(wrong)
}

fn of_gguf(gguf: &Checkpoint) -> Result<Option<Source>, ModelError> {
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let hyper = |k: &str, found: String, wanted: String| ModelError::Hyper {
        file: gguf.file().into(),
        key: key(k),
        found,
        wanted,
    };
    let Some(model) = gguf.str(&key("model"))? else { return Ok(None) };
    let pieces = gguf.require(&key("tokens"), gguf.strings(&key("tokens"))?)?.clone();
    let n = pieces.len();
    if n == 0 || n > N_VOCAB_MAX {
        return Err(hyper(
            "tokens",
            format!("an array of {n}"),
            format!("1 to {N_VOCAB_MAX} entries possible"),
        ));
    }
    let kinds = gguf.small_ints(&key("token_type"))?.unwrap_or_default();
    let scores = gguf.floats(&key("scores"))?.unwrap_or_default();
    for (k, len) in [("token_type", kinds.len()), ("scores", scores.len())] {
        if len != 0 && len != n {
            return Err(hyper(k, format!("an array of {len}"), format!("{n} wanted, one for each token")));
        }
    }
    let token = |k: &str| -> Result<Option<Token>, ModelError> {
        let k = format!("{k}_token_id");
        match gguf.uint(&key(&k))? {
            None => Ok(None),
            Some(id) => match u32::try_from(id) {
                Ok(id) if (id as usize) < n => Ok(Some(Token(id))),
                _ => {
                    Err(hyper(&k, id.to_string(), format!("below the {n} entries of the vocabulary wanted")))
                }
            },
        }
    };
    let merges = || gguf.require(&key("merges"), gguf.strings(&key("merges"))?).cloned();
    let (model, adds_bos, space) = match model {
        "gpt2" => {
            let pre = Pre::named(gguf.str(&key("pre"))?).map_err(wrong(gguf, &key("pre")))?;
            let adds_bos = pre.adds_bos();
            (VocabKind::Bytes { pre, merges: merges()? }, adds_bos, false)
        }
        "llama" => (VocabKind::Scores { scores }, true, true),
        "gemma4" => (VocabKind::Merges { merges: merges()? }, true, false),
        other => {
            let wanted = "gpt2, llama and gemma4 are supported".to_owned();
            return Err(hyper("model", shown(other.as_bytes()), wanted));
        }
    };
    // Files of Gemma 4 say no, but the model was trained with it.
    let is_gemma4 = matches!(model, VocabKind::Merges { .. });
    let eos = token("eos")?;
    let closes = gguf.bool(&key("add_eos_token"))?.unwrap_or(false);
    let space = space && gguf.bool(&key("add_space_prefix"))?.unwrap_or(true);
    Ok(Some(Source {
        model,
        pieces,
        kinds,
        trusted: false,
        edges: Vec::new(),
        nfc: false,
        bos: token("bos")?,
        eos,
        eot: token("eot")?,
        unk: token("unknown")?,
        fuse_unk: false,
        add_bos: is_gemma4 || gguf.bool(&key("add_bos_token"))?.unwrap_or(adds_bos),
        close: eos.filter(|_| closes),
        space_prefix: if space { SpacePrefix::Always } else { SpacePrefix::Never },
        strips_space: space,
    }))
}
