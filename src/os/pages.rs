//! Memory in whole pages, aligned and zeroed, large pages where the system gives them.

use std::io;
use std::ops::{Deref, DerefMut};

/// Bytes of a large page, with small ones of 4 KiB. Where the system has others this is as good as any number.
pub const LARGE_PAGE: usize = 2 << 20;

/// Anonymous memory of the process.
#[derive(Debug)]
pub struct Pages {
    map: memmap2::MmapMut,
}

impl Pages {
    /// `len` bytes of zeros. The system is asked for large pages (2 MB): a processor that reads gigabytes in a row
    /// looks up fewer of them. It may give none.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(len: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        // Best effort: kernels are built without.
        let _given = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// The same in small pages alone, to compare.
    ///
    /// # Errors
    /// When there is no room.
    pub fn small(len: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        let _given = map.advise(memmap2::Advice::NoHugePage);
        Ok(Self { map })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

/// Memory that could be had without swapping, in bytes: the system's, or what this process's cgroup may still grow by.
/// `None` where the kernel does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    Some(meminfo("MemAvailable:")?.min(cgroup().unwrap_or(u64::MAX)))
}

/// Memory of the machine, in bytes. `None` where the kernel does not tell.
#[must_use]
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

fn meminfo(key: &str) -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of this process's cgroup (version 2) less what its processes hold; file pages can be taken from them.
fn cgroup() -> Option<u64> {
    let path = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = path.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{file}")).ok();
    let most = read("memory.max")?.trim().parse::<u64>().ok()?;
    let held =
        read("memory.stat")?.lines().find_map(|line| line.strip_prefix("anon ")?.parse::<u64>().ok())?;
    Some(most.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_zeros() {
        let mut pages = Pages::new(100_000).expect("room");
        assert!(pages.iter().all(|b| *b == 0) && pages.len() == 100_000);
        assert!(pages.as_ptr().addr().is_multiple_of(4_096));
        pages[99_999] = 1;
        assert!(Pages::new(usize::MAX / 2).is_err());
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
        assert!(total() > available());
    }
}
