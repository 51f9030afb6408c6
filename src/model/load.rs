//! From a file to weights in place: hyperparameters checked against each other, every tensor found by name with the
//! shape that follows, none left over. Weights are never copied; norms and biases are (a few hundred kilobytes).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc as Shared;

use super::arch::{self, Arch};
use super::rope::{Angles, Scaling};
use super::{KvType, ModelError};
use crate::base::SharedBytes;
use crate::base::limits::{HEAD_DIM_MAX, N_COLS_MAX, N_CTX_MAX, N_GROUP_MAX, N_LAYER_MAX, N_VOCAB_MAX};
use crate::format::{Checkpoint, TensorInfo, gguf};
use crate::kernel::Rows;
use crate::os::map::Map;
use crate::quant::{self, Quant};

/// Sizes of a model; names as in GGUF.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// Blocks.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key-value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotated dimensions of a head; even.
    pub n_rot: usize,
    /// Width of the feed-forward.
    pub n_ff: usize,
    /// Rows of the output.
    pub n_vocab: usize,
    /// Positions it was trained for.
    pub n_ctx_train: usize,
    /// Inside the root of the norm.
    pub norm_eps: f32,
    /// Scale of attention scores.
    pub attn_scale: f32,
}

/// A matrix of the file.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    quant: Quant,
    n_rows: usize,
    n_cols: usize,
    start: usize,
    len: usize,
}

/// A matrix and its bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vec<f32>>,
}

/// One block.
#[derive(Debug)]
pub(super) struct Layer {
    pub attn_norm: Vec<f32>,
    pub attn_q: Linear,
    pub attn_k: Linear,
    pub attn_v: Linear,
    pub attn_output: Linear,
    pub ffn_norm: Vec<f32>,
    pub ffn_gate: Linear,
    pub ffn_up: Linear,
    pub ffn_down: Linear,
}

/// A model file, mapped, that the decoder can run.
pub struct Model {
    map: Shared<Map>,
    checkpoint: Checkpoint,
    arch: &'static Arch,
    hyper: Hyper,
    angles: Angles,
    token_embd: Matrix,
    output_norm: Vec<f32>,
    /// `None`: the embedding is the output matrix too.
    output: Option<Linear>,
    layers: Vec<Layer>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {:?})", self.checkpoint.file(), self.hyper)
    }
}

/// Maps and parses a GGUF file.
///
/// # Errors
/// When it cannot be mapped or is no consistent GGUF.
pub fn open(path: &Path) -> Result<(Shared<Map>, Checkpoint), ModelError> {
    let map = Shared::new(Map::open(path)?);
    let bytes: SharedBytes = map.clone();
    let gguf = gguf::parse(&path.display().to_string(), bytes)?;
    Ok((map, gguf))
}

impl Model {
    /// Opens a model file for running.
    ///
    /// # Errors
    /// When the file is not a whole model of a known architecture.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (map, gguf) = open(path)?;
        let arch = architecture(&gguf)?;
        let mut left: BTreeMap<&str, &TensorInfo> = gguf.tensors().collect();
        let hyper = hyper(&gguf, arch)?;
        let (e, q, kv) = (hyper.n_embd, hyper.n_head * hyper.head_dim, hyper.n_head_kv * hyper.head_dim);
        let mut take = Taker { file: gguf.file(), data: (*map).as_ref(), arch, left: &mut left };

        let token_embd = take.matrix("token_embd.weight", hyper.n_vocab, e)?;
        let output_norm = take.vector("output_norm.weight", e)?;
        let output = match take.has("output.weight") {
            true => Some(take.linear("output", hyper.n_vocab, e)?),
            false => None,
        };
        let factors = match take.has("rope_freqs.weight") {
            true => Some(take.vector("rope_freqs.weight", hyper.n_rot / 2)?),
            false => None,
        };
        let mut layers = Vec::with_capacity(hyper.n_layer);
        for i in 0..hyper.n_layer {
            let of = |part: &str| format!("blk.{i}.{part}");
            layers.push(Layer {
                attn_norm: take.vector(&of("attn_norm.weight"), e)?,
                attn_q: take.linear(&of("attn_q"), q, e)?,
                attn_k: take.linear(&of("attn_k"), kv, e)?,
                attn_v: take.linear(&of("attn_v"), kv, e)?,
                attn_output: take.linear(&of("attn_output"), e, q)?,
                ffn_norm: take.vector(&of("ffn_norm.weight"), e)?,
                ffn_gate: take.linear(&of("ffn_gate"), hyper.n_ff, e)?,
                ffn_up: take.linear(&of("ffn_up"), hyper.n_ff, e)?,
                ffn_down: take.linear(&of("ffn_down"), e, hyper.n_ff)?,
            });
        }
        if let Some((name, _)) = left.first_key_value() {
            return Err(ModelError::UnknownTensor {
                file: gguf.file().into(),
                tensor: (*name).into(),
                arch: arch.gguf,
            });
        }
        let (base, scaling) = rope(&gguf, arch, &hyper)?;
        let angles = Angles::new(hyper.n_rot, base, &scaling, factors.as_deref());
        Ok(Self { map, checkpoint: gguf, arch, hyper, angles, token_embd, output_norm, output, layers })
    }

    /// Its sizes.
    #[must_use]
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// Name of its architecture, such as `llama`.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        self.arch.gguf
    }

    /// Number of weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.checkpoint.tensors().map(|(_, t)| (t.n_cols as u64).saturating_mul(t.n_rows as u64)).sum()
    }

    /// Bytes of weights that a step of one token reads: all tensors, less an embedding that is not the output matrix
    /// too, of which it reads a row.
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        let all: usize = self.checkpoint.tensors().map(|(_, t)| t.range.len()).sum();
        let unread = if self.output.is_some() { self.token_embd.len } else { 0 };
        (all - unread) as u64
    }

    /// The type that most bytes of weights have.
    #[must_use]
    pub fn quantization(&self) -> &'static str {
        let bytes = |q: Quant| {
            self.checkpoint.tensors().filter(|(_, t)| t.quant == q).map(|(_, t)| t.range.len()).sum::<usize>()
        };
        Quant::ALL.into_iter().max_by_key(|q| bytes(*q)).map_or("", Quant::name)
    }

    /// The file it came from.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Length of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        (*self.map).as_ref().len() as u64
    }

    /// Reads a stretch of the file in, so that the first token does not wait for page faults.
    pub fn populate(&self, start: usize, len: usize) {
        self.map.populate(start, len);
    }

    pub(super) fn arch(&self) -> &'static Arch {
        self.arch
    }

    pub(super) fn angles(&self) -> &Angles {
        &self.angles
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn output_norm(&self) -> &[f32] {
        &self.output_norm
    }

    /// `[n_vocab, n_embd]`.
    pub(super) fn token_embd(&self) -> Rows<'_> {
        self.rows(&self.token_embd)
    }

    /// `[n_vocab, n_embd]`.
    pub(super) fn output(&self) -> Rows<'_> {
        self.rows(self.output.as_ref().map_or(&self.token_embd, |o| &o.weight))
    }

    pub(super) fn output_bias(&self) -> Option<&[f32]> {
        self.output.as_ref()?.bias.as_deref()
    }

    /// The matrix, in place.
    pub(super) fn rows(&self, m: &Matrix) -> Rows<'_> {
        let bytes = &(*self.map).as_ref()[m.start..m.start + m.len];
        Rows::new(m.quant, m.n_rows, m.n_cols, bytes).expect("the reader checked shape and length")
    }
}

/// Finds tensors by name, checks their shapes, and crosses them off.
struct Taker<'a, 'b> {
    file: &'a str,
    data: &'a [u8],
    arch: &'static Arch,
    left: &'b mut BTreeMap<&'a str, &'a TensorInfo>,
}

impl Taker<'_, '_> {
    fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    fn take(&mut self, name: &str, rows: usize, cols: usize) -> Result<TensorInfo, ModelError> {
        let info = self.left.remove(name).ok_or_else(|| ModelError::MissingTensor {
            file: self.file.into(),
            tensor: name.into(),
            arch: self.arch.gguf,
        })?;
        if (info.n_rows, info.n_cols) != (rows, cols) {
            return Err(ModelError::TensorShape {
                file: self.file.into(),
                tensor: name.into(),
                found_rows: info.n_rows,
                found_cols: info.n_cols,
                rows,
                cols,
            });
        }
        Ok(info.clone())
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        let info = self.take(name, rows, cols)?;
        Ok(Matrix {
            quant: info.quant,
            n_rows: rows,
            n_cols: cols,
            start: info.range.start,
            len: info.range.len(),
        })
    }

    /// A norm or bias of `n` weights, as floats.
    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let info = self.take(name, 1, n)?;
        if info.quant.block_len() != 1 {
            return Err(ModelError::VectorType {
                file: self.file.into(),
                tensor: name.into(),
                found: info.quant.name(),
            });
        }
        let mut out = vec![0.0; n];
        quant::unpack_row(info.quant, &self.data[info.range], &mut out);
        Ok(out)
    }

    /// A matrix with its bias where there is one.
    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        Ok(Linear { weight, bias })
    }
}

/// The architecture that the file names.
pub(super) fn architecture(gguf: &Checkpoint) -> Result<&'static Arch, ModelError> {
    let key = "general.architecture";
    let found = gguf.require(key, gguf.str(key)?)?;
    arch::by_gguf(found).ok_or_else(|| ModelError::Architecture {
        file: gguf.file().into(),
        found: found.into(),
        known: arch::names(),
    })
}

/// Sizes from the metadata, each within what the decoder takes.
fn hyper(gguf: &Checkpoint, arch: &Arch) -> Result<Hyper, ModelError> {
    let key = |k: &str| format!("{}.{k}", arch.gguf);
    let bad = |k: &str, found: String, wanted: String| ModelError::Hyper {
        file: gguf.file().into(),
        key: key(k),
        found,
        wanted,
    };
    let bounded = |k: &str, v: u64, max: usize| match usize::try_from(v) {
        Ok(n) if n >= 1 && n <= max => Ok(n),
        _ => Err(bad(k, v.to_string(), format!("1 to {max} possible"))),
    };
    let size = |k: &str, max: usize| -> Result<usize, ModelError> {
        bounded(k, gguf.require(&key(k), gguf.uint(&key(k))?)?, max)
    };
    let size_or = |k: &str, default: usize, max: usize| match gguf.uint(&key(k))? {
        Some(v) => bounded(k, v, max),
        None => Ok(default),
    };
    let n_layer = size("block_count", N_LAYER_MAX)?;
    let n_embd = size("embedding_length", N_COLS_MAX)?;
    let n_ff = size("feed_forward_length", N_COLS_MAX)?;
    let n_head = size("attention.head_count", N_COLS_MAX)?;
    let n_head_kv = size_or("attention.head_count_kv", n_head, n_head)?;
    let n_ctx_train = size("context_length", N_CTX_MAX)?;
    if n_head % n_head_kv != 0 || n_head / n_head_kv > N_GROUP_MAX {
        let wanted = format!("must divide the {n_head} heads into groups of at most {N_GROUP_MAX}");
        return Err(bad("attention.head_count_kv", n_head_kv.to_string(), wanted));
    }
    let head_dim = size_or("attention.key_length", (n_embd / n_head).max(1), HEAD_DIM_MAX)?;
    if head_dim > HEAD_DIM_MAX || n_head * head_dim > N_COLS_MAX {
        return Err(bad(
            "attention.head_count",
            format!("{n_head} with heads of {head_dim}"),
            format!("heads of at most {HEAD_DIM_MAX}, {N_COLS_MAX} dimensions in all, are possible"),
        ));
    }
    let value_dim = size_or("attention.value_length", head_dim, HEAD_DIM_MAX)?;
    if value_dim != head_dim {
        return Err(bad(
            "attention.value_length",
            value_dim.to_string(),
            format!("must equal the key length {head_dim}"),
        ));
    }
    let n_rot = size_or("rope.dimension_count", head_dim, head_dim)?;
    if n_rot % 2 != 0 {
        return Err(bad("rope.dimension_count", n_rot.to_string(), "must be even".into()));
    }
    let eps_key = "attention.layer_norm_rms_epsilon";
    let norm_eps = gguf.require(&key(eps_key), gguf.float(&key(eps_key))?)?;
    if !(0.0..=1.0).contains(&norm_eps) {
        return Err(bad(eps_key, norm_eps.to_string(), "0 to 1 possible".into()));
    }
    // The rows of the embedding are the vocabulary: files of logits tests carry no tokenizer.
    let n_vocab = gguf.tensor("token_embd.weight").map_or(0, |t| t.n_rows);
    if n_vocab > N_VOCAB_MAX {
        return Err(ModelError::Hyper {
            file: gguf.file().into(),
            key: "the number of rows of token_embd.weight".into(),
            found: n_vocab.to_string(),
            wanted: format!("1 to {N_VOCAB_MAX} possible"),
        });
    }
    Ok(Hyper {
        n_layer,
        n_embd,
        n_head,
        n_head_kv,
        head_dim,
        n_rot,
        n_ff,
        n_vocab,
        n_ctx_train,
        norm_eps,
        attn_scale: 1.0 / (head_dim as f32).sqrt(),
    })
}

/// Base and scaling of the rotary positions.
fn rope(gguf: &Checkpoint, arch: &Arch, hyper: &Hyper) -> Result<(f32, Scaling), ModelError> {
    let key = |k: &str| format!("{}.rope.{k}", arch.gguf);
    let bad = |k: &str, found: String, wanted: &str| ModelError::Hyper {
        file: gguf.file().into(),
        key: key(k),
        found,
        wanted: wanted.into(),
    };
    let positive = |k: &str| match gguf.float(&key(k))? {
        Some(x) if x <= 0.0 => Err(bad(k, x.to_string(), "above 0 wanted")),
        other => Ok(other),
    };
    let base = positive("freq_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(bad("freq_base", base.to_string(), "above 1 wanted"));
    }
    let factor = || -> Result<f32, ModelError> {
        Ok(gguf.require(&key("scaling.factor"), positive("scaling.factor")?)?)
    };
    let scaling = match gguf.str(&key("scaling.type"))? {
        None | Some("none") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: factor()? },
        Some("yarn") => {
            let n_ctx_orig = match gguf.uint(&key("scaling.original_context_length"))? {
                None => hyper.n_ctx_train,
                Some(n) => {
                    usize::try_from(n).ok().filter(|n| (1..=N_CTX_MAX).contains(n)).ok_or_else(|| {
                        bad("scaling.original_context_length", n.to_string(), "1 to 16777216 possible")
                    })?
                }
            };
            Scaling::Yarn {
                factor: factor()?,
                n_ctx_orig,
                beta_fast: positive("scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: positive("scaling.yarn_beta_slow")?.unwrap_or(1.0),
                magnitude: positive("scaling.attn_factor")?,
            }
        }
        Some(other) => {
            return Err(bad(
                "scaling.type",
                format!("{other:?}"),
                "none, linear and yarn are supported for it",
            ));
        }
    };
    Ok((base, scaling))
}

/// What a file says of itself, read without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// `general.name`, if it has one.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.license`, if it has one.
    pub license: Option<String>,
    /// Whether the decoder runs it; otherwise why not.
    pub runs: Result<(), String>,
    /// Its sizes, where they could be read.
    pub hyper: Option<Hyper>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Weights and bytes of each type, most bytes first.
    pub types: Vec<(&'static str, u64, u64)>,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// `tokenizer.ggml.model` and `.pre`.
    pub tokenizer: Option<(String, Option<String>)>,
    /// It has a chat template.
    pub chat: bool,
}

impl Summary {
    /// Reads the header of `path`.
    ///
    /// # Errors
    /// When it is no GGUF with a known set of types.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (map, gguf) = open(path)?;
        let owned =
            |key: &str| -> Result<Option<String>, ModelError> { Ok(gguf.str(key)?.map(str::to_owned)) };
        let mut types: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        let mut parameters = 0_u64;
        for (_, t) in gguf.tensors() {
            let n = (t.n_cols as u64).saturating_mul(t.n_rows as u64);
            let of = types.entry(t.quant.name()).or_default();
            of.0 += n;
            of.1 += t.range.len() as u64;
            parameters += n;
        }
        let mut types: Vec<_> = types.into_iter().map(|(name, (n, bytes))| (name, n, bytes)).collect();
        types.sort_by_key(|t| std::cmp::Reverse(t.2));
        let model = Model::open(path);
        let architecture = owned("general.architecture")?.unwrap_or_default();
        let tokenizer = match owned("tokenizer.ggml.model")? {
            Some(model) => Some((model, owned("tokenizer.ggml.pre")?)),
            None => None,
        };
        Ok(Self {
            path: path.into(),
            name: owned("general.name")?,
            architecture,
            license: owned("general.license")?,
            hyper: model.as_ref().ok().map(|m| m.hyper.clone()),
            runs: model.map(|_| ()).map_err(|e| e.to_string()),
            file_bytes: (*map).as_ref().len() as u64,
            parameters,
            types,
            n_vocab: gguf.strings("tokenizer.ggml.tokens")?.map_or(0, crate::base::Strings::len),
            tokenizer,
            chat: gguf.str("tokenizer.chat_template")?.is_some(),
        })
    }

    /// The type that most bytes have.
    #[must_use]
    pub fn quantization(&self) -> &'static str {
        self.types.first().map_or("", |t| t.0)
    }

    /// Bytes needed to run it at `n_ctx` positions with a cache of `kv`: the file, the cache, the buffers of a step.
    #[must_use]
    pub fn memory(&self, n_ctx: usize, kv: KvType) -> Option<Memory> {
        let h = self.hyper.as_ref()?;
        let kv = 2 * h.n_layer * n_ctx * h.n_head_kv * h.head_dim * kv.bytes();
        let chunk = crate::base::limits::PREFILL_CHUNK_MAX;
        Some(Memory {
            weights: self.file_bytes,
            kv: kv as u64,
            scratch: super::scratch::Scratch::bytes(h, chunk, 1),
        })
    }
}

/// Bytes of memory by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights: mapped from the file, shared and reclaimable.
    pub weights: u64,
    /// KV cache at full context.
    pub kv: u64,
    /// Buffers of a step.
    pub scratch: u64,
}
