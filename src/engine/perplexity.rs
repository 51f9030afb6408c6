//! How well a model foretells a text.

use super::loaded::damaged_fault;
use super::solo::Solo;
use super::{Code, Fault};
use crate::base::Token;
use crate::base::limits::PREFILL_CHUNK_MAX;
use crate::kernel::Pool;
use crate::model::{Decoder, Feed, Kv, Model, Precision, Want};
use crate::text::Special;

/// Numbers of the logits of one step, at most: 16 MiB.
const N_LOGIT_MAX: usize = 4 << 20;

/// A model reading windows of tokens, each from an empty cache.
pub struct Reader<'a> {
    id: &'a str,
    model: &'a Model,
    pool: &'a Pool,
    decoder: Decoder,
    kv: Kv,
    n_logit_rows: usize,
}

impl Reader<'_> {
    /// Gives `-ln p(tokens[i] | tokens[..i])` to `each`, for every `i` from `first` on, in order.
    ///
    /// # Errors
    /// When a logit is not finite.
    ///
    /// # Panics
    /// If `first` is 0, for nothing foretells the first token, or there are more tokens than positions.
    pub fn read(&mut self, tokens: &[Token], first: usize, each: &mut dyn FnMut(f64)) -> Result<(), Fault> {
        assert!(first > 0, "the first token has nothing before it");
        self.kv.truncate(0);
        let (id, n_vocab) = (self.id, self.model.hyper().n_vocab);
        // The last token is foretold, and foretells nothing. Logits before `first` are of no use.
        let fed = &tokens[..tokens.len().saturating_sub(1)];
        let (silent, told) = fed.split_at((first - 1).min(fed.len()));
        for chunk in silent.chunks(PREFILL_CHUNK_MAX) {
            self.step(chunk, Want::None)?;
        }
        let mut next = first;
        for chunk in told.chunks(self.n_logit_rows) {
            for logits in self.step(chunk, Want::All)?.chunks_exact(n_vocab) {
                each(surprise(logits, tokens[next]).ok_or_else(|| damaged_fault(id, next - 1, true))?);
                next += 1;
            }
        }
        Ok(())
    }

    /// Reads `tokens`, which follow what was read before (nothing, at first), and gives the logits after the last of them,
    /// `[n_vocab]`.
    ///
    /// # Errors
    /// When a step fails.
    ///
    /// # Panics
    /// If there is no token, or more of them than positions are left.
    pub fn read_on(&mut self, tokens: &[Token]) -> Result<&[f32], Fault> {
        assert!(!tokens.is_empty(), "nothing to read");
        let last = (tokens.len() - 1) / PREFILL_CHUNK_MAX * PREFILL_CHUNK_MAX;
        for chunk in tokens[..last].chunks(PREFILL_CHUNK_MAX) {
            self.step(chunk, Want::None)?;
        }
        self.step(&tokens[last..], Want::Last)
    }

    fn step(&mut self, tokens: &[Token], want: Want) -> Result<&[f32], Fault> {
        let stopped = |_| Fault::new(Code::Internal, "a step was stopped that nobody stops");
        let feed = Feed { kv: &mut self.kv, tokens, want, pooled: None };
        self.decoder.step(self.model, self.pool, &mut [feed], &mut |_| true).map_err(stopped)
    }
}

/// `-ln softmax(logits)[token]`, in double precision; `None` if that is not finite.
fn surprise(logits: &[f32], token: Token) -> Option<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
    let nll = sum.ln() - f64::from(logits[token.index()] - top);
    nll.is_finite().then_some(nll)
}

/// `Σ p (ln p - ln q)` of the distributions that two rows of logits are, in nats, and whether the same token is the
/// likeliest in both; `None` if that is not finite.
fn divergence(p: &[f32], q: &[f32]) -> Option<(f64, bool)> {
    let top =
        |x: &[f32]| x.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    let ((at_p, top_p), (at_q, top_q)) = (top(p), top(q));
    let log_sum =
        |x: &[f32], top: f32| x.iter().map(|x| f64::from(x - top).exp()).sum::<f64>().ln() + f64::from(top);
    let (sum_p, sum_q) = (log_sum(p, top_p), log_sum(q, top_q));
    let each = p.iter().zip(q).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - sum_p, f64::from(*q) - sum_q);
        p.exp() * (p - q)
    });
    let sum = each.sum::<f64>();
    sum.is_finite().then_some((sum.max(0.0), at_p == at_q))
}

/// How far the tokens that one model foretells are from those of another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Tokens that were foretold.
    pub n_tokens: usize,
    /// Of them, those where the likeliest is the same.
    pub n_same: usize,
    sum: f64,
}

impl Divergence {
    /// The mean Kullback-Leibler divergence, in nats a token.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.sum / self.n_tokens.max(1) as f64
    }
}

/// A perplexity, after some windows or all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Windows read.
    pub n_windows: usize,
    /// Tokens that were foretold.
    pub n_tokens: usize,
    sum: f64,
    sum_of_squares: f64,
}

impl Perplexity {
    /// Counts a token of this `-ln p`.
    fn add(&mut self, nll: f64) {
        self.n_tokens += 1;
        self.sum += nll;
        self.sum_of_squares += nll * nll;
    }

    /// The exponential of the mean of `-ln p`.
    #[must_use]
    pub fn value(&self) -> f64 {
        (self.sum / self.n_tokens as f64).exp()
    }

    /// Its standard error, from the spread of `-ln p` over the tokens; 0 for fewer than two.
    #[must_use]
    pub fn error(&self) -> f64 {
        if self.n_tokens < 2 {
            return 0.0;
        }
        let n = self.n_tokens as f64;
        let mean = self.sum / n;
        let variance = (self.sum_of_squares / n - mean * mean).max(0.0);
        (variance / (n - 1.0)).sqrt() * self.value()
    }
}

impl Solo {
    /// A reader of windows of at most `n_ctx` tokens.
    ///
    /// # Errors
    /// When the model has fewer positions, or the memory cannot be had.
    pub fn reader(&self, precision: Precision, n_ctx: usize) -> Result<Reader<'_>, Fault> {
        let n_logit_rows = (N_LOGIT_MAX / self.model().hyper().n_vocab.max(1)).clamp(1, PREFILL_CHUNK_MAX);
        let (decoder, kv) = self.decoder(precision, n_ctx, PREFILL_CHUNK_MAX, n_logit_rows)?;
        Ok(Reader { id: self.id(), model: self.model(), pool: &self.pool, decoder, kv, n_logit_rows })
    }

    /// How far `other`, of the same vocabulary, is from this model, over at most `n_max` tokens of `text`, each
    /// foretold from all before it. `progress` is told tokens read and in all.
    ///
    /// # Errors
    /// When there are fewer than 2 tokens, the memory cannot be had, or a logit is not finite.
    pub fn divergence(
        &self,
        other: &Self,
        text: &str,
        n_max: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Divergence, Fault> {
        let tokenizer = self.tokenizer();
        let mut tokens: Vec<Token> = tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
        tokenizer.encode(text, Special::AsText, &mut tokens);
        tokens.truncate(n_max.min(self.model().hyper().n_ctx_train));
        if tokens.len() < 2 {
            return Err(Fault::new(Code::InvalidValue, "a text of fewer than 2 tokens; give a longer one"));
        }
        let mut p = self.reader(Precision::default(), tokens.len())?;
        let mut q = other.reader(Precision::default(), tokens.len())?;
        let (mut so_far, n_vocab) = (Divergence::default(), self.model().hyper().n_vocab);
        for chunk in tokens.chunks(p.n_logit_rows) {
            let rows = p.step(chunk, Want::All)?.chunks_exact(n_vocab);
            for (p, q) in rows.zip(q.step(chunk, Want::All)?.chunks_exact(n_vocab)) {
                let (sum, same) =
                    divergence(p, q).ok_or_else(|| damaged_fault(other.id(), so_far.n_tokens, true))?;
                so_far.sum += sum;
                so_far.n_tokens += 1;
                so_far.n_same += usize::from(same);
            }
            progress(so_far.n_tokens as u64, tokens.len() as u64);
        }
        Ok(so_far)
    }

    /// The perplexity of `text` as llama.cpp defines it (tools/perplexity): the whole text is tokenized at once, with
    /// the begin token before it if the model wants one; cut into windows of `n_ctx` tokens, the rest dropped; in each
    /// window the begin token takes the place of the first token; of each window the tokens after position
    /// `n_ctx / 2` are foretold. At most `n_windows_max` windows are read. `progress` is told the value so far and how
    /// many windows there are.
    ///
    /// # Errors
    /// When the text is shorter than a window, a window is shorter than 4 tokens or longer than the model's context,
    /// or a logit is not finite.
    pub fn perplexity(
        &self,
        text: &str,
        precision: Precision,
        n_ctx: usize,
        n_windows_max: Option<usize>,
        progress: &mut dyn FnMut(&Perplexity, usize),
    ) -> Result<Perplexity, Fault> {
        let mut reader = self.reader(precision, n_ctx)?;
        let tokenizer = self.tokenizer();
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut tokens: Vec<Token> = bos.into_iter().collect();
        tokenizer.encode(text, Special::AsText, &mut tokens);
        if n_ctx < 4 || tokens.len() < n_ctx {
            let n = tokens.len();
            let message = format!(
                "a text of {n} tokens, windows of {n_ctx}: a window has at least 4 tokens, a text one window"
            );
            return Err(Fault::new(Code::InvalidValue, message));
        }
        let n_windows = (tokens.len() / n_ctx).min(n_windows_max.unwrap_or(usize::MAX));
        let mut so_far = Perplexity::default();
        for window in tokens.chunks_exact_mut(n_ctx).take(n_windows) {
            progress(&so_far, n_windows);
            if let Some(bos) = bos {
                window[0] = bos;
            }
            reader.read(window, n_ctx / 2 + 1, &mut |nll| so_far.add(nll))?;
            so_far.n_windows += 1;
        }
        progress(&so_far, n_windows);
        Ok(so_far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_that_of_a_softmax() {
        let even = surprise(&[2.0; 8], Token(3)).unwrap();
        assert!((even - 8.0_f64.ln()).abs() < 1e-12);
        let far = surprise(&[1000.0, -1000.0], Token(1)).unwrap();
        assert!((far - 2000.0).abs() < 1e-9, "no overflow, no underflow: {far}");
        assert!(surprise(&[f32::NAN, 1.0], Token(1)).is_none());
        assert!(surprise(&[f32::INFINITY, 1.0], Token(1)).is_none());
    }

    #[test]
    fn a_divergence_is_that_of_two_distributions() {
        let (p, q) = ([0.5_f32, 0.25, 0.25].map(f32::ln), [0.25_f32, 0.5, 0.25].map(|x| x.ln() + 7.0));
        let (sum, same) = divergence(&p, &q).unwrap();
        assert!((sum - 0.25 * 2.0_f64.ln()).abs() < 1e-6 && !same, "{sum}");
        assert_eq!(divergence(&p, &p), Some((0.0, true)));
        assert_eq!(divergence(&p, &[f32::NAN; 3]), None);
    }

    #[test]
    fn the_error_is_that_of_a_mean() {
        let mut p = Perplexity::default();
        assert_eq!(p.error(), 0.0);
        for nll in [1.0, 2.0, 3.0] {
            p.add(nll);
        }
        // Mean 2, variance 2/3, over n - 1 = 2.
        assert!((p.value() - 2.0_f64.exp()).abs() < 1e-12);
        assert!((p.error() - (1.0_f64 / 3.0).sqrt() * 2.0_f64.exp()).abs() < 1e-12);
    }
}
