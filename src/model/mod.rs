//! Layer 3: the decoder. A model file becomes weights in place ([`load`]), a description ([`arch`]) and one forward
//! pass ([`decoder`]) over a cache ([`kv`]).

mod altup;
pub mod arch;
mod attention;
pub mod cache;
pub mod decoder;
mod error;
mod feed_forward;
mod hyper;
pub mod import;
pub mod kv;
mod layer;
pub mod load;
pub mod packed;
mod pooling;
mod profile;
mod recurrent;
mod rope;
mod scratch;
pub mod summary;
pub mod vocab;
mod weights;

pub use cache::Cache;
pub use decoder::{Decoder, Feed, Part, Stopped, Want};
pub use error::ModelError;
pub use hyper::Hyper;
pub use import::{Import, ImportError, Plan};
pub use kv::{Block, Budget, CacheShape, Kv, KvType, Layout, Paging, StateShape};
pub use load::Model;
pub use packed::{Pack, PackError, Packer};
pub use pooling::{Pooled, Pooling};
pub use profile::{Cost, Op, Profile};

/// How exactly the decoder computes. The defaults are what users get; tests and `perplexity` ask for more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// Activations of matrix products.
    pub acts: Acts,
    /// Keys and values in the cache.
    pub kv: KvType,
}

impl Precision {
    /// 32-bit floats throughout.
    pub const F32: Self = Self { acts: Acts::F32, kv: KvType::F32 };
}

/// Activations of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acts {
    /// 8-bit codes with a scale for each 32, where the weights are quantized; floats otherwise.
    #[default]
    Q8,
    /// 32-bit floats.
    F32,
}
