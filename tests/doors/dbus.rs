//! D-Bus over a socket pair and on a bus of its own.

use super::*;
use crate::support::{Folder, bus, have};
use sotto::door::dbus::{Bus, DbusOptions};
use std::collections::HashMap;
use std::pin::Pin;
use std::process::{Command, Stdio};
use zbus::export::futures_core::Stream;
use zbus::{Connection, MessageStream, OwnedFd, OwnedObjectPath, OwnedVariant, Proxy, Variant};

pub(super) const PATH: &str = "/org/sotto/Sotto1";
pub(super) const MANAGER: &str = "org.sotto.Sotto1.Manager";
pub(super) type Options<'a> = HashMap<&'a str, Variant<'a>>;

pub(super) fn on_a_pair<F: Future<Output = ()>>(test: impl FnOnce(Connection) -> F) {
    on_a_pair_with(engine(), DbusOptions::default(), test);
}

pub(super) fn on_a_pair_with<F: Future<Output = ()>>(
    engine: Engine,
    options: DbusOptions,
    test: impl FnOnce(Connection) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let door = sotto::door::dbus::serve(engine, Bus::Peer(theirs), options);
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (door, client) = tokio::join!(door, client);
        let _door = door.unwrap();
        test(client.unwrap()).await;
    });
}

pub(super) async fn manager(client: &Connection) -> Proxy<'static> {
    Proxy::new(client, "org.sotto.Sotto1", PATH, MANAGER).await.unwrap()
}

#[test]
fn a_call_is_answered_with_text_and_info() {
    on_a_pair(|client| async move {
        let options = Options::from([("max_tokens", Variant::new(3_u32)), ("seed", Variant::new(7_u64))]);
        let (text, info): (String, HashMap<String, OwnedVariant>) =
            manager(&client).await.call("Generate", &("Say hi", options)).await.unwrap();
        assert!(!text.is_empty());
        let mut keys: Vec<&str> = info.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["finish_reason", "id", "model", "seed", "stop_detail", "timings", "usage"]);
        let signature = |key: &str| info[key].value_signature().to_string();
        assert_eq!(
            (signature("usage"), signature("timings"), signature("seed")),
            ("a{su}".into(), "a{sd}".into(), "t".into())
        );
    });
}

/// The same request at both doors gives the same text and the same likelihoods.
#[test]
fn both_doors_draw_alike() {
    let house = House::new(HttpOptions::default());
    let mut fields = everything();
    fields["max_tokens"] = json!(12);
    fields["logprobs"] = json!(2);
    let (text, tokens) = told(&house, fields);
    let strip =
        |event: &Value| json!({"ids": event["ids"], "logprob": event["logprob"], "top": event["top"]});
    let tokens: Vec<Value> = tokens.iter().map(strip).collect();
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        let numbers = [
            ("temperature", 0.9),
            ("top_p", 0.97),
            ("min_p", 0.01),
            ("typical_p", 0.98),
            ("repeat_penalty", 1.1),
            ("frequency_penalty", 0.1),
            ("presence_penalty", 0.1),
            ("dry_multiplier", 0.8),
            ("dry_base", 1.5),
        ];
        let counts = [
            ("top_k", 30_u32),
            ("repeat_last_n", 32),
            ("dry_allowed_length", 2),
            ("dry_last_n", 64),
            ("min_tokens", 5),
            ("max_tokens", 12),
            ("logprobs", 2),
        ];
        let options = || {
            let mut options = Options::from([
                ("raw", Variant::new(true)),
                ("seed", Variant::new(11_u64)),
                ("dry_breakers", Variant::new(vec!["."])),
                ("logit_bias", Variant::new(HashMap::from([(29_u32, 0.5)]))),
                ("reasoning_effort", Variant::new("none")),
            ]);
            options.extend(numbers.map(|(key, x)| (key, Variant::new(x))));
            options.extend(counts.map(|(key, x)| (key, Variant::new(x))));
            options
        };
        let (said, info): (String, HashMap<String, OwnedVariant>) =
            manager.call("Generate", &("Once upon a time", options())).await.unwrap();
        assert_eq!(said, text);
        let Variant::Str(json) = &*info["logprobs"] else { panic!("{info:?}") };
        assert_eq!(serde_json::from_str::<Vec<Value>>(json.as_str()).unwrap(), tokens);
        let (_, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("Once upon a time", options())).await.unwrap();
        let lines = drained(stream).await;
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let events: Vec<Value> = events.filter(|event| event["ids"].is_array()).collect();
        assert_eq!(events.iter().map(strip).collect::<Vec<_>>(), tokens);
    });
}

#[test]
fn errors_have_their_names_and_begin_with_the_code() {
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        for (options, name, code) in [
            (
                Options::from([("temprature", Variant::new(1.0))]),
                "org.sotto.Error.UnknownOption",
                "unknown_field: temprature",
            ),
            (
                Options::from([("max_tokens", Variant::new(0_u32))]),
                "InvalidArgs",
                "invalid_value: max_tokens",
            ),
            (Options::from([("typical_p", Variant::new(0.0))]), "InvalidArgs", "invalid_value: typical_p"),
            (
                Options::from([("reasoning_effort", Variant::new("high"))]),
                "NotSupported",
                "unsupported_field: reasoning_effort",
            ),
            (Options::from([("regex", Variant::new("a"))]), "NotSupported", "unsupported_field: regex"),
            (
                Options::from([("format", Variant::new("text"))]),
                "org.sotto.Error.UnknownOption",
                "unknown_field: format",
            ),
            (
                Options::from([("system", Variant::new("x".repeat(1 << 20)))]),
                "org.sotto.Error.TooLarge",
                "body_too_large: ",
            ),
        ] {
            let call = ("hi", options);
            let refused =
                manager.call::<_, _, (String, HashMap<String, OwnedVariant>)>("Generate", &call).await;
            let said = format!("{:?}", refused.unwrap_err());
            assert!(said.contains(name) && said.contains(code), "{said}");
        }
        let bad = OwnedObjectPath::try_from("/org/sotto/Sotto1/generation/x").unwrap();
        let said = format!("{:?}", manager.call::<_, _, ()>("Cancel", &(bad,)).await.unwrap_err());
        assert!(said.contains("UnknownObject") && said.contains("unknown_object: "), "{said}");
    });
}

/// Both numbers of a prompt that does not fit stand beside the message: in the reply, in the pipe, in the signal.
/// A message of many empty values takes a hundred times its bytes once they are values: it is refused before.
#[test]
fn a_heap_of_empty_values_is_refused_unread() {
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        for n in [70_000, 1_000_000] {
            let options = Options::from([("messages", Variant::new(vec![("user", ""); n]))]);
            let refused = manager.call_method("Generate", &("hi", options)).await.unwrap_err().to_string();
            assert!(refused.contains("body_too_large: the call has more than 65536 values"), "{refused}");
        }
    });
}

#[test]
fn what_does_not_fit_is_told_in_numbers() {
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        let mut signals = MessageStream::from(&client);
        let call = ("a b c d ".repeat(400), Options::from([("raw", Variant::new(true))]));
        let refused = manager.call::<_, _, (String, HashMap<String, OwnedVariant>)>("Generate", &call).await;
        let zbus::Error::MethodError(name, Some(said), reply) = refused.unwrap_err() else {
            panic!("no error of the method")
        };
        assert_eq!(name.as_str(), "org.sotto.Error.ContextTooLong");
        assert!(said.starts_with("context_too_long: input: the prompt has 1602 tokens"), "{said}");
        let numbers = HashMap::from(
            [("need", 1603_u64), ("have", 512)].map(|(key, n)| (key.to_owned(), Variant::new(n))),
        );
        let body = reply.body();
        let (_, details): (String, HashMap<String, Variant<'_>>) = body.deserialize().unwrap();
        assert_eq!(details, numbers);

        let (_, stream): (OwnedObjectPath, OwnedFd) = manager.call("StartGeneration", &call).await.unwrap();
        let line: Value = serde_json::from_str(&drained(stream).await).unwrap();
        assert_eq!(
            (&line["code"], &line["need"], &line["have"]),
            (&json!("context_too_long"), &json!(1603), &json!(512)),
            "{line}"
        );
        let done = done(&mut signals).await.body();
        let (_, _, info): (String, String, HashMap<String, Variant<'_>>) = done.deserialize().unwrap();
        assert_eq!(info, numbers);
    });
}

#[test]
fn a_running_answer_is_cancelled_by_its_path() {
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        let version: String = manager.get_property("Version").await.unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        let options = Options::from([("max_tokens", Variant::new(400_u32)), ("raw", Variant::new(true))]);
        let (path, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("Once", options)).await.unwrap();
        manager.call::<_, _, ()>("Cancel", &(path.clone(),)).await.unwrap();
        let text = drained(stream).await;
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["code"]), (&json!("error"), &json!("cancelled")), "{text}");
        // One that has ended is no error.
        manager.call::<_, _, ()>("Cancel", &(path,)).await.unwrap();
    });
}

/// Everything that the pipe holds until its end.
pub(super) async fn drained(stream: OwnedFd) -> String {
    let mut file = std::fs::File::from(std::os::fd::OwnedFd::from(stream));
    let read = move || {
        let mut text = String::new();
        file.read_to_string(&mut text).map(|_| text)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap()
}

#[test]
fn a_stream_holds_events_or_text_and_ends() {
    on_a_pair(|client| async move {
        let manager = manager(&client).await;
        let options = |format| {
            let sampling = [("max_tokens", Variant::new(40_u32)), ("seed", Variant::new(1_u64))];
            Options::from_iter(sampling.into_iter().chain([("format", Variant::new(format))]))
        };
        let (path, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("hi", options("events"))).await.unwrap();
        assert!(path.as_str().starts_with("/org/sotto/Sotto1/generation/"));
        let text = drained(stream).await;
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.ends_with('\n') && text.lines().all(|line| line.len() < 4096));
        assert_eq!(events.last().unwrap()["event"], "done");
        assert!(path.as_str().ends_with(events.last().unwrap()["id"].as_str().unwrap()));
        let joined: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
        let (_, stream): (OwnedObjectPath, OwnedFd) =
            manager.call("StartGeneration", &("hi", options("text"))).await.unwrap();
        assert_eq!(drained(stream).await.len(), joined.len());
    });
}

/// The next `Done` that is sent.
async fn done(stream: &mut MessageStream) -> zbus::Message {
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx));
        let message = tokio::time::timeout(Duration::from_secs(3), next).await.unwrap().unwrap().unwrap();
        if message.header().member().is_some_and(|member| member == "Done") {
            return message;
        }
    }
}

#[test]
fn closing_the_stream_cancels_and_the_owner_is_told() {
    on_a_pair(|client| async move {
        let mut heard = MessageStream::from(&client);
        let manager = manager(&client).await;
        for (n, read, error) in [(3_u32, true, ""), (3000, false, "org.sotto.Error.Cancelled")] {
            let options = Options::from([("max_tokens", Variant::new(n))]);
            let (_, stream): (OwnedObjectPath, OwnedFd) =
                manager.call("StartGeneration", &("hi", options)).await.unwrap();
            if read {
                drained(stream).await;
            } else {
                drop(stream);
            }
            let body = done(&mut heard).await.body();
            let (_, said, _): (String, String, HashMap<String, OwnedVariant>) = body.deserialize().unwrap();
            assert_eq!(said, error);
        }
    });
}

#[test]
fn a_shell_is_answered_and_who_leaves_the_bus_is_cancelled() {
    if !have("dbus-daemon", "calls on a bus") {
        return;
    }
    let folder = Folder::new();
    let (bus, address) = bus(&folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = engine();
        let serve = || {
            sotto::door::dbus::serve(engine.clone(), Bus::Address(address.clone()), DbusOptions::default())
        };
        let door = serve().await.unwrap();
        assert!(serve().await.is_err(), "two owners of one name");
        let call = |n: &str| {
            let mut call = Command::new("busctl");
            call.arg(format!("--address={address}")).args(["call", "org.sotto.Sotto1", PATH, MANAGER]);
            call.args(["Generate", "sa{sv}", "Say hi", "1", "max_tokens", "u", n]);
            call.stdout(Stdio::piped()).stderr(Stdio::piped());
            call
        };
        if let Ok(shell) = call("3").spawn() {
            let output = tokio::task::spawn_blocking(|| shell.wait_with_output()).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && said.starts_with("sa{sv} \""), "{output:?}");
            let mut leaver = call("3000").spawn().unwrap();
            let mut n_looks = 0;
            while engine.status().active_generations == 0 && n_looks < 2_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                n_looks += 1;
            }
            leaver.kill().unwrap();
            leaver.wait().unwrap();
            for _ in 0..500 {
                if engine.status() == sotto::engine::Status::default() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(engine.status(), sotto::engine::Status::default());
        } else {
            println!("skipped: busctl is not installed");
        }
        drop(bus);
        tokio::time::timeout(Duration::from_secs(5), door.closed()).await.expect("the bus's end goes unseen");
    });
    runtime.shutdown_background();
}
