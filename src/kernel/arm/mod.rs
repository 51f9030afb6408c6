//! Tiers of 64-bit ARM.

mod attention;
mod codes;
mod mix;
mod neon;
mod packed;

use std::arch::is_aarch64_feature_detected;

use super::{Kernels, Tier};

pub(super) use neon::NEON;

/// All but the products of packed weights is that of plain NEON.
const DOTPROD: Kernels =
    Kernels { tier: Tier::Dotprod, ..NEON }.with_packed(packed::DOTPROD).with_peak(packed::dotprod_peak);
const I8MM: Kernels = Kernels { tier: Tier::I8mm, arrange: Some(packed::arrange_eights), ..NEON }
    .with_packed(packed::I8MM)
    .with_peak(packed::i8mm_peak);

/// The tier of dot products, or the feature that is missing for it.
pub(super) fn dotprod() -> Result<&'static Kernels, &'static str> {
    if is_aarch64_feature_detected!("dotprod") { Ok(&DOTPROD) } else { Err("DotProd") }
}

/// The tier of 8-bit matrix products, or the feature that is missing for it.
pub(super) fn i8mm() -> Result<&'static Kernels, &'static str> {
    dotprod()?;
    if is_aarch64_feature_detected!("i8mm") { Ok(&I8MM) } else { Err("I8MM") }
}
