//! A writer of GGUF files, true ones and lying ones.

/// A metadata value.
#[derive(Clone, Debug)]
pub(crate) enum V {
    U32(u32),
    F32(f32),
    Str(String),
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// A type number and the bytes after it, whatever they are.
    Raw(u32, Vec<u8>),
}

/// ggml's number of a type.
pub(crate) const F32: u32 = 0;
pub(crate) const Q8_0: u32 = 8;

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    /// Where it says its data are; `None`: where they are.
    pub(crate) offset: Option<u64>,
    pub(crate) data: Vec<u8>,
}

/// A file before it is written. Counts that are given stand there instead of the true ones.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) version: u32,
    pub(crate) n_tensors: Option<u64>,
    pub(crate) n_keys: Option<u64>,
    pub(crate) keys: Vec<(String, V)>,
    pub(crate) tensors: Vec<Tensor>,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array<const N: usize>(out: &mut Vec<u8>, kind: u32, items: impl ExactSizeIterator<Item = [u8; N]>) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    items.for_each(|item| out.extend(item));
}

fn value(out: &mut Vec<u8>, value: &V) {
    match value {
        V::U32(x) => out.extend([4, *x].map(u32::to_le_bytes).concat()),
        V::F32(x) => out.extend([6_u32.to_le_bytes(), x.to_le_bytes()].concat()),
        V::Str(text) => {
            out.extend(8_u32.to_le_bytes());
            string(out, text);
        }
        V::Strings(list) => {
            array::<0>(out, 8, list.iter().map(|_| []));
            list.iter().for_each(|text| string(out, text));
        }
        V::F32s(list) => array(out, 6, list.iter().map(|x| x.to_le_bytes())),
        V::I32s(list) => array(out, 5, list.iter().map(|x| x.to_le_bytes())),
        V::Raw(kind, bytes) => {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
    }
}

impl File {
    /// Sets or replaces a key.
    pub(crate) fn set(&mut self, key: &str, value: V) {
        self.keys.retain(|(k, _)| k != key);
        self.keys.push((key.into(), value));
    }

    /// The tensor of that name.
    /// Gives a token another text and makes it user-defined.
    pub(crate) fn define(&mut self, token: usize, text: &str) {
        for (key, value) in &mut self.keys {
            match (key.as_str(), value) {
                ("tokenizer.ggml.tokens", V::Strings(pieces)) => pieces[token] = text.into(),
                ("tokenizer.ggml.token_type", V::I32s(kinds)) => kinds[token] = 4,
                _ => {}
            }
        }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("the file has it")
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, v) in &self.keys {
            string(&mut out, key);
            value(&mut out, v);
        }
        let mut at = 0;
        for t in &self.tensors {
            string(&mut out, &t.name);
            out.extend(u32::try_from(t.dims.len()).expect("few").to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(at).to_le_bytes());
            at += (t.data.len() as u64).next_multiple_of(32);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.data);
        }
        out
    }
}

/// Sizes of a made-up llama.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) n_embd: usize,
    pub(crate) n_ff: usize,
    pub(crate) n_layer: usize,
    pub(crate) n_head: usize,
    pub(crate) n_head_kv: usize,
    pub(crate) n_ctx: usize,
}

/// Loads at once.
pub(crate) const TINY: Shape = Shape { n_embd: 32, n_ff: 32, n_layer: 1, n_head: 2, n_head_kv: 1, n_ctx: 64 };
/// Reads thousands of tokens for seconds, and writes one in milliseconds.
pub(crate) const SLOW: Shape =
    Shape { n_embd: 512, n_ff: 1024, n_layer: 8, n_head: 8, n_head_kv: 2, n_ctx: 16_384 };

/// Entries of its vocabulary: unknown, all bytes, and letters.
const N_VOCAB: usize = 512;
/// The first token that is a plain word.
const FIRST_WORD: usize = 258;

/// One layer of Qwen3-Next's recurrent kind with heads of `dim_v` values: two of keys, four of values, each four wide.
pub(crate) fn delta_net(dim_v: usize) -> File {
    let mut file = llama(TINY);
    let (e, n_k, n_v, dim_k, len, ff) = (8, 2, 4, 4, 4, 8);
    let (inner, conv) = (n_v * dim_v, 2 * n_k * dim_k + n_v * dim_v);
    file.keys.retain(|(key, _)| !key.starts_with("llama."));
    file.set("general.architecture", V::Str("qwen3next".into()));
    let sizes = [
        ("block_count", 1),
        ("context_length", 512),
        ("embedding_length", e),
        ("feed_forward_length", ff),
        ("expert_count", 2),
        ("expert_used_count", 1),
        ("expert_feed_forward_length", ff),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 2),
        ("attention.value_length", 2),
        ("rope.dimension_count", 2),
        ("ssm.conv_kernel", len),
        ("ssm.state_size", dim_k),
        ("ssm.group_count", n_k),
        ("ssm.time_step_rank", n_v),
        ("ssm.inner_size", inner),
    ];
    for (key, n) in sizes {
        file.set(&format!("qwen3next.{key}"), V::U32(u32::try_from(n).expect("small")));
    }
    file.set("qwen3next.attention.layer_norm_rms_epsilon", V::F32(1e-6));
    // An array of one bool.
    let recurrent = [&7_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[1]].concat();
    file.set("qwen3next.attention.recurrent_layers", V::Raw(9, recurrent));
    file.tensors.clear();
    let mut x = 0_u32;
    let mut tensor = |name: &str, dims: &[usize]| {
        let data = (0..dims.iter().product()).flat_map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = x as f32 / u32::MAX as f32;
            // States decay by the exponential of `ssm_a`.
            (if name.ends_with("ssm_a") { -x } else { x - 0.5 }).to_le_bytes()
        });
        let (data, dims) = (data.collect(), dims.iter().map(|n| *n as u64).collect());
        file.tensors.push(Tensor { name: name.into(), dims, kind: F32, offset: None, data });
    };
    let of_layer: [(&str, &[usize]); 18] = [
        ("attn_norm.weight", &[e]),
        ("ssm_a", &[n_v]),
        ("ssm_conv1d.weight", &[len, conv]),
        ("ssm_dt.bias", &[n_v]),
        ("ssm_ba.weight", &[e, 2 * n_v]),
        ("attn_qkv.weight", &[e, conv]),
        ("attn_gate.weight", &[e, inner]),
        ("ssm_norm.weight", &[dim_v]),
        ("ssm_out.weight", &[inner, e]),
        ("post_attention_norm.weight", &[e]),
        ("ffn_gate_inp.weight", &[e, 2]),
        ("ffn_gate_exps.weight", &[e, ff, 2]),
        ("ffn_up_exps.weight", &[e, ff, 2]),
        ("ffn_down_exps.weight", &[ff, e, 2]),
        ("ffn_gate_inp_shexp.weight", &[e, 1]),
        ("ffn_gate_shexp.weight", &[e, ff]),
        ("ffn_up_shexp.weight", &[e, ff]),
        ("ffn_down_shexp.weight", &[ff, e]),
    ];
    for (name, dims) in of_layer {
        tensor(&format!("blk.0.{name}"), dims);
    }
    tensor("token_embd.weight", &[e, N_VOCAB]);
    tensor("output.weight", &[e, N_VOCAB]);
    tensor("output_norm.weight", &[e]);
    file
}

/// A llama with random weights in Q8_0. Its greedy answers are words without an end.
pub(crate) fn llama(shape: Shape) -> File {
    let Shape { n_embd, n_ff, n_layer, n_head, n_head_kv, n_ctx } = shape;
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        bits.to_le_bytes()
    };
    let scale = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let mut tensors = Vec::new();
    let mut matrix = |name: String, rows: usize, cols: usize, first: usize| {
        let mut data = Vec::with_capacity(rows * cols / 32 * 34);
        // Codes are even in -128..128, so that a row has a deviation of about one over the root of its length.
        let d = 1.0 / (74.0 * (cols as f32).sqrt());
        for row in 0..rows {
            for _ in 0..cols / 32 {
                data.extend(scale(if row < first { 0.0 } else { d }));
                (0..4).for_each(|_| data.extend(random()));
            }
        }
        tensors.push(Tensor { name, dims: vec![cols as u64, rows as u64], kind: Q8_0, offset: None, data });
    };
    let head_dim = n_embd / n_head;
    matrix("token_embd.weight".into(), N_VOCAB, n_embd, 0);
    // The bytes and the unknown token are never likelier than a word.
    matrix("output.weight".into(), N_VOCAB, n_embd, FIRST_WORD);
    for i in 0..n_layer {
        let mut part = |name: &str, rows, cols| matrix(format!("blk.{i}.{name}.weight"), rows, cols, 0);
        part("attn_q", n_embd, n_embd);
        part("attn_k", n_head_kv * head_dim, n_embd);
        part("attn_v", n_head_kv * head_dim, n_embd);
        part("attn_output", n_embd, n_embd);
        part("ffn_gate", n_ff, n_embd);
        part("ffn_up", n_ff, n_embd);
        part("ffn_down", n_embd, n_ff);
    }
    let norms = (0..n_layer).flat_map(|i| [format!("blk.{i}.attn_norm"), format!("blk.{i}.ffn_norm")]);
    for name in norms.chain(["output_norm".to_owned()]) {
        let data = std::iter::repeat_n(1_f32.to_le_bytes(), n_embd).flatten().collect();
        let name = format!("{name}.weight");
        tensors.push(Tensor { name, dims: vec![n_embd as u64], kind: F32, offset: None, data });
    }
    let piece = |i: usize| match i {
        0 => "<unk>".into(),
        1 => "<s>".into(),
        2..FIRST_WORD => format!("<0x{:02X}>", i - 2),
        _ => format!("\u{2581}w{i}"),
    };
    let kind = |i: usize| match i {
        0 => 2,
        1 => 3,
        2..FIRST_WORD => 6,
        _ => 1,
    };
    let size = |n: usize| V::U32(u32::try_from(n).expect("small"));
    let keys = [
        ("general.architecture", V::Str("llama".into())),
        ("llama.block_count", size(n_layer)),
        ("llama.context_length", size(n_ctx)),
        ("llama.embedding_length", size(n_embd)),
        ("llama.feed_forward_length", size(n_ff)),
        ("llama.attention.head_count", size(n_head)),
        ("llama.attention.head_count_kv", size(n_head_kv)),
        ("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5)),
        ("tokenizer.ggml.model", V::Str("llama".into())),
        ("tokenizer.ggml.tokens", V::Strings((0..N_VOCAB).map(piece).collect())),
        ("tokenizer.ggml.token_type", V::I32s((0..N_VOCAB).map(kind).collect())),
        ("tokenizer.ggml.scores", V::F32s((0..N_VOCAB).map(|i| -(i as f32)).collect())),
        ("tokenizer.ggml.bos_token_id", V::U32(1)),
        ("tokenizer.ggml.unknown_token_id", V::U32(0)),
    ];
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    File { version: 3, n_tensors: None, n_keys: None, keys, tensors }
}
