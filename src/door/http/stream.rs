//! An answer as it comes: events in one of the shapes (native, chat, completion) and framings (SSE, NDJSON).
//!
//! The status is held back until the first text or the keep-alive time, so that a refusal keeps its own. After that
//! a failure is the last line of the body, and `[DONE]` means success.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use crate::base::limits::N_TOLD_MAX;
use crate::door::queue::Generation;
use crate::door::{done, wire};
use crate::engine::{Code, Done, Event, Fault, GenerationId, Logprob};
use crate::os::clock;

use super::body::{Body, json_text};
use super::{error, logprobs};

/// Whose shape an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The events themselves.
    Native,
    /// `chat.completion`.
    Chat,
    /// `text_completion`.
    Completion,
}

/// How lines of a stream are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON value per line.
    Ndjson,
}

/// Prints the events of one generation.
#[derive(Debug)]
pub(super) struct Printer {
    pub(super) shape: Shape,
    pub(super) framing: Framing,
    /// The usage chunk is wanted.
    pub(super) usage: bool,
    id: GenerationId,
    created: u64,
    model: String,
    begun: bool,
    comment: String,
    /// Characters of the answer so far.
    n_chars: usize,
}

impl Printer {
    pub(super) fn new(id: GenerationId, shape: Shape, framing: Framing, usage: bool) -> Self {
        let created = clock::unix_s();
        let comment = ": admission\n\n".to_owned();
        Self { shape, framing, usage, id, created, model: String::new(), begun: false, comment, n_chars: 0 }
    }

    /// Prints `event`.
    fn print(&mut self, event: &Event, out: &mut Vec<u8>) {
        if self.shape == Shape::Native {
            return wire::event_lines(event, out);
        }
        match event {
            Event::Admitted(admitted) => {
                self.model.clone_from(&admitted.model);
                self.begin(out);
            }
            Event::Queued { position } => self.say(format!(": queued {position}\n\n"), out),
            Event::Loading { done, total, .. } => self.say(format!(": loading {done}/{total}\n\n"), out),
            Event::Prefill { done, total, .. } => self.say(format!(": prefill {done}/{total}\n\n"), out),
            Event::Text { text, logprob } => {
                self.begin(out);
                self.comment = ": decode\n\n".into();
                let logprobs = match (logprob, self.shape) {
                    (None, _) => Value::Null,
                    (Some(one), Shape::Completion) => logprobs::completion([(self.n_chars, &**one)]),
                    (Some(one), _) => logprobs::chat([&**one]),
                };
                self.n_chars = self.n_chars.saturating_add(text.chars().count());
                let choice = self.choice(Some(text), logprobs, Value::Null);
                self.chunk(json!([choice]), Value::Null, None, out);
            }
            // Of a load, which has no such shape.
            Event::Loaded { .. } | Event::Embedded(_) => {}
            Event::Done(done) => self.end(done, out),
            Event::Failed(fault) => self.data(&error::body(fault), out),
        }
    }

    /// The first chunk of a chat names the speaker.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) && self.shape == Shape::Chat {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
            self.chunk(json!([choice]), Value::Null, None, out);
        }
    }

    /// Finish chunk, usage chunk, `[DONE]`: each of its own, clients count on it.
    fn end(&mut self, done: &Done, out: &mut Vec<u8>) {
        self.begin(out);
        let choice = self.choice(None, Value::Null, done.stop_detail.reason().as_str().into());
        self.chunk(json!([choice]), Value::Null, Some(done), out);
        if self.usage {
            self.chunk(json!([]), done::usage(&done.usage), None, out);
        }
        if self.framing == Framing::Sse {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }

    fn choice(&self, text: Option<&str>, logprobs: Value, finish_reason: Value) -> Value {
        if self.shape == Shape::Completion {
            let text = text.unwrap_or_default();
            return json!({ "index": 0, "text": text, "finish_reason": finish_reason, "logprobs": logprobs });
        }
        let delta = text.map_or_else(|| json!({}), |text| json!({ "content": text }));
        let mut choice = json!({ "index": 0, "delta": delta, "finish_reason": finish_reason });
        if let Some(choice) = choice.as_object_mut().filter(|_| !logprobs.is_null()) {
            choice.insert("logprobs".into(), logprobs);
        }
        choice
    }

    fn chunk(&self, choices: Value, usage: Value, done: Option<&Done>, out: &mut Vec<u8>) {
        let mut chunk = json!({
            "id": self.id.as_str(),
            "object": if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" },
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(chunk) = chunk.as_object_mut() {
            if self.usage {
                chunk.insert("usage".into(), usage);
            }
            if let Some(done) = done {
                chunk.insert("sotto".into(), extras(done));
            }
        }
        self.data(&chunk, out);
    }

    fn data(&self, value: &Value, out: &mut Vec<u8>) {
        match self.framing {
            Framing::Sse => out.extend(format!("data: {value}\n\n").into_bytes()),
            Framing::Ndjson => out.extend(format!("{value}\n").into_bytes()),
        }
    }

    /// A comment on the state, kept to be said again when nothing else is.
    fn say(&mut self, comment: String, out: &mut Vec<u8>) {
        self.comment = comment;
        self.say_again(out);
    }

    fn say_again(&self, out: &mut Vec<u8>) {
        if self.framing == Framing::Sse {
            out.extend_from_slice(self.comment.as_bytes());
        }
    }
}

/// What OpenAI's shapes have no place for.
fn extras(done: &Done) -> Value {
    json!({
        "seed": done.seed,
        "stop_detail": done.stop_detail.as_str(),
        "timings": done::timings(&done.timings),
    })
}

/// The body of a streamed answer.
pub(super) struct Stream {
    generation: Generation,
    printer: Printer,
    out: Vec<u8>,
    over: bool,
    keepalive: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Stream {
    /// Bytes to send now; `None` after the last.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.over {
            let Poll::Ready(event) = self.generation.poll_next(cx) else { break };
            self.over = event.is_terminal();
            self.printer.print(&event, &mut self.out);
        }
        if self.out.is_empty() && !self.over {
            if self.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.printer.say_again(&mut self.out);
        }
        let next = Instant::now() + self.keepalive;
        self.silence.as_mut().reset(next);
        if self.out.is_empty() && !self.over {
            // Nothing to say without comments; the timer wakes again.
            let _ = self.silence.as_mut().poll(cx);
            return Poll::Pending;
        }
        let bytes = std::mem::take(&mut self.out);
        Poll::Ready((!bytes.is_empty()).then(|| bytes.into()))
    }

    pub(super) fn is_over(&self) -> bool {
        self.over && self.out.is_empty()
    }
}

/// Answers by a stream, once an event of which `begins` is true has come, or all, or `keepalive` has passed.
///
/// # Errors
/// What ended the generation before.
pub(super) async fn streamed(
    mut generation: Generation,
    mut printer: Printer,
    keepalive: Duration,
    begins: impl Fn(&Event) -> bool,
) -> Result<Response<Body>, Fault> {
    let deadline = Instant::now() + keepalive;
    let mut out = Vec::new();
    let mut over = false;
    // States come at most a few a second, so what is held back stays small.
    while let Ok(event) = timeout_at(deadline, generation.next()).await {
        if let Event::Failed(fault) = event {
            return Err(fault);
        }
        over = event.is_terminal();
        printer.print(&event, &mut out);
        if over || begins(&event) {
            break;
        }
    }
    if out.is_empty() {
        printer.say_again(&mut out);
    }
    let framing = printer.framing;
    let silence = Box::pin(sleep(keepalive));
    let mut response =
        Response::new(Body::stream(Stream { generation, printer, out, over, keepalive, silence }));
    let content_type = match framing {
        Framing::Sse => "text/event-stream",
        Framing::Ndjson => "application/x-ndjson",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Answers at once when all is known.
///
/// # Errors
/// What ended the generation.
pub(super) async fn whole(mut generation: Generation, printer: Printer) -> Result<Response<Body>, Fault> {
    let mut answer = String::new();
    // Each with the number of characters before it.
    let mut told: Vec<(usize, Logprob)> = Vec::new();
    let (mut n_chars, mut n_told): (usize, usize) = (0, 0);
    let done = loop {
        match generation.next().await {
            Event::Text { text, logprob } => {
                if let Some(one) = logprob {
                    n_told = n_told.saturating_add(one.top.len()).saturating_add(1);
                    told.push((n_chars, *one));
                }
                if n_told > N_TOLD_MAX {
                    let message =
                        format!("logprobs: the answer tells more than {N_TOLD_MAX} tokens; ask for a stream");
                    return Err(Fault::new(Code::BodyTooLarge, message).at("logprobs"));
                }
                n_chars = n_chars.saturating_add(text.chars().count());
                answer += &text;
            }
            Event::Done(done) => break done,
            Event::Failed(fault) => return Err(fault),
            _ => {}
        }
    };
    let finish_reason = done.stop_detail.reason().as_str();
    let chat = printer.shape == Shape::Chat;
    let logprobs = match (told.is_empty(), chat) {
        (true, _) => Value::Null,
        (false, true) => logprobs::chat(told.iter().map(|(_, one)| one)),
        (false, false) => logprobs::completion(told.iter().map(|(at, one)| (*at, one))),
    };
    let choice = if chat {
        let message = json!({ "role": "assistant", "content": answer });
        json!({ "index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs })
    } else {
        json!({ "index": 0, "text": answer, "finish_reason": finish_reason, "logprobs": logprobs })
    };
    let body = json!({
        "id": printer.id.as_str(),
        "object": if chat { "chat.completion" } else { "text_completion" },
        "created": printer.created,
        "model": done.model,
        "choices": [choice],
        "usage": done::usage(&done.usage),
        "sotto": extras(&done),
    });
    Ok(json_text(format!("{body}\n")))
}
