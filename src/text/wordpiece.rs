//! WordPiece, the vocabulary of BERT and its family: text is tidied and cut at white space and punctuation, and each word
//! is spelt by the longest pieces from its front. What a piece inside a word begins with (`##`) sets it apart. A word
//! that cannot be spelt is one unknown token.
//!
//! The rules are those of `BertNormalizer`, `BertPreTokenizer` and `WordPiece` in a `tokenizer.json`.

use unicode_normalization::UnicodeNormalization;

use super::TextError;
use super::source::WordRules;
use super::unicode::{Class, class, is_accent};
use super::vocab::Vocab;
use crate::base::Token;

/// The rules of a vocabulary of this kind.
pub(super) struct WordPiece {
    rules: WordRules,
    unk: Token,
}

impl WordPiece {
    /// # Errors
    /// When there is no unknown token: most texts could not be spelt.
    pub(super) fn new(rules: WordRules, unk: Option<Token>) -> Result<Self, TextError> {
        let unk = unk.ok_or(TextError::NoUnknown)?;
        Ok(Self { rules, unk })
    }

    /// Appends the tokens of a text without special tokens.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<Token>) {
        let mut word = String::new();
        for c in self.tidied(text).chars() {
            let alone = is_punctuation(c);
            if alone || c.is_whitespace() {
                self.spell(vocab, &word, out);
                word.clear();
            }
            if alone {
                self.spell(vocab, c.encode_utf8(&mut [0; 4]), out);
            } else if !c.is_whitespace() {
                word.push(c);
            }
        }
        self.spell(vocab, &word, out);
    }

    /// The text as words are looked for in it.
    fn tidied(&self, text: &str) -> String {
        let WordRules { clean, chinese, accents, lower, .. } = self.rules;
        let mut tidy = String::with_capacity(text.len());
        for c in text.chars() {
            if clean && is_dropped(c) {
                continue;
            }
            if chinese && is_chinese(c) {
                tidy.extend([' ', c, ' ']);
            } else {
                tidy.push(c);
            }
        }
        if !accents {
            tidy = tidy.nfd().filter(|c| !is_accent(*c)).collect();
        }
        if lower {
            tidy = tidy.chars().flat_map(char::to_lowercase).collect();
        }
        tidy
    }

    /// Appends the tokens of a word.
    fn spell(&self, vocab: &Vocab, word: &str, out: &mut Vec<Token>) {
        if word.chars().count() > self.rules.max_chars {
            return out.push(self.unk);
        }
        let (mut rest, before) = (word, out.len());
        while !rest.is_empty() {
            let inside: &[u8] = if rest.len() < word.len() { self.rules.inside.as_bytes() } else { b"" };
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
            let longest = ends
                .filter_map(|end| Some((end, vocab.find_parts(&[inside, &rest.as_bytes()[..end]])?)))
                .next();
            let Some((end, token)) = longest else {
                out.truncate(before);
                return out.push(self.unk);
            };
            out.push(token);
            rest = &rest[end..];
        }
    }

    /// Appends the text of a piece: one that begins a word has a space before it.
    pub(super) fn unmap(&self, piece: &[u8], out: &mut Vec<u8>) {
        match piece.strip_prefix(self.rules.inside.as_bytes()) {
            Some(inside) => out.extend_from_slice(inside),
            None => {
                out.push(b' ');
                out.extend_from_slice(piece);
            }
        }
    }
}

/// What has no place in text: control and format characters, and what stands for bytes that were none.
fn is_dropped(c: char) -> bool {
    let white = matches!(c, '\t' | '\n' | '\r');
    !white && (c == '\u{fffd}' || c.is_control() || class(c) == Class::Other)
}

/// What is a word of its own: all of ASCII that is no letter, digit or space, and category P.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || class(c) == Class::Punctuation
}

/// Ideographs, as BERT has them; neither kana nor hangul.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Strings;

    const PIECES: [&str; 16] = [
        "[UNK]", "un", "##aff", "##able", "##a", "!", "the", "中", "国", "##ff", "cafe", "e", "##e", "$",
        "İ", "i",
    ];

    fn rules() -> WordRules {
        WordRules {
            clean: true,
            chinese: true,
            accents: false,
            lower: true,
            inside: "##".into(),
            max_chars: 12,
        }
    }

    fn texts(rules: WordRules, text: &str) -> String {
        let mut kinds = vec![1; PIECES.len()];
        kinds[0] = 2;
        let vocab = Vocab::new(Strings::owned(PIECES), kinds, true, false).expect("a vocabulary");
        let mut out = Vec::new();
        WordPiece::new(rules, Some(Token(0))).expect("unknown").encode(&vocab, text, &mut out);
        let piece = |t: &Token| String::from_utf8_lossy(vocab.piece(*t)).into_owned();
        out.iter().map(piece).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_are_spelt_from_the_front_by_the_longest_pieces() {
        let of = |text| texts(rules(), text);
        assert_eq!(of("unaffable"), "un ##aff ##able");
        assert_eq!(of("the unaffable!the"), "the un ##aff ##able ! the");
        assert_eq!(of("unaffablex the"), "[UNK] the", "a word that cannot be spelt is one token");
        assert_eq!(of("unaffableable"), "[UNK]", "13 letters");
        assert_eq!(of(" \t\n"), "");
    }

    #[test]
    fn text_is_tidied_as_the_rules_say() {
        let of = |text| texts(rules(), text);
        assert_eq!(of("CAFÉ café cafe\u{301}"), "cafe cafe cafe");
        assert_eq!(of("the中国the"), "the 中 国 the");
        assert_eq!(of("t\u{200b}h\0e \u{fffd}$!"), "the $ !");
        assert_eq!(of("the\u{a0}the\u{3000}the"), "the the the");
        let cased = || WordRules { lower: false, accents: true, chinese: false, clean: false, ..rules() };
        assert_eq!(texts(cased(), "The the café 中国 İ"), "[UNK] the [UNK] [UNK] İ");
        assert_eq!(texts(WordRules { lower: true, ..cased() }, "THE"), "the");
        // A letter that becomes two in lower case.
        assert_eq!(of("İ"), "i");
    }

    #[test]
    fn pieces_become_text_again() {
        let rules = WordPiece::new(rules(), Some(Token(0))).expect("unknown");
        let mut out = Vec::new();
        for piece in ["un", "##aff", "!"] {
            rules.unmap(piece.as_bytes(), &mut out);
        }
        assert_eq!(out, b" unaff !");
        assert!(WordPiece::new(rules.rules, None).is_err());
    }
}
