//! When a daemon that nobody uses ends, where systemd starts it again for the next caller.

use std::time::Duration;

use tokio::time::Instant;

/// Since when nothing happens.
#[derive(Debug)]
pub(super) struct Idle {
    after: Option<Duration>,
    since: Instant,
    /// Layers that the engine had begun: an answer may be over between two looks.
    layers: u64,
}

impl Idle {
    /// Due `after` so much time without work; `None`: never.
    pub(super) fn new(after: Option<Duration>, now: Instant) -> Self {
        Self { after, since: now, layers: 0 }
    }

    /// Whether nothing has happened for long enough; `quiet`: nobody is connected and nothing runs or waits at the moment.
    pub(super) fn is_due(&mut self, now: Instant, quiet: bool, layers: u64) -> bool {
        if !quiet || layers != self.layers {
            (self.since, self.layers) = (now, layers);
        }
        self.after.is_some_and(|after| now.duration_since(self.since) >= after)
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
        let mut idle = Idle::new(Some(Duration::from_secs(60)), start);
        assert!(!idle.is_due(at(59), true, 0) && idle.is_due(at(60), true, 0));
        assert!(
            !idle.is_due(at(70), false, 0) && !idle.is_due(at(129), true, 0) && idle.is_due(at(130), true, 0)
        );
        assert!(!idle.is_due(at(131), true, 5), "an answer between two looks");
        assert!(!idle.is_due(at(190), true, 5) && idle.is_due(at(191), true, 5));
        assert!(!Idle::new(None, start).is_due(at(1 << 30), true, 0));
    }
}
