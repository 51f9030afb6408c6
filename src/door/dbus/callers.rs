//! Who is on the other side: identity from the bus, and whether they are still there.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use zbus::export::futures_core::Stream;
use zbus::fdo::DBusProxy;
use zbus::message::Type;
use zbus::names::{BusName, OwnedUniqueName, UniqueName};
use zbus::{Connection, MatchRule, MessageStream};

use crate::base::limits::N_CALLER_MAX;
use crate::engine::{Caller, Code, Door, Fault};

/// A name on the bus with its owner's identity. The bus is asked once; it is forgotten when the name goes.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) caller: Caller,
    gone: watch::Receiver<bool>,
    watching: Option<JoinHandle<()>>,
}

impl Known {
    /// Whether the caller has left the bus.
    pub(super) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Waits until the caller has left the bus.
    pub(super) async fn gone(&self) {
        let mut gone = self.gone.clone();
        if gone.wait_for(|&gone| gone).await.is_err() {
            // The watch ended because the bus did; the connection's end is seen elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

type Names = Mutex<HashMap<OwnedUniqueName, Arc<Known>>>;

/// Callers known by now.
#[derive(Debug, Default)]
pub(super) struct Callers {
    names: Arc<Names>,
}

impl Callers {
    /// Who `sender` is. Without a sender there is no bus, and the peer at the socket's other end is asked for.
    pub(super) async fn know(
        &self,
        connection: &Connection,
        sender: Option<&UniqueName<'_>>,
    ) -> Result<Arc<Known>, Fault> {
        let Some(sender) = sender else { return peer(connection).await };
        let name = OwnedUniqueName::from(sender.to_owned());
        {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = names.get(&name) {
                return Ok(known.clone());
            }
            if names.len() >= N_CALLER_MAX {
                // Those with nothing under way are asked for again when they come back.
                names.retain(|_, known| Arc::strong_count(known) > 1);
            }
            if names.len() >= N_CALLER_MAX {
                let message = format!("{N_CALLER_MAX} callers on the bus have work under way; try again");
                return Err(Fault::new(Code::QueueFull, message).retry_after(1000));
            }
        }
        let known = Arc::new(self.ask(connection, &name).await.map_err(|e| {
            Fault::new(Code::NotAuthorized, format!("the bus does not say who {name} is: {e}; call again"))
        })?);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(names.entry(name).or_insert(known).clone())
    }

    async fn ask(&self, connection: &Connection, name: &OwnedUniqueName) -> zbus::Result<Known> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg(0, name.as_str())
            .build()?;
        let stream = MessageStream::for_match_rule(rule, connection, NonZeroUsize::new(4)).await?;
        let bus = DBusProxy::new(connection).await?;
        let credentials = bus.get_connection_credentials(BusName::Unique(name.as_ref())).await?;
        let uid = credentials.unix_user_id().ok_or(zbus::Error::MissingField)?;
        let caller = Caller { uid, pid: credentials.process_id(), door: Door::Dbus };
        let (gone, seen) = watch::channel(false);
        // The match is set; whoever left before it was is asked for once.
        if !bus.name_has_owner(BusName::Unique(name.as_ref())).await? {
            return Err(zbus::Error::NameTaken);
        }
        let watching = tokio::spawn(watch_name(stream, gone, name.clone(), Arc::downgrade(&self.names)));
        Ok(Known { caller, gone: seen, watching: Some(watching) })
    }
}

async fn peer(connection: &Connection) -> Result<Arc<Known>, Fault> {
    let unknown = || Fault::new(Code::NotAuthorized, "the kernel does not say who the peer is");
    let credentials = connection.peer_creds().await.map_err(|_| unknown())?;
    let uid = credentials.unix_user_id().ok_or_else(unknown)?;
    let caller = Caller { uid, pid: credentials.process_id(), door: Door::Dbus };
    let (gone, seen) = watch::channel(false);
    let connection = connection.clone();
    let watching = tokio::spawn(async move {
        connection.closed().await;
        let _ = gone.send(true);
    });
    Ok(Arc::new(Known { caller, gone: seen, watching: Some(watching) }))
}

/// A unique name is never given twice: the first change of its owner is its end.
async fn watch_name(
    mut stream: MessageStream,
    gone: watch::Sender<bool>,
    name: OwnedUniqueName,
    names: Weak<Names>,
) {
    while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        let Ok(message) = message else { continue };
        let left =
            message.body().deserialize::<(String, String, String)>().is_ok_and(|(_, _, new)| new.is_empty());
        if left {
            let _ = gone.send(true);
            break;
        }
    }
    let forgotten =
        names.upgrade().and_then(|names| names.lock().unwrap_or_else(PoisonError::into_inner).remove(&name));
    drop(forgotten);
}
