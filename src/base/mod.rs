//! Layer 0: plain values without IO. Knows no other layer.

pub mod json;
pub mod limits;
pub mod rng;
mod shown;
mod strings;
mod token;

pub use shown::{brief, shown};
pub use strings::{Numbers, SharedBytes, Strings};
pub use token::Token;
