//! What templates expect of Python: its strings and lists, and the filters and tests of jinja2 3.1 that the engine lacks
//! or takes otherwise. What jinja2 refuses is refused here too.
//! Sources: jinja2 3.1 (`filters.py`, `tests.py`), markupsafe, Python's library reference.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::vec;

use minijinja::value::{
    Enumerator, Kwargs, Object, ObjectRepr, Rest, StringInput, Tuple, ValueKind, ValueOrKwargs, from_args,
};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::json::{to_str, tojson};
use crate::base::limits::RENDERED_BYTES_MAX;

/// The name of a test, where one is given.
type Test<'a> = Option<Cow<'a, str>>;
/// All further arguments.
type More = Rest<ValueOrKwargs>;

/// Adds all of it to `env`.
pub(super) fn extend(env: &mut Environment<'_>) {
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            Ok(out.write_str(&to_str(value)?)?)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => to_str(value).map(Value::from),
    });
    env.add_filter("trim", |value: &Value, set: Option<&str>| -> Result<Value, Error> {
        Ok(text(value)?.trim_matches(in_set(set)).into())
    });
    env.add_filter("upper", |value: &Value| Ok::<_, Error>(text(value)?.to_uppercase()));
    env.add_filter("lower", |value: &Value| Ok::<_, Error>(text(value)?.to_lowercase()));
    env.add_filter("indent", indent);
    env.add_filter("int", int);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter(
        "join",
        |state: &mut State, value: &Value, by: Option<StringInput<'_>>, of: Option<&str>, named: Kwargs| {
            if value.is_none() {
                return Err(wrong("none is not iterable"));
            }
            filters::join(state, value, by, of, named)
        },
    );
    env.add_filter("list", |state: &State, value: Value| filters::list(state, not_none(value)?));
    env.add_filter("sort", |state: &State, value: Value, named: Kwargs| {
        filters::sort(state, not_none(value)?, named)
    });
    env.add_filter("unique", |state: &State, value: Value, named: Kwargs| {
        lazy(filters::unique(state, not_none(value)?, named)?)
    });
    env.add_filter("items", |value: &Value| lazy(filters::items(value)?));
    env.add_filter("map", |state: &mut State, value: Value, more: More| {
        lazy(filters::map(state, value, more)?.into())
    });
    env.add_filter("select", |state: &mut State, value: Value, test: Test<'_>, more: More| {
        lazy(filters::select(state, value, test, more)?.into())
    });
    env.add_filter("reject", |state: &mut State, value: Value, test: Test<'_>, more: More| {
        lazy(filters::reject(state, value, test, more)?.into())
    });
    env.add_filter(
        "selectattr",
        |state: &mut State, value: Value, by: Cow<'_, str>, test: Test<'_>, more: More| {
            lazy(filters::selectattr(state, value, by, test, more)?.into())
        },
    );
    env.add_filter(
        "rejectattr",
        |state: &mut State, value: Value, by: Cow<'_, str>, test: Test<'_>, more: More| {
            lazy(filters::rejectattr(state, value, by, test, more)?.into())
        },
    );
    // The engine lets none be iterated over; Python does not, and templates ask before they count tools.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // Whatever can be indexed and counted, mappings and strings among them.
    env.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.downcast_object_ref::<Lazy>().is_none(),
        _ => false,
    });
}

fn wrong(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn not_none(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(wrong("none is not iterable")) } else { Ok(value) }
}

/// The value as a text.
fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    value.as_str().map_or_else(|| to_str(value).map(Cow::Owned), |text| Ok(Cow::Borrowed(text)))
}

/// What a filter yields item by item, a generator in Python: without length, index and JSON, always true, and what was
/// seen of it is gone.
pub(super) struct Lazy(Mutex<vec::IntoIter<Value>>);

fn lazy(items: Value) -> Result<Value, Error> {
    let items: Vec<Value> = items.try_iter()?.collect();
    Ok(Value::from_object(Lazy(Mutex::new(items.into_iter()))))
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

/// Takes from a [`Lazy`].
struct Taking(Arc<Lazy>);

impl Iterator for Taking {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    // Loops know their last item by it.
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

impl Object for Lazy {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Taking(self.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// `indent(width=4, first=false, blank=false)`; the width may be a text to indent with.
fn indent(value: &Value, more: More) -> Result<String, Error> {
    let more = more.into_values();
    let (width, first, blank, named): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&more)?;
    let width = width.or(named.get("width")?).unwrap_or_else(|| 4.into());
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return Err(wrong(format!("indent: a value of type {} is no text", value.kind())));
    };
    let with = match width.as_str() {
        Some(with) => with.to_owned(),
        None => " ".repeat(bounded(usize::try_from(width)?)?),
    };
    // So that a last line that is empty counts.
    let text = format!("{text}\n");
    let lines = split_lines(&text);
    bounded(lines.len().saturating_mul(with.len()))?;
    let mut out = if first { with.clone() } else { String::new() };
    for (n, line) in lines.into_iter().enumerate() {
        if n > 0 {
            out.push('\n');
            out.push_str(if blank || !line.is_empty() { &with } else { "" });
        }
        out.push_str(line);
    }
    Ok(out)
}

/// A length of something that is about to be made.
fn bounded(n: usize) -> Result<usize, Error> {
    if n > RENDERED_BYTES_MAX {
        return Err(wrong(format!("a text of {n} bytes, at most {RENDERED_BYTES_MAX} are possible")));
    }
    Ok(n)
}

/// `int(default=0, base=10)`: what is no number is the default.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| 0.into());
    let base = base.or(named.get("base")?).unwrap_or(10);
    named.assert_all_used()?;
    let Some(text) = value.as_str() else {
        if value.is_undefined() {
            return Err(ErrorKind::UndefinedError.into());
        }
        return filters::int(
            state,
            value,
            Some(default),
            Some(base),
            Kwargs::from_iter([] as [(&str, Value); 0]),
        );
    };
    let text = text.trim_matches(is_space);
    let inner = |(i, c): (usize, char)| {
        c != '_'
            || text[..i].ends_with(char::is_alphanumeric) && text[i + 1..].starts_with(char::is_alphanumeric)
    };
    if !text.char_indices().all(inner) {
        return Ok(default);
    }
    let text = Value::from(text.replace('_', ""));
    Ok(filters::int(
        state,
        &text,
        Some(default.clone()),
        Some(base),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )
    .unwrap_or(default))
}

/// The text with markupsafe's entities.
fn escape(value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = to_str(value)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// Methods of Python's strings that the engine lacks or takes otherwise; the rest is its own.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(s) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    let none = || from_args::<()>(args);
    let one = || from_args::<(&str,)>(args).map(|(x,)| x);
    Ok(match name {
        "title" => {
            none()?;
            title(s).into()
        }
        "swapcase" => {
            none()?;
            let swapped = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            s.chars().map(swapped).collect::<String>().into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            match name {
                "strip" => s.trim_matches(in_set(set)),
                "lstrip" => s.trim_start_matches(in_set(set)),
                _ => s.trim_end_matches(in_set(set)),
            }
            .into()
        }
        "split" | "rsplit" => {
            let (by, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let by = by.or(named.get("sep")?);
            let most =
                most.or(named.get("maxsplit")?).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            named.assert_all_used()?;
            split(s, by, most, name == "rsplit")?.into_iter().collect()
        }
        "splitlines" if args.is_empty() => split_lines(s).into_iter().collect(),
        "partition" => match s.split_once(part(one()?)?) {
            Some((before, after)) => Tuple::from([before.into(), one()?.into(), after.into()]),
            None => Tuple::from([s.into(), "".into(), "".into()]),
        }
        .into(),
        "rpartition" => match s.rsplit_once(part(one()?)?) {
            Some((before, after)) => Tuple::from([before.into(), one()?.into(), after.into()]),
            None => Tuple::from(["".into(), "".into(), s.into()]),
        }
        .into(),
        "index" | "rindex" => {
            let at = if name == "index" { s.find(one()?) } else { s.rfind(one()?) };
            s[..at.ok_or_else(|| wrong(format!("{name}: not found")))?].chars().count().into()
        }
        "removeprefix" => s.strip_prefix(one()?).unwrap_or(s).into(),
        "removesuffix" => s.strip_suffix(one()?).unwrap_or(s).into(),
        "ljust" | "rjust" | "center" | "zfill" => {
            let (width, with): (usize, Option<char>) = from_args(args)?;
            justify(s, name, bounded(width)?, with).into()
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            if let Some(item) = not_none(items.clone())?.try_iter()?.find(|item| item.as_str().is_none()) {
                return Err(wrong(format!("join: an item of type {} is no text", item.kind())));
            }
            return unknown_method_callback(state, value, name, args);
        }
        _ => return unknown_method_callback(state, value, name, args),
    })
}

/// White space to Python: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Whether a character is one of `set`; `None`: white space.
fn in_set(set: Option<&str>) -> impl Fn(char) -> bool {
    move |c| set.map_or_else(|| is_space(c), |set| set.contains(c))
}

/// A separator, which cannot be empty.
fn part(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(wrong("empty separator")) } else { Ok(separator) }
}

/// The parts of `s` between `by` (`None`: runs of white space), cut at most `most` times, from the right if `right`.
fn split<'a>(s: &'a str, by: Option<&str>, most: usize, right: bool) -> Result<Vec<&'a str>, Error> {
    let n = most.saturating_add(1);
    let mut parts: Vec<&str> = match by {
        Some(by) if right => s.rsplitn(n, part(by)?).collect(),
        Some(by) => return Ok(s.splitn(n, part(by)?).collect()),
        None => {
            let (mut parts, mut rest) = (
                Vec::new(),
                if right { s.trim_end_matches(is_space) } else { s.trim_start_matches(is_space) },
            );
            while !rest.is_empty() {
                let cut = if right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(cut) = cut.filter(|_| parts.len() < most) else {
                    parts.push(rest);
                    break;
                };
                let (before, after) = rest.split_at(cut);
                if right {
                    parts.push(after.trim_start_matches(is_space));
                    rest = before.trim_end_matches(is_space);
                } else {
                    parts.push(before);
                    rest = after.trim_start_matches(is_space);
                }
            }
            parts
        }
    };
    if right {
        parts.reverse();
    }
    Ok(parts)
}

/// The lines of a text without their ends, as `str.splitlines` cuts them.
fn split_lines(mut s: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    while let Some(at) = s.find(is_end) {
        lines.push(&s[..at]);
        s = &s[at..];
        let end = s.strip_prefix("\r\n").or_else(|| s.strip_prefix(is_end));
        s = end.unwrap_or_default();
    }
    if !s.is_empty() {
        lines.push(s);
    }
    lines
}

/// Each run of letters begins with a capital and goes on in small letters.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `s` filled up to `width` characters.
fn justify(s: &str, how: &str, width: usize, with: Option<char>) -> String {
    let fill = width.saturating_sub(s.chars().count());
    let with = with.unwrap_or(if how == "zfill" { '0' } else { ' ' });
    let left = match how {
        "ljust" => 0,
        // CPython: an odd rest goes to the left where the width is odd.
        "center" => fill / 2 + (fill & width & 1),
        _ => fill,
    };
    let sign = if how == "zfill" && s.starts_with(['+', '-']) { 1 } else { 0 };
    let run = |n| std::iter::repeat_n(with, n);
    s[..sign].chars().chain(run(left)).chain(s[sign..].chars()).chain(run(fill - left)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(expression: &str) -> Result<String, Error> {
        let mut env = Environment::new();
        extend(&mut env);
        let words = Value::from_pairs([("l", Value::from(vec!["x", "y"]))]);
        env.render_str(&format!("{{{{ {expression} }}}}"), Value::from_pairs([("d", words)]))
    }

    /// What Python 3.11 with jinja2 3.1.6 prints.
    #[test]
    fn spelt_as_python_does() {
        for (expression, wanted) in [
            (
                "[1e22, 1e-7, 2.0, none, true, (1,), 'a\\'b', 'é\\u200d']",
                r#"[1e+22, 1e-07, 2.0, None, True, (1,), "a'b", 'é\u200d']"#,
            ),
            ("1e22 | string + '|' + 1e22 | trim", "1e+22|1e+22"),
            ("d | upper", "{'L': ['X', 'Y']}"),
            (
                "'a  b c '.split() ~ 'a,b,c'.split(',', maxsplit=1) ~ 'a,b,c'.rsplit(',', 1)",
                "['a', 'b', 'c']['a', 'b,c']['a,b', 'c']",
            ),
            ("' a b  c '.split(none, 1) ~ ' a  b c '.rsplit(none, 1)", "['a', 'b  c '][' a  b', 'c']"),
            (
                "'a-b-c'.partition('-') ~ 'a-b-c'.rpartition('-') ~ 'a'.partition('-')",
                "('a', '-', 'b-c')('a-b', '-', 'c')('a', '', '')",
            ),
            ("'\\x1fa\\u00a0'.strip() ~ 'xyax'.lstrip('xy') ~ 'xax' | trim('x')", "aaxa"),
            ("\"they're 3a-b\".title() ~ 'aB'.swapcase()", "They'Re 3A-BAb"),
            ("'a.b'.removeprefix('a.') ~ 'a.b'.removesuffix('.b') ~ 'abc'.index('b')", "ba1"),
            ("'x'.center(4) ~ '|' ~ 'x'.ljust(3, '.') ~ '-5'.zfill(4)", " x  |x..-005"),
            ("'a\\rb\\u2028c\\n'.splitlines()", "['a', 'b', 'c']"),
            (
                "'a\\n\\nb\\n' | indent(2) ~ '{\\n' | indent(1, first=true) ~ 'a\\nb' | indent('->')",
                "a\n\n  b\n {\na\n->b",
            ),
            ("' 1_0 ' | int ~ 'x' | int(5) ~ '3.7' | int ~ 'ff' | int(0, 16) ~ none | int", "10532550"),
            ("'<\\'\"&>' | e", "&lt;&#39;&#34;&amp;&gt;"),
            ("d is sequence ~ 'a' is sequence ~ (d.l[1:] is sequence) ~ 5 is sequence", "TrueTrueTrueFalse"),
            ("none is iterable ~ (d.l | map('upper') is sequence)", "FalseFalse"),
            ("(d.l | select('eq', 'z')) and 'always' ~ (d.l | map('upper') | list)", "always['X', 'Y']"),
            ("d | tojson(false, 1) ~ d.l[1:] | tojson", "{\n \"l\": [\n  \"x\",\n  \"y\"\n ]\n}[\"y\"]"),
        ] {
            assert_eq!(
                printed(expression).as_deref().map_err(ToString::to_string),
                Ok(wanted),
                "{expression}"
            );
        }
    }

    #[test]
    fn refused_as_python_refuses() {
        for expression in [
            "d.l | map('upper') | tojson",
            "d.l | select | length",
            "none | list",
            "none | join",
            "none | sort",
            "none | indent",
            "'a'.split('')",
            "'a'.index('b')",
            "'-'.join([1])",
            "missing | int",
            "'x'.ljust(1000000000)",
            "'x' | indent(1000000000)",
        ] {
            assert!(printed(expression).is_err(), "{expression}: {:?}", printed(expression));
        }
        assert_eq!(
            printed("[1, 2] | map('string') | first").ok().as_deref(),
            Some("1"),
            "what is lazy is still looked through"
        );
    }
}
