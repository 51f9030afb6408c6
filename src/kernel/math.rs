//! The few functions whose definition all tiers share.

use super::LANES;

/// The largest and smallest arguments of [`exp`] whose result is a normal float.
pub(super) const EXP_RANGE: (f32, f32) = (-87.336_54, 88.0);
/// ln 2 in two parts: the first has few bits, so that its multiples are exact.
pub(super) const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
/// Coefficients of the polynomial for e^r on |r| <= ln(2)/2, highest first (Moshier, Cephes `expf`).
pub(super) const EXP: [f32; 6] =
    [1.987_569_2e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x to about 1e-7 of its value; arguments outside [`EXP_RANGE`] count as its ends.
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(EXP_RANGE.0, EXP_RANGE.1);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = x - n * LN_2.0 - n * LN_2.1;
    let p = EXP.iter().fold(0.0, |p, c| p * r + c);
    (p * r * r + r + 1.0) * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

/// The hyperbolic tangent to about 1e-7.
#[inline]
pub(super) fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

/// `1 / (1 + e^-x)`.
#[inline]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)`.
#[inline]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + e^x)`.
#[inline]
pub(super) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The tanh form of GELU (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
#[inline]
pub(super) fn gelu(x: f32) -> f32 {
    const ROOT_2_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(ROOT_2_PI * (x + 0.044_715 * x * x * x)))
}

/// The sum of all lanes, as a tree.
pub(super) fn sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_close() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}: {} for {exact}", exp(x));
        }
        for i in -1000..=1000 {
            let x = i as f32 / 50.0;
            let wide = f64::from(x);
            let near = |y: f32, exact: f64| (f64::from(y) - exact).abs() < 4e-7 * (1.0 + exact.abs());
            assert!(near(tanh(x), wide.tanh()), "tanh({x})");
            assert!(near(sigmoid(x), 1.0 / (1.0 + (-wide).exp())), "sigmoid({x})");
            assert!(near(softplus(x), wide.exp().ln_1p()), "softplus({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            assert!(near(gelu(x), 0.5 * wide * (1.0 + inner.tanh())), "gelu({x})");
            assert!(near(silu(x), wide / (1.0 + (-wide).exp())), "silu({x})");
        }
        assert!(exp(-1e30) < 1.2e-38 && exp(1e30).is_finite() && exp(f32::NAN).is_nan());
    }
}
