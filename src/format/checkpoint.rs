//! What every model file format becomes: metadata by GGUF's keys and tensors by GGUF's names, in place. The layers
//! above know no other spelling.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::value::scalar;
use super::{Array, FormatError, Kind, Value};
use crate::base::limits::{N_COLS_MAX, N_DIM_MAX};
use crate::base::{SharedBytes, Strings};
use crate::os::map::Map;
use crate::os::pages;
use crate::quant::Quant;
use crate::quant::packed;

/// Where and how a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Block format.
    pub quant: Quant,
    /// Whether it is stored in panels of rows ([`crate::quant::packed`]), not row after row.
    pub packed: bool,
    /// Whether it is stored column after column, as graphs multiply with it: `n_cols` stretches of `n_rows` weights. Such
    /// a model is only there to be written anew ([`hf::onnx::weights`](super::hf::onnx::weights)), no kernel reads it.
    pub turned: bool,
    /// Weights in a row (GGUF's first dimension).
    pub n_cols: usize,
    /// Product of the other dimensions.
    pub n_rows: usize,
    /// All dimensions, the width of a row first, 1 where there is none.
    pub shape: [usize; N_DIM_MAX],
    /// Which of the checkpoint's parts holds it.
    pub part: usize,
    /// Bytes of that part.
    pub range: Range<usize>,
}

/// The format that a checkpoint was read from. It decides what GGUF's converter folds into weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// GGUF of this version.
    Gguf {
        /// 1 to 3.
        version: u32,
    },
    /// A directory in the layout of Hugging Face: `config.json` and safetensors.
    HuggingFace,
}

impl TensorInfo {
    /// A tensor of this type and shape, row after row, from byte 0 on. `None` if it makes no matrix that the kernels take.
    #[must_use]
    pub fn new(quant: Quant, shape: [usize; N_DIM_MAX]) -> Option<Self> {
        let (info, len) = Self::of("", "", quant, false, &shape.map(|d| d as u64)).ok()?;
        Some(Self { range: 0..usize::try_from(len).ok()?, ..info })
    }

    /// What follows from type and shape (fastest dimension first) of a tensor that begins at the start of a part, and
    /// how many bytes it takes.
    ///
    /// # Errors
    /// When the shape makes no matrix that the kernels take.
    pub(super) fn of(
        file: &str,
        tensor: &str,
        quant: Quant,
        packed: bool,
        shape: &[u64],
    ) -> Result<(Self, u64), FormatError> {
        let bad = |why: String| FormatError::Shape {
            file: file.into(),
            tensor: tensor.into(),
            shape: shape.into(),
            why,
        };
        if shape.is_empty() || shape.len() > N_DIM_MAX {
            return Err(bad(format!("1 to {N_DIM_MAX} dimensions are possible")));
        }
        let to_usize = |d: u64| usize::try_from(d).ok();
        let n_cols = shape.first().copied().and_then(to_usize);
        let n_rows = shape.iter().skip(1).try_fold(1_usize, |n, &d| n.checked_mul(to_usize(d)?));
        let (Some(n_cols), Some(n_rows)) = (n_cols, n_rows) else {
            return Err(bad("the product is beyond this machine's addresses".into()));
        };
        if n_cols == 0 || n_rows == 0 {
            return Err(bad("a dimension is 0".into()));
        }
        let Some(row_bytes) = quant.row_bytes(n_cols) else {
            return Err(bad(format!(
                "rows of {} must be a multiple of {} and at most {N_COLS_MAX} weights",
                quant.name(),
                quant.block_len()
            )));
        };
        let len = match packed {
            true => packed::bytes(quant, n_rows, n_cols).map(|n| n as u64),
            false => (row_bytes as u64).checked_mul(n_rows as u64),
        };
        let Some(len) = len else {
            return Err(bad("its bytes are beyond 64 bits".into()));
        };
        let mut dims = [1; N_DIM_MAX];
        for (to, from) in dims.iter_mut().zip(shape) {
            *to = to_usize(*from).unwrap_or(1);
        }
        Ok((Self { quant, packed, turned: false, n_cols, n_rows, shape: dims, part: 0, range: 0..0 }, len))
    }
}

/// Files beside the weights that say how text becomes tokens, as they stand.
#[derive(Clone, Default)]
pub(super) struct TextFiles {
    pub(super) tokenizer_json: Option<SharedBytes>,
    pub(super) tokenizer_config: Option<SharedBytes>,
    pub(super) tokenizer_model: Option<SharedBytes>,
}

/// Metadata and tensors of a model. A clone shares their bytes.
#[derive(Clone)]
pub struct Checkpoint {
    pub(super) file: String,
    pub(super) origin: Origin,
    /// What the places in `metadata` refer to.
    pub(super) meta: SharedBytes,
    pub(super) parts: Vec<SharedBytes>,
    /// For each part the map that it is, if it is one.
    pub(super) maps: Vec<Option<Arc<Map>>>,
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
    pub(super) text: TextFiles,
    pub(super) eos: Vec<u32>,
    pub(super) n_skipped: usize,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} keys, {} tensors)", self.file, self.metadata.len(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Name of the file, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The files that hold tensors; the last part may be memory: tensors that a directory stores in another form.
    #[must_use]
    pub fn parts(&self) -> &[SharedBytes] {
        &self.parts
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.parts.iter().map(|p| (**p).as_ref().len() as u64).sum()
    }

    /// Reads the bytes `at .. at + len` of all parts one after the other (clamped to them) into the page cache and maps
    /// the pages. What is memory anyway is passed over.
    pub fn populate(&self, at: usize, len: usize) {
        let end = at.saturating_add(len);
        let mut start = 0_usize;
        for (part, map) in self.parts.iter().zip(&self.maps) {
            let part_end = start.saturating_add((**part).as_ref().len());
            let (from, to) = (at.max(start), end.min(part_end));
            if let Some(map) = map
                && from < to
            {
                map.populate(from.saturating_sub(start), to.saturating_sub(from));
            }
            start = part_end;
        }
    }

    /// Keeps all of it in memory until it is dropped.
    ///
    /// # Errors
    /// When the system does not allow so much.
    pub fn lock(&self) -> std::io::Result<()> {
        self.parts.iter().try_for_each(|part| pages::lock((**part).as_ref()))
    }

    /// Lets go of pages of a part that were read and are not needed soon.
    pub fn forget(&self, part: usize, start: usize, len: usize) {
        if let Some(Some(map)) = self.maps.get(part) {
            map.forget(start, len);
        }
    }

    /// The same for all pages of all parts.
    pub fn forget_all(&self) {
        (0..self.maps.len()).for_each(|part| self.forget(part, 0, usize::MAX));
    }

    /// `tokenizer.json` of a directory, as it stands.
    #[must_use]
    pub fn tokenizer_json(&self) -> Option<&SharedBytes> {
        self.text.tokenizer_json.as_ref()
    }

    /// `tokenizer_config.json` of a directory, as it stands.
    #[must_use]
    pub fn tokenizer_config(&self) -> Option<&SharedBytes> {
        self.text.tokenizer_config.as_ref()
    }

    /// `tokenizer.model` of a directory (SentencePiece), as it stands.
    #[must_use]
    pub fn tokenizer_model(&self) -> Option<&SharedBytes> {
        self.text.tokenizer_model.as_ref()
    }

    /// The tokens that end an answer by `generation_config.json` or `config.json` of a directory; empty for GGUF, whose
    /// keys name them.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Tensors of a directory that are no part of the text model (images, sound, further heads) and were passed over.
    #[must_use]
    pub fn n_skipped(&self) -> usize {
        self.n_skipped
    }

    /// The bytes of a tensor of this checkpoint.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let part = self.parts.get(tensor.part).map_or(&[][..], |p| (**p).as_ref());
        part.get(tensor.range.clone()).unwrap_or_default()
    }

    /// Whether tensors are stored in the packed layout.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.tensors.values().any(|t| t.packed)
    }

    /// The packed file that it is read from, if it is one.
    #[must_use]
    pub fn packed_file(&self) -> Option<&str> {
        self.metadata.contains_key(super::pack::SOURCE).then_some(&*self.file)
    }

    /// The same model with some tensors elsewhere: in `memory`, where their ranges lie.
    #[must_use]
    pub fn with_tensors(&self, memory: SharedBytes, tensors: Vec<(String, TensorInfo)>) -> Self {
        let mut moved = self.clone();
        let part = moved.parts.len();
        moved.parts.push(memory);
        moved.maps.push(None);
        moved.tensors.extend(tensors.into_iter().map(|(name, info)| (name, TensorInfo { part, ..info })));
        moved
    }

    /// Keys and values, in no order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Tensors by name, in no order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A non-negative integer below 2^63.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn uint(&self, key: &str) -> Result<Option<u64>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) if (0..=i128::from(i64::MAX)).contains(n) => Ok(u64::try_from(*n).ok()),
            Some(v) => Err(self.wrong(key, v, "an integer of 0 or more")),
        }
    }

    /// A finite float (an integer counts).
    ///
    /// # Errors
    /// When another value stands there.
    pub fn float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if narrow(*x).is_finite() => Ok(Some(narrow(*x))),
            Some(Value::Int(n)) => Ok(Some(*n as f32)),
            Some(v) => Err(self.wrong(key, v, "a finite number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err(self.wrong(key, v, "true or false")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(v @ Value::Str(range)) => {
                let bytes = (*self.meta).as_ref().get(range.clone()).unwrap_or_default();
                std::str::from_utf8(bytes).map(Some).map_err(|_| self.wrong(key, v, "UTF-8 text"))
            }
            Some(v) => Err(self.wrong(key, v, "a string")),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Strings(s))) => Ok(Some(s)),
            Some(v) => Err(self.wrong(key, v, "an array of strings")),
        }
    }

    /// An array of floats of 4 bytes.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Scalars(Kind::Float(4), range))) => {
                let bytes = (*self.meta).as_ref().get(range.clone()).unwrap_or_default();
                Ok(Some(bytes.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect()))
            }
            Some(v) => Err(self.wrong(key, v, "an array of 32-bit floats")),
        }
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// When another value stands there, or a number of 2^63 or more.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, FormatError> {
        let wanted = "an array of integers";
        match self.metadata.get(key) {
            None => Ok(None),
            Some(v @ Value::Array(Array::Scalars(kind @ (Kind::Signed(_) | Kind::Unsigned(_)), range))) => {
                let bytes = (*self.meta).as_ref().get(range.clone()).unwrap_or_default();
                let each = bytes.chunks_exact(kind.bytes()).map(|raw| match scalar(*kind, raw) {
                    Value::Int(n) => i64::try_from(n).ok(),
                    _ => None,
                });
                each.collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong(key, v, wanted))
            }
            Some(v) => Err(self.wrong(key, v, wanted)),
        }
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// When another value stands there.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Scalars(Kind::Bool, range))) => {
                let bytes = (*self.meta).as_ref().get(range.clone()).unwrap_or_default();
                Ok(Some(bytes.iter().map(|b| *b != 0).collect()))
            }
            Some(v) => Err(self.wrong(key, v, "an array of true and false")),
        }
    }

    /// A non-negative integer for each of `n` layers: an array of that length, or one number for all of them.
    ///
    /// # Errors
    /// When another value stands there, or an array of another length.
    pub fn uint_per_layer(&self, key: &str, n: usize) -> Result<Option<Vec<u64>>, FormatError> {
        match self.metadata.get(key) {
            Some(v @ Value::Array(_)) => {
                let wrong = || self.wrong(key, v, "an array with an integer of 0 or more for each layer");
                let all = self.ints(key)?.filter(|all| all.len() == n).ok_or_else(wrong)?;
                let all: Result<_, _> = all.into_iter().map(u64::try_from).collect();
                all.map(Some).map_err(|_| wrong())
            }
            _ => Ok(self.uint(key)?.map(|x| vec![x; n])),
        }
    }

    /// An array of integers of 4 bytes, each from 0 to 255 (token types).
    ///
    /// # Errors
    /// When another value stands there.
    pub fn small_ints(&self, key: &str) -> Result<Option<Vec<u8>>, FormatError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(v @ Value::Array(Array::Scalars(Kind::Signed(4) | Kind::Unsigned(4), range))) => {
                let bytes = (*self.meta).as_ref().get(range.clone()).unwrap_or_default();
                let small = |c: &[u8; 4]| u8::try_from(u32::from_le_bytes(*c)).ok();
                let all: Option<Vec<u8>> = bytes.as_chunks().0.iter().map(small).collect();
                all.map(Some).ok_or_else(|| self.wrong(key, v, "an array of integers from 0 to 255"))
            }
            Some(v) => Err(self.wrong(key, v, "an array of 32-bit integers")),
        }
    }

    /// An error about the value of `key`.
    fn wrong(&self, key: &str, value: &Value, wanted: &'static str) -> FormatError {
        FormatError::Value { file: self.file.clone(), key: key.into(), found: value.describe(), wanted }
    }

    /// `value`, or the error that `key` is absent.
    ///
    /// # Errors
    /// When it is `None`.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, FormatError> {
        value.ok_or_else(|| FormatError::Absent { file: self.file.clone(), key: key.into() })
    }
}

/// The nearest 32-bit float: hyperparameters are used at that width.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
pub(super) fn narrow(x: f64) -> f32 {
    x as f32
}
