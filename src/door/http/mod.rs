//! HTTP/1.1 on the Unix socket: OpenAI's shapes and the native route (`proto/openapi.yaml`, `docs/http.md`).
//!
//! A connection is one task. Who hangs up is seen by POLLHUP on the socket, in every state, and the task is dropped
//! with all it holds: the generation's handle goes and cancels. The end of a caller's writing is no hang-up.

mod body;
mod choices;
mod embeddings;
mod error;
mod logprobs;
mod metrics;
mod models;
mod openai;
mod routes;
mod socket;
mod status;
mod stream;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::base::limits::{N_CHOICE_MAX, N_HEADER_MAX};
use crate::door::id::after;
use crate::door::queue::{READ_LOOK, Unread};
use crate::engine::{Caller, Code, Door, Engine, Fault};
use crate::os;

use self::socket::{Phase, Socket};

/// Bounds of the socket (API text, section 6).
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Largest body of a request, KiB.
    pub max_body_kib: usize,
    /// Largest head of a request, KiB; at least 8.
    pub max_header_kib: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// Connections of one uid at a time.
    pub max_connections_per_uid: usize,
    /// Longest time for the head of a request to arrive, seconds.
    pub header_timeout_s: u64,
    /// Longest silence of a connection: between requests, within a body, or of a reader; seconds.
    pub idle_timeout_s: u64,
    /// A streamed answer sends something at least this often, seconds.
    pub keepalive_s: u64,
    /// Fields that are unknown or not supported are ignored and named, not refused.
    pub lenient: bool,
    /// `/metrics` is there.
    pub metrics: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_kib: 4096,
            max_header_kib: 16,
            max_connections: 64,
            max_connections_per_uid: 16,
            header_timeout_s: 10,
            idle_timeout_s: 60,
            keepalive_s: 10,
            lenient: false,
            metrics: true,
        }
    }
}

/// Longest silence of a caller that has been answered before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);
/// Longest time in which what such a caller goes on sending is read and dropped: gigabytes, here.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// Longest wait for answers under way once the door closes; the engine has been told to end them by then.
const CLOSING: Duration = Duration::from_secs(10);
/// Pause after a failed accept: without descriptors left it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
struct HttpDoor {
    engine: Engine,
    /// As they are now: a reload changes them.
    options: watch::Receiver<HttpOptions>,
    /// Open connections by uid.
    seats: Mutex<HashMap<u32, usize>>,
}

/// A place among the connections, given back when dropped.
struct Seat {
    door: Arc<HttpDoor>,
    uid: u32,
}

impl HttpDoor {
    fn options(&self) -> HttpOptions {
        *self.options.borrow()
    }

    fn seat(self: &Arc<Self>, uid: u32) -> Result<Seat, Fault> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let n_all: usize = seats.values().sum();
        let n_own = seats.get(&uid).copied().unwrap_or(0);
        let options = self.options();
        let (max, max_per_uid) = (options.max_connections, options.max_connections_per_uid);
        let full = |n: usize, what: &str, max: usize| {
            let message =
                format!("{n} connections {what} are open, allowed are {max}; close one, or try again");
            Err(Fault::new(Code::QueueFull, message).retry_after(1000))
        };
        if n_own >= max_per_uid {
            return full(n_own, &format!("of uid {uid}"), max_per_uid);
        }
        if n_all >= max {
            return full(n_all, "in all", max);
        }
        seats.insert(uid, n_own + 1);
        Ok(Seat { door: self.clone(), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.door.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = seats.get_mut(&self.uid) {
            *n -= 1;
            if *n == 0 {
                seats.remove(&self.uid);
            }
        }
    }
}

/// Serves `listener`, by the `options` of each moment, until `shutdown` turns true (or its sender goes), then lets answers under way end. Runs on a
/// tokio runtime with IO and time.
pub fn serve(
    engine: Engine,
    listener: UnixListener,
    options: watch::Receiver<HttpOptions>,
    shutdown: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send {
    let door = Arc::new(HttpDoor { engine, options, seats: Mutex::default() });
    accept(door, listener, shutdown)
}

/// Connections that a door has open which is told to close by `closing`: each listens to it.
#[must_use]
pub fn n_connections(closing: &watch::Sender<bool>) -> usize {
    closing.receiver_count().saturating_sub(N_OWN)
}

/// Receivers that the door itself holds.
const N_OWN: usize = 2;

async fn accept(door: Arc<HttpDoor>, listener: UnixListener, shutdown: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut closing = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            // Once it is to close, nobody is taken any more: who waits may be for the next process.
            biased;
            _ = closing.wait_for(|&now| now) => break,
            Some(_) = connections.join_next() => continue,
            Some(_) = refusals.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let caller = accepted.and_then(|(stream, _)| {
            let peer = stream.peer_cred()?;
            let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
            Ok((stream, Caller { uid: peer.uid(), pid, door: Door::Http }))
        });
        match caller {
            Ok((stream, caller)) => match door.seat(caller.uid) {
                Ok(seat) => {
                    connections.spawn(connection(seat, stream, caller, shutdown.clone()));
                }
                // Beyond this the backlog is the only answer.
                Err(fault) if refusals.len() < door.options().max_connections => {
                    refusals.spawn(refuse(door.clone(), stream, fault));
                }
                Err(_) => {}
            },
            Err(e) => {
                log::warn!("api socket: a connection could not be taken: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(CLOSING, async { while connections.join_next().await.is_some() {} }).await;
}

/// How a connection came to its end.
enum End {
    /// All is said; the caller may not have heard it yet.
    Said,
    /// The caller hung up or did not move in time.
    Gone,
    /// The head of a request did not arrive in time.
    Late,
}

async fn connection(seat: Seat, stream: UnixStream, caller: Caller, mut shutdown: watch::Receiver<bool>) {
    let door = seat.door.clone();
    let Ok(watched) = second(&stream) else { return };
    let phase = Arc::new(Phase::default());
    let end = {
        let service = service_fn({
            let (door, phase) = (door.clone(), phase.clone());
            move |request| routes::answer(door.clone(), caller, phase.clone(), request)
        });
        let served = http1::Builder::new()
            .half_close(true)
            .header_read_timeout(None)
            .max_headers(N_HEADER_MAX)
            .max_buf_size(door.options().max_header_kib.max(8) * 1024)
            .serve_connection(TokioIo::new(Socket::new(stream, phase.clone())), service);
        let (mut served, mut hang_up) = (pin!(served), pin!(hang_up(&watched)));
        let mut draining = false;
        let mut unread = Unread::default();
        loop {
            let deadline = phase.deadline(&door.options());
            let blocked = phase.is_blocked();
            if !blocked {
                unread = Unread::default();
            }
            tokio::select! {
                _ = served.as_mut() => break End::Said,
                () = hang_up.as_mut() => break End::Gone,
                () = phase.changed() => if phase.is_last() && !draining {
                    draining = true;
                    served.as_mut().graceful_shutdown();
                },
                () = sleep(READ_LOOK), if blocked => {
                    if unread.is_less(os::socket::unread(&watched).ok())
                        && let Some(first) = phase.read()
                    {
                        (0..N_CHOICE_MAX).for_each(|i| door.engine.drained(&after(&first, i)));
                    }
                }
                () = sleep_until(deadline.unwrap_or_else(far)), if deadline.is_some() => {
                    break if phase.in_head() { End::Late } else { End::Gone };
                }
                _ = shutdown.wait_for(|&now| now), if !draining => {
                    draining = true;
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Some(code) = phase.refused() {
        door.engine.metrics().error(code);
    }
    match end {
        End::Gone => {}
        End::Said => linger(watched).await,
        End::Late => {
            let message = format!(
                "the head of the request did not arrive within {} s; send it at once",
                door.options().header_timeout_s
            );
            refuse(door, watched, Fault::new(Code::RequestTimeout, message)).await;
        }
    }
}

fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(3600)
}

/// A second descriptor of the same socket: hyper owns the first.
fn second(stream: &UnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Waits until the caller has hung up. The end of its input alone is none, but comes with every hang-up, so the costlier
/// watch begins there: the descriptor's readiness to write is forgotten each time, and what is left is its closing.
async fn hang_up(stream: &UnixStream) {
    // This interest is the end of input: out-of-band data, which it stands for, does not exist on this socket.
    let mut ready = stream.ready(Interest::PRIORITY).await;
    while ready.is_ok_and(|ready| !ready.is_write_closed()) {
        let _ = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        ready = stream.ready(Interest::WRITABLE).await;
    }
}

/// Says `fault` outside of any request and closes.
async fn refuse(door: Arc<HttpDoor>, mut stream: UnixStream, fault: Fault) {
    door.engine.metrics().error(fault.code);
    if timeout(LINGER, stream.write_all(&error::raw(&fault))).await.is_ok_and(|written| written.is_ok()) {
        linger(stream).await;
    }
}

/// Closes such that the caller reads what was said: a close with its bytes unread would reset the connection before. Many
/// callers write all of a body before they read, and some read nothing once a write has failed; so whatever comes is
/// taken until they are through, for the time that they keep their seat.
async fn linger(mut stream: UnixStream) {
    let _ = stream.shutdown().await;
    let mut dropped = vec![0; 16 << 10];
    let _ = timeout(LINGER_MAX, async {
        while let Ok(Ok(1..)) = timeout(LINGER, stream.read(&mut dropped)).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
