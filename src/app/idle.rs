//! When a daemon that nobody uses ends, where systemd starts it again for the next caller.

use std::time::Duration;

use tokio::time::Instant;

/// Since when nothing happens.
#[derive(Debug)]
pub(super) struct Idle {
    since: Instant,
    /// Layers that the engine had begun: an answer may be over between two looks.
    layers: u64,
}

impl Idle {
    /// From `now` on.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, layers: 0 }
    }

    /// Whether nothing has happened for long enough, `after` (`None`: never); `quiet`: nobody is connected and nothing runs
    /// or waits at the moment.
    pub(super) fn is_due(&mut self, now: Instant, after: Option<Duration>, quiet: bool, layers: u64) -> bool {
        if !quiet || layers != self.layers {
            (self.since, self.layers) = (now, layers);
        }
        after.is_some_and(|after| now >= self.due(after))
    }

    /// When it is, if nothing happens until then.
    pub(super) fn due(&self, after: Duration) -> Instant {
        self.since + after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a moment to count from")]
    fn due_after_so_long_without_work() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut idle = Idle::new(start);
        let after = Some(Duration::from_secs(60));
        let mut due = |s, quiet, layers| idle.is_due(at(s), after, quiet, layers);
        assert!(!due(59, true, 0) && due(60, true, 0));
        assert!(!due(70, false, 0) && !due(129, true, 0) && due(130, true, 0));
        assert!(!due(131, true, 5), "an answer between two looks");
        assert!(!due(190, true, 5) && due(191, true, 5));
        assert!(!idle.is_due(at(1 << 30), None, true, 5));
    }
}
