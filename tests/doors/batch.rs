//! Many requests at once, behind every door: each answer is the one it would be alone, and what one user's requests leave
//! is found by that user alone.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use sotto::base::Token;
use sotto::engine::{
    Caching, Caller, Class, Code, Done, Door, Effort, Engine, Event, GenerationId, Handle, Input, ModelFile,
    Offer, Options, Request, Sampling, Settings, Sink, Task,
};

use super::support::gguf::{SLOW, llama};
use super::support::until;

/// Sends everything on.
pub(crate) struct Events(pub(crate) Sender<Event>);

impl Sink for Events {
    fn offer(&mut self, event: &Event) -> Offer {
        if self.0.send(event.clone()).is_ok() { Offer::Taken } else { Offer::Gone }
    }
}

pub(crate) fn request(id: u128, uid: u32, tokens: &[Token], n: u32, cache: bool) -> Request {
    Request {
        id: GenerationId::from_bits(id),
        caller: Caller { uid, pid: None, door: Door::Local },
        model: None,
        task: Task::Generate,
        input: Input::Tokens(tokens.to_vec()),
        input_field: "input",
        effort: Effort::None,
        sampling: Sampling { seed: Some(9), min_tokens: n, ..Sampling::default() },
        max_tokens: Some(n),
        stop: Vec::new(),
        cache: if cache { Caching::Own } else { Caching::Off },
        class: Class::Interactive,
        deadline_ms: None,
    }
}

pub(crate) fn submit(engine: &Engine, request: Request) -> (Handle, Receiver<Event>) {
    let (sink, events) = channel();
    (engine.submit(request, Box::new(Events(sink))).unwrap(), events)
}

/// The text and the end of an answer.
pub(crate) fn answer(events: &Receiver<Event>) -> (String, Done) {
    let mut all = String::new();
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event within a minute") {
            Event::Text { text, .. } => all.push_str(&text),
            Event::Done(done) => return (all, done),
            Event::Failed(fault) => panic!("{fault}"),
            _ => {}
        }
    }
}

fn engine(path: PathBuf, max_sequences: usize) -> Engine {
    let models = vec![ModelFile { id: "inside".into(), path }];
    let options = Options { threads: 2, n_ctx: 400, max_sequences, prefill_chunk: 48, ..Options::default() };
    let settings = Settings { models, ..Settings::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

/// Every kind of layer: attention with windows and without, experts, each recurrence, four streams.
fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().join("model.gguf"));
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.is_file()).chain([super::support::stories()]).collect();
    files.sort();
    files
}

#[test]
fn an_answer_is_the_same_alone_and_in_any_company() {
    for file in models() {
        let engine = engine(file.clone(), 4);
        // Prompts of several lengths, some with a common beginning.
        let prompt = |i: u32, n: u32| -> Vec<Token> {
            (0..n).map(|t| Token(3 + (t * 7 + i * (t / 100)) % 90)).collect()
        };
        let prompts: Vec<Vec<Token>> =
            (0..8).map(|i| prompt(i, [150, 3, 129, 200][i as usize % 4])).collect();
        let n = 70;
        let mut id = 0;
        let mut next = |uid, i: usize, cache| {
            id += 1;
            request(id, uid, &prompts[i], n, cache)
        };
        let alone: Vec<String> = (0..prompts.len())
            .map(|i| {
                let (_handle, events) = submit(&engine, next(1, i, false));
                let (text, done) = answer(&events);
                assert_eq!(
                    (done.usage.cached_tokens, done.usage.completion_tokens),
                    (0, n as usize),
                    "{}",
                    file.display()
                );
                text
            })
            .collect();
        for round in 0..2 {
            let going: Vec<_> =
                (0..prompts.len()).map(|i| submit(&engine, next(1 + i as u32 % 3, i, true))).collect();
            for (i, (_handle, events)) in going.iter().enumerate() {
                let (text, done) = answer(events);
                assert!(
                    text == alone[i],
                    "{}, request {i} of round {round}: {text:?} for {:?}",
                    file.display(),
                    alone[i]
                );
                let (cached, n_prompt) = (done.usage.cached_tokens, prompts[i].len());
                // What the same user asked before is known, up to where a block of 64 tokens, or a state, was kept.
                let known = if round == 1 && n_prompt > 64 { 64..n_prompt } else { 0..n_prompt };
                assert!(
                    known.contains(&cached),
                    "{}, request {i} of round {round}: {cached}",
                    file.display()
                );
            }
        }
        let (_handle, events) = submit(&engine, next(77, 0, true));
        let (text, done) = answer(&events);
        assert_eq!((text == alone[0], done.usage.cached_tokens), (true, 0), "{}: a stranger", file.display());
    }
}

/// One with many long answers does not starve another's question, and a caller that leaves stops nobody.
#[test]
fn many_long_answers_leave_room_for_a_question() {
    let models = vec![ModelFile { id: "inside".into(), path: super::support::stories() }];
    let options =
        Options { threads: 2, n_ctx: 400, max_sequences: 2, prefill_chunk: 48, ..Options::default() };
    // A small part of an answer.
    let settings = Settings { models, quantum_ms: 1, ..Settings::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    let long: Vec<Token> = (0..100).map(Token).collect();
    let mut going: Vec<_> = (0..6).map(|i| submit(&engine, request(i, 1, &long, 290, true))).collect();
    let first = |events: &Receiver<Event>| {
        while !matches!(events.recv_timeout(Duration::from_secs(60)).unwrap(), Event::Text { .. }) {}
    };
    first(&going[0].1);
    let (_handle, events) = submit(&engine, request(100, 2, &long, 20, true));
    answer(&events);
    let done = going.iter().filter(|(_, events)| events.try_iter().any(|e| e.is_terminal())).count();
    assert_eq!(done, 0, "of 6 long answers ended before a short one of another user");
    drop(going.remove(1));
    for (_handle, events) in going.iter().skip(2) {
        answer(events);
    }
}

/// Background work that loses what it kept to an answer that is waited for goes on where it was.
#[test]
fn background_work_that_gives_way_is_the_same() {
    let folder = super::support::Folder::new();
    let (one, two) = (super::support::stories(), folder.join("two.gguf"));
    std::fs::copy(&one, &two).unwrap();
    let models = [("one", one), ("two", two)].map(|(id, path)| ModelFile { id: id.into(), path });
    let options = Options { threads: 1, n_ctx: 400, ..Options::default() };
    let settings =
        Settings { models: models.to_vec(), default_model: Some("one".into()), ..Settings::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    let tokens: Vec<Token> = (0..100).map(|t| Token(3 + t % 90)).collect();
    let background = |id| Request { class: Class::Background, ..request(id, 1, &tokens, 290, false) };
    let alone = answer(&submit(&engine, background(1)).1).0;
    let (_handle, events) = submit(&engine, background(2));
    let mut text = String::new();
    while text.len() < 20 {
        if let Event::Text { text: part, .. } = events.recv_timeout(Duration::from_secs(60)).unwrap() {
            text += &part;
        }
    }
    let asked = Request { model: Some("two".into()), ..request(3, 2, &tokens, 5, true) };
    let (_asked, other) = submit(&engine, asked);
    assert_eq!(answer(&other).1.model, "two");
    let (rest, done) = answer(&events);
    assert_eq!((text + &rest, done.usage.completion_tokens), (alone, 290));
}

#[test]
fn who_looks_sees_ones_own_requests_alone() {
    let engine = engine(super::support::stories(), 1);
    let prompt = [Token(1), Token(300)];
    let going = [7, 8].map(|uid| submit(&engine, request(u128::from(uid), uid, &prompt, 300, false)));
    let seen = |uid: u32| {
        let (watched, callers) = engine.watch(uid);
        (watched.iter().map(|w| (w.id.clone(), w.uid)).collect::<Vec<_>>(), callers)
    };
    let own = |uid: u32| (GenerationId::from_bits(u128::from(uid)), uid);
    assert_eq!(seen(7), (vec![own(7)], 2));
    assert_eq!(seen(9), (vec![], 2));
    assert_eq!(seen(0), (vec![own(7), own(8)], 2), "root sees all");
    drop(going);
    assert_eq!(seen(0), (vec![], 0));
}

/// Whoever left the queue has cost nothing: no layer, no token, and no time of who comes behind.
#[test]
fn ten_that_left_the_queue_cost_nothing() {
    let engine = engine(super::support::stories(), 1);
    let tokens = |n: u32| -> Vec<Token> { (0..n).map(|t| Token(3 + t % 90)).collect() };
    let last = || answer(&submit(&engine, request(99, 30, &tokens(20), 6, false)).1);
    let alone = last();
    let n_read = || {
        let mut n = 0;
        engine.metrics().each_model(|_, model| n += model.prompt_computed.get());
        n
    };
    let (running, heard) = submit(&engine, request(1, 5, &tokens(20), 350, false));
    while !matches!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), Event::Text { .. }) {}
    let before = n_read();
    let left: Vec<(Handle, Receiver<Event>)> =
        (0..10).map(|i| submit(&engine, request(10 + i, 10 + i as u32, &tokens(200), 20, false))).collect();
    for (_, events) in &left {
        while !matches!(events.recv_timeout(Duration::from_secs(60)).unwrap(), Event::Queued { .. }) {}
    }
    let (mut handles, ends): (Vec<Handle>, Vec<Receiver<Event>>) = left.into_iter().unzip();
    handles.clear();
    for events in ends {
        let end = events.iter().last();
        assert!(matches!(&end, Some(Event::Failed(fault)) if fault.code == Code::Cancelled), "{end:?}");
    }
    // What is looked at is kept once a step.
    until("an empty queue", || (engine.status().queue_length == 0).then_some(()));
    drop(running);
    assert_eq!(n_read(), before, "their prompts were not read");
    let (text, done) = last();
    assert_eq!((text, done.usage), (alone.0, alone.1.usage));
    assert_eq!(n_read() - before, 20);
}

/// Whoever is waited for has a first token within two chunks of a prefill, however much background work there is: the
/// one under way, and its own.
#[test]
fn an_interactive_request_waits_for_one_chunk_of_background_work() {
    let folder = super::support::Folder::new();
    let path = folder.write("slow.gguf", llama(SLOW).bytes());
    let models = vec![ModelFile { id: "inside".into(), path }];
    let options =
        Options { threads: 1, n_ctx: 4_000, max_sequences: 2, prefill_chunk: 48, ..Options::default() };
    let settings = Settings { models, ..Settings::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    let tokens = |n: u32| -> Vec<Token> { (0..n).map(|t| Token(300 + t % 200)).collect() };
    let background = |id: u128, uid: u32, n: u32| {
        let request = Request { class: Class::Background, ..request(id, uid, &tokens(n), 500, false) };
        submit(&engine, request)
    };
    // One that reads a long prompt and one that writes, in all places there are; and two that wait.
    let all = [(1, 10, 3_400), (2, 11, 5), (3, 12, 3_400), (4, 13, 3_400)]
        .map(|(id, uid, n)| background(id, uid, n));
    let begun = |events: &Receiver<Event>, wanted: fn(&Event) -> bool| {
        while !wanted(&events.recv_timeout(Duration::from_secs(60)).expect("an event within a minute")) {}
    };
    begun(&all[0].1, |event| matches!(event, Event::Prefill { .. }));
    begun(&all[1].1, |event| matches!(event, Event::Text { .. }));
    for id in 20..40 {
        let before = engine.layers_begun();
        // As long as the shortest chunk, on however slow a machine.
        let (_handle, events) = submit(&engine, request(id, 5, &tokens(16), 1, false));
        begun(&events, |event| matches!(event, Event::Text { .. } | Event::Done(_)));
        let n = engine.layers_begun() - before;
        let most = 2 * SLOW.n_layer as u64;
        // What follows may begin before this thread has looked.
        assert!(n <= most + 2, "request {id}: {n} layers, of two chunks {most}");
    }
}
