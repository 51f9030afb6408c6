//! Which models the daemon has loaded.

use std::cell::Cell;
use std::ops::ControlFlow;

use clap::Args;
use serde_json::Value;

use super::show::{self, Show, Step};
use super::{Failure, SocketArgs, backend};
use crate::door::client::ClientEvent;

#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// Id or alias of one of the daemon's models
    model: String,
    /// Print the last event, one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnloadArgs {
    /// Id or alias of one of the daemon's models
    model: String,
    /// Even while it answers somebody: those answers end
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Loads a model, showing how far it is.
pub(super) fn load(args: &LoadArgs) -> Result<(), Failure> {
    let (client, runtime) = args.socket.client()?;
    let mut show = Show::silent();
    show.step(Step::Waiting, 0, 0);
    let end: Cell<Option<Result<Value, Failure>>> = Cell::new(None);
    let called = runtime.block_on(client.load(&args.model, &mut |event| {
        match event {
            ClientEvent::Queued { position } => show.step(Step::Queued, position, 0),
            ClientEvent::Loading { done, total } => show.step(Step::Loading, done, total),
            ClientEvent::Loaded(event) => end.set(Some(Ok(event))),
            ClientEvent::Error(error) => end.set(Some(Err(backend::told(error)))),
            _ => {}
        }
        ControlFlow::Continue(())
    }));
    show.finish();
    called.map_err(backend::refused)?;
    let loaded = end.into_inner().unwrap_or_else(|| Err(Failure::internal("the load has no end")))?;
    if args.json {
        return show::json(&loaded);
    }
    let ms = loaded.get("load_ms").and_then(Value::as_u64);
    let after = ms.map(|ms| format!(" in {}", show::duration(ms))).unwrap_or_default();
    let model = loaded.get("model").and_then(Value::as_str).unwrap_or(&args.model);
    show::note(&format!("model {model} is loaded{after}"));
    Ok(())
}

/// Has the daemon let go of a model.
pub(super) fn unload(args: &UnloadArgs) -> Result<(), Failure> {
    let (client, runtime) = args.socket.client()?;
    runtime.block_on(client.unload(&args.model, args.force)).map_err(backend::refused)
}
