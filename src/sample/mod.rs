//! Layer 3: from logits to a token ([`Chain`]), and where an answer ends ([`StopFilter`]).

mod chain;
mod stop;

pub use chain::Chain;
pub use stop::StopFilter;
