//! Sizes and settings from the metadata, each within what the decoder takes.

use super::ModelError;
use super::arch::{Arch, AttnScale, Window};
use crate::base::limits::{
    HEAD_DIM_MAX, N_COLS_MAX, N_CTX_MAX, N_EXPERT_MAX, N_GROUP_MAX, N_LAYER_MAX, N_VOCAB_MAX,
};
use crate::format::Checkpoint;

/// Sizes of a model; names as in GGUF. Where layers differ, the largest.
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
    /// Width of the feed-forward; with experts of one expert's, where all layers have them.
    pub n_ff: usize,
    /// Rows of the output.
    pub n_vocab: usize,
    /// Positions it was trained for.
    pub n_ctx_train: usize,
    /// Experts of a layer; 0: none.
    pub n_expert: usize,
    /// Experts that a token uses.
    pub n_expert_used: usize,
    /// Inside the root of the norm.
    pub norm_eps: f32,
}

/// The keys of one architecture in a checkpoint.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub file: &'a Checkpoint,
    pub arch: &'static Arch,
}

impl Keys<'_> {
    /// The key `k` of this architecture.
    pub(super) fn name(&self, k: &str) -> String {
        format!("{}.{k}", self.arch.gguf)
    }

    /// The error that `k` is not what is wanted.
    pub(super) fn bad(&self, k: &str, found: impl ToString, wanted: impl Into<String>) -> ModelError {
        ModelError::Hyper {
            file: self.file.file().into(),
            key: self.name(k),
            found: found.to_string(),
            wanted: wanted.into(),
        }
    }

    fn bounded(&self, k: &str, v: u64, max: usize) -> Result<usize, ModelError> {
        match usize::try_from(v) {
            Ok(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(self.bad(k, v, format!("1 to {max} possible"))),
        }
    }

    /// A size of 1 to `max`, if it is there.
    pub(super) fn size_if(&self, k: &str, max: usize) -> Result<Option<usize>, ModelError> {
        self.file.uint(&self.name(k))?.map(|v| self.bounded(k, v, max)).transpose()
    }

    /// A size of 1 to `max`.
    pub(super) fn size(&self, k: &str, max: usize) -> Result<usize, ModelError> {
        Ok(self.file.require(&self.name(k), self.size_if(k, max)?)?)
    }

    /// A count of 0 to `max`; 0 where it is absent.
    pub(super) fn count(&self, k: &str, max: usize) -> Result<usize, ModelError> {
        match self.file.uint(&self.name(k))? {
            None | Some(0) => Ok(0),
            Some(v) => self.bounded(k, v, max),
        }
    }

    /// A count for each layer, 0 to `max`: an array, or one for all.
    pub(super) fn per_layer(
        &self,
        k: &str,
        n_layer: usize,
        max: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(all) = self.file.uint_per_layer(&self.name(k), n_layer)? else { return Ok(None) };
        let one = |v: u64| if v == 0 { Ok(0) } else { self.bounded(k, v, max) };
        all.into_iter().map(one).collect::<Result<_, _>>().map(Some)
    }

    /// An array of truth values, if one is there; a number under the same key is none.
    fn flags(&self, k: &str) -> Result<Option<Vec<bool>>, ModelError> {
        match self.file.uint(&self.name(k)) {
            Ok(Some(_)) => Ok(None),
            _ => Ok(self.file.bools(&self.name(k))?),
        }
    }

    /// A number above 0, if it is there.
    pub(super) fn positive(&self, k: &str) -> Result<Option<f32>, ModelError> {
        match self.file.float(&self.name(k))? {
            Some(x) if x <= 0.0 => Err(self.bad(k, x, "above 0 wanted")),
            other => Ok(other),
        }
    }

    /// A number; absent or 0: not used.
    pub(super) fn if_set(&self, k: &str) -> Result<Option<f32>, ModelError> {
        match self.file.float(&self.name(k))? {
            Some(x) if x < 0.0 => Err(self.bad(k, x, "0 or above wanted")),
            other => Ok(other.filter(|x| *x != 0.0)),
        }
    }
}

/// What each layer's mixer is made of, from the metadata.
#[derive(Clone, Debug)]
pub(super) struct LayerHyper {
    /// 0 in a recurrent layer.
    pub n_head_kv: usize,
    pub n_head: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    /// Keys that a token sees; `None`: all.
    pub window: Option<usize>,
    pub recurrent: bool,
}

/// The sizes of the model and of each layer.
pub(super) fn read(keys: Keys<'_>) -> Result<(Hyper, Vec<LayerHyper>), ModelError> {
    // Blocks that guess further tokens are stored behind the others and take no part.
    let n_guess = keys.count("nextn_predict_layers", N_LAYER_MAX)?;
    let n_all = keys.size("block_count", N_LAYER_MAX)?;
    let n_layer = n_all.checked_sub(n_guess).filter(|n| *n > 0).ok_or_else(|| {
        keys.bad("nextn_predict_layers", n_guess, format!("below the {n_all} blocks of block_count wanted"))
    })?;
    let n_embd = keys.size("embedding_length", N_COLS_MAX)?;
    let n_ctx_train = keys.size("context_length", N_CTX_MAX)?;
    let n_expert = keys.count("expert_count", N_EXPERT_MAX)?;
    // Files without experts may still say how many would be used.
    let n_expert_used = if n_expert == 0 { 0 } else { keys.count("expert_used_count", N_EXPERT_MAX)? };
    if n_expert_used > n_expert || (n_expert > 0 && n_expert_used == 0) {
        return Err(keys.bad("expert_used_count", n_expert_used, format!("1 to {n_expert} possible")));
    }
    let first = |all: Option<Vec<usize>>| all.map(|v| v[..n_layer].to_vec());
    let n_head = keys.per_layer("attention.head_count", n_all, N_COLS_MAX)?;
    let n_head = keys.file.require(&keys.name("attention.head_count"), first(n_head))?;
    let n_head_kv = first(keys.per_layer("attention.head_count_kv", n_all, N_COLS_MAX)?);
    let n_head_kv = n_head_kv.unwrap_or_else(|| n_head.clone());
    let n_ff = first(keys.per_layer("feed_forward_length", n_all, N_COLS_MAX)?);
    let n_ff = match n_ff {
        Some(n) => n,
        None if n_expert > 0 => vec![0; n_layer],
        None => return Err(keys.bad("feed_forward_length", "absent", "a width is needed")),
    };
    let windows = windows(keys, n_layer, n_all)?;
    let heads_max = n_head.iter().copied().max().unwrap_or(1).max(1);
    let head_dim = keys.size_if("attention.key_length", HEAD_DIM_MAX)?.unwrap_or((n_embd / heads_max).max(1));
    let window_dim = keys.size_if("attention.key_length_swa", HEAD_DIM_MAX)?.unwrap_or(head_dim);
    for (key, dim) in [("attention.value_length", head_dim), ("attention.value_length_swa", window_dim)] {
        if let Some(n) = keys.size_if(key, HEAD_DIM_MAX)?.filter(|n| *n != dim) {
            return Err(keys.bad(key, n, format!("must equal the key length {dim}")));
        }
    }
    let recurrent = recurrent(keys, n_layer, n_all, &n_head_kv)?;
    let mut layers = Vec::with_capacity(n_layer);
    for i in 0..n_layer {
        let (q, kv) = (n_head[i], n_head_kv[i]);
        let dim = if windows[i].is_some() { window_dim } else { head_dim };
        if !recurrent[i] {
            if q == 0 {
                let wanted = format!("1 to {N_COLS_MAX} possible in layer {i}");
                return Err(keys.bad("attention.head_count", q, wanted));
            }
            if kv == 0 || !q.is_multiple_of(kv) || q / kv > N_GROUP_MAX {
                let wanted =
                    format!("must divide the {q} heads of layer {i} into groups of at most {N_GROUP_MAX}");
                return Err(keys.bad("attention.head_count_kv", kv, wanted));
            }
            if dim > HEAD_DIM_MAX || q * dim > N_COLS_MAX {
                let wanted =
                    format!("heads of at most {HEAD_DIM_MAX}, {N_COLS_MAX} dimensions in all, are possible");
                return Err(keys.bad("attention.head_count", format!("{q} with heads of {dim}"), wanted));
            }
        }
        layers.push(LayerHyper {
            n_head_kv: kv,
            n_head: q,
            head_dim: dim,
            n_ff: n_ff[i],
            window: windows[i],
            recurrent: recurrent[i],
        });
    }
    let widest = |f: fn(&LayerHyper) -> usize| layers.iter().map(f).max().unwrap_or(0);
    let n_rot = match keys.size_if("rope.dimension_count", N_COLS_MAX)? {
        Some(n) if n > head_dim => {
            return Err(keys.bad("rope.dimension_count", n, format!("1 to {head_dim} possible")));
        }
        Some(n) => n,
        None => head_dim,
    };
    if n_rot % 2 != 0 {
        return Err(keys.bad("rope.dimension_count", n_rot, "must be even"));
    }
    let expert_ff = keys.count("expert_feed_forward_length", N_COLS_MAX)?;
    // The rows of the embedding are the vocabulary: files of logits tests carry no tokenizer.
    let n_vocab = keys.file.tensor("token_embd.weight").map_or(0, |t| t.n_rows);
    if n_vocab > N_VOCAB_MAX {
        return Err(ModelError::Hyper {
            file: keys.file.file().into(),
            key: "the number of rows of token_embd.weight".into(),
            found: n_vocab.to_string(),
            wanted: format!("1 to {N_VOCAB_MAX} possible"),
        });
    }
    let hyper = Hyper {
        n_layer,
        n_embd,
        n_head: widest(|l| l.n_head),
        n_head_kv: widest(|l| l.n_head_kv),
        head_dim: widest(|l| l.head_dim),
        n_rot,
        n_ff: if widest(|l| l.n_ff) == 0 { expert_ff } else { widest(|l| l.n_ff) },
        n_vocab,
        n_ctx_train,
        n_expert,
        n_expert_used,
        norm_eps: norm_eps(keys)?,
    };
    Ok((hyper, layers))
}

fn norm_eps(keys: Keys<'_>) -> Result<f32, ModelError> {
    let k = match keys.arch.norm {
        super::arch::NormKind::Rms => "attention.layer_norm_rms_epsilon",
        super::arch::NormKind::Layer => "attention.layer_norm_epsilon",
    };
    let eps = keys.file.require(&keys.name(k), keys.file.float(&keys.name(k))?)?;
    if !(0.0..=1.0).contains(&eps) {
        return Err(keys.bad(k, eps, "0 to 1 possible"));
    }
    Ok(eps)
}

/// The window of each layer.
fn windows(keys: Keys<'_>, n_layer: usize, n_all: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let Some(window) = Some(keys.count("attention.sliding_window", N_CTX_MAX)?).filter(|n| *n > 0) else {
        return Ok(vec![None; n_layer]);
    };
    let pattern = "attention.sliding_window_pattern";
    let period = |n: usize| move |i: usize| n == 0 || i % n < n - 1;
    let here: Vec<bool> = match (keys.flags(pattern)?, keys.arch.window) {
        (Some(all), _) if all.len() >= n_layer && all.len() <= n_all => all,
        (Some(all), _) => {
            return Err(keys.bad(pattern, format!("an array of {}", all.len()), format!("{n_layer} wanted")));
        }
        (None, default) => {
            let n = match (keys.size_if(pattern, N_LAYER_MAX)?, default) {
                (Some(n), _) | (None, Window::NotLastOf(n)) => n,
                (None, Window::All) => 0,
            };
            (0..n_layer).map(period(n)).collect()
        }
    };
    Ok(here[..n_layer].iter().map(|w| w.then_some(window)).collect())
}

/// Which layers carry a state.
fn recurrent(
    keys: Keys<'_>,
    n_layer: usize,
    n_all: usize,
    n_head_kv: &[usize],
) -> Result<Vec<bool>, ModelError> {
    use super::arch::Recurrent;
    Ok(match keys.arch.recurrent {
        Recurrent::None => vec![false; n_layer],
        // A layer without key-value heads.
        Recurrent::ShortConv | Recurrent::Mamba2 => n_head_kv.iter().map(|n| *n == 0).collect(),
        Recurrent::DeltaNet { .. } => {
            let k = "attention.recurrent_layers";
            match keys.flags(k)? {
                Some(all) if all.len() >= n_layer && all.len() <= n_all => all[..n_layer].to_vec(),
                Some(all) => {
                    let found = format!("an array of {}", all.len());
                    return Err(keys.bad(k, found, format!("{n_layer} wanted")));
                }
                None => {
                    let every = keys.size_if("full_attention_interval", N_LAYER_MAX)?.unwrap_or(4);
                    (0..n_layer).map(|i| (i + 1) % every != 0).collect()
                }
            }
        }
    })
}

/// What scores of heads of `head_dim` are multiplied with.
pub(super) fn attn_scale(keys: Keys<'_>, h: &Hyper, head_dim: usize) -> Result<f32, ModelError> {
    let root = |n: usize| 1.0 / (n as f32).sqrt();
    Ok(match (keys.if_set("attention.scale")?, keys.arch.attn_scale) {
        (Some(scale), _) => scale,
        (None, AttnScale::One) => 1.0,
        (None, AttnScale::HeadBut(n)) if n == h.n_layer => root((h.n_embd / h.n_head).max(1)),
        (None, AttnScale::Head | AttnScale::HeadBut(_)) => root(head_dim),
    })
}
