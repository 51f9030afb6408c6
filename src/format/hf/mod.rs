//! A directory in the layout of Hugging Face: `config.json` and safetensors become metadata and tensors under GGUF's
//! names. Matrices stay in place in the mapped files, in their own order of rows: GGUF's converter permutes the rows
//! of queries and keys (llama) and of value heads (Qwen3.5), which is undone nowhere here; who runs the model looks
//! at [`Origin::HuggingFace`]. Small tensors that the converter changes are written anew.

mod config;
mod files;
mod names;
pub mod onnx;
mod rope;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;

use config::Config;
pub use files::{index_files, is_plain, template_in};
use names::{Class, Fold, Target};

use super::checkpoint::{Checkpoint, Origin, TensorInfo, TextFiles};
use super::safetensors::{self, Stored};
use super::{FormatError, Meta, json};
use crate::base::SharedBytes;
use crate::base::limits::{N_EXPERT_MAX, N_TENSOR_MAX};
use crate::os::map::Map;
use crate::quant::{self, Quant};

/// A file of tensors.
pub struct Shard {
    /// For messages.
    pub file: String,
    /// The whole of it.
    pub bytes: SharedBytes,
    /// The map that `bytes` is, if it is one.
    pub map: Option<Arc<Map>>,
}

/// What a directory holds beside tensors.
#[derive(Default)]
pub struct Texts {
    /// `config.json`.
    pub config: Vec<u8>,
    /// `generation_config.json`.
    pub generation_config: Option<Vec<u8>>,
    /// The chat template.
    pub chat_template: Option<String>,
}

/// Opens a directory.
///
/// # Errors
/// When a file is missing or damaged, or the model is of a class that is not translated.
pub(super) fn open(dir: &Path) -> Result<Checkpoint, FormatError> {
    let (texts, text) = files::read(dir)?;
    let mut checkpoint = translate(&dir.display().to_string(), &texts, files::shards(dir)?)?;
    checkpoint.text = text;
    Ok(checkpoint)
}

/// Translates files that are in memory; `dir` is the name of their directory, for messages.
///
/// # Errors
/// As `open` for the files themselves.
pub fn translate(dir: &str, texts: &Texts, shards: Vec<Shard>) -> Result<Checkpoint, FormatError> {
    translate_by(dir, texts, shards, |tensors, shards| {
        for (part, shard) in shards.iter().enumerate() {
            let data = (*shard.bytes).as_ref();
            for stored in safetensors::header(&shard.file, data)? {
                tensors.take(&shard.file, part, data, stored, Used::AsNamed)?;
            }
        }
        Ok(())
    })
}

/// Translates the tensors that `give` hands over, which lie in `shards`.
fn translate_by(
    dir: &str,
    texts: &Texts,
    shards: Vec<Shard>,
    give: impl FnOnce(&mut Tensors<'_>, &[Shard]) -> Result<(), FormatError>,
) -> Result<Checkpoint, FormatError> {
    let config_file = format!("{dir}/config.json");
    let top = json::parse(&config_file, &texts.config)?;
    let config = Config::new(&config_file, &top)?;
    let (class, class_name) = config::class(&config)?;

    let mut meta = Meta::default();
    meta.str("general.architecture", class.arch);
    let name = Path::new(dir).file_name().map(|n| n.to_string_lossy().into_owned());
    meta.str("general.name", name.as_deref().unwrap_or(dir));
    let (n_block, factors) = config::hyperparameters(&config, class, &mut meta)?;
    if let Some(template) = &texts.chat_template {
        meta.str("tokenizer.chat_template", template);
    }
    let generation_file = format!("{dir}/generation_config.json");
    let generation =
        texts.generation_config.as_ref().map(|bytes| json::parse(&generation_file, bytes)).transpose()?;
    let generation = generation.as_ref().map(|g| Config::new(&generation_file, g)).transpose()?;
    let eos = config::eos(&config, generation.as_ref())?;

    let tied = config.bool("tie_word_embeddings")? == Some(true);
    let mut tensors = Tensors {
        class,
        class_name: &class_name,
        n_block,
        tied,
        found: HashMap::new(),
        owned: Vec::new(),
        owned_part: shards.len(),
        n_skipped: 0,
    };
    give(&mut tensors, &shards)?;
    for (name, values) in factors {
        tensors.own(dir, name, &[values.len() as u64], &values)?;
    }
    let Tensors { found, owned, n_skipped, .. } = tensors;
    if config.bool("tie_word_embeddings")? == Some(false) && !found.contains_key("output.weight") {
        return Err(FormatError::Absent {
            file: dir.into(),
            key: "lm_head.weight (tie_word_embeddings is false)".into(),
        });
    }
    let rows = found.get("token_embd.weight").map(|t| t.n_rows as u64);
    if let (Some(rows), Some(n_vocab)) = (rows, config.uint(&["vocab_size"])?)
        && rows != n_vocab
    {
        let wanted = format!("the embedding has {rows} rows");
        return Err(config.wrong("vocab_size", &n_vocab.to_string(), wanted));
    }
    let (mut parts, mut maps): (Vec<_>, Vec<_>) = shards.into_iter().map(|s| (s.bytes, s.map)).unzip();
    if !owned.is_empty() {
        parts.push(Arc::new(owned) as SharedBytes);
        maps.push(None);
    }
    Ok(Checkpoint {
        file: dir.into(),
        origin: Origin::HuggingFace,
        meta: Arc::new(meta.bytes),
        parts,
        maps,
        metadata: meta.values,
        tensors: found,
        text: TextFiles::default(),
        eos,
        n_skipped,
    })
}

/// How what is stored stands to what a class of Hugging Face has under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    /// It is the same.
    AsNamed,
    /// A matrix with a row for each output.
    Rows,
    /// A matrix with a column for each output.
    Columns,
    /// What a norm multiplies with, all of it.
    Factor,
}

/// Tensors by GGUF's names, as they come in.
struct Tensors<'a> {
    class: &'a Class,
    class_name: &'a str,
    n_block: usize,
    /// The embedding is the output matrix too; a copy of it that was stored as well is passed over.
    tied: bool,
    found: HashMap<String, TensorInfo>,
    /// The part that is memory.
    owned: Vec<u8>,
    owned_part: usize,
    n_skipped: usize,
}

impl Tensors<'_> {
    /// Takes one tensor of a file.
    fn take(
        &mut self,
        file: &str,
        part: usize,
        data: &[u8],
        stored: Stored,
        used: Used,
    ) -> Result<(), FormatError> {
        let (name, fold) = match self.target(&stored.name) {
            Target::Tensor(name, _) if self.tied && name == "output.weight" => return self.skip(),
            Target::Tensor(name, fold) => (name, fold),
            Target::Skipped => return self.skip(),
            Target::NoBlock(i) => {
                return Err(FormatError::TooMany {
                    file: file.into(),
                    what: format!("the layer of tensor {}", stored.name),
                    found: i as u64,
                    max: (self.n_block as u64).saturating_sub(1),
                });
            }
            Target::Unknown => {
                return Err(FormatError::TensorName {
                    file: file.into(),
                    tensor: stored.name,
                    class: self.class_name.into(),
                });
            }
        };
        let quant = match stored.dtype.as_str() {
            "F32" => Quant::F32,
            "F16" => Quant::F16,
            "BF16" => Quant::BF16,
            _ => {
                return Err(FormatError::Dtype {
                    file: file.into(),
                    tensor: stored.name,
                    found: stored.dtype,
                });
            }
        };
        let (fold, turned) = match (fold, used) {
            (Fold::PlusOne, Used::Factor) | (Fold::Transpose, Used::Rows) => (Fold::Keep, false),
            (Fold::Transpose | Fold::Keep, Used::Columns) => (Fold::Keep, true),
            (fold, _) => (fold, false),
        };
        let mut shape: Vec<u64> = match turned {
            true => stored.shape.clone(),
            false => stored.shape.iter().rev().copied().collect(),
        };
        if fold == Fold::Squeeze {
            shape = shape.iter().enumerate().filter(|(i, d)| *i == 0 || **d != 1).map(|(_, d)| *d).collect();
        }
        if shape.is_empty() {
            shape.push(1);
        }
        if turned && shape.len() != 2 {
            let why = "a matrix that is multiplied with has two dimensions".into();
            return Err(FormatError::Shape { file: file.into(), tensor: stored.name, shape, why });
        }
        let (info, _) = TensorInfo::of(file, &stored.name, quant, false, &shape)?;
        let info = TensorInfo { part, turned, range: stored.range.clone(), ..info };
        let bytes = data.get(stored.range).unwrap_or_default();
        match fold {
            Fold::Keep | Fold::Squeeze => self.insert(file, name, info),
            Fold::PlusOne | Fold::NegExp => {
                if info.n_rows != 1 {
                    return Err(FormatError::Shape {
                        file: file.into(),
                        tensor: stored.name,
                        shape,
                        why: "one dimension wanted".into(),
                    });
                }
                let mut values = vec![0.0; info.n_cols];
                quant::unpack_row(quant, bytes, &mut values);
                for x in &mut values {
                    *x = if fold == Fold::PlusOne { *x + 1.0 } else { -x.exp() };
                }
                self.own(file, &name, &shape, &values)
            }
            Fold::Transpose => self.transpose(file, name, &info, bytes),
            Fold::Experts | Fold::GateUpExperts => self.experts(file, &name, &info, fold),
        }
    }

    /// What a name of the class is in the model.
    fn target(&self, name: &str) -> Target {
        names::target(self.class, self.n_block, name)
    }

    fn skip(&mut self) -> Result<(), FormatError> {
        self.n_skipped = self.n_skipped.saturating_add(1);
        Ok(())
    }

    fn insert(&mut self, file: &str, name: String, info: TensorInfo) -> Result<(), FormatError> {
        if self.found.len() >= N_TENSOR_MAX {
            return Err(FormatError::TooMany {
                file: file.into(),
                what: "the number of tensors".into(),
                found: N_TENSOR_MAX as u64,
                max: N_TENSOR_MAX as u64,
            });
        }
        match self.found.entry(name) {
            Entry::Vacant(place) => {
                place.insert(info);
                Ok(())
            }
            Entry::Occupied(place) => {
                Err(FormatError::Duplicate { file: file.into(), what: format!("tensor {}", place.key()) })
            }
        }
    }

    /// Writes a tensor of 32-bit floats into the part that is memory: at most twice what is stored.
    fn own(&mut self, file: &str, name: &str, shape: &[u64], values: &[f32]) -> Result<(), FormatError> {
        let (info, _) = TensorInfo::of(file, name, Quant::F32, false, shape)?;
        let start = self.owned.len();
        self.owned.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let info = TensorInfo { part: self.owned_part, range: start..self.owned.len(), ..info };
        self.insert(file, name.into(), info)
    }

    /// Writes a matrix with rows and columns changed into the part that is memory: as many bytes as are stored.
    fn transpose(
        &mut self,
        file: &str,
        name: String,
        info: &TensorInfo,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        let (n_cols, n_rows) = (info.n_cols, info.n_rows);
        let (turned, _) = TensorInfo::of(file, &name, info.quant, false, &[n_rows as u64, n_cols as u64])?;
        let width = info.quant.block_bytes();
        let start = self.owned.len();
        self.owned.reserve(bytes.len());
        for col in 0..n_cols {
            let column = bytes.chunks_exact(width).skip(col).step_by(n_cols);
            self.owned.extend(column.flatten());
        }
        let info = TensorInfo { part: self.owned_part, range: start..self.owned.len(), ..turned };
        self.insert(file, name, info)
    }

    /// Gives each expert of a stack its matrix, or its two.
    fn experts(&mut self, file: &str, name: &str, info: &TensorInfo, fold: Fold) -> Result<(), FormatError> {
        let [n_cols, rows_each, n_expert, 1] = info.shape else {
            return Err(self.no_stack(file, name, info, "three dimensions wanted"));
        };
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let matrices: &[&str] = if fold == Fold::Experts { &[""] } else { &["gate", "up"] };
        let whole = rows_each.is_multiple_of(matrices.len());
        let rows = rows_each
            .checked_div(matrices.len())
            .filter(|rows| whole && *rows > 0 && n_expert <= N_EXPERT_MAX);
        let Some(rows) = rows else {
            let why = format!("an even number of rows and at most {N_EXPERT_MAX} experts wanted");
            return Err(self.no_stack(file, name, info, &why));
        };
        let (each, n_bytes) = TensorInfo::of(file, name, info.quant, false, &[n_cols as u64, rows as u64])?;
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        let mut start = info.range.start;
        for expert in 0..n_expert {
            for matrix in matrices {
                let end = start.saturating_add(n_bytes);
                let info = TensorInfo { part: info.part, range: start..end, ..each.clone() };
                self.insert(file, format!("{name}{matrix}.{expert}.weight"), info)?;
                start = end;
            }
        }
        Ok(())
    }

    fn no_stack(&self, file: &str, name: &str, info: &TensorInfo, why: &str) -> FormatError {
        let shape = info.shape.iter().map(|d| *d as u64).collect();
        FormatError::Shape { file: file.into(), tensor: name.into(), shape, why: why.into() }
    }
}
