//! What the machine's state does to the engine thread: it rests, gives up what it keeps, and counts memory before a load.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::{Command, Runner};
use crate::engine::manners::{Have, Level};
use crate::engine::ready::Ready;
use crate::engine::scheduler::{Input, Micros};
use crate::os::clock;
use crate::os::memory::Memory;

/// While it rests for the processor's sake it looks up this often, as its watchdog wants.
const REST_LOOK: Micros = 1_000_000;

impl Runner {
    /// Lets the processor cool down; what comes in meanwhile is taken.
    pub(super) fn rest(&mut self, inbox: &Receiver<Command>, now: Micros) {
        let longest = self.rest_until.saturating_sub(now).min(REST_LOOK);
        match inbox.recv_timeout(Duration::from_micros(longest)) {
            Ok(command) => self.take(command),
            Err(RecvTimeoutError::Timeout) => self.input(Input::Tick),
            // Nobody is left to rest for.
            Err(RecvTimeoutError::Disconnected) => self.rest_until = now,
        }
        self.shared.metrics.heat_us.add(clock::now_us().saturating_sub(now));
    }

    /// Gives up what memory is too short for, or begins to keep it again. Between two steps: what a step uses is not
    /// touched.
    pub(super) fn shed(&mut self) {
        let level = self.level;
        match level {
            Level::Calm => log::info!("memory is there again"),
            _ => log::warn!(
                message_id = "06851c4745194b2ead4b7c14fcd55fed"; "memory is short, given up: {}", level.told()
            ),
        }
        self.shed = level;
        for ready in self.ready.values_mut() {
            ready.keep_beginnings(level < Level::Prefixes);
            ready.tell();
        }
        if level >= Level::Background {
            self.input(Input::Pressure(level >= Level::Models));
        }
    }

    /// What there is for a model that is about to be loaded.
    pub(super) fn have(&self) -> Have {
        let o = &self.shared.options;
        // Where the kernel does not tell, the load itself finds out.
        let (available, from) =
            Memory::read(&o.tree).map_or((u64::MAX, String::new()), |m| (m.available, m.from));
        let of_all = |bytes: fn(&Ready) -> u64| self.ready.values().map(bytes).fold(0, u64::saturating_add);
        Have {
            available,
            from,
            own: of_all(Ready::own_bytes),
            stays: of_all(Ready::needed_bytes),
            max: o.memory_max_bytes,
        }
    }
}
