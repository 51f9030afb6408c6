//! A loaded model with what its sequences share: buffers, memory, beginnings.

use std::sync::Arc;

use super::admit::Loaded;
use super::generation::Generation;
use super::manners::{Given, Need};
use super::prefix::{PrefixCache, Scope};
use super::scheduler::Capacity;
use super::tuning::Tuning;
use super::{ModelMetrics, Options};
use crate::base::limits::{ATTN_BLOCK, PREFILL_CHUNK_MAX};
use crate::kernel::Pool;
use crate::model::{Budget, Decoder, Kv, Model, ModelError, Paging, Precision};

/// A model that runs.
pub(super) struct Ready {
    pub model: Arc<Loaded>,
    /// What of it runs.
    pub weights: Arc<Model>,
    pub decoder: Decoder,
    pub tuning: Tuning,
    pub paging: Arc<Paging>,
    pub budget: Arc<Budget>,
    pub prefix: PrefixCache,
    pub metrics: Arc<ModelMetrics>,
    pub need: Need,
    /// Bytes of beginnings that it may keep while there is memory.
    prefix_bytes: u64,
    n_ctx: usize,
    /// Tokens of its largest step.
    n_tokens_max: usize,
}

/// Positions of a sequence of `model`, and tokens of its largest step.
fn sizes(model: &Model, o: &Options) -> (usize, usize) {
    let n_tokens_max = (o.prefill_chunk + o.max_sequences).min(PREFILL_CHUNK_MAX);
    (o.n_ctx.min(model.hyper().n_ctx_train), n_tokens_max)
}

/// What `model` would take.
pub(super) fn need(model: &Model, o: &Options) -> Need {
    let (n_ctx, n_tokens_max) = sizes(model, o);
    let (paging, one) = (Paging::new(model.layout(), o.kv), n_ctx.div_ceil(ATTN_BLOCK));
    Need {
        weights: model.resident_bytes(),
        buffers: Decoder::bytes(model, n_tokens_max, o.max_sequences),
        sequence: paging.bytes(n_ctx, n_tokens_max),
        n_ctx,
        page: paging.page_bytes(),
        // Those that rest keep what they have, so there is use for twice as many as run.
        n_pages: (one, 2 * o.max_sequences * one),
        prefix: o.prefix_cache_bytes,
    }
}

impl Ready {
    /// Makes the buffers of `model`, whose weights are `weights`, within what it is `given`; with what its sequences may
    /// have.
    ///
    /// # Errors
    /// When it has too few positions, or there is no memory for its longest sequence.
    pub(super) fn new(
        model: Arc<Loaded>,
        weights: Arc<Model>,
        pool: &Pool,
        o: &Options,
        (given, metrics): (Given, Arc<ModelMetrics>),
    ) -> Result<(Self, Capacity), ModelError> {
        let precision = Precision { kv: o.kv, ..Precision::default() };
        let (n_ctx, n_tokens_max) = sizes(&weights, o);
        weights.check_positions(n_ctx)?;
        let paging = Arc::new(Paging::new(weights.layout(), o.kv));
        let Given { n_pages, prefix } = given;
        let ready = Self {
            need: need(&weights, o),
            decoder: Decoder::new(&weights, precision, n_tokens_max, o.max_sequences),
            tuning: Tuning::new(&weights, pool, o.threads_decode),
            budget: Budget::new((n_pages as u64).saturating_mul(paging.page_bytes()).saturating_add(prefix)),
            prefix: PrefixCache::new(prefix),
            prefix_bytes: prefix,
            paging,
            metrics,
            n_ctx,
            n_tokens_max,
            model,
            weights,
        };
        // That there is memory for the longest sequence is found out now, not within an answer.
        ready.kv()?.reserve_all()?;
        let at_pages = ready.paging.resumes_at_steps();
        Ok((ready, Capacity { n_pages, at_pages }))
    }

    /// What a sequence begins with: nothing.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn kv(&self) -> Result<Kv, ModelError> {
        Kv::new(&self.paging, &self.budget, self.n_ctx, self.n_tokens_max)
    }

    /// Leaves for later requests what a sequence has come to keep in whole blocks by its last `n` tokens.
    pub(super) fn keep_beginning(&mut self, job: &Generation, kv: &Kv, n: usize) {
        if let Some(uid) = job.caches_for()
            && kv.len() / ATTN_BLOCK > (kv.len() - n) / ATTN_BLOCK
        {
            self.prefix.insert(Scope::Uid(uid), &job.tokens()[..kv.len()], |i| kv.share(i));
        }
    }

    /// Keeps beginnings for later requests, or none any more.
    pub(super) fn keep_beginnings(&mut self, yes: bool) {
        self.prefix.limit(if yes { self.prefix_bytes } else { 0 });
    }

    /// Bytes of the system's free memory that it has taken: what is mapped from a file is not among them.
    pub(super) fn own_bytes(&self) -> u64 {
        let checkpoint = self.weights.checkpoint();
        let copied = checkpoint.is_packed() && checkpoint.packed_file().is_none();
        let weights = if copied { self.need.weights } else { 0 };
        weights.saturating_add(self.need.buffers).saturating_add(self.budget.used())
    }

    /// Bytes that it needs as long as it stays: what it keeps, and at least one sequence.
    pub(super) fn needed_bytes(&self) -> u64 {
        let sequences = self.budget.used().max(self.need.sequence);
        self.need.weights.saturating_add(self.need.buffers).saturating_add(sequences)
    }

    /// Keeps its weights in memory, whatever else wants it.
    pub(super) fn lock(&self) {
        if let Err(e) = self.weights.checkpoint().lock() {
            log::warn!(
                "models.lock: the {} MiB of model {} cannot be locked: {e}; allow it by LimitMEMLOCK= in the unit",
                self.need.weights >> 20,
                self.model.id
            );
        }
    }

    /// Tells how much it keeps.
    pub(super) fn tell(&self) {
        self.metrics.kv_bytes.set(self.budget.used());
        self.metrics.prefix_bytes.set(self.prefix.bytes());
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        for bytes in [&self.metrics.weight_bytes, &self.metrics.kv_bytes, &self.metrics.prefix_bytes] {
            bytes.set(0);
        }
    }
}
