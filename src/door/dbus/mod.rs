//! `org.sotto.Sotto1` on a bus (`proto/org.sotto.Sotto1.xml`, `docs/dbus.md`).

mod callers;
mod manager;
mod options;
mod pipe;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::names::ErrorName;
use zbus::{Connection, DBusError as ErrorReply, Guid, Message, message};

use crate::base::limits::MESSAGE_BYTES_MAX;
use crate::engine::{Engine, Fault};

use super::fault;
use super::id::cut;
use manager::{Info, Manager, variant};

/// Name on the bus.
const NAME: &str = "org.sotto.Sotto1";
/// Where the manager is; everything else lies below.
const PATH: &str = "/org/sotto/Sotto1";

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

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("the system bus"),
            Self::Session => f.write_str("the session bus"),
            Self::Address(address) => write!(f, "the bus at {address}"),
            Self::Peer(_) => f.write_str("a peer"),
        }
    }
}

/// Bounds of the bus door.
#[derive(Clone, Debug)]
pub struct DbusOptions {
    /// Longest time to get on the bus, seconds.
    pub connect_timeout_s: u64,
}

impl Default for DbusOptions {
    fn default() -> Self {
        Self { connect_timeout_s: 5 }
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

/// The door on a bus; open as long as this lives.
#[derive(Debug)]
pub struct DbusDoor {
    connection: Connection,
}

impl DbusDoor {
    /// Waits until the bus is lost.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Closes once calls under way were answered and signals sent.
    pub async fn finish(self) {
        self.connection.graceful_shutdown().await;
    }

    /// Tells the bus that the daemon goes down (property `State`), once the engine has been told.
    pub async fn drain(&self) {
        if let Ok(manager) = self.connection.object_server().interface::<_, Manager>(PATH).await {
            let _ = manager.get().await.state_changed(manager.signal_emitter()).await;
        }
    }
}

/// Exports the objects, then takes the name: whoever sees the name is answered. Runs on a tokio runtime with IO and
/// time.
///
/// # Errors
/// When the bus cannot be reached in time or does not give the name.
pub async fn serve(engine: Engine, bus: Bus, options: DbusOptions) -> Result<DbusDoor, DbusError> {
    let named = bus.to_string();
    let failed = |source| DbusError::Connect { bus: named.clone(), source };
    let manager = Manager::new(engine);
    let builder = match bus {
        Bus::System => Builder::system().name(NAME),
        Bus::Session => Builder::session().name(NAME),
        Bus::Address(address) => Builder::address(address.as_str()).name(NAME),
        Bus::Peer(stream) => Builder::unix_stream(stream).server(Guid::generate()).p2p(),
    };
    // zbus would let a second daemon take the name away.
    let builder = builder.allow_name_replacements(false).replace_existing_names(false);
    let built = builder.serve_at(PATH, manager).build();
    let connection = timeout(Duration::from_secs(options.connect_timeout_s), built)
        .await
        .map_err(|_| DbusError::TimedOut { bus: named.clone(), after_s: options.connect_timeout_s })?
        .map_err(failed)?;
    Ok(DbusDoor { connection })
}

/// What is told of a failure besides its message: `need t` and `have t`, where something did not fit.
fn details(fault: &Fault) -> Info {
    let numbers = fault.room.map(|room| [("need", variant(room.need)), ("have", variant(room.have))]);
    numbers.into_iter().flatten().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// A failure as the reply to a call. The message begins with the code, for those who see nothing else.
#[derive(Debug)]
struct Refusal {
    fault: Fault,
    message: String,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        // A NUL may not stand in a message; the texts of faults are ours, paths in them are the caller's.
        let message =
            format!("{}: {}", fault.code.as_str(), cut(&fault.message, MESSAGE_BYTES_MAX)).replace('\0', "?");
        Self { fault, message }
    }
}

impl ErrorReply for Refusal {
    fn create_reply(&self, call: &message::Header<'_>) -> zbus::Result<Message> {
        let reply = Message::error(call, self.name());
        match details(&self.fault) {
            none if none.is_empty() => reply.build(&(&self.message,)),
            details => reply.build(&(&self.message, details)),
        }
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(fault::dbus_name(self.fault.code))
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}
