//! What admission takes, and when it is to be given up.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::Token;
use crate::base::limits::LONG_TEXT_BYTES;
use crate::engine::handle::Live;
use crate::engine::loaded::Loaded;
use crate::engine::models::Asker;
use crate::engine::scheduler::Micros;
use crate::engine::{Code, Event, Fault, Input, Message, Request, Settings, Sink};

/// A request on its way to admission.
pub(in crate::engine) struct Submission {
    pub request: Request,
    pub sink: Box<dyn Sink>,
    pub live: Arc<Live>,
    pub submitted_us: Micros,
    /// As of [`Engine::submit_part`](crate::engine::Engine::submit_part).
    pub first: bool,
}

/// What is to become tokens.
#[derive(Clone, Debug)]
pub enum Text {
    /// A text as it stands.
    Plain {
        /// The text.
        text: String,
        /// With the token that begins every text, if the model has one.
        add_special: bool,
        /// Names of control tokens in it become those tokens.
        parse_special: bool,
    },
    /// A conversation in the model's template.
    Chat(Vec<Message>),
}

/// A text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// Of a conversation, its text in the model's template.
    pub prompt: Option<String>,
}

/// A text on its way to its tokens, and who is told of them.
pub(in crate::engine) struct ToTokenize {
    pub uid: u32,
    pub model: Option<String>,
    pub text: Text,
    pub tell: Box<dyn FnOnce(Result<Tokenized, Fault>) + Send>,
}

/// A model that is to be loaded.
pub(in crate::engine) struct ToLoad {
    pub uid: u32,
    pub model: String,
    pub pin: bool,
    /// Positions of its sequences; `None`: as it is loaded, or as configured.
    pub n_ctx: Option<usize>,
    /// `None`: the daemon's own wish.
    pub asker: Option<Asker>,
    /// Those that come after it, and whether they are pinned.
    pub rest: VecDeque<(String, bool)>,
}

/// A model whose header is to be read, if that was not done yet.
pub(in crate::engine) struct ToDescribe {
    pub uid: u32,
    pub id: String,
    pub tell: Box<dyn FnOnce() + Send>,
}

/// What admission takes.
pub(in crate::engine) enum ToAdmit {
    Submit(Box<Submission>),
    Tokenize(Box<ToTokenize>),
    Load(Box<ToLoad>),
    Describe(ToDescribe),
}

/// Longest wait of who only looks at the models, seconds.
const DESCRIBE_S: u64 = 1;
/// The option by which a request bounds its own time.
const DEADLINE_MS: &str = "deadline_ms";

/// The same, on its way.
pub(super) struct Item {
    pub what: ToAdmit,
    /// The model that was opened for it.
    pub opened: Option<Arc<Loaded>>,
    pub since: Micros,
    /// When it is given up, and by which setting.
    pub until: (Micros, &'static str),
}

impl Item {
    /// Came in at `now`.
    pub(super) fn new(what: ToAdmit, now: Micros, settings: &Settings) -> Self {
        let since = match &what {
            ToAdmit::Submit(s) => s.submitted_us,
            _ => now,
        };
        let after = |s: u64| since.saturating_add(s.saturating_mul(1_000_000));
        let queued = (after(settings.queue_timeout_s), "scheduler.queue_timeout_s");
        let until = match &what {
            ToAdmit::Submit(s) => {
                queued.min((settings.deadline_of(s.request.deadline_ms, since), DEADLINE_MS))
            }
            ToAdmit::Describe(_) => (after(DESCRIBE_S), ""),
            _ => queued,
        };
        Self { what, opened: None, since, until }
    }

    pub(super) fn uid(&self) -> u32 {
        match &self.what {
            ToAdmit::Submit(s) => s.request.caller.uid,
            ToAdmit::Tokenize(t) => t.uid,
            ToAdmit::Load(l) => l.uid,
            ToAdmit::Describe(d) => d.uid,
        }
    }

    /// The model that it names.
    pub(super) fn model(&self) -> Option<&str> {
        match &self.what {
            ToAdmit::Submit(s) => s.request.model.as_deref(),
            ToAdmit::Tokenize(t) => t.model.as_deref(),
            ToAdmit::Load(l) => Some(&l.model),
            ToAdmit::Describe(d) => Some(&d.id),
        }
    }

    /// Positions that it wants of that model.
    pub(super) fn n_ctx(&self) -> Option<usize> {
        match &self.what {
            ToAdmit::Load(l) => l.n_ctx,
            _ => None,
        }
    }

    /// Whether `model` is what it wants, once it is known by its id.
    pub(super) fn fits(&self, model: &Loaded) -> bool {
        self.n_ctx().is_none_or(|n| model.n_ctx == n.min(model.n_ctx_train()))
    }

    /// Reading it takes so long that others should not wait for it.
    pub(super) fn is_long(&self) -> bool {
        let of_chat = |messages: &[Message]| messages.iter().map(|m| m.content.len()).sum();
        let bytes: usize = match &self.what {
            ToAdmit::Submit(s) => match &s.request.input {
                Input::Text(text) => text.len(),
                Input::Chat(messages) => of_chat(messages),
                Input::Tokens(_) => 0,
            },
            ToAdmit::Tokenize(t) => match &t.text {
                Text::Plain { text, .. } => text.len(),
                Text::Chat(messages) => of_chat(messages),
            },
            ToAdmit::Load(_) | ToAdmit::Describe(_) => 0,
        };
        bytes > LONG_TEXT_BYTES
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Micros {
        self.until.0
    }

    /// Nobody waits for it any more.
    pub(super) fn is_left(&self) -> bool {
        match &self.what {
            ToAdmit::Submit(s) => s.live.cancelled(),
            ToAdmit::Load(l) => l.asker.as_ref().is_some_and(|asker| asker.live.cancelled()),
            ToAdmit::Tokenize(_) | ToAdmit::Describe(_) => false,
        }
    }

    /// Why it is given up at `now`, if it is: its caller left, or its time is over, while it waited for its turn or for
    /// the file of the model `parked`.
    pub(super) fn over(&self, now: Micros, parked: Option<&str>) -> Option<Fault> {
        if self.is_left() {
            return Some(Fault::new(Code::Cancelled, "the caller left or cancelled"));
        }
        let (until, setting) = self.until;
        if now < until {
            return None;
        }
        let s = until.saturating_sub(self.since) as f64 / 1e6;
        let message = match parked {
            Some(id) => format!(
                "the file of model {id} is not open after {s} s ({setting}): the disk that it lies on does not answer"
            ),
            None => format!("the text was not read within {s} s ({setting}); try again later"),
        };
        let fault = Fault::new(Code::DeadlineExceeded, message);
        Some(if setting == DEADLINE_MS { fault.at(DEADLINE_MS) } else { fault })
    }

    /// Tells who waits for it that it is not to be.
    pub(super) fn refuse(self, fault: Fault) {
        match self.what {
            ToAdmit::Submit(mut s) => {
                s.sink.offer(&Event::Failed(fault));
            }
            ToAdmit::Tokenize(t) => (t.tell)(Err(fault)),
            ToAdmit::Load(l) => match l.asker {
                Some(mut asker) => {
                    asker.sink.offer(&Event::Failed(fault));
                }
                None => {
                    // What is wrong with its file was told when that was opened.
                    let what = match fault.code {
                        Code::LoadFailed | Code::UnsupportedModel => fault.code.as_str(),
                        _ => fault.message.as_str(),
                    };
                    let model = l.model.as_str();
                    log::error!(model, code = fault.code.as_str(); "model {model} is not loaded as models.preload has it: {what}");
                }
            },
            // A model that cannot be read is told of as failed.
            ToAdmit::Describe(d) => (d.tell)(),
        }
    }
}
