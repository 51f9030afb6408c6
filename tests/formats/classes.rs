//! Classes of models for which there is no directory to compare: their configuration, in the words of transformers,
//! against the keys of the GGUF file that its converter made.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use sotto::format::hf::{self, Texts};
use sotto::format::{self, Checkpoint};

use crate::translation::{fixtures, plain};

/// What all have in common, with the entries of `own`.
fn config(class: &str, own: &Json) -> Json {
    let mut all = json!({
        "architectures": [class], "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512,
        "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let own = own.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(own);
    all
}

fn translated(config: &Json) -> Checkpoint {
    let texts = Texts { config: config.to_string().into_bytes(), ..Texts::default() };
    hf::translate("d", &texts, Vec::new()).unwrap_or_else(|e| panic!("{config}: {e}"))
}

#[test]
fn configurations_become_the_keys_of_the_converter() {
    let Some(dir) = fixtures() else { return };
    let gelu = "gelu_pytorch_tanh";
    let sliding = "sliding_attention";
    let full = "full_attention";
    let rows = [
        ("ernie4_5", "Ernie4_5ForCausalLM", json!({"head_dim": 32, "rope_theta": 500_000.0})),
        ("exaone4", "Exaone4ForCausalLM", json!({"rope_theta": 1e6, "sliding_window": null})),
        (
            "gemma",
            "GemmaForCausalLM",
            json!({"head_dim": 32, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "hidden_act": gelu}),
        ),
        (
            "gemma2",
            "Gemma2ForCausalLM",
            json!({"head_dim": 32, "rms_norm_eps": 1e-6, "hidden_act": gelu, "hidden_activation": gelu,
                "num_hidden_layers": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0,
                "sliding_window": 16}),
        ),
        (
            "gemma4",
            "Gemma4ForConditionalGeneration",
            json!({"text_config": {"num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32,
                "num_key_value_heads": 1, "intermediate_size": 96, "use_double_wide_mlp": true,
                "num_kv_shared_layers": 3, "hidden_size_per_layer_input": 16, "sliding_window": 16,
                "final_logit_softcapping": 8.0, "rms_norm_eps": 1e-6, "hidden_activation": gelu,
                "layer_types": [sliding, sliding, full, sliding, sliding, full], "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}}}),
        ),
        ("hunyuan-dense", "HunYuanDenseV1ForCausalLM", json!({"head_dim": 32, "rope_theta": 10_000.0})),
        (
            "lfm2moe",
            "Lfm2MoeForCausalLM",
            json!({"num_hidden_layers": 4, "layer_types": ["conv", full, "conv", full], "intermediate_size": 96,
                "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1,
                "conv_L_cache": 3, "norm_eps": 1e-5, "rms_norm_eps": null, "use_expert_bias": true,
                "norm_topk_prob": true, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ),
        (
            "olmo3",
            "Olmo3ForCausalLM",
            json!({"num_hidden_layers": 4, "layer_types": [sliding, sliding, sliding, full], "sliding_window": 16,
                "intermediate_size": 80, "rope_theta": 500_000.0}),
        ),
        (
            "phi3-longrope",
            "Phi3ForCausalLM",
            json!({"rope_theta": 10_000.0, "original_max_position_embeddings": 16, "rope_scaling": {
                "type": "longrope", "long_factor": vec![1.5; 8], "short_factor": vec![1.0; 8]}}),
        ),
        (
            "llama-linear",
            "LlamaForCausalLM",
            json!({"head_dim": 16, "rope_theta": 10_000.0, "rms_norm_eps": 1e-6,
                "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ),
    ];
    for (name, class, own) in rows {
        let path = dir.join(name).join("model.gguf");
        if !path.is_file() {
            panic!("{} is not there", path.display());
        }
        let gguf = format::open(&path).expect("it is whole");
        let arch = gguf.str("general.architecture").expect("a string").expect("it is there").to_owned();
        let ours = translated(&config(class, &own));
        let values: BTreeMap<&str, _> = ours.metadata().collect();
        let mut n = 0;
        for (key, value) in gguf.metadata().filter(|(k, _)| k.starts_with(&format!("{arch}."))) {
            let found = values.get(key).unwrap_or_else(|| panic!("{name}: {key} is not translated"));
            assert_eq!(plain(&ours, key, found), plain(&gguf, key, value), "{name}: {key}");
            n += 1;
        }
        assert!(n > 7, "{name}: {n} keys");
        if let Some(divisors) = ours.tensor("rope_freqs.weight") {
            let theirs = gguf.tensor("rope_freqs.weight").expect("it has them too");
            assert_eq!(ours.bytes(divisors), gguf.bytes(theirs), "{name}: rope_freqs.weight");
        }
    }
}

/// A text model inside a model of images, in both places where its tensors may lie; what is no text is passed over.
#[test]
fn text_models_are_found_inside() {
    let inner = json!({
        "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 4, "num_attention_heads": 1, "head_dim": 4,
        "num_key_value_heads": 1, "vocab_size": 2, "sliding_window": 8, "model_type": "gemma3_text",
    });
    let outer = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "hidden_size": 99, "text_config": inner,
        "eos_token_id": [1, 106], "vision_config": {"hidden_size": 7},
    });
    for prefix in ["language_model.model.", "model.language_model."] {
        let names = [
            (format!("{prefix}embed_tokens.weight"), vec![2, 4]),
            (format!("{prefix}norm.weight"), vec![4]),
            (format!("{prefix}layers.0.self_attn.q_norm.weight"), vec![4]),
            ("vision_tower.patch.weight".to_owned(), vec![1, 1, 1, 2, 2]),
            ("model.multi_modal_projector.w".to_owned(), vec![1]),
        ];
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for (name, shape) in names {
            let end = at + shape.iter().product::<u64>() * 4;
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
            at = end;
        }
        let text = Json::from(header).to_string();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        bytes.extend(std::iter::repeat_n(0.5_f32.to_le_bytes(), at as usize / 4).flatten());
        let shard = hf::Shard { file: "w".into(), bytes: std::sync::Arc::new(bytes), map: None };
        let texts = Texts { config: outer.to_string().into_bytes(), ..Texts::default() };
        let found = hf::translate("d", &texts, vec![shard]).expect("it is whole");
        let mut tensors: Vec<&str> = found.tensors().map(|(name, _)| name).collect();
        tensors.sort_unstable();
        assert_eq!(tensors, ["blk.0.attn_q_norm.weight", "output_norm.weight", "token_embd.weight"]);
        assert_eq!((found.n_skipped(), found.eos_token_ids()), (2, &[1, 106][..]));
        assert_eq!(found.uint("gemma3.embedding_length").expect("a number"), Some(4));
        // What Gemma 3 leaves out.
        assert_eq!(found.uint("gemma3.context_length").expect("a number"), Some(131_072));
        assert_eq!(found.float("gemma3.rope.freq_base_swa").expect("a number"), Some(1e4));
        let norm = found.tensor("output_norm.weight").expect("it is there");
        assert_eq!(found.bytes(norm), [1.5_f32.to_le_bytes(); 4].concat());
    }
}

/// Experts that are stored as one stack become a matrix each, in place.
#[test]
fn stacked_experts_are_taken_apart_in_place() {
    let own = json!({"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 3, "head_dim": 16});
    let text = json!({
        "model.layers.1.mlp.experts.gate_up_proj": {"dtype": "F32", "shape": [2, 6, 4], "data_offsets": [0, 192]},
        "model.layers.1.mlp.experts.down_proj": {"dtype": "F32", "shape": [2, 4, 3], "data_offsets": [192, 288]},
    })
    .to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.extend((0..72).flat_map(|i| (i as f32).to_le_bytes()));
    let shard = hf::Shard { file: "w".into(), bytes: std::sync::Arc::new(bytes), map: None };
    let texts =
        Texts { config: config("Qwen3MoeForCausalLM", &own).to_string().into_bytes(), ..Texts::default() };
    let found = hf::translate("d", &texts, vec![shard]).expect("it is whole");
    let first = |name: &str| {
        let info = found.tensor(name).unwrap_or_else(|| panic!("{name} is not there"));
        let bytes = found.bytes(info);
        (info.n_rows, info.n_cols, bytes.first_chunk().map(|x| f32::from_le_bytes(*x)))
    };
    assert_eq!(first("blk.1.ffn_gate.0.weight"), (3, 4, Some(0.0)));
    assert_eq!(first("blk.1.ffn_up.0.weight"), (3, 4, Some(12.0)));
    assert_eq!(first("blk.1.ffn_gate.1.weight"), (3, 4, Some(24.0)));
    assert_eq!(first("blk.1.ffn_up.1.weight"), (3, 4, Some(36.0)));
    assert_eq!(first("blk.1.ffn_down.0.weight"), (4, 3, Some(48.0)));
    assert_eq!(first("blk.1.ffn_down.1.weight"), (4, 3, Some(60.0)));
    assert_eq!(found.parts().len(), 1);
}

/// The page lists the classes that are read, each.
#[test]
fn the_page_names_every_class() {
    let texts = Texts { config: br#"{"architectures": ["None"]}"#.to_vec(), ..Texts::default() };
    let said = hf::translate("d", &texts, Vec::new()).expect_err("there is no such class").to_string();
    let (_, known) = said.split_once("read are: ").expect("the error lists them");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md"))
        .expect("it is there");
    for class in known.split(", ") {
        assert!(page.contains(&format!("`{class}`")), "{class} is not in docs/formats.md");
    }
    let rows = page.lines().filter(|line| line.contains("ForCausalLM`") || line.contains("LMHeadModel`"));
    let listed: usize = rows.map(|line| line.matches("For").count() + line.matches("LMHead").count()).sum();
    assert_eq!(listed, known.split(", ").count(), "docs/formats.md lists a class that is not read");
}
