//! What requests leave for later ones: for whom, and how much of it stays.

use std::time::Duration;

use sotto::base::Token;
use sotto::engine::{
    Caching, Code, Engine, Event, Input, Message, ModelFile, ModelSettings, Options, Request, Role, Settings,
};

use super::batch::{answer, request, submit};
use super::support::gguf::{Shape, llama};
use super::support::{Folder, stories};

fn engine(n_ctx: usize, settings: Settings) -> Engine {
    let options = Options { threads: 1, n_ctx, ..Options::default() };
    Engine::start(sotto::kernel::select(None).unwrap(), options, settings).unwrap()
}

/// Tokens of a prompt that were taken from what was kept.
fn cached(engine: &Engine, request: Request) -> usize {
    answer(&submit(engine, request).1).1.usage.cached_tokens
}

#[test]
fn what_root_publishes_is_everybodys_and_nothing_else() {
    let models = vec![ModelFile { id: "inside".into(), path: stories() }];
    let engine = engine(512, Settings { models, ..Settings::default() });
    let prompt = |salt: u32| -> Vec<Token> { (0..200).map(|t| Token(3 + (t * salt) % 90)).collect() };
    let (theirs, roots) = (prompt(7), prompt(11));
    let publish =
        |id, uid, tokens: &[Token]| Request { cache: Caching::Public, ..request(id, uid, tokens, 3, true) };
    // One user's, and what root kept for itself.
    assert_eq!(cached(&engine, request(1, 5, &theirs, 3, true)), 0);
    assert_eq!(cached(&engine, request(2, 0, &roots, 3, true)), 0);
    assert_eq!(cached(&engine, request(3, 6, &theirs, 3, true)), 0);
    assert_eq!(cached(&engine, request(4, 6, &roots, 3, true)), 0);
    let (_refused, events) = submit(&engine, publish(5, 6, &theirs));
    match events.recv_timeout(Duration::from_secs(60)).unwrap() {
        Event::Failed(fault) => {
            assert_eq!((fault.code, fault.param.as_deref()), (Code::NotAuthorized, Some("publish")))
        }
        other => panic!("{other:?}"),
    }
    // Published: the prompt, not its answer.
    let text = answer(&submit(&engine, publish(6, 0, &roots)).1).0;
    let (again, done) = answer(&submit(&engine, request(7, 9, &roots, 3, true)).1);
    assert_eq!((again, done.usage.cached_tokens), (text, 192));
    assert_eq!(cached(&engine, request(8, 9, &theirs, 3, true)), 0);
    assert_eq!(cached(&engine, request(9, 9, &roots, 3, false)), 0, "who keeps out of it");
    let longer: Vec<Token> = roots.iter().chain(&theirs).copied().collect();
    assert_eq!(cached(&engine, request(10, 10, &longer, 3, true)), 192);
}

/// Whether another user had the same prompt before is seen neither in the answer nor in the work for it (and so in no
/// time: `proofs.rs` measures that).
#[test]
fn anothers_prompt_takes_the_work_of_a_new_one() {
    let models = vec![ModelFile { id: "inside".into(), path: stories() }];
    let engine = engine(512, Settings { models, ..Settings::default() });
    let prompt = |salt: u32| -> Vec<Token> { (0..300).map(|t| Token(3 + (t * salt) % 90)).collect() };
    let layers = |id, uid, salt| {
        let before = engine.layers_begun();
        let (_, done) = answer(&submit(&engine, request(id, uid, &prompt(salt), 1, true)).1);
        (engine.layers_begun() - before, done.usage.cached_tokens)
    };
    // The load is no work of a request.
    let _ = layers(1, 0, 17);
    let new = layers(2, 5, 7);
    let again = layers(3, 5, 7);
    assert_eq!((new.1, again.1), (0, 256));
    assert!(again.0 < new.0, "{again:?} of {new:?}");
    assert_eq!(layers(4, 6, 7), new, "what another had");
    assert_eq!(layers(5, 6, 13), new, "what nobody had");
}

#[test]
fn what_a_template_begins_with_is_everybodys() {
    let folder = Folder::new();
    let rules = "Answer in short words and say what is so. ".repeat(8);
    let template = folder.write("chat.jinja", format!("{rules}{{{{ messages[0]['content'] }}}}\nA:"));
    let own = ModelSettings { template: Some(template), ..ModelSettings::default() };
    let models = vec![ModelFile { id: "inside".into(), path: stories() }];
    let of_model = [("inside".to_owned(), own)].into();
    let engine = engine(512, Settings { models, of_model, ..Settings::default() });
    let ask = |id, uid, question: &str| {
        let messages = vec![Message { role: Role::User, content: question.into() }];
        Request { input: Input::Chat(messages), ..request(id, uid, &[], 3, true) }
    };
    let question = "Where did the dog go after the cat had gone up the tree and sat there? ".repeat(4);
    let (_handle, events) = submit(&engine, ask(1, 1, &question));
    let done = answer(&events).1;
    assert_eq!(done.usage.cached_tokens, 0);
    let shared = cached(&engine, ask(2, 2, &question));
    assert!(shared >= 64 && shared.is_multiple_of(64), "the rules: {shared}");
    let own = cached(&engine, ask(3, 1, &question));
    assert!(own >= shared + 64, "{own}: the question is the first user's own");
    assert_eq!(cached(&engine, ask(4, 3, "Who?")), shared, "the rules again");
}

#[test]
fn eight_system_prompts_stay_warm() {
    let folder = Folder::new();
    let shape = Shape { n_embd: 64, n_ff: 128, n_layer: 2, n_head: 2, n_head_kv: 1, n_ctx: 2_048 };
    let models =
        vec![ModelFile { id: "inside".into(), path: folder.write("small.gguf", llama(shape).bytes()) }];
    // One key-value head of 32 numbers in two layers, keys and values of 16 bits.
    let of_token = 2 * 2 * 2 * 32;
    let bytes = 8 * 1_024 * of_token;
    let engine = engine(2_048, Settings { models, prefix_cache_bytes: bytes, ..Settings::default() });
    // They part in their first line.
    let prompt = |i: u32| -> Vec<Token> {
        (0..1_000).map(|t| Token(if t < 20 { 300 } else { 300 + (t * 3 + i * 17) % 200 })).collect()
    };
    let mut id = 0;
    let mut round = || {
        (0..8)
            .map(|i| {
                id += 1;
                cached(&engine, request(id, 1, &prompt(i), 1, true))
            })
            .collect::<Vec<_>>()
    };
    assert!(round().iter().all(|n| *n == 0));
    assert_eq!(round(), [960; 8]);
}

/// Nobody holds on to what is kept once all have ended, however they ended: it can all be given up then.
#[test]
fn what_is_kept_is_held_by_nobody_at_rest() {
    let settings = || Settings {
        models: vec![ModelFile { id: "inside".into(), path: stories() }],
        ..Settings::default()
    };
    let engine = engine(512, settings());
    let kept = || {
        let mut bytes = 0;
        engine.metrics().each_model(|_, model| bytes += model.prefix_bytes.get());
        bytes
    };
    let mut rng = sotto::base::rng::Rng::new(7);
    for round in 0..60_u128 {
        let together: Vec<_> = (0..4)
            .map(|i| {
                // Few beginnings, so that most are shared, and ends of their own.
                let (first, n) = (rng.below(3) as u32, 130 + rng.below(200) as u32);
                let tokens: Vec<Token> =
                    (0..n).map(|t| Token(3 + (t * (first + 7)) % (60 + t / 128))).collect();
                submit(
                    &engine,
                    request(10 * round + i, 5 + i as u32 % 2, &tokens, 1 + rng.below(6) as u32, true),
                )
            })
            .collect();
        for (handle, events) in together {
            // Some leave at once, some after their first event, some stay to the end.
            match rng.below(3) {
                0 => drop(handle),
                1 => drop((events.recv_timeout(Duration::from_secs(60)), handle)),
                _ => drop(answer(&events)),
            }
        }
    }
    super::support::until("rest", || (engine.status() == sotto::engine::Status::default()).then_some(()));
    assert!(kept() > 0);
    engine.reload(Settings { prefix_cache_bytes: 0, ..settings() });
    super::support::until("all of it given up", || (kept() == 0).then_some(()));
}
