//! The hot path allocates nothing: 100 decode steps with each sampler, on the calling thread and on the workers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sotto::base::Token;
use sotto::kernel::{self, Pool};
use sotto::model::{Decoder, Feed, Model, Precision, Want};
use sotto::sample::{Chain, Dry, Mirostat, Settings, logprobs};

/// Counts allocations of all threads while it is armed: the test is the only one of its program.
struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every sampler on.
fn everything() -> Settings {
    Settings {
        min_p: 0.01,
        typical_p: 0.97,
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        repeat_last_n: 32,
        dry: Dry { multiplier: 0.8, last_n: 40, ..Dry::default() },
        logit_bias: vec![(Token(7), 2.0)],
        ..Settings::default()
    }
}

/// Allocations in 100 decode steps of `model` that draw by `settings`.
fn allocations(model: &Model, pool: &Pool, settings: Settings) -> usize {
    let mut decoder = Decoder::new(model, Precision::default(), 8, 1);
    let mut kv = decoder.kv(model, 128).unwrap();
    let mut chain = Chain::new(settings, &[Token(2)], 1, model.hyper().n_vocab);
    let mut top = Vec::with_capacity(20);
    let mut token = Token(1);
    COUNT.store(0, Ordering::Relaxed);
    for step in 0..110 {
        ARMED.store(step >= 10, Ordering::Relaxed);
        let feed = Feed { kv: &mut kv, tokens: &[token], want: Want::Last, pooled: None };
        let logits = decoder.step(model, pool, &mut [feed], &mut |_| true).unwrap();
        token = chain.sample(logits, step > 50).unwrap();
        logprobs(logits, token, 20, &mut top);
        chain.accept(token, step % 17 == 0);
    }
    ARMED.store(false, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed)
}

/// Every kind of layer: attention with windows and without, experts, each recurrence, four streams; every sampler.
#[test]
fn decoding_allocates_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let pool = Pool::new(kernel::select(None).unwrap(), 2).unwrap();
    for entry in fs::read_dir(fixtures.join("models")).unwrap() {
        let file = entry.unwrap().path().join("model.gguf");
        if !file.is_file() {
            continue;
        }
        let n = allocations(&Model::open(&file).unwrap(), &pool, everything());
        assert_eq!(n, 0, "allocations in 100 decode steps of {}", file.display());
    }
    let model = Model::open(&fixtures.join("stories260k/stories260K-q8_0.gguf")).unwrap();
    let steered = Settings { mirostat: Some(Mirostat::default()), ..everything() };
    let whole = Settings { top_k: 0, ..everything() };
    let greedy = Settings { temperature: 0.0, ..everything() };
    for settings in [Settings::default(), steered, whole, greedy] {
        let n = allocations(&model, &pool, settings.clone());
        assert_eq!(n, 0, "allocations in 100 decode steps with {settings:?}");
    }
}
