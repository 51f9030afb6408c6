//! Graphs of ONNX, written for tests: the same small Llama in the forms that exporters give it.

use std::path::Path;

use sotto::base::rng::Rng;

use crate::support::{Folder, fixture};

/// A message of protocol buffers.
#[derive(Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n > 127 {
            self.0.push(n as u8 | 128);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    pub(crate) fn number(mut self, field: u64, n: u64) -> Self {
        self.varint(field << 3);
        self.varint(n);
        self
    }

    pub(crate) fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend(bytes.as_ref());
        self
    }
}

/// The head of a tensor: name, type and dimensions.
pub(crate) fn tensor(name: &str, kind: u64, dims: &[u64]) -> Message {
    let head = dims.iter().fold(Message::default(), |m, d| m.number(1, *d));
    head.number(2, kind).bytes(8, name)
}

pub(crate) fn node(op: &str, name: &str, inputs: &[&str]) -> Message {
    let head = inputs.iter().fold(Message::default(), |m, input| m.bytes(1, input));
    head.bytes(2, format!("{name}_output_0")).bytes(3, name).bytes(4, op)
}

/// An attribute that is an integer.
pub(crate) fn int(name: &str, n: u64) -> Vec<u8> {
    Message::default().bytes(1, name).number(3, n).number(20, 2).0
}

/// The whole file of a graph.
pub(crate) fn model(graph: &Message) -> Vec<u8> {
    Message::default().number(1, 8).bytes(7, &graph.0).0
}

/// A matrix or vector of the model: what the class calls it, dimensions as Hugging Face has them, and numbers.
pub(crate) struct Weight {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) data: Vec<f32>,
}

impl Weight {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.data.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// Its dimensions and numbers with rows and columns changed.
    fn turned(&self) -> (Vec<u64>, Vec<u8>) {
        let (rows, cols) = (self.dims[0] as usize, self.dims[1] as usize);
        let order = (0..cols).flat_map(|c| (0..rows).map(move |r| self.data[r * cols + c]));
        (vec![self.dims[1], self.dims[0]], order.flat_map(f32::to_le_bytes).collect())
    }
}

/// How a graph has a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    /// Turned, without a name, multiplied with.
    Anonymous,
    /// Under its own name, turned by a node.
    Named,
    /// Under its own name though turned, as some builders write it.
    NamedTurned,
    /// A row for each output, without a name.
    Gemm,
    /// Turned, in a constant.
    Constant,
    /// Turned, in another file.
    Outside,
    /// In the branches of an `If`, each with its own.
    Branches,
}

/// The rows of the embedding of the fixtures' vocabulary.
const N_VOCAB: u64 = 290;

/// Weights of a Llama of one layer, square matrices among them.
pub(crate) fn weights() -> Vec<Weight> {
    weights_of(N_VOCAB)
}

/// The same with another vocabulary.
pub(crate) fn weights_of(n_vocab: u64) -> Vec<Weight> {
    let mut rng = Rng::new(11);
    let mut all = Vec::new();
    let mut add = |name: &str, dims: &[u64]| {
        let n: u64 = dims.iter().product();
        let data = (0..n).map(|_| rng.next_f32() - 0.5).collect();
        all.push(Weight { name: format!("{name}.weight"), dims: dims.to_vec(), data });
    };
    add("model.embed_tokens", &[n_vocab, 32]);
    add("model.norm", &[32]);
    add("lm_head", &[n_vocab, 32]);
    let layer = |part: &str| format!("model.layers.0.{part}");
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        add(&layer(norm), &[32]);
    }
    for (part, dims) in [
        ("self_attn.q_proj", [32, 32]),
        ("self_attn.k_proj", [16, 32]),
        ("self_attn.v_proj", [16, 32]),
        ("self_attn.o_proj", [32, 32]),
        ("mlp.gate_proj", [64, 32]),
        ("mlp.up_proj", [64, 32]),
        ("mlp.down_proj", [32, 64]),
    ] {
        add(&layer(part), &dims);
    }
    all
}

/// The small files of the model.
pub(crate) fn small_files(folder: &Folder) {
    let from = fixture("onnx/causal-merged");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    let one = untied.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(config != untied && untied != one);
    folder.write("config.json", one);
}

/// The weights as a file of safetensors.
pub(crate) fn safetensors(all: &[Weight]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for weight in all {
        let start = data.len();
        data.extend(weight.bytes());
        let info =
            serde_json::json!({"dtype": "F32", "shape": weight.dims, "data_offsets": [start, data.len()]});
        header.insert(weight.name.clone(), info);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// The weights as a graph; what goes into the file beside it.
pub(crate) fn graph(all: &[Weight], form: Form) -> (Message, Vec<u8>) {
    let (mut graph, mut outside) = (Message::default(), Vec::new());
    let mut branch = Message::default();
    // Numbers and tables that are no weights.
    let mask = tensor("/model/mask", 1, &[1, 2]).bytes(9, [0; 8]);
    let angles = tensor("onnx::Mul_7", 1, &[1]).bytes(9, [0; 4]);
    graph = graph
        .bytes(5, mask.0)
        .bytes(5, angles.0)
        .bytes(5, tensor("onnx::Reshape_1", 7, &[2]).bytes(9, [0; 16]).0);
    graph = graph.bytes(1, node("Mul", "/model/layers.0/self_attn/Mul", &["/model/x", "onnx::Mul_7"]).0);
    for (i, weight) in all.iter().enumerate() {
        let module = weight.name.strip_suffix(".weight").unwrap();
        let path = format!("/{}", module.replace('.', "/").replace("layers/", "layers."));
        if weight.dims.len() == 1 || module.ends_with("embed_tokens") {
            let own = tensor(&weight.name, 1, &weight.dims).bytes(9, weight.bytes());
            graph = graph.bytes(5, own.0);
            continue;
        }
        let (anonymous, (turned_dims, turned)) = (format!("onnx::MatMul_{i}"), weight.turned());
        let product = |right: &str| node("MatMul", &format!("{path}/MatMul"), &["/x", right]);
        match form {
            Form::Anonymous => {
                let data = tensor(&anonymous, 1, &turned_dims).bytes(9, turned);
                graph = graph.bytes(5, data.0).bytes(1, product(&anonymous).0);
            }
            Form::Named => {
                let data = tensor(&weight.name, 1, &weight.dims).bytes(4, weight.bytes());
                let turn = format!("{path}/Transpose");
                let turn = node("Transpose", &turn, &[&weight.name]);
                graph = graph.bytes(5, data.0).bytes(1, turn.0);
                graph = graph.bytes(1, product(&format!("{path}/Transpose_output_0")).0);
            }
            Form::NamedTurned => {
                let data = tensor(&weight.name, 1, &turned_dims).bytes(9, turned);
                graph = graph.bytes(5, data.0).bytes(1, product(&weight.name).0);
            }
            Form::Gemm => {
                let data = tensor(&anonymous, 1, &weight.dims).bytes(9, weight.bytes());
                let gemm = node("Gemm", &format!("{path}/Gemm"), &["/x", &anonymous]);
                graph = graph.bytes(5, data.0).bytes(1, gemm.bytes(5, int("transB", 1)).0);
            }
            Form::Constant => {
                let data = tensor("", 1, &turned_dims).bytes(9, turned);
                let value = Message::default().bytes(1, "value").bytes(5, data.0).number(20, 4);
                let constant = node("Constant", &format!("/c{i}"), &[]).bytes(5, value.0);
                graph = graph.bytes(1, constant.0).bytes(1, product(&format!("/c{i}_output_0")).0);
            }
            Form::Outside => {
                let entry = |key: &str, value: String| Message::default().bytes(1, key).bytes(2, value).0;
                let data = tensor(&anonymous, 1, &turned_dims)
                    .bytes(13, entry("location", "model.onnx_data".into()))
                    .bytes(13, entry("offset", outside.len().to_string()))
                    .bytes(13, entry("length", turned.len().to_string()))
                    .number(14, 1);
                outside.extend(turned);
                graph = graph.bytes(5, data.0).bytes(1, product(&anonymous).0);
            }
            Form::Branches => {
                let data = tensor(&format!("{anonymous}_merged_0"), 1, &turned_dims).bytes(9, turned);
                branch = branch.bytes(5, data.0).bytes(1, product(&format!("{anonymous}_merged_0")).0);
            }
        }
    }
    if form == Form::Branches {
        let side = |name: &str| Message::default().bytes(1, name).bytes(6, &branch.0).0;
        let both = node("If", "optimum::if", &["use_cache_branch"]);
        graph = graph.bytes(1, both.bytes(5, side("then_branch")).bytes(5, side("else_branch")).0);
    }
    (graph, outside)
}

/// Writes a directory with the model as a graph.
pub(crate) fn write_graph(folder: &Folder, name: &str, graph: &Message, outside: &[u8]) {
    small_files(folder);
    if let Some(inner) = Path::new(name).parent() {
        std::fs::create_dir_all(folder.join(&inner.to_string_lossy())).unwrap();
    }
    folder.write(name, model(graph));
    if !outside.is_empty() {
        folder.write(name.replace(".onnx", ".onnx_data").as_str(), outside);
    }
}
