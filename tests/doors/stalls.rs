//! Who asks and does not read: what they hear of it, whenever they look again, and that nothing stays held.

use std::time::Duration;

use serde_json::{Value, json};
use sotto::door::http::HttpOptions;
use sotto::engine::{Engine, Mock, Options as EngineOptions, Settings};

use super::{CHAT, House, Inside, NATIVE};
use crate::support::http::{Call, post};
use crate::support::until;

const STALL_S: u64 = 1;

/// An engine that writes without an end and waits a second for who does not read.
fn endless() -> Engine {
    let mock: Mock = "".parse().unwrap();
    let options = EngineOptions { mock: Some(mock), threads: 1, n_ctx: 32_768, ..EngineOptions::default() };
    let settings = Settings { models: Mock::models(), stall_timeout_s: STALL_S, ..Settings::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

#[test]
fn who_reads_late_is_told_of_the_stall_however_late() {
    let house = House(Inside::start(endless(), HttpOptions::default()));
    let calls = [
        (NATIVE, json!({"model": "mock-endless", "input": "again and again"})),
        (NATIVE, json!({"model": "mock-endless", "input": "again and again", "logprobs": 1})),
        (CHAT, json!({"model": "mock-endless", "messages": [{"role": "user", "content": "again"}], "stream": true, "n": 2})),
    ]
    .map(|(route, body)| {
        let mut call = Call::send(&house.0.socket, &post(route, body.to_string()));
        call.head();
        call
    });
    let engine = &house.0.engine;
    until("nothing under way", || (engine.status() == sotto::engine::Status::default()).then_some(()));
    // Past a second wait, too.
    std::thread::sleep(Duration::from_millis(2_500));
    for mut call in calls {
        let lines = call.lines_to_end();
        let last = lines.iter().rev().find(|line| !line.trim().is_empty()).expect("lines");
        let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or(last)).unwrap();
        let error = if last["event"] == "error" { &last } else { &last["error"] };
        assert_eq!(error["code"], "stalled", "{last}");
        assert!(error["message"].as_str().unwrap().contains("not read for 1 s"), "{last}");
    }
}

#[cfg(feature = "dbus")]
mod bus {
    use super::*;
    use crate::dbus::{Options, drained, manager, on_a_pair_with};
    use crate::objects::{GENERATION, SESSION, at, properties, text};
    use sotto::door::dbus::DbusOptions;
    use std::collections::HashMap;
    use zbus::{Connection, OwnedFd, OwnedObjectPath, OwnedVariant, Variant};

    type Values = HashMap<String, OwnedVariant>;

    fn endless_options() -> Options<'static> {
        Options::from([("model", Variant::from("mock-endless"))])
    }

    /// Starts one whose reader does not read.
    async fn unread(client: &Connection) -> (OwnedObjectPath, OwnedFd) {
        let manager = manager(client).await;
        manager.call("StartGeneration", &("again and again", endless_options())).await.unwrap()
    }

    async fn result(client: &Connection, path: &OwnedObjectPath) -> String {
        let generation = at(client, path.as_str(), GENERATION).await;
        let all = generation.call::<_, _, (String, Values)>("Result", &());
        match tokio::time::timeout(Duration::from_secs(5), all).await.expect("an end in time") {
            Err(zbus::Error::MethodError(name, ..)) => name.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stream_that_is_not_read_ends_for_its_owner() {
        on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
            let (path, stream) = unread(&client).await;
            assert_eq!(result(&client, &path).await, "org.sotto.Error.Stalled");
            assert_eq!(text(&properties(&client, path.as_str(), GENERATION).await, "State"), "failed");
            // Within the time that its last line waits for room.
            let lines = drained(stream).await;
            assert!(lines.lines().last().unwrap().contains("\"code\":\"stalled\""), "{} bytes", lines.len());
        });
    }

    #[test]
    fn a_stream_that_is_not_read_is_cancelled_at_once() {
        on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
            let (path, _stream) = unread(&client).await;
            while text(&properties(&client, path.as_str(), GENERATION).await, "State") != "paused" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            at(&client, path.as_str(), GENERATION).await.call::<_, _, ()>("Cancel", &()).await.unwrap();
            assert_eq!(result(&client, &path).await, "org.sotto.Error.Cancelled");
        });
    }

    #[test]
    fn a_session_goes_on_behind_a_stream_that_is_not_read() {
        on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
            let path: OwnedObjectPath =
                manager(&client).await.call("OpenSession", &(endless_options(),)).await.unwrap();
            let session = at(&client, path.as_str(), SESSION).await;
            let (path, _stream): (OwnedObjectPath, OwnedFd) =
                session.call("Send", &("again and again", Options::new())).await.unwrap();
            assert_eq!(result(&client, &path).await, "org.sotto.Error.Stalled");
            let options = Options::from([("max_tokens", Variant::from(3_u32))]);
            let (said, _): (String, Values) = session.call("Ask", &("once", options)).await.unwrap();
            assert_eq!(said, "onc");
        });
    }
}
