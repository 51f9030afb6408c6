//! Threads that share one product or one attention at a time. They spin for some microseconds between jobs and
//! sleep after that, so that an idle daemon uses no processor. Nothing allocates after [`Pool::new`].
//!
//! Which thread computes which rows changes nothing: each output is computed by one thread in one order.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::attention::Tile;
use super::tensor::{self, FOUR, Packed, Q8Acts, Rows};
use super::{Kernels, Q8_BLOCK, UNPACK_FROM, scalar};
use crate::base::limits::N_THREADS_MAX;
use crate::os::thread;
use crate::quant::Quant;

/// Turns of the waiting loop before a thread sleeps: about 20 microseconds.
const SPINS: u32 = 1_000;
/// Floats below which a loop over rows is not worth waking others.
pub(super) const SMALL: usize = 8_192;

/// A job that every thread runs once: a closure and the function that calls it, with the types taken off.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const ()),
}

impl Job {
    fn new<F: Fn() + Sync>(closure: &F) -> Self {
        /// # Safety
        /// `closure` points to a living `F`.
        unsafe fn call<F: Fn() + Sync>(closure: *const ()) {
            // SAFETY: the caller's promise.
            unsafe { (*closure.cast::<F>())() }
        }
        Self { closure: std::ptr::from_ref(closure).cast(), call: call::<F> }
    }
}

struct Shared {
    /// What each worker is told, one after the other: the caller's share is no worker's.
    bells: Vec<Bell>,
    /// Workers that have not finished the job under way; the caller sleeps on it.
    left: AtomicU32,
    /// The caller sleeps.
    caller_asleep: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Tells one worker that there is a job. In a line of the cache of its own: others' bells do not disturb who waits.
#[repr(align(64))]
#[derive(Default)]
struct Bell {
    /// Jobs that it was told of; the worker sleeps on it.
    rung: AtomicU32,
    asleep: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // SeqCst here and in `wait`: either we see the sleeper, or it sees the new number and does not sleep.
        self.rung.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            thread::wake_all(&self.rung);
        }
    }

    /// Returns how often it was rung once that is not `seen` any more.
    fn wait(&self, seen: u32) -> u32 {
        for _ in 0..SPINS {
            let rung = self.rung.load(Ordering::Acquire);
            if rung != seen {
                return rung;
            }
            std::hint::spin_loop();
        }
        self.asleep.store(true, Ordering::SeqCst);
        let rung = loop {
            let rung = self.rung.load(Ordering::SeqCst);
            if rung != seen {
                break rung;
            }
            thread::wait(&self.rung, seen);
        };
        // Relaxed: who rings after this and still sees a sleeper wakes nobody.
        self.asleep.store(false, Ordering::Relaxed);
        rung
    }
}

// SAFETY: the closure of a job is `Sync` (`Job::new`). `job` is written only by the caller of `run` while no worker is in a job (`left` is 0), and read only by
// workers after they have heard their bell, which orders the write before the read.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Takes the number of a part and the part of each array.
type OnPair<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// A fixed set of threads; the calling one works too.
pub struct Pool {
    kernels: &'static Kernels,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Threads that take part in a job; the others sleep. A cell, so one caller at a time: a pool can be sent to a thread,
    /// not shared between two.
    active: Cell<usize>,
    /// [`Hints::unpack_from`] of each format.
    unpack_from: Cell<[u8; Quant::COUNT]>,
    /// What each thread works in during an attention.
    pub(super) tiles: RefCell<Vec<Tile>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({}, {} threads)", self.kernels.tier().name(), self.n_threads())
    }
}

impl Pool {
    /// A pool of `n_threads`, the caller among them.
    ///
    /// # Errors
    /// When a thread cannot be started.
    ///
    /// # Panics
    /// If `n_threads` is 0 or above `N_THREADS_MAX`.
    pub fn new(kernels: &'static Kernels, n_threads: usize) -> io::Result<Self> {
        assert!((1..=N_THREADS_MAX).contains(&n_threads), "a pool of {n_threads} threads");
        let shared = Arc::new(Shared {
            bells: (1..n_threads).map(|_| Bell::default()).collect(),
            left: AtomicU32::new(0),
            caller_asleep: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            kernels,
            shared,
            workers: Vec::new(),
            active: Cell::new(n_threads),
            unpack_from: Cell::new([UNPACK_FROM as u8; Quant::COUNT]),
            tiles: RefCell::new((0..n_threads).map(|_| Tile::new()).collect()),
        };
        for i in 1..n_threads {
            let shared = pool.shared.clone();
            pool.workers.push(thread::start(&format!("worker-{i}"), move || work(&shared, i - 1))?);
        }
        Ok(pool)
    }

    /// Its kernels.
    #[must_use]
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Its threads, the caller among them.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Threads that take part in jobs from now on, at least 1 and at most all: where memory is what is waited for, fewer may
    /// be as fast.
    pub fn set_active(&self, n: usize) {
        self.active.set(n.clamp(1, self.n_threads()));
    }

    /// From so many tokens on products with packed weights of `quant` unpack codes before they multiply with them. It changes
    /// no bit, [`Self::measure_unpack_from`] finds what is fastest.
    pub fn set_unpack_from(&self, quant: Quant, n: usize) {
        let mut all = self.unpack_from.get();
        all[quant as usize] = u8::try_from(n).unwrap_or(u8::MAX);
        self.unpack_from.set(all);
    }

    pub(super) fn unpack_from(&self) -> [u8; Quant::COUNT] {
        self.unpack_from.get()
    }

    /// Threads that take part in jobs.
    #[must_use]
    pub fn n_active(&self) -> usize {
        self.active.get()
    }

    /// Makes the codes of `x` `[n_tokens, n_cols]`.
    ///
    /// # Panics
    /// If `n_cols` is no multiple of 32 or `q8` has not enough room.
    pub fn quantize(&self, x: &[f32], n_cols: usize, q8: &mut Q8Acts) {
        let n = tensor::n_tokens(x, n_cols);
        self.code(n, n_cols, q8, &|t| &x[t * n_cols..(t + 1) * n_cols]);
    }

    /// Makes the codes of `n` rows that `row` gives, each once.
    fn code<'x>(&self, n: usize, n_cols: usize, q8: &mut Q8Acts, row: &(dyn Fn(usize) -> &'x [f32] + Sync)) {
        let blocks = n_cols / Q8_BLOCK;
        let (out, fours) = q8.reshape(n, n_cols);
        let (out, fours) = (Out::new(out), Out::new(fours));
        // One thread makes what is arranged together.
        let each = if self.kernels.arranges(n) { FOUR } else { 1 };
        self.for_each(n.div_ceil(each), n * n_cols >= SMALL, &|i| {
            let tokens = i * each..((i + 1) * each).min(n);
            // SAFETY: tokens are below `n`, so their blocks lie inside those of `reshape`; each is taken by one thread.
            let own = unsafe { out.slice(tokens.start * blocks, tokens.len() * blocks) };
            for (t, out) in tokens.zip(own.chunks_exact_mut(blocks)) {
                self.kernels.quantize(row(t), out);
            }
            if each == FOUR {
                // SAFETY: as above, of fours.
                self.kernels.arrange(own, blocks, unsafe { fours.slice(i * blocks, blocks) });
            }
        });
    }

    /// As [`Self::for_each_row`], and makes the codes of each row once it is there.
    ///
    /// # Panics
    /// As both do.
    pub fn for_each_row_coded(
        &self,
        y: &mut [f32],
        n_cols: usize,
        q8: &mut Q8Acts,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (n, y) = (tensor::n_tokens(y, n_cols), Out::new(y));
        self.code(n, n_cols, q8, &|t| {
            // SAFETY: t < n, so the row lies inside `y`; each row is asked for once.
            let row = unsafe { y.slice(t * n_cols, n_cols) };
            f(t, row);
            row
        });
    }

    /// Packs panels `first ..` of `rows` into `out`, which takes a whole number of them.
    ///
    /// # Panics
    /// If there are not so many panels.
    pub fn pack(&self, rows: &Rows<'_>, first: usize, out: &mut [u8]) {
        let panel_bytes = Packed::panel_bytes(rows);
        let n = out.len() / panel_bytes;
        assert_eq!(out.len(), n * panel_bytes, "whole panels");
        let out = Out::new(out);
        self.for_each(n, true, &|i| {
            // SAFETY: panel `i` is below `n`, so it lies inside `out`; each panel is taken by one thread.
            Packed::pack_panel(rows, first + i, unsafe { out.slice(i * panel_bytes, panel_bytes) });
        });
    }

    /// Reads all of `bytes` once, on all threads, and returns the exclusive or of its words.
    #[must_use]
    pub fn read(&self, bytes: &[u8]) -> u64 {
        let part = bytes.len().div_ceil(self.n_active()).next_multiple_of(128);
        let all = AtomicU64::new(0);
        self.for_each(bytes.len().div_ceil(part), true, &|i| {
            // Relaxed: read after the job.
            all.fetch_xor(
                scalar::read(&bytes[i * part..((i + 1) * part).min(bytes.len())]),
                Ordering::Relaxed,
            );
        });
        all.into_inner()
    }

    /// [`Kernels::peak`] on every thread, all together.
    #[must_use]
    pub fn peak(&self, n_rounds: u32) -> u64 {
        let all = AtomicU64::new(0);
        // Relaxed: read after the job.
        self.run(&|| {
            all.fetch_add(self.kernels.peak(n_rounds), Ordering::Relaxed);
        });
        all.into_inner()
    }

    /// Calls `f(t, row)` for each row of `y` `[n, row_len]`.
    ///
    /// # Panics
    /// If rows do not divide `y`.
    pub fn for_each_row<T: Send>(&self, y: &mut [T], row_len: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let n = y.len() / row_len;
        assert_eq!(n * row_len, y.len(), "rows of {row_len}");
        let (len, y) = (y.len(), Out::new(y));
        self.for_each(n, len >= SMALL, &|t| {
            // SAFETY: t < n, so the row lies inside `y`; each row is taken by one thread.
            f(t, unsafe { y.slice(t * row_len, row_len) });
        });
    }

    /// Calls `f(i, a_i, b_i)` for the `n` equal parts of `a` and of `b`, on all threads: work that goes on from its own
    /// state, such as a head of a recurrence.
    ///
    /// # Panics
    /// If `n` does not divide both.
    pub fn for_each_pair(&self, n: usize, a: &mut [f32], b: &mut [f32], f: &OnPair<'_>) {
        let (la, lb) = (a.len() / n, b.len() / n);
        assert_eq!((la * n, lb * n), (a.len(), b.len()), "{n} equal parts");
        let (a, b) = (Out::new(a), Out::new(b));
        self.for_each(n, true, &|i| {
            // SAFETY: i < n, so the parts lie inside their arrays; each is taken by one thread.
            let (a, b) = unsafe { (a.slice(i * la, la), b.slice(i * lb, lb)) };
            f(i, a, b);
        });
    }

    /// Calls `f` for `0 .. n`, on all threads if `wide`.
    pub(super) fn for_each(&self, n: usize, wide: bool, f: &(dyn Fn(usize) + Sync)) {
        if !wide || n == 1 {
            return (0..n).for_each(f);
        }
        self.for_each_with(n, &mut [(); N_THREADS_MAX], &|i, ()| f(i));
    }

    /// As [`Self::for_each`]; each thread has one of `own` to work in.
    pub(super) fn for_each_with<T: Send>(&self, n: usize, own: &mut [T], f: &(dyn Fn(usize, &mut T) + Sync)) {
        assert!(own.len() >= self.n_active(), "one for each thread");
        let (next, n_started, own) = (AtomicUsize::new(0), AtomicUsize::new(0), Out::new(own));
        let job = || {
            // Relaxed, twice: the counters hand out numbers, they order nothing.
            let me = n_started.fetch_add(1, Ordering::Relaxed);
            // SAFETY: each active thread runs the job once, so `me` is below their number, and nobody else's.
            let [own] = (unsafe { own.slice(me, 1) }) else { return };
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return;
                }
                f(i, own);
            }
        };
        if n == 1 { job() } else { self.run(&job) }
    }

    /// Runs `job` once on every active thread and returns when all are through.
    pub(super) fn run<F: Fn() + Sync>(&self, job: &F) {
        let shared = &*self.shared;
        let bells = &shared.bells[..self.n_active() - 1];
        if bells.is_empty() {
            return job();
        }
        // SAFETY: no worker is in a job: `left` was 0 when the last `run` returned.
        unsafe { *shared.job.get() = Some(Job::new(job)) };
        // Relaxed: published by the bells.
        shared.left.store(bells.len() as u32, Ordering::Relaxed);
        // The closure lives until `Wait` has seen every worker leave it, also when it panics here.
        let wait = Wait(shared);
        bells.iter().for_each(Bell::ring);
        job();
        drop(wait);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a worker of the pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.bells.iter().for_each(Bell::ring);
        for worker in self.workers.drain(..) {
            drop(worker.join());
        }
    }
}

/// Waits for the workers when dropped.
struct Wait<'a>(&'a Shared);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        for _ in 0..SPINS {
            if self.0.left.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        self.0.caller_asleep.store(1, Ordering::SeqCst);
        loop {
            let left = self.0.left.load(Ordering::SeqCst);
            if left == 0 {
                break;
            }
            thread::wait(&self.0.left, left);
        }
        self.0.caller_asleep.store(0, Ordering::Relaxed);
    }
}

/// The life of worker `i`.
fn work(shared: &Shared, i: usize) {
    let mut seen = 0;
    loop {
        seen = shared.bells[i].wait(seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the caller wrote the job before it rang and does not touch it until `left` is 0.
        let job = unsafe { *shared.job.get() };
        // SAFETY: the closure lives while `left` is not 0.
        let call = |job: Job| unsafe { (job.call)(job.closure) };
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| call(job))).is_err()
        {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        // SeqCst: as of the bells, with the roles exchanged.
        if shared.left.fetch_sub(1, Ordering::SeqCst) == 1 && shared.caller_asleep.load(Ordering::SeqCst) == 1
        {
            thread::wake_all(&shared.left);
        }
    }
}

/// Start of an array that threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Out<T>(*mut T);

// SAFETY: a pointer alone is harmless; each use states why its part belongs to one thread.
unsafe impl<T: Send> Sync for Out<T> {}

impl<T> Out<T> {
    pub(super) fn new(array: &mut [T]) -> Self {
        Self(array.as_mut_ptr())
    }

    /// The array from its byte `at` on, as elements of another type.
    ///
    /// # Safety
    /// `at` lies inside the array, at a whole number of `U`.
    pub(super) unsafe fn cast<U>(&self, at: usize) -> Out<U> {
        // SAFETY: the caller's promise.
        Out(unsafe { self.0.byte_add(at) }.cast())
    }

    /// Writes `x[i]` to element `start + i * stride`.
    ///
    /// # Safety
    /// They lie inside the array, and nobody else uses them meanwhile.
    pub(super) unsafe fn scatter(&self, start: usize, stride: usize, x: &[T])
    where
        T: Copy,
    {
        for (i, x) in x.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.0.add(start + i * stride).write(*x) };
        }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// They lie inside the array, and nobody else uses them during the borrow.
    #[expect(clippy::mut_from_ref, reason = "the pointer, not the reference, carries the right to write")]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
