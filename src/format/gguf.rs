//! GGUF, versions 2 and 3, little-endian (ggml, `docs/gguf.md`): header, metadata, tensor infos, aligned data.
//!
//! Reading copies names alone. Strings, arrays and weights stay in the mapped file.

use std::collections::HashMap;
use std::ops::Range;

use super::{Array, FormatError, Kind, Value};
use crate::base::limits::{N_COLS_MAX, N_DIM_MAX, N_METADATA_MAX, N_TENSOR_MAX, NAME_BYTES_MAX};
use crate::base::{SharedBytes, Strings};
use crate::quant::Quant;

/// Where and how a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Block format.
    pub quant: Quant,
    /// Weights in a row (GGUF's first dimension).
    pub n_cols: usize,
    /// Product of the other dimensions.
    pub n_rows: usize,
    /// Number of dimensions.
    pub n_dims: usize,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// A parsed GGUF file.
pub struct Gguf {
    file: String,
    bytes: SharedBytes,
    version: u32,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} keys, {} tensors)", self.file, self.metadata.len(), self.tensors.len())
    }
}

impl Gguf {
    /// Reads header, metadata and tensor infos; `file` is the name for messages.
    ///
    /// # Errors
    /// On anything that is not a whole, consistent file with weights of the types in [`Quant`].
    pub fn parse(file: &str, bytes: SharedBytes) -> Result<Self, FormatError> {
        let data = (*bytes).as_ref();
        let mut r = Reader { file, data, at: 0 };
        let magic = data.get(..4).unwrap_or(data);
        if magic != b"GGUF" {
            return Err(FormatError::Magic { file: file.into(), found: magic.to_vec() });
        }
        r.at = 4;
        let version = r.u32("the version")?;
        if version != 2 && version != 3 {
            let hint = if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
                "; this one is big-endian, convert it for this machine"
            } else if version == 1 {
                "; convert it again with a current converter"
            } else {
                ""
            };
            return Err(FormatError::Version { file: file.into(), found: version, hint });
        }
        // A tensor info takes at least 8 + 1 + 4 + 8 + 4 + 8 bytes, a key and value at least 8 + 1 + 4 + 1.
        let n_tensors = r.count("the tensor count", 33, N_TENSOR_MAX)?;
        let n_keys = r.count("the metadata count", 14, N_METADATA_MAX)?;

        let mut metadata = HashMap::with_capacity(n_keys);
        for i in 0..n_keys {
            let key = r.name(&format!("the name of key {i}"))?;
            let value = r.value(&key, &bytes)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(FormatError::Duplicate { file: file.into(), what: format!("key {key}") });
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Int(n)) if (8..=65_536).contains(n) && n.count_ones() == 1 => {
                u64::try_from(*n).unwrap_or(32)
            }
            Some(v) => {
                return Err(FormatError::Value {
                    file: file.into(),
                    key: "general.alignment".into(),
                    found: v.describe(),
                    wanted: "a power of two from 8 to 65536",
                });
            }
        };
        let mut infos = Vec::with_capacity(n_tensors);
        for i in 0..n_tensors {
            infos.push(r.tensor_info(i, alignment)?);
        }
        let start = (r.at as u64).next_multiple_of(alignment);
        let tensors = place(file, infos, start, data.len() as u64)?;
        Ok(Self { file: file.into(), bytes, version, metadata, tensors })
    }

    /// Name of the file, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Format version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
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
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(narrow(*x))),
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
                let bytes = (*self.bytes).as_ref().get(range.clone()).unwrap_or_default();
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
                let bytes = (*self.bytes).as_ref().get(range.clone()).unwrap_or_default();
                Ok(Some(bytes.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect()))
            }
            Some(v) => Err(self.wrong(key, v, "an array of 32-bit floats")),
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
                let bytes = (*self.bytes).as_ref().get(range.clone()).unwrap_or_default();
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

/// A tensor info as read, before its place in the file is known.
struct RawTensor {
    name: String,
    quant: Quant,
    n_cols: usize,
    n_rows: usize,
    n_dims: usize,
    offset: u64,
    len: u64,
}

/// Gives each tensor its bytes; none may lie outside the file or over another.
fn place(
    file: &str,
    mut infos: Vec<RawTensor>,
    start: u64,
    file_len: u64,
) -> Result<HashMap<String, TensorInfo>, FormatError> {
    infos.sort_by_key(|t| t.offset);
    let mut tensors = HashMap::with_capacity(infos.len());
    let mut previous: Option<(String, u64)> = None;
    for t in infos {
        let offset = |why: String| FormatError::Offset {
            file: file.into(),
            tensor: t.name.clone(),
            at: start.saturating_add(t.offset),
            why,
        };
        let at = start.checked_add(t.offset);
        let end = at.and_then(|at| at.checked_add(t.len));
        let (Some(at), Some(end)) = (at, end) else {
            return Err(offset(format!("offset {} is beyond any file", t.offset)));
        };
        if end > file_len {
            return Err(FormatError::Truncated {
                file: file.into(),
                what: format!("tensor {}", t.name),
                at,
                need: t.len,
                have: file_len.saturating_sub(at),
            });
        }
        if let Some((name, previous_end)) = &previous
            && *previous_end > at
        {
            return Err(offset(format!("begins inside tensor {name}, which ends at byte {previous_end}")));
        }
        let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
        let Some((from, to)) = range else {
            return Err(offset("too large for this machine's addresses".into()));
        };
        previous = Some((t.name.clone(), end));
        let info = TensorInfo {
            quant: t.quant,
            n_cols: t.n_cols,
            n_rows: t.n_rows,
            n_dims: t.n_dims,
            range: from..to,
        };
        if tensors.insert(t.name.clone(), info).is_some() {
            return Err(FormatError::Duplicate { file: file.into(), what: format!("tensor {}", t.name) });
        }
    }
    Ok(tensors)
}

/// A cursor that never leaves the file.
struct Reader<'a> {
    file: &'a str,
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> usize {
        self.data.len().saturating_sub(self.at)
    }

    fn take(&mut self, what: &str, n: u64) -> Result<&'a [u8], FormatError> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let Some(slice) = end.and_then(|end| self.data.get(self.at..end)) else {
            return Err(FormatError::Truncated {
                file: self.file.into(),
                what: what.into(),
                at: self.at as u64,
                need: n,
                have: self.rest() as u64,
            });
        };
        self.at = self.at.saturating_add(slice.len());
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N as u64)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `bytes_each`: more than the file can hold is refused before anything
    /// is allocated.
    fn count(&mut self, what: &str, bytes_each: usize, most: usize) -> Result<usize, FormatError> {
        let found = self.u64(what)?;
        let max = most.min(self.rest().checked_div(bytes_each).unwrap_or(0));
        match usize::try_from(found) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(FormatError::TooMany {
                file: self.file.into(),
                what: what.into(),
                found,
                max: max as u64,
            }),
        }
    }

    /// A string's place in the file; its bytes are UTF-8 if `utf8`.
    fn string(&mut self, what: &str, utf8: bool) -> Result<Range<usize>, FormatError> {
        let len = self.u64(what)?;
        let start = self.at;
        let bytes = self.take(what, len)?;
        if utf8 && std::str::from_utf8(bytes).is_err() {
            return Err(FormatError::NotUtf8 { file: self.file.into(), what: what.into(), at: start as u64 });
        }
        Ok(start..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, FormatError> {
        let range = self.string(what, true)?;
        if range.len() > NAME_BYTES_MAX {
            return Err(FormatError::TooMany {
                file: self.file.into(),
                what: format!("the length of {what}"),
                found: range.len() as u64,
                max: NAME_BYTES_MAX as u64,
            });
        }
        let bytes = self.data.get(range).unwrap_or_default();
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, key: &str, bytes: &SharedBytes) -> Result<Value, FormatError> {
        let what = format!("the value of key {key}");
        let type_number = self.u32(&what)?;
        match type_number {
            8 => self.string(&what, true).map(Value::Str),
            9 => {
                let element = self.u32(&what)?;
                match element {
                    8 => self.strings(&what, bytes).map(Array::Strings).map(Value::Array),
                    _ => {
                        let kind = self.kind(&what, element)?;
                        let n = self.count(&format!("the length of {what}"), kind.bytes(), usize::MAX)?;
                        let start = self.at;
                        self.take(&what, (n as u64).saturating_mul(kind.bytes() as u64))?;
                        Ok(Value::Array(Array::Scalars(kind, start..self.at)))
                    }
                }
            }
            _ => {
                let kind = self.kind(&what, type_number)?;
                let raw = self.take(&what, kind.bytes() as u64)?;
                Ok(scalar(kind, raw))
            }
        }
    }

    fn kind(&self, what: &str, type_number: u32) -> Result<Kind, FormatError> {
        Ok(match type_number {
            0 => Kind::Unsigned(1),
            1 => Kind::Signed(1),
            2 => Kind::Unsigned(2),
            3 => Kind::Signed(2),
            4 => Kind::Unsigned(4),
            5 => Kind::Signed(4),
            6 => Kind::Float(4),
            7 => Kind::Bool,
            10 => Kind::Unsigned(8),
            11 => Kind::Signed(8),
            12 => Kind::Float(8),
            _ => {
                return Err(FormatError::Type {
                    file: self.file.into(),
                    what: what.into(),
                    found: type_number,
                    allowed: "GGUF has 0 to 12, and arrays do not nest here".into(),
                });
            }
        })
    }

    fn strings(&mut self, what: &str, bytes: &SharedBytes) -> Result<Strings, FormatError> {
        let n = self.count(&format!("the length of {what}"), 8, usize::MAX)?;
        // Strings follow their 8-byte lengths: string i ends 8 bytes before the start of string i + 1.
        let base = self.at;
        let mut starts = Vec::with_capacity(n.saturating_add(1));
        let past = |at: usize, r: &Self| {
            at.checked_sub(base).and_then(|d| u32::try_from(d).ok()).ok_or_else(|| FormatError::TooMany {
                file: r.file.into(),
                what: format!("the size of {what}"),
                found: at.saturating_sub(base) as u64,
                max: u64::from(u32::MAX),
            })
        };
        for i in 0..n {
            let range = self.string(&format!("string {i} of {what}"), false)?;
            starts.push(past(range.start, self)?);
        }
        starts.push(past(self.at.saturating_add(8), self)?);
        Strings::new(bytes.clone(), base, starts, 8).ok_or_else(|| FormatError::Truncated {
            file: self.file.into(),
            what: what.into(),
            at: base as u64,
            need: 8,
            have: self.rest() as u64,
        })
    }

    fn tensor_info(&mut self, i: usize, alignment: u64) -> Result<RawTensor, FormatError> {
        let name = self.name(&format!("the name of tensor {i}"))?;
        let what = format!("the info of tensor {name}");
        let n_dims = self.u32(&what)? as usize;
        if n_dims == 0 || n_dims > N_DIM_MAX {
            return Err(FormatError::TooMany {
                file: self.file.into(),
                what: format!("the number of dimensions of tensor {name}"),
                found: n_dims as u64,
                max: N_DIM_MAX as u64,
            });
        }
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            shape.push(self.u64(&what)?);
        }
        let type_number = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let Some(quant) = Quant::from_ggml(type_number) else {
            return Err(FormatError::Type {
                file: self.file.into(),
                what: format!("tensor {name}"),
                found: type_number,
                allowed: format!("read are {}", quants()),
            });
        };
        let bad = |why: String| FormatError::Shape {
            file: self.file.into(),
            tensor: name.clone(),
            shape: shape.clone(),
            why,
        };
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
        let Some(len) = (row_bytes as u64).checked_mul(n_rows as u64) else {
            return Err(bad("its bytes are beyond 64 bits".into()));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(FormatError::Offset {
                file: self.file.into(),
                tensor: name,
                at: offset,
                why: format!("offset is no multiple of the alignment {alignment}"),
            });
        }
        Ok(RawTensor { name, quant, n_cols, n_rows, n_dims, offset, len })
    }
}

/// The nearest 32-bit float: hyperparameters are used at that width.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// The scalar in `raw`, which has the kind's length.
fn scalar(kind: Kind, raw: &[u8]) -> Value {
    let mut wide = [0_u8; 8];
    for (to, from) in wide.iter_mut().zip(raw) {
        *to = *from;
    }
    let bits = u64::from_le_bytes(wide);
    match kind {
        Kind::Unsigned(_) => Value::Int(i128::from(bits)),
        Kind::Signed(n) => {
            // Shift the sign bit to the top and back.
            let shift = 64_u32.saturating_sub(u32::from(n).saturating_mul(8));
            Value::Int(i128::from(bits.wrapping_shl(shift).cast_signed().wrapping_shr(shift)))
        }
        Kind::Float(4) => {
            Value::Float(f64::from(f32::from_bits(u32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]))))
        }
        Kind::Float(_) => Value::Float(f64::from_bits(bits)),
        Kind::Bool => Value::Bool(bits != 0),
    }
}

/// The tensor types that are read, with their numbers.
fn quants() -> String {
    let names: Vec<String> = Quant::ALL.iter().map(|q| format!("{} ({})", q.name(), q.ggml())).collect();
    names.join(", ")
}
