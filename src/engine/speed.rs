//! How fast a model runs here.

use super::loaded::load_fault;
use super::solo::Solo;
use super::tuning::Tuning;
use super::{Code, Fault};
use crate::base::Token;
use crate::base::limits::{N_FEED_MAX, PREFILL_CHUNK_MAX};
use crate::base::rng::Rng;
use crate::model::{Decoder, Feed, Kv, Precision, Profile, Want};
use crate::os::clock;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedOptions {
    /// Tokens of the prompt, 1 and more.
    pub n_prompt: usize,
    /// Tokens decoded, 1 and more.
    pub n_generate: usize,
    /// Tokens that stand in the cache before either.
    pub depth: usize,
    /// Sequences that are decoded at once, 1 to [`N_FEED_MAX`].
    pub batch: usize,
    /// How often, 1 and more.
    pub n_repeat: usize,
    /// Threads that decode a single sequence; 0: as many as are fastest, which is measured before.
    pub threads_decode: usize,
    /// Whether to go through all once more and count what operations cost.
    pub profile: bool,
}

/// Tokens a second of each repetition.
#[derive(Debug, Default)]
pub struct Speed {
    /// Of reading the prompt.
    pub prefill_tok_s: Vec<f64>,
    /// Of decoding one token after the other, all sequences together.
    pub decode_tok_s: Vec<f64>,
    /// Threads that decoded.
    pub threads_decode: usize,
    /// What the operations of prefill and of decoding cost.
    pub profiles: Option<[Profile; 2]>,
}

/// The middle of `values`, or the mean of the two in the middle; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

impl Solo {
    /// Reads a prompt of random tokens, and decodes random tokens, each behind `depth` others: what the decoder does,
    /// without the draw and without text. A few tokens go before, unmeasured. `progress` is told tokens done and tokens in
    /// all.
    ///
    /// # Errors
    /// When the model has too few positions, or the memory cannot be had.
    ///
    /// # Panics
    /// If options are outside their bounds.
    pub fn speed(
        &self,
        precision: Precision,
        o: SpeedOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Speed, Fault> {
        assert!((1..=N_FEED_MAX).contains(&o.batch), "{} sequences at once", o.batch);
        let (n_vocab, n_ctx) = (self.model().hyper().n_vocab, o.depth + o.n_prompt.max(o.n_generate));
        let (decoder, first) = self.decoder(precision, n_ctx, PREFILL_CHUNK_MAX, o.batch)?;
        let mut kvs = vec![first];
        while kvs.len() < o.batch {
            kvs.push(decoder.kv(self.model(), n_ctx).map_err(|e| load_fault(self.id(), &e))?);
        }
        let mut rng = Rng::new(1);
        // A vocabulary has at most 2^20 entries.
        let mut tokens = |n| -> Vec<Token> { (0..n).map(|_| Token(rng.below(n_vocab) as u32)).collect() };
        let (before, prompt, generated) = (tokens(o.depth), tokens(o.n_prompt), tokens(o.n_generate));
        let total =
            o.batch * o.depth + (o.n_repeat + usize::from(o.profile)) * (o.n_prompt + o.batch * o.n_generate);
        let tuning = Tuning::new(self.model(), &self.pool, o.threads_decode);
        let mut run = Measured { solo: self, decoder, tuning, done: 0, total: total as u64, progress };
        for kv in &mut kvs {
            run.read(kv, &before)?;
        }
        run.read(&mut kvs[0], &prompt[..o.n_prompt.min(PREFILL_CHUNK_MAX)])?;
        while o.batch == 1 && run.tuning.is_trying() {
            run.go_back(&mut kvs, &before)?;
            run.step(&mut kvs, &generated[..1], Want::Last)?;
        }
        let threads_decode = if o.batch == 1 { run.tuning.threads_decode() } else { self.threads() };
        let mut speed = Speed { threads_decode, ..Speed::default() };
        let per_s =
            |n: usize, since: u64| n as f64 * 1e6 / clock::now_us().saturating_sub(since).max(1) as f64;
        for _ in 0..o.n_repeat {
            run.go_back(&mut kvs[..1], &before)?;
            let began = clock::now_us();
            run.read(&mut kvs[0], &prompt)?;
            speed.prefill_tok_s.push(per_s(o.n_prompt, began));
            run.go_back(&mut kvs, &before)?;
            let began = clock::now_us();
            for token in &generated {
                run.step(&mut kvs, &[*token], Want::Last)?;
            }
            speed.decode_tok_s.push(per_s(o.batch * o.n_generate, began));
        }
        if o.profile {
            run.go_back(&mut kvs[..1], &before)?;
            run.decoder.begin_profile();
            run.read(&mut kvs[0], &prompt)?;
            let prefill = run.decoder.end_profile();
            run.go_back(&mut kvs, &before)?;
            run.decoder.begin_profile();
            for token in &generated {
                run.step(&mut kvs, &[*token], Want::Last)?;
            }
            speed.profiles =
                prefill.zip(run.decoder.end_profile()).map(|(prefill, decode)| [prefill, decode]);
        }
        Ok(speed)
    }
}

/// A decoder under measurement.
struct Measured<'a> {
    solo: &'a Solo,
    decoder: Decoder,
    tuning: Tuning,
    /// Tokens so far, and in all.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Measured<'_> {
    /// The same tokens for each sequence.
    fn step(&mut self, kvs: &mut [Kv], tokens: &[Token], want: Want) -> Result<(), Fault> {
        (self.progress)(self.done.min(self.total), self.total);
        let n = kvs.len() * tokens.len();
        self.done += n as u64;
        let mut feeds: Vec<_> = kvs.iter_mut().map(|kv| Feed { kv, tokens, want, pooled: None }).collect();
        let (decoder, pool) = (&mut self.decoder, &self.solo.pool);
        let step = || decoder.step(self.solo.model(), pool, &mut feeds, &mut |_| true).map(|_| ());
        self.tuning
            .decode(pool, n == 1, step)
            .map_err(|_| Fault::new(Code::Internal, "a step was stopped that nobody stops"))
    }

    /// Reads a prompt, and its last logits.
    fn read(&mut self, kv: &mut Kv, tokens: &[Token]) -> Result<(), Fault> {
        let n_chunks = tokens.len().div_ceil(PREFILL_CHUNK_MAX);
        for (i, chunk) in tokens.chunks(PREFILL_CHUNK_MAX).enumerate() {
            let want = if i + 1 == n_chunks { Want::Last } else { Want::None };
            self.step(std::slice::from_mut(kv), chunk, want)?;
        }
        Ok(())
    }

    /// Leaves `before` in each cache; what cannot go back reads it again.
    fn go_back(&mut self, kvs: &mut [Kv], before: &[Token]) -> Result<(), Fault> {
        for kv in kvs {
            if kv.truncate(before.len()) != before.len() {
                let done = self.done;
                self.read(kv, before)?;
                self.done = done;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
    }
}
