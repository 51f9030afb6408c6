//! Ctrl-C while something unfinished stands on the terminal.

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
        let before = set(handler as usize);
        if before == IGNORED {
            set(IGNORED);
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
        set(self.before);
    }
}

/// What Ctrl-C did before `handler`, which it does from now on.
fn set(handler: usize) -> usize {
    // SAFETY: `handler` is one of the two constants, what `signal` gave before, or `clear_and_end`, which lives as long
    // as the program, has the type that C wants, and does only what a handler may.
    unsafe { signal(Signal::INT.as_raw(), handler) }
}

extern "C" fn clear_and_end(number: i32) {
    // A terminal that is gone has no line. The descriptor alone is taken, not the lock of standard error.
    let _ = rustix::io::write(std::io::stderr(), b"\r\x1b[K");
    set(DEFAULT);
    // SAFETY: the same number again: it waits until this handler returns, and then ends the program. Writing, setting and
    // raising are what signal-safety(7) allows.
    unsafe { raise(number) };
}
