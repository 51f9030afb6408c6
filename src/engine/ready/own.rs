//! A model that our own decoder runs: buffers, memory of its sequences, beginnings.

use std::sync::Arc;

use super::{Drawn, Going, Sample, What};
use crate::base::limits::{ATTN_BLOCK, PREFILL_CHUNK_MAX};
use crate::engine::Options;
use crate::engine::generation::Generation;
use crate::engine::loaded::Loaded;
use crate::engine::manners::{Given, Need};
use crate::engine::prefix::PrefixCache;
use crate::engine::scheduler::Capacity;
use crate::engine::tuning::Tuning;
use crate::kernel::Pool;
use crate::model::{Budget, Decoder, Feed, Kv, Model, ModelError, Paging, Part, Pooled, Precision, Want};

/// What runs, and what its sequences share.
pub(super) struct Own {
    weights: Arc<Model>,
    decoder: Decoder,
    tuning: Tuning,
    paging: Arc<Paging>,
    pub budget: Arc<Budget>,
    pub prefix: PrefixCache,
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

impl Own {
    /// Makes the buffers of `model`, whose weights are `weights`, within what it is `given`.
    ///
    /// # Errors
    /// When it has too few positions, or there is no memory for its longest sequence.
    pub(super) fn new(
        model: &Loaded,
        weights: Arc<Model>,
        pool: &Pool,
        o: &Options,
        given: Given,
    ) -> Result<Self, ModelError> {
        let precision = Precision { kv: model.kv, ..Precision::default() };
        let (n_ctx, n_tokens_max) = (model.n_ctx, n_tokens_max(model, o));
        weights.check_positions(n_ctx)?;
        let paging = Arc::new(Paging::new(weights.layout(), model.kv));
        let Given { n_pages, prefix, .. } = given;
        let sequences_bytes = (n_pages as u64).saturating_mul(paging.page_bytes());
        let own = Self {
            need: need(model, &weights, o, prefix),
            decoder: Decoder::new(&weights, precision, n_tokens_max, model.max_sequences),
            tuning: Tuning::new(&weights, pool, o.threads_decode),
            budget: Budget::new(sequences_bytes.saturating_add(prefix)),
            sequences_bytes,
            prefix: PrefixCache::new(prefix),
            given,
            paging,
            n_ctx,
            n_tokens_max,
            weights,
        };
        // That there is memory for the longest sequence is found out now, not within an answer.
        own.kv()?.reserve_all()?;
        Ok(own)
    }

    pub(super) fn capacity(&self) -> Capacity {
        let (n_pages, at_pages) = (self.given.n_pages, self.paging.resumes_at_steps());
        Capacity { n_pages, at_pages, whole: false }
    }

    pub(super) fn is_packed(&self) -> bool {
        self.weights.checkpoint().is_packed()
    }

    /// What a sequence begins with: nothing.
    fn kv(&self) -> Result<Kv, ModelError> {
        Kv::new(&self.paging, &self.budget, self.n_ctx, self.n_tokens_max)
    }

    /// What a sequence begins with, as much of it as the prefix cache has.
    pub(super) fn begin(&mut self, job: &Generation) -> Result<What, ModelError> {
        let (mut kv, mut pin) = (self.kv()?, None);
        if let Some((id, blocks)) = self.prefix.find(job.begins_from(), job.tokens(), &self.paging) {
            kv.adopt(&blocks.iter().collect::<Vec<_>>());
            pin = Some(id);
        }
        let how = self.weights.pooling().filter(|_| job.embeds());
        let pooled = how.map(|how| Pooled::new(how, self.weights.hyper().n_embd));
        Ok(What::Own { kv, pin, pooled })
    }

    /// Does a step and draws; `None` if it was stopped.
    pub(super) fn step(
        &mut self,
        model: &Loaded,
        pool: &Pool,
        going: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Option<Vec<Drawn>> {
        let n_tokens: usize = going.iter().map(|g| g.tokens.len()).sum();
        // Tokens of prompts; the last one of a prompt counts as written where it comes alone.
        let n_read: usize = going.iter().map(|g| g.tokens.len()).filter(|n| *n > 1).sum();
        if let Some(play) = &model.play
            && !play.pace(n_read, n_read < n_tokens, &mut || go_on(Part::Attention))
        {
            return None;
        }
        let mut slots = Vec::new();
        let mut feeds = Vec::with_capacity(going.len());
        for Going { slot, kept, tokens, draws, .. } in going.iter_mut() {
            let What::Own { kv, pooled, .. } = &mut kept.what else { continue };
            let writes = *draws && pooled.is_none();
            if writes {
                slots.push(*slot);
            }
            let want = if writes { Want::Last } else { Want::None };
            feeds.push(Feed { kv, tokens, want, pooled: pooled.as_mut() });
        }
        let Self { weights, decoder, tuning, .. } = self;
        let alone = n_tokens == 1;
        let logits = tuning.decode(pool, alone, || decoder.step(weights, pool, &mut feeds, go_on)).ok()?;
        let rows = slots.into_iter().zip(logits.chunks_exact(weights.hyper().n_vocab.max(1)));
        let draw = |(slot, logits)| Some(Drawn::Token(slot, sample(slot, logits)?));
        let mut drawn: Vec<Drawn> = rows.filter_map(draw).collect();
        for g in going.iter_mut().filter(|g| g.draws) {
            if let What::Own { pooled, .. } = &mut g.kept.what {
                drawn.extend(pooled.take().map(|pooled| Drawn::Vector(g.slot, pooled.finish())));
            }
        }
        Some(drawn)
    }

    /// Leaves for later requests what a sequence has come to keep in whole blocks by its last `n` tokens.
    pub(super) fn keep_beginning(&mut self, job: &Generation, kv: &Kv, n: usize) {
        if kv.len() / ATTN_BLOCK > (kv.len() - n) / ATTN_BLOCK {
            for (scope, n) in job.leaves() {
                self.prefix.insert(scope, &job.tokens()[..kv.len().min(n)], |i| kv.share(i));
            }
        }
    }

    /// Is to keep at most `bytes` of beginnings, as far as memory allowed them at its load.
    pub(super) fn set_prefix_cache(&mut self, bytes: u64) {
        self.given.prefix = bytes.min(self.given.prefix_max);
        self.budget.raise(self.sequences_bytes.saturating_add(self.given.prefix));
    }

    /// Keeps beginnings for later requests, or none any more.
    pub(super) fn keep_beginnings(&mut self, yes: bool) {
        self.prefix.set_max(if yes { self.given.prefix } else { 0 });
    }

    /// As [`super::Ready::own_bytes`].
    pub(super) fn own_bytes(&self) -> u64 {
        let checkpoint = self.weights.checkpoint();
        let copied = checkpoint.is_packed() && checkpoint.packed_file().is_none();
        let weights = if copied { self.need.weights } else { 0 };
        weights.saturating_add(self.need.buffers).saturating_add(self.budget.used())
    }

    /// As [`super::Ready::needed_bytes`].
    pub(super) fn needed_bytes(&self) -> u64 {
        let sequences = self.budget.used().max(self.need.sequence);
        self.need.weights.saturating_add(self.need.buffers).saturating_add(sequences)
    }

    /// Keeps the weights of model `id` in memory, whatever else wants it.
    pub(super) fn lock(&self, id: &str) {
        if let Err(e) = self.weights.checkpoint().lock() {
            log::warn!(
                "models.lock: the {} MiB of model {id} cannot be locked: {e}; allow it by LimitMEMLOCK= in the unit",
                self.need.weights >> 20
            );
        }
    }
}
