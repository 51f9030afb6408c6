//! Layer 4: one scheduler behind every door. Knows no HTTP, JSON or D-Bus type.
//!
//! A door builds a [`Request`], gives it to [`Engine::submit`] with a [`Sink`], and holds the [`Handle`];
//! dropping the handle cancels. Threads: `admit` tokenizes and renders, `open` opens files, `engine` owns the decoder. A
//! [`Solo`] is a model that is measured without them.

mod admit;
mod catalogue;
mod changes;
mod event;
mod generation;
mod handle;
mod load;
mod loaded;
mod machine;
mod manners;
mod metrics;
mod mock;
mod models;
mod options;
mod perplexity;
mod prefix;
mod prompt;
mod rate;
mod ready;
mod request;
mod run;
mod scheduler;
mod solo;
mod speed;
mod tuning;
mod watch;

pub use admit::{Text, Tokenized};
pub use catalogue::{ModelHeader, ModelInfo, ModelState};
pub use event::{
    Admitted, Code, Done, Embedded, Event, Family, Fault, FinishReason, Likely, Logprob, Offer, Room, Sink,
    StopDetail, Timings, Usage,
};
pub use generation::random_seed;
pub use handle::{Engine, Handle, State, Status};
pub use machine::{KERNEL_TOKENS, KernelSpeed, Machine, kernel_speeds, machine};
pub use metrics::{Count, Histogram, Metrics, ModelMetrics};
pub use mock::Mock;
pub use options::{ModelFile, ModelSettings, Options, Rate, Settings};
pub use perplexity::{Divergence, Perplexity, Reader};
pub use rate::RequestsLeft;
pub use request::{
    Caching, Caller, Class, Door, Effort, GenerationId, Input, LoadRequest, Message, Request, Role, Sampling,
    Task,
};
pub use solo::Solo;
pub use speed::{Speed, SpeedOptions, median};
pub use watch::{Stage, Watched};
