//! What this process may use, and has used.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

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

/// The most memory that this process has had resident so far, in bytes; mapped files count with what of them is in
/// use. `None` where the kernel does not tell.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_rss_bytes().expect("the kernel tells");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_rss_bytes().expect("the kernel tells");
        assert!(before > 0 && after >= touched.len() as u64, "{before}, then {after}");
    }
}
