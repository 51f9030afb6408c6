//! What a directory says of its vocabulary, in GGUF's keys.

use super::super::{ModelError, vocab};
use super::ImportError;
use crate::base::{Strings, Token};
use crate::format::{Checkpoint, Meta};
use crate::text::{Pre, Source, SpacePrefix, Tokenizer, VocabKind};

/// ggml's type of an entry that no text becomes.
const UNUSED: u8 = 5;

/// Writes the keys of the vocabulary, padded to the `n_rows` of the embedding as GGUF wants it; says what they cannot say and
/// what only few texts would show.
///
/// # Errors
/// When there is no vocabulary, or one that GGUF has no words for.
pub(super) fn keys(file: &Checkpoint, n_rows: usize, meta: &mut Meta) -> Result<Vec<String>, ImportError> {
    let name = || file.file().to_owned();
    let source = vocab::to_write(file)?.ok_or_else(|| ModelError::NoTokenizer { file: name() })?;
    let unsaid = |what: String| ImportError::Vocabulary { file: name(), what };
    let n = source.pieces.len();
    if n > n_rows {
        return Err(unsaid(format!("the vocabulary has {n} entries, the embedding {n_rows} rows")));
    }
    let mut lost = Vec::new();
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let model = match &source.model {
        VocabKind::Bytes { pre, merges } => {
            let found = Pre::name(pre);
            let found =
                found.ok_or_else(|| unsaid("text is cut into words by patterns of its own".into()))?;
            meta.str(&key("pre"), found);
            meta.strings(&key("merges"), merges.clone());
            "gpt2"
        }
        VocabKind::Scores { scores } => {
            let scores = scores.iter().copied().chain(std::iter::repeat(0.0));
            meta.floats(&key("scores"), scores.take(n_rows));
            meta.bool(&key("add_space_prefix"), prefixes(&source).ok_or_else(|| unsaid(SPACES.into()))?);
            "llama"
        }
        VocabKind::Merges { merges } if source.space_prefix == SpacePrefix::Never && source.add_bos => {
            meta.strings(&key("merges"), merges.clone());
            "gemma4"
        }
        VocabKind::Merges { .. } => {
            let what =
                "pieces of SentencePiece merge by a list, and there is no tokenizer.model with their scores";
            return Err(unsaid(what.into()));
        }
        VocabKind::Words { .. } => {
            return Err(unsaid("words are spelt by the longest pieces (WordPiece)".into()));
        }
    };
    meta.str(&key("model"), model);
    let kind = |i: usize| source.kinds.get(i).copied().unwrap_or(if i < n { 1 } else { UNUSED });
    meta.ints(&key("token_type"), (0..n_rows).map(|i| i32::from(kind(i))));
    meta.strings(&key("tokens"), pieces(&source, n_rows));

    // Two ends have keys; of the others a reader knows those that are spelt as ends.
    let ends: Vec<Token> =
        source.eos.into_iter().chain(file.eos_token_ids().iter().map(|id| Token(*id))).collect();
    let (eos, eot) = (ends.first().copied(), source.eot);
    let known =
        Tokenizer::new(source.clone()).map_err(|source| ModelError::Vocabulary { file: name(), source })?;
    let mut others: Vec<Token> =
        ends.iter().copied().filter(|t| Some(*t) != eos && !known.is_end(*t)).collect();
    others.sort_unstable();
    others.dedup();
    let eot = eot.or_else(|| others.first().copied());
    lost.extend(
        others.iter().filter(|t| Some(**t) != eot).map(|t| format!("that token {} ends an answer", t.0)),
    );
    let ids = [("bos", source.bos), ("eos", eos), ("eot", eot), ("unknown", source.unk)]
        .into_iter()
        .filter_map(|(which, token)| Some((which, token?)));
    for (which, token) in ids {
        meta.uint(&key(&format!("{which}_token_id")), token.0.into());
    }
    meta.bool(&key("add_bos_token"), source.add_bos && source.bos.is_some());
    match source.close {
        None => {}
        Some(close) if eos == Some(close) => meta.bool(&key("add_eos_token"), true),
        Some(close) => lost.push(format!("that token {} closes a whole text", close.0)),
    }
    if source.nfc {
        lost.push("that text is put into Unicode's form C first".into());
    }
    if !source.edges.is_empty() {
        lost.push(format!("what white space goes with {} special tokens", source.edges.len()));
    }
    Ok(lost)
}

const SPACES: &str = "a space is put before a text that does not begin with one";

/// Whether a space goes before every text, where GGUF can say so.
fn prefixes(source: &Source) -> Option<bool> {
    match source.space_prefix {
        SpacePrefix::Always => Some(true),
        SpacePrefix::Never => Some(false),
        SpacePrefix::Missing | SpacePrefix::First => None,
    }
}

/// The pieces, and names for those that have none, as llama.cpp's converter gives them.
fn pieces(source: &Source, n_rows: usize) -> Strings {
    let whole = source.pieces.len() == n_rows && source.pieces.iter().all(|piece| !piece.is_empty());
    if whole {
        return source.pieces.clone();
    }
    Strings::owned((0..n_rows).map(|i| match source.pieces.get(i) {
        Some(piece) if !piece.is_empty() => piece.to_vec(),
        _ => format!("[PAD{i}]").into_bytes(),
    }))
}
