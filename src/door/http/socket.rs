//! The socket as hyper sees it, with what hyper does not do: it knows in which phase a connection is, for time-outs
//! of our own, and gives the refusals that hyper makes by itself (a head that is too large or no HTTP) the body that
//! every refusal has.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::{Code, Fault, GenerationId};

use super::{HttpOptions, error};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Between requests.
    Idle,
    /// A head is arriving.
    Head,
    /// A request is being answered.
    Busy,
}

/// Where a connection is, and since when.
#[derive(Debug)]
pub(super) struct Phase {
    state: Mutex<State>,
    changed: Notify,
    /// The present request is the last of its connection.
    last: AtomicBool,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    since: Instant,
    /// Since when the socket takes no more bytes, or when its reader last read of those that it has.
    blocked: Option<Instant>,
    /// The present request.
    id: Option<GenerationId>,
    /// What was said of a head that was not understood.
    refused: Option<Code>,
}

impl Default for Phase {
    fn default() -> Self {
        let state =
            State { stage: Stage::Idle, since: Instant::now(), blocked: None, id: None, refused: None };
        Self { state: Mutex::new(state), changed: Notify::new(), last: AtomicBool::new(false) }
    }
}

impl Phase {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        let mut state = self.state();
        (state.stage, state.since) = (stage, Instant::now());
        self.changed.notify_one();
    }

    /// The connection is to be closed after the present request.
    pub(super) fn last(&self) {
        self.last.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Whether [`Self::last`] was said.
    pub(super) fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// A head has arrived; its answer, of that id, is under way until [`Self::idle`].
    pub(super) fn busy(&self, id: &GenerationId) {
        self.state().id = Some(id.clone());
        self.enter(Stage::Busy);
    }

    /// The answer is handed to the socket.
    pub(super) fn idle(&self) {
        self.enter(Stage::Idle);
    }

    fn arrived(&self) {
        if self.state().stage == Stage::Idle {
            self.enter(Stage::Head);
        }
    }

    fn wrote(&self, blocked: bool) {
        let mut state = self.state();
        if blocked != state.blocked.is_some() {
            state.blocked = blocked.then(Instant::now);
            self.changed.notify_one();
        }
    }

    /// Whether the socket takes no more bytes.
    pub(super) fn is_blocked(&self) -> bool {
        self.state().blocked.is_some()
    }

    /// The reader of a blocked socket has read; the id of what they read.
    pub(super) fn read(&self) -> Option<GenerationId> {
        let mut state = self.state();
        state.blocked = state.blocked.map(|_| Instant::now());
        state.id.clone()
    }

    /// What was said of a head that was not understood, if one was: the connection ends with it.
    pub(super) fn refused(&self) -> Option<Code> {
        self.state().refused
    }

    /// Waits for a change of the deadline.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether a head is arriving.
    pub(super) fn in_head(&self) -> bool {
        self.state().stage == Stage::Head
    }

    /// When the connection has been still for too long.
    pub(super) fn deadline(&self, options: &HttpOptions) -> Option<Instant> {
        let state = self.state();
        let (since, limit_s) = match (state.blocked, state.stage) {
            (Some(blocked), _) => (blocked, options.idle_timeout_s),
            (None, Stage::Idle) => (state.since, options.idle_timeout_s),
            (None, Stage::Head) => (state.since, options.header_timeout_s),
            (None, Stage::Busy) => return None,
        };
        Some(since + Duration::from_secs(limit_s))
    }
}

/// Most that is written at once, bytes: that its reader has read is seen when all of it is.
const PIECE: usize = 2_048;

/// The socket.
pub(super) struct Socket {
    stream: UnixStream,
    phase: Arc<Phase>,
    /// A refusal of ours that still has to be written, in place of hyper's.
    own: Vec<u8>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream, phase: Arc<Phase>) -> Self {
        Self { stream, phase, own: Vec::new() }
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.own))?;
            self.own.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

/// Where in `bytes` an answer of hyper's own begins, and its status: a head without a body at the very end.
fn own_words(bytes: &[u8]) -> Option<(usize, &[u8])> {
    const START: &[u8] = b"HTTP/1.1 4";
    let find = |hay: &[u8], needle: &[u8]| hay.windows(needle.len()).any(|w| w == needle);
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let at = bytes.windows(START.len()).rposition(|w| w == START)?;
    let head = bytes.get(at..)?;
    find(head, b"content-length: 0\r\n").then(|| (at, head.get(9..12).unwrap_or_default()))
}

fn words_for(status: &[u8]) -> Fault {
    if matches!(status, b"431" | b"414") {
        let message = "the head of the request is larger than api.max_header_kib allows, or has more than 100 headers; \
                       send fewer or shorter ones";
        Fault::new(Code::HeaderTooLarge, message)
    } else {
        Fault::new(
            Code::InvalidValue,
            "the head of the request is not understood; HTTP/1.1 is spoken here: look at its first line, at one \
             Content-Length of digits, and at Transfer-Encoding",
        )
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.phase.arrived();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(cx))?;
        let before_own = match own_words(buf) {
            Some((0, status)) => {
                let fault = words_for(status);
                self.phase.state().refused = Some(fault.code);
                self.own = error::raw(&fault);
                let _ = self.poll_own(cx)?;
                return Poll::Ready(Ok(buf.len()));
            }
            Some((at, _)) => buf.get(..at).unwrap_or(buf),
            None => buf,
        };
        let piece = before_own.get(..PIECE).unwrap_or(before_own);
        let written = Pin::new(&mut self.stream).poll_write(cx, piece);
        self.phase.wrote(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_own(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_refusals_are_reworded() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(own_words(bare), Some((0, &b"431"[..])));
        let mut after = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec();
        let at = after.len();
        after.extend(bare);
        assert_eq!(own_words(&after), Some((at, &b"431"[..])));
        assert_eq!(own_words(b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n"), None);
        assert_eq!(own_words(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(words_for(b"431").code, Code::HeaderTooLarge);
    }
}
