//! A loaded model with what its sequences share: buffers, memory, beginnings.

use std::sync::Arc;

use super::admit::Loaded;
use super::generation::Generation;
use super::prefix::{PrefixCache, Scope};
use super::scheduler::Capacity;
use super::tuning::Tuning;
use super::{ModelMetrics, Options};
use crate::base::limits::{ATTN_BLOCK, PREFILL_CHUNK_MAX};
use crate::kernel::Pool;
use crate::model::{Budget, Decoder, Kv, Model, ModelError, Paging, Precision};
use crate::os::pages;

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
    n_ctx: usize,
    /// What all sequences may keep together.
    sequences_bytes: u64,
    /// Tokens of its largest step.
    n_tokens_max: usize,
}

impl Ready {
    /// Makes the buffers of `model`, whose weights are `weights`; with what its sequences may have.
    ///
    /// # Errors
    /// When it has too few positions, or there is no memory for its longest sequence.
    pub(super) fn new(
        model: Arc<Loaded>,
        weights: Arc<Model>,
        pool: &Pool,
        o: &Options,
        prefix_cache_bytes: u64,
        metrics: Arc<ModelMetrics>,
    ) -> Result<(Self, Capacity), ModelError> {
        let precision = Precision { kv: model.kv, ..Precision::default() };
        let n_tokens_max = (o.prefill_chunk + model.max_sequences).min(PREFILL_CHUNK_MAX);
        let n_ctx = model.n_ctx;
        weights.check_positions(n_ctx)?;
        let paging = Arc::new(Paging::new(weights.layout(), model.kv));
        // Those that rest keep what they have, so there is room for twice as many as run, if the machine has it.
        let (one, page) = (n_ctx.div_ceil(ATTN_BLOCK), paging.page_bytes().max(1));
        let fit = pages::available().map_or(u64::MAX, |bytes| bytes / 4 * 3 / page);
        let n_pages = usize::try_from(fit).unwrap_or(usize::MAX).clamp(one, 2 * model.max_sequences * one);
        let sequences_bytes = (n_pages as u64).saturating_mul(page);
        let ready = Self {
            decoder: Decoder::new(&weights, precision, n_tokens_max, model.max_sequences),
            tuning: Tuning::new(&weights, pool, o.threads_decode),
            budget: Budget::new(sequences_bytes.saturating_add(prefix_cache_bytes)),
            sequences_bytes,
            prefix: PrefixCache::new(prefix_cache_bytes),
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

    /// Keeps at most `bytes` of beginnings from now on.
    pub(super) fn set_prefix_cache(&mut self, bytes: u64) {
        self.budget.raise(self.sequences_bytes.saturating_add(bytes));
        self.prefix.set_max(bytes);
        self.tell();
    }

    /// Leaves for later requests what a sequence has come to keep in whole blocks by its last `n` tokens.
    pub(super) fn keep_beginning(&mut self, job: &Generation, kv: &Kv, n: usize) {
        if let Some(uid) = job.caches_for()
            && kv.len() / ATTN_BLOCK > (kv.len() - n) / ATTN_BLOCK
        {
            self.prefix.insert(Scope::Uid(uid), &job.tokens()[..kv.len()], |i| kv.share(i));
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
