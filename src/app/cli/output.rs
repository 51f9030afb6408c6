//! A file that a command writes: whole under its name, or not there.

use std::path::Path;

use super::Failure;
use super::show::{Show, Step};
use crate::os::interrupt::Noticed;

/// Bytes that are written between two looks at Ctrl-C.
pub(super) const SLICE: usize = 16 << 20;
/// What a program that Ctrl-C ended says.
const EXIT_INTERRUPTED: u8 = 130;

/// Whether `path` may be written: it is not there, or is a file that may be written over.
pub(super) fn may_be_written(path: &Path, force: bool) -> Result<(), Failure> {
    let said = |what: &str| Err(Failure::usage(format!("{}: {what}", path.display())));
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) if !force => said("is there; --force writes over it"),
        Ok(meta) if meta.is_file() || meta.is_symlink() => Ok(()),
        Ok(_) => said("is no regular file, and is not written over"),
    }
}

/// What is said once Ctrl-C has ended the work on `path`.
pub(super) fn stopped(path: &Path) -> Failure {
    Failure::new(EXIT_INTERRUPTED, format!("stopped; {} is not written", path.display()))
}

/// Writes `path` by what `next` does, which tells bytes done and in all until there is nothing left.
pub(super) fn write(
    path: &Path,
    step: Step,
    (interrupted, show): (&Noticed, &mut Show),
    next: &mut dyn FnMut() -> Result<Option<(u64, u64)>, Failure>,
) -> Result<(), Failure> {
    while let Some((done, total)) = next()? {
        if interrupted.came() && done < total {
            return Err(stopped(path));
        }
        show.step(step, done, total);
    }
    Ok(())
}
