//! The daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "http")]
    return sotto::app::daemon::run().into();
    #[cfg(not(feature = "http"))]
    return sotto::app::EXIT_USAGE.into();
}
