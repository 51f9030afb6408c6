//! A model alone in its process, to be measured: perplexity ([`super::perplexity`]) and speed ([`super::speed`]). It
//! steps the decoder itself, for there is nobody to schedule; whatever serves a request goes through the scheduler.

use std::sync::Arc;

use super::load::{Load, Weights};
use super::loaded::{Loaded, Opening, graph_fault, load_fault};
use super::scheduler::ModelKey;
use super::{Code, Fault, ModelFile, Options};
use crate::kernel::{Kernels, Pool};
use crate::model::{Cache, Decoder, Kv, Model, ModelError, Pack, Precision};
use crate::os::tree::Tree;
use crate::os::{clock, cpus};
use crate::text::Tokenizer;

/// A model with threads to run it.
pub struct Solo {
    pub(super) loaded: Loaded,
    pub(super) pool: Pool,
    /// What runs.
    model: Arc<Model>,
    load_ms: f64,
}

impl Solo {
    /// Opens `file` and reads it in; `progress` is told bytes read and bytes in all. 0 threads are as many as there are
    /// physical cores that this process may use.
    ///
    /// # Errors
    /// When the file is no model that runs here, or the threads cannot be had.
    pub fn open(
        kernels: &'static Kernels,
        file: &ModelFile,
        threads: usize,
        pack: Pack,
        cache: Option<&Cache>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Fault> {
        let began = clock::now_us();
        let options = Options { pack, cache: cache.cloned(), ..Options::default() };
        let opening = Opening { key: ModelKey(0), file, options: &options, own: None, n_ctx: None };
        let loaded = Loaded::open(&opening).map_err(|e| load_fault(&file.id, &e))?;
        let measured = || {
            let message = format!(
                "model {} is an ONNX graph; only models that sotto runs itself are measured",
                file.id
            );
            Fault::new(Code::UnsupportedModel, message)
        };
        loaded.own().ok_or_else(measured)?;
        let n = match threads {
            0 => cpus::n_threads(&Tree::default(), &[]),
            n => n,
        };
        let pool = Pool::new(kernels, n)
            .map_err(|source| load_fault(&file.id, &ModelError::Threads { n, source }))?;
        let mut load = Load::new(&loaded, &options, n);
        while load.work(&loaded, &pool) {
            let (done, total) = load.progress();
            progress(done, total);
        }
        let (_, total) = load.progress();
        progress(total, total);
        let model = match load.finish(&loaded) {
            Ok(Weights::Own(model)) => model,
            Ok(Weights::Graph(_)) => return Err(measured()),
            Err(e) => return Err(graph_fault(&file.id, &e)),
        };
        Ok(Self { loaded, pool, model, load_ms: clock::now_us().saturating_sub(began) as f64 / 1e3 })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of its file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.loaded.file_bytes()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.loaded.id
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.loaded.tokenizer
    }

    /// Whether its weights are packed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.model.checkpoint().is_packed()
    }

    /// Threads that compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// The kernel tier in use, such as `avx2`.
    #[must_use]
    pub fn tier(&self) -> &'static str {
        self.pool.kernels().tier().name()
    }

    /// How long opening and reading took, in milliseconds.
    #[must_use]
    pub fn load_ms(&self) -> f64 {
        self.load_ms
    }

    /// A decoder for steps of `n_tokens_max` tokens with the logits of `n_logit_rows`, and a cache of `n_ctx` positions.
    pub(super) fn decoder(
        &self,
        precision: Precision,
        n_ctx: usize,
        n_tokens_max: usize,
        n_logit_rows: usize,
    ) -> Result<(Decoder, Kv), Fault> {
        let n_ctx_train = self.model().hyper().n_ctx_train;
        if n_ctx > n_ctx_train {
            return Err(Fault::new(
                Code::InvalidValue,
                format!(
                    "{n_ctx} positions are needed, model {} has {n_ctx_train}; ask for fewer tokens",
                    self.id()
                ),
            ));
        }
        let decoder = Decoder::new(self.model(), precision, n_tokens_max, n_logit_rows);
        let kv = decoder.kv(self.model(), n_ctx).map_err(|e| load_fault(self.id(), &e))?;
        Ok((decoder, kv))
    }
}
