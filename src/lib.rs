//! sotto: a language model as a system service on small machines.
//!
//! Layers, each importing only from those above it in this list (`tests/tidy.rs` checks):
//! [`base`], [`os`] and [`quant`], [`kernel`] and [`mod@format`] and [`text`], [`model`], [`sample`]
//! and [`side`], [`engine`], [`door`], [`app`]. `docs/ARCHITECTURE.md` is the map.

pub mod app;
pub mod base;
pub mod door;
pub mod engine;
pub mod format;
pub mod kernel;
pub mod model;
pub mod os;
pub mod quant;
pub mod sample;
pub mod side;
pub mod text;
