//! Rotary positions: `rope_parameters`, or the older `rope_theta` with `rope_scaling`.

use super::config::{Config, number};
use super::names::{Class, Rule};
use crate::base::limits::HEAD_DIM_MAX;
use crate::format::FormatError;
use crate::format::Meta;
use crate::format::checkpoint::narrow;
use crate::format::json::Json;

/// Tensors that GGUF's converter makes from the configuration: name and values.
pub(super) type Factors = Vec<(&'static str, Vec<f32>)>;

/// The entries about rotary positions, of all layers or of those with full attention.
struct Rope<'a, 'b> {
    config: &'b Config<'a>,
    /// The keys that lead to `main`.
    at: String,
    main: Option<&'a Json>,
    local: Option<&'a Json>,
}

impl Rope<'_, '_> {
    /// An entry of `rope_parameters`, or of the configuration itself.
    fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        match self.main.and_then(|m| m.get(key)) {
            Some(v) => number(v).map(Some).map_err(|wanted| self.wrong(key, v, wanted)),
            None => self.config.float(&[key]),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.at)
    }

    fn wrong(&self, key: &str, found: &Json, wanted: &str) -> FormatError {
        self.config.wrong(&self.path(key), &found.describe(), wanted)
    }

    fn need(&self, key: &str) -> Result<f64, FormatError> {
        self.config.require(&self.path(key), self.float(key)?)
    }

    /// As `need`, a whole number from 1 to 2^32.
    fn length(&self, key: &str) -> Result<u64, FormatError> {
        let x = self.need(key)?;
        if x.fract() != 0.0 || !(1.0..=4_294_967_295.0).contains(&x) {
            return Err(self.config.wrong(&self.path(key), &x.to_string(), "a number of tokens wanted"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and in range by the check"
        )]
        Ok(x as u64)
    }

    /// How positions are scaled.
    fn kind(&self) -> Result<&str, FormatError> {
        let named = self.main.and_then(|m| m.get("rope_type").or_else(|| m.get("type")));
        match named {
            None => Ok("default"),
            Some(Json::Str(s)) => Ok(s),
            Some(v) => Err(self.wrong("rope_type", v, "a string wanted")),
        }
    }
}

/// Writes the keys about rotary positions; returns the tensors of factors.
pub(super) fn translate(
    config: &Config<'_>,
    class: &Class,
    head_dim: usize,
    meta: &mut Meta,
) -> Result<Factors, FormatError> {
    let key = |k: &str| format!("{}.rope.{k}", class.arch);
    let has = |wanted: fn(&Rule) -> bool| class.rules.iter().any(wanted);
    let old = config.get("rope_parameters").is_none() && config.get("rope_scaling").is_some();
    let name = if old { "rope_scaling" } else { "rope_parameters" };
    let all = config.get(name);
    if let Some(other) = all.filter(|v| !matches!(v, Json::Map(_))) {
        return Err(config.wrong(name, &other.describe(), "an object wanted"));
    }
    let full = all.and_then(|a| a.get("full_attention"));
    let rope = Rope {
        config,
        at: if full.is_some() { format!("{name}.full_attention") } else { name.into() },
        main: full.or(all),
        local: all.and_then(|a| a.get("sliding_attention")),
    };

    if config.get("n_embd").is_some() && config.get("hidden_size").is_none() {
        // GPT-2 learns a vector for each position.
        return Ok(Vec::new());
    }
    let usual = if has(|r| matches!(r, Rule::DeltaNet)) { 0.25 } else { 1.0 };
    let part = rope.float("partial_rotary_factor")?.unwrap_or(usual);
    if !(0.0..=1.0).contains(&part) {
        return Err(config.wrong("partial_rotary_factor", &part.to_string(), "0 to 1 possible"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the width of a head"
    )]
    let rotated = (head_dim as f64 * part) as usize;
    let kind = rope.kind()?;
    // There all dimensions are rotated, those beyond the part by nothing.
    let n_rot = if kind == "proportional" { head_dim } else { rotated };
    meta.uint(&key("dimension_count"), n_rot as u64);
    if has(|r| matches!(r, Rule::TwoWidths)) {
        meta.uint(&key("dimension_count_swa"), config.size(&["head_dim"], HEAD_DIM_MAX)? as u64);
    }

    let mut base = rope.float("rope_theta")?;
    let mut local = match rope.local.and_then(|l| l.get("rope_theta")) {
        Some(v) => {
            let at = format!("{name}.sliding_attention.rope_theta");
            Some(number(v).map_err(|wanted| config.wrong(&at, &v.describe(), wanted))?)
        }
        None => config.float(&["rope_local_base_freq", "local_rope_theta"])?,
    };
    for rule in class.rules {
        match rule {
            Rule::Base(x) => base = base.or(Some(*x)),
            Rule::LocalBase(x) => local = local.or(Some(*x)),
            Rule::SameLocalBase => local = local.or(base),
            _ => {}
        }
    }
    let mut factors = Vec::new();
    match kind {
        "default" | "none" | "mrope" => {}
        "linear" => {
            meta.str(&key("scaling.type"), "linear");
            meta.float(&key("scaling.factor"), rope.need("factor")?);
        }
        "proportional" if has(|r| matches!(r, Rule::TwoWidths)) => {
            let divisors = (0..head_dim / 2).map(|i| if i < rotated / 2 { 1.0 } else { 1e30 });
            factors.push(("rope_freqs.weight", divisors.collect()));
        }
        "yarn" => yarn(&rope, class, meta)?,
        "llama3" => {
            let base = base.unwrap_or(10_000.0);
            factors.push(("rope_freqs.weight", llama3(&rope, base, n_rot)?));
        }
        "su" | "longrope" if has(|r| matches!(r, Rule::LongRope)) => {
            factors = longrope(&rope, class, n_rot, meta)?
        }
        "dynamic" | "xdrope" if has(|r| matches!(r, Rule::Alpha)) => {
            let alpha = rope.float("alpha")?.unwrap_or(50.0);
            let n = head_dim as f64;
            let scaled = base.unwrap_or(10_000.0) * alpha.powf(n / (n - 2.0));
            if !narrow(scaled).is_finite() || scaled <= 0.0 {
                return Err(config.wrong(&rope.path("alpha"), &alpha.to_string(), "a number above 0 wanted"));
            }
            base = Some(scaled);
        }
        other => {
            let wanted = "default, linear, yarn and llama3 are read; use a GGUF file of the model";
            return Err(config.wrong(&rope.path("rope_type"), other, wanted));
        }
    }
    if has(|r| matches!(r, Rule::LongRope)) {
        let n = match rope.float("original_max_position_embeddings")? {
            Some(_) => Some(rope.length("original_max_position_embeddings")?),
            None => config.uint(&["max_position_embeddings"])?,
        };
        if let Some(n) = n {
            meta.uint(&key("scaling.original_context_length"), n);
        }
    }
    if let Some(x) = base {
        meta.float(&key("freq_base"), x);
    }
    if let Some(x) = local {
        meta.float(&key("freq_base_swa"), x);
    }
    if has(|r| matches!(r, Rule::DeltaNet)) {
        sections(&rope, &key("dimension_sections"), meta)?;
    }
    Ok(factors)
}

/// YaRN (arXiv 2309.00071), and what Ministral adds.
fn yarn(rope: &Rope<'_, '_>, class: &Class, meta: &mut Meta) -> Result<(), FormatError> {
    let key = |k: &str| format!("{}.rope.scaling.{k}", class.arch);
    // GGUF has no key for it: ours is `yarn_truncate`.
    if let Some(Json::Bool(false)) = rope.main.and_then(|m| m.get("truncate")) {
        meta.bool(&key("yarn_truncate"), false);
    }
    meta.str(&key("type"), "yarn");
    meta.float(&key("factor"), rope.need("factor")?);
    meta.uint(&key("original_context_length"), rope.length("original_max_position_embeddings")?);
    let optional = [
        ("yarn_ext_factor", "extrapolation_factor"),
        ("yarn_attn_factor", "attention_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ];
    for (to, from) in optional {
        if let Some(x) = rope.float(from)? {
            meta.float(&key(to), x);
        }
    }
    let (mscale, all_dim) = (rope.float("mscale")?, rope.float("mscale_all_dim")?);
    let temperature = class.rules.iter().any(|r| matches!(r, Rule::Temperature));
    if let (Some(a), Some(b), None) = (mscale, all_dim, rope.float("attention_factor")?)
        && a != 0.0
        && b != 0.0
        && !(temperature && a == b)
    {
        let log = 0.1 * rope.need("factor")?.ln();
        meta.float(&key("yarn_attn_factor"), (a * log + 1.0) / (b * log + 1.0));
    }
    if temperature {
        if let Some(x) = all_dim {
            meta.float(&key("yarn_log_multiplier"), x);
        }
        if let Some(x) = rope.float("llama_4_scaling_beta")? {
            meta.float(&format!("{}.attention.temperature_scale", class.arch), x);
        }
    }
    Ok(())
}

/// Llama 3.1's scaling as divisors of the frequencies (transformers, `modeling_rope_utils.py`): long waves by the
/// factor, short ones not, those between by a mixture.
fn llama3(rope: &Rope<'_, '_>, base: f64, n_rot: usize) -> Result<Vec<f32>, FormatError> {
    let positive = |key: &str, default: f64| match rope.float(key)?.unwrap_or(default) {
        x if x > 0.0 => Ok(x),
        x => Err(rope.config.wrong(&rope.path(key), &x.to_string(), "above 0 wanted")),
    };
    let factor = positive("factor", 8.0)?;
    let (low, high) = (positive("low_freq_factor", 1.0)?, positive("high_freq_factor", 4.0)?);
    let n_ctx = positive("original_max_position_embeddings", 8192.0)?;
    // In 32 bits where the definition is, so that the tensor is the converter's.
    let divisor = |i: usize| {
        let exponent = narrow(i as f64) / narrow(n_rot as f64);
        let wave = 2.0 * std::f64::consts::PI * f64::from(narrow(base).powf(exponent));
        if wave < n_ctx / high {
            1.0
        } else if wave > n_ctx / low {
            factor
        } else {
            let smooth = (n_ctx / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Ok((0..n_rot).step_by(2).map(|i| narrow(divisor(i))).collect())
}

/// LongRoPE (arXiv 2402.13753) as Phi-3 has it: two lists of divisors, and a magnitude for the longer context.
fn longrope(
    rope: &Rope<'_, '_>,
    class: &Class,
    n_rot: usize,
    meta: &mut Meta,
) -> Result<Factors, FormatError> {
    let n_ctx =
        rope.config.require("max_position_embeddings", rope.config.uint(&["max_position_embeddings"])?)?;
    let original = rope.length("original_max_position_embeddings")?;
    let scale = n_ctx as f64 / original as f64;
    let magnitude = match rope.float("attention_factor")? {
        Some(x) => x,
        None if scale > 1.0 && original > 1 => (1.0 + scale.ln() / (original as f64).ln()).sqrt(),
        None => 1.0,
    };
    meta.float(&format!("{}.rope.scaling.attn_factor", class.arch), magnitude);
    let mut out = Vec::new();
    for (tensor, key) in
        [("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor")]
    {
        let value = rope.config.require(&rope.path(key), rope.main.and_then(|m| m.get(key)))?;
        let wanted = format!("a list of {} numbers above 0 wanted", n_rot / 2);
        let list: Option<Vec<f32>> = match value {
            Json::List(list) if list.len() == n_rot / 2 => {
                list.iter().map(|v| number(v).ok().map(narrow).filter(|x| *x > 0.0)).collect()
            }
            _ => None,
        };
        out.push((tensor, list.ok_or_else(|| rope.wrong(key, value, &wanted))?));
    }
    Ok(out)
}

/// Rotated pairs for time, height, width and nothing; for text all of them take the same position.
fn sections(rope: &Rope<'_, '_>, key: &str, meta: &mut Meta) -> Result<(), FormatError> {
    let mut out = [11, 11, 10, 0];
    if let Some(value) = rope.main.and_then(|m| m.get("mrope_section")) {
        let wrong = || rope.wrong("mrope_section", value, "a list of at most 4 numbers wanted");
        let Json::List(list) = value else { return Err(wrong()) };
        if list.len() > out.len() {
            return Err(wrong());
        }
        out = [0; 4];
        for (to, from) in out.iter_mut().zip(list) {
            *to = if let Json::Int(n) = from {
                u32::try_from(*n).map_err(|_| wrong())?
            } else {
                return Err(wrong());
            };
        }
    }
    meta.uints(key, &out);
    Ok(())
}
