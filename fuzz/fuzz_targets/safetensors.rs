//! `config.json`, a NUL, and a file of safetensors: header and translation. The first piece is read as the other
//! small files of a directory too.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sotto::format::hf::{Shard, Texts, index_files, template_in, translate};

fuzz_target!(|data: &[u8]| {
    let (config, weights) = shared::pieces(data);
    let _ = index_files("i", config);
    let template = template_in("t", config).ok().flatten();
    let texts =
        Texts { config: config.to_vec(), generation_config: Some(config.to_vec()), chat_template: template };
    let shard = Shard { file: "w".into(), bytes: Arc::new(weights.to_vec()), map: None };
    if let Ok(checkpoint) = translate("d", &texts, vec![shard]) {
        shared::use_all(&checkpoint);
    }
});
