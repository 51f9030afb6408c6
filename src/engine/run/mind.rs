//! What the machine's state does to the engine thread: it rests, gives up what it keeps, and counts memory before a load.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::{Command, Runner};
use crate::engine::loaded::Loaded;
use crate::engine::manners::{Given, Have, Level, Short};
use crate::engine::ready::{Ready, need};
use crate::engine::scheduler::{Input, Micros, ModelKey};
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
        }
        if level >= Level::Background {
            self.input(Input::Pressure(level >= Level::Models));
        }
    }

    /// What `model` is given, which is about to be loaded, and which others go for it: those of `going`, then those that
    /// nobody uses, one after the other until it fits.
    ///
    /// # Errors
    /// When it does not fit though all of them go.
    pub(in crate::engine) fn fit(
        &self,
        model: &Loaded,
        mut going: Vec<ModelKey>,
    ) -> Result<(Given, Vec<ModelKey>), Short> {
        let settings = self.shared.settings();
        let need = need(model, &self.shared.options, settings.prefix_cache_bytes);
        let mut unused = self.scheduler.unused().into_iter();
        loop {
            match (need.fit(&self.have(&going, settings.memory_max_bytes)), unused.next()) {
                (Ok(given), _) => return Ok((given, going)),
                (Err(short), None) => return Err(short),
                (Err(_), Some(other)) => going.push(other),
            }
        }
    }

    /// Bytes that `model` takes at the least.
    pub(in crate::engine) fn least(&self, model: &Loaded) -> u64 {
        need(model, &self.shared.options, self.shared.settings().prefix_cache_bytes).least()
    }

    /// What there is for a model once those of `going` are gone, of at most `max` bytes for all.
    fn have(&self, going: &[ModelKey], max: u64) -> Have {
        // Where the kernel does not tell, the load itself finds out.
        let memory = Memory::read(&self.shared.options.tree);
        let (available, from) = memory.map_or((u64::MAX, String::new()), |m| (m.available, m.from));
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        let stay = self.ready.iter().filter(|(key, _)| !going.contains(key));
        let stay = stay.map(|(_, ready)| ready.needed_bytes());
        Have {
            available,
            from,
            own: sum(&mut self.ready.values().map(Ready::own_bytes)),
            // What a helper has taken so far of what it will is not known.
            stays: sum(&mut stay.chain(self.opening.iter().map(|l| l.least))),
            max,
        }
    }
}
