//! Which answer belongs to which path.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode, Version};
use serde_json::json;

use crate::base::limits::{MESSAGE_BYTES_MAX, N_CHOICE_MAX, NAME_SHOWN_BYTES_MAX};
use crate::door::ask;
use crate::door::fields::{Fields, parse_json};
use crate::door::id::{after, cut, parse_id};
use crate::door::told;
use crate::engine::{Caller, Code, Event, Fault, GenerationId, RequestsLeft, Text, Tokenized};

use super::body::{self, Body};
use super::choices::Choices;
use super::socket::Phase;
use super::stream::{Framing, Printer, Shape, streamed, whole};
use super::{HttpDoor, embeddings, error, metrics, models, openai, status};

/// Generation id of an answer, or of the request if there is no generation.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Fields that were ignored for a lenient caller.
const IGNORED: HeaderName = HeaderName::from_static("sotto-ignored");
/// Requests that a minute allows, those left of them, and when all are there again: where the uid has a limit.
const RATE: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
/// How strict a caller wants us to be (RFC 7240).
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Answers one request; a failure is an answer too.
pub(super) async fn answer(
    door: Arc<HttpDoor>,
    caller: Caller,
    phase: Arc<Phase>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let id = crate::door::id::new_id();
    phase.busy(&id);
    let is_old = request.version() == Version::HTTP_10;
    if is_old {
        phase.last();
    }
    let (metrics, name) = (door.engine.metrics(), name(request.uri().path()));
    let sound = host(request.version(), request.headers()).and_then(|()| framing(request.headers()));
    let answered = match sound {
        Ok(()) => route(&door, caller, &id, request).await,
        Err(fault) => Err(fault),
    };
    let fault = match &answered {
        Ok(response) if response.status() == StatusCode::METHOD_NOT_ALLOWED => Some(Code::MethodNotAllowed),
        Ok(_) => None,
        Err(fault) => Some(fault.code),
    };
    fault.into_iter().for_each(|code| metrics.error(code));
    metrics.request("http", name, fault.map_or("ok", Code::as_str));
    let mut response = answered.unwrap_or_else(|fault| error::response(&fault));
    if (GENERATING.contains(&name) || name == EMBEDDINGS)
        && let Some(left) = door.engine.requests_left(caller.uid)
    {
        rate_headers(response.headers_mut(), left);
    }
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if is_old {
        // Of an answer of 1.1 hyper would say that the connection stays.
        *response.version_mut() = Version::HTTP_10;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| body.ends_turn(phase)))
}

/// What the caller may still ask for.
fn rate_headers(headers: &mut HeaderMap, left: RequestsLeft) {
    let [limit, remaining, reset] = RATE;
    headers.insert(limit, left.limit.into());
    headers.insert(remaining, left.remaining.into());
    let seconds = format!("{}s", left.reset_ms.div_ceil(1_000));
    headers.extend(HeaderValue::try_from(seconds).ok().map(|value| (reset, value)));
}

/// Routes that are bounded by the minute.
const GENERATING: [&str; 4] =
    ["/v1/chat/completions", "/v1/completions", "/sotto/v1/generate", "/sotto/v1/tokenize"];
/// So is this one.
const EMBEDDINGS: &str = "/v1/embeddings";

/// Left out where the configuration says so.
const METRICS: &str = "/metrics";

/// The route that a path belongs to, as `/metrics` tells it.
fn name(path: &str) -> &'static str {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["v1", "chat", "completions"] => GENERATING[0],
        ["v1", "completions"] => GENERATING[1],
        ["sotto", "v1", "generate"] => GENERATING[2],
        ["v1", "models"] => "/v1/models",
        ["v1", "models", _] => "/v1/models/{id}",
        ["sotto", "v1", "generations", _] => "/sotto/v1/generations/{id}",
        ["sotto", "v1", "models", _, "load"] => "/sotto/v1/models/{id}/load",
        ["sotto", "v1", "models", _, "unload"] => "/sotto/v1/models/{id}/unload",
        ["sotto", "v1", "tokenize"] => GENERATING[3],
        ["v1", "embeddings"] => EMBEDDINGS,
        ["sotto", "v1", "status"] => "/sotto/v1/status",
        ["healthz"] => "/healthz",
        ["readyz"] => "/readyz",
        ["metrics"] => METRICS,
        _ => "unknown",
    }
}

/// Whether a host is named, as HTTP/1.1 wants it (RFC 9112, 3.2); which one does not matter on a socket.
fn host(version: Version, headers: &HeaderMap) -> Result<(), Fault> {
    let n = headers.get_all(HOST).iter().count();
    if n == 1 || (n == 0 && version < Version::HTTP_11) {
        return Ok(());
    }
    Err(Fault::new(Code::InvalidValue, format!("host: got {n} such headers, HTTP/1.1 has one")))
}

/// Whether the body comes in a way that is known. A Content-Length beside chunks is gone by here: the chunks count.
fn framing(headers: &HeaderMap) -> Result<(), Fault> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        let got = cut(&String::from_utf8_lossy(coding.as_bytes()), NAME_SHOWN_BYTES_MAX);
        let message = format!("transfer-encoding: got {}, allowed is chunked", got.escape_debug());
        return Err(Fault::new(Code::InvalidValue, message));
    }
    Ok(())
}

async fn route(
    door: &HttpDoor,
    caller: Caller,
    id: &GenerationId,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let allowed = match name(&path) {
        name if name == "unknown" || (name == METRICS && !door.options().metrics) => {
            let message =
                format!("{}: no such route; docs/http.md lists them", cut(&path, NAME_SHOWN_BYTES_MAX));
            return Err(Fault::new(Code::UnknownRoute, message));
        }
        "/sotto/v1/generations/{id}" => Method::DELETE,
        EMBEDDINGS | "/sotto/v1/models/{id}/load" | "/sotto/v1/models/{id}/unload" => Method::POST,
        name if GENERATING.contains(&name) => Method::POST,
        _ => Method::GET,
    };
    if request.method() != allowed {
        let message = format!(
            "{}: got {}, allowed is {allowed}",
            cut(&path, NAME_SHOWN_BYTES_MAX),
            cut(request.method().as_str(), 32)
        );
        let mut response = error::response(&Fault::new(Code::MethodNotAllowed, message));
        response.headers_mut().extend(HeaderValue::from_str(allowed.as_str()).ok().map(|v| (ALLOW, v)));
        return Ok(response);
    }
    match parts.as_slice() {
        ["v1", "chat", "completions"] => generate(door, caller, id, Shape::Chat, request).await,
        ["v1", "completions"] => generate(door, caller, id, Shape::Completion, request).await,
        ["sotto", "v1", "generate"] => generate(door, caller, id, Shape::Native, request).await,
        ["v1", "embeddings"] => embeddings(door, caller, request).await,
        ["sotto", "v1", "generations", id] => cancel(door, caller, id),
        ["v1", "models", name] => models::one(door, caller, name).await,
        ["v1", "models"] => Ok(models::list(door)),
        ["sotto", "v1", "models", name, "load"] => load(door, caller, id, name, request).await,
        ["sotto", "v1", "models", name, "unload"] => {
            let query = request.uri().query().map(str::to_owned);
            asked(door, request, no_body).await?;
            models::unload(door, caller, name, query.as_deref()).await
        }
        ["sotto", "v1", "tokenize"] => tokenize(door, caller, request).await,
        ["sotto", "v1", "status"] => Ok(status::status(door, caller)),
        ["metrics"] => {
            Ok(body::text("text/plain; version=0.0.4; charset=utf-8", metrics::page(&door.engine)))
        }
        ["readyz"] => door.engine.ready().map(|()| ok()),
        _ => healthz(door),
    }
}

/// Whether unknown and unsupported fields are to be ignored.
fn lenient(headers: &HeaderMap, otherwise: bool) -> bool {
    let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut wishes = preferences.flat_map(|value| value.split(',')).filter_map(|wish| wish.split_once('='));
    let handling = wishes.find(|(name, _)| name.trim().eq_ignore_ascii_case("handling"));
    let value = |how: &str| {
        let how = how.split(';').next().unwrap_or_default().trim();
        let quoted = how.strip_prefix('"').and_then(|how| how.strip_suffix('"'));
        quoted.unwrap_or(how).eq_ignore_ascii_case("lenient")
    };
    handling.map_or(otherwise, |(_, how)| value(how))
}

/// What a body asks for, as `read` finds it, the fields in it that are ignored, and the head.
async fn asked<T>(
    door: &HttpDoor,
    request: Request<Incoming>,
    read: impl FnOnce(&[u8], bool) -> Result<(T, Vec<String>), Fault>,
) -> Result<(T, Vec<String>, HeaderMap), Fault> {
    let (head, body) = request.into_parts();
    let read = match body::read(body, &door.options()).await {
        Ok(bytes) => read(&bytes, lenient(&head.headers, door.options().lenient)),
        Err(fault) => Err(fault),
    };
    let (asked, ignored) = read?;
    Ok((asked, ignored, head.headers))
}

/// Reads a body, starts the generation and answers as asked: whole, or as a stream.
async fn generate(
    door: &HttpDoor,
    caller: Caller,
    id: &GenerationId,
    shape: Shape,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let asked = asked(door, request, |bytes, lenient| read(shape, bytes, lenient)).await;
    let (asked, ignored, headers) = asked?;
    let openai::Asked { ask, input, input_field, stream, usage, n } = asked;
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let framing = if shape == Shape::Native || accepted.contains("application/x-ndjson") {
        Framing::Ndjson
    } else {
        Framing::Sse
    };
    let printer = Printer::new(&door.engine, id.clone(), shape, framing, usage, n);
    let choices = Choices::start(&door.engine, ask.request(id.clone(), caller, input, input_field), n)?;
    let response = if stream {
        let begins = |event: &Event| match event {
            Event::Text { .. } => true,
            // Who reads events sees how a long prompt is read; its model is loaded then, and it is not refused any more.
            Event::Prefill { done, total, .. } => shape == Shape::Native && done < total,
            _ => false,
        };
        streamed(choices, printer, Duration::from_secs(door.options().keepalive_s), begins).await?
    } else {
        whole(choices, printer).await?
    };
    Ok(tell_ignored(response, &ignored))
}

/// Texts as vectors.
async fn embeddings(
    door: &HttpDoor,
    caller: Caller,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let (asked, ignored, _) = asked(door, request, embeddings::read).await?;
    Ok(tell_ignored(embeddings::answer(&door.engine, caller, asked).await?, &ignored))
}

/// Loads the model `name`.
async fn load(
    door: &HttpDoor,
    caller: Caller,
    id: &GenerationId,
    name: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    no_query(request.uri().query())?;
    let (how, ignored, _) = asked(door, request, models::how).await?;
    Ok(tell_ignored(models::load(door, caller, id, name, how).await?, &ignored))
}

fn no_body(bytes: &[u8], _lenient: bool) -> Result<((), Vec<String>), Fault> {
    match bytes.len() {
        0 => Ok(((), Vec::new())),
        n => {
            let message =
                format!("got a body of {n} bytes, none is taken here: force=true stands in the query");
            Err(Fault::new(Code::InvalidValue, message))
        }
    }
}

fn no_query(query: Option<&str>) -> Result<(), Fault> {
    match query.unwrap_or_default() {
        "" => Ok(()),
        query => {
            let got = cut(query, NAME_SHOWN_BYTES_MAX);
            let message =
                format!("got the query {}, none is taken here: fields stand in the body", got.escape_debug());
            Err(Fault::new(Code::InvalidValue, message))
        }
    }
}

/// Tells which fields were passed over.
fn tell_ignored(mut response: Response<Body>, ignored: &[String]) -> Response<Body> {
    if !ignored.is_empty() {
        let mut names = String::new();
        for (i, name) in ignored.iter().enumerate() {
            let name = cut(name, NAME_SHOWN_BYTES_MAX);
            if names.len() + name.len() > MESSAGE_BYTES_MAX {
                names += &format!(", and {} more", ignored.len() - i);
                break;
            }
            names += if i == 0 { "" } else { ", " };
            names += &name;
        }
        let names: String = names.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
        response.headers_mut().extend(HeaderValue::from_str(&names).ok().map(|names| (IGNORED, names)));
    }
    response
}

/// What a body asks for, and the fields in it that are ignored.
fn read(shape: Shape, bytes: &[u8], lenient: bool) -> Result<(openai::Asked, Vec<String>), Fault> {
    let mut fields = Fields::new(parse_json(bytes)?, "", lenient)?;
    let asked = match shape {
        Shape::Native => {
            let (input, input_field) = ask::native_input(&mut fields)?;
            let ask = ask::native(&mut fields)?;
            openai::Asked { ask, input, input_field, stream: true, usage: false, n: 1 }
        }
        Shape::Chat => openai::chat(&mut fields)?,
        Shape::Completion => openai::completion(&mut fields)?,
    };
    Ok((asked, fields.finish()?))
}

/// Cancels by id, all choices of a request by that of the first. One that has ended, or never was, is no error; another uid's is left alone.
fn cancel(door: &HttpDoor, caller: Caller, id: &str) -> Result<Response<Body>, Fault> {
    let id = parse_id(id).ok_or_else(|| {
        Fault::new(Code::UnknownObject, "this is no id of a generation: it has 26 characters of 0-9, a-z")
            .at("id")
    })?;
    for i in 0..N_CHOICE_MAX {
        door.engine.cancel(&after(&id, i), caller.uid);
    }
    Ok(body::none(StatusCode::NO_CONTENT))
}

/// Alive or stuck: the watchdog's condition.
fn healthz(door: &HttpDoor) -> Result<Response<Body>, Fault> {
    if door.engine.moves() {
        return Ok(ok());
    }
    Err(Fault::new(Code::NotReady, "the engine has not moved for 15 s; see the journal of sottod"))
}

fn ok() -> Response<Body> {
    body::text("text/plain; charset=utf-8", "ok\n".into())
}

/// Token ids of a text or a conversation.
async fn tokenize(
    door: &HttpDoor,
    caller: Caller,
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault> {
    let asked = asked(door, request, text_to_tokenize).await;
    let ((model, text), ignored, _) = asked?;
    let Tokenized { tokens, prompt } = told::tokenize(&door.engine, caller.uid, model, text).await?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    let mut result = json!({ "tokens": ids, "count": ids.len() });
    if let Some(prompt) = prompt {
        result["prompt"] = prompt.into();
    }
    Ok(tell_ignored(body::json_text(format!("{result}\n")), &ignored))
}

/// What is to be tokenized, and the name of the model.
type ToTokenize = (Option<String>, Text);

/// The model's name and the text of a body, and the fields that were ignored.
fn text_to_tokenize(bytes: &[u8], lenient: bool) -> Result<(ToTokenize, Vec<String>), Fault> {
    let mut fields = Fields::new(parse_json(bytes)?, "", lenient)?;
    fields.not_yet(&ask::TOOLS_NOT_YET[..1])?;
    let model = fields.text("model")?;
    let flags = (fields.flag("add_special")?, fields.flag("parse_special")?);
    let text = match (fields.text("text")?, fields.list("messages")?, flags) {
        (Some(text), None, (add, parse)) => {
            Text::Plain { text, add_special: add.unwrap_or(false), parse_special: parse.unwrap_or(false) }
        }
        (None, Some(list), (None | Some(false), None | Some(false))) => {
            Text::Chat(ask::messages(list, "messages")?)
        }
        (None, Some(_), _) => {
            let message = "add_special, parse_special: go with text; messages stand in the model's template";
            return Err(Fault::new(Code::InvalidValue, message).at("messages"));
        }
        (None, None, _) => {
            return Err(Fault::new(Code::MissingField, "text: is missing; give text or messages").at("text"));
        }
        (Some(_), Some(_), _) => {
            let message = "messages: goes without text; give one of them";
            return Err(Fault::new(Code::InvalidValue, message).at("messages"));
        }
    };
    Ok(((model, text), fields.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_leniency_is_the_callers() {
        let mut headers = HeaderMap::new();
        assert!(lenient(&headers, true) && !lenient(&headers, false));
        headers.insert(PREFER, HeaderValue::from_static("wait=5, handling=lenient"));
        assert!(lenient(&headers, false));
        headers.insert(PREFER, HeaderValue::from_static("Handling = \"Lenient\"; x=1"));
        assert!(lenient(&headers, false));
        headers.insert(PREFER, HeaderValue::from_static("handling=strict"));
        assert!(!lenient(&headers, true));
    }
}
