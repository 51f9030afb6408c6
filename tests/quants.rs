//! Logits of every tensor type against independent implementations (tests/fixtures/SOURCES.md).
//!
//! `SOTTO_QUANTS` names a folder with `T.gguf`, `T.exact.safetensors` (logits of the weights as floats) and
//! `T.peer.safetensors` (what llama.cpp makes of the file, with 8-bit activations); without it the full set beside the
//! checkout is used, or the small one in `tests/fixtures`. Every `T` in it is run. `SOTTO_CPU` forces a kernel tier,
//! `SOTTO_EXPECT_TIER` asserts which one ran.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that says what it measured, or stops")]

mod support;

use sotto::model::{KvType, Model, Precision};
use support::golden::{Expected, Run, distance, fixtures, names, packed, pool, stored_rows};

/// How large an error may be with the activations that users get, as a multiple of the peer's: over all stored rows,
/// and of the last row alone.
fn bounds(name: &str) -> [f64; 2] {
    match name {
        // Activations stay floats; the peer rounds them to the weights' type.
        "F32" | "F16" | "BF16" => [1.0, 1.0],
        // Both have one scale for each 32 activations.
        "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q8_0" | "IQ4_NL" | "MXFP4" => [1.1, 1.25],
        // The peer has one for each 256.
        _ => [0.8, 1.0],
    }
}

#[test]
fn logits_of_every_tensor_type() {
    let folder = fixtures("SOTTO_QUANTS", "quants");
    let files = names(&folder, |n| n.ends_with(".gguf"));
    assert!(!files.is_empty(), "no *.gguf in {}", folder.display());
    let pool = pool(2);
    let mut failed = Vec::new();
    for name in files.iter().filter_map(|file| file.strip_suffix(".gguf")) {
        let model = Model::open(&folder.join(format!("{name}.gguf"))).unwrap();
        let exact = Expected::open(&folder.join(format!("{name}.exact.safetensors")));
        let peer = Expected::open(&folder.join(format!("{name}.peer.safetensors")));
        let expected = |of: &Expected| [of.floats("prompt_logits"), of.floats("final_logits")];

        let rows = stored_rows(&mut Run::new(&model, &pool, Precision::F32, 56), &exact);
        let error = distance(&rows.concat(), &expected(&exact).concat());
        let in_panels = packed(&model, &pool);
        if let Some(in_panels) = &in_panels {
            let packed = stored_rows(&mut Run::new(in_panels, &pool, Precision::F32, 56), &exact);
            assert!(packed == rows, "{name}: float activations give other bits with packed weights");
        }
        let in_panels = in_panels.as_ref().unwrap_or(&model);

        let precision = Precision { kv: KvType::F32, ..Precision::default() };
        let errors = |rows: [Vec<f32>; 2]| {
            let last = distance(&rows[1], &exact.floats("final_logits"));
            [distance(&rows.concat(), &expected(&exact).concat()), last]
        };
        let peers = errors(expected(&peer));
        let bounds = bounds(name);
        let run = |model| Run::new(model, &pool, precision, 56);
        for (layout, mut run) in [("rows", run(&model)), ("packed", run(in_panels))] {
            let ours = errors(stored_rows(&mut run, &exact));
            let ratios = [ours[0] / peers[0], ours[1] / peers[1]];
            println!(
                "{name}, {layout}: {error:.1e} with float activations; with codes {:.2} of the peer's error, last row \
                 {:.2} ({})",
                ratios[0],
                ratios[1],
                pool.kernels().tier().name()
            );
            // Not "greater": a NaN fails too.
            if !(error <= 2e-5 && ratios[0] <= bounds[0] && ratios[1] <= bounds[1]) {
                failed.push(format!(
                    "{name}, {layout}: {error:.1e}, at most 2e-5; {ratios:.2?}, at most {bounds:?}"
                ));
            }
        }
        // Neither the chunks of a prompt nor the batch change a bit.
        let tokens = exact.tokens("prompt_tokens");
        let whole = run(in_panels).feed(&tokens, tokens.len());
        for chunk in [1, 7] {
            assert!(run(in_panels).feed(&tokens, chunk) == whole, "{name} in steps of {chunk} tokens");
        }
    }
    assert!(failed.is_empty(), "beyond their bounds:\n{}", failed.join("\n"));
}
