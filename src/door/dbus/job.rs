//! `org.sotto.Sotto1.Job`: a model that is being loaded by name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::sleep;
use zbus::OwnedVariant;

use crate::door::fault;
use crate::door::queue::Generation;
use crate::engine::{Event, Fault, GenerationId};

use super::call::{Call, Refusal};
use super::info::variant;
use super::paths::{self, Kind};
use super::shelf::Owned;
use super::{KEPT, interfaces};

#[derive(Debug, Default)]
struct State {
    /// Bytes read, and bytes in all.
    read: Option<(u64, u64)>,
    end: Option<Result<(), Fault>>,
}

/// A load under way, or one that has just ended.
#[derive(Debug)]
pub(super) struct Job {
    id: GenerationId,
    uid: u32,
    state: Mutex<State>,
    ended: watch::Sender<bool>,
}

impl Owned for Job {
    fn uid(&self) -> u32 {
        self.uid
    }
}

impl Job {
    pub(super) fn new(id: GenerationId, uid: u32) -> Arc<Self> {
        Arc::new(Self { id, uid, state: Mutex::default(), ended: watch::Sender::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event; true if it was the last.
    pub(super) fn heard(&self, event: Event) -> bool {
        let end = match event {
            Event::Loading { done, total, .. } => {
                self.state().read = Some((done, total));
                return false;
            }
            Event::Loaded { .. } => Ok(()),
            Event::Failed(fault) => Err(fault),
            _ => return false,
        };
        self.state().end = Some(end);
        self.ended.send_replace(true);
        true
    }

    pub(super) fn property(&self, name: &str) -> Option<OwnedVariant> {
        let s = self.state();
        match name {
            "Id" => variant(self.id.as_str()),
            "Kind" => variant("load-model"),
            "State" => variant(match &s.end {
                None => "running",
                Some(Ok(())) => "done",
                Some(Err(fault)) if fault.code == crate::engine::Code::Cancelled => "cancelled",
                Some(Err(_)) => "failed",
            }),
            "Progress" => variant(match (&s.end, s.read) {
                (Some(Ok(())), _) => 1.0,
                (_, Some((done, total))) => done as f64 / total.max(1) as f64,
                _ => -1.0,
            }),
            _ => None,
        }
    }

    /// Follows the load to its end, tells the owner, and is there for a while longer.
    pub(super) async fn follow(self: Arc<Self>, mut load: Generation, call: Arc<Call>) {
        while !*self.ended.borrow() {
            self.heard(load.next().await);
        }
        let (error, message) = match &self.state().end {
            Some(Err(fault)) => {
                call.count(fault.code);
                (fault::dbus_name(fault.code), fault.message.clone())
            }
            _ => ("", String::new()),
        };
        let path = paths::object(Kind::Job, self.id.as_str());
        call.tell(&path, interfaces::JOB, "Finished", &(error, message)).await;
        // It is only kept from here on: nobody waits for that.
        let door = Arc::downgrade(&call.door);
        drop(call);
        sleep(KEPT).await;
        if let Some(door) = door.upgrade() {
            door.jobs.remove(self.id.as_str());
        }
    }

    pub(super) async fn method(&self, call: &Call, member: &str) -> Result<(), Refusal> {
        match member {
            "Cancel" => {
                call.door.engine.cancel(&self.id, self.uid);
            }
            _ => {
                tokio::select! {
                    // The sender is here, so the wait cannot fail.
                    _ = async { self.ended.subscribe().wait_for(|ended| *ended).await.map(|_| ()) } => {}
                    () = call.known.gone() => return Ok(()),
                }
                if let Some(Err(fault)) = &self.state().end {
                    return Err(Refusal::again(fault.clone()));
                }
            }
        }
        call.reply(&()).await
    }
}
