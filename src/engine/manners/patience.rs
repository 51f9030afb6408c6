//! How long to wait before something that was given up is taken back: twice as long each time that this proved too early.

use crate::engine::scheduler::Micros;

/// Holds back.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    shortest: Micros,
    longest: Micros,
    hold: Micros,
    /// Since when there is no reason for what was given up.
    quiet_since: Option<Micros>,
    /// When it was last taken back.
    back: Option<Micros>,
}

impl Patience {
    /// Waits from `shortest` to `longest`.
    pub(super) fn new(shortest: Micros, longest: Micros) -> Self {
        Self { shortest, longest, hold: shortest, quiet_since: None, back: None }
    }

    /// Something is given up at `now`.
    pub(super) fn give_up(&mut self, now: Micros) {
        let early = self.back.is_some_and(|back| now < back.saturating_add(4 * self.hold));
        self.hold = if early { (2 * self.hold).min(self.longest) } else { self.shortest };
        self.quiet_since = None;
    }

    /// Whether it may be taken back now; `quiet`: nothing speaks against it at the moment.
    pub(super) fn may_take_back(&mut self, now: Micros, quiet: bool) -> bool {
        self.quiet_since = if quiet { self.quiet_since.or(Some(now)) } else { None };
        let may = self.quiet_since.is_some_and(|since| now >= since.saturating_add(self.hold));
        if may {
            self.back = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_relapse_doubles_the_wait_up_to_a_bound() {
        let mut patience = Patience::new(10, 40);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..4 {
            patience.give_up(now);
            let began = now;
            while !patience.may_take_back(now, true) {
                now += 1;
            }
            waits.push(now - began);
            now += 5;
        }
        assert_eq!(waits, [10, 20, 40, 40]);
        // It was right for long: the next time begins anew.
        now += 1_000;
        patience.give_up(now);
        assert!(!patience.may_take_back(now, true) && !patience.may_take_back(now + 9, true));
        assert!(!patience.may_take_back(now + 10, false), "not quiet");
        assert!(!patience.may_take_back(now + 11, true) && patience.may_take_back(now + 21, true));
    }
}
