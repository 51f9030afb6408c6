//! Lines from a person or a pipe, and messages made of them.

use std::fs::DirBuilder;
use std::io::{BufRead, ErrorKind, IsTerminal, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::{FileHistory, History};
use rustyline::{Behavior, Config, Editor};

use super::Failure;
use crate::base::limits::INPUT_BYTES_MAX;

/// Lines that the history keeps.
const HISTORY_MAX: usize = 1000;
/// Opens and closes a message of many lines.
const FENCE: &str = "\"\"\"";

/// A line, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// A line without its end.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// End of input.
    End,
    /// Bytes that are no text; what was typed before them on the line is lost.
    NotText,
}

/// A message, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A line that begins with a slash.
    Command(String),
    /// What is to be said to the model.
    Message(String),
    /// Ctrl-C.
    Interrupted,
    /// End of input.
    End,
    /// A message of more bytes than are taken; it was read to its end.
    TooLong,
    /// Bytes that are no text.
    NotText,
}

/// Where lines come from.
pub(super) enum Lines {
    /// A terminal: lines can be edited, and earlier ones recalled.
    Terminal { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    /// Anything else.
    Pipe,
}

impl Lines {
    /// Lines of standard input; what is typed at a terminal is kept in `history`.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub(super) fn open(history: Option<PathBuf>) -> Result<Self, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let unusable = |e| Failure::usage(format!("the terminal cannot be used: {e}"));
        // The terminal itself, so that the answers alone go where standard output goes.
        let config = Config::builder().behavior(Behavior::PreferTerm).history_ignore_space(true);
        let config = config.max_history_size(HISTORY_MAX).map_err(unusable)?.build();
        let mut editor = Editor::with_config(config).map_err(unusable)?;
        if let Some(file) = &history {
            if let Some(folder) = file.parent() {
                // A history that cannot be kept or read is none.
                drop(DirBuilder::new().recursive(true).mode(0o700).create(folder));
            }
            drop(editor.load_history(file));
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    /// Whether a person sits there.
    pub(super) fn terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next message.
    ///
    /// # Errors
    /// When input cannot be read, or a message is longer than what is taken.
    pub(super) fn entry(&mut self) -> Result<Entry, Failure> {
        let entry = entry(&mut |prompt| self.line(prompt))?;
        if let Self::Terminal { editor, history } = self
            && let Entry::Command(text) | Entry::Message(text) = &entry
            && editor.add_history_entry(text).unwrap_or(false)
            && let Some(file) = history
        {
            drop(editor.history_mut().append(file));
        }
        Ok(entry)
    }

    fn line(&mut self, prompt: &str) -> Result<Typed, Failure> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Typed::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Typed::Interrupted),
                Err(ReadlineError::Eof) => Ok(Typed::End),
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => Ok(Typed::NotText),
                Err(e) => Err(Failure::usage(format!("the terminal cannot be read: {e}"))),
            },
            Self::Pipe => {
                let mut line = Vec::new();
                let input = std::io::stdin().lock();
                let read = input.take(INPUT_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line);
                read.map_err(|e| Failure::usage(format!("standard input: {e}")))?;
                if line.is_empty() {
                    return Ok(Typed::End);
                }
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                let line = String::from_utf8(line.to_vec()).map_err(|e| {
                    let at = e.utf8_error().valid_up_to();
                    Failure::usage(format!("standard input: no UTF-8 at byte {at} of a line"))
                })?;
                Ok(Typed::Line(line))
            }
        }
    }
}

/// Makes a message of what `read` gives for a prompt: one line; lines that end with a backslash and the one after them;
/// or all between two fences, as they stand. The end of input ends a message.
fn entry(read: &mut dyn FnMut(&str) -> Result<Typed, Failure>) -> Result<Entry, Failure> {
    let mut line = match read("> ")? {
        Typed::Line(line) => line,
        Typed::Interrupted => return Ok(Entry::Interrupted),
        Typed::End => return Ok(Entry::End),
        Typed::NotText => return Ok(Entry::NotText),
    };
    if line.starts_with('/') {
        return Ok(Entry::Command(line));
    }
    let open = match line.strip_prefix(FENCE) {
        Some(rest) => {
            line = rest.to_owned();
            true
        }
        None => false,
    };
    let (mut parts, mut n_bytes) = (Vec::new(), 0);
    loop {
        let last = if open { line.strip_suffix(FENCE).map(str::len) } else { None };
        let more = if open { last.is_none() } else { line.ends_with('\\') };
        line.truncate(last.unwrap_or(line.len() - usize::from(more && !open)));
        n_bytes += line.len() + 1;
        if n_bytes > INPUT_BYTES_MAX {
            // It is read to its end, so that its rest is not taken for the next one.
            parts.clear();
        } else {
            parts.push(line);
        }
        if !more {
            break;
        }
        line = match read(". ")? {
            Typed::Line(line) => line,
            Typed::Interrupted => return Ok(Entry::Interrupted),
            Typed::NotText => return Ok(Entry::NotText),
            Typed::End => break,
        };
    }
    if n_bytes > INPUT_BYTES_MAX {
        return Ok(Entry::TooLong);
    }
    // Fences may stand on lines of their own.
    let first = usize::from(open && parts.len() > 1 && parts[0].is_empty());
    let mut parts = &parts[first..];
    if let (true, [rest @ .., last]) = (open, parts)
        && last.is_empty()
    {
        parts = rest;
    }
    Ok(Entry::Message(parts.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::ops::Add;

    use super::*;

    fn entries(input: &str) -> Vec<Entry> {
        let mut lines = input.split_terminator('\n');
        let mut read = |_: &str| {
            Ok(match lines.next() {
                Some("^C") => Typed::Interrupted,
                Some(line) => Typed::Line(line.into()),
                None => Typed::End,
            })
        };
        std::iter::from_fn(|| Some(entry(&mut read).unwrap()).filter(|e| *e != Entry::End)).collect()
    }

    fn message(text: &str) -> Entry {
        Entry::Message(text.into())
    }

    #[test]
    fn messages_of_one_line_and_of_many() {
        assert_eq!(
            entries("hi\n\n/help me\n"),
            [message("hi"), message(""), Entry::Command("/help me".into())]
        );
        assert_eq!(entries("a\\\nb\\\nc\nd"), [message("a\nb\nc"), message("d")]);
        assert_eq!(entries("\"\"\"a\\\n/b\n\nc\"\"\"\nd"), [message("a\\\n/b\n\nc"), message("d")]);
        assert_eq!(entries("\"\"\"\na\nb\n\"\"\"\n"), [message("a\nb")]);
        assert_eq!(entries("\"\"\"one\"\"\"\n"), [message("one")]);
        assert_eq!(entries("a\\\n^C\nb"), [Entry::Interrupted, message("b")]);
        assert_eq!(entries("a\\"), [message("a")], "the end of input ends a message");
        let long = format!("\"\"\"\n{}/exit\n\"\"\"\nb", "a".repeat(4_000).add("\n").repeat(300));
        assert_eq!(entries(&long), [Entry::TooLong, message("b")]);
        assert_eq!(entries("\"\"\"a\nb"), [message("a\nb")]);
    }
}
