//! Cutting text into words before merging. Each family of models has a pattern; they are written out by hand.
//!
//! The patterns (`'s` and the like in either case but for gpt-2):
//! - gpt-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//! - llama-bpe: `'s|'t|'re|'ve|'m|'ll|'d|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//! - qwen2: the same with `\p{N}` for `\p{N}{1,3}`

use super::TextError;
use super::unicode::{Class, class};

/// A pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    Gpt2,
    LlamaBpe,
    Qwen2,
}

impl Pre {
    /// The pattern that `tokenizer.ggml.pre` names; old files name none and mean gpt-2.
    pub(super) fn named(name: Option<&str>) -> Result<Self, TextError> {
        match name {
            None | Some("default" | "gpt-2") => Ok(Self::Gpt2),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::LlamaBpe),
            Some("qwen2") => Ok(Self::Qwen2),
            Some(other) => Err(TextError::PreTokenizer { found: other.chars().take(64).collect() }),
        }
    }

    /// Bytes of the first word of `text`, which is not empty.
    fn word(self, text: &str) -> usize {
        match self {
            Self::Gpt2 => gpt2(text),
            Self::LlamaBpe => llama3(text, 3),
            Self::Qwen2 => llama3(text, 1),
        }
    }

    /// The words of `text`; together they are `text`.
    pub(super) fn words(self, mut text: &str) -> impl Iterator<Item = &str> {
        std::iter::from_fn(move || {
            if text.is_empty() {
                return None;
            }
            let (word, rest) = text.split_at(self.word(text));
            text = rest;
            Some(word)
        })
    }
}

fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let space = usize::from(text.starts_with(' '));
    match text[space..].chars().next().map(class) {
        Some(first) if first != Class::Space => space + run(&text[space..], |c| class(c) == first),
        _ => spaces(text),
    }
}

fn llama3(text: &str, n_digits: usize) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let letters = |text: &str| run(text, |c| class(c) == Class::Letter);
    match class(first) {
        Class::Letter => return letters(text),
        Class::Number => {
            let digits = text.chars().take(n_digits).take_while(|&c| class(c) == Class::Number);
            return digits.map(char::len_utf8).sum();
        }
        Class::Space | Class::Other => {}
    }
    // One character that is no line end may lead a word.
    let n = letters(chars.as_str());
    if n > 0 && !matches!(first, '\r' | '\n') {
        return first.len_utf8() + n;
    }
    let space = usize::from(first == ' ');
    let marks = run(&text[space..], |c| class(c) == Class::Other);
    if marks > 0 {
        let end = space + marks;
        return end + run(&text[end..], |c| matches!(c, '\r' | '\n'));
    }
    // White space up to its last line end.
    let white = &text[..run(text, |c| class(c) == Class::Space)];
    match white.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

/// `\s+(?!\S)|\s+`: white space, but the last of several goes with the word that follows.
fn spaces(text: &str) -> usize {
    let white = run(text, |c| class(c) == Class::Space);
    let last = text[..white].chars().next_back().map_or(0, char::len_utf8);
    if white < text.len() && white > last { white - last } else { white }
}

/// Bytes of the characters at the beginning that are `like` it.
fn run(text: &str, like: impl Fn(char) -> bool) -> usize {
    text.find(|c| !like(c)).unwrap_or(text.len())
}

/// Bytes of an English contraction at the beginning.
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let rest = text.as_bytes().strip_prefix(b"'")?;
    [b"s".as_slice(), b"t", b"re", b"ve", b"m", b"ll", b"d"]
        .into_iter()
        .find(|&tail| match rest.get(..tail.len()) {
            Some(found) if any_case => found.eq_ignore_ascii_case(tail),
            found => found == Some(tail),
        })
        .map(|tail| 1 + tail.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pre: Pre, text: &str) -> Vec<&str> {
        pre.words(text).collect()
    }

    #[test]
    fn words_of_each_pattern() {
        let text = "It's I'LL  go\n\n  1234 x+=1\t\ty ";
        let gpt2 = [
            "It", "'s", " I", "'", "LL", " ", " go", "\n\n ", " 1234", " x", "+=", "1", "\t", "\t", "y", " ",
        ];
        assert_eq!(cut(Pre::Gpt2, text), gpt2);
        let llama = [
            "It", "'s", " I", "'LL", " ", " go", "\n\n", " ", " ", "123", "4", " x", "+=", "1", "\t", "\ty",
            " ",
        ];
        assert_eq!(cut(Pre::LlamaBpe, text), llama);
        let qwen = [
            "It", "'s", " I", "'LL", " ", " go", "\n\n", " ", " ", "1", "2", "3", "4", " x", "+=", "1", "\t",
            "\ty", " ",
        ];
        assert_eq!(cut(Pre::Qwen2, text), qwen);
        assert_eq!(cut(Pre::LlamaBpe, " \n \n  é!\r\n\r\n-"), [" \n \n", " ", " é", "!\r\n\r\n", "-"]);
    }

    #[test]
    fn words_are_never_empty_and_make_the_text() {
        let alphabet: Vec<char> = "ab'sLl 1٣½\t\n\r\u{a0}\u{3000}é漢\u{301}🙂+.\0".chars().collect();
        arbtest::arbtest(|u| {
            let n = u.int_in_range(0..=30)?;
            let text: String = (0..n).map(|_| u.choose(&alphabet)).collect::<Result<_, _>>()?;
            for pre in [Pre::Gpt2, Pre::LlamaBpe, Pre::Qwen2] {
                let words = cut(pre, &text);
                assert!(words.iter().all(|w| !w.is_empty()), "{pre:?} {text:?}");
                assert_eq!(words.concat(), text);
            }
            Ok(())
        });
    }
}
