//! What is wrong with a JSON file, by the path of keys to the place. `serde_json` knows line and column alone, and such
//! a file is often one line of megabytes.

use serde_json::error::Category;

use super::shown::{brief, shown};

/// Levels that a path has in a message.
const DEPTH_SHOWN: usize = 6;

/// What `error`, of reading `text`, says: where, what stands there, what is wanted. Line and column are for a text that
/// is no JSON, where keys may mean little.
#[must_use]
pub fn why(text: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let bare = message.strip_suffix(&place).unwrap_or(&message);
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let line: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let end = line.saturating_add(error.column());
    if error.classify() != Category::Data {
        // The byte that is one too many counts.
        let path = path_at(text, end.saturating_sub(1));
        let colon = if path.is_empty() { "" } else { ": " };
        return format!("{path}{colon}{}{place}", brief(bare));
    }
    let path = path_at(text, end);
    let path = if path.is_empty() { "the whole" } else { &path };
    let found = bare.strip_prefix("invalid type: ").or_else(|| bare.strip_prefix("invalid value: "));
    match found.and_then(|found| found.rsplit_once(", expected ")) {
        Some((found, wanted)) => format!("{path} is {}, {wanted} wanted", brief(found)),
        None => format!("{path}: {}", brief(bare)),
    }
}

/// A list or an object that is not over yet.
enum Level<'a> {
    /// How many values are behind.
    List(usize),
    /// The key whose value it is about, as the file has it.
    Object(Option<&'a [u8]>),
}

/// The path to the value that ends at byte `end` of a JSON text, or is cut there; empty for the whole.
fn path_at(text: &[u8], end: usize) -> String {
    let text = text.get(..end).unwrap_or(text);
    let mut levels: Vec<Level<'_>> = Vec::new();
    // Levels below those that are shown.
    let mut below = 0_usize;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let start = at;
                while let Some(&byte) = text.get(at).filter(|byte| **byte != b'"') {
                    at += if byte == b'\\' { 2 } else { 1 };
                }
                if let (Some(Level::Object(key @ None)), 0) = (levels.last_mut(), below) {
                    *key = text.get(start..at.min(text.len()));
                }
                at += 1;
            }
            b'{' | b'[' if levels.len() == DEPTH_SHOWN => below += 1,
            b'}' | b']' if below > 0 => below -= 1,
            b'{' => levels.push(Level::Object(None)),
            b'[' => levels.push(Level::List(0)),
            b'}' | b']' => drop(levels.pop()),
            b',' if below == 0 => match levels.last_mut() {
                Some(Level::List(n)) => *n += 1,
                Some(Level::Object(key)) => *key = None,
                None => {}
            },
            _ => {}
        }
    }
    let mut path = String::new();
    for level in levels {
        match level {
            Level::List(i) => path.push_str(&format!("[{i}]")),
            Level::Object(None) => {}
            Level::Object(Some(key)) if key.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') => {
                let dot = if path.is_empty() { "" } else { "." };
                path.push_str(&format!("{dot}{}", brief(&String::from_utf8_lossy(key))));
            }
            Level::Object(Some(key)) => path.push_str(&format!("[{}]", shown(key))),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what cannot be read is looked at")]
    struct File {
        a: BTreeMap<String, Vec<Part>>,
        #[serde(default)]
        rest: serde_json::Value,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what cannot be read is looked at")]
    struct Part {
        text: String,
        n: Option<u8>,
    }

    #[test]
    fn an_error_names_the_keys_that_lead_to_it() {
        let said =
            |text: &str| why(text.as_bytes(), &serde_json::from_str::<File>(text).expect_err("must fail"));
        let long =
            format!("{{\"a\": {{\"b\": [{{\"text\": \"t\", \"n\": \"{}\"}}]}}}}", "x".repeat(10 << 20));
        let deep = "[".repeat(100_000);
        for (text, wanted) in [
            ("7", "the whole is integer `7`, struct File wanted"),
            ("{\"rest\": 1}", "the whole: missing field `a`"),
            ("{\"a\": []}", "a is sequence, a map wanted"),
            (
                "{\"a\":\n{\"x, {\\\" [\": [],\n\"b\": [{\"text\": \"t\"}, {\"text\": [1]}]}}",
                "a.b[1].text is sequence",
            ),
            (
                "{\"a\": {\"b\": [{\"n\": null, \"text\": 1.5}]}}",
                "a.b[0].text is floating point `1.5`, a string wanted",
            ),
            ("{\"a\": {\"b\": [{\"text\": \"t\", \"n\": -1 } ]}}", "a.b[0].n is integer `-1`, u8 wanted"),
            ("{\"a\": {\"b.c\": [{\"text\": \"t\"},{\"n\": 1}]}}", "a[\"b.c\"][1]: missing field `text`"),
            ("{\"a\": {\"b\": [{\"n\": 1, \"n\": 2}]}}", "a.b[0].n: duplicate field `n`"),
            (
                "{\"a\": {}, \"rest\": {\"c\": [1, 2 3]}}",
                "rest.c[1]: expected `,` or `]` at line 1 column 31",
            ),
            (
                "{\"a\": {}, \"rest\": [{}, {\"d\": tru",
                "rest[1].d: EOF while parsing a value at line 1 column 32",
            ),
            ("{\"a\": {}} x", "trailing characters at line 1 column 11"),
            ("", "EOF while parsing a value at line 1 column 0"),
            (&long, "a.b[0].n is string \"xxx"),
            (&format!("{{\"rest\": {deep}"), "rest[0][0][0][0][0]: recursion limit exceeded"),
        ] {
            let said = said(text);
            assert!(said.starts_with(wanted) && said.len() < 400, "{said}, wanted: {wanted}");
        }
        assert!(said(&long).ends_with("xxx\", u8 wanted"));
    }
}
