//! GGUF, versions 1 to 3, little-endian (ggml, `docs/gguf.md`): header, metadata, tensor infos, aligned data. Version
//! 1 has counts and lengths of 32 bits where the others have 64; models in several files are put together in `split`.
//!
//! Reading copies names alone. Strings, arrays and weights stay in the mapped file.

mod write;

use std::collections::HashMap;
use std::ops::Range;

use super::checkpoint::{Checkpoint, Origin, TensorInfo, TextFiles};
use super::value::scalar;
use super::{Array, FormatError, Kind, Value, pack};
use crate::base::limits::{N_DIM_MAX, N_METADATA_MAX, N_TENSOR_MAX, NAME_BYTES_MAX};
use crate::base::{SharedBytes, Strings, brief};
use crate::quant::Quant;

pub(super) use write::Out;
pub use write::Outline;

/// Reads header, metadata and tensor infos; `file` is the name for messages.
///
/// # Errors
/// On anything that is not a whole, consistent file with weights of the types in [`Quant`].
pub fn parse(file: &str, bytes: SharedBytes) -> Result<Checkpoint, FormatError> {
    let data = (*bytes).as_ref();
    let mut r = Reader { file, data, at: 0, wide: true };
    let magic = data.get(..4).unwrap_or(data);
    if magic != b"GGUF" {
        return Err(FormatError::Magic { file: file.into(), found: magic.to_vec() });
    }
    r.at = 4;
    let version = r.u32("the version")?;
    if !(1..=3).contains(&version) {
        let hint = if (1..=3).contains(&version.swap_bytes()) {
            "; this one is big-endian, convert it for this machine"
        } else {
            ""
        };
        return Err(FormatError::Version { file: file.into(), found: version, hint });
    }
    r.wide = version > 1;
    // A tensor info has a name, a count of dimensions, one of them, type and offset; a key a name, type and value.
    let length = r.length_bytes() as usize;
    let n_tensors =
        r.count("the tensor count", length.saturating_mul(2).saturating_add(1 + 4 + 4 + 8), N_TENSOR_MAX)?;
    let n_keys = r.count("the metadata count", length.saturating_add(1 + 4 + 1), N_METADATA_MAX)?;

    let mut metadata = HashMap::with_capacity(n_keys);
    let mut header_sum_at = None;
    for i in 0..n_keys {
        let key = r.name(&format!("the name of key {i}"))?;
        let value = r.value(&key, &bytes)?;
        if pack::is_header_sum(&key) {
            // The value's last bytes.
            header_sum_at = r.at.checked_sub(size_of::<u64>()).filter(|_| matches!(value, Value::Int(_)));
        }
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
    let mut checkpoint = Checkpoint {
        file: file.into(),
        origin: Origin::Gguf { version },
        meta: bytes.clone(),
        parts: vec![bytes.clone()],
        maps: vec![None],
        metadata,
        tensors,
        text: TextFiles::default(),
        eos: Vec::new(),
        n_skipped: 0,
    };
    let header = usize::try_from(start).ok().and_then(|start| data.get(..start)).unwrap_or(data);
    pack::check(&mut checkpoint, header, header_sum_at)?;
    Ok(checkpoint)
}

/// A tensor info as read, before its place in the file is known.
struct RawTensor {
    name: String,
    info: TensorInfo,
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
            return Err(offset(format!(
                "begins inside tensor {}, which ends at byte {previous_end}",
                brief(name)
            )));
        }
        let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
        let Some((from, to)) = range else {
            return Err(offset("too large for this machine's addresses".into()));
        };
        previous = Some((t.name.clone(), end));
        let info = TensorInfo { range: from..to, ..t.info };
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
    /// Whether counts and lengths have 64 bits.
    wide: bool,
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

    /// A count or length.
    fn length(&mut self, what: &str) -> Result<u64, FormatError> {
        if self.wide { self.u64(what) } else { self.u32(what).map(u64::from) }
    }

    /// Bytes of a count or length.
    fn length_bytes(&self) -> u32 {
        if self.wide { 8 } else { 4 }
    }

    /// A count of things that take at least `bytes_each`: more than the file can hold is refused before anything
    /// is allocated.
    fn count(&mut self, what: &str, bytes_each: usize, most: usize) -> Result<usize, FormatError> {
        let found = self.length(what)?;
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
        let len = self.length(what)?;
        let start = self.at;
        let bytes = self.take(what, len)?;
        if utf8 && std::str::from_utf8(bytes).is_err() {
            return Err(FormatError::NotUtf8 { file: self.file.into(), what: what.into(), at: start as u64 });
        }
        Ok(start..self.at)
    }

    /// A string's place in the file, if it is within it; else nothing is taken.
    fn string_here(&mut self) -> Option<Range<usize>> {
        let rest = self.data.get(self.at..)?;
        let len = match self.wide {
            true => u64::from_le_bytes(*rest.first_chunk()?),
            false => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        };
        let start = self.at.checked_add(self.length_bytes() as usize)?;
        let end = start.checked_add(usize::try_from(len).ok()?).filter(|end| *end <= self.data.len())?;
        self.at = end;
        Some(start..end)
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
        // Strings follow their lengths: string i ends a length before the start of string i + 1.
        let gap = self.length_bytes();
        let n = self.count(&format!("the length of {what}"), gap as usize, usize::MAX)?;
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
            // Hundreds of thousands: only an error needs the name of one.
            let range = match self.string_here() {
                Some(range) => range,
                None => self.string(&format!("string {i} of {what}"), false)?,
            };
            starts.push(past(range.start, self)?);
        }
        starts.push(past(self.at.saturating_add(gap as usize), self)?);
        Strings::new(bytes.clone(), base, starts, gap).ok_or_else(|| FormatError::Truncated {
            file: self.file.into(),
            what: what.into(),
            at: base as u64,
            need: gap.into(),
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
            shape.push(self.length(&what)?);
        }
        let type_number = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let Some((quant, packed)) = pack::type_of(type_number) else {
            return Err(FormatError::Type {
                file: self.file.into(),
                what: format!("tensor {name}"),
                found: type_number,
                allowed: format!("read are {}", quants()),
            });
        };
        let (info, len) = TensorInfo::of(self.file, &name, quant, packed, &shape)?;
        if !offset.is_multiple_of(alignment) {
            return Err(FormatError::Offset {
                file: self.file.into(),
                tensor: name,
                at: offset,
                why: format!("offset is no multiple of the alignment {alignment}"),
            });
        }
        Ok(RawTensor { name, info, offset, len })
    }
}

/// The tensor types that are read, with their numbers.
fn quants() -> String {
    let names: Vec<String> = Quant::ALL.iter().map(|q| format!("{} ({})", q.name(), q.ggml())).collect();
    names.join(", ")
}
