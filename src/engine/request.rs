//! What a caller asks for: the one form that both doors and the command line make.

use crate::base::Token;

/// 26 characters of `[0-9a-z]`; names a generation in answers, in the journal and on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(String);

impl GenerationId {
    /// The id whose digits are the 128 bits of `bits`, 5 a character from the low end (the caller brings randomness).
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        Self((0..26).rev().map(|i| char::from(DIGITS[((bits >> (i * 5)) & 31) as usize])).collect())
    }

    /// The 26 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for GenerationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The way a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The Unix socket.
    Http,
    /// The bus.
    Dbus,
    /// The command line, in process.
    Local,
}

impl Door {
    /// The name in the journal.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Dbus => "dbus",
            Self::Local => "local",
        }
    }
}

/// Who asks. The uid is the kernel's word (SO_PEERCRED, bus credentials), never the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id of the peer.
    pub uid: u32,
    /// Process id of the peer where known; for accounting only.
    pub pid: Option<u32>,
    /// The door it came through.
    pub door: Door,
}

/// Speaker of a message. `developer` of the HTTP door is `System` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result (not yet: refused at the doors).
    Tool,
}

impl Role {
    /// The name in templates and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What the model is to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A conversation, through the model's chat template. A model without one continues the bare text of the
    /// messages (joined by blank lines), and [`super::Event::Admitted`] says so.
    Chat(Vec<Message>),
    /// A text continued as it stands; special tokens in it are plain text.
    Text(String),
    /// Token ids as they stand; no begin token is added.
    Tokens(Vec<Token>),
}

/// How tokens are drawn. `None`: the default. Ranges as in `proto/openapi.yaml`; doors check them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; 0.0 to 2.0. Default 0.8.
    pub temperature: Option<f32>,
    /// Keep the k likeliest; 0 is off. Default 40.
    pub top_k: Option<u32>,
    /// Keep the smallest set with this probability; above 0, to 1. Default 0.95.
    pub top_p: Option<f32>,
    /// Keep those at least this many times as likely as the likeliest; 0 to 1. Default 0, off.
    pub min_p: Option<f32>,
    /// Keep the most typical with this probability; above 0, to 1. Default 1, off.
    pub typical_p: Option<f32>,
    /// Divides the logit of a token seen lately; 0.5 to 2. Default 1, off.
    pub repeat_penalty: Option<f32>,
    /// Taken off for each time a token was seen lately; -2 to 2. Default 0, off.
    pub frequency_penalty: Option<f32>,
    /// Taken off a token seen lately; -2 to 2. Default 0, off.
    pub presence_penalty: Option<f32>,
    /// So many tokens of prompt and answer are lately, up to `LAST_N_MAX`. Default 64.
    pub repeat_last_n: Option<u32>,
    /// Taken off what makes a repetition one token too long; 0 to 5. Default 0, off.
    pub dry_multiplier: Option<f32>,
    /// Multiplies that for each further token; 1 to 4. Default 1.75.
    pub dry_base: Option<f32>,
    /// Repetitions of so many tokens are allowed, 1 and more. Default 2.
    pub dry_allowed_length: Option<u32>,
    /// So many tokens back DRY looks, up to `LAST_N_MAX`. Default 1024.
    pub dry_last_n: Option<u32>,
    /// No repetition reaches over a token whose text holds one of these. Default: newline, colon, quote, asterisk.
    pub dry_breakers: Option<Vec<String>>,
    /// Mirostat 2 instead of the cuts. Default off.
    pub mirostat: bool,
    /// The surprise that mirostat keeps to, in bits; above 0, to 20. Default 5.
    pub mirostat_tau: Option<f32>,
    /// How fast mirostat approaches it; above 0, to 1. Default 0.1.
    pub mirostat_eta: Option<f32>,
    /// Added to the logits of these tokens, -100 to 100; at most `N_LOGIT_BIAS_MAX`.
    pub logit_bias: Vec<(Token, f32)>,
    /// The model cannot end its answer before so many tokens. Default 0.
    pub min_tokens: u32,
    /// Tell how likely each token was, and so many of the likeliest beside it, up to `N_TOP_LOGPROB_MAX`.
    pub logprobs: Option<u32>,
    /// Absent: random. The one used is in [`super::Done::seed`].
    pub seed: Option<u64>,
}

/// How much the model may think before it answers, where its template lets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Not at all.
    #[default]
    None,
    /// A little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
}

impl Effort {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Low, Self::Medium, Self::High];

    /// The name on the wire and in templates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Service class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Someone waits for it.
    #[default]
    Interactive,
    /// Served while nobody waits, with a small guaranteed share.
    Background,
}

impl Class {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Background => "background",
        }
    }
}

/// For whom a request leaves what it begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// For nobody, and it goes on from nothing itself.
    Off,
    /// For later requests of the same uid.
    #[default]
    Own,
    /// Its prompt for those of every uid. Root alone may.
    Public,
}

/// What an input is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// It is continued: text is the answer, [`super::Event::Done`] the end.
    #[default]
    Generate,
    /// It becomes a vector, which is the end ([`super::Event::Embedded`]).
    Embed {
        /// What is longer than the model reads is cut; else it is refused.
        truncate: bool,
    },
}

/// One generation, as asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Made by the door from random bits.
    pub id: GenerationId,
    /// Who asks.
    pub caller: Caller,
    /// Id or alias; `None` is the default model.
    pub model: Option<String>,
    /// What for.
    pub task: Task,
    /// What to go on from.
    pub input: Input,
    /// The field that `input` came in, for errors.
    pub input_field: &'static str,
    /// How much to think.
    pub effort: Effort,
    /// How to draw.
    pub sampling: Sampling,
    /// Most tokens to generate; `None`: as many as the context has room for.
    pub max_tokens: Option<u32>,
    /// The answer ends before the first of these; at most `N_STOP_MAX`, none empty.
    pub stop: Vec<String>,
    /// Whether it may go on from what an earlier request began with, and for whom it leaves its own beginning.
    pub cache: Caching,
    /// Service class.
    pub class: Class,
    /// Time until it must have ended, from submission; `None`: the configured one.
    pub deadline_ms: Option<u64>,
}

/// One model to be loaded, as asked.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Made by the door from random bits; cancels the load.
    pub id: GenerationId,
    /// Who asks; that they may, the door has seen to.
    pub caller: Caller,
    /// Id or alias.
    pub model: String,
    /// It stays until it is unloaded by name.
    pub pin: bool,
    /// Positions of its sequences, 2 and more; `None`: as it is loaded, or as configured.
    pub n_ctx: Option<usize>,
}
