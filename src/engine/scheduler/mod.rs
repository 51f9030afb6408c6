//! Who is served next, and what ends. Pure: no clock, channel, thread or randomness; time comes in as a number.
//!
//! Requests wait in a bounded queue until they get a place; those with a place share each pass over the weights. The
//! caller feeds [`Input`]s, asks [`Scheduler::plan`] for the next step, carries out the [`Action`]s that both bring, does the
//! step, and reports it.
//!
//! - `interactive` goes before `background`, which has a small share of the engine's time while it waits.
//! - Within a class, uids are served in turn, by the engine's time that they had ([`accounts`]).
//! - A sequence grows only while every one that has begun can still end ([`room`]), so that memory never locks.

mod accounts;
mod plan;
mod room;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::Class;
use crate::base::limits::{ATTN_BLOCK, N_PART_WAIT_MAX};
use accounts::Accounts;

/// Microseconds on the caller's monotonic clock.
pub(super) type Micros = u64;

/// Names a request to the scheduler. Later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub u64);

/// Names a model to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ModelKey(pub u32);

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests that may wait, in all.
    pub queue_max: usize,
    /// Requests that one uid may have waiting.
    pub queue_max_per_uid: usize,
    /// Longest wait.
    pub queue_timeout: Micros,
    /// Longest time in which a reader whose output is full reads nothing.
    pub stall_timeout: Micros,
    /// Most prompt tokens of a step.
    pub prefill_chunk: usize,
    /// Sequences of a step, of each class.
    pub max_sequences: usize,
    /// How far a uid may be ahead of another one that has no place: twice this.
    pub quantum: Micros,
    /// Percent of the engine's time that background work has while others are served.
    pub background_share: u64,
    /// Models in memory at a time.
    pub max_loaded: usize,
    /// How long a model stays that nobody uses; `None`: for ever.
    pub keep: Option<Micros>,
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
    /// Its model.
    pub model: ModelKey,
    /// Tokens of the prompt, at least 1.
    pub n_prompt: usize,
    /// Most tokens of the answer; 0: it ends with its prompt.
    pub n_max: usize,
    /// When it must have ended.
    pub deadline: Micros,
    /// Sequences of its model in a step, if fewer than of [`Limits`].
    pub max_sequences: usize,
    /// It is a further part of what its caller asked for at once, of which few are there at a time: the queue's bounds are not
    /// for it.
    pub follows: bool,
}

/// What a loaded model allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Pages of 64 positions that its sequences may have together; at least those of the longest one.
    pub n_pages: usize,
    /// Prompts are to be cut where pages end, because what is kept of a sequence can be shared only there.
    pub at_pages: bool,
    /// A prompt is read in one step, for each of its tokens sees those behind it.
    pub whole: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A request passed admission.
    Submit(Ticket),
    /// Its caller left, or asked to stop.
    Cancel(Slot),
    /// A model is wanted though nobody asks it; it takes the place of another one only where it `evicts`.
    Want {
        /// The model.
        model: ModelKey,
        /// Another model, that nobody uses and that is not pinned, goes for it.
        evicts: bool,
    },
    /// It is not wanted any more.
    Unwant(ModelKey),
    /// A loaded model stays until it is unloaded by name; or no longer so.
    Pin(ModelKey, bool),
    /// Memory is short: what background requests keep that have no place is given up, and with `true` models that nobody
    /// uses as well.
    Pressure(bool),
    /// A model is ready.
    Loaded(ModelKey, Capacity),
    /// It is not ready any more, or could not be loaded. Its requests are ended by the caller.
    Unloaded(ModelKey),
    /// A loaded model is gone with what its sequences kept, which begin anew.
    Lost(ModelKey),
    /// A request that was told to [`Action::Begin`] has so many tokens already.
    Begun(Slot, usize),
    /// The load or the step under way, of this model, is somebody else's work and takes long: nobody waits for it any more
    /// who wants another model.
    Aside(ModelKey),
    /// A step took so long.
    StepDone(Micros),
    /// So did one that was set aside.
    Returned(ModelKey, Micros),
    /// A step that is told of next came to nothing for this one.
    Undone(Slot),
    /// Text went out.
    Sent(Slot),
    /// Its output is full.
    Full(Slot),
    /// Its output is full as before, but its reader has read.
    Read(Slot),
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
    /// It waited too long in the queue.
    QueueTimeout,
    /// Its deadline passed before any text.
    Deadline,
    /// Its deadline passed after text: the answer ends here.
    DeadlineWithText,
    /// Its reader did not read.
    Stalled,
    /// Its model is not loaded, and pinned ones have all places.
    NoRoom,
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

/// Why a model goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nobody has wanted it for long.
    Unused,
    /// Memory is short.
    Memory,
    /// More are loaded than may be since a reload.
    Bound,
    /// Another one is to be loaded in its place.
    For(ModelKey),
}

/// What the caller must do, in this order. After [`Action::Cut`] the slot is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It has a place: its model is loaded, or will be.
    Place(Slot),
    /// Its model is ready: give it what a sequence keeps, and report [`Input::Begun`].
    Begin(Slot),
    /// Take away what it keeps; it will begin anew, with what it has written so far as its prompt.
    Drop(Slot),
    /// Forget a model that no request uses.
    Unload(ModelKey, Why),
    /// A wanted model cannot be loaded: pinned ones have all places, or any where none has to go for it.
    NoRoom(ModelKey),
    /// End it.
    Cut(Slot, Cut),
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before this time, or before the next input.
    Idle(Option<Micros>),
    /// Make this model ready, or a part of that.
    Load(ModelKey),
    /// Take the tokens of [`Scheduler::parts`] through this model.
    Run(ModelKey),
}

/// What a sequence brings to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The request.
    pub slot: Slot,
    /// Its next tokens: so many of the prompt, or the one drawn last.
    pub n: usize,
    /// A token is drawn after them.
    pub draws: bool,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has nothing yet, or nothing any more.
    Waiting,
    /// So many tokens are still to be read.
    Prefill {
        left: usize,
    },
    Decode,
}

#[derive(Debug)]
struct Sequence {
    ticket: Ticket,
    since: Micros,
    phase: Phase,
    /// It has a place.
    active: bool,
    /// Tokens that it keeps, or that were read and drawn before they were dropped.
    n_tokens: usize,
    /// Pages it keeps for itself.
    n_pages: usize,
    /// Pages that it began with: those are the prefix cache's.
    n_shared: usize,
    /// It was placed before: it does not count as waiting.
    started: bool,
    /// Since when its output is full.
    full_since: Option<Micros>,
    sent_text: bool,
}

impl Sequence {
    fn begun(&self) -> bool {
        self.phase != Phase::Waiting
    }

    fn waits(&self) -> bool {
        !self.started
    }
}

/// A model that is loaded.
#[derive(Debug)]
struct Loaded {
    capacity: Capacity,
    /// When it was last used.
    used: Micros,
    /// When somebody was last seen to want it.
    wanted: Micros,
    pinned: bool,
    /// Since the bound was lowered it is one too many: nobody begins with it.
    leaves: bool,
}

/// A model that is wanted though nobody asks it.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    model: ModelKey,
    evicts: bool,
}

/// The scheduler.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    sequences: BTreeMap<Slot, Sequence>,
    /// Of `interactive`, then of `background`.
    accounts: [Accounts; 2],
    models: BTreeMap<ModelKey, Loaded>,
    /// The one that is being loaded.
    loading: Option<ModelKey>,
    /// Models that are wanted though nobody asks them, the next one first.
    wanted: Vec<Wanted>,
    /// What the step under way takes.
    parts: Vec<Part>,
    /// Models whose load or step was set aside, with what the step takes. A load that is takes no place of a model before it is
    /// through, and who waits for either none of a sequence.
    aside: BTreeMap<ModelKey, Vec<Part>>,
    /// What background work has still to get, in hundredths of microseconds of the engine.
    background_due: i64,
    /// Microseconds for a token of a prompt, lately.
    token_us: u64,
    /// The last step was a part of loading.
    loaded_last: bool,
    /// Of the sequences in the step that was planned last.
    stepping: Option<Class>,
}

fn class(class: Class) -> usize {
    usize::from(class == Class::Background)
}

impl Scheduler {
    /// An idle scheduler.
    #[must_use]
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            sequences: BTreeMap::new(),
            accounts: Default::default(),
            models: BTreeMap::new(),
            loading: None,
            wanted: Vec::new(),
            parts: Vec::new(),
            aside: BTreeMap::new(),
            background_due: 0,
            token_us: 0,
            loaded_last: false,
            stepping: None,
        }
    }

    /// Takes new bounds. Those who wait or run stay.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Requests waiting, of `interactive` and of `background`.
    #[must_use]
    pub(super) fn queue_len(&self) -> [usize; 2] {
        let waits = |of: Class| self.sequences.values().filter(|s| s.waits() && s.ticket.class == of).count();
        [waits(Class::Interactive), waits(Class::Background)]
    }

    /// Requests that have a place, or had one.
    #[must_use]
    pub(super) fn n_active(&self) -> usize {
        self.sequences.values().filter(|s| !s.waits()).count()
    }

    /// All requests, and whether each rests: its output is full, it has no place, or those before its class have the step.
    pub(super) fn resting(&self) -> impl Iterator<Item = (Slot, bool)> {
        let gives_way =
            |s: &Sequence| s.ticket.class == Class::Background && self.stepping == Some(Class::Interactive);
        let rests = move |s: &Sequence| !s.active || s.full_since.is_some() || gives_way(s);
        self.sequences.iter().map(move |(slot, s)| (*slot, rests(s)))
    }

    /// Whether one more may be pinned, of those that may be loaded.
    pub(super) fn may_pin(&self, model: ModelKey) -> bool {
        self.models.iter().filter(|(key, m)| m.pinned && **key != model).count() < self.limits.max_loaded
    }

    /// Whether a model stays until it is unloaded by name.
    pub(super) fn is_pinned(&self, model: ModelKey) -> bool {
        self.models.get(&model).is_some_and(|m| m.pinned)
    }

    /// Requests that have a place until `model` is loaded.
    pub(super) fn placed(&self, model: ModelKey) -> impl Iterator<Item = Slot> {
        let of = move |s: &&Sequence| s.ticket.model == model && s.active;
        self.sequences.values().filter(of).map(|s| s.ticket.slot)
    }

    /// What each sequence brings to the step that was planned last.
    #[must_use]
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether `model` is loaded, or about to be.
    #[must_use]
    pub(super) fn uses(&self, model: ModelKey) -> bool {
        self.models.contains_key(&model) || self.is_coming(model) || self.wants(model)
    }

    /// Whether it is being loaded.
    fn is_coming(&self, model: ModelKey) -> bool {
        self.loading == Some(model) || (self.aside.contains_key(&model) && !self.models.contains_key(&model))
    }

    /// Whether a sequence has one of the places of its class.
    fn has_place(&self, s: &Sequence) -> bool {
        s.active && !self.aside.contains_key(&s.ticket.model)
    }

    fn wants(&self, model: ModelKey) -> bool {
        self.wanted.iter().any(|w| w.model == model)
    }

    /// Takes an input. One about a slot that is not known (ended already) changes nothing.
    pub(super) fn on(&mut self, now: Micros, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Submit(ticket) => self.submit(now, ticket, actions),
            Input::Cancel(slot) => {
                if self.forget(slot) {
                    actions.push(Action::Cut(slot, Cut::Cancelled));
                }
            }
            Input::Want { model, evicts } => {
                if let Some(loaded) = self.models.get_mut(&model) {
                    loaded.wanted = now;
                } else if let Some(w) = self.wanted.iter_mut().find(|w| w.model == model) {
                    w.evicts |= evicts;
                } else if !self.is_coming(model) {
                    self.wanted.push(Wanted { model, evicts });
                }
            }
            Input::Unwant(model) => {
                self.wanted.retain(|w| w.model != model);
                if self.is_coming(model) && self.sequences.values().all(|s| s.ticket.model != model) {
                    self.stop_loading(model);
                }
            }
            Input::Pin(model, pinned) => {
                if let Some(loaded) = self.models.get_mut(&model) {
                    loaded.pinned = pinned;
                }
            }
            Input::Loaded(model, capacity) => {
                self.stop_loading(model);
                self.wanted.retain(|w| w.model != model);
                self.models
                    .insert(model, Loaded { capacity, used: now, wanted: now, pinned: false, leaves: false });
            }
            Input::Unloaded(model) => {
                self.stop_loading(model);
                self.wanted.retain(|w| w.model != model);
                self.models.remove(&model);
            }
            Input::Lost(model) => self.lose(model, actions),
            Input::Pressure(models) => self.give_way(models, actions),
            Input::Begun(slot, n) => self.begun(slot, n),
            Input::Aside(model) => {
                let parts = match self.loading.take_if(|loading| *loading == model) {
                    Some(_) => Vec::new(),
                    None => std::mem::take(&mut self.parts),
                };
                self.aside.insert(model, parts);
            }
            Input::StepDone(us) => {
                let parts = std::mem::take(&mut self.parts);
                self.step_done(&parts, us);
            }
            Input::Returned(model, us) => {
                if let Some(parts) = self.aside.remove(&model) {
                    self.step_done(&parts, us);
                }
            }
            Input::Undone(slot) => {
                let all = self.aside.values_mut().chain([&mut self.parts]);
                all.for_each(|parts| parts.retain(|part| part.slot != slot));
            }
            Input::Sent(slot) => {
                if let Some(s) = self.sequences.get_mut(&slot) {
                    s.sent_text = true;
                }
            }
            Input::Full(slot) => {
                if let Some(s) = self.sequences.get_mut(&slot) {
                    s.full_since.get_or_insert(now);
                }
            }
            Input::Read(slot) => {
                if let Some(s) = self.sequences.get_mut(&slot)
                    && s.full_since.is_some()
                {
                    s.full_since = Some(now);
                }
            }
            Input::Drained(slot) => {
                if let Some(s) = self.sequences.get_mut(&slot) {
                    s.full_since = None;
                }
            }
            Input::Ended(slot) => {
                self.forget(slot);
            }
            Input::Tick => {}
        }
        self.expire(now, actions);
    }

    /// A model is no longer being loaded, whatever became of it.
    fn stop_loading(&mut self, model: ModelKey) {
        self.loading.take_if(|loading| *loading == model);
        self.aside.remove(&model);
    }

    fn forget(&mut self, slot: Slot) -> bool {
        let Some(s) = self.sequences.remove(&slot) else { return false };
        let others =
            self.sequences.values().any(|o| (o.ticket.uid, o.ticket.class) == (s.ticket.uid, s.ticket.class));
        if !others {
            self.accounts[class(s.ticket.class)].leave(s.ticket.uid);
        }
        true
    }

    fn submit(&mut self, now: Micros, ticket: Ticket, actions: &mut Vec<Action>) {
        let (mut waiting, mut of_uid, mut following, mut placed, mut of_model) = (0, 0, 0, 0, 0);
        for s in self.sequences.values() {
            let waits = s.waits() && !s.ticket.follows;
            waiting += usize::from(waits);
            of_uid += usize::from(waits && s.ticket.uid == ticket.uid);
            following += usize::from(s.waits() && s.ticket.follows);
            let of_class = s.ticket.class == ticket.class;
            placed += usize::from(of_class && self.has_place(s));
            of_model += usize::from(of_class && s.active && s.ticket.model == ticket.model);
        }
        let l = &self.limits;
        // Those that wait for a place that is free do not count.
        let free = l.max_sequences.saturating_sub(placed).min(ticket.max_sequences.saturating_sub(of_model));
        let full = |waiting, max, per_uid| Action::Cut(ticket.slot, Cut::QueueFull { waiting, max, per_uid });
        if ticket.follows {
            if following >= N_PART_WAIT_MAX {
                return actions.push(full(following, N_PART_WAIT_MAX, false));
            }
        } else if waiting >= l.queue_max + free {
            return actions.push(full(waiting - free, l.queue_max, false));
        } else if of_uid >= l.queue_max_per_uid + free {
            return actions.push(full(of_uid - free, l.queue_max_per_uid, true));
        }
        self.accounts[class(ticket.class)].enter(ticket.uid);
        let sequence = Sequence {
            ticket,
            since: now,
            phase: Phase::Waiting,
            active: false,
            n_tokens: 0,
            n_pages: 0,
            n_shared: 0,
            started: false,
            full_since: None,
            sent_text: false,
        };
        self.sequences.insert(ticket.slot, sequence);
    }

    fn begun(&mut self, slot: Slot, n: usize) {
        let Some(s) = self.sequences.get_mut(&slot) else { return };
        let all = s.n_tokens.max(s.ticket.n_prompt);
        s.phase = Phase::Prefill { left: all - n.min(all - 1) };
        (s.n_pages, s.n_shared) = (0, n / ATTN_BLOCK);
    }

    /// The parts of a step are through.
    fn step_done(&mut self, parts: &[Part], us: Micros) {
        let n_rows: usize = parts.iter().map(|part| part.n).sum();
        let mut n_decoded = 0;
        for part in parts {
            let Some(s) = self.sequences.get_mut(&part.slot) else { continue };
            match s.phase {
                Phase::Prefill { left } => {
                    let left = left.saturating_sub(part.n);
                    let all = s.n_tokens.max(s.ticket.n_prompt);
                    s.phase = if left == 0 { Phase::Decode } else { Phase::Prefill { left } };
                    // What is drawn at the end is a token more.
                    s.n_tokens = if left == 0 { all + 1 } else { s.n_tokens };
                }
                Phase::Decode => {
                    s.n_tokens += 1;
                    n_decoded += 1;
                }
                Phase::Waiting => {}
            }
            // A shared step is divided by rows.
            let cost = us * part.n as u64 / n_rows.max(1) as u64;
            self.accounts[class(s.ticket.class)].serve(s.ticket.uid, cost);
            let share = self.limits.background_share as i64;
            self.background_due += match s.ticket.class {
                Class::Interactive => cost as i64 * share,
                Class::Background => -(cost as i64 * (100 - share)),
            };
        }
        if n_rows >= plan::N_MEASURED && n_decoded * 4 < n_rows {
            let own = us / n_rows as u64;
            self.token_us = if self.token_us == 0 { own } else { (3 * self.token_us + own) / 4 };
        }
        let waits =
            self.sequences.values().any(|s| s.ticket.class == Class::Background && s.full_since.is_none());
        // What nobody asks for is not saved up, nor is a debt: whoever used what was left over has its share again soon.
        let debt = 100 * self.limits.quantum as i64;
        self.background_due = if waits { self.background_due.clamp(-debt, DUE_MAX) } else { 0 };
    }

    /// Ends what ran out of time.
    fn expire(&mut self, now: Micros, actions: &mut Vec<Action>) {
        let l = self.limits;
        let cut = |s: &Sequence| {
            let stalled = s.full_since.is_some_and(|t| now >= t.saturating_add(l.stall_timeout));
            match now >= s.ticket.deadline {
                _ if stalled => Some(Cut::Stalled),
                true if s.sent_text => Some(Cut::DeadlineWithText),
                true => Some(Cut::Deadline),
                false if s.waits() && now >= s.since.saturating_add(l.queue_timeout) => {
                    Some(Cut::QueueTimeout)
                }
                false => None,
            }
        };
        let before = actions.len();
        actions.extend(self.sequences.values().filter_map(|s| Some(Action::Cut(s.ticket.slot, cut(s)?))));
        for action in &actions[before..] {
            if let Action::Cut(slot, _) = *action {
                self.forget(slot);
            }
        }
    }

    /// The place in the queue of each request that waits, 1 is the next one: uids in turn, in the order in which they
    /// are to be served as things stand.
    pub(super) fn positions(&self, mut tell: impl FnMut(Slot, usize)) {
        let mut of_uid = BTreeMap::new();
        let mut all: Vec<_> = self
            .sequences
            .values()
            .filter(|s| s.waits())
            .map(|s| {
                let class = class(s.ticket.class);
                let turn: &mut usize = of_uid.entry((class, s.ticket.uid)).or_default();
                *turn += 1;
                (class, *turn, self.accounts[class].served(s.ticket.uid), s.ticket.slot)
            })
            .collect();
        all.sort_unstable();
        all.iter().enumerate().for_each(|(i, (.., slot))| tell(*slot, i + 1));
    }

    /// When the next thing runs out of time.
    fn next_expiry(&self) -> Option<Micros> {
        let of = |s: &Sequence| {
            let stall = s.full_since.map_or(Micros::MAX, |t| t.saturating_add(self.limits.stall_timeout));
            let wait =
                if s.waits() { s.since.saturating_add(self.limits.queue_timeout) } else { Micros::MAX };
            s.ticket.deadline.min(stall).min(wait)
        };
        self.sequences.values().map(of).min()
    }
}

/// A second, in hundredths of microseconds.
const DUE_MAX: i64 = 100_000_000;
