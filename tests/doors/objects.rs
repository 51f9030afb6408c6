//! Objects on the bus: models, jobs, generations, sessions, and what strangers see of them.

use super::dbus::{MANAGER, Options, PATH, drained, manager, on_a_pair_with};
use super::*;
use crate::support::{Folder, bus, have};
use sotto::door::dbus::{Bus, DbusOptions, SessionLimits};
use sotto::engine::{Mock, ModelFile, Settings};
use std::collections::HashMap;
use std::pin::Pin;
use std::process::{Command, Stdio};
use zbus::export::futures_core::Stream;
use zbus::{Connection, MessageStream, OwnedFd, OwnedObjectPath, OwnedVariant, Proxy, Variant};

type Values = HashMap<String, OwnedVariant>;

/// Two models, of which one is in memory at a time.
fn two_models() -> Engine {
    let file = |id: &str| ModelFile { id: id.into(), path: support::stories() };
    let options = sotto::engine::Options { threads: 1, ..Default::default() };
    let settings = Settings {
        models: vec![file("one"), file("two-b")],
        default_model: Some("one".into()),
        ..Settings::default()
    };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

/// A mock that goes on speaking until it is told to stop.
fn endless() -> Engine {
    let mock: Mock = "tokens_per_s=20".parse().unwrap();
    let options = sotto::engine::Options { threads: 1, mock: Some(mock), ..Default::default() };
    let default_model = Some("mock-endless".to_owned());
    let settings = Settings { models: Mock::models(), default_model, ..Settings::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

/// Waits until the generation at `path` has given some text.
async fn speaks(client: &Connection, path: &OwnedObjectPath) {
    while text(&properties(client, path.as_str(), GENERATION).await, "State") != "decode" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn limits(sessions: SessionLimits) -> DbusOptions {
    DbusOptions { sessions: tokio::sync::watch::channel(sessions).1, ..DbusOptions::default() }
}

pub(super) async fn at<'c>(client: &'c Connection, path: &str, interface: &'static str) -> Proxy<'c> {
    Proxy::new(client, "org.sotto.Sotto1", path.to_owned(), interface).await.unwrap()
}

/// All properties of an object, asked for anew.
pub(super) async fn properties(client: &Connection, path: &str, interface: &str) -> Values {
    at(client, path, "org.freedesktop.DBus.Properties").await.call("GetAll", &(interface,)).await.unwrap()
}

pub(super) fn text(values: &Values, key: &str) -> String {
    match &*values[key] {
        Variant::Str(text) => text.as_str().to_owned(),
        other => panic!("{key} is {other:?}"),
    }
}

/// The name of the error that a call ended with.
fn error(answer: zbus::Result<zbus::Message>) -> String {
    match answer.expect_err("refused") {
        zbus::Error::MethodError(name, ..) => name.as_str().to_owned(),
        // Those that D-Bus itself names.
        other => other.to_string().split(':').next().unwrap_or_default().to_owned(),
    }
}

/// The body of the next signal `member`.
async fn heard(stream: &mut MessageStream, member: &str) -> zbus::Message {
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx));
        let message = tokio::time::timeout(Duration::from_secs(20), next).await.unwrap().unwrap().unwrap();
        if message.header().member().is_some_and(|name| name.as_str() == member) {
            return message;
        }
    }
}

const MODEL: &str = "org.sotto.Sotto1.Model";
const JOB: &str = "org.sotto.Sotto1.Job";
pub(super) const SESSION: &str = "org.sotto.Sotto1.Session";
pub(super) const GENERATION: &str = "org.sotto.Sotto1.Generation";

#[test]
fn models_are_listed_loaded_pinned_and_unloaded() {
    on_a_pair_with(two_models(), DbusOptions::default(), |client| async move {
        let mut signals = MessageStream::from(&client);
        let manager = manager(&client).await;
        let (listed,): (Vec<(OwnedObjectPath, Values)>,) =
            manager.call_method("ListModels", &()).await.unwrap().body().deserialize().unwrap();
        let paths: Vec<&str> = listed.iter().map(|(path, _)| path.as_str()).collect();
        let (one, two) = (format!("{PATH}/model/one"), format!("{PATH}/model/two_2db"));
        assert_eq!(paths, [&one, &two]);
        let first = &listed[0].1;
        assert_eq!((text(first, "State"), text(first, "Architecture")), ("available".into(), "llama".into()));
        assert_eq!(&*first["Aliases"], &Variant::new(vec!["default", "embed", "fast"]));
        assert_eq!(&*first["ContextMax"], &Variant::new(512_u32));
        assert_eq!(&*first["Capabilities"], &Variant::new(vec!["generate", "embed"]));
        let tree = at(&client, PATH, "org.freedesktop.DBus.ObjectManager").await;
        let (objects,): (HashMap<OwnedObjectPath, HashMap<String, Values>>,) =
            tree.call_method("GetManagedObjects", &()).await.unwrap().body().deserialize().unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects.iter().find(|(path, _)| path.as_str() == one).unwrap().1[MODEL], *first);
        assert_eq!(properties(&client, &one, MODEL).await, *first);

        // The second one takes the place of the first, and stays.
        let load = |model: &'static str, pin: bool| {
            let options = Options::from([("pin", Variant::new(pin))]);
            let manager = manager.clone();
            async move { manager.call::<_, _, OwnedObjectPath>("LoadModel", &(model, options)).await }
        };
        let job = load("one", false).await.unwrap();
        at(&client, job.as_str(), JOB).await.call::<_, _, ()>("Wait", &()).await.unwrap();
        let changed = heard(&mut signals, "Finished").await;
        let (name, _): (String, String) = changed.body().deserialize().unwrap();
        assert_eq!(name, "");
        let told = properties(&client, job.as_str(), JOB).await;
        assert_eq!((text(&told, "State"), text(&told, "Kind")), ("done".into(), "load-model".into()));
        assert_eq!(&*told["Progress"], &Variant::new(1.0));
        let job = load("two-b", true).await.unwrap();
        at(&client, job.as_str(), JOB).await.call::<_, _, ()>("Wait", &()).await.unwrap();
        let now = properties(&client, &two, MODEL).await;
        assert_eq!((text(&now, "State"), &*now["Pinned"]), ("loaded".into(), &Variant::new(true)));
        assert!(matches!(&*now["ResidentBytes"], Variant::U64(n) if *n > 100_000));
        assert_eq!(text(&properties(&client, &one, MODEL).await, "State"), "available");
        let loaded: Vec<OwnedObjectPath> = manager.get_property("LoadedModels").await.unwrap();
        assert_eq!(loaded.iter().map(|path| path.as_str()).collect::<Vec<_>>(), [&two]);
        // What is there already is done at once; what is pinned gives no place.
        let job = load("two-b", true).await.unwrap();
        assert_eq!(text(&properties(&client, job.as_str(), JOB).await, "State"), "done");
        let no_options = Options::new();
        let refused = manager.call_method("Generate", &("hi", &no_options)).await;
        assert_eq!(error(refused), "org.sotto.Error.ModelBusy");
        let job = load("one", false).await.unwrap();
        let refused = at(&client, job.as_str(), JOB).await.call_method("Wait", &()).await;
        assert_eq!(error(refused), "org.sotto.Error.ModelBusy");
        assert_eq!(text(&properties(&client, job.as_str(), JOB).await, "State"), "failed");

        manager.call::<_, _, ()>("UnloadModel", &("two-b", &no_options)).await.unwrap();
        manager.call::<_, _, ()>("UnloadModel", &("two-b", &no_options)).await.unwrap();
        let told = properties(&client, &two, MODEL).await;
        assert_eq!((text(&told, "State"), &*told["Pinned"]), ("available".into(), &Variant::new(false)));
        let refused = manager.call_method("LoadModel", &("three", &no_options)).await;
        assert_eq!(error(refused), "org.sotto.Error.UnknownModel");
        let refused =
            manager.call_method("LoadModel", &("one", Options::from([("pni", Variant::new(true))]))).await;
        assert_eq!(error(refused), "org.sotto.Error.UnknownOption");
    });
}

/// Between any two of a model's steps it may be asked for, and let go of.
#[test]
fn a_model_in_use_is_unloaded_only_by_force() {
    on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        let (generation, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("Once", Options::new())).await.unwrap();
        speaks(&client, &generation).await;
        let model = format!("{PATH}/model/mock_2dendless");
        for pin in [true, false] {
            let options = Options::from([("pin", Variant::new(pin))]);
            let job: OwnedObjectPath = manager.call("LoadModel", &("default", options)).await.unwrap();
            at(&client, job.as_str(), JOB).await.call::<_, _, ()>("Wait", &()).await.unwrap();
            assert_eq!(&*properties(&client, &model, MODEL).await["Pinned"], &Variant::new(true), "{pin}");
        }
        let gentle = manager.call_method("UnloadModel", &("default", Options::new())).await;
        assert_eq!(error(gentle), "org.sotto.Error.ModelBusy");
        let forced = Options::from([("force", Variant::new(true))]);
        manager.call::<_, _, ()>("UnloadModel", &("default", forced)).await.unwrap();
        let lines = drained(stream).await;
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["code"], "cancelled", "{last}");
        let result = at(&client, generation.as_str(), GENERATION).await.call_method("Result", &()).await;
        assert_eq!(error(result), "org.sotto.Error.Cancelled");
        assert_eq!(text(&properties(&client, &model, MODEL).await, "State"), "available");
        // It is loaded again for whoever asks.
        let options = Options::from([("max_tokens", Variant::new(2_u32))]);
        manager.call::<_, _, (String, Values)>("Generate", &("Once", options)).await.unwrap();
    });
}

#[test]
fn a_model_is_loaded_anew_with_another_context() {
    on_a_pair_with(two_models(), DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        for n in [100_u32, 200, 200, 9_999_999] {
            let options = Options::from([("context", Variant::new(n))]);
            let job: OwnedObjectPath = manager.call("LoadModel", &("one", options)).await.unwrap();
            at(&client, job.as_str(), JOB).await.call::<_, _, ()>("Wait", &()).await.unwrap();
            let told = properties(&client, &format!("{PATH}/model/one"), MODEL).await;
            assert_eq!(
                (&*told["Context"], text(&told, "State")),
                (&Variant::new(n.min(512)), "loaded".into())
            );
        }
        let prompt = "a b c d ".repeat(200);
        let options = Options::from([("raw", Variant::new(true))]);
        let refused = manager.call_method("Generate", &(prompt, options)).await;
        assert_eq!(error(refused), "org.sotto.Error.ContextTooLong");
    });
}

#[test]
fn a_generation_is_an_object_with_a_result() {
    on_a_pair_with(engine(), DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        let options = || {
            Options::from([
                ("max_tokens", Variant::new(20_u32)),
                ("seed", Variant::new(7_u64)),
                ("raw", Variant::new(true)),
                ("logprobs", Variant::new(1_u32)),
            ])
        };
        let (said, mut info): (String, Values) =
            manager.call("Generate", &("Once", options())).await.unwrap();
        let (path, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("Once", options())).await.unwrap();
        let generation = at(&client, path.as_str(), GENERATION).await;
        let result = generation.call::<_, _, (String, Values)>("Result", &());
        let (result, _) = tokio::join!(result, drained(stream));
        let (text_again, mut info_again) = result.unwrap();
        assert_eq!(said, text_again);
        for volatile in ["id", "timings", "usage"] {
            assert!(info.remove(volatile).is_some() && info_again.remove(volatile).is_some());
        }
        assert_eq!(info, info_again);
        let told = properties(&client, path.as_str(), GENERATION).await;
        assert_eq!(text(&told, "State"), "done");
        assert!(path.as_str().ends_with(&text(&told, "Id")));
        assert_eq!(told["Model"].value_signature().to_string(), "o");
        generation.call::<_, _, ()>("Cancel", &()).await.unwrap();
        let (after, _): (String, Values) = generation.call("Result", &()).await.unwrap();
        assert_eq!(after, said, "an end is not changed");
    });
}

#[test]
fn a_load_is_taken_back_however_soon() {
    let mock: Mock = "load_ms=400".parse().unwrap();
    let options = sotto::engine::Options { threads: 1, mock: Some(mock), ..Default::default() };
    let settings = Settings { models: Mock::models(), ..Settings::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    on_a_pair_with(engine, DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        for pause_ms in [0, 0, 1, 50, 0] {
            let job: OwnedObjectPath = manager.call("LoadModel", &("mock", Options::new())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            manager.call::<_, _, ()>("UnloadModel", &("mock", Options::new())).await.unwrap();
            let waited = at(&client, job.as_str(), JOB).await.call_method("Wait", &()).await;
            assert_eq!(error(waited), "org.sotto.Error.Cancelled", "{pause_ms} ms");
            let loaded: Vec<OwnedObjectPath> = manager.get_property("LoadedModels").await.unwrap();
            assert_eq!(loaded, []);
        }
    });
}

#[test]
fn what_has_ended_keeps_no_door_open() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let door = sotto::door::dbus::serve(two_models(), Bus::Peer(theirs), DbusOptions::default());
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (door, client) = tokio::join!(door, client);
        let (door, client) = (door.unwrap(), client.unwrap());
        let manager = manager(&client).await;
        let options = Options::from([("max_tokens", Variant::new(2_u32))]);
        let (path, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("hi", options)).await.unwrap();
        let job: OwnedObjectPath = manager.call("LoadModel", &("one", Options::new())).await.unwrap();
        drained(stream).await;
        at(&client, job.as_str(), JOB).await.call::<_, _, ()>("Wait", &()).await.unwrap();
        let _: (String, Values) =
            at(&client, path.as_str(), GENERATION).await.call("Result", &()).await.unwrap();
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if door.n_open() == 0 {
                break;
            }
        }
        assert_eq!(door.n_open(), 0);
        // And can be looked at still.
        assert_eq!(text(&properties(&client, path.as_str(), GENERATION).await, "State"), "done");
        assert_eq!(text(&properties(&client, job.as_str(), JOB).await, "State"), "done");
    });
}

#[test]
fn a_session_has_one_turn_at_a_time() {
    on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
        let mut signals = MessageStream::from(&client);
        let manager = manager(&client).await;
        let path: OwnedObjectPath = manager.call("OpenSession", &(Options::new(),)).await.unwrap();
        let session = at(&client, path.as_str(), SESSION).await;
        let (turn, stream): (OwnedObjectPath, OwnedFd) =
            session.call("Send", &("More", Options::new())).await.unwrap();
        speaks(&client, &turn).await;
        let second = session.call_method("Ask", &("More", Options::new())).await;
        assert_eq!(error(second), "org.sotto.Error.SessionBusy");
        at(&client, turn.as_str(), GENERATION).await.call::<_, _, ()>("Cancel", &()).await.unwrap();
        let lines = drained(stream).await;
        heard(&mut signals, "Done").await;
        let event = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let joined: String =
            lines.lines().filter_map(|line| event(line)["text"].as_str().map(str::to_owned)).collect();
        assert!(!joined.is_empty());
        // What was said of a turn that broke off is kept.
        let (all,): (Vec<Values>,) =
            session.call_method("History", &()).await.unwrap().body().deserialize().unwrap();
        assert_eq!(text(all.last().unwrap(), "content"), joined);
    });
}

#[test]
fn a_session_knows_what_was_said() {
    let options = limits(SessionLimits { max_per_uid: 2, ..SessionLimits::default() });
    on_a_pair_with(engine(), options, |client| async move {
        let mut signals = MessageStream::from(&client);
        let manager = manager(&client).await;
        let open = |options: Options<'static>| {
            let manager = manager.clone();
            async move { manager.call_method("OpenSession", &(options,)).await }
        };
        let defaults = Options::from([
            ("system", Variant::new("Be brief.")),
            ("messages", Variant::new(vec![("user", "Hi"), ("assistant", "Hello.")])),
            ("max_tokens", Variant::new(5_u32)),
            ("seed", Variant::new(3_u64)),
        ]);
        let path: OwnedObjectPath = open(defaults).await.unwrap().body().deserialize().unwrap();
        let session = at(&client, path.as_str(), SESSION).await;
        let (said, info): (String, Values) =
            session.call("Ask", &("Who are you?", Options::new())).await.unwrap();
        assert_eq!(text(&info, "finish_reason"), "length");
        let history = || async {
            let (all,): (Vec<Values>,) =
                session.call_method("History", &()).await.unwrap().body().deserialize().unwrap();
            all.iter().map(|m| (text(m, "role"), text(m, "content"))).collect::<Vec<_>>()
        };
        let all = history().await;
        let roles: Vec<&str> = all.iter().map(|(role, _)| role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
        assert_eq!((all[3].1.as_str(), &all[4].1), ("Who are you?", &said));
        let used: u32 = session.get_property("ContextUsed").await.unwrap();
        assert!(used > 10, "{used}");

        // The same conversation in one call gives the same answer to the next question.
        let messages: Vec<(&str, &str)> = all.iter().map(|(r, c)| (r.as_str(), c.as_str())).collect();
        let whole = Options::from([
            ("messages", Variant::new(messages)),
            ("max_tokens", Variant::new(9_u32)),
            ("seed", Variant::new(3_u64)),
        ]);
        let (wanted, _): (String, Values) = manager.call("Generate", &("And then?", whole)).await.unwrap();
        let more = Options::from([("max_tokens", Variant::new(9_u32)), ("format", Variant::new("text"))]);
        let (_, stream): (OwnedObjectPath, OwnedFd) =
            session.call("Send", &("And then?", more)).await.unwrap();
        assert_eq!(drained(stream).await, wanted);
        heard(&mut signals, "Done").await;
        assert_eq!(history().await.len(), 7);

        session.call::<_, _, ()>("Reset", &()).await.unwrap();
        assert_eq!(history().await.len(), 3);

        for (key, value) in [("model", Variant::new("inside")), ("raw", Variant::new(true))] {
            let refused = session.call_method("Ask", &("x", Options::from([(key, value)]))).await;
            assert_eq!(error(refused), "org.freedesktop.DBus.Error.InvalidArgs", "{key}");
        }
        open(Options::new()).await.unwrap();
        assert_eq!(error(open(Options::new()).await), "org.sotto.Error.QueueFull");
        session.call::<_, _, ()>("Close", &()).await.unwrap();
        let (why,): (String,) = heard(&mut signals, "Closed").await.body().deserialize().unwrap();
        assert_eq!(why, "closed");
        let gone = session.call_method("History", &()).await;
        assert_eq!(error(gone), "org.freedesktop.DBus.Error.UnknownObject");
        open(Options::new()).await.unwrap();
    });
}

#[test]
fn sessions_end_with_their_model_and_when_nobody_uses_them() {
    let options = limits(SessionLimits { idle_s: 1, ..SessionLimits::default() });
    on_a_pair_with(engine(), options, |client| async move {
        let mut signals = MessageStream::from(&client);
        let manager = manager(&client).await;
        let _: OwnedObjectPath = manager.call("OpenSession", &(Options::new(),)).await.unwrap();
        let (why,): (String,) = heard(&mut signals, "Closed").await.body().deserialize().unwrap();
        assert_eq!(why, "idle");
        let _: OwnedObjectPath = manager.call("OpenSession", &(Options::new(),)).await.unwrap();
        manager.call::<_, _, ()>("UnloadModel", &("inside", Options::new())).await.unwrap();
        let (why,): (String,) = heard(&mut signals, "Closed").await.body().deserialize().unwrap();
        assert_eq!(why, "model-unloaded");
    });
}

#[test]
fn standard_interfaces_are_answered_as_the_standard_says() {
    let reloaded = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = reloaded.clone();
    let reload = move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    };
    let options = DbusOptions {
        reload: Some(sotto::door::dbus::Reload(std::sync::Arc::new(reload))),
        ..DbusOptions::default()
    };
    on_a_pair_with(engine(), options, |client| async move {
        let manager = manager(&client).await;
        let call = |path: &'static str, interface: Option<&'static str>, member: &'static str| {
            let client = client.clone();
            async move { client.call_method(Some("org.sotto.Sotto1"), path, interface, member, &()).await }
        };
        call(PATH, Some("org.freedesktop.DBus.Peer"), "Ping").await.unwrap();
        manager.call::<_, _, ()>("Reload", &()).await.unwrap();
        assert_eq!(reloaded.load(std::sync::atomic::Ordering::Relaxed), 1);
        // An interface need not be named.
        call(PATH, None, "ListModels").await.unwrap();
        for (path, interface, member, name) in [
            ("/org/nobody", None, "Ping", "UnknownObject"),
            ("/org/sotto/Sotto1/job/0", None, "Ping", "UnknownObject"),
            (PATH, Some(MANAGER), "Nothing", "UnknownMethod"),
            (PATH, Some("org.nobody"), "Ping", "UnknownInterface"),
            (PATH, Some(MANAGER), "Generate", "InvalidArgs"),
        ] {
            let refused = error(call(path, interface, member).await);
            assert_eq!(refused, format!("org.freedesktop.DBus.Error.{name}"), "{path} {member}");
        }
        let of = at(&client, PATH, "org.freedesktop.DBus.Properties").await;
        for (body, name) in
            [((MANAGER, "Nothing"), "UnknownProperty"), (("org.nobody", "Tier"), "UnknownInterface")]
        {
            let refused = error(of.call_method("Get", &body).await);
            assert_eq!(refused, format!("org.freedesktop.DBus.Error.{name}"));
        }
        // Without an interface it is the one that has properties; whether anybody is there can be asked anywhere.
        let tier: OwnedVariant = of.call("Get", &("", "Tier")).await.unwrap();
        assert_eq!(tier, of.call("Get", &(MANAGER, "Tier")).await.unwrap());
        let all: Values = of.call("GetAll", &("",)).await.unwrap();
        assert!(all.contains_key("Tier") && all.contains_key("State"), "{all:?}");
        let nowhere = at(&client, "/nowhere", "org.freedesktop.DBus.Peer").await;
        nowhere.call::<_, _, ()>("Ping", &()).await.unwrap();
        assert!(error(nowhere.call_method("Nothing", &()).await).ends_with("UnknownMethod"));
        let set = of.call_method("Set", &(MANAGER, "Tier", Variant::new("x"))).await;
        assert_eq!(error(set), "org.freedesktop.DBus.Error.PropertyReadOnly");
        let log = at(&client, "/org/freedesktop/LogControl1", "org.freedesktop.LogControl1").await;
        let id: String = log.get_property("SyslogIdentifier").await.unwrap();
        assert_eq!(id, "sottod");
        assert!(log.set_property("LogLevel", "loud").await.is_err());
        assert!(log.set_property("LogTarget", "moon").await.is_err());
        let tokens: Vec<u32> = {
            let reply = manager.call_method("Tokenize", &("Once upon", Options::new())).await.unwrap();
            reply.body().deserialize().unwrap()
        };
        assert!(!tokens.is_empty());
    });
}

/// Introspection data of every kind of object is what the file says, comments and layout aside.
#[test]
fn introspection_is_the_interface_file() {
    on_a_pair_with(engine(), DbusOptions::default(), |client| async move {
        let manager = manager(&client).await;
        let (path, _stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("hi", Options::new())).await.unwrap();
        let session: OwnedObjectPath = manager.call("OpenSession", &(Options::new(),)).await.unwrap();
        let job: OwnedObjectPath = manager.call("LoadModel", &("inside", Options::new())).await.unwrap();
        let file = tags(include_str!("../../proto/org.sotto.Sotto1.xml"));
        for (path, names) in [
            (PATH.to_owned(), vec![MANAGER, "org.freedesktop.DBus.ObjectManager"]),
            (format!("{PATH}/model/inside"), vec![MODEL]),
            (path.as_str().to_owned(), vec![GENERATION]),
            (session.as_str().to_owned(), vec![SESSION]),
            (job.as_str().to_owned(), vec![JOB]),
            ("/org/freedesktop/LogControl1".to_owned(), vec!["org.freedesktop.LogControl1"]),
        ] {
            let introspectable = at(&client, &path, "org.freedesktop.DBus.Introspectable").await;
            let xml: String = introspectable.call("Introspect", &()).await.unwrap();
            let served = tags(&xml);
            for name in names {
                let (ours, theirs) = (interface(&served, name), interface(&file, name));
                assert!(!ours.is_empty(), "{path} has no {name}");
                assert_eq!(ours, theirs, "{path}");
            }
        }
    });
}

/// The tags of a text, without comments and without what comes later.
fn tags(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut later = None::<String>;
    while let Some((_, after)) = rest.split_once('<') {
        if let Some(comment) = after.strip_prefix("!--") {
            let (words, after) = comment.split_once("-->").unwrap();
            if words.contains("since: later") && words.trim().starts_with("since") {
                later = Some(String::new());
            }
            rest = after;
            continue;
        }
        let (tag, after) = after.split_once('>').unwrap();
        rest = after;
        match &mut later {
            // Left out to its end tag.
            Some(end) if end.is_empty() => {
                *end = format!("/{}", tag.split(' ').next().unwrap());
                if tag.ends_with('/') {
                    later = None;
                }
            }
            Some(end) if *end == tag => later = None,
            Some(_) => {}
            None => found.push(tag.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }
    found
}

/// Those of one interface.
fn interface(tags: &[String], name: &str) -> Vec<String> {
    let begins = format!("interface name=\"{name}\"");
    let of = tags.iter().skip_while(|tag| **tag != begins);
    of.take_while(|tag| *tag != "/interface").cloned().collect()
}

/// What another user sees: the manager and the models, and of others' generations, sessions and jobs nothing.
#[test]
fn a_stranger_sees_nothing_of_anothers() {
    let wanted = ["dbus-daemon", "setpriv", "timeout", "busctl"];
    if !wanted.iter().all(|program| have(program, "strangers on a bus")) {
        return;
    }
    if sotto::os::process::uid() != 0 {
        println!("skipped: strangers on a bus; only root may act as another user");
        return;
    }
    let folder = Folder::new();
    let (_bus, address) = bus(&folder);
    // A call of busctl's waits 25 s for its answer; `tree` makes one for each object.
    let stranger = |arguments: Vec<String>| {
        let mut call = Command::new("timeout");
        call.args(["60", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "busctl"]);
        call.arg(format!("--address={address}")).args(arguments).stdin(Stdio::null());
        async move {
            let output = tokio::task::spawn_blocking(move || call.output()).await.unwrap().unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let look = async {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let id = "call org.freedesktop.DBus / org.freedesktop.DBus GetId";
        let (well, said) = stranger(words(id)).await;
        if !well {
            println!("skipped: strangers on a bus; user 65534 cannot call the bus here: {said}");
            return;
        }
        let door = sotto::door::dbus::serve(engine(), Bus::Address(address.clone()), DbusOptions::default());
        let _door = door.await.unwrap();
        let client = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let manager = manager(&client).await;
        let (generation, _stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("hi", Options::new())).await.unwrap();
        let session: OwnedObjectPath = manager.call("OpenSession", &(Options::new(),)).await.unwrap();
        let job: OwnedObjectPath = manager.call("LoadModel", &("inside", Options::new())).await.unwrap();
        let (well, tree) = stranger(words("tree org.sotto.Sotto1")).await;
        assert!(well && tree.contains("/org/sotto/Sotto1/model/inside"), "{tree}");
        let get =
            "call org.sotto.Sotto1 /org/sotto/Sotto1 org.freedesktop.DBus.ObjectManager GetManagedObjects";
        let (well, objects) = stranger(words(get)).await;
        assert!(well && objects.contains("/model/inside"), "{objects}");
        for private in [&generation, &session, &job] {
            let id = private.as_str().rsplit('/').next().unwrap();
            assert!(!tree.contains(id) && !objects.contains(id), "{private}");
            for line in [
                format!("introspect org.sotto.Sotto1 {private}"),
                format!(
                    "call org.sotto.Sotto1 {private} org.freedesktop.DBus.Properties GetAll s {GENERATION}"
                ),
            ] {
                let (well, said) = stranger(words(&line)).await;
                assert!(!well && said.contains("no such object, or none of yours"), "{line}: {said}");
            }
        }
        for (interface, property) in [(GENERATION, "State"), (SESSION, "Model"), (JOB, "State")] {
            for path in [&generation, &session, &job] {
                let line = format!("get-property org.sotto.Sotto1 {path} {interface} {property}");
                let (well, said) = stranger(words(&line)).await;
                assert!(!well && said.contains("no such object"), "{line}: {said}");
            }
        }
        // What only the administrator may do, and cancelling what another one asked for.
        let at = format!("call org.sotto.Sotto1 {PATH} {MANAGER}");
        for (line, why) in [
            (format!("{at} LoadModel sa{{sv}} inside 0"), "not_authorized"),
            (format!("{at} UnloadModel sa{{sv}} inside 0"), "not_authorized"),
            (format!("{at} Reload"), "not_authorized"),
            (format!("{at} Cancel o {generation}"), "unknown_object"),
            (
                "set-property org.sotto.Sotto1 /org/freedesktop/LogControl1 org.freedesktop.LogControl1 LogLevel s debug"
                    .to_owned(),
                "not_authorized",
            ),
        ] {
            let (well, said) = stranger(words(&line)).await;
            // busctl has a word of its own for what may not be.
            let why = if why == "not_authorized" { "Access denied" } else { why };
            assert!(!well && said.contains(why), "{line}: {said}");
        }
        let (well, said) = stranger(words(&format!("{at} Generate sa{{sv}} hi 1 max_tokens u 2"))).await;
        assert!(well && said.starts_with("sa{sv}"), "{said}");
    };
    let looked = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(240), look).await });
    runtime.shutdown_background();
    looked.expect("a call that nobody answers");
}
