//! How a request ends on the engine thread: by itself, for a reason outside it, or because its model is damaged; and who is
//! told of it though they do not read.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Runner;
use crate::engine::generation::{Generation, Whole};
use crate::engine::handle::{Live, Shared};
use crate::engine::loaded::{damaged_fault, no_vector_fault};
use crate::engine::ready::Loss;
use crate::engine::scheduler::{Cut, Input, Micros, ModelKey, Slot};
use crate::engine::{Code, Event, Fault, Offer, Sink, StopDetail};
use crate::os::clock;
use crate::side::graph::GraphError;

/// Helpers that may be lost at one request.
const N_LOST_MAX: usize = 2;
/// A full queue is logged at most this often for a uid, and for so many uids at a time.
const FULL_EVERY: Micros = 60_000_000;
const N_UID_TOLD_MAX: usize = 64;

fn stalled(shared: &Shared) -> Fault {
    let s = shared.settings().stall_timeout_s;
    Fault::new(Code::Stalled, format!("the output was not read for {s} s; read faster or ask for less"))
}

fn cancelled(shared: &Shared) -> Fault {
    // By the daemon, not by their callers.
    let why = if shared.goes_down() {
        "the daemon is going down; ask again in a few seconds"
    } else {
        "the caller left or cancelled"
    };
    Fault::new(Code::Cancelled, why)
}

/// The events of an answer that was complete while its output was full.
pub(super) struct Draining {
    pub(super) sink: Box<dyn Sink>,
    live: Arc<Live>,
    events: VecDeque<Event>,
    pub(super) until: Micros,
}

impl Runner {
    /// Passes the rest of complete answers on to those who read again.
    pub(super) fn drain(&mut self, now: Micros) {
        let patience = self.shared.settings().stall_timeout_s * 1_000_000;
        self.draining.retain_mut(|d| {
            let reads = d.live.take_drained();
            if reads {
                d.until = now + patience;
            }
            if reads || d.live.cancelled() {
                while let Some(event) = d.events.front() {
                    match d.sink.offer(event) {
                        Offer::Taken => drop(d.events.pop_front()),
                        Offer::Full => break,
                        Offer::Gone => return false,
                    }
                }
            }
            let cut = match d.events.is_empty() {
                true => return false,
                false if d.live.cancelled() => cancelled(&self.shared),
                false if now >= d.until => stalled(&self.shared),
                false => return true,
            };
            // There is room for an end always.
            d.sink.offer(&Event::Failed(cut));
            false
        });
    }

    /// Ends a request for a reason outside it.
    pub(super) fn cut(&mut self, slot: Slot, cut: Cut, now: Micros) {
        let o = self.shared.settings();
        let fault = match cut {
            Cut::DeadlineWithText => {
                return self.end(slot, Ok(Whole::Text(StopDetail::Deadline)), now);
            }
            Cut::NoRoom => self.pinned_fault(&[]),
            Cut::Cancelled => cancelled(&self.shared),
            Cut::Stalled => stalled(&self.shared),
            Cut::QueueTimeout => Fault::new(
                Code::DeadlineExceeded,
                format!(
                    "waited {} s in the queue, the most that scheduler.queue_timeout_s allows; try again later",
                    o.queue_timeout_s
                ),
            ),
            Cut::Deadline => Fault::new(
                Code::DeadlineExceeded,
                format!(
                    "the deadline passed before the first text; allow more time by deadline_ms, at most the {} s of \
                     scheduler.deadline_s",
                    o.deadline_s
                ),
            )
            .at("deadline_ms"),
            Cut::QueueFull { waiting, max, per_uid } => {
                let whose = if per_uid { "of this user " } else { "" };
                self.tell_full(slot, now);
                // So many go on together.
                let rounds = (waiting as u64).div_ceil(self.shared.options.max_sequences.max(1) as u64);
                let wait = (self.typical_us / 1_000).saturating_mul(rounds).clamp(100, 60_000);
                Fault::new(
                    Code::QueueFull,
                    format!("{waiting} requests {whose}wait, at most {max} may; try again in {wait} ms"),
                )
                .retry_after(wait)
            }
        };
        self.end(slot, Err(fault), now);
    }

    /// Logs a refusal for want of room, once a minute for each uid.
    fn tell_full(&mut self, slot: Slot, now: Micros) {
        let Some(uid) = self.jobs.get(&slot).filter(|job| !job.embeds()).map(Generation::uid) else { return };
        self.told_full.retain(|_, told| now < *told + FULL_EVERY);
        if self.told_full.len() < N_UID_TOLD_MAX && self.told_full.insert(uid, now).is_none() {
            log::warn!(
                message_id = "20ca66d32df8431082ecd8f3c792effb", sotto_uid = uid;
                "the queue is full for uid {uid}"
            );
        }
    }

    /// Sends the terminal event, now or when the reader has made room, and forgets the request.
    pub(super) fn end(&mut self, slot: Slot, how: Result<Whole, Fault>, now: Micros) {
        let Some(mut job) = self.jobs.remove(&slot) else { return };
        self.release(slot);
        self.shared.spend(job.uid(), job.n_drawn());
        if how.is_ok() {
            let took = now.saturating_sub(job.start_us());
            self.typical_us = (self.typical_us * 7 + took) / 8;
        }
        let failed = how.is_err();
        job.end(how, now);
        if job.flush() == Offer::Full {
            let until = now + self.shared.settings().stall_timeout_s * 1_000_000;
            let (mut sink, live, mut events) = job.into_rest();
            if !failed {
                self.draining.push(Draining { sink, live, events, until });
            } else if let Some(event) = events.pop_back() {
                // Who does not read hears why as soon as they do; text that was not taken is no answer any more.
                sink.offer(&event);
            }
        }
        self.forget_models();
    }

    /// Fails a request and lets the scheduler go on.
    pub(in crate::engine) fn fail(&mut self, slot: Slot, fault: Fault) {
        self.end(slot, Err(fault), clock::now_us());
        self.input(Input::Ended(slot));
    }

    /// A model computed what is no number.
    pub(super) fn damaged(&mut self, slot: Slot) {
        let Some(job) = self.jobs.get(&slot) else { return };
        let id = &job.model.id;
        let fault = match job.embeds() {
            true => no_vector_fault(id),
            false => damaged_fault(id, job.pos(), job.model.own().is_some()),
        };
        log::error!(
            message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = id.as_str(); "{}", fault.message
        );
        self.fail(slot, fault);
    }

    /// The helper of its model refuses its text.
    pub(super) fn refused_by_helper(&mut self, slot: Slot, e: &GraphError) {
        let Some(job) = self.jobs.get(&slot) else { return };
        let fault = Fault::new(Code::DamagedModel, format!("model {}: {e}", job.model.id));
        log::error!(
            message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = job.model.id.as_str(); "{}", fault.message
        );
        self.fail(slot, fault);
    }

    /// The helper of a model is gone, or has to go, which was at those in `asked`: another one is asked for them, but not
    /// for what two have been lost at.
    pub(super) fn lost_helper(&mut self, key: ModelKey, asked: &[Slot], loss: &Loss) {
        let Some(model) = self.models.get(&key).cloned() else { return };
        let message = format!("model {}: {}; another is started", model.id, loss.e);
        let fault = Fault::new(Code::Internal, message);
        log::error!(
            message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = model.id.as_str(); "{}", fault.message
        );
        for slot in asked {
            let Some(job) = self.jobs.get_mut(slot) else { continue };
            job.n_lost += 1;
            if !loss.again || job.n_lost >= N_LOST_MAX {
                self.fail(*slot, fault.clone());
            }
        }
        self.lose(key, model);
    }

    /// A helper is ended whose step nobody wants any more.
    pub(super) fn let_go(&mut self, key: ModelKey) {
        if let Some(model) = self.models.get(&key).cloned() {
            self.lose(key, model);
        }
    }

    pub(super) fn fail_all(&mut self, slots: &[Slot], what: &str) {
        for slot in slots {
            self.fail(*slot, Fault::new(Code::Internal, what));
        }
    }
}
