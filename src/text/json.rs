//! Values of a template as JSON, spelt as Python's `json.dumps` does: templates were written and models trained
//! with its spaces.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::base::limits::{JSON_INDENT_MAX, RENDERED_BYTES_MAX, TEMPLATE_JSON_DEPTH_MAX};

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if indent.is_some_and(|n| n > JSON_INDENT_MAX) {
        return Err(invalid(format!("tojson: an indent of at most {JSON_INDENT_MAX} is possible")));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are a pair of strings".to_owned())),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
        out: String::new(),
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

struct Writer {
    ascii: bool,
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
            return Err(invalid(format!("tojson: values nest at most {TEMPLATE_JSON_DEPTH_MAX} deep")));
        }
        if self.out.len() > RENDERED_BYTES_MAX {
            return Err(invalid(format!("tojson: at most {RENDERED_BYTES_MAX} bytes are possible")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut n = 0;
                for item in value.try_iter()? {
                    self.separate(n, depth);
                    self.value(&item, depth + 1)?;
                    n += 1;
                }
                self.close(n, depth, ']');
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
        let _ = if value.is_integer() {
            write!(self.out, "{value}")
        } else if x.is_nan() {
            write!(self.out, "NaN")
        } else if x.is_infinite() {
            write!(self.out, "{}Infinity", if x < 0.0 { "-" } else { "" })
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
        self.out.push('"');
        for c in s.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() || self.ascii && c == '\u{7f}' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(expression: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
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
