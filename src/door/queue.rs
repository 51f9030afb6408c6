//! Events on their way from the engine's threads to a task of a door: a bounded queue that says full, keeps one more
//! place for the terminal event, and tells the engine when it has room again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use std::time::Duration;

use crate::base::limits::EVENT_QUEUE_MAX;
use crate::engine::{Code, Engine, Event, Fault, Handle, LoadRequest, Offer, Request, Sink};

/// While a reader's pipe or socket is full, how often it is looked at whether they read: that makes room only by the page.
pub(super) const READ_LOOK: Duration = Duration::from_millis(250);

/// What was unread at the last look, if anything was told.
#[derive(Debug, Default)]
pub(super) struct Unread(Option<u64>);

impl Unread {
    /// Whether somebody has read since the last look, if so much is `left` now; where nothing is told nobody has.
    pub(super) fn is_less(&mut self, left: Option<u64>) -> bool {
        left.is_some() && left < std::mem::replace(&mut self.0, left)
    }
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    /// An event was turned away since the reader last took one.
    was_full: bool,
    reader_gone: bool,
    writer_gone: bool,
    waker: Option<Waker>,
}

type Shared = Arc<Mutex<State>>;

/// Nothing is left half done under the lock, so a panic elsewhere does not spoil what it guards.
fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine's end.
struct QueueSink(Shared);

impl Sink for QueueSink {
    fn offer(&mut self, event: &Event) -> Offer {
        let waker = {
            let mut state = lock(&self.0);
            if state.reader_gone {
                return Offer::Gone;
            }
            if state.events.len() >= EVENT_QUEUE_MAX && !event.is_terminal() {
                state.was_full = true;
                return Offer::Full;
            }
            state.events.push_back(event.clone());
            state.waker.take()
        };
        waker.inspect(Waker::wake_by_ref);
        Offer::Taken
    }
}

impl Drop for QueueSink {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.0);
            state.writer_gone = true;
            state.waker.take()
        };
        waker.inspect(Waker::wake_by_ref);
    }
}

/// A generation under way and its events. Dropping it cancels.
#[derive(Debug)]
pub(super) struct Generation {
    handle: Handle,
    shared: Shared,
}

impl Generation {
    /// Gives `request` to the engine.
    ///
    /// # Errors
    /// What [`Engine::submit`] refuses at once.
    pub(super) fn start(engine: &Engine, request: Request) -> Result<Self, Fault> {
        let shared = Shared::default();
        let handle = engine.submit(request, Box::new(QueueSink(shared.clone())))?;
        Ok(Self { handle, shared })
    }

    /// Gives a part of what the caller asked for at once to the engine; the `first` one counts as a request.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub(super) fn part(engine: &Engine, request: Request, first: bool) -> Result<Self, Fault> {
        let shared = Shared::default();
        let handle = engine.submit_part(request, Box::new(QueueSink(shared.clone())), first)?;
        Ok(Self { handle, shared })
    }

    /// The next event; [`Event::Failed`] with `internal` when the engine let go without a terminal event.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let (event, had_been_full) = {
            let mut state = lock(&self.shared);
            match state.events.pop_front() {
                Some(event) => (event, std::mem::take(&mut state.was_full)),
                None if state.writer_gone => {
                    let fault =
                        Fault::new(Code::Internal, "the engine stopped without an end; look at the journal");
                    return Poll::Ready(Event::Failed(fault));
                }
                None => {
                    state.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if had_been_full {
            self.handle.drained();
        }
        Poll::Ready(event)
    }

    /// Asks the engine for a model.
    ///
    /// # Errors
    /// What [`Engine::load`] refuses at once.
    pub(super) fn load(engine: &Engine, request: LoadRequest) -> Result<Self, Fault> {
        let shared = Shared::default();
        let handle = engine.load(request, Box::new(QueueSink(shared.clone())))?;
        Ok(Self { handle, shared })
    }

    /// The next event, as [`Self::poll_next`].
    pub(super) async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        lock(&self.shared).reader_gone = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_so_and_still_takes_the_end() {
        let shared = Shared::default();
        let mut sink = QueueSink(shared.clone());
        let text = Event::Text { text: "x".into(), logprob: None };
        for _ in 0..EVENT_QUEUE_MAX {
            assert_eq!(sink.offer(&text), Offer::Taken);
        }
        assert_eq!(sink.offer(&text), Offer::Full);
        assert!(lock(&shared).was_full);
        assert_eq!(sink.offer(&Event::Failed(Fault::new(Code::Stalled, ""))), Offer::Taken);
        lock(&shared).reader_gone = true;
        assert_eq!(sink.offer(&text), Offer::Gone);
    }
}
