//! Layer 6: the ways in. A door bounds and parses its input, makes a [`Request`](crate::engine::Request), prints each
//! [`Event`](crate::engine::Event), and decides nothing.
//!
//! Shared by the doors: `fields`, `ask` and `sampling` read what a caller asks for, `wire` writes events, `done` the end
//! of an answer, `fault` holds the names of failures, `queue` carries events from the engine's threads,
//! `told` awaits single answers of them.

#[cfg(feature = "http")]
pub mod client;
#[cfg(feature = "dbus")]
pub mod dbus;
pub mod done;
#[cfg(feature = "http")]
pub mod http;

#[cfg(any(feature = "dbus", feature = "http"))]
mod admins;
#[cfg(any(feature = "dbus", feature = "http"))]
mod ask;
#[cfg(any(feature = "dbus", feature = "http"))]
pub(crate) mod embed;
#[cfg(any(feature = "dbus", feature = "http"))]
mod fault;
#[cfg(any(feature = "dbus", feature = "http"))]
mod fields;
#[cfg(any(feature = "dbus", feature = "http"))]
mod id;
#[cfg(any(feature = "dbus", feature = "http"))]
mod queue;
#[cfg(any(feature = "dbus", feature = "http"))]
mod sampling;
#[cfg(any(feature = "dbus", feature = "http"))]
mod told;
#[cfg(any(feature = "dbus", feature = "http"))]
mod wire;
