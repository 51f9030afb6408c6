//! Graphs of onnxruntime's golden answers, imported: the same logits and tokens from our own decoder.

use std::path::PathBuf;

use serde_json::Value;
use sotto::base::Token;
use sotto::engine::{ModelFile, Solo};
use sotto::format;
use sotto::kernel;
use sotto::model::{Pack, Precision};
use sotto::quant::Quant;
use sotto::text::Special;

use crate::support::golden::distance;
use crate::support::{Folder, fixture};
use crate::{floats, import, names};

const GRAPHS: [&str; 3] = ["causal", "causal-merged", "causal-dynamo"];

fn graph(name: &str) -> PathBuf {
    fixture("onnx").join(name)
}

fn expected(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(graph(name).join("expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all["cases"].as_array().unwrap().clone()
}

fn tokens(case: &Value, key: &str) -> Vec<Token> {
    case[key].as_array().unwrap().iter().map(|id| Token(id.as_u64().unwrap() as u32)).collect()
}

fn logits(case: &Value, key: &str) -> Vec<f32> {
    case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn best(logits: &[f32]) -> Token {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    Token(best.0 as u32)
}

#[test]
fn an_imported_graph_says_what_onnxruntime_says() {
    for name in GRAPHS {
        let folder = Folder::new();
        for (quant, bound) in
            [(Quant::F32, 1e-4), (Quant::F16, 3e-3), (Quant::Q8_0, 1e-1), (Quant::Q4_0, 1.0)]
        {
            let path = folder.join(&format!("{}.gguf", quant.name()));
            assert_eq!(import(&graph(name), quant, &path), Ok(Vec::new()), "{name}");
            let kernels = kernel::select(None).unwrap();
            let file = ModelFile { id: name.into(), path };
            let solo = Solo::open(kernels, &file, 2, Pack::Off, None, &mut |_, _| {}).unwrap();
            for case in expected(name) {
                let (ids, greedy) = (tokens(&case, "ids"), tokens(&case, "greedy"));
                let mut found = Vec::new();
                solo.tokenizer().encode(case["text"].as_str().unwrap(), Special::AsText, &mut found);
                assert_eq!(found, ids, "{name}: {}", case["text"]);
                let mut reader = solo.reader(Precision::F32, ids.len() + greedy.len()).unwrap();
                let first = reader.read_on(&ids).unwrap().to_vec();
                let mut last = first.clone();
                let mut said = vec![best(&first)];
                for token in &greedy[..greedy.len() - 1] {
                    last = reader.read_on(&[*token]).unwrap().to_vec();
                    said.push(best(&last));
                }
                let errors = [("first_logits", first), ("last_logits", last)]
                    .map(|(key, l)| distance(&l, &logits(&case, key)));
                println!("{name} {}: {errors:?} of {} tokens", quant.name(), ids.len());
                assert!(
                    errors.iter().all(|e| *e <= bound),
                    "{name} {}: {errors:?}, at most {bound}",
                    quant.name()
                );
                if quant == Quant::F32 {
                    assert_eq!(said, greedy, "{name}: {}", case["text"]);
                }
            }
        }
    }
}

/// ggml's reference, written down once more (ggml-quants.c): the scale, and what a code stands for.
fn reference(quant: Quant, x: &[f32; 32]) -> [f32; 32] {
    let largest = x.iter().fold(0.0_f32, |m, v| if m.abs() < v.abs() { *v } else { m });
    let half = |d: f32| half::f16::from_f32(d).to_f32();
    match quant {
        Quant::Q8_0 => {
            let d = largest.abs() / 127.0;
            x.map(|v| half(d) * if d == 0.0 { 0.0 } else { (v * (1.0 / d)).round() })
        }
        Quant::Q4_0 => {
            let d = largest / -8.0;
            x.map(|v| half(d) * if d == 0.0 { 0.0 } else { (v * (1.0 / d) + 8.5).trunc().min(15.0) - 8.0 })
        }
        _ => *x,
    }
}

#[test]
fn each_matrix_is_rounded_as_the_reference_rounds_it() {
    for name in GRAPHS {
        let folder = Folder::new();
        let of = |quant: Quant| {
            let path = folder.join(&format!("{}.gguf", quant.name()));
            import(&graph(name), quant, &path).unwrap();
            format::open(&path).unwrap()
        };
        let exact = of(Quant::F32);
        for asked in [Quant::Q8_0, Quant::Q4_0] {
            let rounded = of(asked);
            assert_eq!(names(&rounded), names(&exact));
            let file_type = if asked == Quant::Q8_0 { 7 } else { 2 };
            assert_eq!(rounded.uint("general.file_type").unwrap(), Some(file_type));
            for tensor in names(&exact) {
                let (info, x) = (rounded.tensor(&tensor).unwrap(), floats(&exact, &tensor));
                let y = floats(&rounded, &tensor);
                let wanted = match &*tensor {
                    // The output matrix too.
                    "token_embd.weight" => Quant::Q8_0,
                    _ if info.n_rows == 1 => Quant::F32,
                    _ => asked,
                };
                assert_eq!(info.quant, wanted, "{name}: {tensor}");
                let near: Vec<f32> =
                    x.as_chunks::<32>().0.iter().flat_map(|block| reference(wanted, block)).collect();
                assert!(y == near, "{name}: {tensor} is rounded in another way");
                let error = distance(&y, &x);
                // What the blocks of random weights cost.
                let bounds = match wanted {
                    Quant::Q8_0 => 0.003..0.008,
                    Quant::Q4_0 => 0.06..0.12,
                    _ => 0.0..1e-30,
                };
                assert!(bounds.contains(&error), "{name}: {tensor}: {error}");
            }
        }
    }
}
