//! Threads with names, where they run, and sleeping until a number changes.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, futex, sched_setaffinity};

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

/// Processors are numbered below this.
pub const N_CPU_MAX: usize = CpuSet::MAX_CPU;

/// The processors that a list such as `0-3,6` names, in order; `None` if it is none.
#[must_use]
pub fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last || last >= N_CPU_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus.into_iter().collect())
}

/// Keeps the calling thread, and those that it starts, to `cpus`, as far as the process may use them.
///
/// # Errors
/// When it may use none of them.
pub fn set_cpus(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < N_CPU_MAX).for_each(|cpu| set.set(*cpu));
    Ok(sched_setaffinity(None, &set)?)
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

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn lists_of_processors() {
        for (text, cpus) in [
            ("", Some(vec![])),
            ("4-7", Some(vec![4, 5, 6, 7])),
            ("2,0-1,1", Some(vec![0, 1, 2])),
            ("1023", Some(vec![1023])),
            ("1024", None),
            ("3-1", None),
            ("1,", None),
            ("-1", None),
            ("+1", None),
            ("a", None),
            ("1-2-3", None),
        ] {
            assert_eq!(cpu_list(text), cpus, "{text:?}");
        }
    }

    #[test]
    fn a_thread_stays_where_it_is_told() {
        let allowed = sched_getaffinity(None).unwrap();
        let one = (0..N_CPU_MAX).find(|cpu| allowed.is_set(*cpu)).unwrap();
        let none = (0..N_CPU_MAX).find(|cpu| !allowed.is_set(*cpu)).unwrap();
        let told = start("told", move || {
            // A processor that is not there does not matter beside one that is.
            set_cpus(&[one, none]).unwrap();
            let own = sched_getaffinity(None).unwrap();
            let inherited = start("child", || sched_getaffinity(None).unwrap()).unwrap().join().unwrap();
            assert!(own == inherited && own.is_set(one) && own.count() == 1);
            set_cpus(&[none]).is_err()
        });
        assert!(told.unwrap().join().unwrap(), "none of those is refused");
    }
}
