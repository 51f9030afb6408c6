//! Metadata by GGUF's keys, written into memory of its own.

use std::collections::HashMap;

use crate::format::checkpoint::narrow;
use crate::format::{Array, Kind, Value};

/// Values and the bytes that their places refer to.
#[derive(Default)]
pub(super) struct Meta {
    pub(super) bytes: Vec<u8>,
    pub(super) values: HashMap<String, Value>,
}

impl Meta {
    pub(super) fn uint(&mut self, key: &str, n: u64) {
        self.values.insert(key.into(), Value::Int(n.into()));
    }

    /// At GGUF's width, 32 bits.
    pub(super) fn float(&mut self, key: &str, x: f64) {
        self.values.insert(key.into(), Value::Float(narrow(x).into()));
    }

    pub(super) fn str(&mut self, key: &str, text: &str) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes());
        self.values.insert(key.into(), Value::Str(start..self.bytes.len()));
    }

    pub(super) fn uints(&mut self, key: &str, list: &[u32]) {
        self.array(key, Kind::Unsigned(4), list.iter().flat_map(|n| n.to_le_bytes()));
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.values.insert(key.into(), Value::Bool(value));
    }

    pub(super) fn bools(&mut self, key: &str, list: &[bool]) {
        self.array(key, Kind::Bool, list.iter().map(|b| u8::from(*b)));
    }

    fn array(&mut self, key: &str, kind: Kind, bytes: impl Iterator<Item = u8>) {
        let start = self.bytes.len();
        self.bytes.extend(bytes);
        self.values.insert(key.into(), Value::Array(Array::Scalars(kind, start..self.bytes.len())));
    }
}
