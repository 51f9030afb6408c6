//! Any model as a GGUF file of its own, as llama.cpp's converter and quantizer make one: a directory of Hugging Face, an
//! ONNX graph whose weights have names, or another GGUF file. Rows come in GGUF's order, weights in the type that is asked
//! for, the vocabulary becomes GGUF's keys (`vocab.rs`). Memory is a few megabytes beside the maps.

mod vocab;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ModelError;
use super::arch::{Arch, QkNorm, Recurrent};
use super::load::Model;
use super::packed::{PackError, create};
use crate::base::limits::N_DIM_MAX;
use crate::format::gguf::Outline;
use crate::format::pack::in_order;
use crate::format::{Checkpoint, Meta, Origin, TensorInfo};
use crate::kernel::Pool;
use crate::os::file::NewFile;
use crate::quant::{Quant, pack_row, unpack};

/// Types that matrices may be given.
pub const TYPES: [Quant; 4] = [Quant::F32, Quant::F16, Quant::Q8_0, Quant::Q4_0];
/// Bytes of floats that are made at a time.
const BUFFER: usize = 4 << 20;
/// Rows that are read together from a matrix that lies column after column: a line of the cache has so many floats.
const LINE: usize = 16;
/// Version of ggml's block formats.
const QUANTIZATION: u64 = 2;

/// Why a model is not written as GGUF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is no whole model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] PackError),
    /// GGUF's order of this architecture's weights is not made here.
    #[error(
        "{file}: models of architecture {arch} are not written as GGUF: {why}; run a directory of safetensors as it is"
    )]
    Architecture {
        /// The model.
        file: String,
        /// Its architecture.
        arch: &'static str,
        /// What would have to be done.
        why: &'static str,
    },
    /// It is packed.
    #[error("{file}: is a packed file; take the model that it was made of")]
    Packed {
        /// The model.
        file: String,
    },
    /// Its vocabulary has what GGUF has no key for.
    #[error("{file}: {what}; no key of GGUF says so, and texts would have other tokens")]
    Vocabulary {
        /// The file.
        file: String,
        /// What it has.
        what: String,
    },
    /// A weight that is no number in the new type.
    #[error(
        "{file}: tensor {tensor}, row {row}: a weight is no finite number, or beyond what {wanted} holds; \
         import it as f32, or fetch the model again"
    )]
    Weight {
        /// The model.
        file: String,
        /// The tensor, by GGUF's name.
        tensor: String,
        /// The row.
        row: usize,
        /// The type.
        wanted: &'static str,
    },
    /// More than this machine addresses.
    #[error("{file}: is too large for this machine's addresses")]
    Large {
        /// The model.
        file: String,
    },
}

/// Where a new tensor comes from: of one tensor or, where experts become one, of several of one shape.
#[derive(Debug)]
struct Source {
    from: Vec<TensorInfo>,
    /// Width of a head and how many of its rows rotate, where their halves become neighbours.
    pairs: Option<(usize, usize)>,
}

/// A GGUF file that is to be made of a model.
#[derive(Debug)]
pub struct Plan {
    file: Arc<Checkpoint>,
    outline: Outline,
    sources: Vec<Source>,
    /// What the model's files say of its vocabulary that the new one does not.
    pub lost: Vec<String>,
}

impl Plan {
    /// The model's matrices in the type `asked`, one of [`TYPES`]: norms, biases and what is no product stay 32-bit floats.
    /// Where `asked` is Q4_0 the output matrix is Q8_0, and so is an embedding that is the output matrix too. Rows that no
    /// multiple of 32 are long are F16. Weights that are in blocks already stay as they are.
    ///
    /// # Errors
    /// When it is no whole model, or one that GGUF's keys and orders cannot say here.
    ///
    /// # Panics
    /// If `asked` is no such type.
    pub fn new(file: Arc<Checkpoint>, asked: Quant) -> Result<Self, ImportError> {
        assert!(TYPES.contains(&asked), "{} is not written", asked.name());
        let name = || file.file().to_owned();
        if file.is_packed() {
            return Err(ImportError::Packed { file: name() });
        }
        let model = Model::shaped(file.clone())?;
        let pairs = pairs(&model)?;
        let tied = file.tensor("output.weight").is_none();
        let original = file.origin() == Origin::HuggingFace;
        let mut tensors: Vec<(String, TensorInfo)> = Vec::new();
        let mut sources: Vec<Source> = Vec::new();
        let mut stacks: BTreeMap<String, BTreeMap<usize, &TensorInfo>> = BTreeMap::new();
        let mut singles = Vec::new();
        for (tensor, info) in in_order(&file) {
            match expert(tensor).filter(|_| original) {
                Some((stack, n)) => drop(stacks.entry(stack).or_default().insert(n, info)),
                None => singles.push((tensor.to_owned(), vec![info.clone()])),
            }
        }
        let stacks = stacks.into_iter().map(|(tensor, of)| (tensor, of.into_values().cloned().collect()));
        for (tensor, from) in singles.into_iter().chain(stacks) {
            let from: Vec<TensorInfo> = from;
            let one = from.first().expect("a tensor or an expert");
            let quant = quant_of(&tensor, one, asked, tied);
            let mut shape = one.shape;
            if from.len() > 1 || tensor.ends_with("_exps.weight") && original {
                shape[2] = from.len();
            }
            let info = TensorInfo::new(quant, shape).ok_or_else(|| ImportError::Large { file: name() })?;
            let turns = tensor.contains(".attn_q.") || tensor.contains(".attn_k.");
            sources.push(Source { pairs: pairs.filter(|_| turns), from });
            tensors.push((tensor, info));
        }
        let mut meta = Meta::default();
        let lost = match file.origin() {
            Origin::Gguf { .. } => {
                super::vocab::source(&file)?.ok_or_else(|| ModelError::NoTokenizer { file: name() })?;
                Vec::new()
            }
            Origin::HuggingFace => vocab::keys(&file, model.hyper().n_vocab, &mut meta)?,
        };
        meta.uint("general.file_type", file_type(asked));
        meta.uint("general.quantization_version", QUANTIZATION);
        let outline =
            Outline::new(&file, &meta, tensors).ok_or_else(|| ImportError::Large { file: name() })?;
        Ok(Self { file, outline, sources, lost })
    }

    /// Bytes of the file.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.outline.len() as u64
    }

    /// The types of its tensors: how many tensors each has, and bytes, the most first.
    #[must_use]
    pub fn types(&self) -> Vec<(Quant, usize, u64)> {
        let of = |quant: Quant| {
            let all = self.outline.tensors.iter().filter(|(_, info)| info.quant == quant);
            all.fold((quant, 0, 0), |(quant, n, bytes), (_, info)| {
                (quant, n + 1, bytes + info.range.len() as u64)
            })
        };
        let mut types: Vec<_> = Quant::ALL.into_iter().map(of).filter(|(_, n, _)| *n > 0).collect();
        types.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        types
    }
}

/// The width of a head and its rotated rows, if those of queries and keys must change their order for GGUF.
fn pairs(model: &Model) -> Result<Option<(usize, usize)>, ImportError> {
    let (file, arch) = (model.checkpoint(), model.arch());
    if file.origin() != Origin::HuggingFace {
        return Ok(None);
    }
    let refused = |why| Err(ImportError::Architecture { file: file.file().into(), arch: arch.gguf, why });
    if let Arch { recurrent: Recurrent::DeltaNet { spread: true }, .. } = arch {
        return refused("the heads of its delta net would have to change places");
    }
    if arch.rope == arch.rope_original {
        return Ok(None);
    }
    if arch.qk_norm != QkNorm::None {
        return refused("the norms of its queries and keys would have to change their order");
    }
    Ok(Some((model.hyper().head_dim, model.hyper().n_rot)))
}

/// The stack that the tensor of an expert belongs to, and its number.
fn expert(tensor: &str) -> Option<(String, usize)> {
    let (stem, number) = tensor.strip_suffix(".weight")?.rsplit_once('.')?;
    let number = number.parse().ok().filter(|_| stem.contains(".ffn_"))?;
    Some((format!("{stem}_exps.weight"), number))
}

/// The type of a tensor in a file of `asked`, as llama.cpp's quantizer chooses, but for Q8_0 where it takes Q6_K.
fn quant_of(tensor: &str, info: &TensorInfo, asked: Quant, tied: bool) -> Quant {
    /// Matrices of no product, or of one that steers the others.
    const FLOATS: [&str; 6] = [
        "_norm.",
        "ffn_gate_inp",
        "position_embd.",
        "ssm_conv1d.",
        "shortconv.conv.",
        "per_layer_model_proj.",
    ];
    let floats =
        info.n_rows == 1 || !tensor.ends_with(".weight") || FLOATS.iter().any(|of| tensor.contains(of));
    let output = tensor == "output.weight" || tied && tensor == "token_embd.weight";
    match asked {
        _ if info.quant.block_len() > 1 => info.quant,
        _ if floats => Quant::F32,
        asked if asked.block_len() == 1 => asked,
        asked if !info.n_cols.is_multiple_of(asked.block_len()) => Quant::F16,
        Quant::Q4_0 if output => Quant::Q8_0,
        asked => asked,
    }
}

/// llama.cpp's number of a file of this type.
fn file_type(asked: Quant) -> u64 {
    match asked {
        Quant::F32 => 0,
        Quant::F16 => 1,
        Quant::Q4_0 => 2,
        _ => 7,
    }
}

/// Writes a [`Plan`], a stretch at a time.
pub struct Import {
    plan: Plan,
    new: Option<NewFile>,
    path: String,
    /// What is next: the tensor, and its first row.
    next: (usize, usize),
    floats: Vec<f32>,
    out: Vec<u8>,
    done: u64,
}

impl Import {
    /// Writes the file `path`, which has its name once it is whole.
    ///
    /// # Errors
    /// When there is no room, or the file cannot be created.
    pub fn new(plan: Plan, path: &Path) -> Result<Self, ImportError> {
        let new = create(path, plan.n_bytes(), 0)?;
        let path = path.display().to_string();
        let wrote = new.write(0, plan.outline.header());
        wrote.map_err(|source| PackError::Write { path: path.clone(), source })?;
        let done = plan.outline.header().len() as u64;
        Ok(Self { plan, new: Some(new), path, next: (0, 0), floats: Vec::new(), out: Vec::new(), done })
    }

    /// Bytes that are written, and that are to be in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done, self.plan.n_bytes())
    }

    /// Writes the next `n_bytes`, or a little more; false when the file stands under its name. What was read is let go.
    ///
    /// # Errors
    /// When a weight cannot be told in its new type, or the file cannot be written on; then it is gone.
    pub fn work(&mut self, pool: &Pool, n_bytes: usize) -> Result<bool, ImportError> {
        let Some(new) = self.new.take() else { return Ok(false) };
        let failed = |path: &str, source| PackError::Write { path: path.into(), source };
        let mut left = n_bytes;
        while left > 0 && self.next.0 < self.plan.sources.len() {
            let (at, n) = self.stretch(pool)?;
            new.write(at as u64, &self.out).map_err(|e| failed(&self.path, e))?;
            left = left.saturating_sub(n);
            self.done += n as u64;
        }
        if self.next.0 < self.plan.sources.len() {
            new.sync().map_err(|e| failed(&self.path, e))?;
            self.new = Some(new);
        } else {
            new.publish().map_err(|e| failed(&self.path, e))?;
            self.done = self.plan.n_bytes();
        }
        Ok(true)
    }

    /// Makes the bytes of some rows of a tensor; where they belong, and how many they are.
    fn stretch(&mut self, pool: &Pool) -> Result<(usize, usize), ImportError> {
        let (i, first) = self.next;
        let Self { plan: Plan { file, outline, sources, .. }, floats, out, .. } = self;
        let (Source { from, pairs }, (tensor, to)) = (&sources[i], &outline.tensors[i]);
        let (one, n_cols) = (&from[0], to.n_cols);
        let row_bytes = to.range.len() / to.n_rows;
        // Rows of one source, whole lines of them.
        let within = first % one.n_rows;
        let most = (BUFFER / (n_cols * size_of::<f32>())).next_multiple_of(LINE).max(LINE);
        let n = most.min(one.n_rows - within);
        let source = &from[first / one.n_rows];
        let row = |r: usize| within + r;
        let row = |r: usize| pairs.map_or(row(r), |(width, n_rot)| halves(row(r), width, n_rot));
        let bytes = file.bytes(source);
        out.resize(n * row_bytes, 0);
        if !source.turned && source.quant == to.quant {
            for (r, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                out.copy_from_slice(&bytes[row(r) * row_bytes..][..row_bytes]);
            }
        } else {
            floats.resize(n * n_cols, 0.0);
            let each = if n.is_multiple_of(LINE) { LINE } else { 1 };
            pool.for_each_row(floats, each * n_cols, &|r, out| {
                let rows = std::array::from_fn::<usize, LINE, _>(|j| row(r * each + j.min(each - 1)));
                read(source, bytes, &rows[..each], out);
            });
            let bad = AtomicUsize::new(usize::MAX);
            pool.for_each_row(out, row_bytes, &|r, out| {
                if !pack_row(to.quant, &floats[r * n_cols..][..n_cols], out) {
                    // Relaxed: read after the job.
                    bad.fetch_min(first + r, Ordering::Relaxed);
                }
            });
            let bad = bad.into_inner();
            if bad != usize::MAX {
                return Err(ImportError::Weight {
                    file: file.file().into(),
                    tensor: tensor.clone(),
                    row: bad,
                    wanted: to.quant.name(),
                });
            }
        }
        let at = to.range.start + first * row_bytes;
        if within + n == one.n_rows {
            file.forget(source.part, source.range.start, source.range.len());
        }
        self.next = if first + n == to.n_rows { (i + 1, 0) } else { (i, first + n) };
        Ok((at, n * row_bytes))
    }
}

/// Row of the original that is row `r` where the halves of what rotates in a head are neighbours.
fn halves(r: usize, width: usize, n_rot: usize) -> usize {
    let (head, at) = (r / width, r % width);
    let from = if at < n_rot { at % 2 * (n_rot / 2) + at / 2 } else { at };
    head * width + from
}

/// Writes rows of a tensor of `bytes` as floats.
fn read(info: &TensorInfo, bytes: &[u8], rows: &[usize], out: &mut [f32]) {
    let (unpack, n_cols) = (unpack(info.quant), info.n_cols);
    if !info.turned {
        let row_bytes = info.range.len() / info.n_rows;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(n_cols)) {
            unpack(&bytes[row * row_bytes..][..row_bytes], out);
        }
        return;
    }
    let width = info.quant.block_bytes();
    for col in 0..n_cols {
        let column = &bytes[col * info.n_rows * width..][..info.n_rows * width];
        for (i, row) in rows.iter().enumerate() {
            unpack(&column[row * width..][..width], &mut out[i * n_cols + col..][..1]);
        }
    }
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Import({} of {} bytes)", self.done, self.plan.n_bytes())
    }
}

const _: () = assert!(N_DIM_MAX > 2, "a stack has three dimensions");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_neighbours() {
        let order = |n_rot| (0..8).map(|r| halves(r, 8, n_rot)).collect::<Vec<_>>();
        assert_eq!(order(8), [0, 4, 1, 5, 2, 6, 3, 7]);
        assert_eq!(order(4), [0, 2, 1, 3, 4, 5, 6, 7]);
        assert_eq!(halves(9, 8, 8), 12);
    }

    #[test]
    fn types_are_those_of_the_quantizer() {
        let info = |n_rows, n_cols| TensorInfo::new(Quant::F16, [n_cols, n_rows, 1, 1]).unwrap();
        let of = |tensor: &str, info: &TensorInfo, asked| quant_of(tensor, info, asked, false);
        let (matrix, odd) = (info(64, 64), info(64, 172));
        for asked in TYPES {
            assert_eq!(of("blk.0.attn_q.weight", &matrix, asked), asked);
            assert_eq!(of("blk.0.attn_norm.weight", &info(1, 64), asked), Quant::F32);
            assert_eq!(of("blk.0.attn_q.bias", &info(1, 64), asked), Quant::F32);
            assert_eq!(of("blk.0.ffn_gate_inp.weight", &matrix, asked), Quant::F32);
            assert_eq!(of("blk.0.shortconv.conv.weight", &info(64, 3), asked), Quant::F32);
        }
        assert_eq!(of("blk.0.ffn_down.weight", &odd, Quant::Q8_0), Quant::F16);
        assert_eq!(of("output.weight", &odd, Quant::Q4_0), Quant::F16);
        assert_eq!(of("output.weight", &matrix, Quant::Q4_0), Quant::Q8_0);
        assert_eq!(of("token_embd.weight", &matrix, Quant::Q4_0), Quant::Q4_0);
        assert_eq!(quant_of("token_embd.weight", &matrix, Quant::Q4_0, true), Quant::Q8_0);
        let blocks = TensorInfo::new(Quant::Q4_K, [256, 64, 1, 1]).unwrap();
        assert_eq!(of("blk.0.attn_q.weight", &blocks, Quant::Q8_0), Quant::Q4_K);
    }

    #[test]
    fn experts_belong_to_stacks() {
        assert_eq!(expert("blk.2.ffn_gate.7.weight"), Some(("blk.2.ffn_gate_exps.weight".into(), 7)));
        assert_eq!(expert("blk.2.ffn_gate.weight"), None);
        assert_eq!(expert("blk.2.attn_q.weight"), None);
    }
}
