//! From a file to a model in place.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::ModelError;
use super::arch::{self, Arch, Rope};
use super::hyper::{self, Hyper, Keys};
use super::kv::Layout;
use super::layer::{AltUpEnds, Dense, FeedForward, Layer, Linear, Matrix, Norm, PerLayerEmbd};
use super::pooling::{self, Pooling};
use super::rope::{self, Angles};
use super::weights::Loader;
use crate::format::{self, Checkpoint, Origin};
use crate::kernel::{Packed, Rows, Weights};
use crate::quant::Quant;

/// A model file, mapped, that the decoder can run.
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    arch: &'static Arch,
    hyper: Hyper,
    /// Of layers that see everything, then of those with a window.
    angles: Vec<Angles>,
    rope: Rope,
    token_embd: Matrix,
    position_embd: Option<Matrix>,
    per_layer: Option<PerLayerEmbd>,
    altup: Option<AltUpEnds>,
    output_norm: Norm,
    /// `None`: the embedding is the output matrix too.
    output: Option<Linear>,
    layers: Vec<Layer>,
    layout: Layout,
    scales: Scales,
    pooling: Option<Pooling>,
    /// Tensors that products read, whose matrices begin with panels.
    packable: BTreeSet<String>,
}

/// Numbers that a file multiplies the stream with, and soft caps; 1 or 0 where it does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales {
    pub embd: f32,
    pub residual: f32,
    pub logits: f32,
    pub attn_cap: f32,
    pub logit_cap: f32,
    /// Queries at position `p` grow by `1 + beta * ln(1 + floor(p / n_ctx_orig))`: beta and `n_ctx_orig` (Ministral 3).
    pub temperature: Option<(f32, usize)>,
    /// What the weights of experts are multiplied with.
    pub experts: f32,
    /// Whether those of the chosen are made to sum to one first.
    pub experts_sum_to_one: bool,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {:?})", self.checkpoint.file(), self.hyper)
    }
}

impl Model {
    /// Opens a model for running: a GGUF file, one of a set of split files, or a directory in the layout of Hugging Face.
    ///
    /// # Errors
    /// When the file is not a whole model of a known architecture.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::new(Arc::new(format::open(path)?))
    }

    /// The model that files hold which are open already.
    ///
    /// # Errors
    /// As [`Self::open`], the files themselves apart.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self, ModelError> {
        if let Some((name, _)) = checkpoint.tensors().find(|(_, t)| t.turned) {
            return Err(ModelError::Turned { file: checkpoint.file().into(), tensor: name.into() });
        }
        Self::shaped(checkpoint)
    }

    /// The model as its metadata and the shapes of its tensors have it, be they turned.
    pub(super) fn shaped(checkpoint: Arc<Checkpoint>) -> Result<Self, ModelError> {
        let arch = architecture(&checkpoint)?;
        let keys = Keys { file: &checkpoint, arch };
        let (hyper, of_layers) = hyper::read(keys)?;
        let scales = scales(keys, &hyper)?;
        let pooling = pooling::read(keys)?;
        let mut load = Loader::new(keys, &hyper);

        let e = hyper.n_embd;
        let embedding = "token_embd.weight";
        let token_embd = load.table(embedding, hyper.n_vocab, e)?;
        if !load.has("output.weight") {
            // It is the output matrix too.
            load.packable.insert(embedding.into());
        }
        let position_embd = match arch.rope {
            Rope::Learned => Some(load.table("position_embd.weight", hyper.n_ctx_train, e)?),
            _ => None,
        };
        let output_norm = load.norm(arch.output_norm, e)?;
        let output = match load.has("output.weight") {
            true => Some(load.linear("output", hyper.n_vocab, e)?),
            false => None,
        };
        let angles = load.angles(&of_layers)?;
        let per_layer = load.per_layer_embd()?;
        let width = per_layer.as_ref().map(|p| p.width);
        let altup = if arch.altup { Some(load.altup_ends()?) } else { None };
        let layers = of_layers
            .iter()
            .enumerate()
            .map(|(i, of)| load.layer(i, of, &of_layers, width))
            .collect::<Result<Vec<_>, _>>()?;
        load.nothing_left()?;
        let (layout, packable) = (load.layout, load.packable);
        let rope = match checkpoint.origin() {
            Origin::Gguf { .. } => arch.rope,
            Origin::HuggingFace => arch.rope_original,
        };
        Ok(Self {
            checkpoint,
            arch,
            hyper,
            angles,
            rope,
            token_embd,
            position_embd,
            per_layer,
            altup,
            output_norm,
            output,
            layers,
            layout,
            scales,
            pooling,
            packable,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// How the vector of a text is made; `None` if it makes none.
    #[must_use]
    pub fn pooling(&self) -> Option<Pooling> {
        self.pooling
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

    /// Bytes of weights that steps read all of, and that must be in memory for them to be fast: all tensors, less the tables
    /// of which a token reads a row.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let all: usize = self.checkpoint.tensors().map(|(_, t)| t.range.len()).sum();
        let embd = if self.output.is_some() { self.token_embd.len } else { 0 };
        let tables = self.per_layer.as_ref().map_or(0, |p| p.token_embd.len)
            + self.position_embd.as_ref().map_or(0, |p| p.len);
        all.saturating_sub(embd + tables) as u64
    }

    /// Bytes of weights that a step of one token reads: the same, less the experts that it does not choose.
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        let unchosen = |layer: &Layer| match &layer.ffn {
            FeedForward::Dense(_) => 0,
            FeedForward::Experts(x) => {
                let all: usize = x.experts.iter().map(Dense::n_bytes).sum();
                all / x.experts.len().max(1) * (x.experts.len() - x.n_used)
            }
        };
        let unchosen: usize = self.layers.iter().map(unchosen).sum();
        self.resident_bytes().saturating_sub(unchosen as u64)
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
        self.checkpoint.n_bytes()
    }

    /// Reads a stretch of the file in, so that the first token does not wait for page faults.
    pub fn populate(&self, start: usize, len: usize) {
        self.checkpoint.populate(start, len);
    }

    /// What a sequence of it keeps.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether it can run `n_ctx` positions: where they are learned, it has those it was trained for.
    ///
    /// # Errors
    /// When it has fewer.
    pub fn check_positions(&self, n_ctx: usize) -> Result<(), ModelError> {
        match &self.position_embd {
            Some(p) if p.n_rows < n_ctx => Err(ModelError::Positions { asked: n_ctx, max: p.n_rows }),
            _ => Ok(()),
        }
    }

    pub(super) fn arch(&self) -> &'static Arch {
        self.arch
    }

    pub(super) fn rope(&self) -> Rope {
        self.rope
    }

    pub(super) fn scales(&self) -> &Scales {
        &self.scales
    }

    pub(super) fn angles(&self) -> &[Angles] {
        &self.angles
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn per_layer(&self) -> Option<&PerLayerEmbd> {
        self.per_layer.as_ref()
    }

    pub(super) fn altup(&self) -> Option<&AltUpEnds> {
        self.altup.as_ref()
    }

    pub(super) fn output_norm(&self) -> &Norm {
        &self.output_norm
    }

    /// `[n_vocab, n_embd]`.
    pub(super) fn token_embd(&self) -> Weights<'_> {
        self.weights(&self.token_embd)
    }

    /// `[n_ctx_train, n_embd]`.
    pub(super) fn position_embd(&self) -> Option<Weights<'_>> {
        self.position_embd.as_ref().map(|m| self.weights(m))
    }

    /// `[n_vocab, n_embd]`.
    pub(super) fn output(&self) -> Weights<'_> {
        self.weights(self.output.as_ref().map_or(&self.token_embd, |o| &o.weight))
    }

    /// Whether the tensor may be stored in panels: products read it, and each matrix in it begins with one. Rows of a
    /// table, and the vectors, are read as the file has them.
    pub(super) fn packable(&self, tensor: &str) -> bool {
        self.packable.contains(tensor)
    }

    pub(super) fn checkpoint_arc(&self) -> Arc<Checkpoint> {
        self.checkpoint.clone()
    }

    pub(super) fn output_bias(&self) -> Option<&[f32]> {
        self.output.as_ref()?.bias.as_deref()
    }

    /// The matrix, in place.
    pub(super) fn weights(&self, m: &Matrix) -> Weights<'_> {
        weights(&self.checkpoint, m)
    }
}

/// A matrix of `file`, in place.
pub(super) fn weights<'a>(file: &'a Checkpoint, m: &Matrix) -> Weights<'a> {
    let bytes = &(*file.parts()[m.part]).as_ref()[m.start..m.start + m.len];
    let made = match m.packed {
        true => Packed::new(m.quant, m.n_rows, m.n_cols, bytes).map(Weights::Packed),
        false => Rows::new(m.quant, m.n_rows, m.n_cols, bytes).map(Weights::Rows),
    };
    made.expect("the reader checked shape and length")
}

/// The architecture that the file names.
pub(super) fn architecture(file: &Checkpoint) -> Result<&'static Arch, ModelError> {
    let key = "general.architecture";
    let found = file.require(key, file.str(key)?)?;
    arch::by_gguf(found).ok_or_else(|| ModelError::Architecture {
        file: file.file().into(),
        found: found.into(),
        known: arch::names(),
    })
}

fn scales(keys: Keys<'_>, h: &Hyper) -> Result<Scales, ModelError> {
    let embd = if keys.arch.embd_scale { (h.n_embd as f32).sqrt() } else { 1.0 };
    let temperature = match keys.if_set("attention.temperature_scale")? {
        None => None,
        Some(beta) => Some((beta, rope::n_ctx_orig(keys, h)?)),
    };
    Ok(Scales {
        embd: keys.if_set("embedding_scale")?.unwrap_or(embd),
        residual: keys.if_set("residual_scale")?.unwrap_or(1.0),
        logits: 1.0 / keys.if_set("logit_scale")?.unwrap_or(1.0),
        attn_cap: keys.if_set("attn_logit_softcapping")?.unwrap_or(0.0),
        logit_cap: keys.if_set("final_logit_softcapping")?.unwrap_or(0.0),
        temperature,
        experts: keys.if_set("expert_weights_scale")?.unwrap_or(1.0),
        experts_sum_to_one: keys.file.bool(&keys.name("expert_weights_norm"))?.unwrap_or(true),
    })
}
