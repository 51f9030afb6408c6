//! Logits against independent implementations (tests/fixtures/SOURCES.md): every supported tensor type and way to
//! stretch positions, prefill at once, in odd chunks and token by token.
//!
//! `SOTTO_FIXTURES` names a folder of model fixtures (its neighbour `quants` holds those of tensor types); without it
//! the full set beside the checkout is used, or the small one in `tests/fixtures`. `SOTTO_CPU` forces a kernel tier,
//! `SOTTO_EXPECT_TIER` asserts which one ran.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skips"
)]
#![allow(clippy::disallowed_methods, reason = "the gate chooses tier and fixtures by the environment")]

use std::path::{Path, PathBuf};

use sotto::base::Token;
use sotto::kernel::{self, Pool, Tier};
use sotto::model::{Decoder, Kv, Model, Precision, Want};

/// A safetensors file of expected values: I32 and F32 tensors by name.
struct Expected {
    bytes: Vec<u8>,
    header: serde_json::Value,
    data: usize,
}

impl Expected {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        Self { bytes, header, data: 8 + len }
    }

    fn words(&self, name: &str, dtype: &str) -> Vec<[u8; 4]> {
        let info = &self.header[name];
        assert_eq!(info["dtype"], dtype, "{name}");
        let at = |i: usize| self.data + info["data_offsets"][i].as_u64().unwrap() as usize;
        self.bytes[at(0)..at(1)].as_chunks::<4>().0.to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, "F32").into_iter().map(f32::from_le_bytes).collect()
    }

    fn tokens(&self, name: &str) -> Vec<Token> {
        self.words(name, "I32").into_iter().map(|w| Token(u32::from_le_bytes(w))).collect()
    }
}

fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("SOTTO_FIXTURES") {
        Some(folder) => folder.into(),
        None => [here.join("../shared/fixtures/models"), here.join("tests/fixtures/models")]
            .into_iter()
            .find(|p| p.is_dir())
            .expect("the checkout holds tests/fixtures/models"),
    }
}

fn pool(n_threads: usize) -> Pool {
    let asked = std::env::var("SOTTO_CPU").ok().map(|name| Tier::from_name(&name).unwrap());
    let kernels = kernel::select(asked).unwrap();
    if let Ok(expected) = std::env::var("SOTTO_EXPECT_TIER") {
        assert_eq!(kernels.tier().name(), expected, "the tier that ran");
    }
    Pool::new(kernels, n_threads).unwrap()
}

/// A decoder with its cache, feeding tokens in chunks.
struct Run<'a> {
    model: &'a Model,
    pool: &'a Pool,
    decoder: Decoder,
    kv: Kv,
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, pool: &'a Pool, precision: Precision, n_ctx: usize) -> Self {
        let decoder = Decoder::new(model, precision, 128, 128);
        let kv = decoder.kv(model, n_ctx).unwrap();
        Self { model, pool, decoder, kv }
    }

    /// Logits after each of `tokens`, fed in steps of at most `chunk`.
    fn feed(&mut self, tokens: &[Token], chunk: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for tokens in tokens.chunks(chunk) {
            let logits = self
                .decoder
                .step(self.model, self.pool, &mut self.kv, tokens, Want::All, &mut |_| true)
                .unwrap();
            all.extend_from_slice(logits);
        }
        all
    }
}

/// Relative L2 distance, ||a - b|| / ||b||, in f64.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// The 24 prompt rows and the last row after the 32 greedy tokens, as the fixtures store them.
fn stored_rows(run: &mut Run<'_>, expected: &Expected) -> (Vec<f32>, Vec<f32>) {
    let n_vocab = run.model.hyper().n_vocab;
    let prompt = run.feed(&expected.tokens("prompt_tokens"), 128);
    let rest = run.feed(&expected.tokens("greedy_tokens"), 1);
    (prompt, rest[rest.len() - n_vocab..].to_vec())
}

/// Names of the subfolders or files of `folder` that `pick` wants.
fn names(folder: &Path, pick: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| pick(n)).collect();
    names.sort();
    names
}

/// What is to be compared: the base, biases, a tied head, and each way to stretch positions.
const LLAMAS: [&str; 6] = ["llama", "llama-bias", "llama-linear", "llama-rope3", "llama-tied", "llama-yarn"];

/// The llamas of `folder`, the six above and others of the name; says which of the six are absent.
fn llamas(folder: &Path) -> Vec<String> {
    let names = names(folder, |n| n.starts_with("llama"));
    for absent in LLAMAS.iter().filter(|name| names.iter().all(|n| n != *name)) {
        println!("skipped: {absent}: not in {}", folder.display());
    }
    assert!(!names.is_empty(), "no llama* in {}", folder.display());
    names
}

#[test]
fn logits_of_every_llama() {
    let folder = fixtures();
    let names = llamas(&folder);
    for threads in [1, 2] {
        let pool = pool(threads);
        for name in &names {
            let folder = folder.join(name);
            let model = Model::open(&folder.join("model.gguf")).unwrap();
            let expected = Expected::open(&folder.join("expected.safetensors"));
            let mut run = Run::new(&model, &pool, Precision::F32, 56);
            let (prompt, last) = stored_rows(&mut run, &expected);
            let errors = [
                distance(&prompt, &expected.floats("prompt_logits")),
                distance(&last, &expected.floats("final_logits")),
            ];
            println!(
                "{name}: {:.1e}, last row {:.1e} ({})",
                errors[0],
                errors[1],
                pool.kernels().tier().name()
            );
            assert!(errors.iter().all(|e| *e <= 2e-5), "{name}: {errors:?}, at most 2e-5");

            let mut tokens = expected.tokens("prompt_tokens");
            tokens.extend(expected.tokens("greedy_tokens"));
            let mut first: Option<Vec<f32>> = None;
            for chunk in [56, 13, 7, 1] {
                let logits = Run::new(&model, &pool, Precision::F32, 56).feed(&tokens, chunk);
                let first = first.get_or_insert_with(|| logits.clone());
                assert!(*first == logits, "{name}: chunks of {chunk} change bits");
            }
            assert_eq!(&first.unwrap()[..prompt.len()], &prompt[..], "{name}: prompt alone");
        }
    }
}

#[test]
fn logits_far_into_a_text() {
    let folder = fixtures();
    let pool = pool(2);
    for name in llamas(&folder) {
        let folder = folder.join(&name);
        let model = Model::open(&folder.join("model.gguf")).unwrap();
        let expected = Expected::open(&folder.join("long.safetensors"));
        let tokens = expected.tokens("tokens");
        let positions: Vec<usize> = expected.tokens("positions").iter().map(|t| t.index()).collect();
        let n_vocab = model.hyper().n_vocab;
        for precision in [Precision::F32, Precision::default()] {
            let mut first: Option<Vec<f32>> = None;
            for chunk in [128, 37, 1] {
                let all = Run::new(&model, &pool, precision, tokens.len()).feed(&tokens, chunk);
                let rows: Vec<f32> =
                    positions.iter().flat_map(|p| all[p * n_vocab..(p + 1) * n_vocab].to_vec()).collect();
                assert!(
                    *first.get_or_insert_with(|| rows.clone()) == rows,
                    "{name}: chunks of {chunk} change bits"
                );
                let error = distance(&rows, &expected.floats("logits"));
                // With an f16 cache: 3e-3 (the guess of the fixtures' own notes).
                let bound = if precision == Precision::F32 { 5e-5 } else { 3e-3 };
                assert!(error <= bound, "{name}: {error:.1e} at chunks of {chunk}, at most {bound:.0e}");
            }
        }
    }
}

#[test]
fn logits_of_every_tensor_type() {
    let folder = fixtures().with_file_name("quants");
    let pool = pool(2);
    let mut seen = 0;
    for quant in ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"] {
        let path = folder.join(format!("{quant}.gguf"));
        if !path.is_file() {
            println!("skipped: {quant}: no {} in this set of fixtures", path.display());
            continue;
        }
        seen += 1;
        let model = Model::open(&path).unwrap();
        let exact = Expected::open(&folder.join(format!("{quant}.exact.safetensors")));
        let (prompt, last) = stored_rows(&mut Run::new(&model, &pool, Precision::F32, 56), &exact);
        let rows = |e: &Expected| [e.floats("prompt_logits"), e.floats("final_logits")].concat();
        let exact_rows = rows(&exact);
        let error = distance(&[prompt, last].concat(), &exact_rows);
        assert!(error <= 2e-5, "{quant}: {error:.1e} with float activations, at most 2e-5");

        let peer = Expected::open(&folder.join(format!("{quant}.peer.safetensors")));
        let precision = Precision { kv: sotto::model::KvType::F32, ..Precision::default() };
        let (prompt, last) = stored_rows(&mut Run::new(&model, &pool, precision, 56), &exact);
        let ratio_last = distance(&last, &exact.floats("final_logits"))
            / distance(&peer.floats("final_logits"), &exact.floats("final_logits"));
        let ratio = distance(&[prompt, last].concat(), &exact_rows) / distance(&rows(&peer), &exact_rows);
        println!(
            "{quant}: exact {error:.1e}; codes: {ratio:.2} of the peer's error, last row {ratio_last:.2}"
        );
        let (all_max, last_max) = if quant.ends_with("_K") { (0.8, 1.0) } else { (1.1, 1.25) };
        assert!(
            ratio <= all_max && ratio_last <= last_max,
            "{quant}: {ratio:.2} and {ratio_last:.2} of the peer's error"
        );
    }
    assert!(seen >= 3, "fixtures of {seen} tensor types");
}
