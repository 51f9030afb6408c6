//! Who waits for what: the kernel's pressure stall information (PSI). Kernels are built or booted without it (that of
//! Raspberry Pi OS needs `psi=1`), and then nobody is known to wait.

use super::cgroup;
use super::tree::Tree;

/// Microseconds since the start of the machine in which at least one task waited, of a file such as
/// `/proc/pressure/cpu`.
fn some_us(tree: &Tree, path: &str) -> Option<u64> {
    let text = tree.text(path)?;
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total=")?.parse().ok())
}

/// Microseconds in which at least one task waited for memory: of this process's control group, else of the machine.
#[must_use]
pub fn memory_us(tree: &Tree) -> Option<u64> {
    let own = cgroup::own(tree).and_then(|group| some_us(tree, &format!("{group}/memory.pressure")));
    own.or_else(|| some_us(tree, "/proc/pressure/memory"))
}

/// Microseconds in which at least one task of the machine waited for a processor.
#[must_use]
pub fn cpu_us(tree: &Tree) -> Option<u64> {
    some_us(tree, "/proc/pressure/cpu")
}

/// Microseconds that the threads of this process, all together, have waited for a processor; those that ended are not
/// among them.
#[must_use]
pub fn own_cpu_us(tree: &Tree) -> u64 {
    const TASKS: &str = "/proc/self/task";
    let of = |task: String| {
        let text = tree.text(&format!("{TASKS}/{task}/schedstat"))?;
        text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let ns = tree.names(TASKS).into_iter().filter_map(of).fold(0, u64::saturating_add);
    ns / 1_000
}

#[cfg(test)]
mod tests {
    use super::super::tree::Made;
    use super::*;

    const SOME: &str = "some avg10=1.00 avg60=0.03 avg300=1.03 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";

    #[test]
    fn the_own_group_counts_before_the_machine() {
        let made = Made::new(&[("/proc/pressure/memory", SOME), ("/proc/pressure/cpu", SOME)]);
        assert_eq!((memory_us(&made.tree), cpu_us(&made.tree)), (Some(12_345), Some(12_345)));
        made.write("/proc/self/cgroup", "0::/a");
        assert_eq!(memory_us(&made.tree), Some(12_345));
        made.write("/sys/fs/cgroup/a/memory.pressure", "some avg10=0.00 total=7");
        assert_eq!(memory_us(&made.tree), Some(7));
    }

    #[test]
    fn waits_of_all_threads_are_added() {
        let made = Made::new(&[
            ("/proc/self/task/10/schedstat", "100 5000 3\n"),
            ("/proc/self/task/11/schedstat", "100 7000 3\n"),
            ("/proc/self/task/12/schedstat", "broken"),
        ]);
        assert_eq!(own_cpu_us(&made.tree), 12);
    }

    #[test]
    fn without_files_nobody_waits() {
        let made = Made::new(&[]);
        assert_eq!((memory_us(&made.tree), cpu_us(&made.tree), own_cpu_us(&made.tree)), (None, None, 0));
        for text in ["", "some", "some total=", "some total=-1", "full total=1", "total=3", "some total=1e9"]
        {
            made.write("/proc/pressure/cpu", text);
            assert_eq!(cpu_us(&made.tree), None, "{text}");
        }
    }
}
