//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sotto::app::cli::run().into()
}
