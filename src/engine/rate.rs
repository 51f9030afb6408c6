//! How much each uid may ask for in a minute (`limits.*`). What is used runs off evenly, so a uid that was silent for a
//! minute may ask for all of it at once. Pure: time comes in as a number.

use std::collections::BTreeMap;

use super::scheduler::Micros;
use super::{Code, Fault, Rate, Settings};
use crate::base::limits::N_RATED_UID_MAX;

const MINUTE: Micros = 60_000_000;

/// How much of something was used, in units times [`MINUTE`], so that a microsecond takes as much off as a minute allows
/// units.
#[derive(Clone, Copy, Debug, Default)]
struct Used(u64);

impl Used {
    fn run_off(&mut self, passed: Micros, per_minute: u64) {
        // What is not bounded is not counted.
        self.0 = if per_minute == 0 { 0 } else { self.0.saturating_sub(per_minute.saturating_mul(passed)) };
    }

    fn add(&mut self, n: u64) {
        self.0 = self.0.saturating_add(n.saturating_mul(MINUTE));
    }

    /// Time until there is room for `n` more.
    fn wait(self, per_minute: u64, n: u64) -> Micros {
        let over = self.0.saturating_add(n * MINUTE).saturating_sub(per_minute.saturating_mul(MINUTE));
        if per_minute == 0 { 0 } else { over.div_ceil(per_minute) }
    }

    /// Time until all has run off.
    fn rest(self, per_minute: u64) -> Micros {
        self.0.checked_div(per_minute).map_or(0, |rest| rest + 1) * u64::from(self.0 > 0)
    }
}

#[derive(Debug, Default)]
struct Uid {
    requests: Used,
    tokens: Used,
    /// When both were right.
    at: Micros,
    /// When it was last logged that it asks for too much.
    told: Option<Micros>,
}

impl Uid {
    fn run_off(&mut self, now: Micros, rate: Rate) {
        let passed = now.saturating_sub(self.at);
        self.requests.run_off(passed, rate.requests);
        self.tokens.run_off(passed, rate.tokens);
        self.at = self.at.max(now);
    }

    fn rest(&self, rate: Rate) -> Micros {
        self.requests.rest(rate.requests).max(self.tokens.rest(rate.tokens))
    }
}

/// Why a request comes too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// What there were too many of, as the key of the configuration has it.
    pub what: &'static str,
    /// How many a minute allows.
    pub per_minute: u64,
    /// Time until it would be taken.
    pub wait: Micros,
    /// It was not logged within the last minute.
    pub tell: bool,
}

impl Over {
    /// What `uid` is told; the log hears of it once a minute.
    pub(super) fn fault(self, uid: u32) -> Fault {
        let Self { what, per_minute, wait, tell } = self;
        if tell {
            log::warn!(
                message_id = "20ca66d32df8431082ecd8f3c792effb", sotto_uid = uid;
                "uid {uid} asks for more than {per_minute} {what} a minute"
            );
        }
        let wait_ms = wait.div_ceil(1_000);
        let message = format!(
            "uid {uid} has had its {per_minute} {what} of this minute (limits.{what}_per_minute); try again in {wait_ms} ms"
        );
        Fault::new(Code::RateLimited, message).retry_after(wait_ms)
    }
}

/// What a uid with a bound may still ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestsLeft {
    /// Requests that a minute allows.
    pub limit: u64,
    /// Those of them that would be taken now.
    pub remaining: u64,
    /// Milliseconds until all would be.
    pub reset_ms: u64,
}

/// What was asked for lately.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<u32, Uid>);

impl Rates {
    /// A request of `uid`; where it may come, it is counted.
    pub(super) fn ask(&mut self, now: Micros, uid: u32, settings: &Settings) -> Result<(), Over> {
        let Some((rate, own)) = self.uid(now, uid, settings) else { return Ok(()) };
        let waits = [
            ("requests", rate.requests, own.requests.wait(rate.requests, 1)),
            // How many a request will take is not known yet: who has used too many pays for it now.
            ("tokens", rate.tokens, own.tokens.wait(rate.tokens, 1)),
        ];
        if let Some((what, per_minute, wait)) = waits.into_iter().max_by_key(|(.., wait)| *wait)
            && wait > 0
        {
            let tell = own.told.is_none_or(|told| now >= told + MINUTE);
            if tell {
                own.told = Some(now);
            }
            return Err(Over { what, per_minute, wait, tell });
        }
        if rate.requests > 0 {
            own.requests.add(1);
        }
        Ok(())
    }

    /// A request of `uid` took `n` tokens.
    pub(super) fn spend(&mut self, now: Micros, uid: u32, n: usize, settings: &Settings) {
        if let Some((rate, own)) = self.uid(now, uid, settings)
            && rate.tokens > 0
        {
            own.tokens.add(n as u64);
        }
    }

    /// What `uid` has left, where its requests are bounded.
    pub(super) fn left(&mut self, now: Micros, uid: u32, settings: &Settings) -> Option<RequestsLeft> {
        let (rate, own) = self.uid(now, uid, settings).filter(|(rate, _)| rate.requests > 0)?;
        let used = own.requests.0.div_ceil(MINUTE);
        let remaining = rate.requests.saturating_sub(used);
        Some(RequestsLeft {
            limit: rate.requests,
            remaining,
            reset_ms: own.requests.rest(rate.requests).div_ceil(1_000),
        })
    }

    /// What is known of `uid`, as of now; `None` where it is not bounded.
    fn uid(&mut self, now: Micros, uid: u32, settings: &Settings) -> Option<(Rate, &mut Uid)> {
        let rate = settings.rate_of(uid);
        if rate == Rate::default() {
            self.0.remove(&uid);
            return None;
        }
        if !self.0.contains_key(&uid) && self.0.len() >= N_RATED_UID_MAX {
            self.make_room(now, settings);
        }
        let own = self.0.entry(uid).or_default();
        own.run_off(now, rate);
        Some((rate, own))
    }

    /// Forgets those whose requests are a minute old, or else the one for which that will be so first.
    fn make_room(&mut self, now: Micros, settings: &Settings) {
        let mut first = None;
        self.0.retain(|uid, own| {
            let rate = settings.rate_of(*uid);
            own.run_off(now, rate);
            let rest = own.rest(rate);
            first = first.into_iter().chain([(rest, *uid)]).min();
            rest > 0
        });
        if self.0.len() >= N_RATED_UID_MAX
            && let Some((_, uid)) = first
        {
            self.0.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(requests: u64, tokens: u64) -> Settings {
        Settings { rate: Rate { requests, tokens }, ..Settings::default() }
    }

    #[test]
    fn a_minute_has_as_many_requests_as_it_may() {
        arbtest::arbtest(|u| {
            let n = u.int_in_range(1..=1_000_000)?;
            let settings = settings(n, 0);
            let (mut rates, mut now, mut taken) = (Rates::default(), 0, Vec::new());
            for _ in 0..u.int_in_range(1..=200)? {
                now += u.int_in_range(0..=MINUTE / n * 3)?;
                match rates.ask(now, 7, &settings) {
                    Ok(()) => taken.push(now),
                    Err(over) => {
                        assert_eq!((over.what, over.per_minute), ("requests", n));
                        assert!(
                            rates.ask(now + over.wait - 1, 7, &settings).is_err(),
                            "not a moment earlier"
                        );
                        now += over.wait;
                        assert!(rates.ask(now, 7, &settings).is_ok(), "and no later");
                        taken.push(now);
                    }
                }
                let left = rates.left(now, 7, &settings).unwrap();
                assert!(left.limit == n && left.remaining < n && left.reset_ms > 0);
            }
            // In any time t there are at most n, and n in a minute.
            for (i, from) in taken.iter().enumerate() {
                let (n_taken, t) = (taken[i..].len() as u64, taken[taken.len() - 1] - from);
                assert!((n_taken - 1) * MINUTE <= n * MINUTE + n * t, "{n_taken} in {t} of {n}");
            }
            Ok(())
        });
    }

    #[test]
    fn a_silent_minute_gives_all_of_it() {
        let settings = settings(3, 0);
        let mut rates = Rates::default();
        for round in 0..3 {
            let now = round * MINUTE;
            for left in [2, 1, 0] {
                rates.ask(now, 1, &settings).unwrap();
                assert_eq!(rates.left(now, 1, &settings).map(|l| l.remaining), Some(left));
            }
            assert_eq!(rates.ask(now, 1, &settings).unwrap_err().wait, MINUTE / 3);
        }
        assert!(rates.ask(0, 2, &settings).is_ok(), "another uid has its own");
    }

    #[test]
    fn tokens_are_paid_for_afterwards() {
        let settings = settings(0, 60);
        let mut rates = Rates::default();
        for _ in 0..100 {
            rates.ask(0, 1, &settings).unwrap();
        }
        rates.spend(0, 1, 120, &settings);
        let over = rates.ask(0, 1, &settings).unwrap_err();
        assert_eq!(over, Over { what: "tokens", per_minute: 60, wait: 61_000_000, tell: true });
        assert!(!rates.ask(1, 1, &settings).unwrap_err().tell, "once a minute");
        assert!(rates.ask(MINUTE, 1, &settings).unwrap_err().tell);
        rates.ask(61_000_000, 1, &settings).unwrap();
        assert_eq!(rates.left(61_000_000, 1, &settings), None, "its requests have no bound");
    }

    #[test]
    fn who_has_no_bound_is_not_remembered_and_root_may_have_one() {
        let mut settings = settings(1, 0);
        settings.rate_of_uid = BTreeMap::from([(5, Rate::default()), (0, Rate { requests: 2, tokens: 0 })]);
        let mut rates = Rates::default();
        for _ in 0..10 {
            rates.ask(0, 5, &settings).unwrap();
            rates.spend(0, 5, 1_000, &settings);
        }
        assert!(rates.0.is_empty() && rates.left(0, 5, &settings).is_none());
        assert!(rates.ask(0, 0, &settings).is_ok() && rates.ask(0, 0, &settings).is_ok());
        assert!(rates.ask(0, 0, &settings).is_err());
    }

    #[test]
    fn only_so_many_uids_are_remembered() {
        let settings = settings(2, 0);
        let mut rates = Rates::default();
        let n = N_RATED_UID_MAX as u32;
        for uid in 0..n {
            rates.ask(u64::from(uid), uid, &settings).unwrap();
            rates.ask(u64::from(uid), uid, &settings).unwrap();
        }
        rates.ask(u64::from(n), n, &settings).unwrap();
        assert_eq!(rates.0.len(), N_RATED_UID_MAX);
        assert!(!rates.0.contains_key(&0), "the one that would be free first");
        assert!(rates.ask(u64::from(n), 1, &settings).is_err());
        rates.ask(3 * MINUTE, n + 1, &settings).unwrap();
        assert_eq!(rates.0.len(), 1, "the others are free by now");
    }
}
