//! Layer 3: helper processes, for work on input that must be able to fail without taking the daemon along.

pub mod graph;
pub mod render;
