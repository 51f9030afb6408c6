//! Counts of what the engine and the doors have done: numbers only, no caller and no text. Kept without locks where tokens
//! are made; a door prints them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Code;

/// A number that only grows, or is set. Relaxed everywhere: numbers are told one by one and order nothing.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Count; Self::BOUNDS_US.len()],
    over: Count,
    sum_us: Count,
}

impl Histogram {
    /// Upper bounds of its buckets, in microseconds.
    pub const BOUNDS_US: [u64; 13] = [
        1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
        10_000_000, 60_000_000,
    ];

    pub(super) fn observe(&self, us: u64) {
        let bucket = Self::BOUNDS_US.iter().position(|bound| us <= *bound);
        bucket.map_or(&self.over, |i| &self.counts[i]).add(1);
        self.sum_us.add(us);
    }

    /// How many were at most as long as each bound, how many there were, and how long all of them were, in microseconds.
    #[must_use]
    pub fn cumulated(&self) -> ([u64; Self::BOUNDS_US.len()], u64, u64) {
        let mut all = 0;
        let counts = self.counts.each_ref().map(|count| {
            all += count.get();
            all
        });
        (counts, all + self.over.get(), self.sum_us.get())
    }
}

/// Those of a model.
#[derive(Debug, Default)]
pub struct ModelMetrics {
    /// Tokens of prompts that were computed.
    pub prompt_computed: Count,
    /// Those that came from the prefix cache.
    pub prompt_cached: Count,
    /// Tokens that were drawn.
    pub completion: Count,
    /// Answers that ended by themselves, by a limit, and by a fault: `stop`, `length`, `error`.
    pub finished: [Count; 3],
    /// From submission to a place.
    pub queue_wait: Histogram,
    /// From submission to the first text.
    pub first_token: Histogram,
    /// Between two tokens of an answer.
    pub inter_token: Histogram,
    /// Loading it.
    pub load: Histogram,
    /// Bytes of weights, while it is loaded.
    pub weight_bytes: Count,
    /// Bytes of the pages that its sequences and its prefix cache keep.
    pub kv_bytes: Count,
    /// Bytes that its prefix cache keeps.
    pub prefix_bytes: Count,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Metrics {
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    requests: Mutex<BTreeMap<(&'static str, &'static str, &'static str), u64>>,
    errors: [Count; Code::ALL.len()],
    /// Microseconds in which steps ran.
    pub busy_us: Count,
    /// Microseconds in which answers waited for their readers, all together.
    pub reader_us: Count,
    /// Microseconds in which the engine rested so that the processor stays cool.
    pub heat_us: Count,
    bus: AtomicBool,
}

/// Locks also after a panic elsewhere: the maps are whole at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Those of the model `id`, made where there are none.
    pub(super) fn model(&self, id: &str) -> Arc<ModelMetrics> {
        lock(&self.models).entry(id.to_owned()).or_default().clone()
    }

    /// Calls `f` with each model's.
    pub fn each_model(&self, mut f: impl FnMut(&str, &ModelMetrics)) {
        lock(&self.models).iter().for_each(|(id, model)| f(id, model));
    }

    /// A request of `route` came through `door` and ended with `code`, `ok` or that of a fault.
    pub fn request(&self, door: &'static str, route: &'static str, code: &'static str) {
        *lock(&self.requests).entry((door, route, code)).or_default() += 1;
    }

    /// Calls `f` with the door, route and code of requests, and how many there were.
    pub fn each_request(&self, mut f: impl FnMut([&str; 3], u64)) {
        lock(&self.requests).iter().for_each(|((door, route, code), n)| f([door, route, code], *n));
    }

    /// A fault with `code` was told to a caller: doors count what they tell.
    pub fn error(&self, code: Code) {
        self.errors[code as usize].add(1);
    }

    /// The faults that were told, by code.
    pub fn each_error(&self, mut f: impl FnMut(Code, u64)) {
        for (code, n) in Code::ALL.iter().zip(&self.errors) {
            if n.get() > 0 {
                f(*code, n.get());
            }
        }
    }

    /// Whether the daemon is on its bus.
    pub fn set_bus(&self, connected: bool) {
        self.bus.store(connected, Ordering::Relaxed);
    }

    /// As [`Self::set_bus`] said.
    #[must_use]
    pub fn bus(&self) -> bool {
        self.bus.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept() {
        let metrics = Metrics::default();
        metrics.model("a").completion.add(3);
        metrics.model("a").inter_token.observe(1_000);
        metrics.model("a").inter_token.observe(1_001);
        metrics.model("a").inter_token.observe(99_000_000);
        metrics.each_model(|id, m| {
            let (counts, n, sum_us) = m.inter_token.cumulated();
            assert_eq!((id, m.completion.get(), counts[0], counts[1], counts[12], n), ("a", 3, 1, 2, 2, 3));
            assert_eq!(sum_us, 99_002_001);
        });
        metrics.request("http", "generate", "ok");
        metrics.request("http", "generate", "ok");
        metrics.each_request(|labels, n| assert_eq!((labels, n), (["http", "generate", "ok"], 2)));
        metrics.error(Code::QueueFull);
        metrics.each_error(|code, n| assert_eq!((code, n), (Code::QueueFull, 1)));
        assert!(Code::ALL.iter().enumerate().all(|(i, code)| *code as usize == i));
    }
}
