//! `GET /sotto/v1/status`: what the daemon does now. Numbers, names of models, and of generations only the caller's own.

use hyper::Response;
use serde_json::{Value, json};

use super::HttpDoor;
use super::body::{self, Body};
use crate::door::embed::FEATURES;
use crate::engine::{Caller, Engine, ModelState, Stage, Watched};
use crate::os::memory::Memory;
use crate::os::{process, thermal};

pub(super) fn status(door: &HttpDoor, caller: Caller) -> Response<Body> {
    body::json_text(format!("{}\n", object(&door.engine, caller.uid)))
}

fn object(engine: &Engine, uid: u32) -> Value {
    let (status, state, tree) = (engine.status(), engine.state(), &engine.options().tree);
    let (generations, callers) = engine.watch(uid);
    let mut models: Vec<Value> = Vec::new();
    let mut loaded = Vec::new();
    for info in engine.models() {
        if info.state == ModelState::Loaded {
            loaded.push(info.id.clone());
        }
        let (mut weights, mut kv) = (0, 0);
        engine.metrics().each_model(|id, metrics| {
            if id == info.id {
                (weights, kv) = (metrics.weight_bytes.get(), metrics.kv_bytes.get());
            }
        });
        let mut model = json!({
            "id": info.id,
            "state": info.state.as_str(),
            "pinned": info.pinned,
            "size_bytes": info.size_bytes,
            "weights_bytes": weights,
            "kv_bytes": kv,
        });
        if let (Some(code), Some(model)) = (info.error, model.as_object_mut()) {
            model.insert("error".into(), code.as_str().into());
        }
        models.push(model);
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": state.as_str(),
        "state_reason": state.reason(),
        "default_model": engine.resolve(None).unwrap_or_default(),
        "queue_length": status.queue_length,
        "queue": { "interactive": status.queue_interactive, "background": status.queue_background },
        "active_generations": status.active_generations,
        "callers": callers,
        "loaded_models": loaded,
        "models": models,
        "generations": generations.iter().map(generation).collect::<Vec<_>>(),
        "memory": {
            "resident_bytes": process::usage().map(|usage| usage.rss_bytes),
            "available_bytes": Memory::read(tree).map(|memory| memory.available),
        },
        "temperature_c": thermal::temperature_c(tree),
        "tier": engine.tier(),
        "threads": engine.threads(),
        "features": FEATURES,
    })
}

fn generation(seen: &Watched) -> Value {
    let known = |n: usize| (seen.stage != Stage::Admission).then_some(n);
    // A tenth of a token is as much as anybody reads.
    let rate = seen.tokens_per_s.map(|rate| (rate * 10.0).round() / 10.0);
    json!({
        "id": seen.id.as_str(),
        "uid": seen.uid,
        "model": seen.model,
        "class": seen.class.as_str(),
        "state": seen.stage.as_str(),
        "prompt_tokens": known(seen.prompt_tokens),
        "prompt_done": known(seen.prompt_done),
        "completion_tokens": seen.completion_tokens,
        "tokens_per_s": rate,
        "prefill_left_ms": seen.prefill_left_ms,
        "elapsed_ms": seen.elapsed_ms,
    })
}
