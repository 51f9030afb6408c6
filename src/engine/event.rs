//! What a caller gets back: events in a fixed order, exactly one of them terminal, always last.

use super::request::GenerationId;
use crate::base::Token;

/// One step of a generation's life. Doors translate each and decide nothing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Admission passed: the first event of every request that is not refused. Not sent over the wire; a door
    /// answers refusals with their status by waiting for it.
    Admitted(Admitted),
    /// Waiting; `position` requests are ahead. Not sent when a slot is free at once.
    Queued {
        /// Requests ahead of this one.
        position: usize,
    },
    /// The model is being read in.
    Loading {
        /// Its id.
        model: String,
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The prompt is being read.
    Prefill {
        /// Tokens read.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens of it that came from the prefix cache.
        cached: usize,
    },
    /// A piece of the answer: whole code points; all pieces joined are the answer, exactly.
    Text {
        /// The piece; empty only where it comes with `logprob` and its text is held back.
        text: String,
        /// The token that brought it, where the request asks: then there is one event for each token.
        logprob: Option<Box<Logprob>>,
    },
    /// Terminal: the model that was to be loaded is ready.
    Loaded {
        /// Its id.
        model: String,
    },
    /// Terminal: the answer is complete.
    Done(Done),
    /// Terminal: the vector of an input.
    Embedded(Embedded),
    /// Terminal: it failed.
    Failed(Fault),
}

impl Event {
    /// Whether it is the last one.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Loaded { .. } | Self::Done(_) | Self::Embedded(_) | Self::Failed(_))
    }
}

/// A token and how likely the model found it, before anything was done about that.
#[derive(Clone, Debug, PartialEq)]
pub struct Likely {
    /// The token.
    pub token: Token,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// What it spells; part of a code point, or nothing, is possible.
    pub bytes: Vec<u8>,
}

/// A drawn token among the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The one that was drawn.
    pub drawn: Likely,
    /// The likeliest, best first; as many as asked for.
    pub top: Vec<Likely>,
}

/// What admission found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The id that answers, not the alias asked for.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// A conversation was asked for and the model has no chat template: its text is continued as it stands.
    pub no_template: bool,
    /// A text that becomes a vector was longer than the model reads, and cut.
    pub truncated: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// A limit ended it.
    Length,
}

impl FinishReason {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What exactly ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopDetail {
    /// The model's end token.
    Eos,
    /// One of the stop strings.
    StopString,
    /// `max_tokens` reached.
    MaxTokens,
    /// The context is full.
    Context,
    /// The deadline passed after text had been sent.
    Deadline,
}

impl StopDetail {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopString => "stop_string",
            Self::MaxTokens => "max_tokens",
            Self::Context => "context",
            Self::Deadline => "deadline",
        }
    }

    /// The reason it belongs to.
    #[must_use]
    pub fn reason(self) -> FinishReason {
        match self {
            Self::Eos | Self::StopString => FinishReason::Stop,
            Self::MaxTokens | Self::Context | Self::Deadline => FinishReason::Length,
        }
    }
}

/// Token counts of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated (the end token not counted).
    pub completion_tokens: usize,
}

/// Where the time went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Waiting for a slot.
    pub queue_ms: f64,
    /// Waiting for the model to load.
    pub load_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Generating.
    pub decode_ms: f64,
    /// From submission to the first text.
    pub ttft_ms: f64,
    /// Its share of the engine's time, which is what users are served in turn by: a step that several share is divided
    /// by their tokens in it.
    pub engine_ms: f64,
}

/// The end of a complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The generation.
    pub id: GenerationId,
    /// The model that answered.
    pub model: String,
    /// What ended it ([`StopDetail::reason`] gives the finish reason).
    pub stop_detail: StopDetail,
    /// The seed that was used.
    pub seed: u64,
    /// Token counts.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}

/// An input as a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// The model that made it.
    pub model: String,
    /// As many numbers as the model is wide, of the length that the model gave it.
    pub vector: Vec<f32>,
    /// Tokens that were read for it.
    pub prompt_tokens: usize,
}

/// The four families of failure; each door has one mapping for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The caller's fault.
    Refused,
    /// Try again later.
    Busy,
    /// Cannot be served now.
    Unavailable,
    /// Our fault.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $family:ident;)*) => {
        /// Wire code of a failure (API text, section 3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, for the tests that hold doors and documents together.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }

            /// Its family.
            #[must_use]
            pub fn family(self) -> Family {
                match self { $(Self::$name => Family::$family,)* }
            }
        }
    };
}

codes! {
    /// The body is no JSON.
    InvalidJson = "invalid_json", Refused;
    /// A value of the wrong type or out of range.
    InvalidValue = "invalid_value", Refused;
    /// A required field is absent.
    MissingField = "missing_field", Refused;
    /// A field that nobody knows.
    UnknownField = "unknown_field", Refused;
    /// A field that is known and not supported.
    UnsupportedField = "unsupported_field", Refused;
    /// A schema or grammar that cannot be enforced.
    InvalidSchema = "invalid_schema", Refused;
    /// The prompt does not fit the context.
    ContextTooLong = "context_too_long", Refused;
    /// The caller may not.
    NotAuthorized = "not_authorized", Refused;
    /// No such model.
    UnknownModel = "unknown_model", Refused;
    /// No such object.
    UnknownObject = "unknown_object", Refused;
    /// No such route.
    UnknownRoute = "unknown_route", Refused;
    /// The route has other methods.
    MethodNotAllowed = "method_not_allowed", Refused;
    /// The request took too long to arrive.
    RequestTimeout = "request_timeout", Refused;
    /// The body or input is too large.
    BodyTooLarge = "body_too_large", Refused;
    /// The header is too large.
    HeaderTooLarge = "header_too_large", Refused;
    /// The model is in use.
    ModelBusy = "model_busy", Busy;
    /// The session has a generation under way.
    SessionBusy = "session_busy", Busy;
    /// The queue is full.
    QueueFull = "queue_full", Busy;
    /// Too many requests in a time.
    RateLimited = "rate_limited", Busy;
    /// Not enough memory.
    InsufficientMemory = "insufficient_memory", Unavailable;
    /// The daemon is going down.
    ShuttingDown = "shutting_down", Unavailable;
    /// The model could not be loaded.
    LoadFailed = "load_failed", Unavailable;
    /// The model is of a kind that is not supported.
    UnsupportedModel = "unsupported_model", Unavailable;
    /// The model's weights give values that are not finite.
    DamagedModel = "damaged_model", Unavailable;
    /// Not ready.
    NotReady = "not_ready", Unavailable;
    /// Out of time before the first text.
    DeadlineExceeded = "deadline_exceeded", Unavailable;
    /// Cancelled by its caller.
    Cancelled = "cancelled", Refused;
    /// The reader did not read.
    Stalled = "stalled", Refused;
    /// The configuration is not valid.
    InvalidConfig = "invalid_config", Refused;
    /// Our fault.
    Internal = "internal", Internal;
}

/// A failure as every door tells it. The message says what, where, got and allowed, and what to do; it never
/// holds prompt or answer text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Fault {
    /// The code.
    pub code: Code,
    /// The sentence for a person.
    pub message: String,
    /// Path of the field at fault, such as `messages[2].content`.
    pub param: Option<String>,
    /// When trying again makes sense.
    pub retry_after_ms: Option<u64>,
    /// What did not fit, where that is what failed.
    pub room: Option<Room>,
}

/// Two numbers of one unit: for a prompt, positions of the context; for a model, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What is needed.
    pub need: u64,
    /// What there is.
    pub have: u64,
}

impl Fault {
    /// A fault without a field and without a time to retry.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after_ms: None, room: None }
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same, with the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The same, with what is needed and what there is.
    #[must_use]
    pub fn room(mut self, need: u64, have: u64) -> Self {
        self.room = Some(Room { need, have });
        self
    }
}

/// What a sink did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It took the event.
    Taken,
    /// No room: the event was not taken and is offered again after [`super::Handle::drained`].
    Full,
    /// The reader is gone; the generation is cancelled.
    Gone,
}

/// Where the events of one request go. Made by a door, called on the engine's threads; must not block.
pub trait Sink: Send {
    /// Takes one event, or says why not.
    fn offer(&mut self, event: &Event) -> Offer;
}
