//! Events as lines of JSON (API text, section 2): what the NDJSON route and the pipe both write. A line has at most
//! [`EVENT_BYTES_MAX`] bytes with its newline, so that a pipe writes it whole or not at all.

use serde::Serialize;
use serde_json::Value;

use crate::base::limits::{EVENT_BYTES_MAX, TOP_TOKEN_BYTES_MAX};
use crate::engine::{Event, Likely, Logprob};

use super::done::{timings, usage};
use super::fault;

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
    Loaded {
        model: &'a str,
    },
    Prefill {
        done: usize,
        total: usize,
        cached: usize,
    },
    Token {
        text: &'a str,
        #[serde(flatten)]
        told: Option<&'a Told>,
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
        #[serde(flatten)]
        fields: Value,
    },
}

/// What a `token` line tells of its token.
#[derive(Serialize)]
struct Told {
    ids: [u32; 1],
    logprob: f32,
    top: Vec<Top>,
}

/// One of the likeliest tokens; its text is cut to [`TOP_TOKEN_BYTES_MAX`] of JSON.
#[derive(Serialize)]
struct Top {
    id: u32,
    token: String,
    logprob: f32,
}

impl Told {
    fn of(logprob: &Logprob) -> Self {
        let top = |one: &Likely| {
            let text = String::from_utf8_lossy(&one.bytes);
            let token = text[..fitting(&text, TOP_TOKEN_BYTES_MAX)].to_owned();
            Top { id: one.token.0, token, logprob: one.logprob }
        };
        let drawn = &logprob.drawn;
        Self { ids: [drawn.token.0], logprob: drawn.logprob, top: logprob.top.iter().map(top).collect() }
    }
}

/// Length of the beginning of `text` that takes at most `room` bytes of JSON, ending at a code point.
fn fitting(text: &str, mut room: usize) -> usize {
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

/// A `token` line that holds `logprob` and as much of `text` as fits: the length of that, and the line.
pub(super) fn token_line(text: &str, logprob: Option<&Logprob>) -> (usize, Vec<u8>) {
    let told = logprob.map(Told::of);
    let frame = line(&Line::Token { text: "", told: told.as_ref() }).len();
    let n = fitting(text, EVENT_BYTES_MAX.saturating_sub(frame));
    (n, line(&Line::Token { text: &text[..n], told: told.as_ref() }))
}

/// A drawn token among the likeliest, as `token` lines tell it.
#[cfg(feature = "dbus")]
pub(super) fn logprob_text(logprob: &Logprob) -> String {
    let bytes = serde_json::to_vec(&Told::of(logprob)).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// The line of `event`; `None` for the event that has none. Of a text, what fits.
pub(super) fn event_line(event: &Event) -> Option<Vec<u8>> {
    Some(match event {
        Event::Queued { position } => line(&Line::Queued { position: *position }),
        Event::Loading { model, done, total } => line(&Line::Loading { model, done: *done, total: *total }),
        Event::Prefill { done, total, cached } => {
            line(&Line::Prefill { done: *done, total: *total, cached: *cached })
        }
        Event::Text { text, logprob } => token_line(text, logprob.as_deref()).1,
        Event::Loaded { model } => line(&Line::Loaded { model }),
        Event::Done(done) => line(&Line::Done {
            id: done.id.as_str(),
            model: &done.model,
            finish_reason: done.stop_detail.reason().as_str(),
            stop_detail: done.stop_detail.as_str(),
            seed: done.seed,
            usage: usage(&done.usage),
            timings: timings(&done.timings),
        }),
        Event::Failed(fault) => line(&Line::Error { fields: fault::fields(fault) }),
        Event::Admitted(_) | Event::Embedded(_) => return None,
    })
}

/// All lines of `event`, long texts split.
#[cfg(any(feature = "http", test))]
pub(super) fn event_lines(event: &Event, out: &mut Vec<u8>) {
    let Event::Text { text, logprob } = event else {
        out.extend(event_line(event).unwrap_or_default());
        return;
    };
    let (mut rest, mut logprob) = (text.as_str(), logprob.as_deref());
    while !rest.is_empty() || logprob.is_some() {
        let (n, line) = token_line(rest, logprob.take());
        out.extend(line);
        rest = &rest[n..];
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
    use serde_json::json;

    use super::*;
    use crate::base::Token;
    use crate::base::limits::N_TOP_LOGPROB_MAX;
    use crate::base::rng::Rng;
    use crate::engine::{Code, Fault};

    #[test]
    fn lines_fit_a_pipe_and_join_to_the_text() {
        let mut rng = Rng::new(3);
        let alphabet = ['a', '"', '\n', '\u{1}', '\u{7f}', 'é', '🙂', '\\', '\u{2028}', '\0'];
        for n in [0, 1, 700, 4068, 4069, 20_000] {
            let text: String = (0..n).map(|_| alphabet[rng.below(alphabet.len())]).collect();
            let mut out = Vec::new();
            event_lines(&Event::Text { text: text.clone(), logprob: None }, &mut out);
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
        assert_eq!(token_line(&plain, None).1.len(), EVENT_BYTES_MAX);
    }

    #[test]
    fn the_likeliest_tokens_fit_a_line_and_come_once() {
        let one = |id, byte| Likely { token: Token(id), logprob: -12.345_678, bytes: vec![byte; 300] };
        for byte in [b'a', b'"', 1, 0xff] {
            let top = (0..N_TOP_LOGPROB_MAX).map(|i| one(u32::MAX - i, byte)).collect();
            let logprob = Some(Box::new(Logprob { drawn: one(7, byte), top }));
            let mut out = Vec::new();
            let text = "\u{1}".repeat(2_000);
            event_lines(&Event::Text { text: text.clone(), logprob: logprob.clone() }, &mut out);
            let lines: Vec<&[u8]> = out.split_inclusive(|&b| b == b'\n').collect();
            assert!(lines.iter().all(|line| line.len() <= EVENT_BYTES_MAX));
            let values: Vec<Value> = lines.iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
            assert_eq!(values.iter().filter(|v| v["ids"] == json!([7])).count(), 1);
            assert_eq!(values[0]["top"].as_array().unwrap().len(), 20);
            assert_eq!(values[0]["top"][1]["id"], u32::MAX - 1);
            assert_eq!(values.iter().map(|v| v["text"].as_str().unwrap()).collect::<String>(), text);
            out.clear();
            event_lines(&Event::Text { text: String::new(), logprob }, &mut out);
            assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1, "a token without text has its line");
        }
    }

    #[test]
    fn the_longest_error_fits_a_line() {
        let nasty = "\u{1}".repeat(100_000);
        let fault = Fault::new(Code::UnsupportedField, nasty.clone()).at(nasty).retry_after(u64::MAX);
        let fault = fault.room(u64::MAX, u64::MAX);
        assert!(event_line(&Event::Failed(fault)).unwrap().len() <= EVENT_BYTES_MAX);
    }
}
