//! Text of a file in messages. A file may hold any text of any length: nothing of it goes into a message, and with it
//! to a terminal, but through here.

use std::borrow::Cow;

use super::limits::SHOWN_CHARS_MAX;

/// Text for a message: quoted, escaped, and without its middle where it is longer than [`SHOWN_CHARS_MAX`].
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    format!("{:?}", cut(&String::from_utf8_lossy(bytes)))
}

/// A name for a message: as [`shown`], but without quotes, and only its control characters are escaped, with those that turn
/// the direction of writing.
#[must_use]
pub fn brief(name: &str) -> String {
    let mut out = String::new();
    for c in cut(name).chars() {
        match c.is_control() || turns(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Marks, embeddings, overrides and isolates of direction (Unicode annex 9): they rearrange what is on a terminal.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The beginning and the end of a text that is too long.
fn cut(text: &str) -> Cow<'_, str> {
    const TAIL: usize = SHOWN_CHARS_MAX / 4;
    if text.chars().nth(SHOWN_CHARS_MAX).is_none() {
        return text.into();
    }
    let head: String = text.chars().take(SHOWN_CHARS_MAX - TAIL).collect();
    let from = text.char_indices().nth_back(TAIL - 1).map_or(0, |(at, _)| at);
    format!("{head} … {}", &text[from..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_is_shown_in_bounds_and_steers_nothing() {
        assert_eq!(shown(b"llama\x1b[2J\xff"), "\"llama\\u{1b}[2J\u{fffd}\"");
        assert_eq!(brief("blk.0.\"é\".weight"), "blk.0.\"é\".weight");
        assert_eq!(brief("a\u{1b}[2J\u{9b}\n"), "a\\u{1b}[2J\\u{9b}\\n");
        let full = "é".repeat(SHOWN_CHARS_MAX);
        assert_eq!(brief(&full), full);
        let said = brief(&format!("begin{}end", "é".repeat(10 << 20)));
        assert!(said.starts_with("beginé") && said.ends_with("éend"), "{said}");
        assert_eq!(said.chars().count(), SHOWN_CHARS_MAX + 3);
        assert!(shown("\u{1b}".repeat(10 << 20).as_bytes()).len() < 8 * SHOWN_CHARS_MAX);
    }
}
