//! Graphs from anywhere: an error that says where, never a panic, and no memory that the file does not explain.

use std::sync::Arc;

use arbtest::arbtest;
use sotto::base::SharedBytes;
use sotto::format::hf::{Shard, Texts, onnx};
use sotto::format::{Checkpoint, FormatError};
use sotto::quant::Quant;

use crate::proto::{Form, Message, graph, model, node, small_files, tensor, weights, write_graph};
use crate::support::{Folder, fixture};
use crate::{import, peak};

fn read(config: &[u8], bytes: Vec<u8>, beside: &[u8]) -> Result<Checkpoint, FormatError> {
    let texts = Texts { config: config.to_vec(), ..Texts::default() };
    let shard = |file: &str, bytes: Vec<u8>| Shard {
        file: file.into(),
        bytes: Arc::new(bytes) as SharedBytes,
        map: None,
    };
    onnx::translate("d", &texts, shard("g.onnx", bytes), &|name| Ok(shard(name, beside.to_vec())))
}

/// Reads what came, and every byte of what it says there is.
fn take(config: &[u8], bytes: Vec<u8>, beside: &[u8]) -> Result<(), String> {
    let file = read(config, bytes, beside).map_err(|e| e.to_string())?;
    for (name, info) in file.tensors() {
        let row = info.quant.row_bytes(info.n_cols).unwrap();
        assert_eq!(file.bytes(info).len(), row * info.n_rows, "{name}");
    }
    Ok(())
}

fn config() -> Vec<u8> {
    std::fs::read(fixture("onnx/causal-merged/config.json")).unwrap()
}

#[test]
fn a_graph_that_is_cut_short_is_told() {
    for name in ["causal/model.onnx", "causal-merged/decoder_model_merged.onnx", "causal-dynamo/model.onnx"] {
        let config = std::fs::read(fixture("onnx").join(name).with_file_name("config.json")).unwrap();
        let whole = std::fs::read(fixture("onnx").join(name)).unwrap();
        assert_eq!(take(&config, whole.clone(), &[]), Ok(()));
        for n in (0..whole.len()).step_by(64) {
            let said = take(&config, whole[..n].to_vec(), &[]).unwrap_err();
            let told =
                said.contains("cut short") || said.contains("it has no graph") || said.contains("is absent");
            assert!(told, "{name}, {n} bytes: {said}");
        }
    }
    let (graph, outside) = graph(&weights(), Form::Outside);
    let folder = Folder::new();
    small_files(&folder);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    assert_eq!(take(&config, model(&graph), &outside), Ok(()));
    for n in (0..outside.len()).step_by(64) {
        let said = take(&config, model(&graph), &outside[..n]).unwrap_err();
        assert!(said.contains("model.onnx_data: tensor") && said.contains("cut short"), "{n}: {said}");
    }
}

#[test]
fn changed_bytes_do_no_harm() {
    let files = ["causal/model.onnx", "causal-merged/decoder_model_merged.onnx", "causal-dynamo/model.onnx"]
        .map(|name| std::fs::read(fixture("onnx").join(name)).unwrap());
    let (own, outside) = graph(&weights(), Form::Outside);
    let files = [&files[0], &files[1], &model(&own)];
    let config = config();
    arbtest(|u| {
        let mut bytes = u.choose(&files)?.to_vec();
        for _ in 0..u.int_in_range(1..=8)? {
            // Weights have most bytes, and none of them is looked at: the beginning and the end have the rest.
            let at = match u.ratio(1, 2)? {
                true => u.int_in_range(0..=bytes.len() - 1)?,
                false => u.int_in_range(0..=4000.min(bytes.len() - 1))?,
            };
            bytes[at] = u.arbitrary()?;
        }
        let _ = take(&config, bytes, &outside);
        Ok(())
    });
}

#[test]
fn what_lies_about_itself_is_told_with_its_numbers() {
    let big = u64::MAX / 8;
    let name = "model.layers.0.self_attn.q_proj.weight";
    let one = |inner: Message| model(&Message::default().bytes(5, inner.0));
    let outside = |pairs: &[(&str, &str)]| {
        let entry = |(key, value): &(&str, &str)| Message::default().bytes(1, key).bytes(2, value).0;
        one(pairs.iter().fold(tensor(name, 1, &[32, 32]), |m, pair| m.bytes(13, entry(pair))).number(14, 1))
    };
    let nested = |depth: usize| {
        let mut graph = Message::default();
        for _ in 0..depth {
            let attribute = Message::default().bytes(1, "then_branch").bytes(6, graph.0);
            graph = Message::default().bytes(1, node("If", "if", &[]).bytes(5, attribute.0).0);
        }
        model(&graph)
    };
    let many = (0..300).fold(node("If", "if", &[]), |m, _| m.bytes(5, Message::default().bytes(6, []).0));
    let twins = Message::default().bytes(5, tensor("a", 1, &[1]).0).bytes(5, tensor("a", 1, &[1]).0);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (Vec::new(), &["g.onnx: the model at byte 0: it has no graph"]),
        (b"GGUF\x03".to_vec(), &["g.onnx"]),
        (
            vec![0x3a, 255, 255, 255, 255, 15, 0],
            &["g.onnx: a field at byte 6 needs 4294967295 bytes, 1 remain"],
        ),
        (
            one(tensor(name, 1, &[big, big]).bytes(9, [0; 4])),
            &["q_proj.weight", "its shape", "beyond any file"],
        ),
        (
            one(tensor(name, 1, &[1 << 40, 32]).bytes(9, [0; 4])),
            &["shape [1099511627776, 32]", "4 are there"],
        ),
        (one(tensor(name, 1, &[u64::MAX, 32]).bytes(9, [0; 4])), &["its shape", "beyond any file"]),
        (one(tensor(name, 1, &[32, 32]).bytes(9, [0; 64])), &["takes 4096 bytes, 64 are there"]),
        (one(tensor(name, 1, &[2]).bytes(4, [0; 4]).bytes(4, [0; 4])), &["its bytes are not in one piece"]),
        (one(tensor(name, 1, &[1; 9]).bytes(9, [0; 4])), &["more than 8 dimensions"]),
        (one(tensor(name, 8, &[1]).bytes(9, [0; 4])), &["has type number 8 of ONNX"]),
        (one(tensor(name, 1, &[0, 32])), &["a dimension is 0"]),
        (nested(5), &["the nesting of graphs says 5, at most 4"]),
        (nested(5_000), &["the nesting of graphs says 5, at most 4"]),
        (model(&Message::default().bytes(1, many.0)), &["the number of graphs says 257, at most 256"]),
        (model(&twins), &["tensor \"a\" occurs twice"]),
        (one(Message::default().bytes(8, [255, 254])), &["the name of a tensor at byte", "not UTF-8"]),
        (outside(&[]), &["g.onnx: has weights in the file \"\", which is not a plain name"]),
        (outside(&[("location", "../x")]), &["has weights in the file \"../x\", which is not a plain name"]),
        (outside(&[("location", "/etc/passwd")]), &["\"/etc/passwd\", which is not a plain name"]),
        (outside(&[("location", "a/b")]), &["\"a/b\", which is not a plain name"]),
        (outside(&[("location", "x"), ("offset", "-1")]), &["the offset of its bytes is \"-1\", no number"]),
        (outside(&[("location", "x"), ("offset", "1e9")]), &["\"1e9\", no number"]),
        (outside(&[("location", "x"), ("offset", "18446744073709551615")]), &["x: tensor", "cut short"]),
        (outside(&[("location", "x"), ("length", "12")]), &["takes 4096 bytes, 12 are there"]),
        (
            outside(&[("location", "x"), ("offset", "5000")]),
            &["x: tensor", "at byte 5000 needs 4096 bytes, 3000 remain"],
        ),
    ];
    for (bytes, words) in cases {
        let n = bytes.len();
        let said = take(&config(), bytes, &[0; 8000]).expect_err(words[0]);
        assert!(words.iter().all(|w| said.contains(w)), "{n} bytes, {words:?} wanted: {said}");
        assert!(said.len() < 1000, "{said}");
    }
}

/// Beside the real files: what a graph names is never looked for elsewhere.
#[test]
fn files_beside_a_graph_are_beside_it() {
    let from = Folder::new();
    let (graph, _) = graph(&weights(), Form::Outside);
    write_graph(&from, "model.onnx", &graph, &[]);
    let to = Folder::new();
    let said = import(&from.join(""), Quant::F32, &to.join("m.gguf")).unwrap_err();
    assert!(said.contains("model.onnx_data: is missing, although model.onnx names it"), "{said}");
    let said = import(&from.join("none.onnx"), Quant::F32, &to.join("m.gguf")).unwrap_err();
    assert!(said.contains("none.onnx"), "{said}");
    std::fs::remove_file(from.join("config.json")).unwrap();
    let said = import(&from.join(""), Quant::F32, &to.join("m.gguf")).unwrap_err();
    assert!(said.contains("holds no config.json"), "{said}");
}

/// A file of many small things is no bomb.
#[test]
fn memory_is_that_of_the_file() {
    let config = config();
    let (whole, _) = graph(&weights(), Form::Anonymous);
    let tensors =
        (0..60_000).fold(whole.clone(), |m, i| m.bytes(5, Message::default().bytes(8, format!("{i}")).0));
    let dims = tensor("model.layers.0.self_attn.q_proj.weight", 1, &[1; 8]).bytes(9, [0; 4]);
    let constants = (0..20_000).fold(whole.clone(), |m, i| {
        let value = Message::default().bytes(1, "value").bytes(5, []);
        m.bytes(1, node("Constant", &format!("{i}"), &[]).bytes(5, value.0).0)
    });
    let uses = (0..20_000).fold(whole.clone(), |m, i| {
        let path = format!("/layers.{i}/mlp/up_proj/MatMul");
        m.bytes(1, node("MatMul", &path, &["", "model.layers.0.self_attn.q_proj.weight"]).0)
    });
    let branches = (0..250)
        .fold(node("If", "if", &[]), |m, _| m.bytes(5, Message::default().bytes(6, whole.0.clone()).0));
    let branches = Message::default().bytes(1, branches.0);
    let dims = (0..1).fold(Message::default(), |m, _| m.bytes(5, dims.0.clone()));
    for (what, graph) in [
        ("a model", whole),
        ("tensors", tensors),
        ("dims", dims),
        ("constants", constants),
        ("uses", uses),
        ("branches", branches),
    ] {
        let bytes = model(&graph);
        let n = bytes.len();
        let texts = Texts { config: config.clone(), ..Texts::default() };
        let shard = Shard { file: "g.onnx".into(), bytes: Arc::new(bytes) as SharedBytes, map: None };
        let none = |_: &str| -> Result<Shard, FormatError> { unreachable!() };
        let (_, most) = peak::of(|| onnx::translate("d", &texts, shard, &none).map(drop));
        println!("{what}: {most} bytes for {n}");
        assert!(
            most <= (64 << 10) + 8 * (n + config.len()),
            "{what}: {most} bytes of memory for {n} of file"
        );
    }
}
