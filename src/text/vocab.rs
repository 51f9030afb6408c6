//! The pieces of a vocabulary, their kinds, and finding a piece by its text.

use super::TextError;
use super::index::Index;
use super::source::Edges;
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

/// ggml's token types, in the order of [`Kind`].
pub(super) const NORMAL: u8 = 1;
pub(super) const UNKNOWN: u8 = 2;
pub(super) const CONTROL: u8 = 3;
pub(super) const USER_DEFINED: u8 = 4;
pub(super) const UNUSED: u8 = 5;
pub(super) const BYTE: u8 = 6;

/// Texts of control tokens that end an answer, as models in use spell them.
const ENDS: [&str; 18] = [
    "</s>",
    "<eos>",
    "<EOT>",
    "[EOS]",
    "[EOT]",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<turn|>",
    "<|call|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];

pub(super) struct Vocab {
    pieces: Strings,
    kinds: Vec<u8>,
    index: Index,
    /// Sorted by token.
    edges: Vec<(Token, Edges)>,
    /// Control tokens that end an answer by their text.
    pub(super) ends: Vec<Token>,
}

impl Vocab {
    /// `kinds` and `trusted` as in [`super::Source`]; `spm` says whether `<0xNN>` is a byte where kinds are absent.
    pub(super) fn new(
        pieces: Strings,
        mut kinds: Vec<u8>,
        trusted: bool,
        spm: bool,
    ) -> Result<Self, TextError> {
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
        let ends = ends(&pieces, &mut kinds, trusted);
        // User-defined text is cut out as a whole; what is left of it was broken on purpose, and may not merge again.
        // Some vocabularies have single letters as such.
        let letter = |piece: &[u8]| std::str::from_utf8(piece).is_ok_and(|text| text.chars().count() == 1);
        let text = |i: usize, piece: &[u8]| match kind_of(kinds[i]) {
            Kind::Normal => !piece.is_empty(),
            Kind::UserDefined => letter(piece),
            _ => false,
        };
        let mut twins = None;
        let index = Index::new(&pieces, text, |first, later| {
            twins.get_or_insert((first, later));
        });
        if let Some((first, later)) = twins {
            return Err(TextError::Twins { first, later });
        }
        Ok(Self { pieces, kinds, index, edges: Vec::new(), ends })
    }

    /// Gives tokens their [`Edges`]; one outside the vocabulary has no use for them.
    pub(super) fn set_edges(&mut self, mut edges: Vec<(Token, Edges)>) {
        edges.sort_by_key(|(token, _)| *token);
        self.edges = edges;
    }

    /// What is taken with this token.
    pub(super) fn edges(&self, token: Token) -> Edges {
        let at = self.edges.binary_search_by_key(&token, |(token, _)| *token);
        at.map(|at| self.edges[at].1).unwrap_or_default()
    }

    /// A table of its pieces to be kept with them.
    pub(super) fn kept(&self) -> Option<Vec<u32>> {
        self.index.kept(&self.pieces)
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

    /// The token that this text is: a normal one or a user-defined letter, never one that text must not become.
    pub(super) fn find(&self, text: &[u8]) -> Option<Token> {
        self.find_parts(&[text])
    }

    /// The same for the text that `parts` make together.
    pub(super) fn find_parts(&self, parts: &[&[u8]]) -> Option<Token> {
        self.index.get(&self.pieces, parts).map(Token)
    }
}

fn kind_of(kind: u8) -> Kind {
    match kind {
        UNKNOWN => Kind::Unknown,
        CONTROL => Kind::Control,
        USER_DEFINED => Kind::UserDefined,
        BYTE => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// The tokens that end an answer by their text. Those of a wrong kind are made control tokens.
fn ends(pieces: &Strings, kinds: &mut [u8], trusted: bool) -> Vec<Token> {
    // All of them begin with a bracket, and few other pieces do.
    let bracket = |piece: &[u8]| matches!(piece.first(), Some(b'<' | b'['));
    let is_end = |piece: &[u8]| bracket(piece) && ENDS.iter().any(|end| end.as_bytes() == piece);
    let mut ends: Vec<(u32, &[u8])> = (0..).zip(pieces.iter()).filter(|&(_, piece)| is_end(piece)).collect();
    let has = |text: &str| ends.iter().any(|(_, piece)| *piece == text.as_bytes());
    // gpt-oss ends a message with what ends an answer elsewhere; to Gemma 4 the old end is a text like any other.
    let (harmony, gemma4) = (has("<|return|>") && has("<|call|>"), has("<|tool_response>"));
    ends.retain(|&(_, piece)| !(harmony && piece == b"<|end|>" || gemma4 && piece == b"</s>"));
    for &(token, _) in &ends {
        let kind = &mut kinds[token as usize];
        if !trusted || *kind == USER_DEFINED {
            *kind = CONTROL;
        }
    }
    ends.into_iter().map(|(token, _)| Token(token)).filter(|t| kinds[t.index()] == CONTROL).collect()
}

/// The byte that a piece of the form `<0xNN>` stands for.
pub(super) fn byte_of(piece: &[u8]) -> Option<u8> {
    let hex: &[u8; 2] = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?.try_into().ok()?;
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(hex[0])? << 4 | digit(hex[1])?)
}
