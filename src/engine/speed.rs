//! How fast a model runs here.

use super::solo::Solo;
use super::{Code, Fault};
use crate::base::Token;
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::base::rng::Rng;
use crate::model::{Precision, Want};
use crate::os::clock;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedOptions {
    /// Tokens of the prompt, 1 and more.
    pub n_prompt: usize,
    /// Tokens decoded after it, 1 and more.
    pub n_generate: usize,
    /// How often, 1 and more.
    pub n_repeat: usize,
}

/// Tokens a second of each repetition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speed {
    /// Of reading the prompt.
    pub prefill_tok_s: Vec<f64>,
    /// Of decoding one token after the other.
    pub decode_tok_s: Vec<f64>,
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
    /// Reads a prompt of random tokens and decodes random tokens after it, each time from an empty cache: what the
    /// decoder does, without the draw and without text. A few tokens go before, unmeasured. `progress` is told tokens
    /// done and tokens in all.
    ///
    /// # Errors
    /// When the model has too few positions, or the memory cannot be had.
    pub fn speed(
        &self,
        precision: Precision,
        o: SpeedOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Speed, Fault> {
        let n_vocab = self.model().hyper().n_vocab;
        let (mut decoder, mut kv) =
            self.decoder(precision, o.n_prompt + o.n_generate, PREFILL_CHUNK_MAX, 1)?;
        let mut rng = Rng::new(1);
        // A vocabulary has at most 2^20 entries.
        let mut tokens = |n| -> Vec<Token> { (0..n).map(|_| Token(rng.below(n_vocab) as u32)).collect() };
        let (prompt, generated) = (tokens(o.n_prompt), tokens(o.n_generate));
        let total = (o.n_repeat * (o.n_prompt + o.n_generate)) as u64;
        let mut done = 0;
        let mut step = |tokens: &[Token], want, empty: bool| {
            if empty {
                kv.truncate(0);
            }
            let stopped = |_| Fault::new(Code::Internal, "a step was stopped that nobody stops");
            let step = decoder.step(self.model(), &self.pool, &mut kv, tokens, want, &mut |_| true);
            step.map(|_| ()).map_err(stopped)
        };
        step(&prompt[..1], Want::Last, true)?;
        step(&prompt[..o.n_prompt.min(PREFILL_CHUNK_MAX)], Want::None, true)?;
        let mut speed = Speed::default();
        let per_s =
            |n: usize, since: u64| n as f64 * 1e6 / clock::now_us().saturating_sub(since).max(1) as f64;
        for _ in 0..o.n_repeat {
            let began = clock::now_us();
            let n_chunks = prompt.len().div_ceil(PREFILL_CHUNK_MAX);
            for (i, chunk) in prompt.chunks(PREFILL_CHUNK_MAX).enumerate() {
                progress(done, total);
                step(chunk, if i + 1 == n_chunks { Want::Last } else { Want::None }, i == 0)?;
                done += chunk.len() as u64;
            }
            speed.prefill_tok_s.push(per_s(prompt.len(), began));
            let began = clock::now_us();
            for token in &generated {
                progress(done, total);
                step(&[*token], Want::Last, false)?;
                done += 1;
            }
            speed.decode_tok_s.push(per_s(generated.len(), began));
        }
        Ok(speed)
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
