//! Events as lines of JSON (API text, section 2): what the NDJSON route and the pipe both write. A line has at most
//! [`EVENT_BYTES_MAX`] bytes with its newline, so that a pipe writes it whole or not at all.

use serde::Serialize;
use serde_json::Value;

use crate::base::limits::{EVENT_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_SHOWN_BYTES_MAX};
use crate::engine::Event;

use super::done::{timings, usage};
use super::id::cut;

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Queued {
        position: usize,
    },
    Loading {
        model: &'a str,
        done: u64,
        total: u64,
    },
    Prefill {
        done: usize,
        total: usize,
        cached: usize,
    },
    Token {
        text: &'a str,
    },
    Done {
        id: &'a str,
        model: &'a str,
        finish_reason: &'static str,
        stop_detail: &'static str,
        seed: u64,
        usage: Value,
        timings: Value,
    },
    Error {
        code: &'static str,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        param: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// Bytes of a `token` line beside its text.
const TOKEN_FRAME: usize = r#"{"event":"token","text":""}"#.len() + 1;

/// Length of the piece of `text` that one `token` line holds: all of it, or as much as fits, ending at a code point.
pub(super) fn piece_len(text: &str) -> usize {
    let mut room = EVENT_BYTES_MAX - TOKEN_FRAME;
    for (at, c) in text.char_indices() {
        let len = match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => 6,
            _ => c.len_utf8(),
        };
        match room.checked_sub(len) {
            Some(left) => room = left,
            None => return at,
        }
    }
    text.len()
}

/// The line of a piece of an answer; `text` is one of [`piece_len`].
pub(super) fn token_line(text: &str) -> Vec<u8> {
    line(&Line::Token { text })
}

/// The line of `event`; `None` for the event that has none. A text longer than [`piece_len`] is the caller's to split.
pub(super) fn event_line(event: &Event) -> Option<Vec<u8>> {
    Some(match event {
        Event::Queued { position } => line(&Line::Queued { position: *position }),
        Event::Loading { model, done, total } => line(&Line::Loading { model, done: *done, total: *total }),
        Event::Prefill { done, total, cached } => {
            line(&Line::Prefill { done: *done, total: *total, cached: *cached })
        }
        Event::Text { text } => token_line(text),
        Event::Done(done) => line(&Line::Done {
            id: done.id.as_str(),
            model: &done.model,
            finish_reason: done.stop_detail.reason().as_str(),
            stop_detail: done.stop_detail.as_str(),
            seed: done.seed,
            usage: usage(&done.usage),
            timings: timings(&done.timings),
        }),
        Event::Failed(fault) => line(&Line::Error {
            code: fault.code.as_str(),
            message: cut(&fault.message, MESSAGE_BYTES_MAX),
            param: fault.param.as_deref().map(|p| cut(p, NAME_SHOWN_BYTES_MAX)),
            retry_after_ms: fault.retry_after_ms,
        }),
        Event::Admitted(_) => return None,
    })
}

/// All lines of `event`, long texts split.
#[cfg(any(feature = "http", test))]
pub(super) fn event_lines(event: &Event, out: &mut Vec<u8>) {
    let Event::Text { text } = event else {
        out.extend(event_line(event).unwrap_or_default());
        return;
    };
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_len(rest));
        out.extend(token_line(piece));
        rest = after;
    }
}

fn line(line: &Line<'_>) -> Vec<u8> {
    // Strings and numbers only: writing them to memory cannot fail.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::engine::{Code, Fault};

    #[test]
    fn lines_fit_a_pipe_and_join_to_the_text() {
        let mut rng = Rng::new(3);
        let alphabet = ['a', '"', '\n', '\u{1}', '\u{7f}', 'é', '🙂', '\\', '\u{2028}', '\0'];
        for n in [0, 1, 700, 4068, 4069, 20_000] {
            let text: String = (0..n).map(|_| alphabet[rng.below(alphabet.len())]).collect();
            let mut out = Vec::new();
            event_lines(&Event::Text { text: text.clone() }, &mut out);
            let mut joined = String::new();
            for line in out.split_inclusive(|&b| b == b'\n') {
                assert!(line.len() <= EVENT_BYTES_MAX, "{} bytes", line.len());
                let value: Value = serde_json::from_slice(line).unwrap();
                assert_eq!(value["event"], "token");
                joined += value["text"].as_str().unwrap();
            }
            assert_eq!(joined, text);
        }
        let plain = "a".repeat(EVENT_BYTES_MAX);
        assert_eq!(token_line(&plain[..piece_len(&plain)]).len(), EVENT_BYTES_MAX);
    }

    #[test]
    fn the_longest_error_fits_a_line() {
        let nasty = "\u{1}".repeat(100_000);
        let fault = Fault::new(Code::UnsupportedField, nasty.clone()).at(nasty).retry_after(u64::MAX);
        assert!(event_line(&Event::Failed(fault)).unwrap().len() <= EVENT_BYTES_MAX);
    }
}
