//! Byte-level BPE: text is cut into words, each byte becomes a letter, letters merge by the ranks of a list.

use super::TextError;
use super::index::Index;
use super::merge::Merger;
use super::pretok::Pre;
use super::vocab::Vocab;
use crate::base::{Strings, Token};

/// The merges and the pattern of a byte-level vocabulary.
pub(super) struct Bpe {
    pre: Pre,
    /// `left right`, best first.
    merges: Strings,
    index: Index,
}

impl Bpe {
    /// Merges that name pieces the vocabulary lacks are never taken. Many vocabularies lack bytes that their makers
    /// never saw; those are dropped from text. Without plain text there is nothing to do.
    pub(super) fn new(vocab: &Vocab, pre: Pre, merges: Strings) -> Result<Self, TextError> {
        for byte in (b' '..=b'~').chain([b'\n']) {
            let mut letter = [0; 2];
            vocab
                .find(letter_of(byte).encode_utf8(&mut letter).as_bytes())
                .ok_or(TextError::MissingByte { byte })?;
        }
        let index = Index::new(&merges, |_, _| true, |_, _| {});
        Ok(Self { pre, merges, index })
    }

    /// A table of its merges to be kept with them.
    pub(super) fn kept(&self) -> Option<Vec<u32>> {
        self.index.kept(&self.merges)
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, merger: &mut Merger, out: &mut Vec<Token>) {
        let mut letters = String::new();
        self.pre.words(text, |word| {
            letters.clear();
            letters.extend(word.bytes().map(letter_of));
            let bytes = letters.as_bytes();
            if self.pre.ignore_merges
                && let Some(token) = vocab.find(bytes)
            {
                return out.push(token);
            }
            let rank = |left: &[u8], right: &[u8], both: &[u8]| {
                let rank = self.index.get(&self.merges, &[left, b" ", right])?;
                vocab.find(both).map(|_| rank)
            };
            let runs = merger.run(bytes, letters.chars().map(char::len_utf8), rank);
            out.extend(runs.filter_map(|run| vocab.find(&bytes[run])));
        });
    }
}

/// The letter that stands for `byte` in byte-level vocabularies (GPT-2, `encoder.py`): itself where it prints, else one
/// from U+0100 on.
#[must_use]
pub fn letter_of(byte: u8) -> char {
    let shift = match byte {
        33..=126 | 161..=172 | 174..=255 => 0,
        0..=32 => 0x100,
        127..=160 => 0x121 - 127,
        173 => 0x143 - 173,
    };
    char::from_u32(u32::from(byte) + shift).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `letter` stands for.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 127,
        0x143 => 173,
        _ => code,
    };
    u8::try_from(byte).ok().filter(|&byte| letter_of(byte) == letter)
}

/// Appends the bytes that a piece stands for; what is no letter stays as it is.
pub(super) fn unmap(piece: &[u8], out: &mut Vec<u8>) {
    for chunk in piece.utf8_chunks() {
        for c in chunk.valid().chars() {
            match byte_of(c) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out.extend_from_slice(chunk.invalid());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A vocabulary of the 256 letters and the results of `merges`, then `more`.
    pub(in super::super) fn pieces(merges: &[&str], more: &[&str]) -> Strings {
        let letters = (0..=255).map(|b| letter_of(b).to_string());
        let merged = merges.iter().map(|m| m.replace(' ', ""));
        Strings::owned(letters.chain(merged).chain(more.iter().map(|&m| m.to_owned())))
    }

    #[test]
    fn letters_are_256_and_come_back() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(letter_of).collect();
        assert_eq!(letters.len(), 256);
        assert!((0..=255).all(|b| byte_of(letter_of(b)) == Some(b)));
        assert_eq!((letter_of(b' '), letter_of(b'\n'), letter_of(0xad)), ('Ġ', 'Ċ', '\u{143}'));
        assert_eq!(letters.last(), Some(&'\u{143}'));
        assert!(byte_of(' ').is_none() && byte_of('漢').is_none());
    }

    #[test]
    fn merges_go_by_rank_and_absent_pieces_are_passed_over() {
        let merges = ["l o", "lo w", "e r", "w e", "o w"];
        let vocab = Vocab::new(pieces(&merges, &[]), Vec::new(), false, false).expect("a vocabulary");
        // "er x" cannot be reached and "low er" has no piece.
        let listed = Strings::owned(merges.into_iter().chain(["low er", "er x", "l o"]));
        let pre = Pre::named(Some("gpt-2")).expect("a known name");
        let bpe = Bpe::new(&vocab, pre, listed).expect("a tokenizer");
        let mut out = Vec::new();
        bpe.encode(&vocab, "lower we é", &mut Merger::default(), &mut out);
        let texts: Vec<_> =
            out.iter().map(|&t| String::from_utf8_lossy(vocab.piece(t)).into_owned()).collect();
        assert_eq!(texts, ["low", "er", "Ġ", "we", "Ġ", "Ã", "©"]);
    }

    #[test]
    fn a_vocabulary_that_cannot_spell_is_refused() {
        let short = Strings::owned(pieces(&[], &[]).iter().take(100));
        let vocab = Vocab::new(short, Vec::new(), false, false).expect("a vocabulary");
        let pre = Pre::named(None).expect("the default");
        let found = Bpe::new(&vocab, pre, Strings::owned::<&str>([])).err();
        assert_eq!(found, Some(TextError::MissingByte { byte: 100 }));
    }
}
