//! What the control groups of this process allow, in both versions of the kernel's interface. A limit of any group above
//! counts as well as the own one's.

use super::tree::Tree;
use crate::base::limits::CGROUP_DEPTH_MAX;

/// Limits of version 1 that stand for none begin here: the kernel's is 2^63 less a page.
const NO_LIMIT: u64 = 1 << 60;
/// Where version 2 is mounted: alone, or beside version 1.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The memory of the group that has least left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that its processes may have.
    pub limit: u64,
    /// Bytes they may still come to have, all that can be taken from page caches among them.
    pub free: u64,
    /// The file of the limit.
    pub from: String,
}

/// The folders of this process's group and of those above it, the own one first; `controllers` are named as in
/// `/proc/self/cgroup`, empty for version 2. None where a path leads out of what is mounted.
fn groups(tree: &Tree, mount: &str, controller: &str) -> Vec<String> {
    let text = tree.text("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        (path.starts_with('/') && names.split(',').any(|name| name == controller)).then_some(path)
    });
    let Some(mut path) = path.map(|path| path.trim_end_matches('/')) else { return Vec::new() };
    if path.split('/').any(|part| part == "..") {
        path = "";
    }
    let mut groups = Vec::new();
    while groups.len() < CGROUP_DEPTH_MAX {
        groups.push(format!("{mount}{path}"));
        match path.rsplit_once('/') {
            Some((above, _)) => path = above,
            None => break,
        }
    }
    groups
}

/// The folder of this process's own group of version 2; `None` where that is the one above all, or there is none.
#[must_use]
pub fn own(tree: &Tree) -> Option<String> {
    UNIFIED.into_iter().find_map(|mount| groups(tree, mount, "").into_iter().find(|group| *group != mount))
}

/// The group with the least memory left; `None` where none has a limit.
#[must_use]
pub fn memory(tree: &Tree) -> Option<Room> {
    let mut rooms = Vec::new();
    for group in UNIFIED.into_iter().flat_map(|mount| groups(tree, mount, "")) {
        let stat = |key: &str| tree.field(&format!("{group}/memory.stat"), key).unwrap_or(0);
        for name in ["memory.max", "memory.high"] {
            let from = format!("{group}/{name}");
            // "max" is no number: no limit.
            let Some(limit) = tree.number::<u64>(&from) else { continue };
            let current: u64 = tree.number(&format!("{group}/memory.current")).unwrap_or(0);
            let cached = stat("active_file ") + stat("inactive_file ") + stat("slab_reclaimable ");
            rooms.push(Room { limit, free: limit.saturating_sub(current.saturating_sub(cached)), from });
        }
    }
    for group in groups(tree, "/sys/fs/cgroup/memory", "memory") {
        let from = format!("{group}/memory.limit_in_bytes");
        let Some(limit) = tree.number::<u64>(&from).filter(|limit| *limit < NO_LIMIT) else { continue };
        let stat = |key: &str| tree.field(&format!("{group}/memory.stat"), key).unwrap_or(0);
        let current: u64 = tree.number(&format!("{group}/memory.usage_in_bytes")).unwrap_or(0);
        let cached = stat("total_active_file ") + stat("total_inactive_file ");
        rooms.push(Room { limit, free: limit.saturating_sub(current.saturating_sub(cached)), from });
    }
    rooms.into_iter().min_by_key(|room| room.free)
}

/// Processors' worth of time that this process may use, the least of all groups; `None` where none has a limit.
#[must_use]
pub fn cpus(tree: &Tree) -> Option<f64> {
    let share = |quota: &str, period: &str| {
        let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    };
    let unified = UNIFIED.into_iter().flat_map(|mount| groups(tree, mount, "")).filter_map(|group| {
        let text = tree.text(&format!("{group}/cpu.max"))?;
        let (quota, period) = text.trim().split_once(' ')?;
        share(quota, period)
    });
    let old = groups(tree, "/sys/fs/cgroup/cpu", "cpu").into_iter().filter_map(|group| {
        let quota = tree.text(&format!("{group}/cpu.cfs_quota_us"))?;
        let period = tree.text(&format!("{group}/cpu.cfs_period_us"))?;
        share(quota.trim(), period.trim())
    });
    unified.chain(old).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::super::tree::Made;
    use super::*;

    const SERVICE: &str = "/sys/fs/cgroup/system.slice/sottod.service";

    #[test]
    fn page_cache_is_not_counted_and_groups_above_are() {
        let made = Made::new(&[
            ("/proc/self/cgroup", "0::/system.slice/sottod.service\n"),
            (&format!("{SERVICE}/memory.max"), "1000000\n"),
            (&format!("{SERVICE}/memory.high"), "max\n"),
            (&format!("{SERVICE}/memory.current"), "900000\n"),
            (
                &format!("{SERVICE}/memory.stat"),
                "anon 100000\nfile 800000\ninactive_file 500000\nactive_file 290000\nslab_reclaimable 10000\n",
            ),
            (&format!("{SERVICE}/cpu.max"), "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n"),
        ]);
        let tree = &made.tree;
        let room = memory(tree).expect("a limit");
        assert_eq!((room.limit, room.free), (1_000_000, 900_000));
        assert!(room.from.ends_with("sottod.service/memory.max"), "{}", room.from);
        assert_eq!(cpus(tree), Some(1.5));
        assert_eq!(own(tree).as_deref(), Some(SERVICE));
        // The slice has less left than the service.
        made.write("/sys/fs/cgroup/system.slice/memory.high", "2000000");
        made.write("/sys/fs/cgroup/system.slice/memory.current", "1900000");
        let room = memory(tree).expect("a limit");
        assert_eq!((room.limit, room.free), (2_000_000, 100_000));
        assert!(room.from.ends_with("system.slice/memory.high"), "{}", room.from);
    }

    #[test]
    fn version_1_is_read_from_any_group_that_is_mounted() {
        let made = Made::new(&[
            ("/proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"),
            // As containers have it: the path is the host's, the mount begins at the group.
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4000\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n"),
            ("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1500\ntotal_active_file 500\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let room = memory(&made.tree).expect("a limit");
        assert_eq!((room.limit, room.free), (4_000, 3_000));
        assert_eq!((cpus(&made.tree), own(&made.tree)), (Some(0.5), None));
        made.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        made.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
        assert_eq!((memory(&made.tree), cpus(&made.tree)), (None, None));
    }

    #[test]
    fn hostile_files_are_no_limits() {
        for cgroup in ["", "0", "0:", "0::", "::::\n0::/../../etc\n", "0::/a/../b\n", "\0\0", "x:y:z"] {
            let made = Made::new(&[("/proc/self/cgroup", cgroup), ("/etc/memory.max", "1")]);
            assert_eq!(
                (memory(&made.tree), cpus(&made.tree), own(&made.tree)),
                (None, None, None),
                "{cgroup}"
            );
        }
        let deep = format!("0::{}", "/d".repeat(10_000));
        let made = Made::new(&[("/proc/self/cgroup", &deep)]);
        assert_eq!(memory(&made.tree), None);
        for limit in ["", "-1", "1e9", "99999999999999999999999", "max max"] {
            let made = Made::new(&[
                ("/proc/self/cgroup", "0::/a\n"),
                ("/sys/fs/cgroup/a/memory.max", limit),
                ("/sys/fs/cgroup/a/cpu.max", limit),
            ]);
            assert_eq!((memory(&made.tree), cpus(&made.tree)), (None, None), "{limit}");
        }
        for cpu in ["0 100000", "100000 0", "nan nan", "-5 1", "1"] {
            let made = Made::new(&[("/proc/self/cgroup", "0::/a\n"), ("/sys/fs/cgroup/a/cpu.max", cpu)]);
            assert_eq!(cpus(&made.tree), None, "{cpu}");
        }
    }
}
