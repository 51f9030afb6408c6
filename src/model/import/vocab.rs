//! What a directory says of its vocabulary, in GGUF's keys.

use std::collections::{HashMap, HashSet};

use super::super::{ModelError, vocab};
use super::ImportError;
use crate::base::{Strings, Token};
use crate::format::{Checkpoint, Meta};
use crate::text::{Pre, Source, SpacePrefix, Tokenizer, VocabKind};

/// ggml's types of tokens: text, and an entry that no text becomes.
const NORMAL: u8 = 1;
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
        let (key, found) = (vocab::pieces_key(file).into(), format!("a list of {n}"));
        let wanted = format!("at most {n_rows} wanted, the rows of the embedding");
        return Err(ModelError::Hyper { file: name(), key, found, wanted }.into());
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
            spelt(meta, scores, n_rows, prefixes(&source).ok_or_else(|| unsaid(SPACES.into()))?);
            "llama"
        }
        VocabKind::Merges { merges } if source.space_prefix == SpacePrefix::Never && source.add_bos => {
            meta.strings(&key("merges"), merges.clone());
            "gemma4"
        }
        VocabKind::Merges { merges } => {
            let what = "pieces of SentencePiece merge by a list that follows from no scores, and there is no \
                        tokenizer.model with any";
            let scores = scores(&source, merges).ok_or_else(|| unsaid(what.into()))?;
            spelt(meta, &scores, n_rows, prefixes(&source).ok_or_else(|| unsaid(SPACES.into()))?);
            "llama"
        }
        VocabKind::Words { .. } => {
            return Err(unsaid("words are spelt by the longest pieces (WordPiece)".into()));
        }
    };
    meta.str(&key("model"), model);
    let kind = |i: usize| source.kinds.get(i).copied().unwrap_or(if i < n { NORMAL } else { UNUSED });
    meta.ints(&key("token_type"), (0..n_rows).map(|i| i32::from(kind(i))));
    meta.strings(&key("tokens"), pieces(&source, n_rows));

    // Two ends have keys; of the others a reader knows those that are spelt as ends.
    let ends: Vec<Token> =
        source.eos.into_iter().chain(file.eos_token_ids().iter().map(|id| Token(*id))).collect();
    let (eos, eot) = (ends.first().copied(), source.eot);
    let of = |trusted| {
        let tokenizer = Tokenizer::new(Source { trusted, ..source.clone() });
        tokenizer.map_err(|source| ModelError::Vocabulary { file: name(), source })
    };
    let (before, after) = (of(true)?, of(false)?);
    let mut others: Vec<Token> =
        ends.iter().copied().filter(|t| Some(*t) != eos && !after.is_end(*t)).collect();
    others.sort_unstable();
    others.dedup();
    let eot = eot.or_else(|| others.first().copied());
    lost.extend(
        others.iter().filter(|t| Some(**t) != eot).map(|t| format!("that token {} ends an answer", t.0)),
    );
    let made = after.ends().iter().filter(|t| !before.is_end(**t) && !ends.contains(t));
    lost.extend(made.map(|t| format!("that token {} is text, though spelt like the end of an answer", t.0)));
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

/// The keys of SentencePiece's own kind, with scores for all rows.
fn spelt(meta: &mut Meta, scores: &[f32], n_rows: usize, prefix: bool) {
    let scores = scores.iter().copied().chain(std::iter::repeat(0.0)).take(n_rows);
    meta.floats("tokenizer.ggml.scores", scores);
    meta.bool("tokenizer.ggml.add_space_prefix", prefix);
}

/// Scores of pieces by which the same pairs merge first as by a list. There are some where the list was made of scores: it
/// has every pair of pieces that makes a piece, and those of one piece stand together.
fn scores(source: &Source, merges: &Strings) -> Option<Vec<f32>> {
    let normal = |i: &usize| source.kinds.get(*i).is_none_or(|kind| *kind == NORMAL);
    let pieces = source.pieces.iter().enumerate().filter(|(i, piece)| normal(i) && !piece.is_empty());
    let ids: HashMap<&[u8], usize> = pieces.map(|(i, piece)| (piece, i)).collect();
    let mut scores = vec![f32::NAN; source.pieces.len()];
    let (mut pairs, mut last, mut group) = (HashSet::new(), None, 0_u32);
    let mut both = Vec::new();
    for merge in merges.iter() {
        let space = merge.iter().position(|byte| *byte == b' ')?;
        let (left, right) = (&merge[..space], &merge[space + 1..]);
        both.clear();
        both.extend_from_slice(left);
        both.extend_from_slice(right);
        // What makes no piece is never taken.
        let Some(&id) = ids.get(both.as_slice()) else { continue };
        if last != Some(id) {
            if !scores[id].is_nan() || group >= 1 << f32::MANTISSA_DIGITS {
                return None;
            }
            group += 1;
            scores[id] = -(group as f32);
            last = Some(id);
        }
        pairs.insert((left, right));
    }
    for piece in ids.keys() {
        let text = std::str::from_utf8(piece).ok()?;
        let symbol = |part: &str| ids.contains_key(part.as_bytes()) || part.chars().nth(1).is_none();
        let merges =
            |(l, r): (&str, &str)| pairs.contains(&(l.as_bytes(), r.as_bytes())) || !symbol(l) || !symbol(r);
        if !text.char_indices().skip(1).map(|(at, _)| text.split_at(at)).all(merges) {
            return None;
        }
    }
    // Pieces that nothing merges into come last, as SentencePiece has its letters.
    let least = -(group as f32) - 1.0;
    Some(scores.into_iter().map(|x| if x.is_nan() { least } else { x }).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pieces: &[&str]) -> Source {
        Source {
            model: VocabKind::Scores { scores: Vec::new() },
            pieces: Strings::owned(pieces),
            kinds: Vec::new(),
            trusted: true,
            edges: Vec::new(),
            nfc: false,
            bos: None,
            eos: None,
            eot: None,
            unk: None,
            fuse_unk: false,
            add_bos: false,
            close: None,
            space_prefix: SpacePrefix::Always,
            strips_space: true,
        }
    }

    #[test]
    fn a_list_of_merges_follows_from_scores_or_from_none() {
        let of = |pieces: &[&str], merges: &[&str]| scores(&source(pieces), &Strings::owned(merges));
        let pieces = ["a", "b", "c", "ab", "bc", "abc"];
        let merges = ["b c", "a b", "ab c", "a bc"];
        assert_eq!(of(&pieces, &merges), Some(vec![-4.0, -4.0, -4.0, -2.0, -1.0, -3.0]));
        assert_eq!(of(&pieces, &["b c", "a b", "ab c"]), None, "a bc would merge");
        assert_eq!(of(&pieces, &["a b", "ab c", "b c", "a bc"]), None, "two ranks of one piece");
        assert_eq!(of(&pieces, &["b c", "a b", "x y", "ab c", "a bc"]).map(|s| s[3]), Some(-2.0));
        assert_eq!(of(&pieces, &["bc"]), None);
    }
}
