//! One call: what it asks, who asks, and the ways to answer it.

use std::sync::Arc;

use serde::Serialize;
use zbus::message::{Builder, EndianSig, Flags, Header};
use zbus::names::OwnedUniqueName;
use zbus::wire::DynamicDeserialize;
use zbus::{DynamicType, Message, ObjectPath};

use crate::base::limits::{MESSAGE_BYTES_MAX, N_BUS_VALUE_MAX};
use crate::door::fault;
use crate::door::id::cut;
use crate::engine::{Code, Fault};

use super::Door;
use super::callers::Known;
use super::info::{Info, details};
use super::polkit::Permit;
use super::weight;

/// A failure as the reply to a call. The message begins with the code, for those who see nothing else.
#[derive(Debug)]
pub(super) struct Refusal {
    name: &'static str,
    message: String,
    details: Info,
    /// `None` where D-Bus itself has a name for it: it is no fault of ours then.
    code: Option<Code>,
    /// It was told before, and counted.
    again: bool,
}

impl Refusal {
    /// Its code, for the metrics.
    pub(super) fn code(&self) -> Option<Code> {
        self.code
    }

    /// Of what somebody was told before.
    pub(super) fn again(fault: Fault) -> Self {
        Self { again: true, ..fault.into() }
    }

    /// What is to be counted.
    pub(super) fn counts(&self) -> Option<Code> {
        self.code.filter(|_| !self.again)
    }

    /// One that D-Bus itself has a name for.
    pub(super) fn standard(name: &'static str, message: String) -> Self {
        Self { name, message: printable(&message), details: Info::new(), code: None, again: false }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        // The key stands before what is said of it, where that does not begin with it.
        let key = fault.param.as_deref().filter(|key| !fault.message.starts_with(key));
        let key = key.map_or(String::new(), |key| format!("{key}: "));
        let message = printable(&format!("{}: {key}{}", fault.code.as_str(), fault.message));
        Self {
            name: fault::dbus_name(fault.code),
            message,
            details: details(&fault),
            code: Some(fault.code),
            again: false,
        }
    }
}

/// A NUL may not stand in a message; the texts of faults are ours, names in them are the caller's.
fn printable(message: &str) -> String {
    cut(message, MESSAGE_BYTES_MAX).replace('\0', "?")
}

/// A call by somebody who is known.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) door: Arc<Door>,
    pub(super) message: Message,
    pub(super) known: Arc<Known>,
    /// `None`: there is no bus.
    pub(super) sender: Option<OwnedUniqueName>,
}

impl Call {
    pub(super) fn header(&self) -> Header<'_> {
        self.message.header()
    }

    pub(super) fn uid(&self) -> u32 {
        self.known.caller.uid
    }

    /// The arguments, whose signature was seen to fit.
    pub(super) fn args<T>(&self) -> Result<T, Fault>
    where
        T: for<'d> DynamicDeserialize<'d>,
    {
        let (body, header) = (self.message.body(), self.header());
        let signature = body.signature().to_string_no_parens();
        if !weight::fits(body.data(), &signature, header.primary().endian_sig() == EndianSig::Little) {
            let message = format!("the call has more than {N_BUS_VALUE_MAX} values; send less");
            return Err(Fault::new(Code::BodyTooLarge, message));
        }
        body.deserialize::<T>().map_err(|e| {
            Fault::new(
                Code::InvalidValue,
                format!("the arguments cannot be read: {e}; send them as declared"),
            )
        })
    }

    /// Counts a fault that the caller is told of, if they are still there.
    pub(super) fn count(&self, code: Code) {
        if !self.known.is_gone() {
            self.door.engine.metrics().error(code);
        }
    }

    /// Refuses a caller who may not.
    pub(super) async fn may(&self, permit: Permit) -> Result<(), Fault> {
        let (door, header) = (&self.door, self.header());
        door.polkit.check(&door.engine, &door.connection, &header, self.known.caller, permit).await
    }

    /// Answers. A caller that has left, or a bus that is lost, is seen elsewhere.
    pub(super) async fn reply<B: Serialize + DynamicType>(&self, body: &B) -> Result<(), Refusal> {
        let built = build(&self.door, Message::method_return(&self.header()), body).map_err(|e| {
            Fault::new(Code::Internal, format!("the answer cannot be written as a message: {e}"))
        })?;
        send(&self.door, &self.message, &built).await;
        Ok(())
    }

    pub(super) async fn refuse(&self, refusal: &Refusal) {
        refuse(&self.door, &self.message, refusal).await;
    }

    /// Sends a signal to the caller alone.
    pub(super) async fn tell<B: Serialize + DynamicType>(
        &self,
        path: &ObjectPath<'_>,
        interface: &str,
        name: &str,
        body: &B,
    ) {
        self.door.signal_to(self.sender.as_ref(), path.as_str(), interface, name, body).await;
    }
}

/// Refuses a call.
pub(super) async fn refuse(door: &Door, message: &Message, refusal: &Refusal) {
    let error = Message::error(&message.header(), refusal.name);
    let built = match refusal.details.is_empty() {
        true => build(door, error, &(&refusal.message,)),
        false => build(door, error, &(&refusal.message, &refusal.details)),
    };
    match built {
        Ok(reply) => send(door, message, &reply).await,
        Err(e) => log::error!("a refusal cannot be written as a message: {e}"),
    }
}

fn build<B: Serialize + DynamicType>(door: &Door, reply: Builder<'_>, body: &B) -> zbus::Result<Message> {
    match door.connection.unique_name() {
        Some(own) => reply.sender(own).build(body),
        None => reply.build(body),
    }
}

async fn send(door: &Door, call: &Message, reply: &Message) {
    if !call.header().primary().flags().contains(Flags::NO_REPLY_EXPECTED) {
        let _ = door.connection.send(reply).await;
    }
}
