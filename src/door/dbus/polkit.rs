//! Who may do what on the bus: polkit decides where it is on the bus, else root, whoever runs the daemon, and
//! `daemon.admin_groups` may everything, and others may generate.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use zbus::message::{Flags, Header};
use zbus::names::OwnedUniqueName;
use zbus::{Connection, Variant, fdo};

use crate::base::limits::N_CALLER_MAX;
use crate::door::admins;
use crate::engine::{Caller, Code, Engine, Fault};

const NAME: &str = "org.freedesktop.PolicyKit1";
const PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const AUTHORITY: &str = "org.freedesktop.PolicyKit1.Authority";

/// A yes holds for so long.
const KEPT: Duration = Duration::from_secs(5);
/// Longest wait for polkit where nobody is asked for a password.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait where somebody is.
const PATIENCE_ASKED: Duration = Duration::from_secs(120);

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Permit {
    /// Generate, sessions, embed.
    Generate,
    /// Load and unload models.
    LoadModel,
    /// Everything else.
    Manage,
}

impl Permit {
    /// Its name in the polkit policy.
    fn action(self) -> &'static str {
        match self {
            Self::Generate => "org.sotto.generate",
            Self::LoadModel => "org.sotto.load-model",
            Self::Manage => "org.sotto.manage",
        }
    }

    /// What whoever may not is told.
    fn what(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::LoadModel => "load or unload models",
            Self::Manage => "manage the daemon",
        }
    }
}

/// What polkit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Yes,
    No,
    /// It is not on the bus.
    Absent,
    /// It is, and does not answer, or does not know the action.
    Nothing,
}

/// Asks polkit.
#[derive(Debug, Default)]
pub(super) struct Polkit {
    /// When it last said yes.
    yes: Mutex<HashMap<(OwnedUniqueName, Permit), Instant>>,
}

impl Polkit {
    /// Refuses a caller who may not. Somebody is asked for a password only where the call allows it.
    ///
    /// # Errors
    /// `not_authorized`.
    pub(super) async fn check(
        &self,
        engine: &Engine,
        connection: &Connection,
        header: &Header<'_>,
        caller: Caller,
        permit: Permit,
    ) -> Result<(), Fault> {
        // Polkit would say so too.
        if caller.uid == 0 {
            return Ok(());
        }
        let said = match header.sender() {
            Some(sender) => {
                let asked = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
                self.ask(connection, &OwnedUniqueName::from(sender.to_owned()), permit, asked).await
            }
            // There is no bus to ask on.
            None => Said::Absent,
        };
        let refused = |why: &str| {
            let (uid, action) = (caller.uid, permit.action());
            let message = format!("user {uid} may not {}: polkit {why} {action}", permit.what());
            Err(Fault::new(Code::NotAuthorized, message))
        };
        match (said, permit) {
            (Said::Yes, _) | (Said::Absent, Permit::Generate) => Ok(()),
            (Said::Absent, _) => admins::check(caller.uid, engine, permit.what()),
            (Said::No, _) => refused("refuses"),
            (Said::Nothing, _) => refused("is there and says nothing of"),
        }
    }

    async fn ask(
        &self,
        connection: &Connection,
        name: &OwnedUniqueName,
        permit: Permit,
        interactive: bool,
    ) -> Said {
        let key = (name.clone(), permit);
        {
            let mut yes = self.yes.lock().unwrap_or_else(PoisonError::into_inner);
            yes.retain(|_, at| at.elapsed() < KEPT);
            if yes.contains_key(&key) {
                return Said::Yes;
            }
        }
        let subject = ("system-bus-name", HashMap::from([("name", Variant::from(name.as_str()))]));
        let details = HashMap::<&str, &str>::new();
        let body = (subject, permit.action(), details, u32::from(interactive), "");
        let asked = connection.call_method(Some(NAME), PATH, Some(AUTHORITY), "CheckAuthorization", &body);
        let reply = match timeout(if interactive { PATIENCE_ASKED } else { PATIENCE }, asked).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(zbus::Error::FDO(e)))
                if matches!(*e, fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_)) =>
            {
                return Said::Absent;
            }
            // Whoever cannot ask may not take silence for a yes.
            Ok(Err(e)) => {
                log::warn!("polkit: {}: {e}", permit.action());
                return Said::Nothing;
            }
            Err(_) => return Said::Nothing,
        };
        let body = reply.body();
        let Ok(((yes, _, _),)) = body.deserialize::<((bool, bool, HashMap<String, String>),)>() else {
            return Said::Nothing;
        };
        let mut kept = self.yes.lock().unwrap_or_else(PoisonError::into_inner);
        if yes && kept.len() < N_CALLER_MAX {
            kept.insert(key, Instant::now());
        }
        if yes { Said::Yes } else { Said::No }
    }
}
