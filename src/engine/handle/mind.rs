//! The look at the machine, for who has the time: whatever thread holds the engine, not the engine's own.

use super::{Engine, ModelState};
use crate::engine::manners::At;
use crate::engine::metrics::lock;
use crate::engine::run::Command;
use crate::os::clock;

impl Engine {
    /// Looks at the machine, whose state decides how much is computed and kept; to be called about once a second. Who does
    /// not, computes at full speed and keeps all.
    pub fn look_at_machine(&self) {
        let status = self.status();
        let held = || lock(&self.shared.catalogue).values().any(|e| e.info.state == ModelState::Loaded);
        let at = match status.active_generations + status.queue_length {
            0 if held() => At::Rest,
            0 => At::Nothing,
            _ => At::Work,
        };
        let changed = lock(&self.shared.manners).look(clock::now_us(), at, &self.shared.orders);
        if let Some(level) = changed {
            // A stopped engine keeps nothing.
            drop(self.commands.send(Command::Pressure(level)));
        }
    }

    /// Threads that compute now.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.orders.threads()
    }
}
