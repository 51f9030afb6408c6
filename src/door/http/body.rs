//! Bodies: those of requests are counted while they are read, those of answers are a text or a stream of events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::timeout;

use crate::engine::{Code, Fault};

use super::HttpOptions;
use super::socket::Phase;
use super::stream::Stream;

/// Reads a body of at most `max_body_kib`.
///
/// # Errors
/// `body_too_large` before anything beyond the bound is kept, `request_timeout` when it is not whole after
/// `idle_timeout_s`, however often a byte of it comes, `invalid_value` when it ends early or is framed wrongly.
pub(super) async fn read(mut body: Incoming, options: &HttpOptions) -> Result<Vec<u8>, Fault> {
    let max = options.max_body_kib.saturating_mul(1024);
    let too_large = |got: String| {
        let message =
            format!("the body has {got} bytes, allowed are {max} (api.max_body_kib); send less or raise it");
        Fault::new(Code::BodyTooLarge, message)
    };
    if let Some(len) =
        body.size_hint().exact().filter(|&len| usize::try_from(len).map_or(true, |len| len > max))
    {
        return Err(too_large(len.to_string()));
    }
    let mut bytes = Vec::new();
    let whole = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| {
                Fault::new(Code::InvalidValue, format!("the body broke off or is framed wrongly: {e}"))
            })?;
            if let Some(data) = frame.data_ref() {
                if bytes.len().saturating_add(data.len()) > max {
                    return Err(too_large(format!("more than {max}")));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(())
    };
    let s = options.idle_timeout_s;
    match timeout(Duration::from_secs(s), whole).await {
        Ok(read) => read.map(|()| bytes),
        Err(_) => {
            let message = format!(
                "{} bytes of the body came within {s} s and it is not whole; send it faster",
                bytes.len()
            );
            Err(Fault::new(Code::RequestTimeout, message))
        }
    }
}

enum Content {
    Text(Bytes),
    Stream(Box<Stream>),
}

/// The body of an answer. The connection counts as busy until it is dropped.
pub(super) struct Body {
    content: Content,
    turn: Option<Turn>,
}

struct Turn(Arc<Phase>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.idle();
    }
}

impl Body {
    pub(super) fn stream(stream: Stream) -> Self {
        Self { content: Content::Stream(Box::new(stream)), turn: None }
    }

    pub(super) fn ends_turn(mut self, phase: Arc<Phase>) -> Self {
        self.turn = Some(Turn(phase));
        self
    }
}

/// An answer of plain text.
pub(super) fn text(content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body { content: Content::Text(text.into()), turn: None });
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer without a body.
pub(super) fn none(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body { content: Content::Text(Bytes::new()), turn: None });
    *response.status_mut() = status;
    response
}

/// An answer of JSON.
pub(super) fn json_text(body: String) -> Response<Body> {
    text("application/json", body)
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut self.content {
            Content::Text(text) if text.is_empty() => None,
            Content::Text(text) => Some(std::mem::take(text)),
            Content::Stream(stream) => std::task::ready!(stream.poll(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.is_empty(),
            Content::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Text(text) => SizeHint::with_exact(text.len() as u64),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
