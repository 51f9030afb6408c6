//! The weights of a model, layer by layer: every tensor found by name with the shape that follows from the metadata,
//! none left over. Matrices are never copied; vectors and the smallest matrices are (a few hundred kilobytes).

use std::collections::{BTreeMap, BTreeSet};

use super::ModelError;
use super::arch::{Act, NormAt, NormKind, QkNorm, Recurrent, Rope, RopeLayers};
use super::hyper::{self, Hyper, Keys, LayerHyper};
use super::kv::{CacheShape, Layout, StateShape};
use super::layer::{
    AltUp, AltUpEnds, Attention, BetaAlpha, DeltaNet, Dense, Experts, FeedForward, Layer, Linear, Mamba2,
    Matrix, Mixer, N_STREAM, Norm, PerLayer, PerLayerEmbd, ShortConv,
};
use super::load;
use super::rope::{self, Angles};
use crate::base::limits::{CONV_LEN_MAX, N_COLS_MAX, N_LAYER_MAX};
use crate::format::{Origin, TensorInfo};
use crate::quant::packed::PANEL;

/// Finds tensors by name, checks their shapes, and crosses them off.
pub(super) struct Loader<'a> {
    keys: Keys<'a>,
    h: &'a Hyper,
    left: BTreeMap<&'a str, &'a TensorInfo>,
    /// What a sequence keeps for the layers so far.
    pub layout: Layout,
    /// Tensors so far that products read, whose matrices begin with panels.
    pub packable: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    /// All tensors of the file of `keys` are still to be found.
    pub(super) fn new(keys: Keys<'a>, h: &'a Hyper) -> Self {
        let left = keys.file.tensors().collect();
        Self { keys, h, left, layout: Layout::default(), packable: BTreeSet::new() }
    }

    fn file(&self) -> String {
        self.keys.file.file().into()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    fn take(&mut self, name: &str, rows: usize, cols: usize) -> Result<&'a TensorInfo, ModelError> {
        let info = self.left.remove(name).ok_or_else(|| ModelError::MissingTensor {
            file: self.file(),
            tensor: name.into(),
            arch: self.keys.arch.gguf,
        })?;
        if (info.n_rows, info.n_cols) != (rows, cols) {
            return Err(ModelError::TensorShape {
                file: self.file(),
                tensor: name.into(),
                found_rows: info.n_rows,
                found_cols: info.n_cols,
                rows,
                cols,
            });
        }
        Ok(info)
    }

    /// A matrix of which rows are taken.
    pub(super) fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        let info = self.take(name, rows, cols)?;
        Ok(Matrix {
            quant: info.quant,
            packed: info.packed,
            n_rows: rows,
            n_cols: cols,
            part: info.part,
            start: info.range.start,
            len: info.range.len(),
        })
    }

    /// The weights of `rows` of `cols` as floats: what is small.
    fn floats(&mut self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>, ModelError> {
        let matrix = self.table(name, rows, cols)?;
        let weights = load::weights(self.keys.file, &matrix);
        let mut out = vec![0.0; rows * cols];
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            weights.unpack_part(i, 0, out);
        }
        Ok(out)
    }

    /// A norm or bias of `n` weights, as floats. Its dimensions may be cut in any way, as Mamba-2's are.
    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let (rows, cols) = match self.left.get(name) {
            Some(t) if t.n_rows.checked_mul(t.n_cols) == Some(n) => (t.n_rows, t.n_cols),
            _ => (1, n),
        };
        if let Some(info) = self.left.get(name)
            && info.quant.block_len() != 1
        {
            return Err(ModelError::VectorType {
                file: self.file(),
                tensor: name.into(),
                found: info.quant.name(),
            });
        }
        self.floats(name, rows, cols)
    }

    /// Columns of a tensor that is still to be found; 0 if there is none.
    fn width(&self, name: &str) -> usize {
        self.left.get(name).map_or(0, |t| t.n_cols)
    }

    fn vector_if(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>, ModelError> {
        if self.has(name) { self.vector(name, n).map(Some) } else { Ok(None) }
    }

    /// A matrix with its bias where there is one.
    pub(super) fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let [one] = self.cut_in(name, [rows], cols)?;
        Ok(one)
    }

    /// Matrices of so many rows each that are one tensor, and their biases.
    fn cut(&mut self, name: &str, rows: &[usize], cols: usize) -> Result<Vec<Linear>, ModelError> {
        let (name, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let n_rows = rows.iter().sum();
        let all = Linear { weight: self.table(&name, n_rows, cols)?, bias: self.vector_if(&bias, n_rows)? };
        let starts = rows.iter().scan(0, |next, n| Some(std::mem::replace(next, *next + n)));
        match starts.clone().find(|start| !start.is_multiple_of(PANEL)) {
            Some(row) if all.weight.packed => {
                return Err(ModelError::Panels { file: self.file(), tensor: name, row });
            }
            Some(_) => {}
            None => drop(self.packable.insert(name)),
        }
        Ok(starts.zip(rows).map(|(start, n)| all.rows(start, *n)).collect())
    }

    /// The same for a fixed number.
    fn cut_in<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Linear; N], ModelError> {
        let mut all = self.cut(name, &rows, cols)?.into_iter();
        Ok(std::array::from_fn(|_| all.next().expect("as many as were asked for")))
    }

    /// `n` matrices of one tensor with three dimensions, and the biases of each.
    fn stack(&mut self, name: &str, n: usize, rows: usize, cols: usize) -> Result<Vec<Linear>, ModelError> {
        self.cut(name, &vec![rows; n], cols)
    }

    pub(super) fn norm(&mut self, name: &str, n: usize) -> Result<Norm, ModelError> {
        let weight = self.vector(&format!("{name}.weight"), n)?;
        let bias = match self.keys.arch.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.vector(&format!("{name}.bias"), n)?),
        };
        Ok(Norm { weight, bias })
    }

    /// Fails if a tensor of the blocks that run was not asked for.
    pub(super) fn nothing_left(&self) -> Result<(), ModelError> {
        // Blocks behind the last one guess further tokens, and take no part.
        let block = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
        let guess = |name: &str| block(name).is_some_and(|i| i >= self.h.n_layer && i < N_LAYER_MAX);
        match self.left.keys().find(|name| !guess(name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::UnknownTensor {
                file: self.file(),
                tensor: (*name).into(),
                arch: self.keys.arch.gguf,
            }),
        }
    }

    /// Angles of layers that see everything, and of those with a window if there are any.
    pub(super) fn angles(&mut self, layers: &[LayerHyper]) -> Result<Vec<Angles>, ModelError> {
        if self.keys.arch.rope == Rope::Learned {
            return Ok(Vec::new());
        }
        let (half, mut factors) = (self.h.n_rot / 2, rope::Factors::default());
        factors.freqs = self.vector_if("rope_freqs.weight", half)?;
        factors.short = self.vector_if("rope_factors_short.weight", half)?;
        factors.long = self.vector_if("rope_factors_long.weight", half)?;
        let mut all = vec![rope::global(self.keys, self.h, &factors)?];
        if let Some(window) = layers.iter().find(|l| l.window.is_some()) {
            all.push(rope::windowed(self.keys, self.h, window.head_dim, &all[0])?);
        }
        Ok(all)
    }

    pub(super) fn per_layer_embd(&mut self) -> Result<Option<PerLayerEmbd>, ModelError> {
        let (h, n) = (self.h, self.h.n_layer);
        let width = self.keys.count("embedding_length_per_layer_input", N_COLS_MAX / n)?;
        if width == 0 {
            return Ok(None);
        }
        Ok(Some(PerLayerEmbd {
            token_embd: self.table("per_layer_token_embd.weight", h.n_vocab, n * width)?,
            model_proj: self.linear("per_layer_model_proj", n * width, h.n_embd)?,
            proj_norm: self.norm("per_layer_proj_norm", width)?,
            width,
        }))
    }

    pub(super) fn altup_ends(&mut self) -> Result<AltUpEnds, ModelError> {
        let e = self.h.n_embd;
        for (k, wanted) in [("altup.num_inputs", N_STREAM), ("altup.active_idx", 0)] {
            let found = self.keys.count(k, N_COLS_MAX)?;
            if found != wanted {
                return Err(self.keys.bad(k, found, format!("{wanted} wanted")));
            }
        }
        Ok(AltUpEnds {
            proj: self.stack("altup_proj", N_STREAM - 1, e, e)?,
            unembd: self.stack("altup_unembd_proj", N_STREAM - 1, e, e)?,
        })
    }

    pub(super) fn layer(
        &mut self,
        i: usize,
        of: &LayerHyper,
        layers: &[LayerHyper],
        per_layer: Option<usize>,
    ) -> Result<Layer, ModelError> {
        let (e, arch) = (self.h.n_embd, self.keys.arch);
        let name = |part: &str| format!("blk.{i}.{part}");
        let before = matches!(arch.norm_at, NormAt::Before | NormAt::Both);
        let after = matches!(arch.norm_at, NormAt::After | NormAt::Both);
        let mut norm =
            |here: bool, part: &str| if here { self.norm(&name(part), e).map(Some) } else { Ok(None) };
        Ok(Layer {
            mixer_norm: norm(before, "attn_norm")?,
            ffn_norm: norm(before, arch.ffn_norm)?,
            mixer_post_norm: norm(after, "post_attention_norm")?,
            ffn_post_norm: norm(after, "post_ffw_norm")?,
            mixer: match (of.recurrent, arch.recurrent) {
                (true, Recurrent::ShortConv) => Mixer::ShortConv(self.short_conv(i)?),
                (true, Recurrent::Mamba2) => Mixer::Mamba2(self.mamba2(i)?),
                (true, Recurrent::DeltaNet { spread }) => Mixer::DeltaNet(self.delta_net(i, spread)?),
                _ => Mixer::Attention(Box::new(self.attention(i, of, layers)?)),
            },
            ffn: self.feed_forward(i, of)?,
            per_layer: match per_layer {
                None => None,
                Some(width) => Some(PerLayer {
                    gate: self.linear(&name("inp_gate"), width, e)?,
                    proj: self.linear(&name("proj"), e, width)?,
                    post_norm: self.norm(&name("post_norm"), e)?,
                }),
            },
            altup: if arch.altup { Some(self.altup(i)?) } else { None },
            output_scale: self.vector_if(&name("layer_output_scale.weight"), 1)?.map(|v| v[0]),
        })
    }

    fn altup(&mut self, i: usize) -> Result<AltUp, ModelError> {
        let (e, n) = (self.h.n_embd, N_STREAM);
        let name = |part: &str| format!("blk.{i}.{part}");
        let rank = self.left.get(&*name("laurel_l.weight")).map_or(0, |t| t.n_rows);
        Ok(AltUp {
            router_norm: self.norm(&name("altup_router_norm"), e)?,
            router: self.floats(&name("altup_router.weight"), n, e)?,
            predict: self.floats(&name("altup_predict_coef.weight"), n * n, n)?,
            correct: self.floats(&name("altup_correct_coef.weight"), n, n)?,
            correct_scale: self.vector(&name("altup_correct_scale.weight"), e)?,
            laurel_l: self.linear(&name("laurel_l"), rank, e)?,
            laurel_r: self.linear(&name("laurel_r"), e, rank)?,
            laurel_post_norm: self.norm(&name("laurel_post_norm"), e)?,
        })
    }

    fn attention(&mut self, i: usize, of: &LayerHyper, all: &[LayerHyper]) -> Result<Attention, ModelError> {
        let (h, arch) = (self.h, self.keys.arch);
        let name = |part: &str| format!("blk.{i}.{part}");
        let (n_q, n_kv) = (of.n_head * of.head_dim, of.n_head_kv * of.head_dim);
        let n_q_rows = if arch.q_gate { 2 * n_q } else { n_q };
        let shares = self.shares(i, all)?;
        let (q, kv) = if self.has(&name("attn_qkv.weight")) && shares.is_none() {
            let [q, k, v] = self.cut_in(&name("attn_qkv"), [n_q_rows, n_kv, n_kv], h.n_embd)?;
            (q, Some((k, v)))
        } else {
            let q = self.linear(&name("attn_q"), n_q_rows, h.n_embd)?;
            if shares.is_some() {
                // Gemma 3n's files hold matrices that no reader uses.
                for unused in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                    self.left.remove(&*name(unused));
                }
                (q, None)
            } else {
                let k = self.linear(&name("attn_k"), n_kv, h.n_embd)?;
                // Gemma 4's largest take the keys' products as values too.
                let v = match self.has(&name("attn_v.weight")) {
                    false if arch.v_norm => k.clone(),
                    _ => self.linear(&name("attn_v"), n_kv, h.n_embd)?,
                };
                (q, Some((k, v)))
            }
        };
        let (q_norm, k_norm) = match arch.qk_norm {
            QkNorm::None => (None, None),
            kind => {
                let all = kind == QkNorm::All;
                let (wq, wk) = if all { (n_q, n_kv) } else { (of.head_dim, of.head_dim) };
                let q_norm = self.vector(&name("attn_q_norm.weight"), wq)?;
                let k_norm = match kv {
                    Some(_) => Some(self.vector(&name("attn_k_norm.weight"), wk)?),
                    None => None,
                };
                (Some(q_norm), k_norm)
            }
        };
        let cache = shares.unwrap_or(self.layout.caches.len());
        if shares.is_none() {
            let shape = CacheShape { n_head_kv: of.n_head_kv, head_dim: of.head_dim, window: of.window };
            self.layout.caches.push(shape);
        }
        Ok(Attention {
            q,
            kv,
            output: self.linear(&name("attn_output"), h.n_embd, n_q)?,
            q_norm,
            k_norm,
            v_norm: arch.v_norm.then(|| vec![1.0; of.head_dim]),
            sinks: if arch.sinks { Some(self.vector(&name("attn_sinks.weight"), of.n_head)?) } else { None },
            n_head: of.n_head,
            n_head_kv: of.n_head_kv,
            head_dim: of.head_dim,
            angles: self.turns(i, of, all)?.then_some(usize::from(of.window.is_some())),
            window: of.window,
            scale: hyper::attn_scale(self.keys, h, of.head_dim)?,
            cache,
        })
    }

    /// Whether layer `i` turns its queries and keys.
    fn turns(&self, i: usize, of: &LayerHyper, all: &[LayerHyper]) -> Result<bool, ModelError> {
        if let Some(layers) = self.keys.file.bools(&self.keys.name("rope.layers"))? {
            return Ok(layers.get(i).copied().unwrap_or(true));
        }
        let key = self.keys.name("rope.scaling.finetuned");
        Ok(self.keys.arch.rope != Rope::Learned
            && match self.keys.arch.rope_layers {
                RopeLayers::All => true,
                RopeLayers::NotEvery(n) => !(i + 1).is_multiple_of(n),
                RopeLayers::Windowed => of.window.is_some() || all.iter().all(|l| l.window.is_none()),
                RopeLayers::Finetuned => self.keys.file.bool(&key)?.unwrap_or(true),
            })
    }

    /// The cache of an earlier layer that layer `i` uses instead of its own: that of the last one of its kind which has
    /// one, where `attention.shared_kv_layers` counts it among the last.
    fn shares(&self, i: usize, all: &[LayerHyper]) -> Result<Option<usize>, ModelError> {
        let key = "attention.shared_kv_layers";
        let n = self.keys.count(key, self.h.n_layer)?;
        let own = self.h.n_layer - n;
        if i < own {
            return Ok(None);
        }
        let same = |l: &CacheShape| (l.window, l.head_dim) == (all[i].window, all[i].head_dim);
        self.layout.caches.iter().rposition(same).map(Some).ok_or_else(|| {
            self.keys.bad(key, n, format!("layer {i} has no earlier layer of its kind among the first {own}"))
        })
    }

    /// Weights of a convolution `[n][len]` as `[len][n]`.
    fn conv(&mut self, name: &str, n: usize, len: usize) -> Result<Vec<f32>, ModelError> {
        let rows = self.floats(name, n, len)?;
        let mut out = vec![0.0; n * len];
        for (c, row) in rows.chunks_exact(len).enumerate() {
            for (j, w) in row.iter().enumerate() {
                out[j * n + c] = *w;
            }
        }
        Ok(out)
    }

    fn state(&mut self, conv: usize, heads: usize, state: usize) -> usize {
        self.layout.states.push(StateShape { conv, heads, state });
        self.layout.states.len() - 1
    }

    fn short_conv(&mut self, i: usize) -> Result<ShortConv, ModelError> {
        let (e, len) = (self.h.n_embd, self.keys.size("shortconv.l_cache", CONV_LEN_MAX)?);
        let name = |part: &str| format!("blk.{i}.shortconv.{part}");
        Ok(ShortConv {
            input: self.linear(&name("in_proj"), 3 * e, e)?,
            conv: self.conv(&name("conv.weight"), e, len)?,
            conv_bias: self.vector_if(&name("conv.bias"), e)?,
            output: self.linear(&name("out_proj"), e, e)?,
            state: self.state((len - 1) * e, 0, 0),
        })
    }

    fn mamba2(&mut self, i: usize) -> Result<Mamba2, ModelError> {
        let (k, e) = (self.keys, self.h.n_embd);
        let name = |part: &str| format!("blk.{i}.{part}");
        let len = k.size("ssm.conv_kernel", CONV_LEN_MAX)?;
        let n_inner = k.size("ssm.inner_size", N_COLS_MAX)?;
        let n_state = k.size("ssm.state_size", N_COLS_MAX)?;
        let n_group = k.size("ssm.group_count", n_inner)?;
        let n_head = k.size("ssm.time_step_rank", n_inner)?;
        if !n_inner.is_multiple_of(n_head) || !n_head.is_multiple_of(n_group) {
            let wanted = format!("must divide {n_inner} and be a multiple of {n_group} groups");
            return Err(k.bad("ssm.time_step_rank", n_head, wanted));
        }
        let n_conv = n_inner + 2 * n_group * n_state;
        Ok(Mamba2 {
            input: self.linear(&name("ssm_in"), n_inner + n_conv + n_head, e)?,
            conv: self.conv(&name("ssm_conv1d.weight"), n_conv, len)?,
            conv_bias: self.vector_if(&name("ssm_conv1d.bias"), n_conv)?,
            a: self.vector(&name("ssm_a"), n_head)?,
            d: self.vector(&name("ssm_d"), n_head)?,
            dt_bias: self.vector(&name("ssm_dt.bias"), n_head)?,
            norm: self.vector(&name("ssm_norm.weight"), n_inner)?,
            output: self.linear(&name("ssm_out"), e, n_inner)?,
            n_inner,
            n_group,
            n_state,
            n_head,
            state: self.state((len - 1) * n_conv, n_head, n_inner * n_state),
        })
    }

    fn delta_net(&mut self, i: usize, spread: bool) -> Result<DeltaNet, ModelError> {
        let (k, e) = (self.keys, self.h.n_embd);
        let name = |part: &str| format!("blk.{i}.{part}");
        let len = k.size("ssm.conv_kernel", CONV_LEN_MAX)?;
        let n_inner = k.size("ssm.inner_size", N_COLS_MAX)?;
        let dim_k = k.size("ssm.state_size", N_COLS_MAX)?;
        let n_head_k = k.size("ssm.group_count", N_COLS_MAX)?;
        let n_head_v = k.size("ssm.time_step_rank", N_COLS_MAX)?;
        if !n_inner.is_multiple_of(n_head_v) || !n_head_v.is_multiple_of(n_head_k) {
            let wanted = format!("must divide {n_inner} and be a multiple of {n_head_k} heads of keys");
            return Err(k.bad("ssm.time_step_rank", n_head_v, wanted));
        }
        let dim_v = n_inner / n_head_v;
        let n_conv = 2 * n_head_k * dim_k + n_inner;
        let beta_alpha = match self.has(&name("ssm_ba.weight")) {
            true => BetaAlpha::Mixed(self.linear(&name("ssm_ba"), 2 * n_head_v, e)?),
            false => BetaAlpha::Split(
                self.linear(&name("ssm_beta"), n_head_v, e)?,
                self.linear(&name("ssm_alpha"), n_head_v, e)?,
            ),
        };
        Ok(DeltaNet {
            qkv: self.linear(&name("attn_qkv"), n_conv, e)?,
            z: self.linear(&name("attn_gate"), n_inner, e)?,
            beta_alpha,
            conv: self.conv(&name("ssm_conv1d.weight"), n_conv, len)?,
            a: self.vector(&name("ssm_a"), n_head_v)?,
            dt_bias: self.vector(&name("ssm_dt.bias"), n_head_v)?,
            norm: self.vector(&name("ssm_norm.weight"), dim_v)?,
            output: self.linear(&name("ssm_out"), e, n_inner)?,
            n_head_k,
            n_head_v,
            dim_k,
            dim_v,
            spread: spread && k.file.origin() != Origin::HuggingFace,
            state: self.state((len - 1) * n_conv, n_head_v, n_inner * dim_k),
        })
    }

    fn feed_forward(&mut self, i: usize, of: &LayerHyper) -> Result<FeedForward, ModelError> {
        let (h, k) = (self.h, self.keys);
        let name = |part: &str| format!("blk.{i}.{part}");
        if !self.has(&name("ffn_gate_inp.weight")) {
            let sparse = match k.file.floats(&k.name("activation_sparsity_scale"))? {
                Some(all) => all.get(i).copied().filter(|s| s.is_finite()),
                None => None,
            };
            return Ok(FeedForward::Dense(Dense {
                sparse,
                ..self.dense(i, "", Some(of.n_ff).filter(|_| k.arch.states_ff))?
            }));
        }
        let n_ff = k.size_if("expert_feed_forward_length", N_COLS_MAX)?;
        let n = h.n_expert;
        if n == 0 {
            return Err(k.bad("expert_count", 0, format!("layer {i} has experts")));
        }
        if self.has(&name("ffn_down.weight")) {
            // Experts beside a dense network, as Gemma 4's largest has them: another layer.
            return Err(ModelError::UnknownTensor {
                file: self.file(),
                tensor: name("ffn_gate_inp.weight"),
                arch: k.arch.gguf,
            });
        }
        let experts = if self.has(&name("ffn_up_exps.weight")) {
            let n_ff = n_ff.unwrap_or_else(|| self.width(&name("ffn_down_exps.weight")));
            let up = self.stack(&name("ffn_up_exps"), n, n_ff, h.n_embd)?;
            let gate = self.stack(&name("ffn_gate_exps"), n, n_ff, h.n_embd)?;
            let down = self.stack(&name("ffn_down_exps"), n, h.n_embd, n_ff)?;
            let three = gate.into_iter().zip(up).zip(down);
            three.map(|((gate, up), down)| Dense { gate: Some(gate), up, down, sparse: None }).collect()
        } else if self.has(&name("ffn_gate_up_exps.weight")) {
            let n_ff = n_ff.unwrap_or_else(|| self.width(&name("ffn_down_exps.weight")));
            let mut both = self.stack(&name("ffn_gate_up_exps"), 2 * n, n_ff, h.n_embd)?.into_iter();
            let down = self.stack(&name("ffn_down_exps"), n, h.n_embd, n_ff)?;
            let three = down.into_iter().filter_map(|down| Some((both.next()?, both.next()?, down)));
            three.map(|(gate, up, down)| Dense { gate: Some(gate), up, down, sparse: None }).collect()
        } else {
            (0..n).map(|x| self.dense(i, &format!(".{x}"), n_ff)).collect::<Result<_, _>>()?
        };
        let (shared, shared_gate) = match self.has(&name("ffn_up_shexp.weight")) {
            false => (None, None),
            true => {
                let shared =
                    self.dense(i, "_shexp", k.size_if("expert_shared_feed_forward_length", N_COLS_MAX)?)?;
                let gate = name("ffn_gate_inp_shexp");
                let here = self.has(&format!("{gate}.weight"));
                (Some(shared), if here { Some(self.linear(&gate, 1, h.n_embd)?) } else { None })
            }
        };
        Ok(FeedForward::Experts(Experts {
            router: self.linear(&name("ffn_gate_inp"), n, h.n_embd)?,
            choice_bias: self.vector_if(&name("exp_probs_b.bias"), n)?,
            experts,
            n_used: h.n_expert_used,
            shared,
            shared_gate,
        }))
    }

    /// `ffn_gate`, `ffn_up` and `ffn_down` with `suffix`; gate and up may be one matrix, and there may be no gate where
    /// the activation needs none. They are `stated` wide; where that is not known, as wide as the input of `down`.
    fn dense(&mut self, i: usize, suffix: &str, stated: Option<usize>) -> Result<Dense, ModelError> {
        let e = self.h.n_embd;
        let name = |part: &str| format!("blk.{i}.ffn_{part}{suffix}");
        let n_ff = stated.unwrap_or_else(|| self.width(&format!("{}.weight", name("down"))));
        let down = self.linear(&name("down"), e, n_ff)?;
        let gated = self.has(&format!("{}.weight", name("gate")));
        let plain = self.keys.arch.norm == NormKind::Layer && self.keys.arch.act == Act::Gelu;
        let (gate, up) = match (gated, plain) {
            (true, _) => (Some(self.linear(&name("gate"), n_ff, e)?), self.linear(&name("up"), n_ff, e)?),
            (false, true) => (None, self.linear(&name("up"), n_ff, e)?),
            (false, false) => {
                let [gate, up] = self.cut_in(&name("up"), [n_ff, n_ff], e)?;
                (Some(gate), up)
            }
        };
        Ok(Dense { gate, up, down, sparse: None })
    }
}
