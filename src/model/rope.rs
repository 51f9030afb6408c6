//! Rotary positions: the angle of each pair of dimensions at each position, and the ways to stretch a context.
//!
//! Su et al., "RoFormer" (2021); linear: Chen et al., "Extending Context Window …" (2023); YaRN: Peng et al. (2023);
//! llama3: the factors of `rope_freqs.weight` in GGUF.

/// How a model stretches its trained context.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    /// It does not.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Fast dimensions as they are, slow ones divided, a ramp between; cos and sin scaled.
    Yarn {
        /// The factor.
        factor: f32,
        /// Context before stretching.
        n_ctx_orig: usize,
        /// Turns within that context above which a dimension keeps its speed.
        beta_fast: f32,
        /// Turns below which it is divided.
        beta_slow: f32,
        /// Scale of cos and sin; `None`: `0.1 ln(factor) + 1`.
        magnitude: Option<f32>,
    },
}

/// Angles of a model: position `p` turns pair `i` by `p * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angles {
    /// `[n_rot / 2]`, radians a position.
    inv_freq: Vec<f32>,
    /// Scale of cos and sin.
    magnitude: f32,
}

impl Angles {
    /// Angles for `n_rot` rotated dimensions. `factors` divide the speeds, if there are any (`[n_rot / 2]`).
    #[must_use]
    pub(super) fn new(n_rot: usize, base: f32, scaling: &Scaling, factors: Option<&[f32]>) -> Self {
        let half = n_rot / 2;
        let speed = |i: usize| 1.0 / base.powf((2 * i) as f32 / n_rot as f32);
        let mut magnitude = 1.0;
        let mut inv_freq: Vec<f32> = match *scaling {
            Scaling::None => (0..half).map(speed).collect(),
            Scaling::Linear { factor } => (0..half).map(|i| speed(i) / factor).collect(),
            Scaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, magnitude: m } => {
                magnitude = m.unwrap_or(0.1 * factor.ln() + 1.0);
                let (low, high) = yarn_range(n_rot, base, n_ctx_orig, beta_fast, beta_slow);
                (0..half)
                    .map(|i| {
                        let keep = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        speed(i) / factor * (1.0 - keep) + speed(i) * keep
                    })
                    .collect()
            }
        };
        for (f, by) in inv_freq.iter_mut().zip(factors.unwrap_or_default()) {
            *f /= by;
        }
        Self { inv_freq, magnitude }
    }

    /// Writes cos and sin of position `pos`, `[n_rot / 2]` each.
    pub(super) fn at(&self, pos: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let (y, x) = (pos as f32 * f).sin_cos();
            (*c, *s) = (x * self.magnitude, y * self.magnitude);
        }
    }
}

/// First and last pair of YaRN's ramp: the pairs that turn `beta_fast` and `beta_slow` times in the old context,
/// widened to whole numbers, apart by at least a thousandth.
fn yarn_range(n_rot: usize, base: f32, n_ctx_orig: usize, beta_fast: f32, beta_slow: f32) -> (f32, f32) {
    let pair = |turns: f32| {
        n_rot as f32 * (n_ctx_orig as f32 / (turns * 2.0 * std::f32::consts::PI)).ln() / (2.0 * base.ln())
    };
    let low = pair(beta_fast).floor().max(0.0);
    let high = pair(beta_slow).ceil().min((n_rot - 1) as f32);
    (low, if high - low < 0.001 { low + 0.001 } else { high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_changes_the_slow_dimensions_only() {
        let plain = Angles::new(64, 10_000.0, &Scaling::None, None);
        assert_eq!(plain.inv_freq[0], 1.0);
        let linear = Angles::new(64, 10_000.0, &Scaling::Linear { factor: 4.0 }, None);
        assert!(plain.inv_freq.iter().zip(&linear.inv_freq).all(|(a, b)| *b == a / 4.0));
        let yarn =
            Scaling::Yarn { factor: 4.0, n_ctx_orig: 256, beta_fast: 32.0, beta_slow: 1.0, magnitude: None };
        let yarn = Angles::new(64, 10_000.0, &yarn, None);
        assert_eq!(yarn.inv_freq[0], plain.inv_freq[0]);
        assert_eq!(yarn.inv_freq[31], plain.inv_freq[31] / 4.0);
        assert!((yarn.magnitude - 1.138_629_4).abs() < 1e-6);
        let halved = Angles::new(4, 10_000.0, &Scaling::None, Some(&[1.0, 2.0]));
        assert_eq!(halved.inv_freq[1], Angles::new(4, 10_000.0, &Scaling::None, None).inv_freq[1] / 2.0);
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        halved.at(0, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([1.0, 1.0], [0.0, 0.0]));
    }
}
