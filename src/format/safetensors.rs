//! safetensors (Hugging Face, `safetensors` README, "Format"): an 8-byte length, a JSON header with the type, shape
//! and place of each tensor, then the tensors one after the other without gaps.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::FormatError;
use super::json;
use crate::base::limits::{N_DIM_SKIPPED_MAX, N_TENSOR_MAX, NAME_BYTES_MAX, SAFETENSORS_HEADER_MAX};

/// A tensor as stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    /// Such as `BF16`.
    pub(super) dtype: String,
    /// Dimensions, slowest first.
    pub(super) shape: Vec<u64>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// Reads the header of a file; `file` is the name for messages. The tensors are in the order of their places.
///
/// # Errors
/// On anything but a header whose tensors fill the rest of the file, each once.
pub(super) fn header(file: &str, data: &[u8]) -> Result<Vec<Stored>, FormatError> {
    let cut = |what: &str, at: usize, need: u64| FormatError::Truncated {
        file: file.into(),
        what: what.into(),
        at: at as u64,
        need,
        have: data.len().saturating_sub(at) as u64,
    };
    let Some((length, rest)) = data.split_first_chunk() else {
        return Err(cut("the length of the header", 0, 8));
    };
    let length = u64::from_le_bytes(*length);
    if length > SAFETENSORS_HEADER_MAX as u64 {
        return Err(FormatError::TooMany {
            file: file.into(),
            what: "the length of the header".into(),
            found: length,
            max: SAFETENSORS_HEADER_MAX as u64,
        });
    }
    let Some((text, body)) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)) else {
        return Err(cut("the header", 8, length));
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let entries = Entries.deserialize(&mut reader).and_then(|entries| reader.end().map(|()| entries));
    place(
        file,
        entries.map_err(|e| json::wrong(file, text, &e))?,
        data.len().saturating_sub(body.len()),
        body.len(),
    )
}

/// Gives each tensor its place. Together they are the whole body: no gap, no overlap.
fn place(
    file: &str,
    mut entries: Vec<(String, Entry)>,
    start: usize,
    len: usize,
) -> Result<Vec<Stored>, FormatError> {
    entries.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
    let mut out: Vec<Stored> = Vec::with_capacity(entries.len());
    let mut previous_end = 0_u64;
    for (name, Entry { dtype, shape: Shape(shape), data_offsets: (from, to) }) in entries {
        let at = (start as u64).saturating_add(from);
        let offset = |why: String| FormatError::Offset { file: file.into(), tensor: name.clone(), at, why };
        if out.last().is_some_and(|t| t.name == name) {
            return Err(FormatError::Duplicate { file: file.into(), what: format!("tensor {name}") });
        }
        if to < from {
            return Err(offset(format!("ends at {to}, before it begins at {from}")));
        }
        if to > len as u64 {
            return Err(FormatError::Truncated {
                file: file.into(),
                what: format!("tensor {name}"),
                at,
                need: to.saturating_sub(from),
                have: (len as u64).saturating_sub(from),
            });
        }
        if from != previous_end {
            let what = if from < previous_end { "begins inside" } else { "leaves a gap after" };
            let before = out.last().map_or("the header", |t| &t.name);
            return Err(offset(format!(
                "{what} {before}, which ends at offset {previous_end}; it begins at {from}"
            )));
        }
        previous_end = to;
        if let Some(bits) = bits(&dtype) {
            let all = shape.iter().try_fold(bits, |n, d| n.checked_mul(*d));
            if all != to.checked_sub(from).and_then(|bytes| bytes.checked_mul(8)) {
                return Err(FormatError::Shape {
                    file: file.into(),
                    tensor: name,
                    shape,
                    why: format!(
                        "{dtype} of that shape does not take the {} bytes of its place",
                        to.saturating_sub(from)
                    ),
                });
            }
        }
        // Both are at most the length of the file, which is in memory.
        let place = |n: u64| start.saturating_add(usize::try_from(n).unwrap_or(len));
        out.push(Stored { name, dtype, shape, range: place(from)..place(to) });
    }
    if previous_end != len as u64 {
        return Err(FormatError::TooMany {
            file: file.into(),
            what: "the number of bytes after the header".into(),
            found: len as u64,
            max: previous_end,
        });
    }
    let mut names: Vec<&str> = out.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.array_windows().find(|[a, b]| a == b) {
        Some([name, _]) => Err(FormatError::Duplicate { file: file.into(), what: format!("tensor {name}") }),
        None => Ok(out),
    }
}

/// Bits of one element, where the type is known.
pub(super) fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "BOOL" | "I8" | "U8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "F4" => 4,
        _ => return None,
    })
}

/// What the header says about a tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Dimensions, of which there are few.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(d) = seq.next_element()? {
                    if dims.len() == N_DIM_SKIPPED_MAX {
                        return Err(A::Error::custom(format!("more than {N_DIM_SKIPPED_MAX} dimensions")));
                    }
                    dims.push(d);
                }
                Ok(Shape(dims))
            }
        }
        reader.deserialize_seq(Dims)
    }
}

/// Reads the header's object.
struct Entries;

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<(String, Entry)>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Entry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(A::Error::custom(format!("a name of more than {NAME_BYTES_MAX} bytes")));
            }
            if out.len() == N_TENSOR_MAX {
                return Err(A::Error::custom(format!("more than {N_TENSOR_MAX} tensors")));
            }
            out.push((name, map.next_value()?));
        }
        Ok(out)
    }
}
