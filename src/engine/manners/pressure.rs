//! What is given up while memory is short, one thing after the other: what is only remembered before what somebody rests
//! on, and the model itself last.

use super::patience::Patience;
use crate::engine::scheduler::Micros;

/// How much is given up; each with everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine) enum Level {
    /// Nothing.
    #[default]
    Calm,
    /// Beginnings that are kept for later requests.
    Prefixes,
    /// What background answers keep that have no place.
    Background,
    /// Models that nobody uses.
    Models,
}

impl Level {
    /// What is given up, for the log.
    pub(in crate::engine) fn told(self) -> &'static str {
        match self {
            Self::Calm => "nothing",
            Self::Prefixes => "beginnings kept for later requests",
            Self::Background => "also what resting background answers keep",
            Self::Models => "also models that nobody uses",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Calm => Self::Prefixes,
            Self::Prefixes => Self::Background,
            Self::Background | Self::Models => Self::Models,
        }
    }
}

/// What is read at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Reading {
    /// Microseconds in which somebody waited for memory, since some moment; `None` where the kernel does not tell.
    pub stalled: Option<Micros>,
    /// Bytes there are, and that could be had.
    pub total: u64,
    pub available: u64,
}

/// Somebody waits for memory a tenth of the time: what systemd as well calls pressure.
const PRESSED_PERCENT: u64 = 10;
/// Nobody does, as good as.
const QUIET_PERCENT: u64 = 1;
/// Less than this part of all can be had: for kernels that do not tell who waits, and because waiting comes late.
const LOW: u64 = 16;
/// More than this part can be had.
const PLENTY: u64 = 8;
/// How long what was given up has to show that it was enough.
const STEP: Micros = 2_000_000;
/// How long memory has to be there before it is taken back.
const HOLD: (Micros, Micros) = (30_000_000, 480_000_000);

/// Decides it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Ladder {
    level: Level,
    /// When it was last raised.
    raised: Micros,
    last: Option<(Micros, Micros)>,
    patience: Patience,
}

impl Ladder {
    pub(in crate::engine) fn new() -> Self {
        Self { level: Level::Calm, raised: 0, last: None, patience: Patience::new(HOLD.0, HOLD.1) }
    }

    /// What is to be given up from now on.
    pub(in crate::engine) fn look(&mut self, now: Micros, reading: Reading) -> Level {
        let before = std::mem::replace(&mut self.last, reading.stalled.map(|stalled| (now, stalled)));
        let percent = before.zip(reading.stalled).map_or(0, |((at, before), stalled)| {
            (stalled.saturating_sub(before).saturating_mul(100))
                .checked_div(now.saturating_sub(at))
                .unwrap_or(0)
        });
        let Reading { total, available, .. } = reading;
        if percent >= PRESSED_PERCENT || available < total / LOW {
            if self.level == Level::Calm {
                self.patience.give_up(now);
            }
            if self.level == Level::Calm || now >= self.raised.saturating_add(STEP) {
                (self.level, self.raised) = (self.level.next(), now);
            }
        }
        let quiet = percent <= QUIET_PERCENT && available >= total / PLENTY;
        if self.level > Level::Calm && self.patience.may_take_back(now, quiet) {
            self.level = Level::Calm;
        }
        self.level
    }
}

#[cfg(test)]
mod tests {
    use arbtest::arbtest;

    use super::*;

    const S: Micros = 1_000_000;

    fn reading(stalled: Option<Micros>, available: u64) -> Reading {
        Reading { stalled, total: 1_000, available }
    }

    #[test]
    fn one_thing_after_the_other_goes_while_somebody_waits() {
        let mut ladder = Ladder::new();
        let mut stalled = 0;
        let mut levels = Vec::new();
        for s in 0..10 {
            // From the third second on somebody waits a fifth of the time.
            stalled += if s > 2 { S / 5 } else { 0 };
            levels.push(ladder.look(s * S, reading(Some(stalled), 500)));
        }
        use Level::{Background, Calm, Models, Prefixes};
        assert_eq!(
            levels,
            [Calm, Calm, Calm, Prefixes, Prefixes, Background, Background, Models, Models, Models]
        );
        // It stays so for half a minute of quiet, and comes back sooner than it goes again.
        for s in 10..41 {
            let level = ladder.look(s * S, reading(Some(stalled), 500));
            assert_eq!(level, if s < 40 { Models } else { Calm }, "{s}");
        }
        ladder.look(41 * S, reading(Some(stalled + S), 500));
        for s in 42..110 {
            let level = ladder.look(s * S, reading(Some(stalled + S), 500));
            assert_eq!(level, if s < 102 { Prefixes } else { Calm }, "{s}");
        }
    }

    #[test]
    fn without_the_kernels_word_what_is_left_counts() {
        let mut ladder = Ladder::new();
        assert_eq!(ladder.look(0, reading(None, 63)), Level::Calm);
        assert_eq!(ladder.look(S, reading(None, 61)), Level::Prefixes);
        // Between low and plenty nothing changes.
        assert_eq!(ladder.look(500 * S, reading(None, 100)), Level::Prefixes);
        assert_eq!(ladder.look(501 * S, reading(None, 200)), Level::Prefixes);
        assert_eq!(ladder.look(531 * S, reading(None, 200)), Level::Calm);
    }

    /// Whatever is read, a level is raised by one at a time, not before the last step had its time, and never without a
    /// reason; and it falls only after the shortest wait.
    #[test]
    fn any_readings_keep_the_rules() {
        arbtest(|u| {
            let (mut ladder, mut now, mut stalled, mut raised) = (Ladder::new(), 0_u64, 0_u64, 0_u64);
            let mut before = Level::Calm;
            for _ in 0..u.int_in_range(0..=60)? {
                let (step, wait) = (u.int_in_range(0..=5 * S)?, u.int_in_range(0..=S)?);
                let available = u.int_in_range(0..=1_000)?;
                now += step;
                stalled += wait;
                let level = ladder.look(now, reading(u.ratio(3, 4)?.then_some(stalled), available));
                match level.cmp(&before) {
                    std::cmp::Ordering::Greater => {
                        assert_eq!(level, before.next());
                        assert!(before == Level::Calm || now >= raised + STEP);
                        raised = now;
                    }
                    std::cmp::Ordering::Less => {
                        assert_eq!(level, Level::Calm);
                        assert!(now >= raised + HOLD.0 && available >= 1_000 / PLENTY);
                    }
                    std::cmp::Ordering::Equal => {}
                }
                before = level;
            }
            Ok(())
        });
    }
}
