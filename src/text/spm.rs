//! SentencePiece BPE: characters merge by the scores of the pieces they make; what has no piece is spelt in bytes.

use super::TextError;
use super::merge::Merger;
use super::vocab::{Kind, Vocab, byte_of};
use crate::base::Token;

/// What stands for a space in pieces.
const SPACE: &str = "\u{2581}";

/// Scores, byte tokens and habits of a SentencePiece vocabulary.
pub(super) struct Spm {
    /// Of each token; a higher score is a lower rank.
    ranks: Vec<u32>,
    bytes: [Option<Token>; 256],
    unk: Option<Token>,
    /// Whether text begins with a space that nobody wrote.
    pub(super) space_prefix: bool,
    /// Whether no piece holds a space behind another character, so that words can be merged one by one.
    by_word: bool,
}

impl Spm {
    pub(super) fn new(
        vocab: &Vocab,
        scores: &[f32],
        unk: Option<Token>,
        space_prefix: Option<bool>,
    ) -> Result<Self, TextError> {
        let n = vocab.len();
        if !scores.is_empty() && scores.len() != n {
            return Err(TextError::Length { what: "scores", found: scores.len(), n });
        }
        let ranks = (0..n).map(|i| rank_of(scores.get(i).copied().unwrap_or(0.0))).collect();
        let (mut bytes, mut unk, mut by_word) = ([None; 256], unk, true);
        for (token, kind, piece) in vocab.tokens() {
            match kind {
                Kind::Byte => {
                    if let Some(byte) = byte_of(piece) {
                        bytes[usize::from(byte)].get_or_insert(token);
                    }
                }
                Kind::Unknown => {
                    unk.get_or_insert(token);
                }
                Kind::Normal | Kind::UserDefined => by_word &= n_words(piece) < 2,
                Kind::Control => {}
            }
        }
        Ok(Self { ranks, bytes, unk, space_prefix: space_prefix.unwrap_or(true), by_word })
    }

    /// Appends the tokens of text without special tokens; `first` says that it begins the text or follows a special
    /// token.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        first: bool,
        merger: &mut Merger,
        out: &mut Vec<Token>,
    ) {
        let mut spaced = String::with_capacity(text.len() + text.len() / 4);
        if first && self.space_prefix {
            spaced.push_str(SPACE);
        }
        for c in text.chars() {
            match c {
                ' ' => spaced.push_str(SPACE),
                c => spaced.push(c),
            }
        }
        let mut rest = spaced.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(if self.by_word { word_len(rest) } else { rest.len() });
            rest = after;
            let rank =
                |_: &[u8], _: &[u8], both: &[u8]| vocab.find(both).map(|token| self.ranks[token.index()]);
            for run in merger.run(word.as_bytes(), word.chars().map(char::len_utf8), rank) {
                self.push(vocab, &word.as_bytes()[run], out);
            }
        }
    }

    /// Appends the token of a piece, or of the bytes of a character without one.
    fn push(&self, vocab: &Vocab, piece: &[u8], out: &mut Vec<Token>) {
        let bytes = || piece.iter().map(|&byte| self.bytes[usize::from(byte)]);
        if let Some(token) = vocab.find(piece) {
            out.push(token);
        } else if bytes().all(|token| token.is_some()) || self.unk.is_none() {
            out.extend(bytes().flatten());
        } else {
            out.extend(self.unk);
        }
    }
}

/// Appends the text of a normal piece.
pub(super) fn unmap(piece: &[u8], out: &mut Vec<u8>) {
    let mut rest = piece;
    while let Some((&byte, after)) = rest.split_first() {
        match rest.strip_prefix(SPACE.as_bytes()) {
            Some(after) => {
                out.push(b' ');
                rest = after;
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
}

/// Bytes of the first word: spaces, then what follows up to the next space.
fn word_len(text: &str) -> usize {
    let spaces = text.len() - text.trim_start_matches(SPACE).len();
    text[spaces..].find(SPACE).map_or(text.len(), |n| spaces + n)
}

/// Words in a piece.
fn n_words(piece: &[u8]) -> usize {
    let is_space = |at: usize| piece[at..].starts_with(SPACE.as_bytes());
    let begins = |at: usize| is_space(at) && !(at >= SPACE.len() && is_space(at - SPACE.len()));
    usize::from(!piece.starts_with(SPACE.as_bytes())) + (0..piece.len()).filter(|&at| begins(at)).count()
}

/// Ranks in the opposite order of scores; what is no number comes last.
fn rank_of(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    // Adding 0 makes -0 and 0 equal. Bits of positive floats are in order, of negative ones in the opposite one.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab(pieces: &[&str], kinds: &[u8]) -> Vocab {
        Vocab::new(crate::base::Strings::owned(pieces), kinds.to_vec(), true).expect("a vocabulary")
    }

    fn texts(spm: &Spm, vocab: &Vocab, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        spm.encode(vocab, text, true, &mut Merger::default(), &mut out);
        out.iter().map(|&t| String::from_utf8_lossy(vocab.piece(t)).into_owned()).collect()
    }

    #[test]
    fn merges_go_by_score_and_the_rest_is_bytes() {
        let v = vocab(
            &[
                "<unk>",
                "<0xC3>",
                "<0xA9>",
                "\u{2581}",
                "a",
                "b",
                "ab",
                "ba",
                "\u{2581}a",
                "<s>",
                "<",
                "s",
                "<s",
                ">",
            ],
            &[2, 6, 6, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1],
        );
        let scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, 0.0, -9.0, -9.0, -9.0, -9.0];
        let spm = Spm::new(&v, &scores, None, None).expect("a tokenizer");
        assert!(spm.by_word);
        assert_eq!(texts(&spm, &v, "aba ba"), ["\u{2581}", "ab", "a", "\u{2581}", "ba"]);
        assert_eq!(texts(&spm, &v, "é漢"), ["\u{2581}", "<0xC3>", "<0xA9>", "<unk>"]);
        assert_eq!(texts(&spm, &v, "<s>"), ["\u{2581}", "<s", ">"], "no text becomes a control token");
        let bare = Spm { unk: None, space_prefix: false, ..spm };
        assert_eq!(texts(&bare, &v, "漢a"), ["a"], "dropped: neither bytes nor unk");
        assert!(Spm::new(&v, &scores[1..], None, None).is_err());
    }

    #[test]
    fn words_are_told_by_their_spaces() {
        let counts = ["", "a", "\u{2581}a", "\u{2581}\u{2581}", "a\u{2581}", "\u{2581}a\u{2581}b"]
            .map(|p| n_words(p.as_bytes()));
        assert_eq!(counts, [1, 1, 1, 1, 2, 2]);
        assert_eq!(word_len("\u{2581}\u{2581}ab\u{2581}c"), 8);
        assert_eq!(word_len("ab\u{2581}c"), 2);
        assert_eq!(word_len("\u{2581}"), 3);
    }

    #[test]
    fn ranks_run_against_scores() {
        let scores = [f32::INFINITY, 2.0, 1.0, 0.0, -1.0, -2.0, f32::NEG_INFINITY, f32::NAN];
        assert!(scores.map(rank_of).is_sorted_by(|a, b| a < b));
        assert_eq!(rank_of(0.0), rank_of(-0.0));
    }
}
