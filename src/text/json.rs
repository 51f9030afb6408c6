//! Values of a template, and how they are printed: as JSON or bare, spelt as Python's `json.dumps` and `str` do.
//! Templates were written and models trained with its spaces.

use std::fmt::Write;
use std::str::FromStr;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use super::TextError;
use super::python::Lazy;
use super::special::MARK;
use crate::base::limits::{JSON_INDENT_MAX, MARKED_BYTES_MAX, TEMPLATE_JSON_DEPTH_MAX};

/// A JSON value as templates see it; the keys of objects keep the order in which they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(pub(super) Value);

impl Json {
    /// Null, which templates call none.
    #[must_use]
    pub fn null() -> Self {
        Self(().into())
    }

    /// Whether it is [`Self::null`].
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// A message with nothing but a role and a text.
    #[must_use]
    pub fn message(role: &str, content: &str) -> Self {
        Self(Value::from_pairs([("role", role), ("content", content)]))
    }

    /// The text of the field `key`, if this is an object that has it.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        Some(self.0.get_attr(key).ok()?.as_str()?.to_owned())
    }

    /// The value with each text replaced by what `f` makes of it. `f` hears whether the text is a name, by which
    /// templates look things up and compare: a key, or the value of one of [`NAMES`].
    pub(super) fn map_texts(&self, f: &impl Fn(&str, bool) -> String) -> Self {
        Self(map_texts(&self.0, false, f))
    }
}

/// Fields whose values are names.
const NAMES: [&str; 5] = ["role", "type", "name", "id", "tool_call_id"];

fn map_texts(value: &Value, name: bool, f: &impl Fn(&str, bool) -> String) -> Value {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::String => f(value.as_str().unwrap_or_default(), name).into(),
        ValueKind::Seq | ValueKind::Iterable => items().map(|item| map_texts(&item, false, f)).collect(),
        ValueKind::Map => {
            let entry = |key: Value| {
                let name = key.as_str().is_some_and(|key| NAMES.contains(&key));
                let item = value.get_item(&key).unwrap_or_default();
                (map_texts(&key, true, f), map_texts(&item, name, f))
            };
            Value::from_pairs(items().map(entry))
        }
        _ => value.clone(),
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<bool> for Json {
    fn from(yes: bool) -> Self {
        Self(yes.into())
    }
}

impl FromStr for Json {
    type Err = TextError;

    /// Parses JSON text.
    fn from_str(text: &str) -> Result<Self, TextError> {
        serde_json::from_str(text).map_err(|e| TextError::Json { what: e.to_string() })
    }
}

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    type Args = (Option<bool>, Option<usize>, Option<Vec<String>>, Option<bool>, Kwargs);
    let args = args.into_values();
    let (ascii, indent, separators, sort, named): Args = from_args(&args)?;
    let ascii = ascii.or(named.get("ensure_ascii")?);
    let indent = indent.or(named.get("indent")?);
    let separators = separators.or(named.get("separators")?);
    let sort = sort.or(named.get("sort_keys")?);
    named.assert_all_used()?;
    if indent.is_some_and(|n| n > JSON_INDENT_MAX) {
        return Err(invalid(format!("tojson: an indent of at most {JSON_INDENT_MAX} is possible")));
    }
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are a pair of strings".to_owned())),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        style: Style::Json { ascii: ascii.unwrap_or(false) },
        sort: sort.unwrap_or(false),
        indent,
        item,
        key,
        out: String::new(),
    };
    writer.value(value, 0)?;
    Ok(writer.out.into())
}

/// The value as Python's `str` spells it.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    let is_data =
        matches!(value.kind(), ValueKind::Number | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    if !is_data {
        return Ok(value.to_string());
    }
    let (item, key) = (", ".to_owned(), ": ".to_owned());
    let mut writer = Writer { style: Style::Repr, sort: false, indent: None, item, key, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// As `json.dumps`; `ascii` escapes everything else.
    Json { ascii: bool },
    /// As `repr`.
    Repr,
}

struct Writer {
    style: Style,
    sort: bool,
    indent: Option<usize>,
    /// Between items.
    item: String,
    /// Between key and value.
    key: String,
    out: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > TEMPLATE_JSON_DEPTH_MAX {
            return Err(invalid(format!("printed values nest at most {TEMPLATE_JSON_DEPTH_MAX} deep")));
        }
        if self.out.len() > MARKED_BYTES_MAX {
            return Err(invalid(format!("printed values have at most {MARKED_BYTES_MAX} bytes")));
        }
        let json = self.style != Style::Repr;
        match value.kind() {
            ValueKind::None => self.out.push_str(if json { "null" } else { "None" }),
            ValueKind::Bool if json => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "True" } else { "False" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                if json && value.downcast_object_ref::<Lazy>().is_some() {
                    return Err(invalid(
                        "tojson: what a filter yields item by item has no JSON; use `list`".to_owned(),
                    ));
                }
                let tuple = !json && value.downcast_object_ref::<Tuple>().is_some();
                self.out.push(if tuple { '(' } else { '[' });
                let mut n = 0;
                for item in value.try_iter()? {
                    self.separate(n, depth);
                    self.value(&item, depth + 1)?;
                    n += 1;
                }
                if tuple && n == 1 {
                    self.out.push(',');
                }
                self.close(n, depth, if tuple { ')' } else { ']' });
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.out.push('{');
                for (n, key) in keys.iter().enumerate() {
                    self.separate(n, depth);
                    match key.kind() {
                        _ if !json => self.value(key, depth + 1)?,
                        ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            self.out.push('"');
                            self.value(key, depth + 1)?;
                            self.out.push('"');
                        }
                        other => return Err(invalid(format!("tojson: a key cannot be of type {other}"))),
                    }
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close(keys.len(), depth, '}');
            }
            ValueKind::Undefined if !json => self.out.push_str("Undefined"),
            _ if !json => {
                let _ = write!(self.out, "{value}");
            }
            other => return Err(invalid(format!("tojson: a value of type {other} has no JSON"))),
        }
        Ok(())
    }

    /// What goes before item `n`.
    fn separate(&mut self, n: usize, depth: usize) {
        if n > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth + 1);
    }

    fn close(&mut self, n: usize, depth: usize, end: char) {
        if n > 0 {
            self.line(depth);
        }
        self.out.push(end);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    /// Integers as they are, floats as Python's `repr`.
    fn number(&mut self, value: &Value) {
        let x = f64::try_from(value.clone()).unwrap_or(0.0);
        let json = self.style != Style::Repr;
        let _ = if value.is_integer() {
            write!(self.out, "{value}")
        } else if x.is_nan() {
            write!(self.out, "{}", if json { "NaN" } else { "nan" })
        } else if x.is_infinite() {
            write!(self.out, "{}{}", if x < 0.0 { "-" } else { "" }, if json { "Infinity" } else { "inf" })
        } else {
            // Both languages change to exponents at the same sizes, but Python gives them a sign and two digits.
            match format!("{x:?}").split_once('e') {
                Some((digits, exponent)) if exponent.starts_with('-') => {
                    write!(self.out, "{digits}e-{:0>2}", &exponent[1..])
                }
                Some((digits, exponent)) => write!(self.out, "{digits}e+{exponent:0>2}"),
                None => write!(self.out, "{x:?}"),
            }
        };
    }

    fn string(&mut self, s: &str) {
        let quote = match self.style {
            Style::Repr if !s.contains('\'') || s.contains('"') => '\'',
            _ => '"',
        };
        self.out.push(quote);
        for c in s.chars() {
            match (c, self.style) {
                ('\\', _) => self.out.push_str("\\\\"),
                (c, _) if c == quote => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                ('\n', _) => self.out.push_str("\\n"),
                ('\r', _) => self.out.push_str("\\r"),
                ('\t', _) => self.out.push_str("\\t"),
                // What keeps texts from becoming control tokens stays; it is no part of the prompt.
                (MARK, _) => self.out.push(c),
                ('\u{8}', Style::Json { .. }) => self.out.push_str("\\b"),
                ('\u{c}', Style::Json { .. }) => self.out.push_str("\\f"),
                (c, Style::Json { ascii }) if c < ' ' || ascii && !c.is_ascii() || ascii && c == '\u{7f}' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                (c, Style::Repr) if !is_printable(c) => {
                    let _ = match u32::from(c) {
                        code @ ..0x100 => write!(self.out, "\\x{code:02x}"),
                        code @ ..0x1_0000 => write!(self.out, "\\u{code:04x}"),
                        code => write!(self.out, "\\U{code:08x}"),
                    };
                }
                (c, _) => self.out.push(c),
            }
        }
        self.out.push(quote);
    }
}

/// What `repr` shows as it is: all but controls, marks of format, private use, and spaces other than the common one
/// (Unicode 15, categories C and Z; unassigned code points are shown).
fn is_printable(c: char) -> bool {
    let hidden = matches!(u32::from(c),
        ..0x20 | 0x7f..=0xa0 | 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x1680 | 0x180e
        | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000 | 0xe000..=0xf8ff | 0xfeff | 0xfff9..=0xfffb
        | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0001
        | 0xe0020..=0xe007f | 0xf0000..);
    !hidden
}

#[cfg(test)]
mod tests {

    fn printed(expression: &str) -> String {
        let mut env = minijinja::Environment::new();
        crate::text::python::extend(&mut env);
        env.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap_or_else(|e| format!("error: {e}"))
    }

    #[test]
    fn spelt_as_python_does() {
        assert_eq!(
            printed(r#"[1, 2.0, 1e20, 0.00001, true, none, {"a": "é\"\n\u0001"}] | tojson"#),
            r#"[1, 2.0, 1e+20, 1e-05, true, null, {"a": "é\"\n\u0001"}]"#
        );
        assert_eq!(printed("[[], {}, [1]] | tojson(indent=2)"), "[\n  [],\n  {},\n  [\n    1\n  ]\n]");
        assert_eq!(printed(r#"{"k": [1, 2]} | tojson(separators=(",", ":"))"#), r#"{"k":[1,2]}"#);
        assert_eq!(printed(r#""é🙂" | tojson(ensure_ascii=true)"#), r#""\u00e9\ud83d\ude42""#);
        assert_eq!(printed(r#"{1: 2, "b": none} | tojson(sort_keys=true)"#), r#"{"1": 2, "b": null}"#);
    }

    #[test]
    fn bounds_are_kept() {
        assert!(printed("[1] | tojson(indent=1000000000)").contains("at most 16"));
        let deep = format!("{}1{} | tojson", "[".repeat(40), "]".repeat(40));
        assert!(printed(&deep).contains("at most 32 deep"), "{}", printed(&deep));
        assert!(printed("nothing | tojson").contains("undefined"));
    }
}
