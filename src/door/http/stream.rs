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
use crate::door::{done, wire};
use crate::engine::{Code, Done, Engine, Event, Fault, GenerationId, Logprob, Usage};
use crate::os::clock;

use super::body::{Body, json_text};
use super::choices::Choices;
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

/// Prints the events of the choices of one request.
#[derive(Debug)]
pub(super) struct Printer {
    pub(super) shape: Shape,
    pub(super) framing: Framing,
    /// The usage chunk is wanted.
    pub(super) usage: bool,
    engine: Engine,
    id: GenerationId,
    created: u64,
    model: String,
    fingerprint: String,
    comment: String,
    said: Vec<Said>,
    /// Of the choices that have ended.
    used: Usage,
}

/// What was printed of a choice.
#[derive(Clone, Debug, Default)]
struct Said {
    begun: bool,
    ended: bool,
    /// Characters of the answer.
    n_chars: usize,
}

impl Printer {
    /// Of a request that `engine` answers `n` times.
    pub(super) fn new(
        engine: &Engine,
        id: GenerationId,
        shape: Shape,
        framing: Framing,
        usage: bool,
        n: usize,
    ) -> Self {
        Self {
            shape,
            framing,
            usage,
            engine: engine.clone(),
            id,
            created: clock::unix_s(),
            model: String::new(),
            fingerprint: String::new(),
            comment: ": admission\n\n".into(),
            said: vec![Said::default(); n],
            used: Usage::default(),
        }
    }

    /// Prints `event` of choice `index`.
    fn print(&mut self, index: usize, event: &Event, out: &mut Vec<u8>) {
        if let Event::Failed(fault) = event {
            self.engine.metrics().error(fault.code);
        }
        if self.shape == Shape::Native {
            return wire::event_lines(event, out);
        }
        match event {
            Event::Admitted(admitted) => {
                self.answers(&admitted.model);
                self.begin(index, out);
            }
            Event::Queued { position } => self.say(format!(": queued {position}\n\n"), out),
            Event::Loading { done, total, .. } => self.say(format!(": loading {done}/{total}\n\n"), out),
            Event::Prefill { done, total, .. } => self.say(format!(": prefill {done}/{total}\n\n"), out),
            Event::Text { text, logprob } => {
                self.begin(index, out);
                self.comment = ": decode\n\n".into();
                let n_chars = self.said.get(index).map_or(0, |said| said.n_chars);
                let logprobs = match (logprob, self.shape) {
                    (None, _) => Value::Null,
                    (Some(one), Shape::Completion) => logprobs::completion([(n_chars, &**one)]),
                    (Some(one), _) => logprobs::chat([&**one]),
                };
                if let Some(said) = self.said.get_mut(index) {
                    said.n_chars = n_chars.saturating_add(text.chars().count());
                }
                let choice = self.choice(index, Some(text), logprobs, Value::Null);
                self.chunk(json!([choice]), Value::Null, None, out);
            }
            // Of a load, which has no such shape.
            Event::Loaded { .. } | Event::Embedded(_) => {}
            Event::Done(done) => self.end(index, done, out),
            Event::Failed(fault) => self.data(&error::body(fault), out),
        }
    }

    /// The model `id` answers. Its name with size and time of its file, build and kernels: what the promise of a seed
    /// covers.
    fn answers(&mut self, id: &str) {
        if self.model != id {
            let (version, tier) = (env!("CARGO_PKG_VERSION"), self.engine.tier());
            let models = self.engine.models();
            let file = models.iter().find(|info| info.id == id).map(|info| (info.size_bytes, info.created));
            let (size, created) = file.unwrap_or_default();
            self.fingerprint = format!("sotto-{version}-{tier}-{id}-{size}-{created}");
            id.clone_into(&mut self.model);
        }
    }

    /// The first chunk of a choice of a chat names the speaker.
    fn begin(&mut self, index: usize, out: &mut Vec<u8>) {
        let begun = self.said.get_mut(index).is_none_or(|said| std::mem::replace(&mut said.begun, true));
        if !begun && self.shape == Shape::Chat {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice = json!({ "index": index, "delta": delta, "finish_reason": null });
            self.chunk(json!([choice]), Value::Null, None, out);
        }
    }

    /// Finish chunk, behind the last of them usage chunk and `[DONE]`: each of its own, clients count on it.
    fn end(&mut self, index: usize, done: &Done, out: &mut Vec<u8>) {
        self.begin(index, out);
        let choice = self.choice(index, None, Value::Null, done.stop_detail.reason().as_str().into());
        self.chunk(json!([choice]), Value::Null, Some(done), out);
        add(&mut self.used, index, &done.usage);
        if let Some(said) = self.said.get_mut(index) {
            said.ended = true;
        }
        if self.said.iter().any(|said| !said.ended) {
            return;
        }
        if self.usage {
            self.chunk(json!([]), done::usage(&self.used), None, out);
        }
        if self.framing == Framing::Sse {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }

    fn choice(&self, index: usize, text: Option<&str>, logprobs: Value, finish_reason: Value) -> Value {
        if self.shape == Shape::Completion {
            let text = text.unwrap_or_default();
            return json!({ "index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs });
        }
        let delta = text.map_or_else(|| json!({}), |text| json!({ "content": text }));
        let mut choice = json!({ "index": index, "delta": delta, "finish_reason": finish_reason });
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
            "system_fingerprint": self.fingerprint,
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

/// Counts what choice `index` used: the prompt once.
fn add(used: &mut Usage, index: usize, usage: &Usage) {
    let completion_tokens = used.completion_tokens.saturating_add(usage.completion_tokens);
    let prompt = if index == 0 { usage } else { &*used };
    *used = Usage { completion_tokens, ..*prompt };
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
    choices: Choices,
    printer: Printer,
    out: Vec<u8>,
    keepalive: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Stream {
    /// Bytes to send now; `None` after the last.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.choices.is_over() {
            let Poll::Ready((index, event)) = self.choices.poll_next(cx) else { break };
            self.printer.print(index, &event, &mut self.out);
        }
        if self.out.is_empty() && !self.choices.is_over() {
            if self.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.printer.say_again(&mut self.out);
        }
        let next = Instant::now() + self.keepalive;
        self.silence.as_mut().reset(next);
        if self.out.is_empty() && !self.choices.is_over() {
            // Nothing to say without comments; the timer wakes again.
            let _ = self.silence.as_mut().poll(cx);
            return Poll::Pending;
        }
        let bytes = std::mem::take(&mut self.out);
        Poll::Ready((!bytes.is_empty()).then(|| bytes.into()))
    }

    pub(super) fn is_over(&self) -> bool {
        self.choices.is_over() && self.out.is_empty()
    }
}

/// Answers by a stream, once an event of which `begins` is true has come, or all, or `keepalive` has passed.
///
/// # Errors
/// What ended the generation before.
pub(super) async fn streamed(
    mut choices: Choices,
    mut printer: Printer,
    keepalive: Duration,
    begins: impl Fn(&Event) -> bool,
) -> Result<Response<Body>, Fault> {
    let deadline = Instant::now() + keepalive;
    let mut out = Vec::new();
    // States come at most a few a second, so what is held back stays small.
    while let Ok((index, event)) = timeout_at(deadline, choices.next()).await {
        if let Event::Failed(fault) = event {
            return Err(fault);
        }
        printer.print(index, &event, &mut out);
        if choices.is_over() || begins(&event) {
            break;
        }
    }
    if out.is_empty() {
        printer.say_again(&mut out);
    }
    let framing = printer.framing;
    let silence = Box::pin(sleep(keepalive));
    let mut response = Response::new(Body::stream(Stream { choices, printer, out, keepalive, silence }));
    let content_type = match framing {
        Framing::Sse => "text/event-stream",
        Framing::Ndjson => "application/x-ndjson",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A choice of which more is to come.
#[derive(Default)]
struct Choice {
    answer: String,
    /// Each with the number of characters before it.
    told: Vec<(usize, Logprob)>,
    n_chars: usize,
    done: Option<Done>,
}

impl Choice {
    fn print(&self, index: usize, shape: Shape, done: &Done) -> Value {
        let finish_reason = done.stop_detail.reason().as_str();
        let logprobs = match (self.told.is_empty(), shape) {
            (true, _) => Value::Null,
            (false, Shape::Completion) => logprobs::completion(self.told.iter().map(|(at, one)| (*at, one))),
            (false, _) => logprobs::chat(self.told.iter().map(|(_, one)| one)),
        };
        let mut choice = json!({ "index": index, "finish_reason": finish_reason, "logprobs": logprobs });
        let (key, said) = match shape {
            Shape::Completion => ("text", json!(self.answer)),
            _ => ("message", json!({ "role": "assistant", "content": self.answer })),
        };
        choice[key] = said;
        choice
    }
}

/// Answers at once when all is known.
///
/// # Errors
/// What ended one of the choices.
pub(super) async fn whole(mut choices: Choices, mut printer: Printer) -> Result<Response<Body>, Fault> {
    let mut made: Vec<Choice> = Vec::new();
    made.resize_with(printer.said.len(), Choice::default);
    let mut n_told: usize = 0;
    while !choices.is_over() {
        let (index, event) = choices.next().await;
        let Some(choice) = made.get_mut(index) else { continue };
        match event {
            Event::Text { text, logprob } => {
                if let Some(one) = logprob {
                    n_told = n_told.saturating_add(one.top.len()).saturating_add(1);
                    choice.told.push((choice.n_chars, *one));
                }
                if n_told > N_TOLD_MAX {
                    let message =
                        format!("logprobs: the answer tells more than {N_TOLD_MAX} tokens; ask for a stream");
                    return Err(Fault::new(Code::BodyTooLarge, message).at("logprobs"));
                }
                choice.n_chars = choice.n_chars.saturating_add(text.chars().count());
                choice.answer += &text;
            }
            Event::Done(done) => {
                add(&mut printer.used, index, &done.usage);
                choice.done = Some(done);
            }
            Event::Failed(fault) => return Err(fault),
            _ => {}
        }
    }
    let mut list = Vec::new();
    let mut sotto = Value::Null;
    for (index, choice) in made.iter().enumerate() {
        let Some(done) = &choice.done else { continue };
        if index == 0 {
            printer.answers(&done.model);
            sotto = extras(done);
        }
        list.push(choice.print(index, printer.shape, done));
    }
    let chat = printer.shape == Shape::Chat;
    let body = json!({
        "id": printer.id.as_str(),
        "object": if chat { "chat.completion" } else { "text_completion" },
        "created": printer.created,
        "model": printer.model,
        "system_fingerprint": printer.fingerprint,
        "choices": list,
        "usage": done::usage(&printer.used),
        "sotto": sotto,
    });
    Ok(json_text(format!("{body}\n")))
}
