//! What the fuzz targets do: with files, and with what callers send.

pub mod doors;
mod targets;

pub use targets::*;
