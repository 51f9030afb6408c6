//! What a model's files say about its vocabulary, whichever files they are.

use super::pretok::Pre;
use crate::base::{Strings, Token};

/// Families of vocabularies.
#[derive(Clone, Debug)]
pub enum VocabKind {
    /// Byte-level BPE (`gpt2` in GGUF): words of letters that stand for bytes merge by the ranks of a list.
    Bytes {
        /// How text is cut into words.
        pre: Pre,
        /// `left right`, best first.
        merges: Strings,
    },
    /// SentencePiece BPE (`llama` in GGUF): characters merge by the scores of what they make.
    Scores {
        /// `[n_vocab]`, or empty: all are alike.
        scores: Vec<f32>,
    },
    /// The same pieces, but with the ranks of a list (`gemma4` in GGUF, and every `tokenizer.json`).
    Merges {
        /// `left right`, best first.
        merges: Strings,
    },
    /// WordPiece: words are spelt by the longest pieces from their front.
    Words {
        /// What a word is.
        rules: WordRules,
    },
}

/// How text becomes words, and words pieces, in a WordPiece vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordRules {
    /// Whether control characters are dropped.
    pub clean: bool,
    /// Whether each ideograph is a word.
    pub chinese: bool,
    /// Whether accents stay.
    pub accents: bool,
    /// Whether text is put into lower case.
    pub lower: bool,
    /// What pieces inside a word begin with.
    pub inside: String,
    /// Longest word that is spelt, in characters.
    pub max_chars: usize,
}

/// Where text begins with a space that nobody wrote, in vocabularies of the SentencePiece kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Nowhere.
    Never,
    /// At its beginning and behind each special token.
    Always,
    /// There, but not before a space.
    Missing,
    /// Only where the whole text begins, and not before a space.
    First,
}

/// What else is taken with a special token, or keeps it from being one (`added_tokens` of a `tokenizer.json`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edges {
    /// White space before it.
    pub left: bool,
    /// White space behind it.
    pub right: bool,
    /// It stands alone: no letter, number or underscore on either side.
    pub word: bool,
}

/// What a model's files say about its vocabulary.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its family.
    pub model: VocabKind,
    /// Text of each token, `[n_vocab]`.
    pub pieces: Strings,
    /// ggml's token types, `[n_vocab]`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty:
    /// all normal.
    pub kinds: Vec<u8>,
    /// Whether the types are to be believed where a normal piece is spelt like a token that ends an answer. Some GGUF
    /// files have the end of a turn as text, which any user could then spell.
    pub trusted: bool,
    /// Of the tokens that have any, in any order.
    pub edges: Vec<(Token, Edges)>,
    /// Whether text is put into Unicode's form C first.
    pub nfc: bool,
    /// Begins a text.
    pub bos: Option<Token>,
    /// Ends a text.
    pub eos: Option<Token>,
    /// Ends a turn.
    pub eot: Option<Token>,
    /// Stands for what cannot be spelt.
    pub unk: Option<Token>,
    /// Whether several of those in a row are one.
    pub fuse_unk: bool,
    /// Whether bos goes before a prompt.
    pub add_bos: bool,
    /// Follows a text that is whole, one that is to become a vector; never a prompt, which is to be continued.
    pub close: Option<Token>,
    /// Where text begins with a space that nobody wrote.
    pub space_prefix: SpacePrefix,
    /// Whether the first space of a decoded text is dropped.
    pub strips_space: bool,
}
