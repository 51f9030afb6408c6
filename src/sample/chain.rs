//! The sampling chain: temperature, then top-k, then top-p (Holtzman et al., "The Curious Case of Neural Text
//! Degeneration", 2020), then one draw. Temperature 0 takes the likeliest token.

use crate::base::Token;
use crate::base::rng::Rng;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    token: Token,
}

impl Candidate {
    /// The order of preference: larger logits first, smaller ids among equals.
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Draws tokens. The same settings, seed and logits give the same tokens.
#[derive(Debug)]
pub struct Chain {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    rng: Rng,
    /// Filled anew for each token; never grows after [`Self::new`].
    candidates: Vec<Candidate>,
}

impl Chain {
    /// A chain for logits of `n_vocab` tokens; `top_k` 0 and `top_p` 1 are off.
    #[must_use]
    pub fn new(temperature: f32, top_k: u32, top_p: f32, seed: u64, n_vocab: usize) -> Self {
        let top_k = match top_k as usize {
            0 => n_vocab,
            k => k.min(n_vocab),
        };
        let greedy = temperature <= 0.0;
        // Twice k: candidates are collected and cut down in turns.
        let room = if greedy { 0 } else { (2 * top_k).min(n_vocab) };
        Self { temperature, top_k, top_p, rng: Rng::new(seed), candidates: Vec::with_capacity(room) }
    }

    /// The next token; `None` if no logit is a number.
    pub fn sample(&mut self, logits: &[f32]) -> Option<Token> {
        if self.temperature <= 0.0 {
            return likeliest(logits);
        }
        self.collect(logits);
        let top = self.candidates.first()?.logit;
        // Relative to the largest logit: no weight exceeds 1, and a small temperature cannot overflow.
        let weight = |c: &Candidate| ((c.logit - top) / self.temperature).exp();
        let total: f32 = self.candidates.iter().map(weight).sum();
        let (mut kept, mut n) = (0.0, 0);
        for c in &self.candidates {
            if n > 0 && kept >= self.top_p * total {
                break;
            }
            kept += weight(c);
            n += 1;
        }
        let mut left = self.rng.next_f32() * kept;
        for c in &self.candidates[..n] {
            left -= weight(c);
            if left < 0.0 {
                return Some(c.token);
            }
        }
        Some(self.candidates[n - 1].token)
    }

    /// The `top_k` best tokens, best first.
    fn collect(&mut self, logits: &[f32]) {
        self.candidates.clear();
        // Below this a token cannot be among the best.
        let mut floor = f32::NEG_INFINITY;
        for (i, &logit) in logits.iter().enumerate() {
            if !(logit.is_finite() && logit >= floor) {
                continue;
            }
            if self.candidates.len() == self.candidates.capacity() {
                self.candidates.select_nth_unstable_by(self.top_k - 1, Candidate::before);
                self.candidates.truncate(self.top_k);
                floor = self.candidates[self.top_k - 1].logit;
                if logit < floor {
                    continue;
                }
            }
            self.candidates.push(Candidate { logit, token: Token(i as u32) });
        }
        self.candidates.sort_unstable_by(Candidate::before);
        self.candidates.truncate(self.top_k);
    }
}

/// The token of the largest logit, the first among equals; `None` if no logit is a number.
fn likeliest(logits: &[f32]) -> Option<Token> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, top)| logit > top) {
            best = Some((i, logit));
        }
    }
    best.map(|(i, _)| Token(i as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_best_and_no_nan() {
        let mut chain = Chain::new(0.0, 40, 0.95, 1, 4);
        assert_eq!(chain.sample(&[f32::NAN, 2.0, 3.0, 3.0]), Some(Token(2)));
        assert_eq!(chain.sample(&[f32::NAN; 4]), None);
        assert_eq!(Chain::new(1.0, 0, 1.0, 1, 4).sample(&[f32::NAN; 4]), None);
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), f32::NEG_INFINITY];
        let mut chain = Chain::new(1.0, 0, 1.0, 3, 4);
        let mut counts = [0; 4];
        for _ in 0..80_000 {
            counts[chain.sample(&logits).expect("a number").index()] += 1;
        }
        for (count, wanted) in counts.into_iter().zip([10_000, 20_000, 50_000, 0]) {
            assert!(i32::abs(count - wanted) < 600, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits: Vec<f32> = (0..1_000).map(|i| ((i * 37) % 1_000) as f32 / 100.0).collect();
        let best: Vec<usize> = (0..1_000).filter(|i| (i * 37) % 1_000 >= 995).collect();
        let mut chain = Chain::new(5.0, 5, 1.0, 1, 1_000);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            seen.insert(chain.sample(&logits).expect("a number").index());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), best);
        let mut chain = Chain::new(1.0, 0, 0.5, 1, 3);
        assert!(
            (0..100).all(|_| chain.sample(&[1.0, 3.0, 0.0]) == Some(Token(1))),
            "0.8 of the mass is enough"
        );
    }

    #[test]
    fn a_seed_fixes_the_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let draw = |seed| -> Vec<_> {
            let mut chain = Chain::new(0.8, 40, 0.95, seed, 100);
            (0..20).map(|_| chain.sample(&logits)).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
