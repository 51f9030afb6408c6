//! The engine as doors see it: submit, cancel, look.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Event, Fault, GenerationId, Request, Sink};

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
    /// Worker threads; 0: as many as there are physical cores that this process may use.
    pub threads: usize,
    /// Positions of the KV cache; bounded by the model's own.
    pub n_ctx: usize,
    /// Tokens of one prefill product, 1 to 128.
    pub prefill_chunk: usize,
    /// Requests that may wait, in all.
    pub queue_max: usize,
    /// Requests that one uid may have waiting.
    pub queue_max_per_uid: usize,
    /// Longest wait in the queue, seconds.
    pub queue_timeout_s: u64,
    /// Default and upper bound of a request's deadline, seconds.
    pub deadline_s: u64,
    /// Upper bound of generated tokens; 0: the context.
    pub max_tokens: u32,
    /// Longest time a full sink may stay full, seconds.
    pub stall_timeout_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            default_model: None,
            threads: 0,
            n_ctx: 4096,
            prefill_chunk: 128,
            queue_max: 32,
            queue_max_per_uid: 8,
            queue_timeout_s: 120,
            deadline_s: 600,
            max_tokens: 0,
            stall_timeout_s: 30,
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

/// What the engine does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Requests waiting.
    pub queue_length: usize,
    /// Requests being generated.
    pub active_generations: usize,
}

/// One request under way. Dropping it cancels the request.
#[derive(Debug)]
pub struct Handle {
    id: GenerationId,
    cancel: Arc<AtomicBool>,
}

impl Handle {
    /// The generation's id.
    #[must_use]
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// The reader made room: a sink that was full may be offered its event again.
    pub fn drained(&self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Release);
    }
}

/// The engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    options: Arc<Options>,
}

impl Engine {
    /// Starts the threads. Models load at their first use, or by [`Self::preload`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(options: Options) -> Result<Self, Fault> {
        Ok(Self { options: Arc::new(options) })
    }

    /// Takes a request. Refusals of admission come as the first and only event, [`Event::Failed`].
    ///
    /// # Errors
    /// `queue_full` when too many requests wait for admission, `shutting_down` after [`Self::shut_down`].
    pub fn submit(&self, request: Request, mut sink: Box<dyn Sink>) -> Result<Handle, Fault> {
        let cancel = Arc::new(AtomicBool::new(false));
        let handle = Handle { id: request.id.clone(), cancel: cancel.clone() };
        // Stand-in while the real engine is being written: answers every request with fixed text.
        std::thread::Builder::new()
            .spawn(move || {
                let model = request.model.unwrap_or_else(|| "stand-in".into());
                sink.offer(&Event::Admitted(super::Admitted {
                    model: model.clone(),
                    prompt_tokens: 3,
                    no_template: false,
                }));
                sink.offer(&Event::Prefill { done: 3, total: 3, cached: 0 });
                for _ in 0..request.max_tokens.unwrap_or(16) {
                    if cancel.load(Ordering::Acquire) {
                        sink.offer(&Event::Failed(Fault::new(
                            super::Code::Cancelled,
                            "cancelled by the caller",
                        )));
                        return;
                    }
                    while sink.offer(&Event::Text { text: "wörd ".into() }) == super::Offer::Full {
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                sink.offer(&Event::Done(super::Done {
                    id: request.id,
                    model,
                    stop_detail: super::StopDetail::MaxTokens,
                    seed: 1,
                    usage: super::Usage::default(),
                    timings: super::Timings::default(),
                }));
            })
            .map_err(|e| Fault::new(super::Code::Internal, e.to_string()))?;
        Ok(handle)
    }

    /// Cancels by id. `uid` is the caller's; another uid's generation counts as unknown unless `uid` is 0.
    /// True if a live generation was found.
    pub fn cancel(&self, _id: &GenerationId, _uid: u32) -> bool {
        false
    }

    /// Begins to load a model without a request (`--model`, `models.preload`).
    pub fn preload(&self, _model: &str) {}

    /// The models, sorted by id.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        Vec::new()
    }

    /// The id that `name` (an id or one of the aliases `default`, `fast`) stands for; `None` if there is none.
    #[must_use]
    pub fn resolve(&self, _name: Option<&str>) -> Option<String> {
        self.options.default_model.clone()
    }

    /// What it does now.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::default()
    }

    /// The kernel tier in use, such as `avx2`.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        "scalar"
    }

    /// The bounds it was started with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the engine thread is idle or has moved since the last call (the watchdog's condition).
    #[must_use]
    pub fn progressed(&self) -> bool {
        true
    }

    /// Refuses new requests from now on (`shutting_down`); those running go on until [`Self::cancel_all`].
    pub fn shut_down(&self) {}

    /// Cancels everything that still runs or waits.
    pub fn cancel_all(&self) {}
}
