//! Layer 0: plain values without IO. Knows no other layer.

pub mod limits;
pub mod rng;
mod strings;
mod token;

pub use strings::{SharedBytes, Strings};
pub use token::Token;
