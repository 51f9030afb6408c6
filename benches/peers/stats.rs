//! Medians and their intervals.

use sotto::engine::median;

/// The median of paired ratios with its 90 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Samples of the bootstrap.
const SAMPLES: usize = 4_000;

impl Ratio {
    /// Of ratios of independent rounds: the interval is that of the medians of samples drawn from them with replacement
    /// (Efron, "Bootstrap Methods", 1979), always the same ones.
    pub(crate) fn of(ratios: &[f64]) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let mut medians: Vec<f64> = (0..SAMPLES)
            .map(|_| median(&ratios.iter().map(|_| ratios[below(ratios.len())]).collect::<Vec<_>>()))
            .collect();
        medians.sort_by(f64::total_cmp);
        Self { median: median(ratios), low: medians[SAMPLES / 20], high: medians[SAMPLES - SAMPLES / 20 - 1] }
    }
}
