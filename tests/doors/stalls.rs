//! Who asks and does not read: what they hear of it, whenever they look again, and that nothing stays held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::{Value, json};
use sotto::base::Token;
use sotto::door::http::HttpOptions;
use sotto::engine::{
    Code, Engine, Event, Handle, Mock, Offer, Options as EngineOptions, Request, Settings, Sink,
};

use super::batch::request;
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

/// Reads a little every fifth of a second, for three times as long as nobody may rest.
fn trickle(mut from: impl std::io::Read, n: usize) {
    let mut piece = vec![0; n];
    for _ in 0..15 * STALL_S {
        from.read_exact(&mut piece).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn who_reads_slowly_has_not_stalled() {
    let house = House(Inside::start(endless(), HttpOptions { idle_timeout_s: 1, ..HttpOptions::default() }));
    let mut stream = house.connect();
    let body = json!({"model": "mock-endless", "input": "again and again"}).to_string();
    std::io::Write::write_all(&mut stream, &post(NATIVE, body)).unwrap();
    // Slower than the room that the system makes for whole pages of it.
    trickle(&mut stream, 1_024);
    assert_eq!(house.0.engine.status().active_generations, 1);
}

/// Room for no text until it is open, and for a failure always.
struct Gate(Arc<AtomicBool>, Sender<Event>);

impl Sink for Gate {
    fn offer(&mut self, event: &Event) -> Offer {
        if matches!(event, Event::Text { .. }) && !self.0.load(Ordering::Relaxed) {
            return Offer::Full;
        }
        if self.1.send(event.clone()).is_ok() { Offer::Taken } else { Offer::Gone }
    }
}

/// The last event of a request.
fn end(events: &Receiver<Event>) -> Event {
    loop {
        let event = events.recv_timeout(Duration::from_secs(10)).expect("an end in time");
        if matches!(event, Event::Done(_) | Event::Failed(_)) {
            return event;
        }
    }
}

#[test]
fn the_rest_of_a_complete_answer_waits_for_who_reads_slowly() {
    let engine = endless();
    let one_token = |id| {
        let whole = request(id, 1, &[Token(3)], 1, false);
        let (gate, (sink, events)) = (Arc::new(AtomicBool::new(false)), channel());
        let whole = Request { model: Some("mock-endless".into()), ..whole };
        let handle: Handle = engine.submit(whole, Box::new(Gate(gate.clone(), sink))).unwrap();
        (handle, gate, events)
    };
    let ((slow, open, slow_events), (_still, _shut, still_events)) = (one_token(1), one_token(2));
    // As doors tell of each look at which less was unread, for three times as long as nobody may rest.
    for _ in 0..15 * STALL_S {
        std::thread::sleep(Duration::from_millis(200));
        slow.drained();
    }
    open.store(true, Ordering::Relaxed);
    slow.drained();
    let slow_end = end(&slow_events);
    assert!(matches!(&slow_end, Event::Done(done) if done.usage.completion_tokens == 1), "{slow_end:?}");
    let still_end = end(&still_events);
    assert!(matches!(&still_end, Event::Failed(fault) if fault.code == Code::Stalled), "{still_end:?}");
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
            // Its last line waits for room, longer than the stall took.
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            let lines = drained(stream).await;
            assert!(lines.lines().last().unwrap().contains("\"code\":\"stalled\""), "{} bytes", lines.len());
        });
    }

    #[test]
    fn a_stream_that_is_read_slowly_goes_on() {
        on_a_pair_with(endless(), DbusOptions::default(), |client| async move {
            let (path, stream) = unread(&client).await;
            let file = std::fs::File::from(std::os::fd::OwnedFd::from(stream));
            tokio::task::spawn_blocking(move || trickle(&file, 32)).await.unwrap();
            // It was there until here.
            let state = text(&properties(&client, path.as_str(), GENERATION).await, "State");
            assert!(["paused", "decode", "failed"].contains(&state.as_str()), "{state}");
            assert_eq!(result(&client, &path).await, "org.sotto.Error.Cancelled");
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
