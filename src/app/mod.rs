//! Layer 7: the programs. `sottod` is [`daemon`], `sotto` is [`cli`]; the binaries only map their exit codes.

mod catalog;
pub mod cli;
mod config;
#[cfg(feature = "http")]
pub mod daemon;
mod journal;

use crate::engine::{Code, Family, Fault};
use crate::kernel::{self, Kernels, Tier, TierError};

/// Usage or environment is wrong; systemd does not restart on it.
pub const EXIT_USAGE: u8 = 2;
/// Our fault.
pub const EXIT_INTERNAL: u8 = 70;

/// The kernels that `SOTTO_CPU` asks for, or the best of this machine.
fn kernels() -> Result<&'static Kernels, TierError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads SOTTO_CPU (API text, section 6)")]
    let asked = match std::env::var("SOTTO_CPU") {
        Ok(name) => Some(Tier::from_name(&name)?),
        Err(_) => None,
    };
    kernel::select(asked)
}

/// The exit code that belongs to a fault.
fn exit_code(code: Code) -> u8 {
    if code.family() == Family::Internal { EXIT_INTERNAL } else { EXIT_USAGE }
}

/// Makes a fault of an engine that does not start fit for a person.
fn start_failure(fault: &Fault) -> String {
    format!("the engine does not start: {}", fault.message)
}
