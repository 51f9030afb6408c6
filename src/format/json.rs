//! JSON of the small files of a checkpoint, bounded in values and nesting, without duplicate names.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use super::FormatError;
use crate::base::json;
use crate::base::limits::N_MODEL_CONFIG_VALUE_MAX;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// The entry `key` of a map; null counts as absent, as it does for the programs that write these files.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(key).filter(|v| !matches!(v, Self::Null)),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(b) => b.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Str(s) if s.len() <= 64 => format!("{s:?}"),
            Self::Str(s) => format!("a string of {} bytes", s.len()),
            Self::List(list) => format!("a list of {} values", list.len()),
            Self::Map(map) => format!("an object of {} entries", map.len()),
        }
    }
}

/// Parses the whole of `bytes`.
///
/// # Errors
/// On anything but one JSON value of at most [`N_MODEL_CONFIG_VALUE_MAX`] values, nested at most 128 deep, without
/// duplicate names.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Json, FormatError> {
    let left = Cell::new(N_MODEL_CONFIG_VALUE_MAX);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&left).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| wrong(file, bytes, &e))
}

/// An error of reading `bytes`, which are the file.
pub(super) fn wrong(file: &str, bytes: &[u8], e: &serde_json::Error) -> FormatError {
    FormatError::Json { file: file.into(), why: json::why(bytes, e) }
}

/// Reads one value and counts it off.
#[derive(Clone, Copy)]
struct Seed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        let left = self.0.get().checked_sub(1).ok_or_else(|| {
            D::Error::custom(format!("more than {N_MODEL_CONFIG_VALUE_MAX} values, no model needs as many"))
        })?;
        self.0.set(left);
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Json, E> {
        Ok(Json::Bool(b))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json, E> {
        Ok(Json::Int(n.into()))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Json, E> {
        Ok(Json::Int(n.into()))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Json, E> {
        Ok(Json::Float(x))
    }

    fn visit_str<E>(self, s: &str) -> Result<Json, E> {
        Ok(Json::Str(s.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the name {key:?} occurs twice")));
            }
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Json::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kept() {
        let said = |text: &str| parse("c", text.as_bytes()).expect_err("must fail").to_string();
        assert!(said("{\"a\": 1, \"a\": 2}").contains("a: the name \"a\" occurs twice"));
        assert!(said(&"[".repeat(1000)).contains("recursion limit"));
        assert!(
            said(&format!("[{}0]", "0,".repeat(N_MODEL_CONFIG_VALUE_MAX))).contains("more than 65536 values")
        );
        assert!(said("{} {}").contains("trailing"));
        assert!(said("{\"a\": NaN}").contains("line 1 column"));
        assert!(said("{\"a\": 1e999}").contains("out of range"));
        assert!(said("").contains("EOF"));
        let value = parse("c", b"{\"a\": null, \"b\": [1, -2, 1.5, true, \"x\"]}").unwrap();
        assert_eq!(value.get("a"), None);
        let list = [Json::Int(1), Json::Int(-2), Json::Float(1.5), Json::Bool(true), Json::Str("x".into())];
        assert_eq!(value.get("b"), Some(&Json::List(list.into())));
    }
}
