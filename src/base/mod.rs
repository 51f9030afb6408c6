//! Layer 0: plain values without IO. Knows no other layer.

pub mod limits;
pub mod rng;
mod token;

pub use token::Token;
