//! How much memory there is.

use super::cgroup;
use super::tree::Tree;

/// Memory that this process may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes there are in all: the machine's, or what a control group allows.
    pub total: u64,
    /// Bytes that could be had now without swapping; what can be taken from the page cache is among them.
    pub available: u64,
    /// The file that says so.
    pub from: String,
}

impl Memory {
    /// Reads it. `None` where the kernel does not tell.
    #[must_use]
    pub fn read(tree: &Tree) -> Option<Self> {
        const MEMINFO: &str = "/proc/meminfo";
        let kib = |key| tree.field(MEMINFO, key)?.checked_mul(1024);
        let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
        Some(match cgroup::memory(tree) {
            Some(room) if room.free < available => {
                Self { total: room.limit.min(total), available: room.free, from: room.from }
            }
            _ => Self { total, available, from: MEMINFO.into() },
        })
    }
}

/// From here on what is large is given back when it is freed. The GNU C library otherwise moves the bound up to the largest
/// that was ever freed (mallopt(3)), and what threads free stays with them. Where there is no such function, nothing happens.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        /// Bytes. Buffers of a connection and of most texts are smaller and stay at hand.
        const LARGE: i32 = 1 << 20;
        /// Of mallopt(3).
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        // SAFETY: it takes numbers, and changes only when memory that nobody has goes back.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, LARGE);
            mallopt(M_MMAP_THRESHOLD, LARGE);
        }
    }
}

/// Gives back to the system what was freed and is still kept for later. Where the C library has no such function, nothing
/// happens.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            // malloc_trim(3).
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: it takes a number, may be called by any thread at any time, and touches only what nobody has.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Made;
    use super::*;

    /// What a thread has freed does not stay with it, also after larger things were freed.
    #[test]
    fn what_is_large_goes_when_it_is_freed() {
        keep_little();
        let own = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells it");
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it is told");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        let before = own();
        let fill = move || {
            for mib in [30, 20, 10, 5, 20] {
                drop(std::hint::black_box(vec![1_u8; mib << 20]));
            }
            own()
        };
        let kept = super::super::thread::start("fill", fill).expect("a thread").join().expect("it ends");
        // Other tests of this process allocate as well.
        assert!(!cfg!(target_env = "gnu") || kept < before + (15 << 10), "{before} KiB before, {kept} after");
    }

    #[test]
    fn what_is_in_use_stays() {
        let fill = |seed: u8| {
            for round in 0..50_u8 {
                let blocks: Vec<Vec<u8>> = (1..200).map(|n| vec![seed ^ round; 37 * n]).collect();
                trim();
                assert!(blocks.iter().flatten().all(|byte| *byte == seed ^ round));
            }
        };
        std::thread::scope(|threads| (0..3).for_each(|seed| drop(threads.spawn(move || fill(seed)))));
    }

    #[test]
    fn the_smaller_of_the_machine_and_the_group_counts() {
        let made =
            Made::new(&[("/proc/meminfo", "MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  4000 kB\n")]);
        let memory = Memory::read(&made.tree).expect("it is told");
        assert_eq!((memory.total, memory.available), (8_000 << 10, 4_000 << 10));
        made.write("/proc/self/cgroup", "0::/a");
        made.write("/sys/fs/cgroup/a/memory.max", (1_000 << 10).to_string());
        let memory = Memory::read(&made.tree).expect("it is told");
        assert_eq!((memory.total, memory.available), (1_000 << 10, 1_000 << 10));
        assert!(memory.from.contains("/a/memory.max"));
        for broken in
            ["", "MemTotal: 5 kB", "MemTotal: x kB\nMemAvailable: 3 kB", "MemTotal: 99999999999999999999 kB"]
        {
            made.write("/proc/meminfo", broken);
            assert_eq!(Memory::read(&made.tree), None, "{broken}");
        }
        assert!(Memory::read(&Tree::default()).is_some_and(|m| m.available > 1 << 20));
    }
}
