//! Expected logits of `*.safetensors`, and running a model to compare with them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
#![allow(clippy::disallowed_methods, reason = "the gate chooses tier and fixtures by the environment")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sotto::base::Token;
use sotto::kernel::{self, Pool, Tier};
use sotto::model::{Decoder, Feed, Kv, Model, Packer, Pooled, Pooling, Precision, Want};

/// The folder of fixtures that `variable` names; without it the full set beside the checkout, or the small one in
/// `tests/fixtures`.
pub(crate) fn fixtures(variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(folder) => folder.into(),
        None => super::shared(&format!("fixtures/{name}")).unwrap_or_else(|| super::fixture(name)),
    }
}

/// A safetensors file of expected values: I32 and F32 tensors by name.
pub(crate) struct Expected {
    bytes: Vec<u8>,
    header: serde_json::Value,
    data: usize,
}

impl Expected {
    pub(crate) fn open(path: &Path) -> Self {
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

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, "F32").into_iter().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn tokens(&self, name: &str) -> Vec<Token> {
        self.words(name, "I32").into_iter().map(|w| Token(u32::from_le_bytes(w))).collect()
    }
}

pub(crate) fn pool(n_threads: usize) -> Pool {
    let asked = std::env::var("SOTTO_CPU").ok().map(|name| Tier::from_name(&name).unwrap());
    let kernels = kernel::select(asked).unwrap();
    if let Ok(expected) = std::env::var("SOTTO_EXPECT_TIER") {
        assert_eq!(kernels.tier().name(), expected, "the tier that ran");
    }
    Pool::new(kernels, n_threads).unwrap()
}

/// The model with its weights packed in memory, if they are of formats that are.
pub(crate) fn packed(model: &Model, pool: &Pool) -> Option<Model> {
    let mut packer = Packer::memory(model).ok()?;
    // A few panels at a time.
    while packer.work(pool, 10_000).unwrap() {}
    Some(Model::new(Arc::new(packer.finish().unwrap())).unwrap())
}

/// A decoder with its cache, feeding tokens in chunks.
pub(crate) struct Run<'a> {
    model: &'a Model,
    pool: &'a Pool,
    decoder: Decoder,
    kv: Kv,
}

impl<'a> Run<'a> {
    pub(crate) fn new(model: &'a Model, pool: &'a Pool, precision: Precision, n_ctx: usize) -> Self {
        let decoder = Decoder::new(model, precision, 128, 128);
        let kv = decoder.kv(model, n_ctx).unwrap();
        Self { model, pool, decoder, kv }
    }

    /// Logits after each of `tokens`, fed in steps of at most `chunk`.
    pub(crate) fn feed(&mut self, tokens: &[Token], chunk: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for tokens in tokens.chunks(chunk) {
            let feed = Feed { kv: &mut self.kv, tokens, want: Want::All, pooled: None };
            let logits = self.decoder.step(self.model, self.pool, &mut [feed], &mut |_| true).unwrap();
            all.extend_from_slice(logits);
        }
        all
    }
}

/// The vectors of `sequences`, which go through the model together in steps of at most `chunk` tokens of each, and the
/// logits after the last token of each.
pub(crate) fn vectors(
    run: Run<'_>,
    how: Pooling,
    sequences: &[&[Token]],
    chunk: usize,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let Run { model, pool, mut decoder, .. } = run;
    let (n_embd, n_vocab) = (model.hyper().n_embd, model.hyper().n_vocab);
    // Angles may hang on the context's length.
    let mut kvs: Vec<Kv> = sequences.iter().map(|_| decoder.kv(model, 64).unwrap()).collect();
    let mut all: Vec<_> = sequences.iter().map(|_| (Pooled::new(how, n_embd), Vec::new())).collect();
    loop {
        let mut feeds = Vec::new();
        let mut fed = Vec::new();
        for (i, ((kv, sequence), (pooled, _))) in kvs.iter_mut().zip(sequences).zip(&mut all).enumerate() {
            let left = &sequence[kv.len()..];
            if !left.is_empty() {
                let tokens = &left[..left.len().min(chunk)];
                feeds.push(Feed { kv, tokens, want: Want::Last, pooled: Some(pooled) });
                fed.push(i);
            }
        }
        if feeds.is_empty() {
            return all.into_iter().map(|(pooled, logits)| (pooled.finish(), logits)).collect();
        }
        let logits = decoder.step(model, pool, &mut feeds, &mut |_| true).unwrap().to_vec();
        for (i, logits) in fed.into_iter().zip(logits.chunks_exact(n_vocab)) {
            all[i].1 = logits.to_vec();
        }
    }
}

/// Logits after each token of each of `sequences`, which go through the model together, the `i`-th in pieces of
/// `1 + i % 3` tokens.
pub(crate) fn together(run: Run<'_>, sequences: &[&[Token]]) -> Vec<Vec<f32>> {
    let Run { model, pool, mut decoder, .. } = run;
    let n_vocab = model.hyper().n_vocab;
    let mut kvs: Vec<Kv> = sequences.iter().map(|s| decoder.kv(model, s.len()).unwrap()).collect();
    let mut all = vec![Vec::new(); sequences.len()];
    loop {
        let mut feeds = Vec::new();
        let mut fed = Vec::new();
        for (i, (kv, sequence)) in kvs.iter_mut().zip(sequences).enumerate() {
            let left = &sequence[kv.len()..];
            if !left.is_empty() {
                feeds.push(Feed {
                    kv,
                    tokens: &left[..left.len().min(1 + i % 3)],
                    want: Want::All,
                    pooled: None,
                });
                fed.push(i);
            }
        }
        if feeds.is_empty() {
            return all;
        }
        let counts: Vec<usize> = feeds.iter().map(|feed| feed.tokens.len() * n_vocab).collect();
        let mut logits = decoder.step(model, pool, &mut feeds, &mut |_| true).unwrap();
        for (i, n) in fed.into_iter().zip(counts) {
            let (own, rest) = logits.split_at(n);
            all[i].extend_from_slice(own);
            logits = rest;
        }
    }
}

/// Relative L2 distance, ||a - b|| / ||b||, in f64.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// The 24 prompt rows and the last row after the 32 greedy tokens, as the fixtures store them.
pub(crate) fn stored_rows(run: &mut Run<'_>, expected: &Expected) -> [Vec<f32>; 2] {
    let n_vocab = run.model.hyper().n_vocab;
    let prompt = run.feed(&expected.tokens("prompt_tokens"), 128);
    let rest = run.feed(&expected.tokens("greedy_tokens"), 1);
    [prompt, rest[rest.len() - n_vocab..].to_vec()]
}

/// Names of the subfolders or files of `folder` that `pick` wants.
pub(crate) fn names(folder: &Path, pick: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| pick(n)).collect();
    names.sort();
    names
}
