//! The command: what it prints, and what it does not write over.

use serde_json::Value;

use crate::support::{Folder, fixture, run, stderr, stdout};

#[test]
fn a_graph_becomes_a_file_that_answers() {
    let folder = Folder::new();
    let (model, to) = (fixture("onnx/causal"), folder.join("m.gguf"));
    let (model, to) = (model.to_str().unwrap(), to.to_str().unwrap());
    let done = run(&["import", model, "-o", to, "--json", "--type", "q4_0"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let said: Value = serde_json::from_str(&stdout(&done)).unwrap();
    assert_eq!((&said["file"], &said["architecture"]), (&to.into(), &"llama".into()));
    assert_eq!(said["file_bytes"].as_u64().unwrap(), std::fs::metadata(to).unwrap().len());
    let types: Vec<_> =
        said["types"].as_array().unwrap().iter().map(|t| (&t["type"], &t["tensors"])).collect();
    assert_eq!(types.len(), 3, "{said}");
    for (kind, n) in [("Q4_0", 14), ("Q8_0", 1), ("F32", 5)] {
        assert!(types.contains(&(&kind.into(), &n.into())), "{said}");
    }
    assert_eq!(said["lost"], Value::Array(Vec::new()));

    let again = run(&["import", model, "-o", to]);
    assert_eq!((again.status.code(), stdout(&again)), (Some(2), String::new()));
    assert!(stderr(&again).contains("is there; --force writes over it"), "{}", stderr(&again));
    let again = run(&["import", model, "-o", to, "--force", "--threads", "1"]);
    assert!(again.status.success() && stderr(&again).is_empty(), "{}", stderr(&again));
    let table = stdout(&again);
    for line in
        ["file          ", "made of       ", "model         llama, ", "types         Q8_0: 15 tensors, "]
    {
        assert!(table.contains(line), "{line:?} wanted:\n{table}");
    }
    let inspect = run(&["inspect", to]);
    assert!(inspect.status.success() && stdout(&inspect).contains("Q8_0"), "{}", stdout(&inspect));
    let tokens = run(&["tokenize", "--model", to, "the cat sat on the mat"]);
    assert_eq!(stdout(&tokens).split_whitespace().count(), 6, "{}", stderr(&tokens));
    let answer = run(&["complete", "--model", to, "--max-tokens", "4", "--temperature", "0", "the cat"]);
    assert!(answer.status.success(), "{}", stderr(&answer));
}

#[test]
fn what_cannot_be_imported_is_said() {
    let folder = Folder::new();
    let to = folder.join("m.gguf");
    let to = to.to_str().unwrap();
    let of = |model: &str| {
        let done = run(&["import", fixture(model).to_str().unwrap(), "-o", to]);
        assert_eq!(done.status.code(), Some(2), "{model}");
        assert!(!folder.join("m.gguf").exists(), "{model}");
        stderr(&done)
    };
    let said = of("onnx/bert");
    assert!(said.contains("architectures names \"BertModel\"") || said.contains("architectures"), "{said}");
    assert!(of("onnx/none").contains("onnx/none"));
    let done = run(&["import", fixture("onnx/causal").to_str().unwrap(), "-o", to, "--type", "q4_k"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("f32, f16, q8_0 and q4_0"), "{}", stderr(&done));
    // Without a name the file goes beside the model.
    let link = folder.join("causal");
    std::os::unix::fs::symlink(fixture("onnx/causal"), &link).unwrap();
    let inner = folder.join("own");
    std::fs::create_dir(&inner).unwrap();
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.onnx"]
    {
        std::fs::copy(link.join(name), inner.join(name)).unwrap();
    }
    let done = run(&["import", inner.to_str().unwrap(), "--type", "F16"]);
    assert!(done.status.success() && folder.join("own-f16.gguf").is_file(), "{}", stderr(&done));
    let done = run(&["import", inner.join("model.onnx").to_str().unwrap()]);
    assert!(done.status.success() && inner.join("model-q8_0.gguf").is_file(), "{}", stderr(&done));
}
