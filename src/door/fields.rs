//! Strict reading of what a caller sends: duplicate keys, unknown fields, wrong types and values out of range are
//! refused with the path of the field, nothing is coerced, and no message repeats a text of the caller.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::base::limits::{JSON_DEPTH_MAX, JSON_OBJECT_VALUES, N_JSON_VALUE_MAX, NAME_SHOWN_BYTES_MAX};
use crate::engine::{Class, Code, Fault};

use super::id::cut;

/// The value that `bytes` write.
///
/// # Errors
/// `invalid_json` when they write none, a key twice, more than [`N_JSON_VALUE_MAX`] values or deeper than
/// [`JSON_DEPTH_MAX`].
pub(super) fn parse_json(bytes: &[u8]) -> Result<Value, Fault> {
    let mut n_left = N_JSON_VALUE_MAX;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Strict { depth: 0, n_left: &mut n_left }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|e| Fault::new(Code::InvalidJson, format!("JSON of {} bytes: {e}", bytes.len())))
}

struct Strict<'a> {
    depth: usize,
    n_left: &'a mut usize,
}

impl Strict<'_> {
    fn inner(&mut self) -> Strict<'_> {
        Strict { depth: self.depth + 1, n_left: self.n_left }
    }

    fn count<E: Error>(&mut self, n: usize) -> Result<(), E> {
        let left = self.n_left.checked_sub(n);
        *self.n_left = left.ok_or_else(|| {
            let message = format_args!(
                "more than {N_JSON_VALUE_MAX} values, of which an object counts as {JSON_OBJECT_VALUES}"
            );
            E::custom(message)
        })?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(mut self, reader: D) -> Result<Value, D::Error> {
        if self.depth > JSON_DEPTH_MAX {
            return Err(D::Error::custom(format_args!("nested deeper than {JSON_DEPTH_MAX}")));
        }
        self.count(1)?;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, x: bool) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_i64<E: Error>(self, x: i64) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_u64<E: Error>(self, x: u64) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<Value, E> {
        Number::from_f64(x).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E: Error>(self, x: &str) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_string<E: Error>(self, x: String) -> Result<Value, E> {
        Ok(x.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        self.count(JSON_OBJECT_VALUES)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key = cut(&key, NAME_SHOWN_BYTES_MAX);
                return Err(A::Error::custom(format_args!("the key `{key}` stands twice in one object")));
            }
            map.insert(key, entries.next_value_seed(self.inner())?);
        }
        Ok(map.into())
    }
}

/// The type a field must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Bool,
    Text,
    List,
    Object,
    TextOrObject,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Bool => value.is_boolean(),
            Self::Text => value.is_string(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
            Self::TextOrObject => value.is_string() || value.is_object(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "any value",
            Self::Bool => "true or false",
            Self::Text => "a string",
            Self::List => "an array",
            Self::Object => "an object",
            Self::TextOrObject => "a string or an object",
        }
    }
}

/// A field that the interface names and this version does not serve: its type, and the values that ask for nothing.
pub(super) struct NotYet {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    pub(super) neutral: fn(&Value) -> bool,
}

/// What `got` is, without its text.
fn shown(got: &Value) -> String {
    match got {
        Value::Null => "null".into(),
        Value::Bool(x) => x.to_string(),
        Value::Number(x) => x.to_string(),
        Value::String(x) => format!("a string of {} bytes", x.len()),
        Value::Array(x) => format!("an array of {}", x.len()),
        Value::Object(x) => format!("an object of {} keys", x.len()),
    }
}

/// `invalid_value` at `path`.
pub(super) fn wrong(path: &str, got: &Value, allowed: impl fmt::Display) -> Fault {
    invalid(path, format_args!("got {}, allowed is {allowed}", shown(got)))
}

/// `invalid_value` at `path` in own words.
pub(super) fn invalid(path: &str, what: impl fmt::Display) -> Fault {
    Fault::new(Code::InvalidValue, format!("{}: {what}", cut(path, NAME_SHOWN_BYTES_MAX))).at(path)
}

/// `unsupported_field` at `path`.
pub(super) fn unsupported(path: &str, what: impl fmt::Display) -> Fault {
    Fault::new(Code::UnsupportedField, format!("{}: {what}", cut(path, NAME_SHOWN_BYTES_MAX))).at(path)
}

/// `missing_field` at `path`.
pub(super) fn missing(path: &str, what: impl fmt::Display) -> Fault {
    Fault::new(Code::MissingField, format!("{}: {what}", cut(path, NAME_SHOWN_BYTES_MAX))).at(path)
}

/// The fields of one object, taken out one by one; what is left at the end is unknown. Null means absent.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
    at: String,
    lenient: bool,
    ignored: Vec<String>,
}

impl Fields {
    /// The fields of the object `value`, which stands at the path `at` (empty: the whole body).
    pub(super) fn new(value: Value, at: &str, lenient: bool) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { map, at: at.to_owned(), lenient, ignored: Vec::new() }),
            other if at.is_empty() => Err(Fault::new(
                Code::InvalidValue,
                format!("the body: got {}, allowed is an object", shown(&other)),
            )),
            other => Err(wrong(at, &other, "an object")),
        }
    }

    /// Path of the field `key`.
    pub(super) fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    /// Takes a field as it stands.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn take_kind(&mut self, key: &str, kind: Kind) -> Result<Option<Value>, Fault> {
        match self.take(key) {
            Some(value) if !kind.fits(&value) => Err(wrong(&self.path(key), &value, kind.name())),
            value => Ok(value),
        }
    }

    /// Takes a string.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Fault> {
        Ok(match self.take_kind(key, Kind::Text)? {
            Some(Value::String(text)) => Some(text),
            _ => None,
        })
    }

    /// Takes true or false.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        Ok(self.take_kind(key, Kind::Bool)?.and_then(|value| value.as_bool()))
    }

    /// Takes an array.
    pub(super) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, Fault> {
        Ok(match self.take_kind(key, Kind::List)? {
            Some(Value::Array(list)) => Some(list),
            _ => None,
        })
    }

    /// Takes `class`.
    pub(super) fn class(&mut self) -> Result<Class, Fault> {
        match self.text("class")?.as_deref() {
            None | Some("interactive") => Ok(Class::Interactive),
            Some("background") => Ok(Class::Background),
            Some(_) => Err(invalid(&self.path("class"), "allowed is interactive or background")),
        }
    }

    /// Takes a whole number from `min` to `max`; 1.0 is none.
    pub(super) fn whole(&mut self, key: &str, min: u64, max: u64) -> Result<Option<u64>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(x) if (min..=max).contains(&x) => Ok(Some(x)),
            _ => Err(wrong(&self.path(key), &value, format_args!("a whole number from {min} to {max}"))),
        }
    }

    /// Takes a number that `fits`; `allowed` says which ones do.
    pub(super) fn number(
        &mut self,
        key: &str,
        fits: impl Fn(f64) -> bool,
        allowed: &str,
    ) -> Result<Option<f64>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if fits(x) => Ok(Some(x)),
            _ => Err(wrong(&self.path(key), &value, allowed)),
        }
    }

    /// Takes an object, to be read in turn and given back to [`Self::close`].
    #[cfg(any(feature = "http", test))]
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, Fault> {
        let path = self.path(key);
        self.take(key).map(|value| Self::new(value, &path, self.lenient)).transpose()
    }

    /// Ends an object taken by [`Self::object`].
    #[cfg(any(feature = "http", test))]
    pub(super) fn close(&mut self, inner: Self) -> Result<(), Fault> {
        self.ignored.extend(inner.finish()?);
        Ok(())
    }

    /// Takes the fields of `table`: a wrong type is refused, a value that asks for something too, unless the caller
    /// is lenient.
    pub(super) fn not_yet(&mut self, table: &[NotYet]) -> Result<(), Fault> {
        for NotYet { key, kind, neutral } in table {
            let Some(value) = self.take_kind(key, *kind)? else { continue };
            if !neutral(&value) {
                let path = self.path(key);
                self.refuse_or_ignore(
                    unsupported(&path, "not supported by this version; leave it out"),
                    path,
                )?;
            }
        }
        Ok(())
    }

    fn refuse_or_ignore(&mut self, fault: Fault, path: String) -> Result<(), Fault> {
        if !self.lenient {
            return Err(fault);
        }
        self.ignored.push(path);
        Ok(())
    }

    /// Ends the reading: fields that nobody took are unknown. Gives the paths of those ignored.
    pub(super) fn finish(mut self) -> Result<Vec<String>, Fault> {
        for (key, _) in std::mem::take(&mut self.map) {
            let path = self.path(&key);
            let message = format!("{}: no such field; leave it out", cut(&path, NAME_SHOWN_BYTES_MAX));
            self.refuse_or_ignore(Fault::new(Code::UnknownField, message).at(path.clone()), path)?;
        }
        Ok(self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Code {
        parse_json(text.as_bytes()).expect_err(text).code
    }

    #[test]
    fn json_is_read_strictly() {
        assert_eq!(parse_json(br#"{"a":[1,-2,3.5,"x",null,true]}"#).unwrap()["a"][2], 3.5);
        for bad in ["", "{", "{}x", r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"a":2}}]"#, "1e999", "\"\u{1}\""] {
            assert_eq!(code(bad), Code::InvalidJson, "{bad}");
        }
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse_json(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(code(&nested(JSON_DEPTH_MAX + 2)), Code::InvalidJson);
        assert_eq!(code(&nested(1_000_000)), Code::InvalidJson);
        assert_eq!(code(&format!("[{}0]", "0,".repeat(N_JSON_VALUE_MAX))), Code::InvalidJson);
    }

    #[test]
    fn unknown_fields_are_refused_or_named() {
        let body = || parse_json(br#"{"in":{"x":1},"y":null,"z":2}"#).unwrap();
        let mut strict = Fields::new(body(), "", false).unwrap();
        let inner = strict.object("in").unwrap().unwrap();
        assert_eq!(strict.close(inner).unwrap_err().param.as_deref(), Some("in.x"));
        let mut lenient = Fields::new(body(), "", true).unwrap();
        let inner = lenient.object("in").unwrap().unwrap();
        lenient.close(inner).unwrap();
        assert_eq!(lenient.finish().unwrap(), ["in.x", "y", "z"]);
    }

    #[test]
    fn nothing_is_coerced() {
        let body = parse_json(br#"{"a":1.0,"b":"1","c":1,"d":0}"#).unwrap();
        let mut fields = Fields::new(body, "", false).unwrap();
        for key in ["a", "b", "d"] {
            assert_eq!(fields.whole(key, 1, 9).unwrap_err().param.as_deref(), Some(key));
        }
        assert!(fields.flag("c").is_err());
    }
}
