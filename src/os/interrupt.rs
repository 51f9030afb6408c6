//! Ctrl-C while something unfinished stands on the terminal, or on the disk.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn raise(number: i32) -> i32;
}

/// What [`signal`] takes and gives for the default, and for nothing at all (bits/signum-generic.h).
const DEFAULT: usize = 0;
const IGNORED: usize = 1;

/// While it lives, Ctrl-C clears the line of standard error's terminal before it ends the program, as by default. For
/// programs that catch Ctrl-C in no other way meanwhile.
#[derive(Debug)]
pub struct ClearLine {
    before: usize,
}

impl ClearLine {
    /// From now on. Where Ctrl-C is ignored it stays so.
    #[must_use]
    pub fn new() -> Self {
        let handler = clear_and_end as extern "C" fn(i32);
        let before = set(Signal::INT, handler as usize);
        if before == IGNORED {
            set(Signal::INT, IGNORED);
        }
        Self { before }
    }
}

impl Default for ClearLine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ClearLine {
    fn drop(&mut self) {
        set(Signal::INT, self.before);
    }
}

/// A signal of [`Noticed`] came.
static CAME: AtomicBool = AtomicBool::new(false);

/// While it lives, Ctrl-C and a request to end are noticed and do nothing else: who writes a file asks [`Self::came`],
/// removes it, and ends.
#[derive(Debug)]
pub struct Noticed {
    before: [(Signal, usize); 2],
}

impl Noticed {
    /// From now on. What is ignored stays so.
    #[must_use]
    pub fn new() -> Self {
        let handler = notice as extern "C" fn(i32);
        let before = [Signal::INT, Signal::TERM].map(|signal| {
            let before = set(signal, handler as usize);
            if before == IGNORED {
                set(signal, IGNORED);
            }
            (signal, before)
        });
        Self { before }
    }

    /// Whether one came.
    #[must_use]
    pub fn came(&self) -> bool {
        // Relaxed: nothing else is read because of it.
        CAME.load(Ordering::Relaxed)
    }
}

impl Default for Noticed {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Noticed {
    fn drop(&mut self) {
        for (signal, before) in self.before {
            set(signal, before);
        }
    }
}

extern "C" fn notice(_number: i32) {
    CAME.store(true, Ordering::Relaxed);
}

/// What the signal did before `handler`, which it does from now on.
fn set(number: Signal, handler: usize) -> usize {
    // SAFETY: `handler` is one of the two constants, what `signal` gave before, or `clear_and_end` or `notice`, which
    // live as long as the program, have the type that C wants, and do only what a handler may.
    unsafe { signal(number.as_raw(), handler) }
}

extern "C" fn clear_and_end(number: i32) {
    // A terminal that is gone has no line. The descriptor alone is taken, not the lock of standard error.
    let _ = rustix::io::write(std::io::stderr(), b"\r\x1b[K");
    set(Signal::INT, DEFAULT);
    // SAFETY: the same number again: it waits until this handler returns, and then ends the program. Writing, setting and
    // raising are what signal-safety(7) allows.
    unsafe { raise(number) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_end_is_noticed() {
        let noticed = Noticed::new();
        assert!(!noticed.came());
        // SAFETY: the handler that was set a line above stores a flag, and nothing else.
        unsafe { raise(Signal::TERM.as_raw()) };
        assert!(noticed.came());
    }
}
