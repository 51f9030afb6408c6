//! Threads with names, and sleeping until a number changes.

use std::io;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;

use rustix::thread::futex;

/// Starts a named thread (the kernel shows 15 characters of the name).
///
/// # Errors
/// When the system has no room for another thread.
pub fn start<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(f)
}

/// Sleeps while `word` is `expected`. May return early.
pub fn wait(word: &AtomicU32, expected: u32) {
    // An interrupted or refused wait is a wake-up like any other: the caller looks again.
    let _ = futex::wait(word, futex::Flags::PRIVATE, expected, None);
}

/// Wakes all that sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    let _ = futex::wake(word, futex::Flags::PRIVATE, i32::MAX as u32);
}

/// What kind of processor this is, as the kernel names it; empty where it does not.
#[must_use]
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_start().strip_prefix(':')?.trim()))
    };
    // 64-bit Arm has numbers of the maker and the part.
    let parts = [of("model name"), of("CPU implementer"), of("CPU part")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Lowers the priority of the calling thread and of those that it starts; 0 to 19.
///
/// # Errors
/// When the system refuses.
pub fn set_nice(nice: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, nice)?)
}
