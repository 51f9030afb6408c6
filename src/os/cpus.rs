//! Which processors there are to compute on.

use std::collections::BTreeMap;

use super::cgroup;
use super::thread::N_CPU_MAX;
use super::tree::Tree;
use crate::base::limits::N_THREADS_MAX;

/// The processors that the calling thread may run on; those of `wanted`, if there are any.
#[must_use]
pub fn allowed(wanted: &[usize]) -> Vec<usize> {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let all = (0..N_CPU_MAX).filter(|cpu| allowed.is_set(*cpu));
    let (own, others): (Vec<usize>, Vec<usize>) = all.partition(|cpu| wanted.contains(cpu));
    if own.is_empty() { others } else { own }
}

/// Physical cores among `allowed` that are about as fast as the fastest of them, at least 1. Two threads of one core share
/// its arithmetic, so a second one only costs; and where threads meet after each product, a core of a third of the speed
/// is waited for.
#[must_use]
pub fn n_fast(tree: &Tree, allowed: &[usize]) -> usize {
    let of = |cpu: usize, what: &str| format!("/sys/devices/system/cpu/cpu{cpu}/{what}");
    let mut cores = BTreeMap::new();
    for &cpu in allowed {
        // The first sibling names the core; where the kernel does not tell, each is one of its own.
        let siblings = tree.text(&of(cpu, "topology/thread_siblings_list")).unwrap_or_default();
        let core = siblings.split([',', '-', '\n']).next().and_then(|n| n.parse().ok()).unwrap_or(cpu);
        // Arm's kernels know how much each does, others how fast each may run.
        let capacity = tree.number(&of(cpu, "cpu_capacity"));
        let speed: Option<u64> = capacity.or_else(|| tree.number(&of(cpu, "cpufreq/cpuinfo_max_freq")));
        cores.insert(core, speed);
    }
    let fastest = cores.values().flatten().max().copied();
    let fast = |speed: &&Option<u64>| match (**speed, fastest) {
        // Two thirds: the small cores of Arm's pairs have a fifth to a half, those of Intel's up to three quarters.
        (Some(speed), Some(fastest)) => u128::from(speed) * 3 >= u128::from(fastest) * 2,
        _ => true,
    };
    cores.values().filter(fast).count().max(1)
}

/// Threads that can compute at a time: fast physical cores among `allowed`, as far as control groups give them time.
#[must_use]
pub fn n_usable(tree: &Tree, allowed: &[usize]) -> usize {
    let cores = n_fast(tree, allowed);
    // A thread that the kernel stops in each period is waited for by all others. A tenth short is taken for whole.
    cgroup::cpus(tree).map_or(cores, |share| cores.min((share + 0.1) as usize)).max(1)
}

/// The same for the calling thread and the processors that are `wanted`: how many threads compute where nobody says how
/// many.
#[must_use]
pub fn n_threads(tree: &Tree, wanted: &[usize]) -> usize {
    n_usable(tree, &allowed(wanted)).min(N_THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tree::Made;
    use super::*;

    /// Processors with their first sibling and speed.
    fn machine(cpus: &[(usize, usize, u64)], what: &str) -> Made {
        let made = Made::new(&[]);
        for (cpu, sibling, speed) in cpus {
            let folder = format!("/sys/devices/system/cpu/cpu{cpu}");
            made.write(&format!("{folder}/topology/thread_siblings_list"), format!("{sibling},9{cpu}\n"));
            made.write(&format!("{folder}/{what}"), format!("{speed}\n"));
        }
        made
    }

    #[test]
    fn cores_are_counted_once_and_slow_ones_not() {
        // A Rockchip RK3588.
        let capacities = [397, 397, 397, 397, 1_024, 1_024, 1_024, 1_024];
        let cpus: Vec<_> = capacities.iter().enumerate().map(|(i, c)| (i, i, *c)).collect();
        let made = machine(&cpus, "cpu_capacity");
        assert_eq!(n_fast(&made.tree, &[0, 1, 2, 3, 4, 5, 6, 7]), 4);
        assert_eq!(n_fast(&made.tree, &[0, 1, 2, 3]), 4, "all that may be used");
        assert_eq!(n_fast(&made.tree, &[3, 4]), 1);
        // Two threads each, and four small cores.
        let cpus = [(0, 0, 5_000), (1, 0, 5_000), (2, 2, 5_000), (3, 2, 5_000), (4, 4, 3_800), (5, 5, 1_000)];
        let made = machine(&cpus, "cpufreq/cpuinfo_max_freq");
        assert_eq!(n_fast(&made.tree, &[0, 1, 2, 3, 4, 5]), 3);
        let made = Made::new(&[]);
        assert_eq!((n_fast(&made.tree, &[0, 7]), n_fast(&made.tree, &[])), (2, 1));
    }

    #[test]
    fn the_time_that_a_group_gives_counts() {
        let made = Made::new(&[("/proc/self/cgroup", "0::/a")]);
        for (max, wanted) in [
            ("max 100000", 4),
            ("390000 100000", 4),
            ("250000 100000", 2),
            ("50000 100000", 1),
            ("900000 100000", 4),
        ] {
            made.write("/sys/fs/cgroup/a/cpu.max", max);
            assert_eq!(n_usable(&made.tree, &[0, 1, 2, 3]), wanted, "{max}");
        }
        let all = allowed(&[]);
        assert_eq!(allowed(&[all[0], N_CPU_MAX]), [all[0]]);
        assert_eq!(allowed(&[N_CPU_MAX]), all, "none of those that are wanted");
    }
}
