//! What a reload may change, in an engine that runs: names, bounds, and what a model has of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use sotto::base::Token;
use sotto::engine::{
    Code, Engine, Event, Fault, LoadRequest, Message, Mock, ModelFile, ModelSettings, ModelState, Options,
    Rate, Request, Role, Sampling, Settings, Text, Tokenized,
};
use sotto::model::KvType;

use super::batch::{Events, answer, request, submit};
use super::support::{Folder, stories, until};

fn file(id: &str, path: &Path) -> ModelFile {
    ModelFile { id: id.into(), path: path.into() }
}

/// Settings with the small model as `one` and what it has of its own.
fn settings(own: ModelSettings) -> Settings {
    Settings {
        models: vec![file("one", &stories())],
        of_model: BTreeMap::from([("one".into(), own)]),
        ..Settings::default()
    }
}

fn engine(settings: Settings) -> Engine {
    let options = Options { threads: 1, n_ctx: 400, ..Options::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

fn tokens(n: u32) -> Vec<Token> {
    (0..n).map(|t| Token(3 + t % 90)).collect()
}

/// Why a request failed.
fn refusal(events: &Receiver<Event>) -> Fault {
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event within a minute") {
            Event::Failed(fault) => return fault,
            Event::Done(done) => panic!("{done:?}"),
            _ => {}
        }
    }
}

/// What a conversation of one message becomes.
fn prompt(engine: &Engine, text: &str) -> Result<String, Fault> {
    let (tell, told) = channel();
    let chat = Text::Chat(vec![Message { role: Role::User, content: text.into() }]);
    engine
        .tokenize(1, None, chat, move |tokenized: Result<Tokenized, Fault>| tell.send(tokenized).unwrap())
        .unwrap();
    told.recv_timeout(Duration::from_secs(60)).unwrap().map(|tokenized| tokenized.prompt.unwrap())
}

#[test]
fn a_reload_finds_new_models_and_keeps_the_loaded_ones() {
    let folder = Folder::new();
    let two = folder.join("two.gguf");
    std::fs::copy(stories(), &two).unwrap();
    let engine = engine(settings(ModelSettings::default()));
    let ids = || engine.models().into_iter().map(|info| info.id).collect::<Vec<_>>();
    let named = |name: &str| engine.resolve(Some(name));
    assert_eq!((ids(), named("mine"), named("embed")), (vec!["one".into()], None, Some("one".into())));
    answer(&submit(&engine, request(1, 1, &tokens(5), 3, true)).1);
    let header = engine.models()[0].header.clone();
    assert!(header.is_some());

    let aliases = [("mine", "two"), ("fast", "two"), ("lost", "three")];
    let aliases: BTreeMap<String, String> = aliases.map(|(name, id)| (name.into(), id.into())).into();
    engine.reload(Settings {
        models: vec![file("two", &two)],
        default_model: Some("two".into()),
        aliases,
        ..Settings::default()
    });
    assert_eq!(ids(), ["one", "two"], "what is loaded stays");
    assert_eq!(engine.models()[0].header, header);
    assert_eq!((named("mine"), named("fast"), named("lost")), (Some("two".into()), Some("two".into()), None));
    assert_eq!((named("default"), engine.resolve(None)), (Some("two".into()), Some("two".into())));
    assert_eq!(engine.aliases(), ["default", "embed", "fast", "lost", "mine"]);
    let by_alias = Request { model: Some("mine".into()), ..request(2, 1, &tokens(5), 3, true) };
    assert_eq!(answer(&submit(&engine, by_alias).1).1.model, "two");
    assert_eq!(ids(), ["one", "two"], "one is not loaded any more, but a reload has to say that it is gone");
    engine.reload(settings(ModelSettings::default()));
    assert_eq!(ids(), ["one", "two"]);
    let one = Request { model: Some("one".into()), ..request(3, 1, &tokens(5), 3, true) };
    answer(&submit(&engine, one).1);
    engine.reload(settings(ModelSettings::default()));
    assert_eq!((ids(), named("two")), (vec!["one".into()], None));
    let gone = Request { model: Some("two".into()), ..request(4, 1, &tokens(5), 3, true) };
    assert_eq!(refusal(&submit(&engine, gone).1).code, Code::UnknownModel);
}

#[test]
fn a_model_has_bounds_and_defaults_of_its_own() {
    let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
    let own = ModelSettings {
        n_ctx: Some(100),
        kv: Some(KvType::F32),
        max_sequences: Some(1),
        sampling: sampling.clone(),
        ..ModelSettings::default()
    };
    let engine = engine(settings(own.clone()));
    let long = refusal(&submit(&engine, request(1, 1, &tokens(100), 1, true)).1);
    assert_eq!(
        (long.code, long.room.map(|room| (room.need, room.have))),
        (Code::ContextTooLong, Some((101, 100)))
    );
    assert_eq!(engine.models()[0].header.as_ref().map(|header| header.n_ctx), Some(100));
    // Each seed would draw something else.
    let drawn = |id: u128, temperature| {
        let mut request = request(id, 1, &tokens(20), 40, true);
        request.sampling =
            Sampling { seed: Some(id as u64), min_tokens: 40, temperature, ..Sampling::default() };
        submit(&engine, request)
    };
    let all: Vec<_> = (10..14).map(|id| drawn(id, None)).collect();
    let texts: Vec<String> = all.iter().map(|(_, events)| answer(events).0).collect();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_ne!(answer(&drawn(14, Some(1.5)).1).0, texts[0], "what a request says goes first");
    let hot = Sampling { temperature: Some(1.5), ..Sampling::default() };
    engine.reload(settings(ModelSettings { sampling: hot, n_ctx: Some(50), ..own }));
    assert_ne!(answer(&drawn(15, None).1).0, texts[0], "defaults hold at once");
    assert_eq!(answer(&submit(&engine, request(16, 1, &tokens(60), 2, true)).1).1.usage.completion_tokens, 2);
}

#[test]
fn a_template_may_come_from_a_file() {
    let folder = Folder::new();
    let own = |template| settings(ModelSettings { template: Some(template), ..ModelSettings::default() });
    let template = folder.write("chat.jinja", "Q: {{ messages[0]['content'] }}\nA:");
    assert_eq!(
        prompt(&engine(own(template)), "why").unwrap(),
        "<s> Q: why\nA:",
        "the begin token is the model's habit"
    );
    for (name, text, words) in [
        ("absent.jinja", None, "No such file"),
        ("long.jinja", Some("x".repeat((1 << 18) + 1)), "at most 262144 are read"),
    ] {
        let path = folder.join(name);
        text.into_iter().for_each(|text| drop(folder.write(name, text)));
        let fault = prompt(&engine(own(path.clone())), "why").unwrap_err();
        assert_eq!(fault.code, Code::LoadFailed);
        let told = [path.display().to_string(), words.into()];
        assert!(told.iter().all(|word| fault.message.contains(word.as_str())), "{}", fault.message);
    }
}

#[test]
fn the_prefix_cache_follows_its_bound() {
    let engine = engine(settings(ModelSettings::default()));
    let mut id = 0;
    let mut cached = || {
        id += 1;
        answer(&submit(&engine, request(id, 1, &tokens(200), 1, true)).1).1.usage.cached_tokens
    };
    let bound = |bytes| {
        engine.reload(Settings { prefix_cache_bytes: bytes, ..settings(ModelSettings::default()) });
    };
    assert_eq!((cached(), cached()), (0, 192));
    bound(0);
    assert_eq!((cached(), cached()), (0, 0));
    bound(1 << 30);
    assert_eq!((cached(), cached()), (0, 192));
}

#[test]
fn a_uid_has_so_much_of_a_minute() {
    let rate = Rate { requests: 2, tokens: 0 };
    let rate_of_uid = BTreeMap::from([(5, Rate { requests: 0, tokens: 3 })]);
    let engine = engine(Settings { rate, rate_of_uid, ..settings(ModelSettings::default()) });
    let asked = |id: u128, uid| {
        let (sink, events) = channel();
        let sink = Events(sink);
        let handle = engine.submit(request(id, uid, &tokens(20), 10, true), Box::new(sink));
        handle.map(|handle| (handle, events))
    };
    // Root as everybody else.
    for uid in [0, 1] {
        let both = [asked(1, uid).unwrap(), asked(2, uid).unwrap()];
        let over = asked(3, uid).unwrap_err();
        assert_eq!(over.code, Code::RateLimited);
        assert!((1..=30_000).contains(&over.retry_after_ms.unwrap()), "{over:?}");
        assert_eq!(engine.requests_left(uid).map(|left| (left.limit, left.remaining)), Some((2, 0)));
        both.iter().for_each(|(_, events)| drop(answer(events)));
    }
    // 20 tokens of the prompt and 10 of the answer are those of ten minutes.
    answer(&asked(4, 5).unwrap().1);
    assert_eq!(engine.requests_left(5), None);
    let over = asked(5, 5).unwrap_err();
    assert!(over.code == Code::RateLimited && over.message.contains("limits.tokens_per_minute"), "{over:?}");
    engine.reload(settings(ModelSettings::default()));
    for uid in [0, 1, 5] {
        answer(&asked(6, uid).unwrap().1);
    }
}

/// What a load of a model comes to.
fn load(engine: &Engine, id: u128, model: &str, pin: bool, n_ctx: Option<usize>) -> Result<(), Fault> {
    let Request { id, caller, .. } = request(id, 0, &[], 1, false);
    let (sink, events) = channel();
    let wanted = LoadRequest { id, caller, model: model.into(), pin, n_ctx };
    let _handle = engine.load(wanted, Box::new(Events(sink)))?;
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event within a minute") {
            Event::Failed(fault) => return Err(fault),
            Event::Loaded { .. } => return Ok(()),
            _ => {}
        }
    }
}

fn mocks(behaviour: &str, max_loaded: usize) -> Engine {
    let settings = Settings { models: Mock::models(), max_loaded, ..Settings::default() };
    let options = Options { mock: behaviour.parse().ok(), threads: 1, n_ctx: 400, ..Options::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

/// The models that are loaded, and whether they are pinned.
fn loaded(engine: &Engine) -> Vec<(String, bool)> {
    let models = engine.models().into_iter().filter(|model| model.state == ModelState::Loaded);
    models.map(|model| (model.id, model.pinned)).collect()
}

/// A model is loaded in the order in which it was asked to be there, as long as there is room.
#[test]
fn what_is_loaded_first_was_named_first() {
    for _ in 0..8 {
        let engine = mocks("", 1);
        engine.preload(["mock", "mock-endless", "mock-internal"].map(|id| (id.to_owned(), true)));
        until("one", || (!loaded(&engine).is_empty()).then_some(()));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(loaded(&engine), [("mock".to_owned(), true)]);
    }
}

/// A model that is loaded anew with another context is one model still.
#[test]
fn another_context_takes_no_other_place() {
    let engine = mocks("load_ms=200", 2);
    let names = || loaded(&engine);
    // While the first is being loaded.
    let other = engine.clone();
    let first = sotto::os::thread::start("first", move || load(&other, 1, "mock", true, Some(300))).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    load(&engine, 2, "mock", true, Some(350)).unwrap();
    first.join().unwrap().unwrap();
    load(&engine, 3, "mock-endless", true, None).unwrap();
    assert_eq!(names(), [("mock".to_owned(), true), ("mock-endless".to_owned(), true)]);
    // While the first is in use.
    let endless = Request { model: Some("mock-endless".into()), ..request(4, 1, &[Token(70)], 300, false) };
    let (handle, events) = submit(&engine, endless);
    assert!(events.iter().any(|event| matches!(event, Event::Text { .. })), "it writes");
    engine.unload("mock", false, |done| done.unwrap()).unwrap();
    load(&engine, 5, "mock-endless", true, Some(320)).unwrap();
    drop(handle);
    load(&engine, 6, "mock", true, None).unwrap();
    until("both", || {
        (names() == [("mock".to_owned(), true), ("mock-endless".to_owned(), true)]).then_some(())
    });
    load(&engine, 7, "mock-internal", false, None).unwrap_err();
}

/// A load with another context that cannot be costs nobody the model that is there, nor its pin.
#[test]
fn another_context_that_cannot_be_changes_nothing() {
    let told = |engine: &Engine, id: &str| {
        let model = engine.models().into_iter().find(|model| model.id == id).unwrap();
        (model.state, model.pinned, model.header.map(|header| header.n_ctx))
    };
    // No place.
    let engine = mocks("", 2);
    load(&engine, 1, "mock", true, Some(300)).unwrap();
    load(&engine, 2, "mock-internal", true, None).unwrap();
    let before = told(&engine, "mock");
    assert_eq!(before, (ModelState::Loaded, true, Some(300)));
    engine.reload(Settings { models: Mock::models(), max_loaded: 1, ..Settings::default() });
    assert_eq!(load(&engine, 3, "mock", true, Some(350)).unwrap_err().code, Code::ModelBusy);
    assert_eq!(told(&engine, "mock"), before);
    let one = Request { model: Some("mock".into()), ..request(4, 1, &[Token(70)], 3, false) };
    let (_handle, events) = submit(&engine, one);
    let all: Vec<Event> = events.iter().collect();
    assert!(all.iter().any(|event| matches!(event, Event::Done(_))), "it answers: {all:?}");
    // Of one that was not loaded nothing stays.
    assert_eq!(load(&engine, 5, "mock-endless", true, Some(64)).unwrap_err().code, Code::ModelBusy);
    assert_eq!(told(&engine, "mock-endless"), (ModelState::Available, false, Some(400)));
    // No memory, at rest and in use.
    let settings =
        Settings { models: Mock::models(), max_loaded: 2, memory_max_bytes: 2 << 20, ..Settings::default() };
    let options = Options { mock: "".parse().ok(), threads: 1, n_ctx: 400, ..Options::default() };
    let engine = Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap();
    for id in ["mock", "mock-endless"] {
        load(&engine, 5, id, true, Some(300)).unwrap();
        let before = told(&engine, id);
        let endless = Request { model: Some(id.into()), ..request(6, 1, &[Token(70)], 300, false) };
        let (handle, events) = submit(&engine, endless);
        assert!(events.iter().any(|event| matches!(event, Event::Text { .. })), "it writes");
        for n in [7, 8] {
            assert_eq!(load(&engine, n, id, true, Some(32_768)).unwrap_err().code, Code::InsufficientMemory);
            assert_eq!(told(&engine, id), before);
        }
        drop(handle);
        assert_eq!(load(&engine, 9, id, true, Some(32_768)).unwrap_err().code, Code::InsufficientMemory);
        assert_eq!(told(&engine, id), before);
        engine.unload(id, true, |done| done.unwrap()).unwrap();
    }
}

/// A bound that was lowered lets nobody pin one more, though it is still loaded, and holds as soon as it is at rest.
#[test]
fn a_lower_bound_is_not_passed_by_pins() {
    let bound = |max_loaded| Settings { models: Mock::models(), max_loaded, ..Settings::default() };
    let engine = mocks("", 2);
    let loaded = || loaded(&engine);
    load(&engine, 1, "mock", true, None).unwrap();
    let endless = Request { model: Some("mock-endless".into()), ..request(2, 1, &[Token(70)], 300, false) };
    let (handle, events) = submit(&engine, endless);
    assert!(events.iter().any(|event| matches!(event, Event::Text { .. })), "it writes");
    engine.reload(bound(1));
    let fault = load(&engine, 3, "mock-endless", true, None).unwrap_err();
    assert_eq!(fault.code, Code::ModelBusy);
    assert!(
        fault.message.contains("at most 1 models") && fault.message.contains("all places: mock; unload"),
        "{fault}"
    );
    drop(handle);
    until("the bound holds", || (loaded() == [("mock".to_owned(), true)]).then_some(()));
    assert_eq!(load(&engine, 4, "mock-internal", false, None).unwrap_err().code, Code::ModelBusy);
    engine.reload(bound(2));
    load(&engine, 5, "mock-endless", true, None).unwrap();
    assert_eq!(loaded().len(), 2);
}
