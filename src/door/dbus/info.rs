//! What is told of an answer besides its text, in the types of the bus.

use std::collections::BTreeMap;

use zbus::{OwnedVariant, Variant};

use crate::engine::{Done, Fault};

/// Names and values, in sorted order.
pub(super) type Info = BTreeMap<&'static str, OwnedVariant>;

pub(super) fn variant<'v>(value: impl Into<Variant<'v>>) -> Option<OwnedVariant> {
    // Only file descriptors can fail to be owned.
    value.into().try_into_owned().ok()
}

/// Those of `pairs` that have a value.
pub(super) fn collect(pairs: impl IntoIterator<Item = (&'static str, Option<OwnedVariant>)>) -> Info {
    pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What `Generate` tells of an answer.
pub(super) fn of(done: &Done) -> Info {
    let usage = BTreeMap::from([
        ("prompt_tokens", count(done.usage.prompt_tokens)),
        ("cached_tokens", count(done.usage.cached_tokens)),
        ("completion_tokens", count(done.usage.completion_tokens)),
        ("reasoning_tokens", 0),
    ]);
    let timings = BTreeMap::from([
        ("queue_ms", done.timings.queue_ms),
        ("load_ms", done.timings.load_ms),
        ("prefill_ms", done.timings.prefill_ms),
        ("decode_ms", done.timings.decode_ms),
        ("ttft_ms", done.timings.ttft_ms),
        ("engine_ms", done.timings.engine_ms),
    ]);
    collect([
        ("id", variant(done.id.as_str())),
        ("model", variant(done.model.as_str())),
        ("finish_reason", variant(done.stop_detail.reason().as_str())),
        ("stop_detail", variant(done.stop_detail.as_str())),
        ("seed", variant(done.seed)),
        ("usage", variant(usage)),
        ("timings", variant(timings)),
    ])
}

/// What is told of a failure besides its message: `need t` and `have t`, where something did not fit.
pub(super) fn details(fault: &Fault) -> Info {
    let numbers = fault.room.map(|room| [("need", variant(room.need)), ("have", variant(room.have))]);
    collect(numbers.into_iter().flatten())
}
