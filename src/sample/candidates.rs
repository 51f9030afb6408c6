//! The samplers, each a function that cuts a list of candidates: the largest logit first, none twice.
//!
//! Names and definitions are those of llama.cpp (`src/llama-sampling.cpp`, `tools/main/README.md`), which follow the
//! papers named at each. A cut always leaves one candidate; the next one measures what is left anew.

use std::cmp::Ordering;

use crate::base::Token;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: Token,
    pub(super) logit: f32,
    /// Its share of the candidates that are left, once [`softmax`] has said so.
    pub(super) p: f32,
}

impl Candidate {
    pub(super) fn new(token: Token, logit: f32) -> Self {
        Self { token, logit, p: 0.0 }
    }

    /// The order of preference: larger logits first, smaller ids among equals.
    pub(super) fn before(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Divides the logits by `temperature`, above 0. They become relative to the largest, so that a small temperature cannot
/// overflow.
pub(super) fn heat(list: &mut [Candidate], temperature: f32) {
    let Some(top) = list.first().map(|c| c.logit) else { return };
    for c in list {
        c.logit = (c.logit - top) / temperature;
    }
}

/// Gives each candidate its share.
pub(super) fn softmax(list: &mut [Candidate]) {
    let Some(top) = list.first().map(|c| c.logit) else { return };
    let mut total = 0.0;
    for c in &mut *list {
        c.p = (c.logit - top).exp();
        total += c.p;
    }
    for c in list {
        c.p /= total;
    }
}

/// Keeps the likeliest that have the share `p` together (Holtzman et al., "The Curious Case of Neural Text
/// Degeneration", 2020). 1 keeps all.
pub(super) fn top_p(list: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    softmax(list);
    let mut kept = 0.0;
    let enough = list.iter().position(|c| {
        kept += c.p;
        kept >= p
    });
    list.truncate(enough.map_or(list.len(), |i| i + 1));
}

/// Keeps those that are at least `p` times as likely as the likeliest (Nguyen et al., "Turning Up the Heat: Min-p
/// Sampling for Creative and Coherent LLM Outputs", 2024). 0 keeps all.
pub(super) fn min_p(list: &mut Vec<Candidate>, p: f32) {
    let Some(top) = list.first().map(|c| c.logit).filter(|_| p > 0.0) else { return };
    let floor = top + p.ln();
    list.truncate(list.partition_point(|c| c.logit >= floor).max(1));
}

/// Keeps those whose surprise is nearest to the expected one and that have the share `p` together (Meister et al.,
/// "Locally Typical Sampling", 2022). 1 keeps all.
pub(super) fn typical(list: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    softmax(list);
    // What cannot be drawn has no surprise.
    list.retain(|c| c.p > 0.0);
    let entropy: f32 = -list.iter().map(|c| c.p * c.p.ln()).sum::<f32>();
    let distance = |c: &Candidate| (-c.p.ln() - entropy).abs();
    list.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.before(b)));
    let mut kept = 0.0;
    let enough = list.iter().position(|c| {
        kept += c.p;
        kept > p
    });
    list.truncate(enough.map_or(list.len(), |i| i + 1));
    list.sort_unstable_by(Candidate::before);
}

/// The logit below which a token's surprise is above `bits`, among `scores` divided by `temperature`; at most the
/// largest. The cut of mirostat 2 (Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls
/// Perplexity", 2021).
pub(super) fn surprise_floor(scores: &[f32], temperature: f32, bits: f32) -> f32 {
    let numbers = || scores.iter().copied().filter(|x| x.is_finite());
    let top = numbers().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = numbers().map(|x| f64::from((x - top) / temperature).exp()).sum();
    let floor =
        f64::from(top) + f64::from(temperature) * (total.ln() - f64::from(bits) * std::f64::consts::LN_2);
    top.min(floor as f32)
}

/// Makes tokens of `seen`, which is sorted, less likely: a positive logit is divided by `repeat`, another multiplied
/// (Keskar et al., "CTRL", 2019), then `frequency` is taken off for each time it was seen and `presence` once.
pub(super) fn penalize(scores: &mut [f32], seen: &[Token], repeat: f32, frequency: f32, presence: f32) {
    for run in seen.chunk_by(|a, b| a == b) {
        let Some(score) = run.first().and_then(|token| scores.get_mut(token.index())) else { continue };
        *score = if *score > 0.0 { *score / repeat } else { *score * repeat };
        *score -= run.len() as f32 * frequency + presence;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(logits: &[f32]) -> Vec<Candidate> {
        let mut list: Vec<_> =
            logits.iter().enumerate().map(|(i, &x)| Candidate::new(Token(i as u32), x)).collect();
        list.sort_unstable_by(Candidate::before);
        list
    }

    fn tokens(list: &[Candidate]) -> Vec<u32> {
        list.iter().map(|c| c.token.0).collect()
    }

    /// Logits of the shares 0.1, 0.5, 0.05, 0.3, 0.05.
    fn shares() -> Vec<Candidate> {
        list(&[0.1_f32.ln(), 0.5_f32.ln(), 0.05_f32.ln(), 0.3_f32.ln(), 0.05_f32.ln()])
    }

    #[test]
    fn softmax_and_temperature() {
        let mut a = shares();
        softmax(&mut a);
        for (c, p) in a.iter().zip([0.5, 0.3, 0.1, 0.05, 0.05]) {
            assert!((c.p - p).abs() < 1e-6, "{a:?}");
        }
        // At temperature 0.5 the shares are squared: 0.25, 0.09, 0.01, 0.0025, 0.0025 of 0.355.
        heat(&mut a, 0.5);
        softmax(&mut a);
        assert!((a[0].p - 0.25 / 0.355).abs() < 1e-6 && (a[2].p - 0.01 / 0.355).abs() < 1e-6, "{a:?}");
        heat(&mut a, f32::MIN_POSITIVE);
        softmax(&mut a);
        assert_eq!((a[0].p, a[1].p), (1.0, 0.0));
    }

    #[test]
    fn top_p_keeps_what_reaches_the_share() {
        for (p, kept) in [(0.4, 1), (0.79, 2), (0.81, 3), (0.999, 5), (1.0, 5), (1e-9, 1)] {
            let mut a = shares();
            top_p(&mut a, p);
            assert_eq!(tokens(&a), [1, 3, 0, 2, 4][..kept], "{p}");
        }
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        for (p, kept) in [(0.0, 5), (0.05, 5), (0.15, 3), (0.5, 2), (0.7, 1), (1.0, 1)] {
            let mut a = shares();
            min_p(&mut a, p);
            assert_eq!(tokens(&a), [1, 3, 0, 2, 4][..kept], "{p}");
        }
    }

    #[test]
    fn typical_keeps_what_surprises_as_expected() {
        // Entropy 1.2376 nats. Surprises 0.693, 1.204, 2.303, 2.996, 2.996: distances 0.544, 0.034, 1.065, 1.758.
        for (p, kept) in [
            (0.2, vec![3]),
            (0.29, vec![3]),
            (0.7, vec![1, 3]),
            (0.85, vec![1, 3, 0]),
            (1.0, vec![1, 3, 0, 2, 4]),
        ] {
            let mut a = shares();
            typical(&mut a, p);
            assert_eq!(tokens(&a), kept, "{p}");
        }
        let mut a = list(&[0.0, f32::MIN]);
        typical(&mut a, 0.5);
        assert_eq!(tokens(&a), [0]);
    }

    #[test]
    fn mirostat_cuts_at_a_surprise() {
        let scores = [0.1_f32.ln(), 0.5_f32.ln(), 0.05_f32.ln(), 0.3_f32.ln(), f32::NAN];
        // 0.95 in all: surprises in bits are 3.25, 0.93, 4.25, 1.66.
        for (bits, kept) in [(5.0, 4), (4.0, 3), (2.0, 2), (1.0, 1), (0.0, 1), (-9.0, 1)] {
            let floor = surprise_floor(&scores, 1.0, bits);
            assert_eq!(scores.iter().filter(|x| **x >= floor).count(), kept, "{bits}: {floor}");
        }
        assert_eq!(surprise_floor(&[f32::NAN], 1.0, 5.0), f32::NEG_INFINITY);
    }

    #[test]
    fn penalties_count_what_was_seen() {
        let mut scores = [2.0, -1.0, 3.0, f32::NAN];
        let seen = [Token(0), Token(0), Token(1), Token(9)];
        penalize(&mut scores, &seen, 2.0, 0.5, 0.25);
        // 2/2 - 2*0.5 - 0.25; -1*2 - 0.5 - 0.25.
        assert_eq!(scores[..3], [-0.25, -2.75, 3.0]);
    }
}
