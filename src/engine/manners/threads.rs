//! With how many threads to compute: one fewer while others wait for a processor.

use super::patience::Patience;
use crate::engine::scheduler::Micros;

/// What is read at a time, in microseconds since some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Waits {
    /// In which anybody waited for a processor.
    pub all: Micros,
    /// That threads of this process waited, added up.
    pub own: Micros,
}

/// Others wait this part of the time.
const MANY_PERCENT: u64 = 10;
/// Nobody does, as good as.
const FEW_PERCENT: u64 = 3;
/// For so long: a short burst is over before anything would be gained.
const LASTING: Micros = 3_000_000;
/// How long nobody has to wait before the thread is taken back.
const HOLD: (Micros, Micros) = (10_000_000, 160_000_000);
/// Readings further apart say nothing of now.
const APART: Micros = 5_000_000;

/// Decides it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Threads {
    fewer: bool,
    many_since: Option<Micros>,
    last: Option<(Micros, Waits)>,
    patience: Patience,
}

impl Threads {
    pub(in crate::engine) fn new() -> Self {
        Self { fewer: false, many_since: None, last: None, patience: Patience::new(HOLD.0, HOLD.1) }
    }

    /// Threads of the `usable` ones that are to compute from now on, while they have something to do. `waits` is `None` where
    /// the kernel does not tell.
    pub(in crate::engine) fn look(&mut self, now: Micros, usable: usize, waits: Option<Waits>) -> usize {
        let before = std::mem::replace(&mut self.last, waits.map(|waits| (now, waits)));
        let percent = before.zip(waits).and_then(|((at, before), waits)| {
            let apart = now.saturating_sub(at);
            // What our own threads wait is no reason to have fewer: they are in nobody's way but each other's.
            let others =
                waits.all.saturating_sub(before.all).saturating_sub(waits.own.saturating_sub(before.own));
            (apart <= APART).then(|| others.saturating_mul(100).checked_div(apart)).flatten()
        });
        let Some(percent) = percent else {
            self.many_since = None;
            return self.of(usable);
        };
        self.many_since = (percent >= MANY_PERCENT).then_some(self.many_since.unwrap_or(now));
        if self.fewer {
            self.fewer = !self.patience.may_take_back(now, percent <= FEW_PERCENT);
        } else if self.many_since.is_some_and(|since| now >= since.saturating_add(LASTING)) {
            self.fewer = true;
            self.patience.give_up(now);
        }
        self.of(usable)
    }

    fn of(&self, usable: usize) -> usize {
        usable.saturating_sub(usize::from(self.fewer)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use arbtest::arbtest;

    use super::*;

    const S: Micros = 1_000_000;

    #[test]
    fn one_fewer_while_others_wait_and_not_for_ourselves() {
        let mut threads = Threads::new();
        let (mut all, mut own) = (0, 0);
        let mut told = Vec::new();
        for s in 0..40 {
            // Second 2: a burst. 5 to 10: we wait. 12 to 18: others.
            match s {
                2 => all += S,
                5..10 => (all, own) = (all + S / 2, own + S / 2),
                12..18 => all += S / 4,
                _ => {}
            }
            told.push(threads.look(s * S, 4, Some(Waits { all, own })));
        }
        let fewer: Vec<_> = (0..40).filter(|s| told[*s] == 3).collect();
        assert_eq!(fewer, (15..28).collect::<Vec<_>>());
        assert!(told.iter().all(|n| *n == 3 || *n == 4));
        assert_eq!(Threads::new().look(0, 4, None), 4, "kernels without the word");
    }

    #[test]
    fn any_readings_leave_one_thread_at_least_and_one_fewer_at_most() {
        arbtest(|u| {
            let (mut threads, mut now, mut all, mut own) = (Threads::new(), 0, 0, 0);
            for _ in 0..u.int_in_range(0..=60)? {
                now += u.int_in_range(0..=8 * S)?;
                all += u.int_in_range(0..=S)?;
                own += u.int_in_range(0..=S)?;
                let usable = u.int_in_range(0..=8)?;
                let waits = u.ratio(7, 8)?.then_some(Waits { all, own });
                let n = threads.look(now, usable, waits);
                assert!(n >= 1 && n <= usable.max(1) && n + 1 >= usable);
            }
            Ok(())
        });
    }
}
