//! The caller's side of the socket, for the command line.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::pin;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::base::limits::{LINE_BYTES_MAX, REPLY_BYTES_MAX};

/// A daemon could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: no daemon answers: {source}; start sottod, or name its socket by --socket", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon's answer broke off; see the journal of sottod")]
    Http(#[from] hyper::Error),
    /// The daemon refused.
    #[error("{}", told(error))]
    Refused {
        /// HTTP status.
        status: u16,
        /// The daemon's error as it stands.
        error: Value,
    },
    /// It was no answer of sotto's.
    #[error("{what} of {n_bytes} bytes is no answer of sottod; is something else on its socket?")]
    NotSotto {
        /// What was read.
        what: &'static str,
        /// Its length, or the limit it passed.
        n_bytes: usize,
    },
    /// The stream ended without its last event.
    #[error("the daemon's answer ended without an end; see the journal of sottod")]
    Ended,
}

/// The code and the sentence of an error of the daemon's.
#[must_use]
pub fn told(error: &Value) -> String {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    format!("{}: {}", text("code"), text("message"))
}

/// One event of a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// Waiting, with this many ahead.
    Queued {
        /// Requests ahead.
        position: u64,
    },
    /// The model is being read in.
    Loading {
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The prompt is being read.
    Prefill {
        /// Tokens read.
        done: u64,
        /// Tokens in all.
        total: u64,
    },
    /// A piece of the answer.
    Text(String),
    /// The end of a load: the `loaded` event as it stands.
    Loaded(Value),
    /// The end: the `done` event as it stands.
    Done(Value),
    /// The end: it failed; the `error` event as it stands.
    Error(Value),
    /// Of a newer daemon; to be skipped.
    Unknown,
}

impl ClientEvent {
    fn parse(line: &[u8]) -> Result<Self, ClientError> {
        let event: Value = serde_json::from_slice(line)
            .map_err(|_| ClientError::NotSotto { what: "a line", n_bytes: line.len() })?;
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(match event.get("event").and_then(Value::as_str) {
            Some("queued") => Self::Queued { position: number("position") },
            Some("loading") => Self::Loading { done: number("done"), total: number("total") },
            Some("prefill") => Self::Prefill { done: number("done"), total: number("total") },
            Some("token") => Self::Text(text("text")),
            Some("loaded") => Self::Loaded(event),
            Some("done") => Self::Done(event),
            Some("error") => Self::Error(event),
            _ => Self::Unknown,
        })
    }
}

/// A daemon behind its socket. Each call has a connection of its own, so a daemon that closed an idle one, or was
/// started anew, is no failure; dropping a call before its end closes the connection, and the daemon stops computing.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Generates: `body` is a request of `POST /sotto/v1/generate`; each event is given to `on_event`, the last one
    /// is [`ClientEvent::Done`] or [`ClientEvent::Error`], unless `on_event` breaks off.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens, [`ClientError::Refused`] when it is refused before it begins;
    /// others when the daemon goes away.
    pub async fn generate(
        &self,
        body: Value,
        on_event: &mut dyn FnMut(ClientEvent) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let body = Bytes::from(body.to_string());
        self.call(Method::POST, "/sotto/v1/generate", body, async |answer| events(answer, on_event).await)
            .await
    }

    /// Loads a model by its id or alias and keeps it; the last event is [`ClientEvent::Loaded`] or
    /// [`ClientEvent::Error`].
    ///
    /// # Errors
    /// As of [`Self::generate`].
    pub async fn load(
        &self,
        model: &str,
        on_event: &mut dyn FnMut(ClientEvent) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let path = format!("/sotto/v1/models/{}/load", percent_encoded(model));
        self.call(Method::POST, &path, Bytes::new(), async |answer| events(answer, on_event).await).await
    }

    /// Lets go of a model by its id or alias; with `force` also while it answers.
    ///
    /// # Errors
    /// As of [`Self::get`]: `model_busy` while it answers.
    pub async fn unload(&self, model: &str, force: bool) -> Result<(), ClientError> {
        let query = if force { "?force=true" } else { "" };
        let path = format!("/sotto/v1/models/{}/unload{query}", percent_encoded(model));
        self.call(Method::POST, &path, Bytes::new(), collect).await.map(drop)
    }

    /// Cancels a generation of this user's; one that has ended, or never was, is no error.
    ///
    /// # Errors
    /// As of [`Self::get`]: `unknown_object` for what is no id.
    pub async fn cancel(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("/sotto/v1/generations/{}", percent_encoded(id));
        self.call(Method::DELETE, &path, Bytes::new(), collect).await.map(drop)
    }

    /// Gets `path`, such as `/v1/models`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens, [`ClientError::Refused`] when the daemon has no such thing; others
    /// when it goes away.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let bytes = self.call(Method::GET, path, Bytes::new(), collect).await?;
        serde_json::from_slice(&bytes)
            .map_err(|_| ClientError::NotSotto { what: "an answer", n_bytes: bytes.len() })
    }

    /// Sends `body` to `path`, such as `/v1/embeddings`.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let bytes = self.call(Method::POST, path, Bytes::from(body.to_string()), collect).await?;
        serde_json::from_slice(&bytes)
            .map_err(|_| ClientError::NotSotto { what: "an answer", n_bytes: bytes.len() })
    }

    /// Sends a request over a new connection and gives the body of its answer to `read`.
    async fn call<T>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        read: impl AsyncFnOnce(Incoming) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let talk = async { read(ask(&mut sender, method, path, body).await?.into_body()).await };
        let (mut connection, mut talk) = (pin!(connection), pin!(talk));
        // Driven here and not by a task, so that it ends with the call.
        tokio::select! {
            said = &mut talk => said,
            // How a connection failed is told to the conversation as well.
            _ = &mut connection => talk.await,
        }
    }
}

/// `text` as a part of a path.
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Sends a request; an answer that is no success becomes the error that it tells.
async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
    sender.ready().await?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() =
        path.parse().map_err(|_| ClientError::NotSotto { what: "a path", n_bytes: path.len() })?;
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("sotto"));
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = collect(response.into_body()).await?;
    let mut body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    match body.get_mut("error").map(Value::take) {
        Some(error) if error.get("code").is_some_and(Value::is_string) => {
            Err(ClientError::Refused { status: status.as_u16(), error })
        }
        _ => Err(ClientError::NotSotto { what: "an error", n_bytes: bytes.len() }),
    }
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > REPLY_BYTES_MAX {
            return Err(ClientError::NotSotto { what: "an answer", n_bytes: bytes.len() });
        }
    }
    Ok(bytes)
}

async fn events(
    mut body: Incoming,
    on_event: &mut dyn FnMut(ClientEvent) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let mut pending = Vec::new();
    let mut ended = false;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        for part in data.split_inclusive(|&b| b == b'\n') {
            pending.extend_from_slice(part);
            if pending.len() > LINE_BYTES_MAX {
                return Err(ClientError::NotSotto { what: "a line", n_bytes: pending.len() });
            }
            if pending.ends_with(b"\n") {
                let event = ClientEvent::parse(&pending)?;
                pending.clear();
                ended |=
                    matches!(event, ClientEvent::Done(_) | ClientEvent::Loaded(_) | ClientEvent::Error(_));
                if on_event(event).is_break() {
                    return Ok(());
                }
            }
        }
    }
    if ended { Ok(()) } else { Err(ClientError::Ended) }
}
