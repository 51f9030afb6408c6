//! Just enough of Rust's grammar for the rules: what is code, what is a literal, what is a test.

/// Rust source, taken apart just far enough.
pub(crate) struct Rust {
    /// The source, byte for byte at the same offset, with comments and the insides of literals made blank.
    pub(crate) code: String,
    /// Contents of string literals, escapes left as written, by the offset of their opening quote.
    pub(crate) strings: Vec<(usize, String)>,
    /// Offset of the inline test module (tests stand last), or the end.
    pub(crate) tests: usize,
}

impl Rust {
    pub(crate) fn lex(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut code = bytes.to_vec();
        let mut strings = Vec::new();
        let blank = |code: &mut Vec<u8>, from: usize, to: usize| {
            code[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        };
        let find = |from: usize, what: &str| {
            text.get(from..).and_then(|rest| rest.find(what)).map_or(bytes.len(), |n| from + n)
        };
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let start = at;
            if rest.starts_with(b"//") {
                at = find(at, "\n");
                blank(&mut code, start, at);
            } else if rest.starts_with(b"/*") {
                let mut depth = 0;
                while at < bytes.len() {
                    match &bytes[at..] {
                        [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
                        [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
                blank(&mut code, start, at);
            } else if let Some(hashes) = raw_string(bytes, at) {
                let open = at + 2 + hashes;
                let close = find(open, &format!("\"{}", "#".repeat(hashes)));
                strings.push((open - 1, text[open..close].into()));
                blank(&mut code, open, close);
                at = (close + 1 + hashes).min(bytes.len());
            } else if rest[0] == b'"' {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = at.min(bytes.len());
                strings.push((start, text[start + 1..at].into()));
                blank(&mut code, start + 1, at);
                at += 1;
            } else if rest[0] == b'\'' {
                at = char_end(text, at); // a lifetime ends where it starts
                blank(&mut code, start + 1, at.max(start + 1) - usize::from(at > start + 1));
            } else {
                at += 1;
            }
        }
        let code = String::from_utf8_lossy(&code).into_owned();
        let tests = code
            .match_indices("#[cfg(test)]")
            .find(|(at, mark)| {
                let item = code[at + mark.len()..].trim_start();
                item.starts_with("mod ") && item.find('{') < item.find(';').or(Some(usize::MAX))
            })
            .map_or(code.len(), |(at, _)| at);
        Self { code, strings, tests }
    }

    pub(crate) fn line(&self, at: usize) -> usize {
        1 + self.code.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
    }

    /// Identifiers and keywords with their offset.
    pub(crate) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        words(&self.code)
    }
}

/// Number of `#` if a raw string opens at `at` (`r"`, `r#"`; the `b` or `c` before it is just a letter).
fn raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let word_before = at > 0 && is_word(bytes[at - 1] as char) && !matches!(bytes[at - 1], b'b' | b'c');
    let rest = bytes[at..].strip_prefix(b"r").filter(|_| !word_before)?;
    let hashes = rest.iter().take_while(|b| **b == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// Offset behind the character literal that opens at `at`, or just behind the quote of a lifetime.
fn char_end(text: &str, at: usize) -> usize {
    let rest = &text[at + 1..];
    let mut chars = rest.char_indices();
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => {
            let close = rest.get(2..).and_then(|r| r.find('\'')).map_or(rest.len(), |n| n + 3);
            at + 1 + close.min(rest.len())
        }
        (Some(_), Some((n, '\''))) => at + 2 + n,
        _ => at + 1,
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split(|c: char| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr().addr() - text.as_ptr().addr(), word))
}
