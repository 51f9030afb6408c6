//! The pieces of a vocabulary, their kinds, and finding a piece by its text.

use super::TextError;
use super::index::Index;
use crate::base::limits::N_VOCAB_MAX;
use crate::base::{Strings, Token};

/// What a token is for (ggml's token types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text; also types that are not known, and unused entries.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model; no text of a user becomes one.
    Control,
    /// Text that is always a token of its own.
    UserDefined,
    /// A single byte, in SentencePiece vocabularies.
    Byte,
}

const NORMAL: u8 = 1;
const CONTROL: u8 = 3;
const USER_DEFINED: u8 = 4;
const BYTE: u8 = 6;

/// Texts of control tokens that end an answer, as models in use spell them.
const ENDS: [&str; 14] = [
    "</s>",
    "<eos>",
    "<EOT>",
    "[EOS]",
    "[EOT]",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
];

pub(super) struct Vocab {
    pieces: Strings,
    kinds: Vec<u8>,
    index: Index,
}

impl Vocab {
    /// `kinds` as in [`super::Source`]; `spm` says whether `<0xNN>` is a byte where kinds are absent.
    pub(super) fn new(pieces: Strings, mut kinds: Vec<u8>, spm: bool) -> Result<Self, TextError> {
        let n = pieces.len();
        if n == 0 || n > N_VOCAB_MAX {
            return Err(TextError::VocabSize { n });
        }
        if kinds.is_empty() {
            let kind = |piece| if spm && byte_of(piece).is_some() { BYTE } else { NORMAL };
            kinds = pieces.iter().map(kind).collect();
        }
        if kinds.len() != n {
            return Err(TextError::Length { what: "token types", found: kinds.len(), n });
        }
        // Some files have the end of a turn as text, which any user could then spell.
        for (kind, piece) in kinds.iter_mut().zip(pieces.iter()) {
            if is_end_text(piece) {
                *kind = CONTROL;
            }
        }
        let text = |i: usize, piece: &[u8]| {
            !piece.is_empty() && matches!(kind_of(kinds[i]), Kind::Normal | Kind::UserDefined)
        };
        let index = Index::new(&pieces, text);
        Ok(Self { pieces, kinds, index })
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The piece of a token; empty for one outside the vocabulary.
    pub(super) fn piece(&self, token: Token) -> &[u8] {
        self.pieces.get(token.index()).unwrap_or_default()
    }

    /// `None` for a token outside the vocabulary.
    pub(super) fn kind(&self, token: Token) -> Option<Kind> {
        self.kinds.get(token.index()).map(|&kind| kind_of(kind))
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = (Token, Kind, &[u8])> {
        let rows = self.kinds.iter().zip(self.pieces.iter());
        (0..).map(Token).zip(rows).map(|(token, (&kind, piece))| (token, kind_of(kind), piece))
    }

    /// The token that this text is: a normal or user-defined one, never one that text must not become.
    pub(super) fn find(&self, text: &[u8]) -> Option<Token> {
        self.index.get(&self.pieces, &[text]).map(Token)
    }
}

fn kind_of(kind: u8) -> Kind {
    match kind {
        2 => Kind::Unknown,
        CONTROL => Kind::Control,
        USER_DEFINED => Kind::UserDefined,
        BYTE => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// Whether a control token of this text ends an answer.
pub(super) fn is_end_text(piece: &[u8]) -> bool {
    ENDS.iter().any(|end| end.as_bytes() == piece)
}

/// The byte that a piece of the form `<0xNN>` stands for.
pub(super) fn byte_of(piece: &[u8]) -> Option<u8> {
    let hex: &[u8; 2] = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?.try_into().ok()?;
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(hex[0])? << 4 | digit(hex[1])?)
}
