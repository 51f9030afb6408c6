//! The daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(any(feature = "dbus", feature = "http"))]
    return sotto::app::daemon::run().into();
    #[cfg(not(any(feature = "dbus", feature = "http")))]
    #[expect(clippy::print_stderr, reason = "there is nothing else that this program could do")]
    {
        eprintln!("sottod: built without a door; build with the feature dbus or http");
        sotto::app::EXIT_USAGE.into()
    }
}
