//! How much to rest between steps, so that the processor stays below the heat at which it would be slowed down: a firmware
//! that throttles takes speed from everything on the machine, and keeps it low for longer than was needed.

/// The heat at which the firmware of a Raspberry Pi begins to slow it down (its `temp_limit` less 5), in thousandths of a
/// degree. The kernel knows nothing of it: its own trip point is at 110.
const RASPBERRY_PI: i32 = 80_000;
/// How far below the point at which a machine turns itself off it is slowed down at the latest, where the kernel names no
/// other.
const BELOW_CRITICAL: i32 = 15_000;

/// The processor is slowed down from this heat on; `None` where nothing says so.
pub(in crate::engine) fn limit(
    passive: Option<i32>,
    critical: Option<i32>,
    raspberry_pi: bool,
) -> Option<i32> {
    let kernel = passive.or(critical.map(|at| at - BELOW_CRITICAL));
    [raspberry_pi.then_some(RASPBERRY_PI), kernel].into_iter().flatten().min()
}

/// A sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Heat {
    /// What it shows, thousandths of a degree.
    pub now: i32,
    /// Where the processor is slowed down.
    pub limit: i32,
}

/// Rests begin so far below the limit,
const BEGIN: i32 = 10_000;
/// and are longest here.
const FULL: i32 = 2_000;
/// Longest rests, in thousandths of the time.
const REST_MAX: i32 = 900;
/// Readings are a second apart; so many of them ahead the heat is guessed, because a die follows its load within seconds.
const AHEAD: i32 = 3;
/// Each time that it is slowed down all the same, the limit was lower than was thought: it is taken for so much lower, up
/// to the last. The firmware of a Raspberry Pi 3 B+ begins at 60.
const LOWER: (i32, i32) = (1_000, 20_000);

/// Distances beyond this are none of a sensor's: sums stay small.
const ROOM_MAX: i32 = 200_000;

/// Decides it, by a reading each second.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Governor {
    /// By how much limits are taken for lower.
    lowered: i32,
    /// The hottest sensor's distance to its limit at the last reading, and how fast it shrinks.
    last: Option<i32>,
    slope: i32,
}

impl Governor {
    /// Thousandths of the time to rest from now on. `throttled`: the firmware says that it slows the processor down.
    pub(in crate::engine) fn look(&mut self, sensors: impl Iterator<Item = Heat>, throttled: bool) -> u32 {
        if throttled {
            self.lowered = (self.lowered + LOWER.0).min(LOWER.1);
        }
        let room = sensors.map(|heat| heat.limit.saturating_sub(heat.now).clamp(-ROOM_MAX, ROOM_MAX)).min();
        let before = std::mem::replace(&mut self.last, room);
        let Some(room) = room else { return 0 };
        let grew = before.map_or(0, |before| before.saturating_sub(room));
        // A quarter of the weight is the newest's: sensors jump by half a degree.
        self.slope = (3 * self.slope + grew) / 4;
        let ahead = room - self.lowered - self.slope.max(0).saturating_mul(AHEAD);
        let rest = (BEGIN - ahead).saturating_mul(REST_MAX) / (BEGIN - FULL);
        rest.clamp(0, REST_MAX).cast_unsigned()
    }

    /// Nothing is computed: the next reading begins anew.
    pub(in crate::engine) fn idle(&mut self) {
        (self.last, self.slope) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board: a die over a body (a spreader, a heat sink) over the air. Degrees, watts, seconds.
    #[derive(Clone, Copy)]
    struct Board {
        /// At rest, and what all threads add.
        idle_w: f64,
        load_w: f64,
        /// Resistance in degrees for a watt, and time constant: of the die over the body, of the body over the air.
        die: (f64, f64),
        body: (f64, f64),
        limit: f64,
    }

    /// As published readings have it: about 60 degrees over the air under load without a heat sink, in five minutes.
    const PI_4_BARE: Board =
        Board { idle_w: 2.5, load_w: 4.5, die: (1.2, 2.0), body: (7.5, 150.0), limit: 80.0 };
    const PI_5_BARE: Board =
        Board { idle_w: 3.0, load_w: 7.0, die: (1.0, 1.5), body: (5.5, 120.0), limit: 80.0 };
    const PI_5_COOLED: Board =
        Board { idle_w: 3.0, load_w: 7.0, die: (1.0, 1.5), body: (2.0, 60.0), limit: 80.0 };
    const ORIN_NANO: Board =
        Board { idle_w: 4.0, load_w: 16.0, die: (0.6, 2.0), body: (3.2, 200.0), limit: 99.0 };

    struct Run {
        hottest: f64,
        /// The part of the time that was computed, of all and of the last third.
        worked: f64,
        worked_at_last: f64,
        /// Largest change of the rest between two seconds in the last third.
        unrest: u32,
    }

    /// Half an hour of load.
    fn run(board: Board, air: f64) -> Run {
        const SECONDS: u32 = 1_800;
        let mut governor = Governor::default();
        let mut body = air + board.idle_w * board.body.0;
        let mut die = body + board.idle_w * board.die.0;
        let mut run = Run { hottest: 0.0, worked: 0.0, worked_at_last: 0.0, unrest: 0 };
        let mut before = 0;
        let mut noise = crate::base::rng::Rng::new(7);
        for second in 0..SECONDS {
            let jitter = f64::from(noise.next_f32()) - 0.5;
            let heat = Heat { now: ((die + jitter) * 1e3) as i32, limit: (board.limit * 1e3) as i32 };
            let rest = governor.look([heat].into_iter(), false);
            let late = second >= SECONDS * 2 / 3;
            if late {
                run.unrest = run.unrest.max(rest.abs_diff(before));
            }
            before = rest;
            let work = 1.0 - f64::from(rest) / 1e3;
            run.worked += work / f64::from(SECONDS);
            run.worked_at_last += if late { work * 3.0 / f64::from(SECONDS) } else { 0.0 };
            for _ in 0..10 {
                let watts = board.idle_w + work * board.load_w;
                body += (air + watts * board.body.0 - body) / board.body.1 / 10.0;
                die += (body + watts * board.die.0 - die) / board.die.1 / 10.0;
                run.hottest = run.hottest.max(die);
            }
        }
        run
    }

    #[test]
    fn no_board_reaches_the_heat_at_which_it_is_slowed_down() {
        for (name, board) in
            [("Pi 4", PI_4_BARE), ("Pi 5", PI_5_BARE), ("Pi 5 cooled", PI_5_COOLED), ("Orin Nano", ORIN_NANO)]
        {
            for air in [-10.0, 0.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0] {
                let run = run(board, air);
                assert!(run.hottest < board.limit, "{name} in {air}: {}", run.hottest);
                assert!(run.unrest <= 300, "{name} in {air}: rests jump by {}", run.unrest);
                // Where full load stays 15 degrees below the limit, nothing is paid for it.
                let watts = board.idle_w + board.load_w;
                let full = air + watts * (board.body.0 + board.die.0);
                if full < board.limit - 15.0 {
                    assert!(run.worked > 0.999, "{name} in {air}: {}", run.worked);
                }
                // Else at least two thirds of what heat allows are used.
                let allowed = (board.limit - air) / (board.body.0 + board.die.0) - board.idle_w;
                let allowed = (allowed / board.load_w).clamp(0.0, 1.0);
                assert!(
                    run.worked_at_last > allowed * 0.66,
                    "{name} in {air}: {} of {allowed}",
                    run.worked_at_last
                );
            }
        }
    }

    #[test]
    fn a_firmware_that_begins_sooner_is_believed() {
        let mut governor = Governor::default();
        let warm = Heat { now: 60_000, limit: RASPBERRY_PI };
        assert_eq!(governor.look([warm].into_iter(), false), 0);
        let rests: Vec<u32> = (0..30).map(|_| governor.look([warm].into_iter(), true)).collect();
        assert!(rests.is_sorted() && rests[29] == REST_MAX.cast_unsigned(), "{rests:?}");
        assert_eq!(
            governor.look([Heat { now: 45_000, ..warm }].into_iter(), false),
            0,
            "cool enough for any"
        );
    }

    #[test]
    fn limits_are_the_lowest_that_is_known() {
        assert_eq!(limit(None, None, false), None);
        assert_eq!(limit(None, Some(110_000), true), Some(80_000));
        assert_eq!(limit(Some(99_000), Some(104_500), false), Some(99_000));
        assert_eq!(limit(None, Some(105_000), false), Some(90_000));
        assert_eq!(limit(Some(85_000), Some(110_000), true), Some(80_000));
        assert_eq!(Governor::default().look([].into_iter(), true), 0, "no sensor, no rest");
    }

    #[test]
    fn hostile_readings_stop_nothing() {
        let mut governor = Governor::default();
        for now in [i32::MIN, i32::MAX, 0, -1, 150_000, i32::MIN] {
            for limit in [i32::MAX, i32::MIN, 80_000] {
                assert!(governor.look([Heat { now, limit }].into_iter(), true) <= 900);
            }
        }
        governor.idle();
        assert_eq!(governor.look([Heat { now: 20_000, limit: 90_000 }].into_iter(), false), 0);
    }
}
