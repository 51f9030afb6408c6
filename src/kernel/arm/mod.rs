//! Tiers of 64-bit ARM.

mod neon;

pub(super) use neon::NEON;
