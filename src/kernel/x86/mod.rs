//! Tiers of x86-64.

mod attention;
mod avx2;
mod codes;
mod packed;
mod panel;

use super::Kernels;

/// The AVX2 tier, or the feature that is missing for it.
pub(super) fn avx2() -> Result<&'static Kernels, &'static str> {
    let features = [
        (is_x86_feature_detected!("avx2"), "AVX2"),
        (is_x86_feature_detected!("fma"), "FMA"),
        (is_x86_feature_detected!("f16c"), "F16C"),
    ];
    match features.iter().find(|(found, _)| !found) {
        Some((_, missing)) => Err(missing),
        None => Ok(&avx2::AVX2),
    }
}
