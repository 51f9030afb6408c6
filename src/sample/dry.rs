//! DRY, "don't repeat yourself": a token that would prolong a repetition becomes less likely, the more the longer it is
//! (p-e-w, text-generation-webui pull request 5637, 2024; llama.cpp `llama_sampler_dry`).

use crate::base::Token;

/// The settings of DRY.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dry {
    /// What is taken off a token that makes a repetition one longer than allowed; 0 is off.
    pub multiplier: f32,
    /// Each further token of the repetition multiplies that by this; 1 and more.
    pub base: f32,
    /// Repetitions of so many tokens are allowed.
    pub allowed_length: u32,
    /// So many tokens back it looks.
    pub last_n: u32,
}

impl Default for Dry {
    fn default() -> Self {
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: 1024 }
    }
}

/// A token of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Past {
    pub(super) token: Token,
    /// No repetition reaches over it, and it is never made less likely.
    pub(super) breaks: bool,
}

/// Largest penalty: far below any logit, and no number overflows by it.
const PENALTY_MAX: f32 = 1e6;

/// Room for the lengths of repetitions.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    /// `[n]`: how many tokens before each place, counted from the end, are the same as at the end.
    same: Vec<u32>,
    /// Tokens that would go on, with the length that they would go on from.
    next: Vec<(Token, u32)>,
}

impl Lengths {
    /// Room for a past of `n` tokens.
    pub(super) fn new(n: usize) -> Self {
        Self { same: Vec::with_capacity(n), next: Vec::with_capacity(n) }
    }

    /// Takes the penalty off each token of `scores` that would prolong a repetition of the end of `past`.
    pub(super) fn penalize(&mut self, scores: &mut [f32], past: &[Past], dry: &Dry) {
        let past = &past[past.len().saturating_sub(dry.last_n as usize)..];
        let whole = past.iter().rev().take_while(|p| !p.breaks).count();
        if whole < dry.allowed_length.max(1) as usize {
            return;
        }
        self.measure(past);
        self.next.clear();
        for (back, &same) in self.same.iter().enumerate().skip(1) {
            let after = past[past.len() - back];
            let len = same.min(whole as u32);
            if len >= dry.allowed_length.max(1) && !after.breaks {
                self.next.push((after.token, len));
            }
        }
        self.next.sort_unstable();
        for run in self.next.chunk_by(|a, b| a.0 == b.0) {
            let Some(&(token, len)) = run.last() else { continue };
            let excess = i32::try_from(len.saturating_sub(dry.allowed_length)).unwrap_or(i32::MAX);
            if let Some(score) = scores.get_mut(token.index()) {
                *score -= (dry.multiplier * dry.base.powi(excess)).min(PENALTY_MAX);
            }
        }
    }

    /// The Z function of the past read backwards (Gusfield, "Algorithms on Strings, Trees, and Sequences", 1997), in
    /// linear time: what repeats without end costs no more.
    fn measure(&mut self, past: &[Past]) {
        let n = past.len();
        let at = |i: usize| past[n - 1 - i].token;
        self.same.clear();
        self.same.push(n as u32);
        // The stretch [from, to) is the same as the beginning.
        let (mut from, mut to) = (0, 0);
        for i in 1..n {
            let mut same = if i < to { (self.same[i - from] as usize).min(to - i) } else { 0 };
            while i + same < n && at(same) == at(i + same) {
                same += 1;
            }
            if i + same > to {
                (from, to) = (i, i + same);
            }
            self.same.push(same as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Dry = Dry { multiplier: 1.0, base: 2.0, allowed_length: 2, last_n: 100 };

    /// What is taken off each of 10 tokens after `text`, whose digits are tokens and whose `.` is token 0 and breaks.
    fn taken(text: &str, dry: Dry) -> Vec<f32> {
        let digit = |c: char| Past { token: Token(c.to_digit(10).unwrap_or(0)), breaks: c == '.' };
        let past: Vec<Past> = text.chars().map(digit).collect();
        let mut scores = [0.0; 10];
        Lengths::new(past.len()).penalize(&mut scores, &past, &dry);
        scores.iter().map(|x| -x).collect()
    }

    #[test]
    fn what_would_go_on_repeating_costs() {
        let one =
            |token: usize, x: f32| (0..10).map(|t| if t == token { x } else { 0.0 }).collect::<Vec<_>>();
        assert_eq!(taken("1234512", ON), one(3, 1.0), "12 is allowed, 123 is one too long");
        assert_eq!(taken("12345123", ON), one(4, 2.0));
        assert_eq!(taken("123451234", ON), one(5, 4.0));
        assert_eq!(taken("12345671", ON), one(0, 0.0), "one token is no repetition yet");
        assert_eq!(taken("123129412", ON), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(taken("4123591236123", ON)[5..7], [2.0, 2.0], "after 123 came 5 and 6");
        assert_eq!(taken("1234512", Dry { last_n: 4, ..ON }), one(0, 0.0), "too far back");
        assert_eq!(taken("", ON), one(0, 0.0));
    }

    #[test]
    fn breakers_end_a_repetition() {
        assert!(taken("12.4512.4", ON).iter().all(|x| *x == 0.0));
        assert!(taken("123.123", ON).iter().all(|x| *x == 0.0), "what breaks is never less likely");
        assert_eq!(taken("9.1234512", ON)[3], 1.0);
    }

    #[test]
    fn endless_repetition_is_quick_and_bounded() {
        let past = vec![Past { token: Token(1), breaks: false }; 4096];
        let mut scores = [0.0; 2];
        let mut lengths = Lengths::new(past.len());
        for _ in 0..50 {
            scores = [0.0; 2];
            lengths.penalize(&mut scores, &past, &Dry { base: 4.0, last_n: 4096, ..ON });
        }
        assert_eq!(scores, [0.0, -PENALTY_MAX]);
    }

    /// Against counting by hand.
    #[test]
    fn lengths_are_those_of_the_plain_definition() {
        arbtest::arbtest(|u| {
            let n = u.int_in_range(1..=30)?;
            let mut past = Vec::new();
            for _ in 0..n {
                past.push(Past { token: Token(u.int_in_range(0..=2)?), breaks: false });
            }
            let mut lengths = Lengths::new(n);
            lengths.measure(&past);
            for (i, &same) in lengths.same.iter().enumerate() {
                let plain = (0..n - i).take_while(|k| past[n - 1 - k] == past[n - 1 - i - k]).count();
                assert_eq!(same as usize, plain, "{past:?} at {i}");
            }
            Ok(())
        });
    }
}
