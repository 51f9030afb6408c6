//! The engine thread: it owns decoder, cache and scheduler, does one step after the other, and looks at what came in
//! between two steps.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::admit::{Loaded, damaged_fault, load_fault};
use super::generation::Generation;
use super::handle::{Live, Shared};
use super::load::Load;
use super::scheduler::{Action, Cut, Input, Limits, Micros, Scheduler, Slot, Step, Ticket};
use super::tuning::Tuning;
use super::{Code, Event, Fault, ModelState, Offer, Request, Sink, StopDetail};
use crate::base::Token;
use crate::kernel::Pool;
use crate::model::{Decoder, Feed, Kv, Model, ModelError, Part, Precision, Want};
use crate::os::clock;

/// A request that passed admission.
pub(super) struct Job {
    pub request: Request,
    pub sink: Box<dyn Sink>,
    pub live: Arc<Live>,
    pub model: Arc<Loaded>,
    pub tokens: Vec<Token>,
    pub submitted_us: Micros,
}

/// What the engine thread takes.
pub(super) enum Command {
    /// Serve a request.
    Run(Box<Job>),
    /// Load a model.
    Preload(Arc<Loaded>),
    /// A flag of some request changed.
    Look,
}

/// A change of position or progress is told at most this often.
const QUEUED_EVERY: Micros = 500_000;
const PROGRESS_EVERY: Micros = 250_000;
/// A full queue is logged at most this often for a uid, and for so many uids at a time.
const FULL_EVERY: Micros = 60_000_000;
const N_UID_TOLD_MAX: usize = 64;

/// A loaded model with the buffers it runs in.
struct Ready {
    model: Arc<Loaded>,
    /// What of it runs.
    weights: Arc<Model>,
    decoder: Decoder,
    kv: Kv,
    tuning: Tuning,
}

/// A model being read in.
struct Loading {
    model: Arc<Loaded>,
    load: Load,
    since: Micros,
}

/// The events of a request that ended while its output was full.
struct Draining {
    sink: Box<dyn Sink>,
    live: Arc<Live>,
    events: VecDeque<Event>,
    until: Micros,
}

/// The engine thread's state.
pub(super) struct Runner {
    shared: Arc<Shared>,
    scheduler: Scheduler,
    jobs: BTreeMap<Slot, Generation>,
    draining: Vec<Draining>,
    next_slot: u64,
    ready: Option<Ready>,
    loading: Option<Loading>,
    pool: Option<Pool>,
    actions: Vec<Action>,
    /// The tokens of the chunk that is being read.
    chunk: Vec<Token>,
    /// A step over many tokens is under way.
    stepping: bool,
    /// When each uid was last told of in the log for want of room.
    told_full: BTreeMap<u32, Micros>,
    /// Models to load that were named while a step ran.
    later: Vec<Arc<Loaded>>,
    /// Microseconds that a generation took lately; what `retry_after_ms` is guessed from.
    typical_us: Micros,
}

impl Runner {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let o = &shared.options;
        let scheduler = Scheduler::new(Limits {
            queue_max: o.queue_max,
            queue_max_per_uid: o.queue_max_per_uid,
            queue_timeout: o.queue_timeout_s * 1_000_000,
            stall_timeout: o.stall_timeout_s * 1_000_000,
            prefill_chunk: o.prefill_chunk,
        });
        Self {
            shared,
            scheduler,
            jobs: BTreeMap::new(),
            draining: Vec::new(),
            next_slot: 0,
            ready: None,
            loading: None,
            pool: None,
            actions: Vec::new(),
            chunk: Vec::new(),
            stepping: false,
            told_full: BTreeMap::new(),
            later: Vec::new(),
            typical_us: 1_000_000,
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
        for d in &mut self.draining {
            d.sink.offer(&Event::Failed(Fault::new(Code::Internal, message)));
        }
    }

    fn serve(&mut self, inbox: &Receiver<Command>) {
        loop {
            for model in std::mem::take(&mut self.later) {
                self.take(Command::Preload(model));
            }
            let now = self.look_around(inbox);
            match self.scheduler.plan(now) {
                Step::Idle(_) if self.loading.is_some() => self.load_on(now),
                Step::Idle(until) => {
                    let until = self.draining.iter().map(|d| d.until).chain(until).min();
                    self.shared.busy.store(false, Ordering::Release);
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
                Step::Load(slot) => self.load(slot, now),
                Step::Prefill { slot, n, last } => self.prefill(inbox, slot, n, last),
                Step::Decode(slot) => self.decode(slot),
            }
            self.shared.progress.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes what came in, looks at all requests and tells what there is to tell; returns the time.
    fn look_around(&mut self, inbox: &Receiver<Command>) -> Micros {
        while let Ok(command) = inbox.try_recv() {
            self.take(command);
        }
        let now = clock::now_us();
        self.look(now);
        self.tell_positions(now);
        self.shared.queue_length.store(self.scheduler.queue_len(), Ordering::Relaxed);
        self.shared.active.store(usize::from(self.scheduler.running().is_some()), Ordering::Relaxed);
        now
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Run(job) => {
                let slot = Slot(self.next_slot);
                self.next_slot += 1;
                let o = &self.shared.options;
                let deadline_max = o.deadline_s.saturating_mul(1_000);
                let deadline_ms = job.request.deadline_ms.unwrap_or(deadline_max).min(deadline_max);
                let ticket = Ticket {
                    slot,
                    uid: job.request.caller.uid,
                    class: job.request.class,
                    n_prompt: job.tokens.len(),
                    deadline: job.submitted_us.saturating_add(deadline_ms.saturating_mul(1_000)),
                };
                let n_ctx = o.n_ctx.min(job.model.model.hyper().n_ctx_train);
                let generation = Generation::new(*job, n_ctx, o.max_tokens);
                self.jobs.insert(slot, generation);
                self.input(Input::Submit(ticket));
            }
            // A step has the model that is ready in its hands.
            Command::Preload(model) if self.stepping => self.later.push(model),
            Command::Preload(model) => {
                if self.ready.is_none() && self.loading.is_none() {
                    self.begin_load(model, clock::now_us());
                }
            }
            Command::Look => {}
        }
    }

    /// Tells the scheduler and does what it says.
    fn input(&mut self, input: Input) {
        let now = clock::now_us();
        let mut actions = std::mem::take(&mut self.actions);
        self.scheduler.on(now, input, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Position(slot, position) => {
                    if let Some(job) = self.jobs.get_mut(&slot) {
                        job.position = Some(position);
                    }
                }
                Action::Start(slot) => {
                    if let Some(job) = self.jobs.get_mut(&slot) {
                        job.started(now);
                    }
                }
                Action::Cut(slot, cut) => self.cut(slot, cut, now),
            }
        }
        self.actions = actions;
    }

    /// Looks at the flags of all requests: who left, whose reader made room, who has read too slowly.
    fn look(&mut self, now: Micros) {
        let gone: Vec<Slot> = self.jobs.iter().filter(|(_, j)| j.live.cancelled()).map(|(s, _)| *s).collect();
        for slot in gone {
            self.input(Input::Cancel(slot));
        }
        if let Some(slot) = self.scheduler.running()
            && let Some(job) = self.jobs.get_mut(&slot)
            && job.live.take_drained()
        {
            match job.flush() {
                Offer::Taken => self.input(Input::Drained(slot)),
                Offer::Full => {}
                Offer::Gone => self.input(Input::Cancel(slot)),
            }
        }
        self.draining.retain_mut(|d| {
            if d.live.take_drained() || d.live.cancelled() {
                while let Some(event) = d.events.front() {
                    match d.sink.offer(event) {
                        Offer::Taken => drop(d.events.pop_front()),
                        Offer::Full => break,
                        Offer::Gone => return false,
                    }
                }
            }
            !d.events.is_empty() && now < d.until && !d.live.cancelled()
        });
    }

    fn tell_positions(&mut self, now: Micros) {
        for job in self.jobs.values_mut() {
            if let Some(position) = job.position
                && now >= job.told_us + QUEUED_EVERY
            {
                job.position = None;
                job.told_us = now;
                // A missed position is no loss: the next one counts.
                job.progress(&Event::Queued { position });
            }
        }
    }

    /// Ends a request for a reason outside it.
    fn cut(&mut self, slot: Slot, cut: Cut, now: Micros) {
        let o = &self.shared.options;
        let fault = match cut {
            Cut::DeadlineWithText => return self.end(slot, Ok(StopDetail::Deadline), now),
            Cut::Cancelled => Fault::new(Code::Cancelled, "the caller left or cancelled"),
            Cut::Stalled => Fault::new(
                Code::Stalled,
                format!("the output was not read for {} s; read faster or ask for less", o.stall_timeout_s),
            ),
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
                let wait = (self.typical_us / 1_000).saturating_mul(waiting as u64).clamp(100, 60_000);
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
        let Some(uid) = self.jobs.get(&slot).map(Generation::uid) else { return };
        self.told_full.retain(|_, told| now < *told + FULL_EVERY);
        if self.told_full.len() < N_UID_TOLD_MAX && self.told_full.insert(uid, now).is_none() {
            log::warn!(
                message_id = "20ca66d32df8431082ecd8f3c792effb", sotto_uid = uid;
                "the queue is full for uid {uid}"
            );
        }
    }

    /// Sends the terminal event, now or when the reader has made room, and forgets the request.
    fn end(&mut self, slot: Slot, how: Result<StopDetail, Fault>, now: Micros) {
        let Some(mut job) = self.jobs.remove(&slot) else { return };
        if how.is_ok() {
            let took = now.saturating_sub(job.start_us());
            self.typical_us = (self.typical_us * 7 + took) / 8;
        }
        job.end(how, now);
        if job.flush() == Offer::Full {
            let until = now + self.shared.options.stall_timeout_s * 1_000_000;
            let (sink, live, events) = job.into_rest();
            self.draining.push(Draining { sink, live, events, until });
        }
    }

    /// Fails the running request and lets the scheduler go on.
    fn fail(&mut self, slot: Slot, fault: Fault) {
        self.end(slot, Err(fault), clock::now_us());
        self.input(Input::Ended(slot));
    }

    /// Makes the running request's model ready, a slice at a time.
    fn load(&mut self, slot: Slot, now: Micros) {
        let Some(job) = self.jobs.get_mut(&slot) else { return self.input(Input::Ended(slot)) };
        let model = job.model.clone();
        if let Some(ready) = &mut self.ready
            && Arc::ptr_eq(&ready.model, &model)
        {
            job.loaded(now);
            ready.kv.truncate(0);
            return self.input(Input::Loaded(slot));
        }
        if self.loading.as_ref().is_none_or(|l| !Arc::ptr_eq(&l.model, &model)) {
            self.begin_load(model, now);
        }
        if let Some(l) = &self.loading
            && let Some(job) = self.jobs.get_mut(&slot)
            && let (done, total) = l.load.progress()
            && (now >= job.told_us + PROGRESS_EVERY || done == total)
        {
            job.told_us = now;
            job.progress(&Event::Loading { model: l.model.id.clone(), done, total });
        }
        self.load_on(now);
    }

    fn begin_load(&mut self, model: Arc<Loaded>, now: Micros) {
        // The old one goes first: two may not fit.
        if let Some(old) = self.ready.take() {
            self.shared.set_state(&old.model.id, ModelState::Available);
            log::info!(
                message_id = "3eb6c4a9f7fe4b60977e32c5e2f2388a", sotto_model = old.model.id.as_str();
                "model {} unloaded for {}", old.model.id, model.id
            );
        }
        self.shared.set_state(&model.id, ModelState::Loading);
        let o = &self.shared.options;
        let load = Load::new(&model, o.pack, o.cache.as_ref());
        self.loading = Some(Loading { model, load, since: now });
    }

    /// Reads the next slice, and makes the buffers after the last.
    fn load_on(&mut self, now: Micros) {
        let Some(mut l) = self.loading.take() else { return };
        let (model, since) = (l.model.clone(), l.since);
        let started = self.start_pool();
        if started.is_ok()
            && let Some(pool) = &self.pool
            && l.load.work(&model, pool)
        {
            self.loading = Some(l);
            return;
        }
        let total = l.load.progress().1;
        match started.and_then(|()| self.make_ready(model.clone(), l.load.finish(&model))) {
            Ok(ready) => {
                let how = if ready.weights.checkpoint().is_packed() { "packed" } else { "as in the file" };
                self.shared.set_state(&model.id, ModelState::Loaded);
                self.ready = Some(ready);
                log::info!(
                    message_id = "fb1c1a134f244a77b6cbe37d0d2289a0", sotto_model = model.id.as_str(),
                    sotto_bytes = total, sotto_load_ms = (now.saturating_sub(since)) / 1_000;
                    "model {} loaded, kernels {}, weights {}", model.id, self.shared.kernels.tier().name(), how
                );
            }
            Err(e) => {
                self.shared.set_state(&model.id, ModelState::Failed);
                log::error!(
                    message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = model.id.as_str();
                    "model {}: {e}", model.id
                );
                if let Some(slot) = self.scheduler.running() {
                    self.fail(slot, load_fault(&model.id, &e));
                }
            }
        }
    }

    fn start_pool(&mut self) -> Result<(), ModelError> {
        let n = self.shared.options.threads;
        if self.pool.is_none() {
            let pool =
                Pool::new(self.shared.kernels, n).map_err(|source| ModelError::Threads { n, source })?;
            self.pool = Some(pool);
        }
        Ok(())
    }

    fn make_ready(&self, model: Arc<Loaded>, weights: Arc<Model>) -> Result<Ready, ModelError> {
        let o = &self.shared.options;
        let precision = Precision { kv: o.kv, ..Precision::default() };
        let decoder = Decoder::new(&weights, precision, o.prefill_chunk, 1);
        let kv = decoder.kv(&weights, o.n_ctx.min(weights.hyper().n_ctx_train))?;
        let pool = self.pool.as_ref().expect("started before");
        let tuning = Tuning::new(&weights, pool, o.threads_decode);
        Ok(Ready { model, weights, decoder, kv, tuning })
    }

    /// Reads `n` tokens of a prompt. That may take seconds, so others are looked at before each layer: who asks hears at
    /// once that the queue is full, and who left leaves it.
    fn prefill(&mut self, inbox: &Receiver<Command>, slot: Slot, n: usize, last: bool) {
        let (Some(job), Some(mut ready), Some(pool)) =
            (self.jobs.get(&slot), self.ready.take(), self.pool.take())
        else {
            return self.fail(slot, Fault::new(Code::Internal, "no model is loaded for a running request"));
        };
        let (live, shared) = (job.live.clone(), self.shared.clone());
        let mut tokens = std::mem::take(&mut self.chunk);
        tokens.clear();
        tokens.extend_from_slice(job.next_prompt(n));
        self.stepping = true;
        let mut go_on = |part| {
            if part == Part::Attention {
                self.look_around(inbox);
            }
            self.jobs.contains_key(&slot) && shared.go_on(&live, part)
        };
        let want = if last { Want::Last } else { Want::None };
        let feed = Feed { kv: &mut ready.kv, tokens: &tokens, want };
        let logits = ready.decoder.step(&ready.weights, &pool, &mut [feed], &mut go_on).ok();
        self.stepping = false;
        let now = clock::now_us();
        let done = self.jobs.get_mut(&slot).zip(logits).map(|(job, logits)| {
            let drawn = last.then(|| job.sample(logits));
            job.prefilled(n, now, last || now >= job.told_us + PROGRESS_EVERY);
            drawn
        });
        (self.ready, self.pool, self.chunk) = (Some(ready), Some(pool), tokens);
        let Some(drawn) = done else { return self.input(Input::Cancel(slot)) };
        self.input(Input::Prefilled(slot, n));
        if let Some(drawn) = drawn {
            self.emit(slot, drawn, now);
        }
    }

    fn decode(&mut self, slot: Slot) {
        let (Some(job), Some(ready), Some(pool)) = (self.jobs.get_mut(&slot), &mut self.ready, &self.pool)
        else {
            return self.fail(slot, Fault::new(Code::Internal, "no model is loaded for a running request"));
        };
        let (live, shared) = (job.live.clone(), &self.shared);
        let mut go_on = |part| shared.go_on(&live, part);
        let token = [job.last_token()];
        let feed = Feed { kv: &mut ready.kv, tokens: &token, want: Want::Last };
        let Ready { weights, decoder, tuning, .. } = ready;
        let step = || decoder.step(weights, pool, &mut [feed], &mut go_on);
        let Ok(logits) = tuning.decode(pool, step) else { return self.input(Input::Cancel(slot)) };
        let drawn = job.sample(logits);
        self.emit(slot, drawn, clock::now_us());
    }

    /// Passes a drawn token on and ends the request where it ends.
    fn emit(&mut self, slot: Slot, drawn: Option<Token>, now: Micros) {
        let Some(job) = self.jobs.get_mut(&slot) else { return };
        let Some(token) = drawn else {
            let (id, fault) = (&job.model.id, damaged_fault(&job.model.id, job.pos()));
            log::error!(
                message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = id.as_str(); "{}", fault.message
            );
            return self.fail(slot, fault);
        };
        let ended = job.push(token, now);
        if let Some(detail) = ended {
            self.end(slot, Ok(detail), now);
            return self.input(Input::Ended(slot));
        }
        let sent = job.has_sent();
        match job.flush() {
            Offer::Taken => {}
            Offer::Full => self.input(Input::Full(slot)),
            Offer::Gone => return self.input(Input::Cancel(slot)),
        }
        if sent {
            self.input(Input::Sent(slot));
        } else {
            self.input(Input::Tick);
        }
    }
}
