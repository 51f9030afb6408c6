//! Whatever an exporter makes of a model, the same file comes of it.

use sotto::format;
use sotto::quant::Quant;

use crate::proto::{Form, Message, graph, int, node, safetensors, small_files, tensor, weights, write_graph};
use crate::support::Folder;
use crate::{floats, import, names};

const FORMS: [Form; 7] = [
    Form::Anonymous,
    Form::Named,
    Form::NamedTurned,
    Form::Gemm,
    Form::Constant,
    Form::Outside,
    Form::Branches,
];

/// The imported directory of safetensors.
fn wanted(folder: &Folder) -> format::Checkpoint {
    let from = Folder::new();
    small_files(&from);
    from.write("model.safetensors", safetensors(&weights()));
    import(&from.join(""), Quant::F32, &folder.join("wanted.gguf")).unwrap();
    format::open(&folder.join("wanted.gguf")).unwrap()
}

fn same(found: &format::Checkpoint, wanted: &format::Checkpoint, what: &str) {
    assert_eq!(names(found), names(wanted), "{what}");
    for tensor in names(wanted) {
        assert_eq!(
            found.tensor(&tensor).unwrap().shape,
            wanted.tensor(&tensor).unwrap().shape,
            "{what}: {tensor}"
        );
        assert!(floats(found, &tensor) == floats(wanted, &tensor), "{what}: {tensor}");
    }
}

#[test]
fn every_form_of_a_graph_is_the_same_model() {
    let folder = Folder::new();
    let wanted = wanted(&folder);
    for form in FORMS {
        let from = Folder::new();
        let (graph, outside) = graph(&weights(), form);
        write_graph(&from, "model.onnx", &graph, &outside);
        let to = folder.join("found.gguf");
        import(&from.join(""), Quant::F32, &to).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        same(&format::open(&to).unwrap(), &wanted, &format!("{form:?}"));
    }
}

#[test]
fn a_graph_is_found_where_exporters_put_it() {
    let folder = Folder::new();
    let wanted = wanted(&folder);
    for (name, given) in [
        ("onnx/model.onnx", ""),
        ("decoder_model_merged.onnx", ""),
        ("onnx/decoder_with_past_model.onnx", ""),
        ("decoder_model.onnx", ""),
        ("onnx/any.onnx", "onnx/any.onnx"),
        ("any.onnx", "any.onnx"),
    ] {
        let from = Folder::new();
        write_graph(&from, name, &graph(&weights(), Form::Anonymous).0, &[]);
        let to = folder.join("found.gguf");
        import(&from.join(given), Quant::F32, &to).unwrap_or_else(|e| panic!("{name}: {e}"));
        same(&format::open(&to).unwrap(), &wanted, name);
    }
    // A directory with both is that of its safetensors; a graph by its path is the graph.
    let from = Folder::new();
    small_files(&from);
    from.write("model.safetensors", safetensors(&weights()));
    from.write("model.onnx", "no graph");
    import(&from.join(""), Quant::F32, &folder.join("found.gguf")).unwrap();
    let said = import(&from.join("model.onnx"), Quant::F32, &folder.join("found.gguf")).unwrap_err();
    assert!(said.contains("model.onnx"), "{said}");
}

/// Exporters keep one of several tensors with the same numbers, under the name of the first.
#[test]
fn a_tensor_may_be_that_of_several_modules() {
    let folder = Folder::new();
    let rest: Vec<_> = weights().into_iter().filter(|w| !w.name.contains("post_attention")).collect();
    assert!(rest.len() < weights().len());
    let (one, other) =
        ("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight");
    let twin = Message::default().bytes(1, one).bytes(2, other).bytes(3, "Identity_1").bytes(4, "Identity");
    let path = "/model/layers.0/post_attention_layernorm/Mul_1";
    for uses in [node("Mul", path, &[one, "/x"]), twin] {
        let graph = graph(&rest, Form::Anonymous).0.bytes(1, uses.0);
        let from = Folder::new();
        write_graph(&from, "model.onnx", &graph, &[]);
        let to = folder.join("found.gguf");
        let _ = std::fs::remove_file(&to);
        import(&from.join(""), Quant::F32, &to).unwrap();
        let found = format::open(&to).unwrap();
        assert_eq!(floats(&found, "blk.0.ffn_norm.weight"), floats(&found, "blk.0.attn_norm.weight"));
    }
}

#[test]
fn what_is_no_float_model_is_refused_by_name() {
    let all = weights();
    let (whole, _) = graph(&all, Form::Anonymous);
    let without = |name: &str| {
        let rest: Vec<_> = weights().into_iter().filter(|w| !w.name.contains(name)).collect();
        graph(&rest, Form::Anonymous).0
    };
    let with = |message: Message| Message([&whole.0[..], &message.0].concat());
    let one = |number: u64, inner: Message| Message::default().bytes(number, inner.0);
    let zeros = |name: &str, kind: u64| tensor(name, kind, &[32]).bytes(9, [0; 32]);
    let q8 = "/model/layers.0/mlp/up_proj/MatMul_quant";
    let twin = tensor("onnx::Other", 1, &[32, 32]).bytes(9, [0; 4096]);
    let twin_use = node("MatMul", "/model/layers.0/self_attn/q_proj/MatMul", &["/x", "onnx::Other"]);
    let gemm = node(
        "Gemm",
        "/model/layers.0/self_attn/q_proj/Gemm",
        &["/x", "model.layers.0.self_attn.q_proj.weight"],
    );
    let cases: [(&str, Message, &[&str]); 9] = [
        (
            "q",
            with(one(1, node("MatMulInteger", q8, &["a", "b"]))),
            &["up_proj/MatMul_quant", "MatMulInteger", "--type"],
        ),
        ("d", with(one(1, node("DequantizeLinear", "deq", &["a"]))), &["node deq is DequantizeLinear"]),
        ("n", with(one(1, node("MatMulNBits", "", &["a"]))), &["MatMulNBits", "_output_0"]),
        ("absent", without("up_proj"), &["blk.0.ffn_up.weight is absent", "llama"]),
        ("no head", without("lm_head"), &["lm_head.weight (tie_word_embeddings is false) is absent"]),
        (
            "unknown",
            with(one(5, zeros("model.layers.0.self_attn.extra.weight", 3))),
            &["extra.weight is not known in Llama"],
        ),
        (
            "int8",
            with(one(5, zeros("model.layers.0.self_attn.q_proj.bias", 3))),
            &["q_proj.bias has type I8; F32"],
        ),
        (
            "twins",
            with(Message([one(5, twin).0, one(1, twin_use).0].concat())),
            &["q_proj.weight\", with other values, occurs twice"],
        ),
        ("gemm", with(one(1, gemm.bytes(5, int("transB", 1)))), &[]),
    ];
    for (name, graph, words) in cases {
        let (from, to) = (Folder::new(), Folder::new());
        write_graph(&from, "model.onnx", &graph, &[]);
        let said = import(&from.join(""), Quant::F32, &to.join("m.gguf"));
        match words {
            // A tensor that is nowhere is nobody's weight.
            [] => assert!(said.is_ok(), "{name}: {said:?}"),
            _ => {
                let said = said.unwrap_err();
                assert!(words.iter().all(|w| said.contains(w)), "{name}: {words:?} wanted: {said}");
                assert!(!to.join("m.gguf").exists(), "{name}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_ends_it() {
    for (x, quant, ok) in [
        (f32::NAN, Quant::F32, false),
        (f32::INFINITY, Quant::Q8_0, false),
        (1e5, Quant::F16, false),
        (1e5, Quant::F32, true),
        (1e9, Quant::Q4_0, false),
    ] {
        let mut all = weights();
        let v = all.iter_mut().find(|w| w.name.contains("v_proj")).unwrap();
        v.data[5 * 32 + 3] = x;
        let (from, to) = (Folder::new(), Folder::new());
        write_graph(&from, "model.onnx", &graph(&all, Form::Anonymous).0, &[]);
        let said = import(&from.join(""), quant, &to.join("m.gguf"));
        match ok {
            true => assert!(said.is_ok(), "{x}: {said:?}"),
            false => {
                let said = said.unwrap_err();
                assert!(said.contains("blk.0.attn_v.weight, row 5") && said.contains(quant.name()), "{said}");
                assert!(std::fs::read_dir(to.join("")).unwrap().next().is_none(), "nothing is left");
            }
        }
    }
}

/// A graph whose matrices lie column after column is never run.
#[test]
fn turned_weights_are_not_run() {
    let from = Folder::new();
    write_graph(&from, "model.onnx", &graph(&weights(), Form::Anonymous).0, &[]);
    let file = format::open_weights(&from.join("")).unwrap();
    let said = sotto::model::Model::new(std::sync::Arc::new(file)).unwrap_err().to_string();
    assert!(said.contains("column after column") && said.contains("sotto import"), "{said}");
    // To everything else the directory is what it was.
    assert!(format::open(&from.join("")).is_err());
    assert!(format::hf::onnx::find(&from.join("")).is_some());
}
