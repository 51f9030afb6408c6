//! The engine as doors see it: submit, cancel, look.

mod mind;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

pub use state::{State, Status};

use super::admit::{Entrance, Submission, Text, ToAdmit, ToDescribe, ToLoad, ToTokenize, Tokenized};
use super::catalogue::{Entry, STANDING_ALIASES};
use super::changes::Watchers;
use super::loaded::Loaded;
use super::manners::{Manners, Orders};
use super::metrics::lock;
use super::models::{Asker, ToUnload};
use super::rate::Rates;
use super::run::{Command, Runner};
use super::watch::Progress;
use super::{
    Class, Code, Fault, GenerationId, LoadRequest, Metrics, ModelInfo, ModelState, Options, Request,
    RequestsLeft, Settings, Sink,
};
use crate::base::limits::{
    ADMIT_QUEUE_MAX, ADMIT_QUEUE_PER_UID_MAX, N_FEED_MAX, N_THREADS_MAX, PREFILL_CHUNK_MAX,
};
use crate::kernel::Kernels;
use crate::os::{clock, cpus, thread};

/// What a caller and the engine share about one request.
#[derive(Debug)]
pub(super) struct Live {
    cancel: AtomicBool,
    drained: AtomicBool,
    /// The model that is to be loaded; `None`: it is a generation.
    loads: Option<String>,
    /// How far it is.
    pub progress: Progress,
}

impl Live {
    /// The caller wants no more. Acquire and release: nothing else is published with the flag, a late look costs
    /// a layer.
    pub(super) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Nobody wants it any more.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
    }

    /// The reader has read.
    fn drain(&self) {
        self.drained.store(true, Ordering::Release);
    }

    /// Whether the reader has read since the last look.
    pub(super) fn take_drained(&self) -> bool {
        self.drained.swap(false, Ordering::AcqRel)
    }
}

/// One request under way. Dropping it cancels the request.
#[derive(Debug)]
pub struct Handle {
    id: GenerationId,
    live: Arc<Live>,
    shared: Arc<Shared>,
    admission: Arc<Entrance>,
    commands: Sender<Command>,
}

impl Handle {
    /// The generation's id.
    #[must_use]
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// The reader has read: a sink that was full may be offered its event again, and where that is still too much they
    /// have not stalled.
    pub fn drained(&self) {
        self.live.drain();
        // A stopped engine has nothing to offer.
        drop(self.commands.send(Command::Look));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.live().remove(self.id.as_str());
        // Whoever drops the handle after the last event only tidies up.
        if !self.live.cancel.swap(true, Ordering::AcqRel) {
            self.admission.look();
            drop(self.commands.send(Command::Look));
        }
    }
}

/// The engine's progress as it was last seen to change.
#[derive(Debug)]
struct Seen {
    count: u64,
    at_us: u64,
}

/// Longest time without a layer, step or slice of a load before the engine counts as stuck: a layer of 128 tokens of a
/// large model on a slow board takes a few seconds.
const STUCK_US: u64 = 15_000_000;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: Options,
    settings: Mutex<Arc<Settings>>,
    pub kernels: &'static Kernels,
    catalogue: Mutex<BTreeMap<String, Entry>>,
    /// Generations under way, by their ids.
    live: Mutex<BTreeMap<String, Arc<Live>>>,
    /// Requests and texts of each uid that wait to be read.
    admitting: Mutex<BTreeMap<u32, usize>>,
    /// What each uid asked for lately.
    rates: Mutex<Rates>,
    /// Requests waiting, by class.
    pub queue_length: [AtomicUsize; 2],
    pub metrics: Metrics,
    pub orders: Orders,
    manners: Mutex<Manners>,
    pub active: AtomicUsize,
    /// Layers begun since the start: what a cancelled prefill cost can be read from it.
    pub layers: AtomicU64,
    /// Counts everything that the engine thread finishes.
    pub progress: AtomicU64,
    /// The engine thread has work, or somebody has sent it some.
    pub busy: AtomicBool,
    seen: Mutex<Seen>,
    shutting_down: AtomicBool,
    pub dead: AtomicBool,
    watchers: Watchers,
    /// Who is told when work begins where there was none, and when the engine thread has died.
    pub(super) stirs: Watchers,
}

impl Shared {
    /// What a reload may change, as it is now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        lock(&self.settings).clone()
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Live>>> {
        lock(&self.live)
    }

    /// The id that `name` stands for: that of a model, what an alias names, or, for `None` and for `default` and `fast` where
    /// no alias names them, the default model; for `embed` the first encoder, if there is one.
    pub(super) fn resolve(&self, name: Option<&str>) -> Option<String> {
        let settings = self.settings();
        let catalogue = lock(&self.catalogue);
        let known = |id: &String| catalogue.contains_key(id).then(|| id.clone());
        if let Some(name) = name {
            if catalogue.contains_key(name) {
                return Some(name.to_owned());
            }
            if let Some(id) = settings.aliases.get(name) {
                return known(id);
            }
            if !STANDING_ALIASES.contains(&name) {
                return None;
            }
            if name == "embed"
                && let Some((id, _)) = catalogue.iter().find(|(_, entry)| entry.encodes)
            {
                return Some(id.clone());
            }
        }
        match &settings.default_model {
            Some(id) => known(id),
            // The only one there is.
            None if catalogue.len() == 1 => catalogue.keys().next().cloned(),
            None => None,
        }
    }

    pub(super) fn unknown_model(&self, name: Option<&str>) -> Fault {
        let catalogue = lock(&self.catalogue);
        let known = catalogue.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = match (name, catalogue.is_empty()) {
            (_, true) => "no model is installed; start sottod with --model FILE, or put a .gguf file into a folder of models.dirs".into(),
            (Some(name), false) => format!("no model is named \"{}\"; there are: {known}", name.escape_debug()),
            (None, false) => format!("no default model is set; name one of: {known}"),
        };
        Fault::new(Code::UnknownModel, message).at("model")
    }

    pub(super) fn path(&self, id: &str) -> Option<PathBuf> {
        lock(&self.catalogue).get(id).map(|e| e.path.clone())
    }

    /// Changes what is told of a model, and says so.
    fn change(&self, id: &str, change: impl FnOnce(&mut ModelInfo)) {
        if let Some(e) = lock(&self.catalogue).get_mut(id) {
            change(&mut e.info);
        }
        self.watchers.tell();
    }

    pub(super) fn set_state(&self, id: &str, state: ModelState) {
        self.change(id, |info| (info.state, info.error) = (state, None));
    }

    pub(super) fn set_failed(&self, id: &str, code: Code) {
        self.change(id, |info| (info.state, info.error) = (ModelState::Failed, Some(code)));
    }

    pub(super) fn set_pinned(&self, id: &str, pinned: bool) {
        self.change(id, |info| info.pinned = pinned);
    }

    /// It was unloaded by name.
    pub(super) fn unloaded(&self, id: &str) {
        self.change(id, |info| info.n_unloaded += 1);
    }

    /// It could be opened.
    pub(super) fn set_header(&self, id: &str, loaded: &Loaded) {
        self.change(id, |info| {
            info.header = Some(loaded.header());
            if info.state == ModelState::Failed {
                (info.state, info.error) = (ModelState::Available, None);
            }
        });
    }

    /// It would be loaded with so many positions.
    pub(super) fn set_context(&self, id: &str, n_ctx: usize) {
        self.change(id, |info| info.header.iter_mut().for_each(|header| header.n_ctx = n_ctx));
    }

    /// Whether nobody has tried yet to read its header.
    pub(super) fn undescribed(&self, id: &str) -> bool {
        let read = |e: &Entry| e.info.header.is_some() || e.info.state == ModelState::Failed;
        lock(&self.catalogue).get(id).is_some_and(|e| !read(e))
    }

    /// Whether anything is taken at all.
    fn takes(&self) -> Result<(), Fault> {
        if self.dead.load(Ordering::Acquire) {
            return Err(engine_gone());
        }
        if self.goes_down() {
            let message = "the daemon is going down; try again in a few seconds";
            return Err(Fault::new(Code::ShuttingDown, message).retry_after(2_000));
        }
        Ok(())
    }

    /// The daemon is to end.
    pub(super) fn goes_down(&self) -> bool {
        self.shutting_down.load(Ordering::Acquire)
    }

    /// Something of `uid` is to be read, and `counts` as a request or not. Those who enter [`Self::leave`].
    pub(super) fn enter(&self, uid: u32, counts: bool) -> Result<(), Fault> {
        self.takes()?;
        let mut admitting = lock(&self.admitting);
        let own = admitting.get(&uid).copied().unwrap_or(0);
        let full = |n: usize, whose: &str, max: usize| {
            let message = format!("{n} requests {whose}wait to be read, at most {max} may; try again later");
            Err(Fault::new(Code::QueueFull, message).retry_after(1_000))
        };
        if own >= ADMIT_QUEUE_PER_UID_MAX {
            return full(own, "of this user ", ADMIT_QUEUE_PER_UID_MAX);
        }
        let all = admitting.values().sum::<usize>();
        if all >= ADMIT_QUEUE_MAX {
            return full(all, "", ADMIT_QUEUE_MAX);
        }
        if counts {
            self.ask(uid)?;
        }
        admitting.insert(uid, own + 1);
        Ok(())
    }

    /// Counts a request of `uid`, unless it has had its share of this minute.
    fn ask(&self, uid: u32) -> Result<(), Fault> {
        let asked = lock(&self.rates).ask(clock::now_us(), uid, &self.settings());
        asked.map_err(|over| over.fault(uid))
    }

    /// Counts tokens of a prompt or an answer of `uid`.
    pub(super) fn spend(&self, uid: u32, n_tokens: usize) {
        lock(&self.rates).spend(clock::now_us(), uid, n_tokens, &self.settings());
    }

    /// It was read, or is not to be read any more.
    pub(super) fn leave(&self, uid: u32) {
        let mut admitting = lock(&self.admitting);
        if let Some(own) = admitting.get_mut(&uid) {
            *own -= 1;
            if *own == 0 {
                admitting.remove(&uid);
            }
        }
    }
}

/// What a request gets when the engine thread is gone.
pub(super) fn engine_gone() -> Fault {
    Fault::new(
        Code::Internal,
        "the engine has stopped; the log has the reason, the daemon restarts by itself",
    )
}

/// The engine. Cheap to clone; its threads end with the last clone and handle.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    admission: Arc<Entrance>,
    commands: Sender<Command>,
}

impl Engine {
    /// Starts the threads. Models load at their first use, or by [`Self::preload`].
    ///
    /// # Errors
    /// `invalid_config` when an option is out of range, `internal` when a thread cannot be started.
    pub fn start(kernels: &'static Kernels, mut options: Options, settings: Settings) -> Result<Self, Fault> {
        let bad = |what: String| Err(Fault::new(Code::InvalidConfig, what));
        if !(1..=PREFILL_CHUNK_MAX).contains(&options.prefill_chunk) {
            return bad(format!(
                "engine.prefill_chunk is {}, 1 to {PREFILL_CHUNK_MAX} possible",
                options.prefill_chunk
            ));
        }
        if !(1..=N_FEED_MAX).contains(&options.max_sequences) {
            return bad(format!(
                "engine.max_sequences is {}, 1 to {N_FEED_MAX} possible",
                options.max_sequences
            ));
        }
        if settings.max_loaded == 0 {
            return bad("models.max_loaded is 0, 1 and more possible".into());
        }
        if options.threads > N_THREADS_MAX {
            return bad(format!("engine.threads is {}, 0 to {N_THREADS_MAX} possible", options.threads));
        }
        let (cpus, fixed) = (options.cpus.clone(), (options.threads > 0).then_some(options.threads));
        if fixed.is_none() {
            // Control groups may come to give more time, so as many threads are there as could ever be of use.
            options.threads = cpus::n_fast(&options.tree, &cpus::allowed(&cpus)).min(N_THREADS_MAX);
        }
        let orders = Orders::new(fixed.unwrap_or_else(|| cpus::n_threads(&options.tree, &cpus)));
        let manners = Mutex::new(Manners::new(options.tree.clone(), fixed, cpus.clone()));
        let catalogue = settings.models.iter().map(|m| (m.id.clone(), Entry::new(m))).collect();
        let shared = Arc::new(Shared {
            options,
            settings: Mutex::new(Arc::new(settings)),
            kernels,
            catalogue: Mutex::new(catalogue),
            live: Mutex::default(),
            admitting: Mutex::default(),
            rates: Mutex::default(),
            queue_length: Default::default(),
            metrics: Metrics::default(),
            orders,
            manners,
            active: AtomicUsize::new(0),
            layers: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            seen: Mutex::new(Seen { count: 0, at_us: clock::now_us() }),
            shutting_down: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            watchers: Watchers::default(),
            stirs: Watchers::default(),
        });
        let (commands, inbox) = mpsc::channel();
        let no_thread =
            |e: std::io::Error| Fault::new(Code::Internal, format!("no thread can be started: {e}"));
        let runner = Runner::new(shared.clone());
        let run = move || {
            // The pool's threads are started by this one and stay with it.
            if !cpus.is_empty() {
                // Where none of them can be used threads run where they may; the configuration's reader says so.
                let _ = thread::set_cpus(&cpus);
            }
            runner.run(&inbox);
        };
        thread::start("engine", run).map_err(no_thread)?;
        let admission = Entrance::open(shared.clone(), commands.clone()).map_err(no_thread)?;
        Ok(Self { shared, admission: Arc::new(admission), commands })
    }

    /// Takes a request. Refusals of admission come as the first and only event, [`super::Event::Failed`].
    ///
    /// # Errors
    /// `queue_full` when too many requests wait for admission, `rate_limited` when the uid has had what a minute allows it,
    /// `shutting_down` after [`Self::shut_down`].
    pub fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<Handle, Fault> {
        self.submit_part(request, sink, true)
    }

    /// The same for a part of what the caller asked for at once; the `first` one counts as a request of its minute.
    ///
    /// # Errors
    /// As of [`Self::submit`].
    pub fn submit_part(&self, request: Request, sink: Box<dyn Sink>, first: bool) -> Result<Handle, Fault> {
        let uid = request.caller.uid;
        self.shared.enter(uid, first)?;
        let submitted_us = clock::now_us();
        let progress = Progress::new(request.id.clone(), uid, request.class, submitted_us);
        let handle = self.handle(progress, None);
        let live = handle.live.clone();
        let submission = Submission { request, sink, live, submitted_us, first };
        self.admission.push(ToAdmit::Submit(Box::new(submission)));
        Ok(handle)
    }

    /// The caller's end of what is under way: a generation, or a load.
    fn handle(&self, progress: Progress, loads: Option<String>) -> Handle {
        let id = progress.id().clone();
        let (cancel, drained) = (AtomicBool::new(false), AtomicBool::new(false));
        let live = Arc::new(Live { cancel, drained, loads, progress });
        let rested = {
            let mut all = self.shared.live();
            all.insert(id.as_str().to_owned(), live.clone());
            all.len() == 1
        };
        if rested {
            self.shared.stirs.tell();
        }
        Handle {
            id,
            live,
            shared: self.shared.clone(),
            admission: self.admission.clone(),
            commands: self.commands.clone(),
        }
    }

    /// Begins to load a model; `sink` hears of it by [`super::Event::Loading`], then [`super::Event::Loaded`] or
    /// [`super::Event::Failed`]. Another model that nobody uses goes for it, unless it is pinned.
    ///
    /// # Errors
    /// As of [`Self::submit`].
    pub fn load(&self, request: LoadRequest, sink: Box<dyn Sink>) -> Result<Handle, Fault> {
        let LoadRequest { id, caller, model, pin, n_ctx } = request;
        self.shared.enter(caller.uid, true)?;
        let progress = Progress::new(id, caller.uid, Class::Interactive, clock::now_us());
        let handle = self.handle(progress, Some(model.clone()));
        let asker = Some(Asker { sink, live: handle.live.clone() });
        self.admission.push(ToAdmit::Load(Box::new(ToLoad {
            uid: caller.uid,
            model,
            pin,
            n_ctx,
            asker,
            rest: VecDeque::new(),
        })));
        Ok(handle)
    }

    /// Unloads a model, pinned or not; `tell` hears of it on a thread of the engine. One that is not loaded is no error;
    /// one that requests use is `model_busy`, unless `force` ends them.
    ///
    /// # Errors
    /// `unknown_model`, or that the engine is gone.
    pub fn unload(
        &self,
        model: &str,
        force: bool,
        tell: impl FnOnce(Result<(), Fault>) + Send + 'static,
    ) -> Result<(), Fault> {
        let id = self.known(Some(model))?;
        // Also a load that has not come to the engine yet.
        for live in self.shared.live().values().filter(|live| live.loads.as_ref() == Some(&id)) {
            live.cancel();
        }
        self.look();
        let to = ToUnload { id, force, tell: Box::new(tell) };
        self.commands.send(Command::Unload(to)).map_err(|_| engine_gone())
    }

    /// Reads the header of the model `id` for `uid`, if nobody did; `tell` is called once that is done, on a thread of the
    /// engine. It loads nothing.
    ///
    /// # Errors
    /// As of [`Self::submit`].
    pub fn describe(&self, uid: u32, id: &str, tell: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
        self.shared.enter(uid, false)?;
        self.admission.push(ToAdmit::Describe(ToDescribe { uid, id: id.to_owned(), tell: Box::new(tell) }));
        Ok(())
    }

    /// From now on `watcher` is called after what [`Self::models`] or [`Self::state`] tells has changed, on the thread that
    /// changes it, until it gives false. It must not block, nor look at the engine.
    pub fn on_change(&self, watcher: impl Fn() -> bool + Send + 'static) {
        self.shared.watchers.add(Box::new(watcher));
    }

    /// Whether there is no work: nobody holds the handle of a request.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.shared.live().is_empty()
    }

    /// As [`Self::on_change`], for work that begins where there was none, and for the death of the engine thread.
    pub fn on_stir(&self, watcher: impl Fn() -> bool + Send + 'static) {
        self.shared.stirs.add(Box::new(watcher));
    }

    /// Makes tokens of `text` for `uid`, with the vocabulary of `model` (an id, an alias, or the default); `tell` hears of
    /// them, on a thread of the engine. It loads nothing.
    ///
    /// # Errors
    /// As of [`Self::submit`].
    pub fn tokenize(
        &self,
        uid: u32,
        model: Option<String>,
        text: Text,
        tell: impl FnOnce(Result<Tokenized, Fault>) + Send + 'static,
    ) -> Result<(), Fault> {
        self.shared.enter(uid, true)?;
        let to = ToTokenize { uid, model, text, tell: Box::new(tell) };
        self.admission.push(ToAdmit::Tokenize(Box::new(to)));
        Ok(())
    }

    /// Whether requests are taken at all.
    ///
    /// # Errors
    /// `shutting_down` after [`Self::shut_down`], or that the engine is gone.
    pub fn takes(&self) -> Result<(), Fault> {
        self.shared.takes()
    }

    /// Cancels by id. `uid` is the caller's; another uid's generation counts as unknown unless `uid` is 0.
    /// True if a live generation was found.
    pub fn cancel(&self, id: &GenerationId, uid: u32) -> bool {
        let found = match self.shared.live().get(id.as_str()) {
            Some(live) if uid == 0 || live.progress.uid() == uid => {
                live.cancel();
                true
            }
            _ => false,
        };
        if found {
            self.look();
        }
        found
    }

    /// As [`Handle::drained`], by id, for who does not have the handle. An id that is not known is none that is read.
    pub fn drained(&self, id: &GenerationId) {
        if let Some(live) = self.shared.live().get(id.as_str()) {
            live.drain();
        }
        self.look();
    }

    /// Begins to load a model without a request (`--model`, `models.preload`); it takes no other one's place.
    pub fn preload(&self, models: impl IntoIterator<Item = (String, bool)>) {
        self.admission.preload(models.into_iter().collect());
    }

    /// Takes new settings. What runs goes on, and who was admitted keeps its deadline. Models that are new can be asked for
    /// from now on; those that vanished are forgotten unless they are in memory.
    pub fn reload(&self, settings: Settings) {
        {
            let mut catalogue = lock(&self.shared.catalogue);
            let mut old = std::mem::take(&mut *catalogue);
            for model in &settings.models {
                let new = Entry::new(model);
                let kept = old.remove(&model.id).filter(|e| e.in_memory() || e.is_still(&new));
                catalogue.insert(model.id.clone(), kept.unwrap_or(new));
            }
            catalogue.extend(old.into_iter().filter(|(_, e)| e.in_memory()));
            *lock(&self.shared.settings) = Arc::new(settings);
        }
        self.shared.watchers.tell();
        // A stopped engine serves by no settings.
        drop(self.commands.send(Command::Reload));
    }

    /// The models, sorted by id.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        lock(&self.shared.catalogue).values().map(|e| e.info.clone()).collect()
    }

    /// The names that stand for a model beside its id, sorted.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        let settings = self.settings();
        let all: BTreeSet<&str> =
            STANDING_ALIASES.into_iter().chain(settings.aliases.keys().map(String::as_str)).collect();
        // A model's own name is no alias.
        let catalogue = lock(&self.shared.catalogue);
        all.into_iter().filter(|alias| !catalogue.contains_key(*alias)).map(str::to_owned).collect()
    }

    /// The id that `name` (an id or an alias) stands for; `None` if there is none.
    #[must_use]
    pub fn resolve(&self, name: Option<&str>) -> Option<String> {
        self.shared.resolve(name)
    }

    /// The same, or what is to be said where there is none.
    ///
    /// # Errors
    /// `unknown_model`, with the names that there are.
    pub fn known(&self, name: Option<&str>) -> Result<String, Fault> {
        self.resolve(name).ok_or_else(|| self.shared.unknown_model(name))
    }

    /// What `uid` may still ask for within a minute, where that is bounded.
    #[must_use]
    pub fn requests_left(&self, uid: u32) -> Option<RequestsLeft> {
        lock(&self.shared.rates).left(clock::now_us(), uid, &self.settings())
    }

    /// Counts of what was done.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Layers that all steps have begun since the start.
    #[must_use]
    pub fn layers_begun(&self) -> u64 {
        self.shared.layers.load(Ordering::Acquire)
    }

    /// The kernel tier in use, such as `avx2`.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        self.shared.kernels.tier().name()
    }

    /// The bounds it was started with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// What a reload may change, as it is now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.shared.settings()
    }

    /// Whether the engine thread is idle or has moved lately, and so have those that read texts (the condition of the watchdog and of `/healthz`). Who
    /// looks, and how often, changes nothing for others: what is kept is when it was last seen to have moved.
    #[must_use]
    pub fn moves(&self) -> bool {
        let count = self.shared.progress.load(Ordering::Acquire) + self.layers_begun();
        let now = clock::now_us();
        let mut seen = lock(&self.shared.seen);
        if count != seen.count || !self.shared.busy.load(Ordering::Acquire) {
            *seen = Seen { count, at_us: now };
        }
        !self.died() && now.saturating_sub(seen.at_us) < STUCK_US && self.admission.moves(now)
    }

    /// Whether the engine thread has panicked: every request fails from now on, and the process should end.
    #[must_use]
    pub fn died(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    /// Refuses new requests from now on (`shutting_down`); those running go on until [`Self::cancel_all`].
    pub fn shut_down(&self) {
        self.shared.shutting_down.store(true, Ordering::Release);
        self.shared.watchers.tell();
    }

    /// Cancels everything that still runs or waits.
    pub fn cancel_all(&self) {
        for live in self.shared.live().values() {
            live.cancel();
        }
        self.look();
    }

    /// Flags of requests have changed.
    fn look(&self) {
        self.admission.look();
        // A stopped engine has nothing to end.
        drop(self.commands.send(Command::Look));
    }
}
