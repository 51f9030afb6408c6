//! A generation as an object on the bus: what has come of it so far, kept for a while after its end.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use zbus::OwnedVariant;

use crate::base::limits::REPLY_BYTES_MAX;
use crate::door::wire;
use crate::engine::{Code, Done, Engine, Event, Fault, GenerationId, Offer, Sink, Stage, Watched};

use super::info::{Info, collect, of, variant};

/// What is known of it.
#[derive(Debug, Default)]
struct State {
    /// The model, once it is known.
    model: Option<String>,
    position: usize,
    /// Bytes of its model that are read, and all.
    loaded: (u64, u64),
    text: String,
    /// What its tokens tell: elements of a JSON array.
    told: String,
    end: Option<Result<Done, Fault>>,
    ended_at: Option<Instant>,
}

impl State {
    /// Where it is, as property `State` tells it, of a generation that the engine has `seen`.
    fn name(&self, seen: Option<&Watched>) -> &'static str {
        match (&self.end, seen.map(|seen| seen.stage)) {
            (Some(Ok(_)), _) => "done",
            (Some(Err(_)), _) => "failed",
            (None, Some(Stage::Admission)) => Stage::Queued.as_str(),
            (None, Some(stage)) => stage.as_str(),
            (None, None) if self.text.is_empty() => Stage::Queued.as_str(),
            (None, None) => Stage::Decode.as_str(),
        }
    }
}

/// A generation, its answer so far, and its end.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: GenerationId,
    /// Who asked for it.
    pub(super) uid: u32,
    state: Mutex<State>,
    ended: watch::Sender<bool>,
}

impl Record {
    pub(super) fn new(id: GenerationId, uid: u32) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { id, uid, state, ended: watch::Sender::new(false) })
    }

    /// Nothing is left half done under the lock, so a panic elsewhere does not spoil what it guards.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event was passed on.
    pub(super) fn heard(&self, event: &Event) {
        let mut s = self.state();
        match event {
            Event::Admitted(admitted) => s.model = Some(admitted.model.clone()),
            Event::Queued { position } => s.position = *position,
            Event::Loading { done, total, .. } => s.loaded = (*done, *total),
            // Whoever reads the stream has it; here it may no longer be kept.
            Event::Text { text, logprob } if s.text.len() + s.told.len() <= REPLY_BYTES_MAX => {
                s.text += text;
                if let Some(logprob) = logprob {
                    let mark = if s.told.is_empty() { "[" } else { "," };
                    s.told += mark;
                    s.told += &wire::logprob_text(logprob);
                }
            }
            Event::Done(done) => self.end(&mut s, Ok(done.clone())),
            Event::Failed(fault) => self.end(&mut s, Err(fault.clone())),
            _ => {}
        }
    }

    /// Its first end counts.
    fn end(&self, s: &mut State, end: Result<Done, Fault>) {
        if s.end.is_none() {
            s.end = Some(end);
            s.ended_at = Some(Instant::now());
            self.ended.send_replace(true);
        }
    }

    /// It ends by what happened to its caller.
    pub(super) fn fail(&self, fault: Fault) {
        self.end(&mut self.state(), Err(fault));
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// When it ended.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.state().ended_at
    }

    /// Bytes that it keeps.
    pub(super) fn bytes(&self) -> usize {
        let s = self.state();
        s.text.len() + s.told.len()
    }

    /// The text so far.
    pub(super) fn text(&self) -> String {
        self.state().text.clone()
    }

    /// Waits for the end.
    pub(super) async fn finished(&self) {
        // The sender is here, so the wait cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// The answer as `Generate` tells it, once it has ended. D-Bus text has no NUL, so one in it becomes U+FFFD.
    pub(super) fn answer(&self) -> Result<(String, Info), Fault> {
        let s = self.state();
        let done = match &s.end {
            Some(Ok(done)) => done,
            Some(Err(fault)) => return Err(fault.clone()),
            None => return Err(Fault::new(Code::Internal, "the generation has not ended")),
        };
        if s.text.len() + s.told.len() > REPLY_BYTES_MAX {
            let message =
                format!("the answer passed {REPLY_BYTES_MAX} bytes; read the stream of StartGeneration");
            return Err(Fault::new(Code::BodyTooLarge, message));
        }
        let mut info = of(done);
        if !s.told.is_empty() {
            info.extend(variant(format!("{}]", s.told)).map(|told| ("logprobs", told)));
        }
        Ok((s.text.replace('\0', "\u{fffd}"), info))
    }

    /// The last event.
    pub(super) fn last(&self) -> Option<Result<Done, Fault>> {
        self.state().end.clone()
    }

    /// The value of a property.
    pub(super) fn property(&self, engine: &Engine, name: &str) -> Option<OwnedVariant> {
        let s = self.state();
        match name {
            "Id" => variant(self.id.as_str()),
            "Model" => variant(super::paths::model(s.model.as_deref().or(engine.resolve(None).as_deref()))),
            "State" => variant(s.name(engine.watch_one(&self.id).as_ref())),
            "Progress" => {
                let seen = engine.watch_one(&self.id);
                let of =
                    |done: u64, total: u64| collect([("done", variant(done)), ("total", variant(total))]);
                variant(match (s.name(seen.as_ref()), seen) {
                    ("queued", _) => collect([("position", variant(s.position as u32))]),
                    ("loading", _) => of(s.loaded.0, s.loaded.1),
                    ("prefill", Some(seen)) => of(seen.prompt_done as u64, seen.prompt_tokens as u64),
                    (_, Some(seen)) => of(seen.completion_tokens as u64, seen.completion_max as u64),
                    (_, None) => Info::new(),
                })
            }
            _ => None,
        }
    }
}

/// A sink that keeps what another one takes.
pub(super) struct Recorder {
    pub(super) record: Arc<Record>,
    pub(super) inner: Box<dyn Sink>,
}

impl Sink for Recorder {
    fn offer(&mut self, event: &Event) -> Offer {
        let offer = self.inner.offer(event);
        if offer == Offer::Taken {
            self.record.heard(event);
        }
        offer
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}
