//! What the engine tells of itself.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::engine::metrics::lock;
use crate::engine::{Code, Fault, GenerationId, Watched};
use crate::os::clock;

/// Whether the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Ready,
    /// Something needs the administrator: what the code says.
    Degraded(Code),
    /// It ends.
    Draining,
}

impl State {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded(_) => "degraded",
            Self::Draining => "draining",
        }
    }

    /// The code of what is wrong; empty if nothing is.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ready => "",
            Self::Degraded(code) => code.as_str(),
            Self::Draining => Code::ShuttingDown.as_str(),
        }
    }
}

/// What the engine does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Requests waiting, in all.
    pub queue_length: usize,
    /// Those of class `interactive` that passed admission.
    pub queue_interactive: usize,
    /// Those of class `background`.
    pub queue_background: usize,
    /// Requests being generated.
    pub active_generations: usize,
    /// Thousandths of the time in which it rests, so that the processor stays cool.
    pub rest: u32,
    /// Memory is short, and what is kept for later is given up.
    pub memory_short: bool,
}

impl Engine {
    /// How the request `id` stands, if it is under way.
    #[must_use]
    pub fn watch_one(&self, id: &GenerationId) -> Option<Watched> {
        self.shared.live().get(id.as_str()).map(|live| live.progress.look(clock::now_us()))
    }

    /// The requests of `uid` that are under way, all of them for uid 0; and of how many uids there are any.
    #[must_use]
    pub fn watch(&self, uid: u32) -> (Vec<Watched>, usize) {
        let (live, now) = (self.shared.live(), clock::now_us());
        let generations = || live.values().filter(|live| live.loads.is_none());
        let uids: BTreeSet<u32> = generations().map(|live| live.progress.uid()).collect();
        let own = generations().filter(|live| uid == 0 || live.progress.uid() == uid);
        (own.map(|live| live.progress.look(now)).collect(), uids.len())
    }

    /// What it does now.
    #[must_use]
    pub fn status(&self) -> Status {
        let [interactive, background] =
            [0, 1].map(|class: usize| self.shared.queue_length[class].load(Ordering::Relaxed));
        Status {
            queue_length: interactive + background + lock(&self.shared.admitting).values().sum::<usize>(),
            queue_interactive: interactive,
            queue_background: background,
            active_generations: self.shared.active.load(Ordering::Relaxed),
            rest: self.shared.orders.rest(),
            memory_short: self.shared.orders.short(),
        }
    }

    /// Whether it answers.
    #[must_use]
    pub fn state(&self) -> State {
        match () {
            () if self.shared.shutting_down.load(Ordering::Acquire) => State::Draining,
            () if !self.moves() => State::Degraded(Code::NotReady),
            () => State::Ready,
        }
    }

    /// Why a request that came now would not be admitted.
    ///
    /// # Errors
    /// `not_ready`, with the reason.
    pub fn ready(&self) -> Result<(), Fault> {
        let (queue_max, status) = (self.settings().queue_max, self.status());
        let not = |why: String| Err(Fault::new(Code::NotReady, why).retry_after(1_000));
        if self.state() != State::Ready {
            return not(format!("the daemon is {}", self.state().as_str()));
        }
        if self.resolve(None).is_none() {
            return not(self.shared.unknown_model(None).message);
        }
        let waiting = status.queue_length;
        match waiting > 0 && waiting >= queue_max {
            true => not(format!("{waiting} requests wait, at most {queue_max} may")),
            false => Ok(()),
        }
    }
}
