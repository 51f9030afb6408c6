//! Who is served next, and what ends. Pure: no clock, channel, thread or randomness; time comes in as a number.
//!
//! One generation runs at a time. Requests wait in a bounded queue, `interactive` before `background`, first come
//! first served within a class. The caller feeds [`Input`]s, carries out the [`Action`]s, asks [`Scheduler::plan`]
//! for the next step, does it, and reports it.

use std::collections::VecDeque;

use super::Class;

/// Microseconds on the caller's monotonic clock.
pub(super) type Micros = u64;

/// Names a request to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub u64);

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests that may wait, in all.
    pub queue_max: usize,
    /// Requests that one uid may have waiting.
    pub queue_max_per_uid: usize,
    /// Longest wait.
    pub queue_timeout: Micros,
    /// Longest time a reader may leave its output full.
    pub stall_timeout: Micros,
    /// Tokens of one prefill step.
    pub prefill_chunk: usize,
}

/// What the scheduler must know of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    /// Its name.
    pub slot: Slot,
    /// Who asks.
    pub uid: u32,
    /// Its class.
    pub class: Class,
    /// Tokens of the prompt, at least 1.
    pub n_prompt: usize,
    /// When it must have ended.
    pub deadline: Micros,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    /// A request passed admission.
    Submit(Ticket),
    /// Its caller left, or asked to stop.
    Cancel(Slot),
    /// The model of the running request is ready.
    Loaded(Slot),
    /// So many prompt tokens were read.
    Prefilled(Slot, usize),
    /// Text went out.
    Sent(Slot),
    /// Its output is full.
    Full(Slot),
    /// Its output has room again.
    Drained(Slot),
    /// It ended by itself.
    Ended(Slot),
    /// Time passed.
    Tick,
}

/// Why a request ends without its own doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its caller left.
    Cancelled,
    /// It waited too long in the queue; so many were waiting.
    QueueTimeout,
    /// Its deadline passed before any text.
    Deadline,
    /// Its deadline passed after text: the answer ends here.
    DeadlineWithText,
    /// Its reader did not read.
    Stalled,
    /// The queue has no room.
    QueueFull {
        /// Waiting now: all, or those of this uid.
        waiting: usize,
        /// The bound that is reached.
        max: usize,
        /// It is the bound for one uid.
        per_uid: bool,
    },
}

/// What the caller must do. After [`Action::Cut`] the slot is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell the request how many are ahead of it.
    Position(Slot, usize),
    /// It has the engine now.
    Start(Slot),
    /// End it.
    Cut(Slot, Cut),
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before this time, or before the next input.
    Idle(Option<Micros>),
    /// Make its model ready.
    Load(Slot),
    /// Read so many tokens of its prompt; the last ones if `last`.
    Prefill {
        /// The request.
        slot: Slot,
        /// Tokens.
        n: usize,
        /// The prompt is complete after them.
        last: bool,
    },
    /// Generate one token.
    Decode(Slot),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Prefill { left: usize },
    Decode,
}

#[derive(Debug)]
struct Running {
    ticket: Ticket,
    phase: Phase,
    /// Since when its output is full.
    full_since: Option<Micros>,
    sent_text: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    since: Micros,
}

/// The scheduler.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    /// In order of service.
    queue: VecDeque<Waiting>,
    running: Option<Running>,
}

impl Scheduler {
    /// An idle scheduler.
    #[must_use]
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new(), running: None }
    }

    /// Requests waiting.
    #[must_use]
    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// The request that has the engine.
    #[must_use]
    pub(super) fn running(&self) -> Option<Slot> {
        self.running.as_ref().map(|r| r.ticket.slot)
    }

    /// Takes an input. One about a slot that is not known (ended already) changes nothing.
    pub(super) fn on(&mut self, now: Micros, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Submit(ticket) => self.submit(now, ticket, actions),
            Input::Cancel(slot) => self.cancel(slot, actions),
            Input::Loaded(slot) => {
                if let Some(r) = self.running_mut(slot)
                    && r.phase == Phase::Loading
                {
                    r.phase = Phase::Prefill { left: r.ticket.n_prompt };
                }
            }
            Input::Prefilled(slot, n) => {
                if let Some(r) = self.running_mut(slot)
                    && let Phase::Prefill { left } = r.phase
                {
                    let left = left.saturating_sub(n);
                    r.phase = if left == 0 { Phase::Decode } else { Phase::Prefill { left } };
                }
            }
            Input::Sent(slot) => {
                if let Some(r) = self.running_mut(slot) {
                    r.sent_text = true;
                }
            }
            Input::Full(slot) => {
                if let Some(r) = self.running_mut(slot) {
                    r.full_since.get_or_insert(now);
                }
            }
            Input::Drained(slot) => {
                if let Some(r) = self.running_mut(slot) {
                    r.full_since = None;
                }
            }
            Input::Ended(slot) => {
                if self.running_mut(slot).is_some() {
                    self.running = None;
                }
            }
            Input::Tick => {}
        }
        self.expire(now, actions);
        self.start_next(actions);
    }

    /// The next step at time `now`.
    #[must_use]
    pub(super) fn plan(&self, now: Micros) -> Step {
        match &self.running {
            Some(r) if r.full_since.is_none() => {
                let slot = r.ticket.slot;
                match r.phase {
                    Phase::Loading => Step::Load(slot),
                    Phase::Prefill { left } => {
                        let n = left.min(self.limits.prefill_chunk);
                        Step::Prefill { slot, n, last: n == left }
                    }
                    Phase::Decode => Step::Decode(slot),
                }
            }
            _ => Step::Idle(self.next_expiry().map(|t| t.max(now))),
        }
    }

    fn running_mut(&mut self, slot: Slot) -> Option<&mut Running> {
        self.running.as_mut().filter(|r| r.ticket.slot == slot)
    }

    fn submit(&mut self, now: Micros, ticket: Ticket, actions: &mut Vec<Action>) {
        let full = |waiting, max, per_uid| Action::Cut(ticket.slot, Cut::QueueFull { waiting, max, per_uid });
        if self.running.is_some() {
            let of_uid = self.queue.iter().filter(|w| w.ticket.uid == ticket.uid).count();
            if self.queue.len() >= self.limits.queue_max {
                return actions.push(full(self.queue.len(), self.limits.queue_max, false));
            }
            if of_uid >= self.limits.queue_max_per_uid {
                return actions.push(full(of_uid, self.limits.queue_max_per_uid, true));
            }
        }
        // Interactive requests go before all background ones.
        let at = match ticket.class {
            Class::Background => self.queue.len(),
            Class::Interactive => {
                let ahead = |w: &Waiting| w.ticket.class == Class::Interactive;
                self.queue.iter().position(|w| !ahead(w)).unwrap_or(self.queue.len())
            }
        };
        self.queue.insert(at, Waiting { ticket, since: now });
        if self.running.is_some() {
            self.tell_positions(at, actions);
        }
    }

    fn cancel(&mut self, slot: Slot, actions: &mut Vec<Action>) {
        if self.running_mut(slot).is_some() {
            self.running = None;
            actions.push(Action::Cut(slot, Cut::Cancelled));
        } else if let Some(at) = self.queue.iter().position(|w| w.ticket.slot == slot) {
            self.queue.remove(at);
            actions.push(Action::Cut(slot, Cut::Cancelled));
            self.tell_positions(at, actions);
        }
    }

    /// Ends what ran out of time.
    fn expire(&mut self, now: Micros, actions: &mut Vec<Action>) {
        if let Some(r) = &self.running {
            let stalled = r.full_since.is_some_and(|t| now >= t.saturating_add(self.limits.stall_timeout));
            let cut = match (stalled, now >= r.ticket.deadline, r.sent_text) {
                (true, ..) => Some(Cut::Stalled),
                (_, true, true) => Some(Cut::DeadlineWithText),
                (_, true, false) => Some(Cut::Deadline),
                _ => None,
            };
            if let Some(cut) = cut {
                actions.push(Action::Cut(r.ticket.slot, cut));
                self.running = None;
            }
        }
        let timeout = self.limits.queue_timeout;
        let before = self.queue.len();
        self.queue.retain(|w| {
            let cut = if now >= w.ticket.deadline {
                Cut::Deadline
            } else if now >= w.since.saturating_add(timeout) {
                Cut::QueueTimeout
            } else {
                return true;
            };
            actions.push(Action::Cut(w.ticket.slot, cut));
            false
        });
        // With nothing running the next one starts now, and that tells everybody.
        if self.queue.len() < before && self.running.is_some() {
            self.tell_positions(0, actions);
        }
    }

    fn start_next(&mut self, actions: &mut Vec<Action>) {
        if self.running.is_none()
            && let Some(w) = self.queue.pop_front()
        {
            actions.push(Action::Start(w.ticket.slot));
            self.running =
                Some(Running { ticket: w.ticket, phase: Phase::Loading, full_since: None, sent_text: false });
            self.tell_positions(0, actions);
        }
    }

    fn tell_positions(&self, from: usize, actions: &mut Vec<Action>) {
        // The running one is ahead of the first in the queue.
        let ahead = usize::from(self.running.is_some());
        for (i, w) in self.queue.iter().enumerate().skip(from) {
            actions.push(Action::Position(w.ticket.slot, i + ahead));
        }
    }

    /// When the next thing runs out of time.
    fn next_expiry(&self) -> Option<Micros> {
        let running = self.running.iter().map(|r| {
            let stall = r.full_since.map_or(Micros::MAX, |t| t.saturating_add(self.limits.stall_timeout));
            r.ticket.deadline.min(stall)
        });
        let queue = self
            .queue
            .iter()
            .map(|w| w.ticket.deadline.min(w.since.saturating_add(self.limits.queue_timeout)));
        running.chain(queue).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        queue_max: 3,
        queue_max_per_uid: 2,
        queue_timeout: 100,
        stall_timeout: 30,
        prefill_chunk: 8,
    };

    fn ticket(n: u64, uid: u32, class: Class) -> Ticket {
        Ticket { slot: Slot(n), uid, class, n_prompt: 20, deadline: 1_000 }
    }

    fn on(s: &mut Scheduler, now: Micros, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        s.on(now, input, &mut actions);
        actions
    }

    fn submit(s: &mut Scheduler, now: Micros, n: u64, uid: u32, class: Class) -> Vec<Action> {
        on(s, now, Input::Submit(ticket(n, uid, class)))
    }

    #[test]
    fn a_request_runs_through_its_phases() {
        let mut s = Scheduler::new(LIMITS);
        assert_eq!(s.plan(0), Step::Idle(None));
        assert_eq!(submit(&mut s, 0, 1, 0, Class::Interactive), [Action::Start(Slot(1))]);
        assert_eq!(s.plan(0), Step::Load(Slot(1)));
        on(&mut s, 0, Input::Loaded(Slot(1)));
        for (n, last) in [(8, false), (8, false), (4, true)] {
            assert_eq!(s.plan(0), Step::Prefill { slot: Slot(1), n, last });
            on(&mut s, 0, Input::Prefilled(Slot(1), n));
        }
        assert_eq!(s.plan(0), Step::Decode(Slot(1)));
        on(&mut s, 1, Input::Full(Slot(1)));
        assert_eq!(s.plan(2), Step::Idle(Some(31)));
        on(&mut s, 3, Input::Drained(Slot(1)));
        assert_eq!(s.plan(3), Step::Decode(Slot(1)));
        assert_eq!(on(&mut s, 4, Input::Ended(Slot(1))), []);
        assert_eq!(s.plan(5), Step::Idle(None));
    }

    #[test]
    fn the_queue_is_bounded_and_ordered_by_class() {
        let mut s = Scheduler::new(LIMITS);
        submit(&mut s, 0, 1, 7, Class::Interactive);
        assert_eq!(submit(&mut s, 0, 2, 7, Class::Background), [Action::Position(Slot(2), 1)]);
        assert_eq!(
            submit(&mut s, 0, 3, 7, Class::Interactive),
            [Action::Position(Slot(3), 1), Action::Position(Slot(2), 2)]
        );
        let full =
            |n, waiting, max, per_uid| [Action::Cut(Slot(n), Cut::QueueFull { waiting, max, per_uid })];
        assert_eq!(submit(&mut s, 0, 4, 7, Class::Interactive), full(4, 2, 2, true));
        submit(&mut s, 0, 5, 8, Class::Interactive);
        assert_eq!(submit(&mut s, 0, 6, 9, Class::Interactive), full(6, 3, 3, false));
        assert_eq!(
            on(&mut s, 1, Input::Cancel(Slot(3))),
            [
                Action::Cut(Slot(3), Cut::Cancelled),
                Action::Position(Slot(5), 1),
                Action::Position(Slot(2), 2)
            ]
        );
        assert_eq!(on(&mut s, 1, Input::Cancel(Slot(3))), [], "an input after the end changes nothing");
        assert_eq!(
            on(&mut s, 2, Input::Ended(Slot(1))),
            [Action::Start(Slot(5)), Action::Position(Slot(2), 1)]
        );
    }

    #[test]
    fn time_ends_what_waits_or_stalls() {
        let mut s = Scheduler::new(LIMITS);
        submit(&mut s, 0, 1, 0, Class::Interactive);
        submit(&mut s, 0, 2, 0, Class::Interactive);
        assert_eq!(on(&mut s, 100, Input::Tick), [Action::Cut(Slot(2), Cut::QueueTimeout)]);
        on(&mut s, 100, Input::Full(Slot(1)));
        assert_eq!(on(&mut s, 130, Input::Tick), [Action::Cut(Slot(1), Cut::Stalled)]);
        submit(&mut s, 200, 3, 0, Class::Interactive);
        on(&mut s, 201, Input::Sent(Slot(3)));
        assert_eq!(on(&mut s, 1_000, Input::Tick), [Action::Cut(Slot(3), Cut::DeadlineWithText)]);
        assert_eq!(submit(&mut s, 1_000, 4, 0, Class::Interactive), [Action::Cut(Slot(4), Cut::Deadline)]);
        assert_eq!(s.plan(1_000), Step::Idle(None));
    }

    /// Whatever comes in, in whatever order: each accepted request ends at most once, nothing that ended is
    /// planned, a request that can run does, and the queue keeps its bound.
    #[test]
    fn any_sequence_of_inputs_keeps_the_invariants() {
        arbtest::arbtest(|u| {
            let mut s = Scheduler::new(LIMITS);
            let (mut now, mut next, mut live) = (0, 1, std::collections::BTreeSet::new());
            for _ in 0..u.int_in_range(0..=200)? {
                now += u.int_in_range(0..=20_u64)?;
                let any = Slot(u.int_in_range(0..=next)?);
                let input = match u.int_in_range(0..=9)? {
                    0 | 1 => {
                        let class = if u.arbitrary()? { Class::Interactive } else { Class::Background };
                        let t = Ticket {
                            slot: Slot(next),
                            uid: u.int_in_range(0..=3)?,
                            class,
                            n_prompt: 20,
                            deadline: now + u.int_in_range(0..=400)?,
                        };
                        live.insert(Slot(next));
                        next += 1;
                        Input::Submit(t)
                    }
                    2 => Input::Cancel(any),
                    3 => Input::Loaded(any),
                    4 => Input::Prefilled(any, 8),
                    5 => Input::Sent(any),
                    6 => Input::Full(any),
                    7 => Input::Drained(any),
                    8 => {
                        if s.running() == Some(any) {
                            live.remove(&any);
                        }
                        Input::Ended(any)
                    }
                    _ => Input::Tick,
                };
                for action in on(&mut s, now, input) {
                    match action {
                        Action::Cut(slot, _) => assert!(live.remove(&slot), "{slot:?} ended twice"),
                        Action::Start(slot) => {
                            assert!(live.contains(&slot), "{slot:?} started after its end")
                        }
                        Action::Position(slot, p) => assert!(live.contains(&slot) && p >= 1),
                    }
                }
                assert_eq!(
                    live.len(),
                    s.queue_len() + usize::from(s.running().is_some()),
                    "work is conserved"
                );
                assert!(s.queue_len() <= LIMITS.queue_max);
                assert!(s.running().is_some() || s.queue_len() == 0, "idle while requests wait");
                match s.plan(now) {
                    Step::Load(slot) | Step::Prefill { slot, .. } | Step::Decode(slot) => {
                        assert!(live.contains(&slot));
                    }
                    Step::Idle(at) => {
                        assert!(at.is_some() || s.running().is_none(), "a stalled one would stay")
                    }
                }
            }
            Ok(())
        });
    }
}
