//! Perplexities against independent computations: the golden ones of the small trained model
//! (`fixtures/SOURCES.md`), and those of `perplexity/independent.py`, whose figures stand in `perplexity/figures.json`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that cannot go on stops, and says what it skips; the gate chooses the tier by the environment"
)]

mod support;

use std::path::PathBuf;

use serde_json::Value;
use sotto::base::Token;
use sotto::engine::{ModelFile, Solo};
use sotto::kernel::{self, Tier};
use sotto::model::{Pack, Precision};
use sotto::text::Special;
use support::{Folder, fixture, run, shared, stderr, stdout};

fn json(path: PathBuf) -> Value {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// The small trained model in the form of `name`; says what is skipped where it is not there.
fn model(name: &str) -> Option<PathBuf> {
    let file = format!("{name}.gguf");
    let places =
        [shared(&format!("models/stories260k/{file}")), Some(fixture(&format!("stories260k/{file}")))];
    let found = places.into_iter().flatten().find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: the perplexity of {name}; the full set of fixtures is not beside the checkout");
    }
    found
}

fn solo(path: PathBuf) -> Solo {
    let asked = std::env::var("SOTTO_CPU").ok().map(|name| Tier::from_name(&name).unwrap());
    let file = ModelFile { id: "measured".into(), path };
    Solo::open(kernel::select(asked).unwrap(), &file, 1, Pack::Off, None, &mut |_, _| {}).unwrap()
}

/// Every token of one window, from the second on.
fn perplexity(solo: &Solo, precision: Precision, tokens: &[Token]) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    let mut each = |nll: f64| {
        sum += nll;
        n += 1;
    };
    solo.reader(precision, tokens.len()).unwrap().read(tokens, 1, &mut each).unwrap();
    assert_eq!(n, tokens.len() - 1);
    (sum / f64::from(u32::try_from(n).unwrap())).exp()
}

/// By how much `found` is off, as a share of `wanted`.
fn off(found: f64, wanted: f64) -> f64 {
    (found / wanted - 1.0).abs()
}

/// What 8-bit activations and an f16 cache may cost, by the notes of the fixtures.
fn bound(name: &str) -> f64 {
    if name.contains("-f") { 1e-3 } else { 5e-3 }
}

#[test]
fn one_window_is_as_likely_as_it_should_be() {
    let golden = json(fixture("stories260k/golden_ppl.json"));
    let ids: Vec<Token> = golden["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| Token(u32::try_from(id.as_u64().unwrap()).unwrap()))
        .collect();
    for variant in ["f32", "f16", "q8_0", "q4_0"] {
        let name = format!("stories260K-{variant}");
        let Some(path) = model(&name) else { continue };
        let solo = solo(path);
        let mut tokens = vec![solo.tokenizer().bos().unwrap()];
        solo.tokenizer().encode(golden["text"].as_str().unwrap(), Special::AsText, &mut tokens);
        assert_eq!(tokens, ids);
        let wanted = golden["variants"][variant]["ppl_float64"].as_f64().unwrap();
        let exact = perplexity(&solo, Precision::F32, &tokens);
        let usual = perplexity(&solo, Precision::default(), &tokens);
        println!("{name}: {exact:.6} in floats, {usual:.6} as answers are computed, golden {wanted}");
        assert!(off(exact, wanted) < 1e-5, "{name}: {exact}, golden {wanted}");
        assert!(off(usual, wanted) < bound(&name), "{name}: {usual}, golden {wanted}");
    }
}

#[test]
fn texts_are_as_likely_as_an_independent_script_says() {
    let folder = Folder::new();
    let golden = json(fixture("stories260k/golden_ppl.json"));
    let own = folder.write("own.txt", golden["text"].as_str().unwrap());
    for figure in json(fixture("../perplexity/figures.json"))["runs"].as_array().unwrap() {
        let name = figure["model"].as_str().unwrap();
        let Some(model) = model(name) else { continue };
        let text = match figure["text"].as_str().unwrap() {
            "wikitext2-test.txt" => shared("corpora/wikitext2-test.txt"),
            _ => Some(own.clone()),
        };
        let Some(text) = text else {
            println!("skipped: {name} on wikitext2-test.txt; the corpora are not beside the checkout");
            continue;
        };
        let (n_ctx, windows) = (figure["n_ctx"].to_string(), figure["windows"].to_string());
        for (precision, bound) in [("f32", 1e-5), ("default", bound(name))] {
            let (model, text) = (model.display().to_string(), text.display().to_string());
            let flags = ["--context", &n_ctx, "--windows", &windows, "--precision", precision, "--json"];
            let output = run(&[&["perplexity", &model, &text][..], &flags[..]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
            for key in ["n_ctx", "windows", "tokens_scored"] {
                assert_eq!(found[key], figure[key], "{name}: {key}");
            }
            let (value, wanted) =
                (found["perplexity"].as_f64().unwrap(), figure["perplexity"].as_f64().unwrap());
            println!("{name}, {n_ctx} x {windows}: {precision} {value:.4}, independent {wanted:.4}");
            assert!(off(value, wanted) < bound, "{name}, {precision}: {value}, independent {wanted}");
            let (error, wanted) =
                (found["perplexity_error"].as_f64().unwrap(), figure["perplexity_error"].as_f64().unwrap());
            assert!(off(error, wanted) < 2.0 * bound, "{name}, {precision}: ± {error}, independent {wanted}");
        }
    }
}
