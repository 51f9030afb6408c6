//! What can be wrong with vocabularies and templates.

use crate::base::json;
use crate::base::limits::{N_VOCAB_MAX, RENDERED_BYTES_MAX, ROLE_BYTES_MAX, SPECIAL_BYTES_MAX};
use crate::base::limits::{TEMPLATE_BYTES_MAX, TEMPLATE_FUEL};

impl TextError {
    pub(super) fn file(file: &'static str, what: String) -> Self {
        Self::File { file, what }
    }

    /// An error of reading `text`, which is the file.
    pub(super) fn json(file: &'static str, text: &[u8], error: &serde_json::Error) -> Self {
        Self::file(file, format!("{}; the file is damaged or of another kind", json::why(text, error)))
    }
}

/// The pre-tokenizers that are built in.
fn names() -> String {
    super::Pre::names().collect::<Vec<_>>().join(", ")
}

/// A vocabulary, a template or a chat that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// No entries, or more than any model has.
    #[error("the vocabulary has {n} entries, 1 to {N_VOCAB_MAX} are possible; the model file is damaged")]
    VocabSize {
        /// Its entries.
        n: usize,
    },
    /// A list that should have an entry for each token.
    #[error("the vocabulary has {n} entries but {found} {what}; the model file is damaged")]
    Length {
        /// The list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Entries of the vocabulary.
        n: usize,
    },
    /// A special token outside the vocabulary.
    #[error("the {what} token is {id}, the vocabulary ends at {last}; the model file is damaged")]
    TokenId {
        /// Which one.
        what: &'static str,
        /// Its id.
        id: u32,
        /// The last valid id.
        last: usize,
    },
    /// Two tokens with one text: a text has no certain tokens then.
    #[error("tokens {first} and {later} of the vocabulary have the same text; the model file is damaged")]
    Twins {
        /// The lower id.
        first: u32,
        /// The higher id.
        later: u32,
    },
    /// A file beside a model that is damaged, or contradicts itself.
    #[error("{file}: {what}")]
    File {
        /// Its name.
        file: &'static str,
        /// What is wrong, and where.
        what: String,
    },
    /// A component of such a file that is not built in.
    #[error("{file}: {at} is {found}, which is not supported; {known} is what works")]
    Component {
        /// The file's name.
        file: &'static str,
        /// The keys that lead to it.
        at: String,
        /// What stands there, shortened.
        found: String,
        /// What is built in.
        known: &'static str,
    },
    /// A way of cutting text into words that is not built in.
    #[error("pre-tokenizer {found:?} is not known; use a model with one of these: {}", names())]
    PreTokenizer {
        /// Its name.
        found: String,
    },
    /// A byte-level vocabulary that cannot spell plain text.
    #[error(
        "the byte-level vocabulary has no token for byte 0x{byte:02x}; all of printable ASCII are needed"
    )]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A WordPiece vocabulary that cannot say what it cannot spell.
    #[error("the WordPiece vocabulary has no unknown token; most texts have words that it cannot spell")]
    NoUnknown,
    /// A control token longer than any known.
    #[error(
        "special token {id} has {len} bytes, at most {SPECIAL_BYTES_MAX} are possible; the model file is damaged"
    )]
    SpecialLength {
        /// Its id.
        id: u32,
        /// Its bytes.
        len: usize,
    },
    /// A template longer than any known.
    #[error("the chat template has {len} bytes, at most {TEMPLATE_BYTES_MAX} are read")]
    TemplateLength {
        /// Its bytes.
        len: usize,
    },
    /// A value for a template that is no JSON.
    #[error("the value for a template is no JSON: {what}")]
    Json {
        /// What is wrong, with line and column.
        what: String,
    },
    /// A template that has no use for what is asked of it.
    #[error("the chat template reads none of {names}")]
    Unread {
        /// The variables.
        names: String,
    },
    /// A template that is wrong, or does not take these messages.
    #[error("the chat template fails in line {line}: {what}")]
    Template {
        /// The line, from 1; 0 where none is known.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The template refuses the messages in its own words.
    #[error("the chat template refuses these messages: {message}")]
    Raised {
        /// Its words.
        message: String,
    },
    /// A template that does not come to an end.
    #[error(
        "the chat template used up its {TEMPLATE_FUEL} units of work; send fewer messages or mend the template"
    )]
    TemplateWork,
    /// A prompt longer than any that is taken.
    #[error("the chat template makes a prompt of more than {RENDERED_BYTES_MAX} bytes; send less text")]
    RenderedLength,
    /// A role that could be taken for something else.
    #[error(
        "message {index} has role {role:?}; a role is 1 to {ROLE_BYTES_MAX} ASCII letters, digits, '-' or '_'"
    )]
    Role {
        /// The message, from 0.
        index: usize,
        /// Its role, shortened.
        role: String,
    },
}
