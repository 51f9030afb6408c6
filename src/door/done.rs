//! The end of an answer, or of the attempt, as JSON in the words of both doors.

use serde_json::{Value, json};

use crate::engine::{Done, Fault, Timings, Usage};

/// The fields of the event `done`.
#[must_use]
pub fn fields(done: &Done) -> Value {
    json!({
        "id": done.id.as_str(),
        "model": done.model,
        "finish_reason": done.stop_detail.reason().as_str(),
        "stop_detail": done.stop_detail.as_str(),
        "seed": done.seed,
        "usage": usage(&done.usage),
        "timings": timings(&done.timings),
    })
}

/// The fields of the event `error`: `code` and `message`; `param`, `retry_after_ms`, `need` and `have` where they say
/// something.
#[must_use]
pub fn error_fields(fault: &Fault) -> Value {
    let more = [
        ("param", fault.param.as_deref().map(Value::from)),
        ("retry_after_ms", fault.retry_after_ms.map(Value::from)),
        ("need", fault.room.map(|room| room.need.into())),
        ("have", fault.room.map(|room| room.have.into())),
    ];
    let always =
        [("code", Some(fault.code.as_str().into())), ("message", Some(fault.message.as_str().into()))];
    let fields = always.into_iter().chain(more);
    fields.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<serde_json::Map<_, _>>().into()
}

/// Token counts in the OpenAI shape.
pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// Times, in milliseconds with three decimals.
pub(super) fn timings(t: &Timings) -> Value {
    let ms = |x: f64| (x * 1000.0).round() / 1000.0;
    json!({
        "queue_ms": ms(t.queue_ms),
        "load_ms": ms(t.load_ms),
        "prefill_ms": ms(t.prefill_ms),
        "decode_ms": ms(t.decode_ms),
        "ttft_ms": ms(t.ttft_ms),
        "engine_ms": ms(t.engine_ms),
    })
}
