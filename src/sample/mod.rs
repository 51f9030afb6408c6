//! Layer 3: from logits to a token ([`Chain`]), how likely it was ([`logprobs`]), and where an answer ends
//! ([`StopFilter`]).

mod candidates;
mod chain;
mod dry;
mod logprobs;
mod stop;

pub use chain::{Chain, Mirostat, Settings};
pub use dry::Dry;
pub use logprobs::logprobs;
pub use stop::StopFilter;
