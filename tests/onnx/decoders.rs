//! Texts that decoders continue.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sotto::base::Token;
use sotto::format::hf::onnx::{self, Pool};
use sotto::side::graph::{Graph, GraphError, Helper, Open};

use crate::support::golden::distance;
use crate::support::http::{Call, post};
use crate::support::{Daemon, Folder, run, stderr, stdout, until};
use crate::{HELPER, cases, children, fixture};

/// The fixtures, whose cases each has, and whether it reads texts in parts as well as at once.
const ALL: [(&str, &str, bool); 4] = [
    ("causal", "causal", true),
    ("causal-merged", "causal-merged", true),
    ("causal-pair", "causal-merged", false),
    ("causal-dynamo", "causal-dynamo", true),
];
/// Bar of the project for logits in 32-bit floats.
const NEAR: f64 = 1e-4;

fn opened(folder: &Path) -> Result<Graph, GraphError> {
    let (dir, graph) = onnx::find(folder).unwrap();
    let read = onnx::open(&dir, &graph).unwrap();
    let helper = Helper { socket: None, programs: vec![HELPER.into()] };
    let open = Open { generates: true, pool: Pool::Mean, unit: false, threads: 1 };
    let mut graph = Graph::start(&helper, &read.graph, read.first.as_deref(), &open)?;
    while graph.open(Duration::from_secs(10))?.is_none() {}
    Ok(graph)
}

/// The logits after a step, if it draws.
fn step(
    graph: &mut Graph,
    id: u32,
    at: usize,
    tokens: &[Token],
    draws: bool,
) -> Result<Vec<f32>, GraphError> {
    graph.step(id, at, tokens, draws)?;
    let answer = loop {
        if let Some(answer) = graph.answer(Duration::from_secs(10))? {
            break answer;
        }
    };
    graph.logits(&answer, draws)
}

fn best(logits: &[f32]) -> Token {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    Token(best.0 as u32)
}

fn tokens(case: &Value, key: &str) -> Vec<Token> {
    case[key].as_array().unwrap().iter().map(|id| Token(id.as_u64().unwrap() as u32)).collect()
}

fn floats(case: &Value, key: &str) -> Vec<f32> {
    case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn tokens_and_logits_are_those_of_onnxruntime() {
    for (name, of, in_parts) in ALL {
        let mut graph = opened(&fixture(name)).unwrap();
        assert_eq!((graph.opened().n_vocab, graph.opened().n_embd), (290, 0));
        assert_eq!(graph.opened().in_parts, in_parts, "{name}");
        let mut worst = 0.0_f64;
        // All texts are under way together.
        let mut under_way = Vec::new();
        for (id, case) in (0..).zip(cases(&fixture(of))) {
            let prompt = tokens(&case, "ids");
            let logits = step(&mut graph, id, 0, &prompt, true).unwrap();
            worst = worst.max(distance(&logits, &floats(&case, "first_logits")));
            // The same in parts, of another text, the last of them alone.
            let mut at = 0;
            let mut last = Vec::new();
            let cuts = [prompt.len().min(2), prompt.len().min(9), prompt.len() - 1, prompt.len()];
            for end in cuts {
                if end > at {
                    let draws = end == prompt.len();
                    last = step(&mut graph, 100 + id, at, &prompt[at..end], draws).unwrap();
                    at = end;
                }
            }
            assert!(distance(&last, &logits) < NEAR, "{name}: in parts");
            under_way.push((id, case, prompt.len(), vec![best(&logits)], logits));
        }
        for _ in 1..24 {
            for (id, _, at, greedy, logits) in &mut under_way {
                *logits = step(&mut graph, *id, *at, &greedy[greedy.len() - 1..], true).unwrap();
                *at += 1;
                greedy.push(best(logits));
            }
        }
        for (id, case, at, greedy, logits) in under_way {
            assert_eq!(greedy, tokens(&case, "greedy"), "{name}: {}", case["text"]);
            worst = worst.max(distance(&logits, &floats(&case, "last_logits")));
            // It is where it is, and after its end nowhere.
            assert!(matches!(step(&mut graph, id, at + 1, &greedy, true), Err(GraphError::Refused { .. })));
            graph.end(&[id]).unwrap();
            assert!(matches!(step(&mut graph, id, at, &greedy, true), Err(GraphError::Refused { .. })));
        }
        println!("{name}: logits within {worst:.1e} of onnxruntime's");
        assert!(worst < NEAR, "{name}: {worst}");
    }
}

/// What the command line, and the daemon with several at a time, write is the text of those tokens.
#[test]
fn texts_are_those_of_the_tokens() {
    let folder = Folder::new();
    for (name, of, _) in ALL {
        let path = fixture(name);
        let model = path.display().to_string();
        let continued = |prompt: &str| {
            let settings = ["--temperature", "0", "--max-tokens", "24", "--json", "--model", &model];
            let output = run(&[&["complete", prompt], &settings[..]].concat());
            let all: Value =
                serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
            all
        };
        let all: Vec<(Value, Value)> = cases(&fixture(of))
            .into_iter()
            .map(|case| (continued(case["text"].as_str().unwrap()), case))
            .collect();
        let daemon = Daemon::start(&folder, &path, "");
        let body = |case: &Value| {
            json!({"model": name, "prompt": case["text"], "temperature": 0, "max_tokens": 24}).to_string()
        };
        let calls: Vec<Call> = all
            .iter()
            .map(|(_, case)| Call::send(&daemon.socket, &post("/v1/completions", body(case))))
            .collect();
        for ((alone, case), call) in all.iter().zip(calls) {
            let answer = call.finish().json();
            assert_eq!(answer["choices"][0]["text"], alone["text"], "{name}: {answer}");
            assert_eq!(answer["usage"]["prompt_tokens"], json!(tokens(case, "ids").len()), "{answer}");
            assert_eq!(answer["usage"]["completion_tokens"], json!(24), "{answer}");
        }
        drop(daemon);
    }
}

/// A text can be stopped, its helper can be killed, and what comes after it is answered.
#[test]
fn texts_under_way_end_alone() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &fixture("causal"), "");
    let request = || {
        let body =
            json!({"model": "causal", "input": "the cat", "raw": true, "temperature": 0, "max_tokens": 400});
        Call::send(&daemon.socket, &post("/sotto/v1/generate", body.to_string()))
    };
    let whole = || -> String {
        let mut call = request();
        let lines = call.head().lines_to_end();
        let events = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let events: Vec<Value> = events.collect();
        assert_eq!(events.last().unwrap()["event"], "done", "{lines:?}");
        events.iter().filter_map(|event| event["text"].as_str()).collect()
    };
    let wanted = whole();
    assert!(wanted.len() > 400);
    for _ in 0..2 {
        // Who hangs up is no longer written for.
        request().head().event("token");
        let mut call = request();
        call.head().event("token");
        let helper = children(daemon.process.pid());
        assert_eq!(helper.len(), 1, "one model, one helper");
        let pid = rustix::process::Pid::from_raw(helper[0]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // It goes on with another helper, which reads what is there of it first.
        let rest = call.lines_to_end();
        let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
        assert_eq!(
            (&last["event"], &last["usage"]["completion_tokens"]),
            (&json!("done"), &json!(400)),
            "{last}"
        );
        assert_eq!(whole(), wanted);
        assert_ne!(children(daemon.process.pid()), helper);
    }
    // Draws are not drawn twice: by seeds, three at a time say what each says alone. Of two likely tokens, because what is
    // read again at once is not the same to the last bit as what was read token by token.
    let seeded = |seed: u64| {
        let body = json!({"model": "causal", "input": "the cat", "raw": true, "temperature": 2, "top_k": 2, "seed": seed,
            "max_tokens": 300});
        Call::send(&daemon.socket, &post("/sotto/v1/generate", body.to_string()))
    };
    let said = |call: &mut Call| -> String {
        let lines = call.lines_to_end();
        let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!(last["event"], "done", "{last}");
        let events = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
    };
    let alone: Vec<String> = (0..3).map(|seed| said(seeded(seed).head())).collect();
    for round in 0..4 {
        let mut calls: Vec<Call> = (0..3).map(seeded).collect();
        for call in &mut calls {
            call.head();
        }
        std::thread::sleep(Duration::from_millis(15 * round));
        let pid = rustix::process::Pid::from_raw(children(daemon.process.pid())[0]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let all: Vec<String> = calls.iter_mut().map(said).collect();
        assert_eq!(all, alone, "round {round}");
    }
    // What every helper dies of is not asked for ever.
    let mut call = request();
    call.head().event("token");
    let ended = std::sync::atomic::AtomicBool::new(false);
    let n_killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = Vec::new();
            while !ended.load(std::sync::atomic::Ordering::Acquire) {
                for pid in children(daemon.process.pid())
                    .into_iter()
                    .filter(|pid| !killed.contains(pid))
                    .collect::<Vec<_>>()
                {
                    let of = rustix::process::Pid::from_raw(pid).unwrap();
                    if rustix::process::kill_process(of, rustix::process::Signal::KILL).is_ok() {
                        killed.push(pid);
                    }
                }
            }
            killed.len()
        });
        let lines = call.lines_to_end();
        ended.store(true, std::sync::atomic::Ordering::Release);
        let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!(last["event"], "error", "{last}");
        assert!(last.to_string().contains("sotto-onnx ended"), "{last}");
        killer.join().unwrap()
    });
    assert!((2..=3).contains(&n_killed), "{n_killed} helpers");
    assert_eq!(whole(), wanted);
    let unloaded = run(&["unload", "causal", "--socket", daemon.socket.to_str().unwrap()]);
    assert!(unloaded.status.success(), "{}", stderr(&unloaded));
    until("the end of the helper", || children(daemon.process.pid()).is_empty().then_some(()));
    daemon.process.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.ended("the end of the daemon").success());
}

/// What cannot continue text is refused, in words.
#[test]
fn graphs_that_are_no_decoders_are_refused() {
    let folder = Folder::new();
    let make = |name: &str, graph: &Path, more: bool| {
        let dir = folder.join(name);
        std::fs::create_dir(&dir).unwrap();
        for file in ["config.json", "generation_config.json"] {
            std::fs::copy(fixture("causal").join(file), dir.join(file)).unwrap();
        }
        let mut tokenizer: Value =
            serde_json::from_slice(&std::fs::read(fixture("causal/tokenizer.json")).unwrap()).unwrap();
        if more {
            tokenizer["model"]["vocab"]["one more"] = json!(290);
        }
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::copy(graph, dir.join(graph.file_name().unwrap())).unwrap();
        dir.display().to_string()
    };
    let causal = fixture("causal/model.onnx");
    let whole = std::fs::read(&causal).unwrap();
    let cut = folder.write("model.onnx", &whole[..whole.len() / 3]);
    let half = fixture("causal-pair/decoder_with_past_model.onnx");
    for (name, graph, more, words) in [
        ("encoder", fixture("bert/model.onnx"), false, "past_key_values"),
        ("cut", cut, false, "damaged"),
        ("half", half, false, "decoder_model.onnx that begins texts"),
        ("other", causal, true, "290 logits"),
    ] {
        let dir = make(name, &graph, more);
        let said = stderr(&run(&["complete", "the cat", "--model", &dir]));
        assert!(said.contains(words), "{name}: {said}");
    }
}

/// A file made of a graph says what the graph says; one that is described wrongly does not, and that is told.
#[test]
fn imported_files_are_held_to_their_graphs() {
    let folder = Folder::new();
    let to = folder.join("m.gguf").display().to_string();
    let import = |model: &Path, kind: &str| {
        let model = model.display().to_string();
        run(&["import", &model, "-o", &to, "--force", "--type", kind, "--json", "--threads", "1"])
    };
    for (name, ..) in ALL {
        for (kind, bar) in [("f32", NEAR), ("f16", 1e-2), ("q8_0", 0.1), ("q4_0", 1.0)] {
            let output = import(&fixture(name), kind);
            assert!(output.status.success(), "{}", stderr(&output));
            let said: Value = serde_json::from_str(&stdout(&output)).unwrap();
            let checked = &said["checked"];
            println!("{name} as {kind}: {checked}");
            assert!(checked["distance_as_floats"].as_f64().unwrap() < NEAR, "{name} as {kind}: {checked}");
            assert!(checked["distance"].as_f64().unwrap() < bar, "{name} as {kind}: {checked}");
            assert!(kind != "f32" || checked["same_likeliest"] == checked["places"], "{checked}");
            for who in ["graph", "file"] {
                assert!(checked[who]["decode_tokens_per_s"].as_f64().unwrap() > 1.0, "{checked}");
            }
        }
    }
    let wrong = folder.join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    for file in ["model.onnx", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(fixture("causal").join(file), wrong.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(fixture("causal/config.json")).unwrap();
    // Four bits would hide all of them; nothing is left of what is wrong.
    std::fs::remove_file(&to).unwrap();
    for (is, other) in [("10000.0", "10.0"), ("10000.0", "12000.0"), ("1e-05", "1e-06"), ("1e-05", "1e-02")] {
        std::fs::write(wrong.join("config.json"), config.replace(is, other)).unwrap();
        for kind in ["f32", "q8_0", "q4_0"] {
            let output = import(&wrong, kind);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{other} as {kind}: {said}");
            assert!(said.contains("from those of the graph"), "{other} as {kind}: {said}");
            let left = std::fs::read_dir(folder.join("")).unwrap().flatten().map(|e| e.file_name());
            assert_eq!(left.collect::<Vec<_>>(), ["wrong"], "{other} as {kind}");
        }
    }
}
