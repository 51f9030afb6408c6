//! The end of an answer as JSON, in the words of both doors.

use serde_json::{Value, json};

use crate::engine::{Done, Timings, Usage};

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
    })
}
