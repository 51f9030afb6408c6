//! The sampling chain: bias, penalties, DRY, then either the likeliest token (temperature 0) or temperature, a cut by
//! top-k, typical, top-p and min-p, or instead of these by mirostat 2, and one draw.

use super::candidates::{self, Candidate};
use super::dry::{Dry, Lengths, Past};
use crate::base::Token;
use crate::base::rng::Rng;

/// How tokens are drawn. Default values as `Default` says; a sampler that is off costs nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the k likeliest; 0 is off.
    pub top_k: u32,
    /// Keep the likeliest with this share together; 1 is off.
    pub top_p: f32,
    /// Keep those at least this many times as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Keep the most typical with this share together; 1 is off.
    pub typical_p: f32,
    /// Divides the logit of a token seen lately; 1 is off.
    pub repeat_penalty: f32,
    /// Taken off for each time that a token was seen lately; 0 is off.
    pub frequency_penalty: f32,
    /// Taken off a token seen lately; 0 is off.
    pub presence_penalty: f32,
    /// So many tokens are lately.
    pub repeat_last_n: u32,
    /// Against repetitions of several tokens.
    pub dry: Dry,
    /// Steers the surprise instead of cutting by rank and share; `None` is off.
    pub mirostat: Option<Mirostat>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(Token, f32)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last_n: 64,
            dry: Dry::default(),
            mirostat: None,
            logit_bias: Vec::new(),
        }
    }
}

/// The settings of mirostat 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// The surprise to keep to, in bits.
    pub tau: f32,
    /// How fast it is approached.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

/// Draws tokens. The same settings, seed, past and logits give the same tokens. Nothing is allocated after
/// [`Self::new`].
#[derive(Debug)]
pub struct Chain {
    settings: Settings,
    rng: Rng,
    /// Most surprise of a token, in bits: mirostat's state.
    mu: f32,
    /// Never drawn while an end is not allowed.
    ends: Vec<Token>,
    /// The latest tokens; up to twice [`Self::n_past`], so that it is cut only now and then.
    past: Vec<Past>,
    /// Those of them that are penalized, sorted.
    seen: Vec<Token>,
    lengths: Lengths,
    /// `[n_vocab]`: the logits, changed.
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Chain {
    /// A chain for logits of `n_vocab` tokens. `ends` end an answer; none need be named where an answer may always end.
    #[must_use]
    pub fn new(settings: Settings, ends: &[Token], seed: u64, n_vocab: usize) -> Self {
        let mut chain = Self {
            rng: Rng::new(seed),
            mu: settings.mirostat.map_or(0.0, |m| 2.0 * m.tau),
            ends: ends.to_vec(),
            past: Vec::new(),
            seen: Vec::new(),
            lengths: Lengths::default(),
            scores: Vec::new(),
            candidates: Vec::new(),
            settings,
        };
        // Twice k: candidates are collected and cut down in turns.
        let room = match (chain.settings.temperature > 0.0, chain.settings.mirostat) {
            (false, _) => 0,
            (true, Some(_)) => n_vocab,
            (true, None) => (2 * chain.top_k(n_vocab)).min(n_vocab),
        };
        chain.candidates.reserve_exact(room);
        if chain.n_past() > 0 || !ends.is_empty() || !chain.settings.logit_bias.is_empty() {
            chain.scores.reserve_exact(n_vocab);
        }
        chain.past.reserve_exact(2 * chain.n_past());
        if chain.penalizes() {
            chain.seen.reserve_exact(chain.settings.repeat_last_n as usize);
        }
        if chain.dries() {
            chain.lengths = Lengths::new(chain.settings.dry.last_n as usize);
        }
        chain
    }

    fn penalizes(&self) -> bool {
        let s = &self.settings;
        s.repeat_penalty != 1.0 || s.frequency_penalty != 0.0 || s.presence_penalty != 0.0
    }

    fn dries(&self) -> bool {
        self.settings.dry.multiplier > 0.0
    }

    /// So many tokens of the past count.
    #[must_use]
    pub fn n_past(&self) -> usize {
        let lately = if self.penalizes() { self.settings.repeat_last_n } else { 0 };
        let dry = if self.dries() { self.settings.dry.last_n } else { 0 };
        lately.max(dry) as usize
    }

    /// Hears of a token of the prompt or the answer. `breaks`: no repetition reaches over it.
    pub fn accept(&mut self, token: Token, breaks: bool) {
        let n = self.n_past();
        if n == 0 {
            return;
        }
        if self.past.len() >= 2 * n {
            self.past.drain(..self.past.len() - n);
        }
        self.past.push(Past { token, breaks });
    }

    /// The next token; `None` if no logit is a number. `may_end`: whether it may be one that ends the answer.
    pub fn sample(&mut self, logits: &[f32], may_end: bool) -> Option<Token> {
        let is_changed = self.n_past() > 0 || !self.settings.logit_bias.is_empty() || !may_end;
        if !is_changed {
            return self.choose(logits);
        }
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        scores.extend_from_slice(logits);
        self.change(&mut scores, may_end);
        let token = self.choose(&scores);
        self.scores = scores;
        token
    }

    /// Bias, penalties and what is forbidden.
    fn change(&mut self, scores: &mut [f32], may_end: bool) {
        let (penalizes, dries) = (self.penalizes(), self.dries());
        let Self { settings: s, past, seen, lengths, .. } = self;
        for (token, bias) in &s.logit_bias {
            if let Some(score) = scores.get_mut(token.index()) {
                *score += bias;
            }
        }
        if penalizes {
            seen.clear();
            seen.extend(past.iter().rev().take(s.repeat_last_n as usize).map(|p| p.token));
            seen.sort_unstable();
            let (repeat, frequency) = (s.repeat_penalty, s.frequency_penalty);
            candidates::penalize(scores, seen, repeat, frequency, s.presence_penalty);
        }
        if dries {
            lengths.penalize(scores, past, &s.dry);
        }
        for end in self.ends.iter().filter(|_| !may_end) {
            if let Some(score) = scores.get_mut(end.index()) {
                *score = f32::NEG_INFINITY;
            }
        }
    }

    fn choose(&mut self, scores: &[f32]) -> Option<Token> {
        if self.settings.temperature <= 0.0 {
            return likeliest(scores);
        }
        if let Some(mirostat) = self.settings.mirostat {
            return self.steer(scores, mirostat);
        }
        self.collect(scores, self.top_k(scores.len()), f32::NEG_INFINITY);
        let (s, list) = (&self.settings, &mut self.candidates);
        candidates::heat(list, s.temperature);
        candidates::typical(list, s.typical_p);
        candidates::top_p(list, s.top_p);
        candidates::min_p(list, s.min_p);
        self.draw().map(|c| c.token)
    }

    fn top_k(&self, n_vocab: usize) -> usize {
        match self.settings.top_k as usize {
            0 => n_vocab,
            k => k.min(n_vocab),
        }
    }

    /// Mirostat 2: candidates up to a surprise that follows how surprising the last draw was.
    fn steer(&mut self, scores: &[f32], mirostat: Mirostat) -> Option<Token> {
        let floor = candidates::surprise_floor(scores, self.settings.temperature, self.mu);
        self.collect(scores, scores.len(), floor);
        candidates::heat(&mut self.candidates, self.settings.temperature);
        let drawn = self.draw()?;
        self.mu -= mirostat.eta * (-drawn.p.log2() - mirostat.tau);
        Some(drawn.token)
    }

    fn draw(&mut self) -> Option<Candidate> {
        candidates::softmax(&mut self.candidates);
        let mut left = self.rng.next_f32();
        let drawn = self.candidates.iter().find(|c| {
            left -= c.p;
            left < 0.0
        });
        // Rounding may leave a little at the end.
        drawn.or_else(|| self.candidates.iter().rfind(|c| c.p > 0.0)).copied()
    }

    /// The `top_k` best tokens with scores from `floor` on, best first.
    fn collect(&mut self, scores: &[f32], top_k: usize, mut floor: f32) {
        let list = &mut self.candidates;
        list.clear();
        for (i, &score) in scores.iter().enumerate() {
            if !(score.is_finite() && score >= floor) {
                continue;
            }
            if list.len() == list.capacity() {
                list.select_nth_unstable_by(top_k - 1, Candidate::before);
                list.truncate(top_k);
                // Below this a token cannot be among the best.
                floor = list[top_k - 1].logit;
                if score < floor {
                    continue;
                }
            }
            list.push(Candidate::new(Token(i as u32), score));
        }
        list.sort_unstable_by(Candidate::before);
        list.truncate(top_k);
    }
}

/// The token of the largest score, the first among equals; `None` if no score is a number.
fn likeliest(scores: &[f32]) -> Option<Token> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &score) in scores.iter().enumerate() {
        if score.is_finite() && best.is_none_or(|(_, top)| score > top) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| Token(i as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All off.
    fn plain() -> Settings {
        Settings { temperature: 1.0, top_k: 0, top_p: 1.0, ..Settings::default() }
    }

    fn every_one() -> Settings {
        Settings {
            min_p: 0.02,
            typical_p: 0.95,
            repeat_penalty: 1.2,
            frequency_penalty: 0.1,
            presence_penalty: 0.1,
            dry: Dry { multiplier: 0.8, ..Dry::default() },
            logit_bias: vec![(Token(3), 1.5), (Token(1_000_000), 1.0)],
            ..Settings::default()
        }
    }

    fn draws(settings: &Settings, seed: u64, n: usize) -> Vec<u32> {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let mut chain = Chain::new(settings.clone(), &[Token(6)], seed, logits.len());
        (0..n)
            .map(|i| {
                let token = chain.sample(&logits, i >= 3).expect("a number");
                chain.accept(token, token.0.is_multiple_of(10));
                token.0
            })
            .collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best_and_no_nan() {
        let mut chain = Chain::new(Settings { temperature: 0.0, ..plain() }, &[], 1, 4);
        assert_eq!(chain.sample(&[f32::NAN, 2.0, 3.0, 3.0], true), Some(Token(2)));
        assert_eq!(chain.sample(&[f32::NAN; 4], true), None);
    }

    #[test]
    fn logits_that_are_no_numbers_never_stop_a_chain() {
        for settings in
            [plain(), every_one(), Settings { mirostat: Some(Mirostat::default()), ..every_one() }]
        {
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut chain = Chain::new(settings.clone(), &[Token(0)], 1, 4);
                assert_eq!(chain.sample(&[x; 4], true), None);
                assert_eq!(chain.sample(&[x, x, 1.0, x], false), Some(Token(2)));
                for extreme in [f32::MAX, f32::MIN, f32::MIN_POSITIVE] {
                    for _ in 0..20 {
                        let token = chain.sample(&[x, extreme, 0.0, extreme], false).expect("a number");
                        chain.accept(token, false);
                    }
                }
            }
        }
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), f32::NEG_INFINITY];
        let mut chain = Chain::new(plain(), &[], 3, 4);
        let mut counts = [0; 4];
        for _ in 0..80_000 {
            counts[chain.sample(&logits, true).expect("a number").index()] += 1;
        }
        for (count, wanted) in counts.into_iter().zip([10_000, 20_000, 50_000, 0]) {
            assert!(i32::abs(count - wanted) < 600, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits: Vec<f32> = (0..1_000).map(|i| ((i * 37) % 1_000) as f32 / 100.0).collect();
        let best: Vec<usize> = (0..1_000).filter(|i| (i * 37) % 1_000 >= 995).collect();
        let mut chain = Chain::new(Settings { temperature: 5.0, top_k: 5, ..plain() }, &[], 1, 1_000);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            seen.insert(chain.sample(&logits, true).expect("a number").index());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), best);
        let mut chain = Chain::new(Settings { top_p: 0.5, ..plain() }, &[], 1, 3);
        assert!(
            (0..100).all(|_| chain.sample(&[1.0, 3.0, 0.0], true) == Some(Token(1))),
            "0.8 of the mass is enough"
        );
    }

    #[test]
    fn a_seed_fixes_the_tokens() {
        for settings in
            [plain(), every_one(), Settings { mirostat: Some(Mirostat::default()), ..every_one() }]
        {
            assert_eq!(draws(&settings, 1, 200), draws(&settings, 1, 200));
            assert_ne!(draws(&settings, 1, 200), draws(&settings, 2, 200));
        }
    }

    #[test]
    fn bias_and_ends() {
        let logits = [0.0, 1.0, 2.0];
        let greedy = |bias, may_end| {
            let settings = Settings { temperature: 0.0, logit_bias: vec![(Token(0), bias)], ..plain() };
            Chain::new(settings, &[Token(2)], 1, 3).sample(&logits, may_end)
        };
        assert_eq!((greedy(0.0, true), greedy(0.0, false)), (Some(Token(2)), Some(Token(1))));
        assert_eq!((greedy(1.5, false), greedy(2.5, true)), (Some(Token(0)), Some(Token(0))));
    }

    #[test]
    fn penalties_look_at_the_latest_tokens_only() {
        let settings = Settings { temperature: 0.0, presence_penalty: 2.0, repeat_last_n: 2, ..plain() };
        let mut chain = Chain::new(settings, &[], 1, 3);
        let mut drawn = Vec::new();
        for _ in 0..7 {
            let token = chain.sample(&[0.0, 1.0, 1.5], true).expect("a number");
            chain.accept(token, false);
            drawn.push(token.0);
        }
        assert_eq!(drawn, [2, 1, 0, 2, 1, 0, 2]);
    }

    /// Mirostat holds the mean surprise near its target, where top-p would not know of it.
    #[test]
    fn mirostat_keeps_to_its_surprise() {
        let logits: Vec<f32> = (1..=1000).map(|i| -(i as f32).ln()).collect();
        for tau in [2.0, 4.0, 6.0] {
            let settings = Settings { mirostat: Some(Mirostat { tau, eta: 0.1 }), ..plain() };
            let mut chain = Chain::new(settings, &[], 1, logits.len());
            let mut surprise = 0.0;
            for i in 0..4000 {
                let mu = chain.mu;
                assert!(chain.sample(&logits, true).is_some());
                // The change of mu tells what the draw was worth.
                surprise += if i < 1000 { 0.0 } else { (mu - chain.mu) / 0.1 + tau };
            }
            assert!((surprise / 3000.0 - tau).abs() < 0.1, "{tau}: {}", surprise / 3000.0);
        }
    }
}
