//! Who wants to hear that a model, or the state of the daemon, has changed.

use std::fmt;
use std::sync::Mutex;

use super::metrics::lock;

/// Called after a change; false once it need not be called any more.
type Watcher = Box<dyn Fn() -> bool + Send>;

/// All of them.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Vec<Watcher>>);

impl Watchers {
    /// From now on `watcher` hears of changes, on the thread that makes them; it must not block, nor look at the engine.
    pub(super) fn add(&self, watcher: Watcher) {
        lock(&self.0).push(watcher);
    }

    /// Tells of a change.
    pub(super) fn tell(&self) {
        lock(&self.0).retain(|watcher| watcher());
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} watchers", lock(&self.0).len())
    }
}
