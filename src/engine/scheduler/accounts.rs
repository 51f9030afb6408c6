//! What each uid had of the engine's time. Who is behind is served first; who comes back has saved up nothing, but what it
//! was ahead it still is ("start-time fair queueing": Goyal, Vin and Cheng, 1996).

use std::collections::BTreeMap;

use super::Micros;

/// Uids that are remembered though they want nothing: those furthest ahead.
const N_DEBTOR_MAX: usize = 256;

#[derive(Debug, Default)]
struct Account {
    /// Microseconds it had.
    served: Micros,
    /// It wants something.
    here: bool,
}

/// Those of one class.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    of: BTreeMap<u32, Account>,
    /// The least that a uid that wants something had; never goes back.
    least: Micros,
}

impl Accounts {
    /// What `uid` had.
    pub(super) fn served(&self, uid: u32) -> Micros {
        self.of.get(&uid).map_or(self.least, |a| a.served)
    }

    /// It wants something.
    pub(super) fn enter(&mut self, uid: u32) {
        self.advance();
        let account = self.of.entry(uid).or_default();
        if !account.here {
            account.served = account.served.max(self.least);
            account.here = true;
        }
    }

    /// It wants nothing any more.
    pub(super) fn leave(&mut self, uid: u32) {
        self.advance();
        if let Some(account) = self.of.get_mut(&uid) {
            account.here = false;
            // With nobody else there, nobody is behind it.
            if self.of.values().all(|a| !a.here) {
                self.least = self.of.values().map(|a| a.served).fold(self.least, Micros::max);
            }
        }
        let least = self.least;
        self.of.retain(|_, a| a.here || a.served > least);
        while self.of.values().filter(|a| !a.here).count() > N_DEBTOR_MAX {
            let gone = self.of.iter().filter(|(_, a)| !a.here).min_by_key(|(_, a)| a.served);
            let Some(uid) = gone.map(|(uid, _)| *uid) else { return };
            self.of.remove(&uid);
        }
    }

    /// It had `us` more.
    pub(super) fn serve(&mut self, uid: u32, us: Micros) {
        if let Some(account) = self.of.get_mut(&uid) {
            account.served += us;
        }
    }

    fn advance(&mut self) {
        let least = self.of.values().filter(|a| a.here).map(|a| a.served).min();
        self.least = self.least.max(least.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_keeps_its_debt_and_no_credit() {
        let mut a = Accounts::default();
        a.enter(1);
        a.serve(1, 1_000);
        a.enter(2);
        assert_eq!(a.served(2), 1_000, "what was before it came does not count");
        a.serve(1, 500);
        a.leave(1);
        a.serve(2, 200);
        a.enter(1);
        assert_eq!((a.served(1), a.served(2)), (1_500, 1_200));
        a.leave(2);
        a.serve(1, 5_000);
        a.enter(2);
        assert_eq!(a.served(2), 6_500);
        a.leave(1);
        a.leave(2);
        assert!(a.of.is_empty(), "with nobody there all are equal");
        for uid in 0..1_000 {
            a.enter(uid);
            a.serve(uid, 10_000 + u64::from(uid));
        }
        (1..1_000).for_each(|uid| a.leave(uid));
        assert_eq!(a.of.len(), N_DEBTOR_MAX + 1);
        assert_eq!(a.served(999), 27_499);
    }
}
