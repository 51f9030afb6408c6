//! GGUF version 3 to be written: everything before the bytes of tensors.

use std::collections::BTreeMap;

use crate::format::checkpoint::{Checkpoint, TensorInfo, narrow};
use crate::format::{Array, Meta, Value};

/// What tensors are aligned to where a file does not say.
const ALIGNMENT: usize = 32;

/// A GGUF file to be written: all but the bytes of its tensors.
#[derive(Debug)]
pub struct Outline {
    header: Vec<u8>,
    /// In their order; ranges are of the whole file.
    pub tensors: Vec<(String, TensorInfo)>,
}

impl Outline {
    /// The metadata of `file`, with what `more` says in place of it and beside it, and these tensors, in their order, each as
    /// long as its range. `None` if it is too large for this machine's addresses.
    #[must_use]
    pub fn new(file: &Checkpoint, more: &Meta, mut tensors: Vec<(String, TensorInfo)>) -> Option<Self> {
        // What steers how files are laid out is this file's own.
        let laid = |key: &str| {
            key.starts_with("sotto.pack.") || key.starts_with("split.") || key == "general.alignment"
        };
        let old = file.metadata.iter().map(|(key, value)| (key, (value, (*file.meta).as_ref())));
        let new = more.values.iter().map(|(key, value)| (key, (value, more.bytes.as_slice())));
        let keys: BTreeMap<&String, (&Value, &[u8])> = old.chain(new).filter(|(key, _)| !laid(key)).collect();
        // The general ones first: they say what the others mean.
        let general = |key: &str| !key.starts_with("general.");
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by_key(|(key, _)| general(key));

        let mut out = Out(b"GGUF".to_vec());
        out.u32(3);
        out.u64(tensors.len() as u64);
        out.u64((keys.len() as u64).saturating_add(1));
        for (key, (value, meta)) in keys {
            out.string(key.as_bytes());
            out.value(value, meta);
        }
        out.key("general.alignment", 4);
        out.u32(u32::try_from(ALIGNMENT).ok()?);
        let mut end = 0_usize;
        for (name, info) in &mut tensors {
            let start = end.checked_next_multiple_of(ALIGNMENT)?;
            end = start.checked_add(info.range.len())?;
            info.range = start..end;
            out.tensor(name, info, info.quant.ggml(), start)?;
        }
        let start = out.0.len().checked_next_multiple_of(ALIGNMENT)?;
        out.0.resize(start, 0);
        for (_, info) in &mut tensors {
            info.range = start.checked_add(info.range.start)?..start.checked_add(info.range.end)?;
        }
        Some(Self { header: out.0, tensors })
    }

    /// The bytes before the first tensor's.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(self.header.len(), |(_, info)| info.range.end)
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// The bytes of a header.
pub(in crate::format) struct Out(pub(in crate::format) Vec<u8>);

impl Out {
    pub(in crate::format) fn u32(&mut self, n: u32) {
        self.0.extend(n.to_le_bytes());
    }

    pub(in crate::format) fn u64(&mut self, n: u64) {
        self.0.extend(n.to_le_bytes());
    }

    pub(in crate::format) fn string(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(in crate::format) fn key(&mut self, key: &str, type_number: u32) {
        self.string(key.as_bytes());
        self.u32(type_number);
    }

    /// A value whose strings and arrays lie in `meta`, in the narrowest type that holds it.
    pub(in crate::format) fn value(&mut self, value: &Value, meta: &[u8]) {
        let bytes = |range: &std::ops::Range<usize>| meta.get(range.clone()).unwrap_or_default();
        match value {
            Value::Int(n) => match (u32::try_from(*n), i32::try_from(*n), u64::try_from(*n)) {
                (Ok(n), ..) => {
                    self.u32(4);
                    self.u32(n);
                }
                (_, Ok(n), _) => {
                    self.u32(5);
                    self.0.extend(n.to_le_bytes());
                }
                (.., Ok(n)) => {
                    self.u32(10);
                    self.u64(n);
                }
                _ => {
                    self.u32(11);
                    self.0.extend(i64::try_from(*n).unwrap_or(i64::MIN).to_le_bytes());
                }
            },
            Value::Float(x) if f64::from(narrow(*x)) == *x || x.is_nan() => {
                self.u32(6);
                self.0.extend(narrow(*x).to_le_bytes());
            }
            Value::Float(x) => {
                self.u32(12);
                self.0.extend(x.to_le_bytes());
            }
            Value::Bool(b) => {
                self.u32(7);
                self.0.push(u8::from(*b));
            }
            Value::Str(range) => {
                self.u32(8);
                self.string(bytes(range));
            }
            Value::Array(Array::Strings(strings)) => {
                self.u32(9);
                self.u32(8);
                self.u64(strings.len() as u64);
                strings.iter().for_each(|string| self.string(string));
            }
            Value::Array(Array::Scalars(kind, range)) => {
                self.u32(9);
                self.u32(kind.number());
                self.u64(range.len().checked_div(kind.bytes()).unwrap_or(0) as u64);
                self.0.extend(bytes(range));
            }
        }
    }

    /// What is told of a tensor whose bytes begin `at` bytes behind the header. `None` if it cannot be told.
    pub(in crate::format) fn tensor(
        &mut self,
        name: &str,
        info: &TensorInfo,
        kind: u32,
        at: usize,
    ) -> Option<()> {
        self.string(name.as_bytes());
        let n_dims = info.shape.iter().rposition(|d| *d != 1).unwrap_or(0).saturating_add(1);
        self.u32(u32::try_from(n_dims).ok()?);
        info.shape.iter().take(n_dims).for_each(|d| self.u64(*d as u64));
        self.u32(kind);
        self.u64(at as u64);
        Some(())
    }
}
