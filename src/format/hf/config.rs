//! `config.json` becomes metadata by GGUF's keys, as GGUF's converter writes them.

use std::fmt::Display;

use super::names::{CLASSES, Class, HINTS, Rule};
use super::rope;
use crate::base::limits::{HEAD_DIM_MAX, N_EOS_MAX, N_LAYER_MAX};
use crate::format::FormatError;
use crate::format::Meta;
use crate::format::checkpoint::narrow;
use crate::format::json::Json;

/// The configuration of a text model, in whichever of its spellings.
pub(super) struct Config<'a> {
    pub(super) file: &'a str,
    top: &'a Json,
    /// The text model inside a model of images or sound.
    text: Option<&'a Json>,
}

impl<'a> Config<'a> {
    pub(super) fn new(file: &'a str, top: &'a Json) -> Result<Self, FormatError> {
        let config = Self { file, top, text: None };
        if !matches!(top, Json::Map(_)) {
            return Err(config.wrong("the whole", &top.describe(), "an object wanted"));
        }
        match top.get("text_config") {
            Some(text @ Json::Map(_)) => Ok(Self { text: Some(text), ..config }),
            Some(other) => Err(config.wrong("text_config", &other.describe(), "an object wanted")),
            None => Ok(config),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Json> {
        self.text.and_then(|t| t.get(key)).or_else(|| self.top.get(key))
    }

    pub(super) fn wrong(&self, key: &str, found: &str, wanted: impl Display) -> FormatError {
        let name = key.split(['.', '[']).next().unwrap_or(key);
        let inner = self.text.is_some_and(|t| t.get(name).is_some());
        FormatError::Config {
            file: self.file.into(),
            key: format!("{}{key}", if inner { "text_config." } else { "" }),
            found: found.into(),
            wanted: wanted.to_string(),
        }
    }

    pub(super) fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, FormatError> {
        value.ok_or_else(|| FormatError::Absent { file: self.file.into(), key: key.into() })
    }

    /// The first of `keys` that is there, as a non-negative integer below 2^32.
    pub(super) fn uint(&self, keys: &[&str]) -> Result<Option<u64>, FormatError> {
        self.first(keys, |v| match v {
            Json::Int(n) => {
                u32::try_from(*n).ok().map(u64::from).ok_or("an integer from 0 to 4294967295 wanted")
            }
            _ => Err("an integer wanted"),
        })
    }

    /// As `uint`, at most `max` and at least 1; it must be there.
    pub(super) fn size(&self, keys: &[&str], max: usize) -> Result<usize, FormatError> {
        let key = keys.iter().find(|k| self.get(k).is_some()).or(keys.first()).copied().unwrap_or_default();
        let found = self.require(key, self.uint(keys)?)?;
        let fits = usize::try_from(found).ok().filter(|n| (1..=max).contains(n));
        fits.ok_or_else(|| self.wrong(key, &found.to_string(), format!("1 to {max} possible")))
    }

    pub(super) fn float(&self, keys: &[&str]) -> Result<Option<f64>, FormatError> {
        self.first(keys, number)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.first(&[key], |v| match v {
            Json::Bool(b) => Ok(*b),
            _ => Err("true or false wanted"),
        })
    }

    pub(super) fn str(&self, keys: &[&str]) -> Result<Option<&'a str>, FormatError> {
        self.first(keys, |v| match v {
            Json::Str(s) => Ok(s.as_str()),
            _ => Err("a string wanted"),
        })
    }

    fn first<T>(
        &self,
        keys: &[&str],
        read: impl Fn(&'a Json) -> Result<T, &'static str>,
    ) -> Result<Option<T>, FormatError> {
        let found = keys.iter().find_map(|key| Some((key, self.get(key)?)));
        let Some((key, value)) = found else { return Ok(None) };
        read(value).map(Some).map_err(|wanted| self.wrong(key, &value.describe(), wanted))
    }

    /// What kind of layer each of the `n` is, where it says so.
    pub(super) fn layer_types(&self, n: usize) -> Result<Option<Vec<&'a str>>, FormatError> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let Json::List(list) = value else {
            return Err(self.wrong("layer_types", &value.describe(), "a list wanted"));
        };
        if list.len() != n {
            let wanted = format!("one for each of the {n} layers wanted");
            return Err(self.wrong("layer_types", &value.describe(), wanted));
        }
        let known = ["full_attention", "sliding_attention", "linear_attention", "conv"];
        let each = list.iter().enumerate().map(|(i, v)| match v {
            Json::Str(s) if known.contains(&s.as_str()) => Ok(s.as_str()),
            other => {
                let wanted = format!("possible are {}", known.join(", "));
                Err(self.wrong(&format!("layer_types[{i}]"), &other.describe(), wanted))
            }
        });
        each.collect::<Result<_, _>>().map(Some)
    }
}

/// A number that a 32-bit float can hold.
pub(super) fn number(value: &Json) -> Result<f64, &'static str> {
    let x = match value {
        Json::Int(n) => *n as f64,
        Json::Float(x) => *x,
        _ => return Err("a number wanted"),
    };
    if narrow(x).is_finite() { Ok(x) } else { Err("a number below 3.4e38 wanted") }
}

/// The class that the configuration names.
pub(super) fn class(config: &Config<'_>) -> Result<(&'static Class, String), FormatError> {
    let value = config.require("architectures", config.top.get("architectures"))?;
    let first = if let Json::List(list) = value { list.first() } else { None };
    let Some(Json::Str(found)) = first else {
        let (key, found) = match first {
            Some(first) => ("architectures[0]", first.describe()),
            None => ("architectures", value.describe()),
        };
        return Err(config.wrong(key, &found, "a list with the name of a class wanted"));
    };
    let class = CLASSES.iter().find(|c| c.names.contains(&found.as_str()));
    class.map(|c| (c, found.clone())).ok_or_else(|| FormatError::Class {
        file: config.file.into(),
        found: found.clone(),
        hint: HINTS.iter().find(|(name, _)| name == found).map_or("", |(_, why)| why),
        known: CLASSES.iter().flat_map(|c| c.names).copied().collect::<Vec<_>>().join(", "),
    })
}

/// Entries that all classes have.
const COMMON: &[Rule] = &[
    Rule::Uint("context_length", &["max_position_embeddings", "n_ctx", "n_positions"]),
    Rule::Uint("embedding_length", &["hidden_size", "n_embd"]),
    Rule::Uint("feed_forward_length", &["intermediate_size", "n_inner", "block_ff_dim"]),
    Rule::Uint("attention.head_count", &["num_attention_heads", "n_head"]),
    Rule::Uint("attention.head_count_kv", &["num_key_value_heads"]),
    Rule::Uint("attention.key_length", &["head_dim"]),
    Rule::Uint("attention.value_length", &["head_dim"]),
    Rule::Uint("vocab_size", &["vocab_size"]),
    Rule::Uint("expert_count", &["num_local_experts", "num_experts"]),
    Rule::Uint("expert_used_count", &["num_experts_per_tok"]),
    Rule::Float("attention.layer_norm_rms_epsilon", &["rms_norm_eps", "norm_eps"]),
    Rule::Float("attention.layer_norm_epsilon", &["layer_norm_epsilon", "norm_epsilon", "layer_norm_eps"]),
];

/// Writes the hyperparameters. Returns the number of blocks, and tensors that follow from the configuration.
///
/// # Errors
/// When an entry is absent, of another type, out of range, or asks for what the architecture does not compute.
pub(super) fn hyperparameters(
    config: &Config<'_>,
    class: &Class,
    meta: &mut Meta,
) -> Result<(usize, rope::Factors), FormatError> {
    let key = |k: &str| format!("{}.{k}", class.arch);
    let n_block = config.size(&["num_hidden_layers", "n_layer"], N_LAYER_MAX)?;
    meta.uint(&key("block_count"), n_block as u64);
    for rule in COMMON.iter().chain(class.rules) {
        simple(config, class, *rule, meta)?;
    }
    if let Some(how) = config.get("quantization_config") {
        let found = how.get("quant_method").unwrap_or(how).describe();
        let wanted = "weights in F32, F16 and BF16 are read; use a GGUF file of the model";
        return Err(config.wrong("quantization_config", &found, wanted));
    }
    if let Some(found) = config.str(&["hidden_activation", "hidden_act", "activation_function"])?
        && !class.activations.contains(&found)
    {
        let wanted = format!("{} computes {}", class.arch, class.activations.join(" or "));
        return Err(config.wrong("hidden_act", found, wanted));
    }
    // The rotation of layers with full attention is the one that has a part of its head left out.
    let two = class.rules.iter().any(|r| matches!(r, Rule::TwoWidths));
    let width = if two { "global_head_dim" } else { "head_dim" };
    let of_full = if two { of_full_layers(config, width, "head_dim", n_block)? } else { None };
    let head_dim = match class.rules.iter().find_map(|r| match r {
        Rule::UintOr("attention.key_length", _, n) => Some(*n),
        _ => None,
    }) {
        _ if of_full.is_some() => of_full.unwrap_or(1) as usize,
        Some(default) if config.get(width).is_none() => usize::try_from(default).unwrap_or(HEAD_DIM_MAX),
        None if config.get(width).is_none() => {
            let n_embd = config.size(&["hidden_size", "n_embd"], usize::MAX)?;
            let n_head = config.size(&["num_attention_heads", "n_head"], usize::MAX)?;
            let head_dim = n_embd.checked_div(n_head).unwrap_or(0);
            if !(1..=HEAD_DIM_MAX).contains(&head_dim) {
                let wanted = format!("heads are 1 to {HEAD_DIM_MAX} wide, these {n_embd} / {n_head}");
                return Err(config.wrong("num_attention_heads", &n_head.to_string(), wanted));
            }
            head_dim
        }
        _ => config.size(&[width], HEAD_DIM_MAX)?,
    };
    let factors = rope::translate(config, class, head_dim, meta)?;
    window(config, class, n_block, meta)?;
    for rule in class.rules {
        match rule {
            Rule::ShortConv => short_conv(config, class, n_block, meta)?,
            Rule::DeltaNet => delta_net(config, class, n_block, meta)?,
            Rule::NoRopeEvery(n) => no_rope(config, class, n_block, *n, meta)?,
            Rule::QueryScale(from) => {
                // Always written: for two sizes GGUF's reader would take another one where it is absent.
                let x = config.float(&[from])?.filter(|x| *x > 0.0).unwrap_or(256.0);
                meta.float(&format!("{}.attention.scale", class.arch), 1.0 / x.sqrt());
            }
            Rule::TwoWidths => two_widths(config, class, n_block, meta)?,
            _ => {}
        }
    }
    Ok((n_block, factors))
}

/// The rules that copy one number, or check one.
fn simple(config: &Config<'_>, class: &Class, rule: Rule, meta: &mut Meta) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.{k}", class.arch);
    match rule {
        Rule::Uint(to, from) => {
            if let Some(n) = config.uint(from)? {
                meta.uint(&key(to), n);
            }
        }
        Rule::Float(to, from) => {
            if let Some(x) = config.float(from)? {
                meta.float(&key(to), x);
            }
        }
        Rule::UintOr(to, from, default) => meta.uint(&key(to), config.uint(from)?.unwrap_or(default)),
        Rule::FloatOr(to, from, default) => meta.float(&key(to), config.float(from)?.unwrap_or(default)),
        Rule::Is(to, n) => meta.uint(&key(to), n),
        Rule::Must(from, wanted) => {
            if let Some(found) = config.bool(from)?
                && found != wanted
            {
                let wanted = format!("{} computes {wanted} alone", class.arch);
                return Err(config.wrong(from, &found.to_string(), wanted));
            }
        }
        Rule::Flag(to, from, default) if !config.bool(from)?.unwrap_or(default) => meta.bool(&key(to), false),
        Rule::Scale(to, from) => {
            if let Some(x) = config.float(&[from])?.filter(|x| *x != 1.0) {
                meta.float(&key(to), x);
            }
        }
        Rule::Wide(n) if config.uint(&["n_inner"])?.is_none() => {
            let n_embd = config.require("n_embd", config.uint(&["n_embd"])?)?;
            meta.uint(&key("feed_forward_length"), n_embd.saturating_mul(n));
        }
        _ => {}
    }
    Ok(())
}

/// Width of the window, and the layers that have one.
fn window(config: &Config<'_>, class: &Class, n_block: usize, meta: &mut Meta) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.attention.{k}", class.arch);
    if class.rules.iter().any(|r| matches!(r, Rule::WindowZero)) {
        meta.uint(&key("sliding_window"), 0);
    }
    let rule = class.rules.iter().find_map(|r| match r {
        Rule::Window(n) => Some((*n, false)),
        Rule::WindowAll => Some((0, true)),
        _ => None,
    });
    let Some((every, all)) = rule else { return Ok(()) };
    // For some classes transformers takes an absent entry for no.
    let by_default = !(class.arch.starts_with("qwen") || class.arch == "smollm3");
    let unused = !config.bool("use_sliding_window")?.unwrap_or(by_default);
    let Some(width) = config.uint(&["sliding_window"])?.filter(|w| *w > 0 && !unused) else { return Ok(()) };
    let all_but_every =
        |n: u64| -> Vec<bool> { (1..=n_block as u64).map(|i| n == 0 || !i.is_multiple_of(n)).collect() };
    let pattern = if all {
        vec![true; n_block]
    } else if let Some(types) = config.layer_types(n_block)? {
        types.iter().map(|t| *t == "sliding_attention").collect()
    } else if let Some(named) =
        config.get("sliding_window_pattern").or_else(|| config.get("_sliding_window_pattern"))
    {
        match named {
            Json::Int(n) if (1..=1024).contains(n) => all_but_every(u64::try_from(*n).unwrap_or(0)),
            Json::Str(s) if !s.is_empty() && s.bytes().all(|b| matches!(b, b'L' | b'G')) => {
                s.bytes().cycle().take(n_block).map(|b| b == b'L').collect()
            }
            other => {
                let wanted = "a number of layers or letters L and G wanted";
                return Err(config.wrong("sliding_window_pattern", &other.describe(), wanted));
            }
        }
    } else if let (true, Some(n)) = (class.arch.starts_with("qwen"), config.uint(&["max_window_layers"])?) {
        (0..n_block as u64).map(|i| i >= n).collect()
    } else {
        all_but_every(every)
    };
    if pattern.contains(&true) {
        meta.uint(&key("sliding_window"), width);
        meta.bools(&key("sliding_window_pattern"), &pattern);
    }
    Ok(())
}

/// LFM2: convolutions have no keys and values; the feed-forward's width may have to be worked out.
fn short_conv(
    config: &Config<'_>,
    class: &Class,
    n_block: usize,
    meta: &mut Meta,
) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.{k}", class.arch);
    let n_head_kv = config.require("num_key_value_heads", config.uint(&["num_key_value_heads"])?)?;
    let n_head_kv = u32::try_from(n_head_kv).unwrap_or(u32::MAX);
    let attention: Vec<bool> = match (config.layer_types(n_block)?, config.get("full_attn_idxs")) {
        (Some(types), _) => types.iter().map(|t| *t == "full_attention").collect(),
        (None, Some(Json::List(list))) => {
            (0..n_block).map(|i| list.contains(&Json::Int(i128::try_from(i).unwrap_or(-1)))).collect()
        }
        _ => return config.require("layer_types", None),
    };
    let each: Vec<u32> = attention.iter().map(|a| if *a { n_head_kv } else { 0 }).collect();
    meta.uints(&key("attention.head_count_kv"), &each);
    let mut width = config.require("block_ff_dim", config.uint(&["block_ff_dim", "intermediate_size"])?)?;
    if config.bool("block_auto_adjust_ff_dim")? == Some(true) {
        let factor = config.float(&["block_ffn_dim_multiplier"])?.unwrap_or(1.0);
        let multiple = config.uint(&["block_multiple_of"])?.unwrap_or(256).max(1);
        // Both numbers are below 2^32; a negative or huge factor ends at the bounds.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounds down, as the definition does"
        )]
        let scaled = (factor * (width.saturating_mul(2) / 3) as f64) as u64;
        width = scaled.checked_next_multiple_of(multiple).unwrap_or(u64::MAX >> 1);
    }
    meta.uint(&key("feed_forward_length"), width);
    Ok(())
}

/// Gemma 4: layers with full attention have wider heads, the last layers take the keys and values of earlier ones and
/// may be twice as wide.
fn two_widths(
    config: &Config<'_>,
    class: &Class,
    n_block: usize,
    meta: &mut Meta,
) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.{k}", class.arch);
    let narrow = config.size(&["head_dim"], HEAD_DIM_MAX)? as u64;
    let wide = of_full_layers(config, "global_head_dim", "head_dim", n_block)?.map_or(narrow, u64::from);
    for (name, n) in [("", wide), ("_swa", narrow)] {
        meta.uint(&key(&format!("attention.key_length{name}")), n);
        meta.uint(&key(&format!("attention.value_length{name}")), n);
    }
    let small = |k: &str| -> Result<Option<u32>, FormatError> {
        Ok(config.uint(&[k])?.and_then(|n| u32::try_from(n).ok()))
    };
    if config.bool("use_double_wide_mlp")? == Some(true) {
        let n_ff = config.require("intermediate_size", small("intermediate_size")?)?;
        let n_shared = small("num_kv_shared_layers")?.unwrap_or(0) as usize;
        let first = n_block.saturating_sub(n_shared);
        let each: Vec<u32> =
            (0..n_block).map(|i| if i < first { n_ff } else { n_ff.saturating_mul(2) }).collect();
        meta.uints(&key("feed_forward_length"), &each);
    }
    // transformers takes the count of heads of layers with full attention only where keys are values too.
    let few = match config.bool("attention_k_eq_v")? {
        Some(true) => of_full_layers(config, "num_global_key_value_heads", "num_key_value_heads", n_block)?,
        _ => None,
    };
    if let (Some(few), Some(n_head_kv)) = (few, small("num_key_value_heads")?) {
        let types = config.require("layer_types", config.layer_types(n_block)?)?;
        let each: Vec<u32> =
            types.iter().map(|t| if *t == "full_attention" { few } else { n_head_kv }).collect();
        meta.uints(&key("attention.head_count_kv"), &each);
    }
    Ok(())
}

/// A size of the layers with full attention (Gemma 4): under its own name, or as transformers 5 writes it, in
/// `per_layer_config` under the numbers of these layers. Within the widest head, which bounds heads of keys too.
fn of_full_layers(
    config: &Config<'_>,
    own: &str,
    each: &str,
    n_block: usize,
) -> Result<Option<u32>, FormatError> {
    let by_layer = config.get("per_layer_config");
    let found = config
        .get(own)
        .or_else(|| by_layer.and_then(|by| (0..n_block).find_map(|i| by.get(&i.to_string())?.get(each))));
    let size = |n: &i128| u32::try_from(*n).ok().filter(|_| (1..=HEAD_DIM_MAX as i128).contains(n));
    match found {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Int(n)) if size(n).is_some() => Ok(size(n)),
        Some(other) => Err(config.wrong(own, &other.describe(), format!("1 to {HEAD_DIM_MAX} possible"))),
    }
}

/// Qwen3.5: sizes of the gated delta net, and its layers.
fn delta_net(config: &Config<'_>, class: &Class, n_block: usize, meta: &mut Meta) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.{k}", class.arch);
    let need = |k: &str| config.require(k, config.uint(&[k])?);
    let (n_value, value_dim) = (need("linear_num_value_heads")?, need("linear_value_head_dim")?);
    meta.uint(&key("ssm.conv_kernel"), need("linear_conv_kernel_dim")?);
    meta.uint(&key("ssm.state_size"), need("linear_key_head_dim")?);
    meta.uint(&key("ssm.group_count"), need("linear_num_key_heads")?);
    meta.uint(&key("ssm.time_step_rank"), n_value);
    meta.uint(&key("ssm.inner_size"), n_value.saturating_mul(value_dim));
    let every = config.uint(&["full_attention_interval"])?.unwrap_or(4).max(1);
    meta.uint(&key("full_attention_interval"), every);
    let recurrent: Vec<bool> = match config.layer_types(n_block)? {
        Some(types) => types.iter().map(|t| *t == "linear_attention").collect(),
        None => (1..=n_block as u64).map(|i| !i.is_multiple_of(every)).collect(),
    };
    meta.bools(&key("attention.recurrent_layers"), &recurrent);
    Ok(())
}

/// The layers without rotation, where they are not those that the architecture knows. GGUF has no key for them: ours is
/// `rope.layers`.
fn no_rope(
    config: &Config<'_>,
    class: &Class,
    n_block: usize,
    every: u64,
    meta: &mut Meta,
) -> Result<(), FormatError> {
    let known = |every: u64| (1..=n_block as u64).map(|i| !i.is_multiple_of(every)).collect::<Vec<bool>>();
    let turns = match (config.get("no_rope_layers"), config.uint(&["no_rope_layer_interval"])?) {
        (Some(value @ Json::List(list)), _) => {
            let flags = list.iter().map(|v| match v {
                Json::Int(n @ (0 | 1)) => Some(*n == 1),
                _ => None,
            });
            let flags: Option<Vec<bool>> = flags.collect();
            flags.filter(|f| f.len() == n_block).ok_or_else(|| {
                let wanted = format!("a list of {n_block} times 0 or 1 wanted");
                config.wrong("no_rope_layers", &value.describe(), wanted)
            })?
        }
        (_, Some(n)) if n > 0 => known(n),
        _ => known(every),
    };
    if turns != known(every) {
        meta.bools(&format!("{}.rope.layers", class.arch), &turns);
    }
    Ok(())
}

/// The tokens that end an answer: those of `generation_config.json` if it names any.
pub(super) fn eos(config: &Config<'_>, generation: Option<&Config<'_>>) -> Result<Vec<u32>, FormatError> {
    for config in generation.into_iter().chain([config]) {
        let Some(value) = config.get("eos_token_id") else { continue };
        let list = match value {
            Json::List(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        if list.len() > N_EOS_MAX {
            let wanted = format!("the id of a token, or a list of at most {N_EOS_MAX}, wanted");
            return Err(config.wrong("eos_token_id", &value.describe(), wanted));
        }
        let id = |(i, v): (usize, &Json)| {
            let id = if let Json::Int(n) = v { u32::try_from(*n).ok() } else { None };
            id.ok_or_else(|| {
                let at = if matches!(value, Json::List(_)) { format!("[{i}]") } else { String::new() };
                config.wrong(&format!("eos_token_id{at}"), &v.describe(), "the id of a token wanted")
            })
        };
        return list.iter().enumerate().map(id).collect();
    }
    Ok(Vec::new())
}
