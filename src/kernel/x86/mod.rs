//! Tiers of x86-64.

mod attention;
mod avx2;
mod codes;
mod mix;
mod packed;

use super::{Kernels, Tier};

/// The AVX2 tier, or the feature that is missing for it.
pub(super) fn avx2() -> Result<&'static Kernels, &'static str> {
    with(
        &AVX2,
        &[
            (is_x86_feature_detected!("avx2"), "AVX2"),
            (is_x86_feature_detected!("fma"), "FMA"),
            (is_x86_feature_detected!("f16c"), "F16C"),
        ],
    )
}

/// The AVX-VNNI tier, or the feature that is missing for it.
pub(super) fn avx_vnni() -> Result<&'static Kernels, &'static str> {
    avx2()?;
    with(&AVX_VNNI, &[(is_x86_feature_detected!("avxvnni"), "AVX-VNNI")])
}

/// The AVX-512 tier, or the feature that is missing for it.
pub(super) fn avx512() -> Result<&'static Kernels, &'static str> {
    avx2()?;
    with(
        &AVX512,
        &[
            (is_x86_feature_detected!("avx512f"), "AVX-512F"),
            (is_x86_feature_detected!("avx512bw"), "AVX-512BW"),
            (is_x86_feature_detected!("avx512vnni"), "AVX-512 VNNI"),
        ],
    )
}

fn with(tier: &'static Kernels, features: &[(bool, &'static str)]) -> Result<&'static Kernels, &'static str> {
    features.iter().find(|(found, _)| !found).map_or(Ok(tier), |(_, missing)| Err(*missing))
}

static AVX2: Kernels = avx2::AVX2;
static AVX_VNNI: Kernels = Kernels { tier: Tier::AvxVnni, ..avx2::AVX2 }
    .with_packed(packed::avx_vnni::PRODUCTS)
    .with_peak(packed::avx_vnni::peak);
static AVX512: Kernels = Kernels { tier: Tier::Avx512, ..avx2::AVX2 }
    .with_packed(packed::avx512::PRODUCTS)
    .with_peak(packed::avx512::peak);

/// The tiers that this machine has not, but for their instructions, where it has AVX2.
#[cfg(test)]
pub(super) fn models() -> &'static [Kernels] {
    use packed::model::{avx_vnni, avx512};

    static MODELS: [Kernels; 2] = [
        Kernels { tier: Tier::AvxVnni, ..avx2::AVX2 }
            .with_packed(avx_vnni::PRODUCTS)
            .with_peak(avx_vnni::peak),
        Kernels { tier: Tier::Avx512, ..avx2::AVX2 }.with_packed(avx512::PRODUCTS).with_peak(avx512::peak),
    ];
    if avx2().is_ok() { &MODELS } else { &[] }
}
