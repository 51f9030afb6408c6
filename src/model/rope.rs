//! Rotary positions: the angle of each pair of dimensions at each position, and the ways to stretch a context.
//!
//! Su et al., "RoFormer" (2021); linear: Chen et al., "Extending Context Window …" (2023); YaRN: Peng et al. (2023);
//! longrope: Ding et al. (2024); llama3 and Gemma 4: the factors of `rope_freqs.weight` in GGUF.

use super::ModelError;
use super::arch::WindowRope;
use super::hyper::{Hyper, Keys};
use crate::base::limits::N_CTX_MAX;

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
        /// The ramp begins and ends at whole pairs.
        truncate: bool,
        /// Scale of cos and sin.
        magnitude: f32,
    },
}

/// What speeds are divided by, `[n_rot / 2]` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Factors {
    /// Always.
    pub freqs: Option<Vec<f32>>,
    /// In contexts up to the original one (longrope).
    pub short: Option<Vec<f32>>,
    /// In longer ones.
    pub long: Option<Vec<f32>>,
}

/// Angles of a model: position `p` turns pair `i` by `p * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angles {
    base: f32,
    /// `[n_rot / 2]`, radians a position.
    inv_freq: Vec<f32>,
    /// The same in a context beyond so many positions.
    long: Option<(usize, Vec<f32>)>,
    /// Scale of cos and sin.
    magnitude: f32,
}

impl Angles {
    /// Angles for `n_rot` rotated dimensions.
    #[must_use]
    pub(super) fn new(n_rot: usize, base: f32, scaling: &Scaling) -> Self {
        let half = n_rot / 2;
        let speed = |i: usize| 1.0 / base.powf((2 * i) as f32 / n_rot as f32);
        let mut magnitude = 1.0;
        let inv_freq: Vec<f32> = match *scaling {
            Scaling::None => (0..half).map(speed).collect(),
            Scaling::Linear { factor } => (0..half).map(|i| speed(i) / factor).collect(),
            Scaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, truncate, magnitude: m } => {
                magnitude = m;
                let (low, high) = yarn_range(n_rot, base, n_ctx_orig, beta_fast, beta_slow, truncate);
                (0..half)
                    .map(|i| {
                        let keep = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        speed(i) / factor * (1.0 - keep) + speed(i) * keep
                    })
                    .collect()
            }
        };
        Self { base, inv_freq, long: None, magnitude }
    }

    /// The speeds divided by `by`.
    fn divided(&self, by: &[f32]) -> Vec<f32> {
        self.inv_freq.iter().zip(by).map(|(f, by)| f / by).collect()
    }

    /// Number of pairs.
    pub(super) fn n_pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Writes cos and sin of position `pos` in a context of `n_ctx`, `[n_rot / 2]` each.
    pub(super) fn at(&self, pos: usize, n_ctx: usize, cos: &mut [f32], sin: &mut [f32]) {
        let speeds = match &self.long {
            Some((n, long)) if n_ctx > *n => long,
            _ => &self.inv_freq,
        };
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(speeds) {
            let (y, x) = (pos as f32 * f).sin_cos();
            (*c, *s) = (x * self.magnitude, y * self.magnitude);
        }
    }
}

/// The context before stretching.
pub(super) fn n_ctx_orig(keys: Keys<'_>, h: &Hyper) -> Result<usize, ModelError> {
    Ok(keys.size_if("rope.scaling.original_context_length", N_CTX_MAX)?.unwrap_or(h.n_ctx_train))
}

/// How the file says that the context is stretched.
fn scaling(keys: Keys<'_>, h: &Hyper) -> Result<Scaling, ModelError> {
    let factor = || -> Result<f32, ModelError> {
        let k = "rope.scaling.factor";
        Ok(keys.file.require(&keys.name(k), keys.positive(k)?)?)
    };
    let kind = keys.name("rope.scaling.type");
    Ok(match keys.file.str(&kind)? {
        // Files of before 2023-10 have the one key.
        None => match keys.positive("rope.scale_linear")? {
            Some(factor) => Scaling::Linear { factor },
            None => Scaling::None,
        },
        Some("none" | "longrope") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: factor()? },
        Some("yarn") => {
            let (factor, truncate) = (factor()?, keys.name("rope.scaling.yarn_truncate"));
            let log = 0.1 * factor.ln();
            // What a model takes back of the magnitude (DeepSeek's mscale_all_dim).
            let less = keys.if_set("rope.scaling.yarn_log_multiplier")?.map_or(1.0, |m| m * log + 1.0);
            Scaling::Yarn {
                factor,
                n_ctx_orig: n_ctx_orig(keys, h)?,
                beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: keys.file.bool(&truncate)?.unwrap_or(true),
                magnitude: keys
                    .positive("rope.scaling.yarn_attn_factor")?
                    .or(keys.positive("rope.scaling.attn_factor")?)
                    .unwrap_or((log + 1.0) / less),
            }
        }
        Some(other) => {
            let wanted = "none, linear, yarn and longrope are supported for it";
            return Err(keys.bad("rope.scaling.type", format!("{other:?}"), wanted));
        }
    })
}

/// Angles of the layers that see everything.
pub(super) fn global(keys: Keys<'_>, h: &Hyper, factors: &Factors) -> Result<Angles, ModelError> {
    let base = base(keys, "rope.freq_base")?.unwrap_or(10_000.0);
    let mut angles = Angles::new(h.n_rot, base, &scaling(keys, h)?);
    if let Some(by) = &factors.freqs {
        angles.inv_freq = angles.divided(by);
    }
    match (&factors.short, &factors.long) {
        (Some(short), Some(long)) => {
            angles.long = Some((n_ctx_orig(keys, h)?, angles.divided(long)));
            angles.inv_freq = angles.divided(short);
            angles.magnitude = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        }
        (None, None) => {}
        _ => {
            return Err(ModelError::MissingTensor {
                file: keys.file.file().into(),
                tensor: "rope_factors_short.weight or rope_factors_long.weight".into(),
                arch: keys.arch.gguf,
            });
        }
    }
    Ok(angles)
}

/// Angles of the layers with a window, whose heads are `head_dim` wide.
pub(super) fn windowed(
    keys: Keys<'_>,
    h: &Hyper,
    head_dim: usize,
    global: &Angles,
) -> Result<Angles, ModelError> {
    let own = base(keys, "rope.freq_base_swa")?;
    let k = "rope.dimension_count_swa";
    let n_rot = keys.size_if(k, head_dim)?.unwrap_or(h.n_rot.min(head_dim));
    if n_rot % 2 != 0 {
        return Err(keys.bad(k, n_rot, "must be even"));
    }
    Ok(match keys.arch.window_rope {
        WindowRope::Same if own.is_none_or(|b| b == global.base) && n_rot == h.n_rot => global.clone(),
        WindowRope::Same => Angles::new(n_rot, own.unwrap_or(global.base), &scaling(keys, h)?),
        WindowRope::Plain => Angles::new(n_rot, own.unwrap_or(global.base), &Scaling::None),
        WindowRope::PlainAt(base) => Angles::new(n_rot, own.unwrap_or(base), &Scaling::None),
    })
}

fn base(keys: Keys<'_>, k: &str) -> Result<Option<f32>, ModelError> {
    match keys.positive(k)? {
        Some(base) if base <= 1.0 => Err(keys.bad(k, base, "above 1 wanted")),
        other => Ok(other),
    }
}

/// First and last pair of YaRN's ramp: the pairs that turn `beta_fast` and `beta_slow` times in the old context, apart by
/// at least a thousandth.
fn yarn_range(
    n_rot: usize,
    base: f32,
    n_ctx_orig: usize,
    beta_fast: f32,
    beta_slow: f32,
    truncate: bool,
) -> (f32, f32) {
    let pair = |turns: f32| {
        n_rot as f32 * (n_ctx_orig as f32 / (turns * 2.0 * std::f32::consts::PI)).ln() / (2.0 * base.ln())
    };
    let (low, high) = match truncate {
        true => (pair(beta_fast).floor(), pair(beta_slow).ceil()),
        false => (pair(beta_fast), pair(beta_slow)),
    };
    let (low, high) = (low.max(0.0), high.min((n_rot - 1) as f32));
    (low, if high - low < 0.001 { low + 0.001 } else { high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_changes_the_slow_dimensions_only() {
        let plain = Angles::new(64, 10_000.0, &Scaling::None);
        assert_eq!(plain.inv_freq[0], 1.0);
        let linear = Angles::new(64, 10_000.0, &Scaling::Linear { factor: 4.0 });
        assert!(plain.inv_freq.iter().zip(&linear.inv_freq).all(|(a, b)| *b == a / 4.0));
        let yarn = Scaling::Yarn {
            factor: 4.0,
            n_ctx_orig: 256,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            magnitude: 1.5,
        };
        let yarn = Angles::new(64, 10_000.0, &yarn);
        assert_eq!(yarn.inv_freq[0], plain.inv_freq[0]);
        assert_eq!(yarn.inv_freq[31], plain.inv_freq[31] / 4.0);
        let mut halved = Angles::new(4, 10_000.0, &Scaling::None);
        halved.long = Some((16, halved.divided(&[1.0, 2.0])));
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        halved.at(0, 17, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([1.0, 1.0], [0.0, 0.0]));
        halved.at(6, 17, &mut cos, &mut sin);
        let long = sin[1];
        halved.at(3, 16, &mut cos, &mut sin);
        assert_eq!(long, sin[1], "twice as slow in a longer context");
        yarn.at(0, 1, &mut [0.0; 32], &mut [0.0; 32]);
        assert_eq!(yarn.magnitude, 1.5);
    }
}
