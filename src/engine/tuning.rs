//! What this machine's own measurements found for a model: with how many threads it decodes fastest, and which way of the
//! kernels that have two is faster. It changes no bit of an answer. It is kept beside the packed file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::Pool;
use crate::model::{Model, cache};
use crate::os::{clock, file, thread};
use crate::quant::Quant;

/// Longest length of the file that keeps them.
const BYTES_MAX: u64 = 64 << 10;
/// Steps with each number of threads, of which the middle one counts.
const STEPS: usize = 5;
/// Numbers of threads that are tried.
const CHOICES: usize = 3;
/// Machines, and numbers of threads, that a file remembers.
const MACHINES_MAX: usize = 8;
/// As fast as this part of the fastest is fast enough: fewer threads leave the others to others.
const ENOUGH: f64 = 0.97;

/// What is kept of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    /// Tier, processor and number of threads: for others it says nothing.
    machine: String,
    threads_decode: Option<usize>,
    /// By names of formats.
    unpack_from: Vec<(String, usize)>,
}

/// The measurements of one model under way.
pub(super) struct Tuning {
    /// Where they are kept; `None`: nowhere, the model is no packed file.
    path: Option<PathBuf>,
    found: Found,
    /// While it is not known with how many threads decoding is fastest: what steps took, in nanoseconds.
    trying: Vec<(usize, Vec<u64>)>,
    threads: usize,
}

impl Tuning {
    /// What is known of `model` on this machine; what is quickly measured is measured. `threads_decode` of 0 is to be found.
    pub(super) fn new(model: &Model, pool: &Pool, threads_decode: usize) -> Self {
        let threads = pool.n_active();
        let machine = format!("{}, {}, {threads} threads", pool.kernels().tier().name(), thread::processor());
        let path = model.checkpoint().packed_file().map(|path| cache::tuning(Path::new(path)));
        let kept =
            path.as_deref().map(read).unwrap_or_default().into_iter().find(|found| found.machine == machine);
        let known = kept.is_some();
        let found = kept.unwrap_or_else(|| Found { machine, ..Found::default() });
        let mut tuning = Self { path, found, trying: Vec::new(), threads };
        if !known {
            tuning.found.unpack_from = measured(model, pool);
            tuning.keep();
        }
        for (name, n) in &tuning.found.unpack_from {
            if let Some(quant) = Quant::ALL.into_iter().find(|quant| quant.name() == name) {
                pool.set_unpack_from(quant, *n);
            }
        }
        match (threads_decode, tuning.found.threads_decode) {
            (0, Some(n)) => tuning.threads = n.clamp(1, threads),
            (0, None) => tuning.trying = choices(threads).map(|n| (n, Vec::new())).collect(),
            (n, _) => tuning.threads = n.min(threads),
        }
        tuning
    }

    /// Whether the number of threads is still looked for.
    pub(super) fn is_trying(&self) -> bool {
        !self.trying.is_empty()
    }

    /// Runs a step. One that is `alone`, a single token of a single sequence, gets the number of threads that is fastest, or
    /// one that is tried, as far as so many are active; others wait for arithmetic as well and get all of those.
    pub(super) fn decode<T, E>(
        &mut self,
        pool: &Pool,
        alone: bool,
        step: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if !alone {
            return step();
        }
        let (all, wanted) = (pool.n_active(), self.threads_decode());
        pool.set_active(wanted.min(all));
        let began = clock::now_ns();
        let done = step();
        if done.is_ok() && wanted <= all {
            self.took(clock::now_ns().saturating_sub(began));
        }
        pool.set_active(all);
        done
    }

    /// Threads for the next such step.
    pub(super) fn threads_decode(&self) -> usize {
        let next = self.trying.iter().min_by_key(|(_, times)| times.len());
        next.map_or(self.threads, |(n, _)| *n)
    }

    /// A step with as many as [`Self::threads_decode`] said took so long.
    fn took(&mut self, ns: u64) {
        let Some((_, times)) = self.trying.iter_mut().min_by_key(|(_, times)| times.len()) else { return };
        times.push(ns);
        if self.trying.iter().any(|(_, times)| times.len() < STEPS) {
            return;
        }
        self.threads = fewest(&mut self.trying);
        self.trying.clear();
        self.found.threads_decode = Some(self.threads);
        log::debug!("decoding with {} threads; found by {STEPS} steps with each number", self.threads);
        self.keep();
    }

    /// Where that is not possible it is found anew by the next process.
    fn keep(&self) {
        let Some(path) = &self.path else { return };
        let others = read(path).into_iter().filter(|found| found.machine != self.found.machine);
        let all: Vec<Found> = [self.found.clone()].into_iter().chain(others).take(MACHINES_MAX).collect();
        let kept = serde_json::to_vec_pretty(&all).map_err(Into::into);
        if let Err(e) = kept.and_then(|text| file::replace(path, &text)) {
            log::debug!("{}: is not kept: {e}", path.display());
        }
    }
}

/// What is kept in a file; nothing in one that cannot be read.
fn read(path: &Path) -> Vec<Found> {
    let short = std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= BYTES_MAX);
    let text = if short { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&text).unwrap_or_default()
}

/// From how many tokens on the formats of `model` are unpacked first.
fn measured(model: &Model, pool: &Pool) -> Vec<(String, usize)> {
    let packed = |quant: &Quant| model.checkpoint().tensors().any(|(_, t)| t.packed && t.quant == *quant);
    let of = |quant: Quant| Some((quant.name().to_owned(), pool.measure_unpack_from(quant)?));
    Quant::ALL.into_iter().filter(packed).filter_map(of).collect()
}

/// All threads, three quarters and half of them. Two cores are both worth it: each has its own way to memory.
fn choices(threads: usize) -> impl Iterator<Item = usize> {
    let all = [threads, threads * 3 / 4, threads / 2];
    all.into_iter().take(if threads > 2 { CHOICES } else { 0 })
}

/// The fewest threads that are fast enough.
fn fewest(tried: &mut [(usize, Vec<u64>)]) -> usize {
    let medians: Vec<(usize, u64)> = tried
        .iter_mut()
        .map(|(n, times)| {
            times.sort_unstable();
            (*n, times[times.len() / 2])
        })
        .collect();
    let fastest = medians.iter().map(|(_, ns)| *ns).min().unwrap_or(0) as f64;
    let enough = medians.iter().filter(|(_, ns)| *ns as f64 * ENOUGH <= fastest);
    enough.map(|(n, _)| *n).min().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trying(threads: usize) -> Tuning {
        let trying = choices(threads).map(|n| (n, Vec::new())).collect();
        Tuning { path: None, found: Found::default(), trying, threads }
    }

    /// Steps of so many microseconds with each number of threads, whatever the order in which they are tried.
    #[test]
    fn the_fewest_threads_that_are_fast_enough_decode() {
        for (us, best) in [
            ([(4, 100), (3, 100), (2, 101)], 2),
            ([(4, 100), (3, 120), (2, 150)], 4),
            ([(4, 130), (3, 100), (2, 110)], 3),
        ] {
            let mut tuning = trying(4);
            let mut steps = 0;
            while tuning.is_trying() {
                let n = tuning.threads_decode();
                let took = us.iter().find(|(of, _)| *of == n).expect("a choice").1;
                // One slow step of each changes nothing.
                tuning.took(1_000 * if steps < 3 { 10 * took } else { took });
                steps += 1;
            }
            assert_eq!((tuning.threads_decode(), steps), (best, 15));
            tuning.took(1);
            assert_eq!(tuning.threads_decode(), best);
        }
        assert!(!trying(2).is_trying() && trying(2).threads_decode() == 2);
    }

    #[test]
    fn what_was_found_is_kept_for_this_machine() {
        let path = std::env::temp_dir().join(format!("sotto-tuning-{}.json", std::process::id()));
        assert_eq!(read(&path), []);
        for machine in 0..20 {
            let mut tuning = trying(4);
            (tuning.path, tuning.found.machine) = (Some(path.clone()), format!("machine {machine}"));
            tuning.found.unpack_from = vec![("Q4_0".into(), 9)];
            (0..15).for_each(|_| tuning.took(100));
            assert_eq!(tuning.threads_decode(), 2);
            let found = read(&path);
            assert_eq!((&found[0], found[0].threads_decode), (&tuning.found, Some(2)));
            assert_eq!(found.len(), MACHINES_MAX.min(machine + 1));
        }
        for damaged in ["", "{}", "[1]", "[{\"machine\":1}]"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), [], "{damaged}");
        }
        std::fs::write(&path, " ".repeat(100_000)).unwrap();
        assert_eq!(read(&path), [], "too long");
        std::fs::remove_file(&path).unwrap();
    }
}
