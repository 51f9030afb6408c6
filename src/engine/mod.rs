//! Layer 4: one scheduler behind every door. Knows no HTTP, JSON or D-Bus type.
//!
//! A door builds a [`Request`], gives it to [`Engine::submit`] with a [`Sink`], and holds the [`Handle`];
//! dropping the handle cancels. Threads: `admit` tokenizes and renders, `engine` owns the decoder. A
//! [`Solo`] is a model that is measured without them.

mod admit;
mod event;
mod generation;
mod handle;
mod load;
mod machine;
mod manners;
mod metrics;
mod perplexity;
mod prefix;
mod ready;
mod request;
mod run;
mod scheduler;
mod solo;
mod speed;
mod tuning;

pub use admit::{Text, Tokenized};
pub use event::{
    Admitted, Code, Done, Event, Family, Fault, FinishReason, Likely, Logprob, Offer, Room, Sink, StopDetail,
    Timings, Usage,
};
pub use handle::{Engine, Handle, ModelFile, ModelHeader, ModelInfo, ModelState, Options, State, Status};
pub use machine::{KERNEL_TOKENS, KernelSpeed, Machine, kernel_speeds, machine};
pub use metrics::{Count, Histogram, Metrics, ModelMetrics};
pub use perplexity::{Divergence, Perplexity, Reader};
pub use request::{Caller, Class, Door, Effort, GenerationId, Input, Message, Request, Role, Sampling};
pub use solo::Solo;
pub use speed::{Speed, SpeedOptions, median};
