//! How likely the model found a token, before bias, penalties and cuts.

use crate::base::Token;

/// The natural logarithm of the probability of `chosen`, and of the `n` likeliest tokens into `top`, best first.
/// `logits` that are no numbers have no part in it.
pub fn logprobs(logits: &[f32], chosen: Token, n: usize, top: &mut Vec<(Token, f32)>) -> f32 {
    let numbers = || logits.iter().enumerate().filter(|(_, x)| x.is_finite());
    let max = numbers().fold(f32::NEG_INFINITY, |max, (_, &x)| max.max(x));
    let total: f64 = numbers().map(|(_, &x)| f64::from(x - max).exp()).sum();
    let log = |x: f32| (f64::from(x) - f64::from(max) - total.ln()) as f32;
    top.clear();
    for (i, &x) in numbers() {
        let at = top.partition_point(|&(_, y)| y >= x);
        if at < n {
            if top.len() == n {
                top.pop();
            }
            top.insert(at, (Token(i as u32), x));
        }
    }
    for (_, x) in &mut *top {
        *x = log(*x);
    }
    logits.get(chosen.index()).copied().filter(|x| x.is_finite()).map_or(f32::MIN, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_shares() {
        // Shares 0.1, 0.6, 0.3; whatever is added to all logits changes nothing.
        let logits =
            [0.1_f32.ln() + 7.0, f32::NAN, 0.6_f32.ln() + 7.0, 0.3_f32.ln() + 7.0, f32::NEG_INFINITY];
        let mut top = Vec::with_capacity(2);
        let chosen = logprobs(&logits, Token(0), 2, &mut top);
        assert!((chosen - 0.1_f32.ln()).abs() < 1e-5, "{chosen}");
        assert_eq!(top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [2, 3]);
        assert!((top[0].1 - 0.6_f32.ln()).abs() < 1e-5 && (top[1].1 - 0.3_f32.ln()).abs() < 1e-5, "{top:?}");
        logprobs(&logits, Token(2), 9, &mut top);
        assert_eq!(top.len(), 3);
        logprobs(&logits, Token(2), 0, &mut top);
        assert!(top.is_empty());
        assert_eq!(logprobs(&[f32::NAN; 2], Token(0), 2, &mut top), f32::MIN);
        let equal = logprobs(&[1.0; 4], Token(3), 2, &mut top);
        assert!((equal - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [0, 1], "smaller ids among equals");
    }
}
