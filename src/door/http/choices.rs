//! The choices of a request: choice i is the generation that the same request with `seed + i` is alone.
//!
//! The next one is submitted when the last has read its prompt, so that the pages of it are there to be shared, and so
//! that never more than one waits: a request fills no queue by itself. Where the queue has no room for it (others of
//! the caller wait), it comes again when a choice has ended. What ends one without an answer ends all.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use crate::door::id::after;
use crate::door::queue::Generation;
use crate::door::sampling::SEED_MAX;
use crate::engine::{Code, Engine, Event, Fault, LoadRequest, Request, random_seed};

/// Choices under way and their events. Dropping them cancels all.
#[derive(Debug)]
pub(super) struct Choices {
    running: VecDeque<(usize, Generation)>,
    further: Option<Further>,
    /// Why the next one could not be submitted.
    failed: Option<(usize, Fault)>,
}

/// Choices to come.
#[derive(Debug)]
struct Further {
    engine: Engine,
    /// The first one's.
    request: Request,
    next: usize,
    n: usize,
    /// The last one submitted, until it has read its prompt.
    reads: Option<usize>,
}

impl Choices {
    /// Gives `request` to the engine, to be answered `n` times.
    ///
    /// # Errors
    /// What [`Engine::submit`] refuses at once.
    pub(super) fn start(engine: &Engine, mut request: Request, n: usize) -> Result<Self, Fault> {
        let further = (n > 1).then(|| {
            request.sampling.seed.get_or_insert_with(random_seed);
            Further { engine: engine.clone(), request: request.clone(), next: 1, n, reads: Some(0) }
        });
        let running = [(0, Generation::start(engine, request)?)].into();
        Ok(Self { running, further, failed: None })
    }

    /// Asks the engine for a model: events of one choice.
    ///
    /// # Errors
    /// What [`Engine::load`] refuses at once.
    pub(super) fn load(engine: &Engine, request: LoadRequest) -> Result<Self, Fault> {
        let running = [(0, Generation::load(engine, request)?)].into();
        Ok(Self { running, further: None, failed: None })
    }

    /// Whether the last event has come.
    pub(super) fn is_over(&self) -> bool {
        self.running.is_empty() && self.failed.is_none()
    }

    /// The next event and the index of its choice. [`Event::Failed`] is the last of all.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Event)> {
        if let Some((index, fault)) = self.failed.take() {
            self.running.clear();
            return Poll::Ready((index, Event::Failed(fault)));
        }
        // Whoever was asked goes to the end, so that each has its turn.
        for _ in 0..self.running.len() {
            let Some((index, mut generation)) = self.running.pop_front() else { break };
            let Poll::Ready(event) = generation.poll_next(cx) else {
                self.running.push_back((index, generation));
                continue;
            };
            match &event {
                Event::Failed(fault) if self.comes_again(index, fault) => continue,
                Event::Failed(_) => {
                    self.running.clear();
                    self.further = None;
                }
                event if event.is_terminal() => {}
                _ => self.running.push_back((index, generation)),
            }
            self.go_on(index, &event);
            return Poll::Ready((index, event));
        }
        Poll::Pending
    }

    /// The next event, as [`Self::poll_next`].
    pub(super) async fn next(&mut self) -> (usize, Event) {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Takes choice `index` back, if `fault` only says that there is no room for it beside the others.
    fn comes_again(&mut self, index: usize, fault: &Fault) -> bool {
        match &mut self.further {
            Some(further) if fault.code == Code::QueueFull && index > 0 && !self.running.is_empty() => {
                (further.next, further.reads) = (index, None);
                true
            }
            _ => false,
        }
    }

    /// Submits the next choice, if `event` of choice `index` makes way for it.
    fn go_on(&mut self, index: usize, event: &Event) {
        let Some(further) = &mut self.further else { return };
        let has_read = matches!(event, Event::Text { .. }) && further.reads == Some(index);
        let has_ended = event.is_terminal() && further.reads.is_none_or(|reads| reads == index);
        if further.next >= further.n || !(has_read || has_ended) {
            return;
        }
        let at = further.next;
        match Generation::part(&further.engine, further.request(at), false) {
            Ok(generation) => {
                (further.next, further.reads) = (at + 1, Some(at));
                self.running.push_back((at, generation));
            }
            Err(fault) => {
                if !self.comes_again(at, &fault) {
                    self.failed = Some((at, fault));
                }
            }
        }
    }
}

impl Further {
    /// That of choice `i`.
    fn request(&self, i: usize) -> Request {
        let mut request = self.request.clone();
        request.id = after(&request.id, i);
        let seed = request.sampling.seed.map(|seed| (seed + i as u64) % (SEED_MAX + 1));
        request.sampling.seed = seed;
        request
    }
}
