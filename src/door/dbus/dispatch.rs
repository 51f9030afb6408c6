//! From messages to methods: finds the object, looks whether the caller may see it, and whether there is such a method with
//! such arguments. Standard interfaces are answered here.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use zbus::export::futures_core::Stream;
use zbus::message::Type;
use zbus::names::OwnedUniqueName;
use zbus::{Message, MessageStream, OwnedVariant};

use crate::base::limits::{N_CALL_MAX, NAME_SHOWN_BYTES_MAX};
use crate::door::id::cut;
use crate::engine::{Code, Fault, ModelInfo};

use super::Door;
use super::call::{Call, Refusal};
use super::info::{Info, collect};
use super::interfaces::{
    EVERYWHERE, GENERATION, INTROSPECTABLE, Interface, JOB, LOG_CONTROL, MANAGER, MODEL, OBJECT_MANAGER,
    PEER, PROPERTIES, SESSION,
};
use super::job::Job;
use super::log_control;
use super::manager;
use super::paths::{self, Kind, Place};
use super::record::Record;
use super::session::Session;

/// Takes calls until the connection ends. Each is a task; past a bound they wait on the bus.
pub(super) async fn serve(door: Arc<Door>, mut calls: MessageStream) {
    let room = Arc::new(Semaphore::new(N_CALL_MAX));
    while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut calls).poll_next(cx)).await {
        let Ok(message) = message else { continue };
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let door = door.clone();
        tokio::spawn(async move {
            answer(door, message).await;
            drop(place);
        });
    }
}

async fn answer(door: Arc<Door>, message: Message) {
    let (sender, known) = {
        let header = message.header();
        let sender = header.sender().map(|name| OwnedUniqueName::from(name.to_owned()));
        (sender, door.callers.know(&door.connection, header.sender()).await)
    };
    let known = match known {
        Ok(known) => known,
        // Whoever is not known is told so, and nothing else.
        Err(fault) => {
            door.engine.metrics().error(fault.code);
            return super::call::refuse(&door, &message, &fault.into()).await;
        }
    };
    let call = Arc::new(Call { door, message, known, sender });
    let header = call.header();
    let member = header.member().map_or("", |member| member.as_str());
    let told = call.clone();
    let answered = take(call.clone(), member).await;
    if let Some(route) = route(&told, member) {
        let refused = |refusal: &Refusal| refusal.code().map_or("dbus", Code::as_str);
        let code = answered.as_ref().map_or_else(refused, |()| "ok");
        told.door.engine.metrics().request("dbus", route, code);
    }
    if let Err(refusal) = answered {
        if let Some(code) = refusal.counts() {
            told.count(code);
        }
        told.refuse(&refusal).await;
    }
}

/// The method of the manager that was called, or the turn of a session, for the metrics.
fn route(call: &Call, member: &str) -> Option<&'static str> {
    let header = call.header();
    match (paths::place(header.path()?.as_str())?, member) {
        (Place::Manager, _) => {
            let manager = call.door.interfaces.get(MANAGER)?;
            manager.methods.iter().find(|method| method.name == member).map(|method| method.name)
        }
        (Place::Object(Kind::Session, _), "Ask") => Some("Session.Ask"),
        (Place::Object(Kind::Session, _), "Send") => Some("Session.Send"),
        _ => None,
    }
}

/// An object that the caller may see.
enum Object {
    /// A folder, with what is below it.
    Folder(Vec<String>),
    Manager,
    LogControl,
    Model(Box<ModelInfo>),
    Generation(Arc<Record>),
    Session(Arc<Session>),
    Job(Arc<Job>),
}

impl Object {
    fn interfaces(&self) -> &'static [&'static str] {
        match self {
            Self::Folder(_) => &[],
            Self::Manager => &[MANAGER, OBJECT_MANAGER],
            Self::LogControl => &[LOG_CONTROL],
            Self::Model(_) => &[MODEL],
            Self::Generation(_) => &[GENERATION],
            Self::Session(_) => &[SESSION],
            Self::Job(_) => &[JOB],
        }
    }

    fn children(&self) -> Vec<String> {
        match self {
            Self::Folder(below) => below.clone(),
            Self::Manager => Kind::ALL.map(|kind| kind.as_str().to_owned()).to_vec(),
            _ => Vec::new(),
        }
    }

    fn property(&self, door: &Door, interface: &str, name: &str) -> Option<OwnedVariant> {
        match self {
            Self::Manager if interface == MANAGER => door.manager_property(name),
            Self::LogControl => log_control::property(door, name),
            Self::Model(info) => door.model_property(info, name),
            Self::Generation(record) => record.property(&door.engine, name),
            Self::Session(session) => session.property(name),
            Self::Job(job) => job.property(name),
            Self::Manager | Self::Folder(_) => None,
        }
    }
}

/// The object at the path that `call` names. One of another user is not there.
fn object(call: &Call) -> Option<Object> {
    let (door, uid) = (&call.door, call.uid());
    let header = call.header();
    Some(match paths::place(header.path()?.as_str())? {
        Place::Above(below) => Object::Folder(below.iter().map(|name| (*name).to_owned()).collect()),
        Place::Manager => Object::Manager,
        Place::LogControl => Object::LogControl,
        Place::Folder(kind) => Object::Folder(match kind {
            Kind::Model => door.engine.models().iter().map(|info| paths::escaped(&info.id)).collect(),
            Kind::Generation => door.generations.ids(uid),
            Kind::Session => door.sessions.ids(uid),
            Kind::Job => door.jobs.ids(uid),
        }),
        Place::Object(Kind::Model, name) => Object::Model(door.model(name)?.into()),
        Place::Object(Kind::Generation, id) => Object::Generation(door.generations.get(id, uid)?),
        Place::Object(Kind::Session, id) => Object::Session(door.sessions.get(id, uid)?),
        Place::Object(Kind::Job, id) => Object::Job(door.jobs.get(id, uid)?),
    })
}

/// What is said of a path where nothing is, or nothing for this caller.
pub(super) fn unknown_object(path: &str) -> Fault {
    let message = format!(
        "{}: no such object, or none of yours; look at what Introspect tells of the folder above",
        cut(path, NAME_SHOWN_BYTES_MAX)
    );
    Fault::new(Code::UnknownObject, message)
}

async fn take(call: Arc<Call>, member: &str) -> Result<(), Refusal> {
    let asked = call.clone();
    let header = asked.header();
    let path = header.path().map_or("", |path| path.as_str());
    let wanted = header.interface().map(|name| name.as_str());
    let object = match object(&call) {
        Some(object) => object,
        // Whoever asks whether anybody is there asks no object.
        None if wanted == Some(PEER) => Object::Folder(Vec::new()),
        None => return Err(unknown_object(path).into()),
    };
    let own = object.interfaces();
    let mut names = own.iter().chain(&EVERYWHERE).filter(|name| wanted.is_none_or(|wanted| wanted == **name));
    let find = |name: &&str| {
        let interface = call.door.interfaces.get(name)?;
        Some((interface, interface.methods.iter().find(|method| method.name == member)?))
    };
    let Some((interface, method)) = names.find_map(find) else {
        let shown = cut(member, NAME_SHOWN_BYTES_MAX);
        return Err(match wanted {
            Some(wanted) if own.iter().chain(&EVERYWHERE).all(|name| *name != wanted) => Refusal::standard(
                "org.freedesktop.DBus.Error.UnknownInterface",
                format!("{path} has no interface {}", cut(wanted, NAME_SHOWN_BYTES_MAX)),
            ),
            _ => Refusal::standard(
                "org.freedesktop.DBus.Error.UnknownMethod",
                format!("{path} has no method {shown}"),
            ),
        });
    };
    let body = call.message.body();
    let got = body.signature().to_string_no_parens();
    if got != method.takes {
        let message = format!(
            "{}: got arguments of the types ({got}), allowed are ({}); numbers are not converted",
            method.name, method.takes
        );
        return Err(Fault::new(Code::InvalidValue, message).into());
    }
    let (name, method) = (interface.name, method.name);
    match (name, object) {
        (PEER | INTROSPECTABLE | PROPERTIES, object) => standard(&call, &object, name, method).await,
        (MANAGER, _) => manager::method(call.clone(), method).await,
        (OBJECT_MANAGER, _) => {
            call.door.describe_models(call.uid()).await;
            call.reply(&(call.door.managed_objects(),)).await
        }
        (_, Object::Generation(record)) => manager::of_generation(&call, &record, method).await,
        (_, Object::Session(session)) => session.method(call.clone(), method).await,
        (_, Object::Job(job)) => job.method(&call, method).await,
        _ => Err(Fault::new(Code::Internal, format!("{name}.{method} is declared and not served")).into()),
    }
}

/// Methods of interfaces that every object has.
async fn standard(call: &Call, object: &Object, interface: &str, method: &str) -> Result<(), Refusal> {
    match (interface, method) {
        (INTROSPECTABLE, _) => {
            let xml = call.door.interfaces.xml(object.interfaces(), &object.children());
            call.reply(&(xml,)).await
        }
        (PROPERTIES, "Get") => {
            let (interface, name): (String, String) = call.args()?;
            let interface = declaring(call, object, &interface, Some(&name))?;
            read_first(call, object).await;
            // A property without a value is no part of the interface, which was seen to declare it.
            let value = fresh(call, object, interface.name, &name)
                .ok_or_else(|| Fault::new(Code::Internal, format!("{name} is declared and has no value")))?;
            call.reply(&(value,)).await
        }
        (PROPERTIES, "GetAll") => {
            let (interface,): (String,) = call.args()?;
            let interface = declaring(call, object, &interface, None)?;
            read_first(call, object).await;
            let value = |name: &'static str| (name, fresh(call, object, interface.name, name));
            let all: Info = collect(interface.properties.iter().map(|property| value(property.name)));
            call.reply(&(all,)).await
        }
        (PROPERTIES, _) => {
            let (interface, name, value): (String, String, OwnedVariant) = call.args()?;
            let interface = declaring(call, object, &interface, Some(&name))?;
            let writable =
                interface.properties.iter().any(|property| property.name == name && property.writable);
            if !writable || !matches!(object, Object::LogControl) {
                let message = format!("{}: is read only", cut(&name, NAME_SHOWN_BYTES_MAX));
                return Err(Refusal::standard("org.freedesktop.DBus.Error.PropertyReadOnly", message));
            }
            log_control::set(call, &name, &value).await?;
            call.reply(&()).await
        }
        (PEER, "GetMachineId") => {
            let read = |path| std::fs::read_to_string(path).ok();
            let id = read("/etc/machine-id").or_else(|| read("/var/lib/dbus/machine-id"));
            let id = id.map(|id| id.trim().to_owned()).filter(|id| id.len() == 32);
            let id = id.ok_or_else(|| {
                let message = "this machine has no /etc/machine-id".to_owned();
                Refusal::standard("org.freedesktop.DBus.Error.Failed", message)
            })?;
            call.reply(&(id,)).await
        }
        _ => call.reply(&()).await,
    }
}

/// A model's header is read before its properties are told.
async fn read_first(call: &Call, object: &Object) {
    if matches!(object, Object::Model(info) if info.header.is_none()) {
        call.door.describe_models(call.uid()).await;
    }
}

/// The value of a property as it is now.
fn fresh(call: &Call, object: &Object, interface: &str, name: &str) -> Option<OwnedVariant> {
    match object {
        Object::Model(info) => {
            let now = call.door.model(&paths::escaped(&info.id))?;
            call.door.model_property(&now, name)
        }
        other => other.property(&call.door, interface, name),
    }
}

/// The interface of `object` that declares `property`, or just is there.
fn declaring<'c>(
    call: &'c Call,
    object: &Object,
    interface: &str,
    property: Option<&str>,
) -> Result<&'c Interface, Refusal> {
    let all =
        || object.interfaces().iter().chain(&EVERYWHERE).filter_map(|name| call.door.interfaces.get(name));
    // With no name the one that has properties: no object has two of them.
    let named = |of: &&Interface| match interface {
        "" => !of.properties.is_empty(),
        name => of.name == name,
    };
    let found = all().find(named).ok_or_else(|| {
        let message = format!("there is no interface {}", cut(interface, NAME_SHOWN_BYTES_MAX));
        Refusal::standard("org.freedesktop.DBus.Error.UnknownInterface", message)
    })?;
    match property {
        Some(name) if found.properties.iter().all(|property| property.name != name) => {
            let message = format!("{interface} has no property {}", cut(name, NAME_SHOWN_BYTES_MAX));
            Err(Refusal::standard("org.freedesktop.DBus.Error.UnknownProperty", message))
        }
        _ => Ok(found),
    }
}
