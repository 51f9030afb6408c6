//! The engine thread: it owns models, what sequences keep, and the scheduler, does one step after the other, and looks at
//! what came in between two steps.

mod ends;
mod mind;
mod step;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use self::ends::Draining;
use self::step::Stepping;
use super::generation::{Generation, Whole};
use super::handle::{Live, Shared};
use super::loaded::Loaded;
use super::manners::Level;
use super::models::{Loading, ToUnload, Wish};
use super::prefix::NodeId;
use super::ready::{Kept, Ready};
use super::scheduler::{Action, Input, Micros, ModelKey, Part as Share, Scheduler, Slot, Step, Ticket};
use super::{Code, Event, Fault, Offer, Request, Sink};
use crate::base::Token;
use crate::kernel::Pool;
use crate::model::ModelError;
use crate::os::clock;

/// A request that passed admission.
pub(super) struct Job {
    pub request: Request,
    pub sink: Box<dyn Sink>,
    pub live: Arc<Live>,
    pub model: Arc<Loaded>,
    pub tokens: Vec<Token>,
    /// Those of them that any prompt in the model's template begins with.
    pub n_common: usize,
    pub submitted_us: Micros,
    /// It is no further part of what its caller asked for at once.
    pub first: bool,
}

/// What the engine thread takes.
pub(super) enum Command {
    /// Serve a request.
    Run(Box<Job>),
    /// Load a model.
    Load(Box<Wish>),
    /// Unload one.
    Unload(ToUnload),
    /// The settings have changed.
    Reload,
    /// Memory is short, or is there again.
    Pressure(Level),
    /// A flag of some request changed.
    Look,
}

/// How often is looked what helpers have come to.
const HELPER_LOOK: Micros = 2_000;
/// A change of position or progress is told at most this often.
const QUEUED_EVERY: Micros = 500_000;
pub(super) const PROGRESS_EVERY: Micros = 250_000;

/// The engine thread's state.
pub(super) struct Runner {
    pub(super) shared: Arc<Shared>,
    pub(super) scheduler: Scheduler,
    pub(super) jobs: BTreeMap<Slot, Generation>,
    kept: BTreeMap<Slot, Kept>,
    draining: Vec<Draining>,
    next_slot: u64,
    pub(super) ready: BTreeMap<ModelKey, Ready>,
    pub(super) loading: Option<Loading>,
    /// Models whose graphs helpers are opening.
    pub(super) opening: Vec<Loading>,
    /// Steps that helpers are at and nobody waits for who wants another model.
    pub(super) aside: BTreeMap<ModelKey, Stepping>,
    /// Models that are wanted though no request needs them.
    pub(super) wishes: Vec<Wish>,
    /// Models that the scheduler knows by their keys.
    pub(super) models: BTreeMap<ModelKey, Arc<Loaded>>,
    pub(super) pool: Option<Pool>,
    /// How much is given up for want of memory: as it was last told, and as it was last done.
    level: Level,
    pub(super) shed: Level,
    /// Until when the processor rests.
    rest_until: Micros,
    /// Blocks of prefix caches that an ended request began with.
    unpin: Vec<(ModelKey, NodeId)>,
    /// The tokens of the step under way.
    tokens: Vec<Token>,
    /// When each uid was last told of in the log for want of room.
    told_full: BTreeMap<u32, Micros>,
    /// Microseconds that a generation took lately; what `retry_after_ms` is guessed from.
    typical_us: Micros,
    /// The settings have changed since the last step.
    reloaded: bool,
    /// Loads and unloads that were asked for since then: a step has its model in its hands.
    asked: Vec<Command>,
}

/// The threads, started at the first load.
pub(super) fn start_pool<'p>(pool: &'p mut Option<Pool>, shared: &Shared) -> Result<&'p Pool, ModelError> {
    let n = shared.options.threads;
    let pool = match pool {
        Some(pool) => pool,
        None => {
            pool.insert(Pool::new(shared.kernels, n).map_err(|source| ModelError::Threads { n, source })?)
        }
    };
    pool.set_active(shared.orders.threads());
    Ok(pool)
}

impl Runner {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let scheduler = Scheduler::new(shared.settings().limits(&shared.options));
        Self {
            shared,
            scheduler,
            jobs: BTreeMap::new(),
            kept: BTreeMap::new(),
            draining: Vec::new(),
            next_slot: 0,
            ready: BTreeMap::new(),
            loading: None,
            opening: Vec::new(),
            aside: BTreeMap::new(),
            wishes: Vec::new(),
            models: BTreeMap::new(),
            pool: None,
            level: Level::Calm,
            shed: Level::Calm,
            rest_until: 0,
            unpin: Vec::new(),
            tokens: Vec::new(),
            told_full: BTreeMap::new(),
            typical_us: 1_000_000,
            reloaded: false,
            asked: Vec::new(),
        }
    }

    /// Serves until every sender is gone. A panic fails all requests and marks the engine as dead.
    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        if catch_unwind(AssertUnwindSafe(|| self.serve(inbox))).is_ok() {
            return;
        }
        self.shared.dead.store(true, Ordering::Release);
        let message =
            "the engine failed while it worked; the log has the place, the daemon restarts by itself";
        for job in self.jobs.values_mut() {
            job.sink.offer(&Event::Failed(Fault::new(Code::Internal, message)));
        }
        for asker in self.wishes.iter_mut().filter_map(|wish| wish.asker.as_mut()) {
            asker.sink.offer(&Event::Failed(Fault::new(Code::Internal, message)));
        }
        for d in &mut self.draining {
            d.sink.offer(&Event::Failed(Fault::new(Code::Internal, message)));
        }
        self.shared.stirs.tell();
    }

    fn serve(&mut self, inbox: &Receiver<Command>) {
        loop {
            let now = self.look_around(inbox);
            if std::mem::take(&mut self.reloaded) {
                self.reload();
            }
            if self.shed != self.level {
                self.shed();
            }
            for command in std::mem::take(&mut self.asked) {
                match command {
                    Command::Load(wish) => self.want(*wish),
                    Command::Unload(to) => self.unload_by_name(to),
                    other => self.take(other),
                }
            }
            self.look_at_helpers(inbox);
            let step = self.plan(now);
            // Who has a place by now does not hear of one in the queue.
            self.tell_positions(now);
            for (slot, rests) in self.scheduler.resting() {
                if let Some(job) = self.jobs.get(&slot) {
                    job.rests(rests);
                }
            }
            match step {
                Step::Idle(until) => {
                    let helped = !self.opening.is_empty() || !self.aside.is_empty();
                    let look = helped.then_some(now + HELPER_LOOK);
                    let until = self.draining.iter().map(|d| d.until).chain(until).chain(look).min();
                    self.shared.busy.store(helped, Ordering::Release);
                    let woken = match until {
                        None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                        // A little later than the moment itself, so that it has passed.
                        Some(at) => inbox.recv_timeout(Duration::from_micros(at.saturating_sub(now) + 1_000)),
                    };
                    self.shared.busy.store(true, Ordering::Release);
                    match woken {
                        Ok(command) => self.take(command),
                        Err(RecvTimeoutError::Timeout) => self.input(Input::Tick),
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                Step::Load(key) => self.load(key, now),
                Step::Run(_) if now < self.rest_until => self.rest(inbox, now),
                Step::Run(key) => self.step(inbox, key),
            }
            self.shared.progress.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes new settings, between two steps.
    fn reload(&mut self) {
        let settings = self.shared.settings();
        self.scheduler.set_limits(settings.limits(&self.shared.options));
        for ready in self.ready.values_mut() {
            ready.set_prefix_cache(settings.prefix_cache_bytes, self.shed < Level::Prefixes);
        }
    }

    /// Takes what came in, looks at all requests and tells what there is to tell; returns the time.
    fn look_around(&mut self, inbox: &Receiver<Command>) -> Micros {
        while let Ok(command) = inbox.try_recv() {
            self.take(command);
        }
        let now = clock::now_us();
        self.look(now);
        for (told, n) in self.shared.queue_length.iter().zip(self.scheduler.queue_len()) {
            told.store(n, Ordering::Relaxed);
        }
        self.shared.active.store(self.scheduler.n_active(), Ordering::Relaxed);
        now
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Run(job) => {
                let slot = Slot(self.next_slot);
                self.next_slot += 1;
                let settings = self.shared.settings();
                let deadline = settings.deadline_of(job.request.deadline_ms, job.submitted_us);
                let (uid, class, model) = (job.request.caller.uid, job.request.class, job.model.key);
                let follows = !job.first;
                self.models.entry(model).or_insert_with(|| job.model.clone());
                let (n_ctx, max_sequences) = (job.model.n_ctx, job.model.max_sequences);
                let sampling = settings.of_model.get(&job.model.id).map(|own| &own.sampling);
                let metrics = self.shared.metrics.model(&job.model.id);
                let generation = Generation::new(*job, n_ctx, settings.max_tokens, sampling, metrics);
                let (n_prompt, n_max) = generation.bounds();
                let refused = generation.played_fault(false);
                self.jobs.insert(slot, generation);
                if let Some(fault) = refused {
                    return self.end(slot, Err(fault), clock::now_us());
                }
                self.input(Input::Submit(Ticket {
                    slot,
                    uid,
                    class,
                    model,
                    n_prompt,
                    n_max,
                    deadline,
                    max_sequences,
                    follows,
                }));
            }
            Command::Load(_) => self.asked.push(command),
            Command::Unload(to) => {
                // A step that nobody wants any more ends early.
                if to.force {
                    self.end_users(&to.id);
                }
                self.asked.push(Command::Unload(to));
            }
            Command::Reload => self.reloaded = true,
            Command::Pressure(level) => self.level = level,
            Command::Look => {}
        }
    }

    /// Tells the scheduler and does what it says.
    pub(super) fn input(&mut self, input: Input) {
        let now = clock::now_us();
        let mut actions = Vec::new();
        self.scheduler.on(now, input, &mut actions);
        self.carry_out(actions, now);
    }

    /// The next step, once there is nothing more to be done before it.
    fn plan(&mut self, now: Micros) -> Step {
        loop {
            let mut actions = Vec::new();
            let step = self.scheduler.plan(now, &mut actions);
            let again = actions.iter().any(|action| matches!(action, Action::Begin(_)));
            self.carry_out(actions, now);
            if !again {
                return step;
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>, now: Micros) {
        for action in actions {
            match action {
                Action::Place(slot) => {
                    if let Some(job) = self.jobs.get_mut(&slot) {
                        job.started(now);
                    }
                }
                Action::Begin(slot) => self.begin(slot, now),
                Action::Drop(slot) => self.release(slot),
                Action::Unload(key, why) => self.unload(key, why),
                Action::NoRoom(key) => self.no_room(key),
                Action::Cut(slot, cut) => self.cut(slot, cut, now),
            }
        }
    }

    /// Gives a request what a sequence keeps, as much of it as the prefix cache has.
    fn begin(&mut self, slot: Slot, now: Micros) {
        let Some(job) = self.jobs.get_mut(&slot) else { return };
        let key = job.model.key;
        let Some(ready) = self.ready.get_mut(&key) else { return };
        let kept = match ready.begin(job) {
            Ok(kept) => kept,
            Err(fault) => return self.fail(slot, fault),
        };
        let n = kept.len();
        job.begun(n, now);
        self.kept.insert(slot, kept);
        self.input(Input::Begun(slot, n));
    }

    /// Takes from a request what its sequence keeps.
    fn release(&mut self, slot: Slot) {
        if let Some(kept) = self.kept.remove(&slot) {
            self.give_back(kept);
        }
        self.aside.values_mut().for_each(|stepping| stepping.leave(slot));
    }

    fn give_back(&mut self, kept: Kept) {
        let model = kept.model;
        self.unpin.extend(kept.into_pin().map(|pin| (model, pin)));
        self.settle();
    }

    /// Tells prefix caches and helpers who ended, but for those of a model that is in the hands of a step.
    fn settle(&mut self) {
        self.ready.values_mut().for_each(Ready::tidy);
        self.unpin.retain(|(model, pin)| match self.ready.get_mut(model) {
            Some(ready) => {
                ready.unpin(*pin);
                false
            }
            None => self.models.contains_key(model),
        });
    }

    /// Looks at the flags of all requests: who left, whose reader made room, who has read too slowly.
    fn look(&mut self, now: Micros) {
        if !self.wishes.is_empty() {
            self.look_at_wishes();
        }
        let gone: Vec<Slot> = self.jobs.iter().filter(|(_, j)| j.live.cancelled()).map(|(s, _)| *s).collect();
        for slot in gone {
            self.input(Input::Cancel(slot));
        }
        let drained: Vec<Slot> =
            self.jobs.iter().filter(|(_, j)| j.live.take_drained()).map(|(s, _)| *s).collect();
        for slot in drained {
            let Some(job) = self.jobs.get_mut(&slot) else { continue };
            match job.flush() {
                Offer::Taken => {
                    let rested = job.full_since.take().map_or(0, |since| now.saturating_sub(since));
                    self.shared.metrics.reader_us.add(rested);
                    self.input(Input::Drained(slot));
                }
                Offer::Gone => self.input(Input::Cancel(slot)),
                Offer::Full => self.input(Input::Read(slot)),
            }
        }
        self.drain(now);
    }

    fn tell_positions(&mut self, now: Micros) {
        let Self { scheduler, jobs, .. } = self;
        scheduler.positions(|slot, position| {
            if let Some(job) = jobs.get_mut(&slot)
                && job.position != Some(position)
                && now >= job.told_us + QUEUED_EVERY
            {
                job.position = Some(position);
                job.told_us = now;
                // A missed position is no loss: the next one counts.
                job.progress(&Event::Queued { position });
            }
        });
    }

    /// Passes a vector on: the request ends with it.
    fn embedded(&mut self, slot: Slot, vector: Vec<f32>, now: Micros) {
        // Of nothing but zeros none is near to any other.
        if !vector.iter().all(|x| x.is_finite()) || vector.iter().all(|x| *x == 0.0) {
            return self.damaged(slot);
        }
        self.end(slot, Ok(Whole::Vector(vector)), now);
        self.input(Input::Ended(slot));
    }

    /// Passes a drawn token on and ends the request where it ends.
    fn emit(&mut self, slot: Slot, drawn: Option<Token>, now: Micros) {
        let Some(job) = self.jobs.get_mut(&slot) else { return };
        let Some(token) = drawn else { return self.damaged(slot) };
        if let Some(fault) = job.played_fault(true) {
            return self.fail(slot, fault);
        }
        let ended = job.push(token, now);
        if let Some(detail) = ended {
            self.end(slot, Ok(Whole::Text(detail)), now);
            return self.input(Input::Ended(slot));
        }
        let sent = job.has_sent();
        match job.flush() {
            Offer::Taken => {}
            Offer::Full => {
                job.full_since.get_or_insert(now);
                self.input(Input::Full(slot));
            }
            Offer::Gone => return self.input(Input::Cancel(slot)),
        }
        if sent {
            self.input(Input::Sent(slot));
        } else {
            self.input(Input::Tick);
        }
    }
}
