//! What this process may use.

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
