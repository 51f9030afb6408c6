//! What this process may use, and has used.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Bounds this process for the rest of its life: the kernel ends it past `cpu_s` seconds of processor time, refuses
/// memory past `memory_bytes` of address space, and keeps no core file.
///
/// # Errors
/// When the system refuses.
pub fn limit(cpu_s: u64, memory_bytes: u64) -> io::Result<()> {
    let at = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Core, at(0))?;
    setrlimit(Resource::Cpu, at(cpu_s))?;
    Ok(setrlimit(Resource::As, at(memory_bytes))?)
}

/// Bounds the address space of this process: memory past `bytes` is refused, for the rest of its life if `for_ever`.
///
/// # Errors
/// When the system refuses.
pub fn limit_memory(bytes: u64, for_ever: bool) -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let maximum = if for_ever { Some(bytes) } else { getrlimit(Resource::As).maximum };
    Ok(setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum })?)
}

/// This process ends when the thread that started it does.
///
/// # Errors
/// When the system refuses.
pub fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

/// From now on no image of this process's memory is written when it dies, whatever the limits say, and no other process of
/// its user may look into it.
///
/// # Errors
/// When the system refuses.
pub fn forbid_dumps() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Takes the machine code that was used so far out of this process's memory: what is needed again is mapped again out of
/// the file, without reading it while the system keeps it. A start uses much that nothing uses after it.
pub fn let_go_of_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in maps.lines().filter_map(code) {
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a private map of a file that may be executed and not written (see `code`), so none of its
        // pages differs from the file's: one that is used again, by any thread, is the same again.
        let _ = unsafe { rustix::mm::madvise(start, len, rustix::mm::Advice::LinuxDontNeed) };
    }
}

/// Beginning and length of what a line of `/proc/PID/maps` tells of, where that is machine code of a file (proc(5)).
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (mode, file) = (fields.next()?, fields.nth(3)?);
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (mode == "r-xp" && file.starts_with('/')).then_some((start, end.checked_sub(start)?))
}

/// The user that this process acts as.
#[must_use]
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The most memory that this process has had resident so far, in bytes; mapped files count with what of them is in
/// use. `None` where the kernel does not tell.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What this process has now, or has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory, mapped files with what of them is in use.
    pub rss_bytes: u64,
    /// Processor time, user and system, in seconds.
    pub cpu_s: f64,
    /// Open file descriptors.
    pub n_fds: usize,
}

/// That of this process. `None` where the kernel does not tell.
#[must_use]
pub fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name stands in brackets and may hold blanks; from the third field on there are numbers (proc(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (next()?, next()?);
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    // Reading the folder opens one more.
    let n_fds = std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    let ticks_per_s = rustix::param::clock_ticks_per_second();
    Some(Usage {
        rss_bytes: pages * rustix::param::page_size() as u64,
        cpu_s: (user + system) as f64 / ticks_per_s as f64,
        n_fds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_let_go_of_runs_on() {
        let line = "55e0a000-55e0c000 r-xp 00001000 fd:00 131 /usr/bin/a name";
        assert_eq!(code(line), Some((0x55e0_a000, 0x2000)));
        for other in [
            line.replace("r-xp", "r--p"),
            line.replace("r-xp", "rwxp"),
            line.replace("r-xp", "r-xs"),
            line.replace("/usr/bin/a name", "[vdso]"),
            line.replace(" /usr/bin/a name", ""),
            String::new(),
        ] {
            assert_eq!(code(&other), None, "{other}");
        }
        let mapped = || {
            let text = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        // Other threads map files meanwhile.
        let fewer = (0..20).any(|_| {
            let before = mapped();
            let_go_of_code();
            mapped() < before
        });
        assert!(fewer);
        assert_eq!(format!("{:?}", vec![1, 2]), "[1, 2]");
    }

    #[test]
    fn usage_is_that_of_this_process() {
        let before = usage().expect("the kernel tells");
        let file = std::fs::File::open("/proc/self/stat").expect("it opens");
        let after = usage().expect("the kernel tells");
        assert!(before.rss_bytes > 1 << 20 && after.cpu_s >= before.cpu_s && after.n_fds > 2, "{after:?}");
        drop(file);
    }

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_rss_bytes().expect("the kernel tells");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_rss_bytes().expect("the kernel tells");
        assert!(before > 0 && after >= touched.len() as u64, "{before}, then {after}");
    }
}
