//! Layer 7: the programs. `sottod` is [`daemon`], `sotto` is [`cli`]; the binaries only map their exit codes.

#[cfg(feature = "http")]
mod api;
mod catalog;
pub mod cli;
#[cfg(any(feature = "dbus", feature = "http"))]
mod config;
#[cfg(any(feature = "dbus", feature = "http"))]
pub mod daemon;
#[cfg(any(feature = "dbus", feature = "http"))]
mod journal;

use crate::engine::{Code, Family};
use crate::kernel::{self, Kernels, Tier, TierError};
use crate::side::render;

/// Usage or environment is wrong; systemd does not restart on it.
pub const EXIT_USAGE: u8 = 2;
/// Our fault.
pub const EXIT_INTERNAL: u8 = 70;

/// This program, as a child's path: it renders chat templates for its parent.
const RENDERER: &str = "/proc/self/exe";

/// Serves as the renderer of a parent if the only argument asks for it; the exit code then.
fn as_renderer() -> Option<u8> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == render::ARGUMENT && arguments.next().is_none())
        .then(|| render::serve().map_or(EXIT_INTERNAL, |()| 0))
}

/// The kernels that `SOTTO_CPU` asks for, or the best of this machine.
fn kernels() -> Result<&'static Kernels, TierError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads SOTTO_CPU (API text, section 6)")]
    let asked = match std::env::var("SOTTO_CPU") {
        Ok(name) if !name.is_empty() => Some(Tier::from_name(&name)?),
        _ => None,
    };
    kernel::select(asked)
}

/// The exit code that belongs to a fault.
fn exit_code(code: Code) -> u8 {
    if code.family() == Family::Internal { EXIT_INTERNAL } else { EXIT_USAGE }
}
