//! The engine as doors see it: submit, cancel, look.

mod mind;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

use super::admit::{Admission, Loaded, Submission, Text, ToAdmit, ToTokenize, Tokenized};
use super::manners::{Manners, Orders};
use super::metrics::lock;
use super::run::{Command, Runner};
use super::{Code, Fault, GenerationId, Metrics, Request, Sink};
use crate::base::limits::{
    ADMIT_QUEUE_MAX, ADMIT_QUEUE_PER_UID_MAX, N_FEED_MAX, N_THREADS_MAX, PREFILL_CHUNK_MAX,
};
use crate::kernel::Kernels;
use crate::model::{Cache, KvType, Pack};
use crate::os::tree::Tree;
use crate::os::{clock, cpus, thread};

/// A model file that the engine may load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Name that requests use: the file name without its ending.
    pub id: String,
    /// The file.
    pub path: PathBuf,
}

/// Bounds and sizes of the engine; defaults are those of the configuration table (API text, section 6).
#[derive(Clone, Debug)]
pub struct Options {
    /// Models that requests may name.
    pub models: Vec<ModelFile>,
    /// Id of the one used when a request names none.
    pub default_model: Option<String>,
    /// Worker threads; 0: as many as there are fast physical cores that this process may use, one fewer while others wait.
    pub threads: usize,
    /// How many of them decode one token after the other; 0: as many as are fastest, which is measured.
    pub threads_decode: usize,
    /// Positions of the KV cache; bounded by the model's own.
    pub n_ctx: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Whether weights are packed.
    pub pack: Pack,
    /// Where [`Pack::Cache`] keeps them.
    pub cache: Option<Cache>,
    /// Tokens of one prefill product, 1 to 128.
    pub prefill_chunk: usize,
    /// Sequences that are decoded together, 1 to 16.
    pub max_sequences: usize,
    /// Bytes of beginnings that are kept for later requests.
    pub prefix_cache_bytes: u64,
    /// Requests that may wait, in all.
    pub queue_max: usize,
    /// Requests that one uid may have waiting.
    pub queue_max_per_uid: usize,
    /// Time of the engine that a caller is served in a row while others wait, milliseconds.
    pub quantum_ms: u64,
    /// Percent of the engine's time that background requests have while others are served.
    pub background_share: u64,
    /// Longest wait in the queue, seconds.
    pub queue_timeout_s: u64,
    /// Default and upper bound of a request's deadline, seconds.
    pub deadline_s: u64,
    /// Upper bound of generated tokens; 0: the context.
    pub max_tokens: u32,
    /// Longest time a full sink may stay full, seconds.
    pub stall_timeout_s: u64,
    /// How long a model stays that nobody uses, in seconds; `None`: for ever.
    pub keep_s: Option<u64>,
    /// Most bytes that models may take, with what their sequences keep; 0: three quarters of the memory there is.
    pub memory_max_bytes: u64,
    /// Whether weights are locked into memory.
    pub lock: bool,
    /// Where the machine tells of itself.
    pub tree: Tree,
    /// The program that renders chat templates as a child (`side::render`); `None`: this process, which is for
    /// templates that are trusted.
    pub renderer: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            default_model: None,
            threads: 0,
            threads_decode: 0,
            n_ctx: 4096,
            kv: KvType::F16,
            pack: Pack::Off,
            cache: None,
            prefill_chunk: 128,
            max_sequences: 4,
            prefix_cache_bytes: 128 << 20,
            queue_max: 32,
            queue_max_per_uid: 8,
            quantum_ms: 50,
            background_share: 5,
            queue_timeout_s: 120,
            deadline_s: 600,
            max_tokens: 0,
            stall_timeout_s: 30,
            keep_s: Some(300),
            memory_max_bytes: 0,
            lock: false,
            tree: Tree::default(),
            renderer: None,
        }
    }
}

/// State of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Known, not loaded.
    Available,
    /// Being read.
    Loading,
    /// Ready.
    Loaded,
    /// The last load failed.
    Failed,
}

impl ModelState {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a model; the optional part once its header was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: ModelState,
    /// Modification time of the file, Unix seconds.
    pub created: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// What the header says.
    pub header: Option<ModelHeader>,
}

/// What a model's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelHeader {
    /// Such as `llama`.
    pub architecture: String,
    /// The type most weights have, such as `Q4_0`.
    pub quantization: String,
    /// Number of weights.
    pub parameters: u64,
    /// Positions it is, or would be, loaded with.
    pub n_ctx: usize,
    /// Positions it was trained for.
    pub n_ctx_train: usize,
    /// It has a chat template.
    pub chat: bool,
}

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

/// What a caller and the engine share about one request.
#[derive(Debug, Default)]
pub(super) struct Live {
    cancel: AtomicBool,
    drained: AtomicBool,
}

impl Live {
    /// The caller wants no more. Acquire and release: nothing else is published with the flag, a late look costs
    /// a layer.
    pub(super) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// The reader made room since the last look.
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
    commands: Sender<Command>,
}

impl Handle {
    /// The generation's id.
    #[must_use]
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// The reader made room: a sink that was full may be offered its event again.
    pub fn drained(&self) {
        self.live.drained.store(true, Ordering::Release);
        // A stopped engine has nothing to offer.
        drop(self.commands.send(Command::Look));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.live().remove(self.id.as_str());
        // Whoever drops the handle after the last event only tidies up.
        if !self.live.cancel.swap(true, Ordering::AcqRel) {
            drop(self.commands.send(Command::Look));
        }
    }
}

/// A generation that can be cancelled by its id.
#[derive(Debug)]
struct LiveEntry {
    uid: u32,
    live: Arc<Live>,
}

/// A model of the catalogue.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    info: ModelInfo,
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
    pub kernels: &'static Kernels,
    catalogue: Mutex<BTreeMap<String, Entry>>,
    live: Mutex<BTreeMap<String, LiveEntry>>,
    /// Requests and texts of each uid that wait to be read.
    admitting: Mutex<BTreeMap<u32, usize>>,
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
    /// The engine thread has work.
    pub busy: AtomicBool,
    seen: Mutex<Seen>,
    shutting_down: AtomicBool,
    pub dead: AtomicBool,
}

impl Shared {
    /// The cache of packed models, where one is used.
    pub(super) fn cache(&self) -> Option<&Cache> {
        let used = self.options.pack == Pack::Cache;
        self.options.cache.as_ref().filter(|_| used)
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, LiveEntry>> {
        lock(&self.live)
    }

    /// The id that `name` stands for; `None`, `default`, `fast` and, while there are no
    /// encoders, `embed` are the default model.
    pub(super) fn resolve(&self, name: Option<&str>) -> Option<String> {
        let catalogue = lock(&self.catalogue);
        match name {
            Some(id) if catalogue.contains_key(id) => Some(id.to_owned()),
            None | Some("default" | "fast" | "embed") => match &self.options.default_model {
                Some(id) => catalogue.contains_key(id).then(|| id.clone()),
                // The only one there is.
                None if catalogue.len() == 1 => catalogue.keys().next().cloned(),
                None => None,
            },
            Some(_) => None,
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

    pub(super) fn set_state(&self, id: &str, state: ModelState) {
        if let Some(e) = lock(&self.catalogue).get_mut(id) {
            e.info.state = state;
        }
    }

    pub(super) fn set_header(&self, id: &str, loaded: &Loaded) {
        let header = loaded.header(self.options.n_ctx);
        if let Some(e) = lock(&self.catalogue).get_mut(id) {
            e.info.header = Some(header);
        }
    }

    /// Something of `uid` is to be read. Those who enter [`Self::leave`].
    fn enter(&self, uid: u32) -> Result<(), Fault> {
        if self.dead.load(Ordering::Acquire) {
            return Err(engine_gone());
        }
        if self.shutting_down.load(Ordering::Acquire) {
            let message = "the daemon is going down; try again in a few seconds";
            return Err(Fault::new(Code::ShuttingDown, message).retry_after(2_000));
        }
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
        admitting.insert(uid, own + 1);
        Ok(())
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
    admit: Sender<ToAdmit>,
    commands: Sender<Command>,
}

impl Engine {
    /// Starts the threads. Models load at their first use, or by [`Self::preload`].
    ///
    /// # Errors
    /// `invalid_config` when an option is out of range, `internal` when a thread cannot be started.
    pub fn start(kernels: &'static Kernels, mut options: Options) -> Result<Self, Fault> {
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
        if options.threads > N_THREADS_MAX {
            return bad(format!("engine.threads is {}, 0 to {N_THREADS_MAX} possible", options.threads));
        }
        let fixed = (options.threads > 0).then_some(options.threads);
        if fixed.is_none() {
            // Control groups may come to give more time, so as many threads are there as could ever be of use.
            options.threads = cpus::n_fast(&options.tree, &cpus::allowed()).min(N_THREADS_MAX);
        }
        let orders = Orders::new(fixed.unwrap_or_else(|| cpus::n_threads(&options.tree)));
        let manners = Mutex::new(Manners::new(options.tree.clone(), fixed));
        let catalogue = options.models.iter().map(|m| (m.id.clone(), entry(m))).collect();
        let shared = Arc::new(Shared {
            options,
            kernels,
            catalogue: Mutex::new(catalogue),
            live: Mutex::default(),
            admitting: Mutex::default(),
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
        });
        let (commands, inbox) = mpsc::channel();
        let (admit, to_admit) = mpsc::channel();
        let no_thread =
            |e: std::io::Error| Fault::new(Code::Internal, format!("no thread can be started: {e}"));
        let runner = Runner::new(shared.clone());
        thread::start("engine", move || runner.run(&inbox)).map_err(no_thread)?;
        let admission = Admission::new(shared.clone(), commands.clone());
        thread::start("admit", move || admission.run(&to_admit)).map_err(no_thread)?;
        Ok(Self { shared, admit, commands })
    }

    /// Takes a request. Refusals of admission come as the first and only event, [`super::Event::Failed`].
    ///
    /// # Errors
    /// `queue_full` when too many requests wait for admission, `shutting_down` after [`Self::shut_down`].
    pub fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<Handle, Fault> {
        let (id, uid) = (request.id.clone(), request.caller.uid);
        self.enter(uid)?;
        let live = Arc::new(Live::default());
        let submission = Submission { request, sink, live: live.clone(), submitted_us: clock::now_us() };
        self.shared.live().insert(id.as_str().to_owned(), LiveEntry { uid, live: live.clone() });
        let handle = Handle { id, live, shared: self.shared.clone(), commands: self.commands.clone() };
        self.send(uid, ToAdmit::Submit(Box::new(submission)))?;
        Ok(handle)
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
        self.enter(uid)?;
        self.send(uid, ToAdmit::Tokenize(Box::new(ToTokenize { uid, model, text, tell: Box::new(tell) })))
    }

    fn enter(&self, uid: u32) -> Result<(), Fault> {
        self.shared.enter(uid).inspect_err(|fault| self.shared.metrics.error(fault.code))
    }

    fn send(&self, uid: u32, item: ToAdmit) -> Result<(), Fault> {
        self.admit.send(item).map_err(|_| {
            self.shared.leave(uid);
            engine_gone()
        })
    }

    /// Cancels by id. `uid` is the caller's; another uid's generation counts as unknown unless `uid` is 0.
    /// True if a live generation was found.
    pub fn cancel(&self, id: &GenerationId, uid: u32) -> bool {
        let found = match self.shared.live().get(id.as_str()) {
            Some(entry) if uid == 0 || entry.uid == uid => {
                entry.live.cancel.store(true, Ordering::Release);
                true
            }
            _ => false,
        };
        if found {
            drop(self.commands.send(Command::Look));
        }
        found
    }

    /// Begins to load a model without a request (`--model`, `models.preload`).
    pub fn preload(&self, model: &str) {
        // A stopped engine loads nothing.
        drop(self.admit.send(ToAdmit::Preload(model.to_owned())));
    }

    /// The models, sorted by id.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        lock(&self.shared.catalogue).values().map(|e| e.info.clone()).collect()
    }

    /// The id that `name` (an id or one of the aliases `default`, `fast`, `embed`) stands for; `None` if there is none.
    #[must_use]
    pub fn resolve(&self, name: Option<&str>) -> Option<String> {
        self.shared.resolve(name)
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
        let (o, status) = (self.options(), self.status());
        let not = |why: String| Err(Fault::new(Code::NotReady, why).retry_after(1_000));
        if self.state() != State::Ready {
            return not(format!("the daemon is {}", self.state().as_str()));
        }
        if self.resolve(None).is_none() {
            return not(self.shared.unknown_model(None).message);
        }
        let waiting = status.queue_length;
        match waiting > 0 && waiting >= o.queue_max {
            true => not(format!("{waiting} requests wait, at most {} may", o.queue_max)),
            false => Ok(()),
        }
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

    /// Whether the engine thread is idle or has moved lately (the condition of the watchdog and of `/healthz`). Who
    /// looks, and how often, changes nothing for others: what is kept is when it was last seen to have moved.
    #[must_use]
    pub fn moves(&self) -> bool {
        let count = self.shared.progress.load(Ordering::Acquire) + self.layers_begun();
        let now = clock::now_us();
        let mut seen = lock(&self.shared.seen);
        if count != seen.count || !self.shared.busy.load(Ordering::Acquire) {
            *seen = Seen { count, at_us: now };
        }
        !self.died() && now.saturating_sub(seen.at_us) < STUCK_US
    }

    /// Whether the engine thread has panicked: every request fails from now on, and the process should end.
    #[must_use]
    pub fn died(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    /// Refuses new requests from now on (`shutting_down`); those running go on until [`Self::cancel_all`].
    pub fn shut_down(&self) {
        self.shared.shutting_down.store(true, Ordering::Release);
    }

    /// Cancels everything that still runs or waits.
    pub fn cancel_all(&self) {
        for entry in self.shared.live().values() {
            entry.live.cancel.store(true, Ordering::Release);
        }
        drop(self.commands.send(Command::Look));
    }
}

/// The catalogue's entry of a file that nobody has opened yet.
fn entry(model: &ModelFile) -> Entry {
    let (created, size_bytes) = stat(&model.path);
    let info =
        ModelInfo { id: model.id.clone(), state: ModelState::Available, created, size_bytes, header: None };
    Entry { path: model.path.clone(), info }
}

/// Time of modification and size; zeros for a file that is not there (its load will say so).
fn stat(path: &Path) -> (u64, u64) {
    let Ok(meta) = std::fs::metadata(path) else { return (0, 0) };
    let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    (modified.map_or(0, |t| t.as_secs()), meta.len())
}
