//! What the engine is told: what holds from its start to its end, and what may change meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::scheduler::{Limits, Micros};
use super::{Mock, Sampling};
use crate::model::{Cache, KvType, Pack};
use crate::os::tree::Tree;
use crate::side::graph::Helper;

/// A model file that the engine may load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Name that requests use: the file name without its ending.
    pub id: String,
    /// The file.
    pub path: PathBuf,
}

/// What holds as long as the engine runs; defaults are those of the configuration table (API text, section 6).
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads; 0: as many as there are fast physical cores that this process may use, one fewer while others wait.
    pub threads: usize,
    /// How many of them decode one token after the other; 0: as many as are fastest, which is measured.
    pub threads_decode: usize,
    /// Processors that its threads may use; empty: all that the process may.
    pub cpus: Vec<usize>,
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
    /// Whether weights are locked into memory.
    pub lock: bool,
    /// Where the machine tells of itself.
    pub tree: Tree,
    /// The program that renders chat templates as a child (`side::render`); `None`: this process, which is for
    /// templates that are trusted.
    pub renderer: Option<PathBuf>,
    /// Where the program is that runs models which are ONNX graphs.
    pub helper: Helper,
    /// How all models behave, if they are those of a mock ([`Mock::models`]).
    pub mock: Option<Mock>,
}

impl Options {
    /// The cache of packed models, where one is used.
    pub(super) fn used_cache(&self) -> Option<&Cache> {
        self.cache.as_ref().filter(|_| self.pack == Pack::Cache)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 0,
            threads_decode: 0,
            cpus: Vec::new(),
            n_ctx: 4096,
            kv: KvType::F16,
            pack: Pack::Off,
            cache: None,
            prefill_chunk: 128,
            max_sequences: 4,
            lock: false,
            tree: Tree::default(),
            renderer: None,
            helper: Helper::default(),
            mock: None,
        }
    }
}

/// What [`super::Engine::reload`] may change; defaults as of [`Options`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Models that requests may name.
    pub models: Vec<ModelFile>,
    /// Id of the one used when a request names none.
    pub default_model: Option<String>,
    /// Further names of models, each with the id that it stands for.
    pub aliases: BTreeMap<String, String>,
    /// What models have of their own, by their ids.
    pub of_model: BTreeMap<String, ModelSettings>,
    /// Models in memory at a time, 1 and more.
    pub max_loaded: usize,
    /// How long a model stays that nobody uses and nobody has pinned, in seconds; `None`: for ever.
    pub keep_s: Option<u64>,
    /// Most bytes that models may take, with what their sequences keep; 0: three quarters of the memory there is. It
    /// counts at each load.
    pub memory_max_bytes: u64,
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
    /// What each uid may ask for in a minute.
    pub rate: Rate,
    /// The same of uids for which it is otherwise.
    pub rate_of_uid: BTreeMap<u32, Rate>,
    /// Groups whose members may do what root may at the doors ([`crate::os::user::is_admin`]).
    pub admin_groups: Vec<String>,
}

/// What one model has of its own; what is absent is as for all. All but `sampling` holds from its next load on.
#[derive(Clone, Debug, Default)]
pub struct ModelSettings {
    /// As [`Options::n_ctx`].
    pub n_ctx: Option<usize>,
    /// As [`Options::kv`].
    pub kv: Option<KvType>,
    /// As [`Options::max_sequences`].
    pub max_sequences: Option<usize>,
    /// A file with its chat template, in place of its own.
    pub template: Option<PathBuf>,
    /// What a request gets that leaves it out: temperature, top_k, top_p, min_p and repeat_penalty.
    pub sampling: Sampling,
}

/// What may be asked for in a minute; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Requests, and texts to be tokenized.
    pub requests: u64,
    /// Tokens of prompts and answers.
    pub tokens: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            default_model: None,
            aliases: BTreeMap::new(),
            of_model: BTreeMap::new(),
            max_loaded: 1,
            keep_s: Some(300),
            memory_max_bytes: 0,
            prefix_cache_bytes: 128 << 20,
            queue_max: 32,
            queue_max_per_uid: 8,
            quantum_ms: 50,
            background_share: 5,
            queue_timeout_s: 120,
            deadline_s: 600,
            max_tokens: 0,
            stall_timeout_s: 30,
            rate: Rate::default(),
            rate_of_uid: BTreeMap::new(),
            admin_groups: Vec::new(),
        }
    }
}

impl Settings {
    /// What `uid` may ask for in a minute.
    #[must_use]
    pub fn rate_of(&self, uid: u32) -> Rate {
        self.rate_of_uid.get(&uid).copied().unwrap_or(self.rate)
    }

    /// When what was submitted at `since` is to have its answer, with the deadline that it asks for.
    pub(super) fn deadline_of(&self, deadline_ms: Option<u64>, since: Micros) -> Micros {
        let max = self.deadline_s.saturating_mul(1_000);
        since.saturating_add(deadline_ms.unwrap_or(max).min(max).saturating_mul(1_000))
    }

    /// The scheduler's bounds.
    pub(super) fn limits(&self, options: &Options) -> Limits {
        let own = self.of_model.values().filter_map(|own| own.max_sequences);
        Limits {
            queue_max: self.queue_max,
            queue_max_per_uid: self.queue_max_per_uid,
            queue_timeout: self.queue_timeout_s * 1_000_000,
            stall_timeout: self.stall_timeout_s * 1_000_000,
            prefill_chunk: options.prefill_chunk,
            max_sequences: own.chain([options.max_sequences]).max().unwrap_or(options.max_sequences),
            quantum: self.quantum_ms * 1_000,
            background_share: self.background_share,
            max_loaded: self.max_loaded,
            keep: self.keep_s.map(|s| s.saturating_mul(1_000_000)),
        }
    }
}
