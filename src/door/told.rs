//! What the engine tells by a call on a thread of its own, to be awaited. Whoever leaves meanwhile is not told.

use tokio::sync::oneshot::{self, Receiver};

use crate::engine::{Code, Engine, Fault, Text, Tokenized};

async fn told<T>(receiver: Receiver<Result<T, Fault>>) -> Result<T, Fault> {
    receiver.await.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the engine stopped")))
}

/// As [`Engine::tokenize`].
pub(super) async fn tokenize(
    engine: &Engine,
    uid: u32,
    model: Option<String>,
    text: Text,
) -> Result<Tokenized, Fault> {
    let (tell, receiver) = oneshot::channel();
    engine.tokenize(uid, model, text, |tokenized| drop(tell.send(tokenized)))?;
    told(receiver).await
}

/// As [`Engine::unload`].
pub(super) async fn unload(engine: &Engine, model: &str, force: bool) -> Result<(), Fault> {
    let (tell, receiver) = oneshot::channel();
    engine.unload(model, force, |how| drop(tell.send(how)))?;
    told(receiver).await
}

/// As [`Engine::describe`], of several at once; a model that cannot be read now is told of without its header.
pub(super) async fn describe(engine: &Engine, uid: u32, ids: impl Iterator<Item = String>) {
    let asked: Vec<Receiver<()>> = ids
        .filter_map(|id| {
            let (tell, receiver) = oneshot::channel();
            engine.describe(uid, &id, || _ = tell.send(())).ok().map(|()| receiver)
        })
        .collect();
    for receiver in asked {
        let _ = receiver.await;
    }
}
