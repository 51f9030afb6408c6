//! The hot path allocates nothing: 100 decode steps with sampling, on the calling thread and on the workers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sotto::base::Token;
use sotto::kernel::{self, Pool};
use sotto::model::{Decoder, Model, Precision, Want};
use sotto::sample::Chain;

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

/// 100 decode steps of `model`, drawing from the logits; the allocations in them.
fn allocations(model: &Model, pool: &Pool, n_ctx: usize) -> usize {
    let mut decoder = Decoder::new(model, Precision::default(), 8, 1);
    let mut kv = decoder.kv(model, n_ctx).unwrap();
    let mut chain = Chain::new(0.8, 40, 0.95, 1, model.hyper().n_vocab);
    let mut token = Token(1);
    COUNT.store(0, Ordering::Relaxed);
    for step in 0..110 {
        ARMED.store(step >= 10, Ordering::Relaxed);
        let logits = decoder.step(model, pool, &mut kv, &[token], Want::Last, &mut |_| true).unwrap();
        token = chain.sample(logits).unwrap();
    }
    ARMED.store(false, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed)
}

/// Every kind of layer: attention with windows and without, experts, each recurrence, four streams.
#[test]
fn decoding_allocates_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<PathBuf> = fs::read_dir(fixtures.join("models"))
        .unwrap()
        .map(|e| e.unwrap().path().join("model.gguf"))
        .collect();
    files.retain(|file| file.is_file());
    files.push(fixtures.join("stories260k/stories260K-q8_0.gguf"));
    let pool = Pool::new(kernel::select(None).unwrap(), 2).unwrap();
    for file in files {
        let model = Model::open(&file).unwrap();
        assert_eq!(
            allocations(&model, &pool, 128),
            0,
            "allocations in 100 decode steps of {}",
            file.display()
        );
    }
}
