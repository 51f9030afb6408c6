//! What the machine's state asks of the engine: readings go in, orders come out. Everything but [`Manners`] is without
//! clock and files, so that boards and busy machines can be simulated.

mod heat;
mod memory;
mod patience;
mod pressure;
mod threads;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

pub(super) use memory::{Given, Have, Need, Short};
pub(super) use pressure::Level;

use super::scheduler::Micros;
use crate::os::memory::Memory;
use crate::os::thermal::{self, Zone};
use crate::os::tree::Tree;
use crate::os::{cpus, pressure as stalls};
use heat::{Governor, Heat};
use pressure::{Ladder, Reading};
use threads::{Threads, Waits};

/// What holds for the engine thread's next step. Relaxed: each number counts for itself, and a late look costs a step.
#[derive(Debug)]
pub(super) struct Orders {
    threads: AtomicUsize,
    rest: AtomicU32,
    short: AtomicBool,
}

impl Orders {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads: AtomicUsize::new(threads), rest: AtomicU32::new(0), short: AtomicBool::new(false) }
    }

    /// Threads that compute.
    pub(super) fn threads(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    /// Thousandths of the time to rest, below 1000.
    pub(super) fn rest(&self) -> u32 {
        self.rest.load(Ordering::Relaxed)
    }

    /// Memory is short.
    pub(super) fn short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// How long to rest after a step that took `us`.
    pub(super) fn rest_after(&self, us: Micros) -> Micros {
        let rest = u64::from(self.rest()).min(999);
        us.saturating_mul(rest) / (1_000 - rest)
    }
}

/// What the engine is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing; no model is in memory.
    Nothing,
    /// Nothing; a model is in memory.
    Rest,
    /// Answers.
    Work,
}

/// Looks at the machine, once a second.
#[derive(Debug)]
pub(super) struct Manners {
    tree: Tree,
    /// Threads that the owner wants, whatever others want.
    fixed: Option<usize>,
    /// Processors that compute; none: all that the process may use.
    cpus: Vec<usize>,
    /// Sensors, each with the heat at which the processor is slowed down.
    zones: Vec<(Zone, i32)>,
    firmware: Option<String>,
    governor: Governor,
    threads: Threads,
    ladder: Ladder,
    level: Level,
}

impl Manners {
    pub(super) fn new(tree: Tree, fixed: Option<usize>, cpus: Vec<usize>) -> Self {
        let firmware = thermal::firmware(&tree);
        // The file is no other board's, and a sandbox may hide the board's name.
        let raspberry_pi = firmware.is_some() || thermal::is_raspberry_pi(&tree);
        let limit = |zone: Zone| {
            let limit = heat::limit(zone.passive, zone.critical, raspberry_pi)?;
            Some((zone, limit))
        };
        Self {
            fixed,
            cpus,
            zones: Zone::all(&tree).into_iter().filter_map(limit).collect(),
            firmware,
            governor: Governor::default(),
            threads: Threads::new(),
            ladder: Ladder::new(),
            level: Level::Calm,
            tree,
        }
    }

    /// Reads what is of interest and gives orders; returns what is to be given up from now on, where that changes.
    pub(super) fn look(&mut self, now: Micros, at: At, orders: &Orders) -> Option<Level> {
        if at == At::Work {
            self.look_at_processors(now, orders);
        } else {
            self.governor.idle();
            orders.rest.store(0, Ordering::Relaxed);
        }
        // Without a model there is nothing to give up, and nothing is read.
        let memory = (at != At::Nothing).then(|| Memory::read(&self.tree)).flatten()?;
        let stalled = stalls::memory_us(&self.tree);
        let Memory { total, available, .. } = memory;
        let level = self.ladder.look(now, Reading { stalled, total, available });
        let before = std::mem::replace(&mut self.level, level);
        orders.short.store(level > Level::Calm, Ordering::Relaxed);
        (level != before).then_some(level)
    }

    fn look_at_processors(&mut self, now: Micros, orders: &Orders) {
        let heat =
            |(zone, limit): &(Zone, i32)| Some(Heat { now: zone.temperature(&self.tree)?, limit: *limit });
        let throttled = self.firmware.as_deref().is_some_and(|file| thermal::is_throttled(&self.tree, file));
        let rest = self.governor.look(self.zones.iter().filter_map(heat), throttled);
        orders.rest.store(rest, Ordering::Relaxed);
        if self.fixed.is_none() {
            let all = stalls::cpu_us(&self.tree);
            let waits = all.map(|all| Waits { all, own: stalls::own_cpu_us(&self.tree) });
            let n = self.threads.look(now, cpus::n_threads(&self.tree, &self.cpus), waits);
            orders.threads.store(n, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::tree::Made;

    const S: Micros = 1_000_000;

    #[test]
    fn readings_become_orders() {
        let zone = "/sys/class/thermal/thermal_zone0";
        let made = Made::new(&[
            ("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
            (&format!("{zone}/type"), "cpu-thermal"),
            (&format!("{zone}/temp"), "50000"),
            ("/proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 500 kB\n"),
        ]);
        let orders = Orders::new(4);
        let mut manners = Manners::new(made.tree.clone(), None, Vec::new());
        assert_eq!(manners.look(0, At::Work, &orders), None);
        assert_eq!((orders.rest(), orders.short(), orders.rest_after(1_000)), (0, false, 0));
        assert_eq!(orders.threads(), cpus::n_threads(&made.tree, &[]));
        // A group that gives one processor's time.
        made.write("/proc/self/cgroup", "0::/a");
        made.write("/sys/fs/cgroup/a/cpu.max", "100000 100000");
        made.write(&format!("{zone}/temp"), "79000");
        made.write("/proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 50 kB\n");
        assert_eq!(manners.look(S, At::Work, &orders), Some(Level::Prefixes));
        assert_eq!((orders.threads(), orders.rest(), orders.short()), (1, 900, true));
        assert_eq!(orders.rest_after(1_000), 9_000);
        assert_eq!(manners.look(2 * S, At::Nothing, &orders), None, "nothing is read");
        assert_eq!(orders.rest(), 0);
        assert_eq!(manners.look(4 * S, At::Rest, &orders), Some(Level::Background));
        // The owner's number stays.
        let orders = Orders::new(4);
        Manners::new(made.tree.clone(), Some(4), Vec::new()).look(0, At::Work, &orders);
        assert_eq!((orders.threads(), orders.rest()), (4, 900));
    }
}
