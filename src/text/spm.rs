//! SentencePiece BPE: characters merge by the scores of the pieces they make, or by the ranks of a list; what has no
//! piece is spelt in bytes.

use super::TextError;
use super::index::Index;
use super::merge::Merger;
use super::source::SpacePrefix;
use super::vocab::{Kind, Vocab, byte_of};
use crate::base::{Strings, Token};

/// What stands for a space in pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// Which pair of neighbours merges first.
pub(super) enum Ranks {
    /// By the token that the two make: a higher score is a lower rank.
    Scores(Vec<u32>),
    /// By their place in a list of `left right`, best first.
    Merges(Strings, Index),
}

impl Ranks {
    /// Of the scores of a vocabulary of `n`; without any all are alike.
    pub(super) fn scores(scores: &[f32], n: usize) -> Result<Self, TextError> {
        if !scores.is_empty() && scores.len() != n {
            return Err(TextError::Length { what: "scores", found: scores.len(), n });
        }
        Ok(Self::Scores((0..n).map(|i| rank_of(scores.get(i).copied().unwrap_or(0.0))).collect()))
    }

    /// Of a list. Merges that name pieces the vocabulary lacks are never taken.
    pub(super) fn merges(merges: Strings) -> Self {
        let index = Index::new(&merges, |_, _| true, |_, _| {});
        Self::Merges(merges, index)
    }

    fn get(&self, vocab: &Vocab, left: &[u8], right: &[u8], both: &[u8]) -> Option<u32> {
        match self {
            Self::Scores(ranks) => vocab.find(both).map(|token| ranks[token.index()]),
            Self::Merges(merges, index) => {
                let rank = index.get(merges, &[left, b" ", right])?;
                vocab.find(both).map(|_| rank)
            }
        }
    }
}

/// Ranks, byte tokens and habits of a SentencePiece vocabulary.
pub(super) struct Spm {
    ranks: Ranks,
    bytes: [Option<Token>; 256],
    unk: Option<Token>,
    /// Whether several unknown characters in a row are one token.
    fuse_unk: bool,
    space_prefix: SpacePrefix,
    /// Sorted: the characters that stand before a space inside some piece. Behind any other one a space begins a word,
    /// and words merge one by one.
    bridges: Vec<char>,
}

impl Spm {
    pub(super) fn new(
        vocab: &Vocab,
        ranks: Ranks,
        unk: Option<Token>,
        fuse_unk: bool,
        space_prefix: SpacePrefix,
    ) -> Self {
        // A control token that is named here would be one that text can become.
        let unk = unk.filter(|&token| vocab.kind(token) != Some(Kind::Control));
        let (mut bytes, mut unk, mut bridges) = ([None; 256], unk, Vec::new());
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
                Kind::Normal | Kind::UserDefined => bridges.extend(bridges_of(piece)),
                Kind::Control => {}
            }
        }
        bridges.sort_unstable();
        bridges.dedup();
        Self { ranks, bytes, unk, fuse_unk, space_prefix, bridges }
    }

    /// A table of its merges to be kept with them, if it has any.
    pub(super) fn kept(&self) -> Option<Vec<u32>> {
        match &self.ranks {
            Ranks::Scores(_) => None,
            Ranks::Merges(merges, index) => index.kept(merges),
        }
    }

    /// Appends the tokens of a text without special tokens; `first` says that nothing goes before it.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        first: bool,
        merger: &mut Merger,
        out: &mut Vec<Token>,
    ) {
        let mut spaced = String::with_capacity(text.len() + text.len() / 4);
        let spaceless = !text.starts_with([' ', '\u{2581}']);
        if match self.space_prefix {
            SpacePrefix::Never => false,
            SpacePrefix::Always => true,
            SpacePrefix::Missing => spaceless,
            SpacePrefix::First => first && spaceless,
        } {
            spaced.push_str(SPACE);
        }
        for c in text.chars() {
            match c {
                ' ' => spaced.push_str(SPACE),
                c => spaced.push(c),
            }
        }
        let mut unknown = false;
        let mut rest = spaced.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(word_len(rest, &self.bridges));
            rest = after;
            let rank = |left: &[u8], right: &[u8], both: &[u8]| self.ranks.get(vocab, left, right, both);
            for run in merger.run(word.as_bytes(), word.chars().map(char::len_utf8), rank) {
                unknown = self.push(vocab, &word.as_bytes()[run], unknown, out);
            }
        }
    }

    /// Appends the token of a piece, or of the bytes of a character without one. Takes whether the character before was
    /// unknown, and tells whether this one is.
    fn push(&self, vocab: &Vocab, piece: &[u8], unknown: bool, out: &mut Vec<Token>) -> bool {
        let bytes = || piece.iter().map(|&byte| self.bytes[usize::from(byte)]);
        if let Some(token) = vocab.find(piece) {
            out.push(token);
        } else if bytes().all(|token| token.is_some()) || self.unk.is_none() {
            out.extend(bytes().flatten());
        } else {
            if !(self.fuse_unk && unknown) {
                out.extend(self.unk);
            }
            return true;
        }
        false
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

/// Bytes of the first word: spaces, then what follows up to a space that no piece joins to it.
fn word_len(text: &str, bridges: &[char]) -> usize {
    let mut before = None;
    for (at, c) in text.char_indices() {
        if SPACE.starts_with(c)
            && before.is_some_and(|b| !SPACE.starts_with(b) && bridges.binary_search(&b).is_err())
        {
            return at;
        }
        before = Some(c);
    }
    text.len()
}

/// The characters before a space in a piece, spaces apart. A piece that is no UTF-8 occurs in no text.
fn bridges_of(piece: &[u8]) -> impl Iterator<Item = char> {
    let piece = std::str::from_utf8(piece).unwrap_or_default();
    let before = piece.match_indices(SPACE).filter_map(|(at, _)| piece[..at].chars().next_back());
    before.filter(|&c| !SPACE.starts_with(c))
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
        Vocab::new(Strings::owned(pieces), kinds.to_vec(), false, true).expect("a vocabulary")
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
        let ranks = Ranks::scores(&scores, v.len()).expect("as many as pieces");
        let spm = Spm::new(&v, ranks, None, false, SpacePrefix::Always);
        assert!(spm.bridges.is_empty());
        assert_eq!(texts(&spm, &v, "aba ba"), ["\u{2581}", "ab", "a", "\u{2581}", "ba"]);
        assert_eq!(texts(&spm, &v, "é漢"), ["\u{2581}", "<0xC3>", "<0xA9>", "<unk>"]);
        assert_eq!(texts(&spm, &v, "<s>"), ["\u{2581}", "<s", ">"], "no text becomes a control token");
        assert_eq!(texts(&spm, &v, "漢字漢"), ["\u{2581}", "<unk>", "<unk>", "<unk>"]);
        let fused = Spm { fuse_unk: true, ..spm };
        assert_eq!(
            texts(&fused, &v, "漢字a漢é漢"),
            ["\u{2581}", "<unk>", "a", "<unk>", "<0xC3>", "<0xA9>", "<unk>"]
        );
        let bare = Spm { unk: None, space_prefix: SpacePrefix::Never, ..fused };
        assert_eq!(texts(&bare, &v, "漢a"), ["a"], "dropped: neither bytes nor unk");
        assert!(Ranks::scores(&scores[1..], v.len()).is_err());
        let control = vocab(&["<s>", "a"], &[3, 1]);
        let ranks = Ranks::scores(&[], 2).expect("none");
        let spm = Spm::new(&control, ranks, Some(Token(0)), false, SpacePrefix::Never);
        assert_eq!(texts(&spm, &control, "漢a"), ["a"], "no text becomes a control token");
    }

    #[test]
    fn a_list_ranks_what_pairs_make_and_spaces_are_put_where_they_belong() {
        let v = vocab(&["\u{2581}", "a", "b", "ab", "ba", "\u{2581}a"], &[1; 6]);
        let ranks = Ranks::merges(Strings::owned(["b a", "a b", "\u{2581} a", "ab a", "a", "  "]));
        let spm = Spm::new(&v, ranks, None, false, SpacePrefix::First);
        assert_eq!(texts(&spm, &v, "aba"), ["\u{2581}a", "ba"]);
        assert_eq!(texts(&spm, &v, " a"), ["\u{2581}a"], "there is one already");
        let mut out = Vec::new();
        spm.encode(&v, "a", false, &mut Merger::default(), &mut out);
        assert_eq!(out, [Token(1)]);
        let missing = Spm { space_prefix: SpacePrefix::Missing, ..spm };
        missing.encode(&v, "a", false, &mut Merger::default(), &mut out);
        assert_eq!(out, [Token(1), Token(5)]);
        let always = Spm { space_prefix: SpacePrefix::Always, ..missing };
        assert_eq!(texts(&always, &v, " a"), ["\u{2581}", "\u{2581}a"]);
    }

    #[test]
    fn words_are_told_by_their_spaces() {
        let pieces =
            ["", "a", "\u{2581}a", "\u{2581}\u{2581}", "a\u{2581}", "\u{2581}é\u{2581}\u{2581}b>\u{2581}"];
        let bridges = pieces.map(|p| bridges_of(p.as_bytes()).collect::<String>());
        assert_eq!(bridges, ["", "", "", "", "a", "é>"]);
        assert_eq!(bridges_of(b"a\xff\xe2\x96\x81").count(), 0);
        assert_eq!(word_len("\u{2581}\u{2581}ab\u{2581}c", &[]), 8);
        assert_eq!(word_len("ab\u{2581}c", &[]), 2);
        assert_eq!(word_len("ab\u{2581}c\u{2581}", &['b']), 6);
        assert_eq!(word_len("\u{2581}", &[]), 3);
    }

    /// Words that merge one by one give what the whole text would.
    #[test]
    fn a_piece_across_a_space_is_found() {
        let v = vocab(&["\u{2581}", "a", ">", "a>", "\u{2581}a", ">\u{2581}", ">\u{2581}a"], &[1; 7]);
        let scores = [-9.0, -9.0, -9.0, -8.0, -3.0, -1.0, -2.0];
        let ranks = Ranks::scores(&scores, v.len()).expect("as many as pieces");
        let spm = Spm::new(&v, ranks, None, false, SpacePrefix::Never);
        assert_eq!(texts(&spm, &v, "a> a a>"), ["a", ">\u{2581}a", "\u{2581}a", ">"]);
    }

    #[test]
    fn ranks_run_against_scores() {
        let scores = [f32::INFINITY, 2.0, 1.0, 0.0, -1.0, -2.0, f32::NEG_INFINITY, f32::NAN];
        assert!(scores.map(rank_of).is_sorted_by(|a, b| a < b));
        assert_eq!(rank_of(0.0), rank_of(-0.0));
    }
}
