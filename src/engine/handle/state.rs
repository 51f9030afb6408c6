//! What the engine tells of itself.

use std::sync::atomic::Ordering;

use super::Engine;
use crate::engine::metrics::lock;
use crate::engine::{Code, Fault};

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
