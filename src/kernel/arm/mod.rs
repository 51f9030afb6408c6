//! Tiers of 64-bit ARM.

mod attention;
mod codes;
mod neon;

pub(super) use neon::NEON;
