//! A loaded model with what its sequences share: buffers, memory, beginnings.

use std::sync::Arc;

use super::generation::Generation;
use super::loaded::Loaded;
use super::manners::{Given, Need};
use super::prefix::PrefixCache;
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
    pub capacity: Capacity,
    need: Need,
    given: Given,
    n_ctx: usize,
    /// What all sequences may keep together.
    sequences_bytes: u64,
    /// Tokens of its largest step.
    n_tokens_max: usize,
}

/// Tokens of the largest step of `model`.
fn n_tokens_max(model: &Loaded, o: &Options) -> usize {
    (o.prefill_chunk + model.max_sequences).min(PREFILL_CHUNK_MAX)
}

/// What `model` takes with these `weights`, if it is to keep `prefix` bytes of beginnings.
pub(super) fn need(model: &Loaded, weights: &Model, o: &Options, prefix: u64) -> Need {
    let (n_ctx, n_tokens_max) = (model.n_ctx, n_tokens_max(model, o));
    let (paging, one) = (Paging::new(weights.layout(), model.kv), n_ctx.div_ceil(ATTN_BLOCK));
    Need {
        weights: weights.resident_bytes(),
        buffers: Decoder::bytes(weights, n_tokens_max, model.max_sequences),
        sequence: paging.bytes(n_ctx, n_tokens_max),
        n_ctx,
        page: paging.page_bytes(),
        // Those that rest keep what they have, so there is use for twice as many as run.
        n_pages: (one, 2 * model.max_sequences * one),
        prefix,
    }
}

impl Ready {
    /// Makes the buffers of `model`, whose weights are `weights`, within what it is `given`.
    ///
    /// # Errors
    /// When it has too few positions, or there is no memory for its longest sequence.
    pub(super) fn new(
        model: Arc<Loaded>,
        weights: Arc<Model>,
        pool: &Pool,
        o: &Options,
        (given, metrics): (Given, Arc<ModelMetrics>),
    ) -> Result<Self, ModelError> {
        let precision = Precision { kv: model.kv, ..Precision::default() };
        let (n_ctx, n_tokens_max) = (model.n_ctx, n_tokens_max(&model, o));
        weights.check_positions(n_ctx)?;
        let paging = Arc::new(Paging::new(weights.layout(), model.kv));
        let Given { n_pages, prefix, .. } = given;
        let sequences_bytes = (n_pages as u64).saturating_mul(paging.page_bytes());
        let ready = Self {
            need: need(&model, &weights, o, prefix),
            capacity: Capacity { n_pages, at_pages: paging.resumes_at_steps() },
            decoder: Decoder::new(&weights, precision, n_tokens_max, model.max_sequences),
            tuning: Tuning::new(&weights, pool, o.threads_decode),
            budget: Budget::new(sequences_bytes.saturating_add(prefix)),
            sequences_bytes,
            prefix: PrefixCache::new(prefix),
            given,
            paging,
            metrics,
            n_ctx,
            n_tokens_max,
            model,
            weights,
        };
        // That there is memory for the longest sequence is found out now, not within an answer.
        ready.kv()?.reserve_all()?;
        Ok(ready)
    }

    /// What a sequence begins with: nothing.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn kv(&self) -> Result<Kv, ModelError> {
        Kv::new(&self.paging, &self.budget, self.n_ctx, self.n_tokens_max)
    }

    /// Is to keep at most `bytes` of beginnings, as far as memory allowed them at its load; `yes`: from now on.
    pub(super) fn set_prefix_cache(&mut self, bytes: u64, yes: bool) {
        self.given.prefix = bytes.min(self.given.prefix_max);
        self.budget.raise(self.sequences_bytes.saturating_add(self.given.prefix));
        self.keep_beginnings(yes);
    }

    /// Leaves for later requests what a sequence has come to keep in whole blocks by its last `n` tokens.
    pub(super) fn keep_beginning(&mut self, job: &Generation, kv: &Kv, n: usize) {
        if kv.len() / ATTN_BLOCK > (kv.len() - n) / ATTN_BLOCK {
            for (scope, n) in job.leaves() {
                self.prefix.insert(scope, &job.tokens()[..kv.len().min(n)], |i| kv.share(i));
            }
        }
    }

    /// Keeps beginnings for later requests, or none any more.
    pub(super) fn keep_beginnings(&mut self, yes: bool) {
        self.prefix.set_max(if yes { self.given.prefix } else { 0 });
        self.tell();
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
