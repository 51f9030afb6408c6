//! Metadata by GGUF's keys, written into memory of its own.

use std::collections::HashMap;

use super::checkpoint::narrow;
use super::{Array, Kind, Value};
use crate::base::Strings;

/// Values and the bytes that their places refer to. What is told twice is what was told last.
#[derive(Debug, Default)]
pub struct Meta {
    pub(super) bytes: Vec<u8>,
    pub(super) values: HashMap<String, Value>,
}

impl Meta {
    /// An integer.
    pub fn uint(&mut self, key: &str, n: u64) {
        self.values.insert(key.into(), Value::Int(n.into()));
    }

    /// A float, at GGUF's width, 32 bits.
    pub fn float(&mut self, key: &str, x: f64) {
        self.values.insert(key.into(), Value::Float(narrow(x).into()));
    }

    /// A text.
    pub fn str(&mut self, key: &str, text: &str) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes());
        self.values.insert(key.into(), Value::Str(start..self.bytes.len()));
    }

    /// A list of integers.
    pub fn uints(&mut self, key: &str, list: &[u32]) {
        self.array(key, Kind::Unsigned(4), list.iter().flat_map(|n| n.to_le_bytes()));
    }

    /// A truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.values.insert(key.into(), Value::Bool(value));
    }

    /// A list of truth values.
    pub fn bools(&mut self, key: &str, list: &[bool]) {
        self.array(key, Kind::Bool, list.iter().map(|b| u8::from(*b)));
    }

    /// A list of signed integers.
    pub fn ints(&mut self, key: &str, list: impl Iterator<Item = i32>) {
        self.array(key, Kind::Signed(4), list.flat_map(i32::to_le_bytes));
    }

    /// A list of floats.
    pub fn floats(&mut self, key: &str, list: impl Iterator<Item = f32>) {
        self.array(key, Kind::Float(4), list.flat_map(f32::to_le_bytes));
    }

    /// A list of texts, which stay where they are.
    pub fn strings(&mut self, key: &str, list: Strings) {
        self.values.insert(key.into(), Value::Array(Array::Strings(list)));
    }

    fn array(&mut self, key: &str, kind: Kind, bytes: impl Iterator<Item = u8>) {
        let start = self.bytes.len();
        self.bytes.extend(bytes);
        self.values.insert(key.into(), Value::Array(Array::Scalars(kind, start..self.bytes.len())));
    }
}
