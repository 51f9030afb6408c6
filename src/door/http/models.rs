//! Models: what is known of them, and loading and unloading by name.

use std::time::Duration;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::base::limits::NAME_SHOWN_BYTES_MAX;
use crate::door::fields::{Fields, parse_json};
use crate::door::id::cut;
use crate::door::told;
use crate::door::{admins, ask};
use crate::engine::{Caller, Code, Event, Fault, GenerationId, LoadRequest, ModelInfo};

use super::HttpDoor;
use super::body::{self, Body};
use super::choices::Choices;
use super::stream::{Framing, Printer, Shape, streamed};

pub(super) fn list(door: &HttpDoor) -> Response<Body> {
    let data: Vec<Value> = door.engine.models().iter().map(|info| shown(door, info)).collect();
    body::json_text(format!("{}\n", json!({ "object": "list", "data": data })))
}

/// One model, whose header is read for it if nobody has looked at it yet.
pub(super) async fn one(door: &HttpDoor, caller: Caller, name: &str) -> Result<Response<Body>, Fault> {
    let id = known(door, name)?;
    told::describe(&door.engine, caller.uid, std::iter::once(id.clone())).await;
    let models = door.engine.models();
    // It may be forgotten meanwhile.
    let gone = || Fault::new(Code::UnknownModel, format!("model {id} has just gone")).at("id");
    let info = models.iter().find(|info| info.id == id).ok_or_else(gone)?;
    Ok(body::json_text(format!("{}\n", shown(door, info))))
}

fn shown(door: &HttpDoor, info: &ModelInfo) -> Value {
    let stands_for = |alias: &String| door.engine.resolve(Some(alias)).as_deref() == Some(info.id.as_str());
    let aliases: Vec<String> = door.engine.aliases().into_iter().filter(stands_for).collect();
    let mut sotto = json!({
        "state": info.state.as_str(),
        "pinned": info.pinned,
        "aliases": aliases,
        "size_bytes": info.size_bytes,
    });
    if let (Some(code), Some(sotto)) = (info.error, sotto.as_object_mut()) {
        sotto.insert("error".into(), code.as_str().into());
    }
    if let (Some(header), Some(sotto)) = (&info.header, sotto.as_object_mut()) {
        let all = [("generate", header.generates), ("chat", header.chat), ("embed", header.embeds)];
        let capabilities: Vec<&str> = all.into_iter().filter(|(_, can)| *can).map(|(what, _)| what).collect();
        sotto.insert("architecture".into(), header.architecture.as_str().into());
        sotto.insert("quantization".into(), header.quantization.as_str().into());
        sotto.insert("parameters".into(), header.parameters.into());
        sotto.insert("context".into(), header.n_ctx.into());
        sotto.insert("context_max".into(), header.n_ctx_train.into());
        sotto.insert("capabilities".into(), json!(capabilities));
    }
    json!({ "id": info.id, "object": "model", "created": info.created, "owned_by": "local", "sotto": sotto })
}

/// The id that the part `name` of a path stands for.
fn known(door: &HttpDoor, name: &str) -> Result<String, Fault> {
    let name = cut(&percent_decoded(name), NAME_SHOWN_BYTES_MAX);
    door.engine.known(Some(&name)).map_err(|fault| fault.at("id"))
}

/// How a model is to be loaded: whether it is pinned, and its positions ([`ask::load`]).
type How = (bool, Option<usize>);

/// How a body, which may be empty, wants a model loaded.
pub(super) fn how(bytes: &[u8], lenient: bool) -> Result<(How, Vec<String>), Fault> {
    let body = if bytes.is_empty() { json!({}) } else { parse_json(bytes)? };
    let mut fields = Fields::new(body, "", lenient)?;
    Ok((ask::load(&mut fields)?, fields.finish()?))
}

/// Loads a model; tells of it by events.
pub(super) async fn load(
    door: &HttpDoor,
    caller: Caller,
    id: &GenerationId,
    name: &str,
    (pin, n_ctx): How,
) -> Result<Response<Body>, Fault> {
    admins::check(caller.uid, &door.engine, "load models")?;
    let request = LoadRequest { id: id.clone(), caller, model: known(door, name)?, pin, n_ctx };
    let printer = Printer::new(&door.engine, id.clone(), Shape::Native, Framing::Ndjson, false, 1);
    let keepalive = Duration::from_secs(door.options().keepalive_s);
    let begins = |event: &Event| matches!(event, Event::Loading { .. });
    streamed(Choices::load(&door.engine, request)?, printer, keepalive, begins).await
}

/// Unloads a model; `query` may ask for force.
pub(super) async fn unload(
    door: &HttpDoor,
    caller: Caller,
    name: &str,
    query: Option<&str>,
) -> Result<Response<Body>, Fault> {
    admins::check(caller.uid, &door.engine, "unload models")?;
    let force = match query.unwrap_or_default() {
        "" | "force=false" => false,
        "force=true" => true,
        other => {
            let got = cut(other, NAME_SHOWN_BYTES_MAX);
            let message =
                format!("got the query {}, allowed are force=true and force=false", got.escape_debug());
            return Err(Fault::new(Code::InvalidValue, message).at("force"));
        }
    };
    let id = known(door, name)?;
    told::unload(&door.engine, &id, force).await?;
    Ok(body::none(StatusCode::NO_CONTENT))
}

/// `%41` as `A`; what is no such escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => {
                let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
                digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = after.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_percent_decoded() {
        for (text, name) in [("a%2Fb", "a/b"), ("%c3%A9", "é"), ("%", "%"), ("%4", "%4"), ("%zz1", "%zz1")] {
            assert_eq!(percent_decoded(text), name);
        }
    }
}
