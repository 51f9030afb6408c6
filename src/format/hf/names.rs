//! Which classes of models are read, as data: names of tensors, what GGUF's converter folds into them, and what is
//! particular to their configuration. Names on the right are GGUF's.

/// What is done to a tensor on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// Nothing: it stays in place.
    Keep,
    /// 1 is added: these norms multiply by one plus the weight.
    PlusOne,
    /// Minus the exponential: the decay is stored as a logarithm.
    NegExp,
    /// Dimensions of 1 inside the shape go; in place.
    Squeeze,
    /// Rows and columns change places (`Conv1D` of GPT-2).
    Transpose,
    /// A matrix for each expert, one after the other; each gets its name, in place.
    Experts,
    /// As `Experts`, each with the rows of the gate before those of the up matrix.
    GateUpExperts,
}

use Fold::{Experts, GateUpExperts, Keep, NegExp, PlusOne, Squeeze, Transpose};

/// Name of a tensor, with or without its `.weight` or `.bias`; its name in GGUF; what is done to it. `#` stands for
/// the number of an expert.
pub(super) type Entry = (&'static str, &'static str, Fold);

/// What a class of models is and how it is read.
pub(super) struct Class {
    /// Values of `architectures` in `config.json`.
    pub(super) names: &'static [&'static str],
    /// GGUF's name of the architecture.
    pub(super) arch: &'static str,
    /// Tensors outside blocks; the first table that has a name counts.
    pub(super) outer: &'static [&'static [Entry]],
    /// Tensors of a block.
    pub(super) block: &'static [&'static [Entry]],
    /// Entries of the configuration beyond those that all have.
    pub(super) rules: &'static [Rule],
    /// Activation functions that the architecture computes.
    pub(super) activations: &'static [&'static str],
}

/// A part of the configuration and what becomes of it.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// GGUF's key behind the architecture's name, and the entries that may hold it, the first one first.
    Uint(&'static str, &'static [&'static str]),
    /// As `Uint`.
    Float(&'static str, &'static [&'static str]),
    /// As `Uint`, and this number where the entry is absent.
    UintOr(&'static str, &'static [&'static str], u64),
    /// As `Float`, and this number where the entry is absent.
    FloatOr(&'static str, &'static [&'static str], f64),
    /// This number.
    Is(&'static str, u64),
    /// GGUF's key, an entry that is true or false, and what it is where it is absent; written where it is false.
    Flag(&'static str, &'static str, bool),
    /// GGUF's key and an entry that something is multiplied with; written where it is not 1.
    Scale(&'static str, &'static str),
    /// Scores are divided by the root of this number, not of the width of a head (Gemma 2 and 3).
    QueryScale(&'static str),
    /// An entry that must have this value where it is there: the architecture computes nothing else.
    Must(&'static str, bool),
    /// A window on some layers: on all but every n-th by the architecture, 0 for all layers.
    Window(u64),
    /// A window on all layers, whatever else the configuration says of some (Qwen3's mixture).
    WindowAll,
    /// The window is written as 0 where there is none (Phi-3).
    WindowZero,
    /// Base of the rotary positions on layers with a window, where it is absent.
    LocalBase(f64),
    /// Base of the rotary positions, where it is absent.
    Base(f64),
    /// The base on layers with a window is that of the others, where it is absent.
    SameLocalBase,
    /// Positions of one head rotate by factors that depend on the length of the context (Phi-3).
    LongRope,
    /// The base grows with `alpha` (Hunyuan).
    Alpha,
    /// Every n-th layer does not rotate, which the architecture knows, or others.
    NoRopeEvery(u64),
    /// Queries grow with their position (Ministral).
    Temperature,
    /// Layers without attention have 0 key-value heads, and the feed-forward may be adjusted (LFM2).
    ShortConv,
    /// Gated delta net on most layers (Qwen3.5).
    DeltaNet,
    /// Heads and feed-forward of two widths, keys and values that layers share, embeddings for each layer (Gemma 4).
    TwoWidths,
    /// The feed-forward is this many times as wide as the residual stream, where it is absent.
    Wide(u64),
}

use Rule::{
    Alpha, Base, DeltaNet, Flag, Float, FloatOr, Is, LocalBase, LongRope, Must, NoRopeEvery, QueryScale,
    SameLocalBase, Scale, ShortConv, Temperature, TwoWidths, Uint, UintOr, Wide, Window, WindowAll,
    WindowZero,
};

/// Tensors outside blocks.
const OUTER: &[Entry] =
    &[("embed_tokens", "token_embd", Keep), ("norm", "output_norm", Keep), ("lm_head", "output", Keep)];
const OUTER_GEMMA: &[Entry] = &[("norm", "output_norm", PlusOne)];
const OUTER_GEMMA4: &[Entry] = &[
    ("embed_tokens_per_layer", "per_layer_token_embd", Keep),
    ("per_layer_model_projection", "per_layer_model_proj", Keep),
    ("per_layer_projection_norm", "per_layer_proj_norm", Keep),
];
const OUTER_GPT2: &[Entry] = &[
    ("wte", "token_embd", Keep),
    ("wpe", "position_embd", Keep),
    ("ln_f", "output_norm", Keep),
    ("lm_head", "output", Keep),
];
const OUTER_LFM2: &[Entry] = &[("embedding_norm", "token_embd_norm", Keep)];

/// Attention and gated feed-forward under the names that most classes use.
const BLOCK: &[Entry] = &[
    ("self_attn.q_proj", "attn_q", Keep),
    ("self_attn.k_proj", "attn_k", Keep),
    ("self_attn.v_proj", "attn_v", Keep),
    ("self_attn.o_proj", "attn_output", Keep),
    ("self_attn.q_norm", "attn_q_norm", Keep),
    ("self_attn.k_norm", "attn_k_norm", Keep),
    ("mlp.gate_proj", "ffn_gate", Keep),
    ("mlp.up_proj", "ffn_up", Keep),
    ("mlp.down_proj", "ffn_down", Keep),
];
/// A norm before attention and one before the feed-forward.
const PRE_NORM: &[Entry] =
    &[("input_layernorm", "attn_norm", Keep), ("post_attention_layernorm", "ffn_norm", Keep)];
/// Norms after both.
const POST_NORM: &[Entry] = &[
    ("post_attention_layernorm", "post_attention_norm", Keep),
    ("post_feedforward_layernorm", "post_ffw_norm", Keep),
];
const GEMMA: &[Entry] =
    &[("input_layernorm", "attn_norm", PlusOne), ("post_attention_layernorm", "ffn_norm", PlusOne)];
const GEMMA2: &[Entry] = &[
    ("input_layernorm", "attn_norm", PlusOne),
    ("post_attention_layernorm", "post_attention_norm", PlusOne),
    ("pre_feedforward_layernorm", "ffn_norm", PlusOne),
    ("post_feedforward_layernorm", "post_ffw_norm", PlusOne),
    ("self_attn.q_norm", "attn_q_norm", PlusOne),
    ("self_attn.k_norm", "attn_k_norm", PlusOne),
];
const GEMMA4: &[Entry] = &[
    ("input_layernorm", "attn_norm", Keep),
    ("post_attention_layernorm", "post_attention_norm", Keep),
    ("pre_feedforward_layernorm", "ffn_norm", Keep),
    ("post_feedforward_layernorm", "post_ffw_norm", Keep),
    ("per_layer_input_gate", "inp_gate", Keep),
    ("per_layer_projection", "proj", Keep),
    ("post_per_layer_input_norm", "post_norm", Keep),
    ("layer_scalar", "layer_output_scale.weight", Keep),
];
const QWEN35: &[Entry] = &[
    ("input_layernorm", "attn_norm", PlusOne),
    ("post_attention_layernorm", "post_attention_norm", PlusOne),
    ("self_attn.q_norm", "attn_q_norm", PlusOne),
    ("self_attn.k_norm", "attn_k_norm", PlusOne),
    ("linear_attn.A_log", "ssm_a", NegExp),
    ("linear_attn.dt_bias", "ssm_dt.bias", Keep),
    ("linear_attn.conv1d", "ssm_conv1d", Squeeze),
    ("linear_attn.in_proj_a", "ssm_alpha", Keep),
    ("linear_attn.in_proj_b", "ssm_beta", Keep),
    ("linear_attn.in_proj_qkv", "attn_qkv", Keep),
    ("linear_attn.in_proj_z", "attn_gate", Keep),
    ("linear_attn.norm", "ssm_norm", Keep),
    ("linear_attn.out_proj", "ssm_out", Keep),
];
const QWEN_MOE: &[Entry] = &[
    ("mlp.gate", "ffn_gate_inp", Keep),
    ("mlp.experts.#.gate_proj", "ffn_gate.#", Keep),
    ("mlp.experts.#.up_proj", "ffn_up.#", Keep),
    ("mlp.experts.#.down_proj", "ffn_down.#", Keep),
    ("mlp.experts.gate_up_proj", "ffn_", GateUpExperts),
    ("mlp.experts.down_proj", "ffn_down", Experts),
];
const PHI3: &[Entry] = &[("self_attn.qkv_proj", "attn_qkv", Keep), ("mlp.gate_up_proj", "ffn_up", Keep)];
const HUNYUAN: &[Entry] =
    &[("self_attn.query_layernorm", "attn_q_norm", Keep), ("self_attn.key_layernorm", "attn_k_norm", Keep)];
const STARCODER2: &[Entry] = &[("mlp.c_fc", "ffn_up", Keep), ("mlp.c_proj", "ffn_down", Keep)];
const GPT2: &[Entry] = &[
    ("ln_1", "attn_norm", Keep),
    ("ln_2", "ffn_norm", Keep),
    ("attn.c_attn.weight", "attn_qkv.weight", Transpose),
    ("attn.c_attn.bias", "attn_qkv.bias", Keep),
    ("attn.c_proj.weight", "attn_output.weight", Transpose),
    ("attn.c_proj.bias", "attn_output.bias", Keep),
    ("mlp.c_fc.weight", "ffn_up.weight", Transpose),
    ("mlp.c_fc.bias", "ffn_up.bias", Keep),
    ("mlp.c_proj.weight", "ffn_down.weight", Transpose),
    ("mlp.c_proj.bias", "ffn_down.bias", Keep),
];
const LFM2: &[Entry] = &[
    ("operator_norm", "attn_norm", Keep),
    ("ffn_norm", "ffn_norm", Keep),
    ("conv.conv", "shortconv.conv", Squeeze),
    ("conv.in_proj", "shortconv.in_proj", Keep),
    ("conv.out_proj", "shortconv.out_proj", Keep),
    ("self_attn.out_proj", "attn_output", Keep),
    ("self_attn.q_layernorm", "attn_q_norm", Keep),
    ("self_attn.k_layernorm", "attn_k_norm", Keep),
    ("feed_forward.w1", "ffn_gate", Keep),
    ("feed_forward.w2", "ffn_down", Keep),
    ("feed_forward.w3", "ffn_up", Keep),
];
const LFM2_MOE: &[Entry] = &[
    ("feed_forward.gate", "ffn_gate_inp", Keep),
    ("feed_forward.expert_bias", "exp_probs_b.bias", Keep),
    ("feed_forward.experts.#.w1", "ffn_gate.#", Keep),
    ("feed_forward.experts.#.w2", "ffn_down.#", Keep),
    ("feed_forward.experts.#.w3", "ffn_up.#", Keep),
    ("feed_forward.experts.gate_up_proj", "ffn_", GateUpExperts),
    ("feed_forward.experts.down_proj", "ffn_down", Experts),
];

const SILU: &[&str] = &["silu", "swish"];
const GELU_TANH: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];
/// The first Gemma says `gelu` and means the other one.
const GELU_GEMMA: &[&str] = &["gelu_pytorch_tanh", "gelu"];

/// What Gemma 3 leaves out of its configurations.
const GEMMA3_RULES: &[Rule] = &[
    QueryScale("query_pre_attn_scalar"),
    UintOr("attention.head_count", &["num_attention_heads"], 8),
    UintOr("attention.head_count_kv", &["num_key_value_heads"], 4),
    UintOr("attention.key_length", &["head_dim"], 256),
    UintOr("attention.value_length", &["head_dim"], 256),
    UintOr("context_length", &["max_position_embeddings"], 131_072),
    FloatOr("attention.layer_norm_rms_epsilon", &["rms_norm_eps"], 1e-6),
    Float("final_logit_softcapping", &["final_logit_softcapping"]),
    Window(6),
    Base(1e6),
    LocalBase(1e4),
];

/// All classes that are read.
pub(super) const CLASSES: &[Class] = &[
    Class {
        names: &["LlamaForCausalLM", "MistralForCausalLM"],
        arch: "llama",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[Window(0)],
        activations: SILU,
    },
    Class {
        names: &["Qwen2ForCausalLM"],
        arch: "qwen2",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[Window(0)],
        activations: SILU,
    },
    Class {
        names: &["Qwen3ForCausalLM"],
        arch: "qwen3",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[Window(0)],
        activations: SILU,
    },
    Class {
        names: &["Qwen3MoeForCausalLM"],
        arch: "qwen3moe",
        outer: &[OUTER],
        block: &[PRE_NORM, QWEN_MOE, BLOCK],
        rules: &[
            Uint("expert_feed_forward_length", &["moe_intermediate_size"]),
            Flag("expert_weights_norm", "norm_topk_prob", false),
            WindowAll,
        ],
        activations: SILU,
    },
    Class {
        names: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
        arch: "qwen35",
        outer: &[OUTER_GEMMA, OUTER],
        block: &[QWEN35, BLOCK],
        rules: &[DeltaNet],
        activations: SILU,
    },
    Class {
        names: &["GemmaForCausalLM"],
        arch: "gemma",
        outer: &[OUTER_GEMMA, OUTER],
        block: &[GEMMA, BLOCK],
        rules: &[],
        activations: GELU_GEMMA,
    },
    Class {
        names: &["Gemma2ForCausalLM"],
        arch: "gemma2",
        outer: &[OUTER_GEMMA, OUTER],
        block: &[GEMMA2, BLOCK],
        rules: &[
            Float("attn_logit_softcapping", &["attn_logit_softcapping"]),
            Float("final_logit_softcapping", &["final_logit_softcapping"]),
            QueryScale("query_pre_attn_scalar"),
            Window(2),
        ],
        activations: GELU_GEMMA,
    },
    Class {
        names: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        arch: "gemma3",
        outer: &[OUTER_GEMMA, OUTER],
        block: &[GEMMA2, BLOCK],
        rules: GEMMA3_RULES,
        activations: GELU_GEMMA,
    },
    Class {
        names: &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
        arch: "gemma4",
        outer: &[OUTER_GEMMA4, OUTER],
        block: &[GEMMA4, BLOCK],
        rules: &[
            Float("final_logit_softcapping", &["final_logit_softcapping"]),
            Uint("attention.shared_kv_layers", &["num_kv_shared_layers"]),
            UintOr("embedding_length_per_layer_input", &["hidden_size_per_layer_input"], 0),
            Must("enable_moe_block", false),
            Window(6),
            TwoWidths,
        ],
        activations: GELU_GEMMA,
    },
    Class {
        names: &["Phi3ForCausalLM"],
        arch: "phi3",
        outer: &[OUTER],
        block: &[PRE_NORM, PHI3, BLOCK],
        rules: &[LongRope, WindowZero, Window(0)],
        activations: SILU,
    },
    Class {
        names: &["SmolLM3ForCausalLM"],
        arch: "smollm3",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[NoRopeEvery(4), Window(0)],
        activations: SILU,
    },
    Class {
        names: &["GraniteForCausalLM"],
        arch: "granite",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[
            Float("attention.scale", &["attention_multiplier"]),
            Float("embedding_scale", &["embedding_multiplier"]),
            Float("residual_scale", &["residual_multiplier"]),
            Float("logit_scale", &["logits_scaling"]),
        ],
        activations: SILU,
    },
    Class {
        names: &["Olmo2ForCausalLM"],
        arch: "olmo2",
        outer: &[OUTER],
        block: &[POST_NORM, BLOCK],
        rules: &[],
        activations: SILU,
    },
    Class {
        names: &["Olmo3ForCausalLM"],
        arch: "olmo2",
        outer: &[OUTER],
        block: &[POST_NORM, BLOCK],
        rules: &[Window(4), SameLocalBase],
        activations: SILU,
    },
    Class {
        names: &["Exaone4ForCausalLM"],
        arch: "exaone4",
        outer: &[OUTER],
        block: &[POST_NORM, BLOCK],
        rules: &[Window(4)],
        activations: SILU,
    },
    Class {
        names: &["Lfm2ForCausalLM"],
        arch: "lfm2",
        outer: &[OUTER_LFM2, OUTER],
        block: &[LFM2, BLOCK],
        rules: &[Uint("shortconv.l_cache", &["conv_L_cache"]), ShortConv],
        activations: SILU,
    },
    Class {
        names: &["Lfm2MoeForCausalLM"],
        arch: "lfm2moe",
        outer: &[OUTER_LFM2, OUTER],
        block: &[LFM2_MOE, LFM2, BLOCK],
        rules: &[
            Uint("shortconv.l_cache", &["conv_L_cache"]),
            Uint("expert_feed_forward_length", &["moe_intermediate_size"]),
            Uint("leading_dense_block_count", &["num_dense_layers"]),
            Is("expert_gating_func", 2),
            Flag("expert_weights_norm", "norm_topk_prob", true),
            Scale("expert_weights_scale", "routed_scaling_factor"),
            ShortConv,
        ],
        activations: SILU,
    },
    Class {
        names: &["Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"],
        arch: "mistral3",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[Temperature, Window(0)],
        activations: SILU,
    },
    Class {
        names: &["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
        arch: "ernie4_5",
        outer: &[OUTER],
        block: &[PRE_NORM, BLOCK],
        rules: &[],
        activations: SILU,
    },
    Class {
        names: &["HunYuanDenseV1ForCausalLM"],
        arch: "hunyuan-dense",
        outer: &[OUTER],
        block: &[PRE_NORM, HUNYUAN, BLOCK],
        rules: &[Alpha],
        activations: SILU,
    },
    Class {
        names: &["Starcoder2ForCausalLM"],
        arch: "starcoder2",
        outer: &[OUTER],
        block: &[PRE_NORM, STARCODER2, BLOCK],
        rules: &[Window(0)],
        activations: GELU_TANH,
    },
    Class {
        names: &["GPT2LMHeadModel"],
        arch: "gpt2",
        outer: &[OUTER_GPT2],
        block: &[GPT2],
        rules: &[
            Wide(4),
            Must("scale_attn_weights", true),
            Must("scale_attn_by_inverse_layer_idx", false),
            Must("add_cross_attention", false),
        ],
        activations: GELU_TANH,
    },
];

/// Why a class is not read although its architecture is known.
pub(super) const HINTS: &[(&str, &str)] = &[
    ("GptOssForCausalLM", " (its experts lie in another order of bits than the kernels read)"),
    ("Qwen3NextForCausalLM", " (its matrices are interleaved by head)"),
];

/// Beginnings of names that are no part of the text model.
pub(super) const SKIPPED: &[&str] = &[
    "vision_tower.",
    "vision_model.",
    "visual.",
    "multi_modal_projector.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "mtp.",
];

/// Buffers that older programs wrote out although they follow from the configuration.
pub(super) const BUFFERS: &[&str] =
    &["self_attn.rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "rotary_emb.inv_freq"];

/// A tensor's place in the model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// No part of the text model.
    Skipped,
    /// One tensor by GGUF's name, or several whose names begin so.
    Tensor(String, Fold),
    /// One of a block beyond the last.
    NoBlock(usize),
    /// Not known.
    Unknown,
}

/// What a tensor of `class` becomes in a model of `n_block` blocks.
pub(super) fn target(class: &Class, n_block: usize, name: &str) -> Target {
    // Models with an image encoder hold the text model inside, at two different places.
    let inner = name.replacen("language_model.", "", 1);
    let inner = ["model.", "transformer."].iter().find_map(|p| inner.strip_prefix(p)).unwrap_or(&inner);
    if SKIPPED.iter().any(|p| inner.starts_with(p)) {
        return Target::Skipped;
    }
    let block = ["layers.", "h."].iter().find_map(|p| inner.strip_prefix(p)?.split_once('.'));
    let Some((number, tail)) = block else {
        return match find(class.outer, inner) {
            _ if BUFFERS.contains(&inner) => Target::Skipped,
            Some((gguf, fold)) => Target::Tensor(gguf, fold),
            None => Target::Unknown,
        };
    };
    let Some(i) = plain_number(number) else { return Target::Unknown };
    match find(class.block, tail) {
        _ if BUFFERS.contains(&tail) => Target::Skipped,
        Some(_) if i >= n_block => Target::NoBlock(i),
        Some((gguf, fold)) => Target::Tensor(format!("blk.{i}.{gguf}"), fold),
        None => Target::Unknown,
    }
}

/// Looks a name up with its ending, then without.
fn find(tables: &[&[Entry]], name: &str) -> Option<(String, Fold)> {
    // The number of an expert is the only one inside a name.
    let mut expert = None;
    let parts = name.split('.').map(|part| match plain_number(part) {
        Some(n) if expert.is_none() => {
            expert = Some(n);
            "#"
        }
        _ => part,
    });
    let name = parts.collect::<Vec<_>>().join(".");
    let entry = |name: &str| tables.iter().flat_map(|t| t.iter()).find(|(hf, ..)| *hf == name);
    let with_number = |gguf: &str| match expert {
        Some(n) => gguf.replace('#', &n.to_string()),
        None => gguf.to_owned(),
    };
    if let Some((_, gguf, fold)) = entry(&name) {
        return Some((with_number(gguf), *fold));
    }
    let (stem, ending) = name.rsplit_once('.').filter(|(_, e)| matches!(*e, "weight" | "bias"))?;
    let (_, gguf, fold) = entry(stem)?;
    Some((format!("{}.{ending}", with_number(gguf)), *fold))
}

/// A number as these names have them.
fn plain_number(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}
