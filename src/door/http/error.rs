//! The one body of every failure.

use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::engine::{Code, Fault};

use super::body::Body;
use crate::door::fault;
use crate::door::id::new_id;

/// The body that says `fault`.
pub(super) fn body(fault: &Fault) -> Value {
    let mut error = fault::fields(fault);
    error["type"] = fault::http_type(fault::http_status(fault.code)).into();
    // Typed clients of OpenAI's shape want it always.
    error["param"] = error["param"].take();
    json!({ "error": error })
}

/// Seconds until trying again makes sense, where the status asks for it.
fn retry_after_s(fault: &Fault, status: u16) -> Option<u64> {
    matches!(status, 429 | 503).then(|| fault.retry_after_ms.unwrap_or(1000).div_ceil(1000).max(1))
}

fn text(fault: &Fault) -> String {
    format!("{}\n", body(fault))
}

/// The answer that says `fault`.
pub(super) fn response(fault: &Fault) -> Response<Body> {
    let status = fault::http_status(fault.code);
    let mut response = super::body::json_text(text(fault));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(s) = retry_after_s(fault, status) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(s));
    }
    // What is left of the body will not be read.
    if matches!(fault.code, Code::BodyTooLarge | Code::RequestTimeout) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The same as bytes, for a connection that has no request to answer; it is closed afterwards.
pub(super) fn raw(fault: &Fault) -> Vec<u8> {
    let status = fault::http_status(fault.code);
    let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Refused");
    let retry = retry_after_s(fault, status).map(|s| format!("retry-after: {s}\r\n")).unwrap_or_default();
    let body = text(fault);
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\
         x-request-id: {}\r\n{retry}\r\n{body}",
        body.len(),
        new_id(),
    )
    .into_bytes()
}
