//! `org.sotto.Sotto1` on a bus (`proto/org.sotto.Sotto1.xml`, `docs/dbus.md`).
//!
//! Calls are taken from the connection and answered here, not by zbus's object server: what a caller sees of the tree, its
//! introspection data included, depends on who asks, and a reply has to be sent before what it announces begins.

mod call;
mod callers;
mod dispatch;
mod info;
mod interfaces;
mod job;
mod log_control;
mod manager;
mod models;
mod options;
mod paths;
mod pipe;
mod polkit;
mod record;
mod session;
mod shelf;
mod weight;

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::names::OwnedUniqueName;
use zbus::{Connection, DynamicType, Guid, MessageStream};

use crate::engine::{Engine, Fault};

use callers::Callers;
use interfaces::Interfaces;
use job::Job;
use polkit::Polkit;
use record::Record;
use session::Session;
use shelf::Shelf;

/// Name on the bus.
const NAME: &str = "org.sotto.Sotto1";
/// How long generations and jobs are there after their end.
const KEPT: Duration = Duration::from_secs(60);
/// Longest wait for calls under way when the door closes.
const CLOSING: Duration = Duration::from_secs(2);

/// Which bus to serve on.
#[derive(Debug)]
pub enum Bus {
    /// The system bus.
    System,
    /// The user's bus.
    Session,
    /// The bus at a D-Bus address.
    Address(String),
    /// No bus: the peer at the other end of a socket pair, with the rights of this process.
    Peer(UnixStream),
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the system bus"),
            Self::Session => f.write_str("the session bus"),
            Self::Address(address) => write!(f, "the bus at {address}"),
            Self::Peer(_) => f.write_str("a peer"),
        }
    }
}

/// Where log lines go, as callers of LogControl1 see it.
#[derive(Clone, Copy, Debug)]
pub struct LogTarget {
    /// `journal`, `console` or `null`.
    pub get: fn() -> &'static str,
    /// Sends them elsewhere; false where that is not possible.
    pub set: fn(&str) -> bool,
}

/// Reads the configuration again.
#[derive(Clone)]
pub struct Reload(pub Arc<dyn Fn() -> Result<(), Fault> + Send + Sync>);

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Bounds of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions that are open at a time.
    pub max: usize,
    /// Those of one uid.
    pub max_per_uid: usize,
    /// One that nobody uses is closed after so many seconds.
    pub idle_s: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { max: 16, max_per_uid: 4, idle_s: 900 }
    }
}

/// Bounds of the bus door, and what it reaches of the program.
#[derive(Clone, Debug)]
pub struct DbusOptions {
    /// Longest time to get on the bus, seconds.
    pub connect_timeout_s: u64,
    /// Bounds of sessions, as they are now.
    pub sessions: watch::Receiver<SessionLimits>,
    /// `None`: there is nothing to read again.
    pub reload: Option<Reload>,
    /// `None`: they stay where they go.
    pub log_target: Option<LogTarget>,
}

impl Default for DbusOptions {
    fn default() -> Self {
        Self {
            connect_timeout_s: 5,
            sessions: watch::channel(SessionLimits::default()).1,
            reload: None,
            log_target: None,
        }
    }
}

/// The bus cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbusError {
    /// Not reachable, or the name is refused or taken.
    #[error(
        "{bus}: cannot be served as {NAME}: {source}; is the bus running, its policy installed, no other sottod on it?"
    )]
    Connect {
        /// The bus.
        bus: String,
        /// What zbus says.
        source: zbus::Error,
    },
    /// No answer.
    #[error("{bus}: no answer within {after_s} s; is the bus running?")]
    TimedOut {
        /// The bus.
        bus: String,
        /// The limit, seconds.
        after_s: u64,
    },
}

/// What all calls share.
#[derive(Debug)]
struct Door {
    engine: Engine,
    connection: Connection,
    options: DbusOptions,
    callers: Callers,
    polkit: Polkit,
    interfaces: Interfaces,
    generations: Shelf<Record>,
    sessions: Shelf<Session>,
    jobs: Shelf<Job>,
}

impl Door {
    /// Sends a signal to everybody who may hear it.
    async fn signal<B: Serialize + DynamicType>(&self, path: &str, interface: &str, name: &str, body: &B) {
        self.signal_to(None, path, interface, name, body).await;
    }

    /// Sends a signal to `owner` alone. One that has left is not there to be told.
    async fn signal_to<B: Serialize + DynamicType>(
        &self,
        owner: Option<&OwnedUniqueName>,
        path: &str,
        interface: &str,
        name: &str,
        body: &B,
    ) {
        let owner = owner.map(|name| name.as_str());
        let _ = self.connection.emit_signal(owner, path, interface, name, body).await;
    }
}

/// Those that have the door while nobody calls: itself and its two tasks.
const N_OWN: usize = 3;

/// Turns of all tasks in which a message that was received comes to be a call under way: two, and some to spare.
const N_TURNS: usize = 8;

/// The door on a bus; open as long as this lives.
#[derive(Debug)]
pub struct DbusDoor {
    door: Arc<Door>,
    tasks: [JoinHandle<()>; 2],
    changed: Arc<Notify>,
}

impl DbusDoor {
    /// Waits until the bus is lost.
    pub async fn closed(&self) {
        self.door.connection.closed().await;
    }

    /// Sessions that are open, and calls that are under way or leave something to be told.
    #[must_use]
    pub fn n_open(&self) -> usize {
        self.door.sessions.all().len() + Arc::strong_count(&self.door).saturating_sub(N_OWN)
    }

    /// Closes once calls under way were answered and signals sent.
    pub async fn finish(self) {
        for session in self.door.sessions.all() {
            session.close(&self.door, "shutdown");
        }
        let open = async {
            // The calls under way, and the tasks after them, have the door too.
            while Arc::strong_count(&self.door) > N_OWN {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(CLOSING, open).await;
        // What was sent is written by now: whoever sends waits for that.
        let _ = self.door.connection.clone().close().await;
    }

    /// Gives the name back, so that the next call starts the next process; true if nobody had called until then.
    pub async fn let_go(&self) -> bool {
        // A bus that does not answer is not waited for: who is lost with it is seen elsewhere.
        let _ = timeout(CLOSING, self.door.connection.release_name(NAME)).await;
        // Calls that came before the bus's answer are counted once their tasks have begun.
        for _ in 0..N_TURNS {
            tokio::task::yield_now().await;
        }
        self.n_open() == 0
    }

    /// Takes the name again.
    ///
    /// # Errors
    /// When somebody else has it by now.
    pub async fn take_name(&self) -> zbus::Result<()> {
        take_name(&self.door.connection).await
    }

    /// Tells the bus that the daemon goes down (property `State`), once the engine has been told.
    pub async fn drain(&self) {
        self.changed.notify_one();
        tokio::task::yield_now().await;
    }
}

impl Drop for DbusDoor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Is there for all calls, then takes the name: whoever sees the name is answered. Runs on a tokio runtime with IO and
/// time.
///
/// # Errors
/// When the bus cannot be reached in time or does not give the name.
pub async fn serve(engine: Engine, bus: Bus, options: DbusOptions) -> Result<DbusDoor, DbusError> {
    let named = bus.to_string();
    let after_s = options.connect_timeout_s;
    timeout(Duration::from_secs(after_s), open(engine, bus, options))
        .await
        .map_err(|_| DbusError::TimedOut { bus: named.clone(), after_s })?
        .map_err(|source| DbusError::Connect { bus: named, source })
}

async fn open(engine: Engine, bus: Bus, options: DbusOptions) -> zbus::Result<DbusDoor> {
    let peer = matches!(bus, Bus::Peer(_));
    let builder = match bus {
        Bus::System => Builder::system(),
        Bus::Session => Builder::session(),
        Bus::Address(address) => Builder::address(address.as_str()),
        Bus::Peer(stream) => Builder::unix_stream(stream).server(Guid::generate()).p2p(),
    };
    let connection = builder.build().await?;
    let calls = MessageStream::from(&connection);
    let door = Arc::new(Door {
        engine: engine.clone(),
        connection: connection.clone(),
        callers: Callers::default(),
        polkit: Polkit::default(),
        options,
        interfaces: Interfaces::new(),
        generations: Shelf::default(),
        sessions: Shelf::default(),
        jobs: Shelf::default(),
    });
    let changed = Arc::new(Notify::new());
    let watching = Arc::downgrade(&changed);
    engine.on_change(move || watching.upgrade().inspect(|changed| changed.notify_one()).is_some());
    let tasks = [
        tokio::spawn(dispatch::serve(door.clone(), calls)),
        tokio::spawn(door.clone().tell_changes(changed.clone())),
    ];
    let opened = DbusDoor { door, tasks, changed };
    if !peer {
        take_name(&connection).await?;
    }
    Ok(opened)
}

async fn take_name(connection: &Connection) -> zbus::Result<()> {
    match connection.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await? {
        RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner => Ok(()),
        RequestNameReply::InQueue | RequestNameReply::Exists => Err(zbus::Error::NameTaken),
    }
}
