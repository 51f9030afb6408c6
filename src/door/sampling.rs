//! The fields that say how tokens are drawn, with their ranges (`proto/openapi.yaml`).

use serde_json::Value;

use crate::base::Token;
use crate::base::limits::{
    LAST_N_MAX, N_BREAKER_MAX, N_LOGIT_BIAS_MAX, N_STOP_MAX, N_TOP_LOGPROB_MAX, STOP_BYTES_MAX,
};
use crate::engine::{Effort, Fault, Sampling};

use super::fields::{Fields, invalid, wrong};

/// Largest whole number that every JSON reader keeps exact.
pub(super) const SEED_MAX: u64 = (1 << 53) - 1;

/// Takes what the OpenAI shapes have beside the rest, borrowed names and common extensions.
pub(super) fn take(fields: &mut Fields) -> Result<Sampling, Fault> {
    Ok(Sampling {
        temperature: number(fields, "temperature", 0.0, 2.0)?,
        top_k: whole(fields, "top_k", 0, 1000)?,
        top_p: share(fields, "top_p")?,
        min_p: number(fields, "min_p", 0.0, 1.0)?,
        repeat_penalty: number(fields, "repeat_penalty", 0.5, 2.0)?,
        frequency_penalty: number(fields, "frequency_penalty", -2.0, 2.0)?,
        presence_penalty: number(fields, "presence_penalty", -2.0, 2.0)?,
        logit_bias: logit_bias(fields)?,
        seed: fields.whole("seed", 0, SEED_MAX)?,
        ..Sampling::default()
    })
}

/// Takes what those shapes have no name for: it stands in their `sotto`, else beside the rest.
pub(super) fn take_more(fields: &mut Fields, s: &mut Sampling) -> Result<(), Fault> {
    let last_n = LAST_N_MAX as u32;
    s.typical_p = share(fields, "typical_p")?;
    s.repeat_last_n = whole(fields, "repeat_last_n", 0, last_n)?;
    s.dry_multiplier = number(fields, "dry_multiplier", 0.0, 5.0)?;
    s.dry_base = number(fields, "dry_base", 1.0, 4.0)?;
    s.dry_allowed_length = whole(fields, "dry_allowed_length", 1, last_n)?;
    s.dry_last_n = whole(fields, "dry_last_n", 0, last_n)?;
    s.dry_breakers = texts(fields, "dry_breakers", N_BREAKER_MAX)?;
    s.mirostat = match fields.whole("mirostat", 0, 2)? {
        None | Some(0) => false,
        Some(2) => true,
        Some(_) => return Err(invalid(&fields.path("mirostat"), "got 1, allowed is 0 (off) or 2")),
    };
    let above = |max| move |x: f64| x > 0.0 && x <= max;
    s.mirostat_tau = fields.number("mirostat_tau", above(20.0), "a number above 0, to 20")?.map(single);
    s.mirostat_eta = fields.number("mirostat_eta", above(1.0), "a number above 0, to 1")?.map(single);
    s.min_tokens = whole(fields, "min_tokens", 0, u32::MAX)?.unwrap_or(0);
    Ok(())
}

/// Takes `logprobs`, a count, as all but the chat shape have it.
pub(super) fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Fault> {
    whole(fields, "logprobs", 0, N_TOP_LOGPROB_MAX)
}

/// Takes `reasoning_effort`.
pub(super) fn effort(fields: &mut Fields) -> Result<Effort, Fault> {
    let Some(name) = fields.text("reasoning_effort")? else { return Ok(Effort::None) };
    let known = Effort::ALL.into_iter().find(|effort| effort.as_str() == name);
    known.ok_or_else(|| invalid(&fields.path("reasoning_effort"), "allowed is none, low, medium or high"))
}

/// Takes the stop strings: one, several or none.
pub(super) fn stop(fields: &mut Fields) -> Result<Vec<String>, Fault> {
    Ok(texts(fields, "stop", N_STOP_MAX)?.unwrap_or_default())
}

#[expect(clippy::cast_possible_truncation, reason = "in range, and the engine computes in single precision")]
fn single(x: f64) -> f32 {
    x as f32
}

fn number(fields: &mut Fields, key: &str, min: f64, max: f64) -> Result<Option<f32>, Fault> {
    let allowed = format!("a number from {min} to {max}");
    Ok(fields.number(key, |x| (min..=max).contains(&x), &allowed)?.map(single))
}

/// Above 0, to 1.
fn share(fields: &mut Fields, key: &str) -> Result<Option<f32>, Fault> {
    // The smallest numbers are none in single precision.
    let fits = |x: f64| single(x) > 0.0 && x <= 1.0;
    Ok(fields.number(key, fits, "a number above 0, to 1")?.map(single))
}

fn whole(fields: &mut Fields, key: &str, min: u32, max: u32) -> Result<Option<u32>, Fault> {
    let x = fields.whole(key, u64::from(min), u64::from(max))?;
    Ok(x.and_then(|x| u32::try_from(x).ok()))
}

/// One text of 1 to [`STOP_BYTES_MAX`] bytes, or up to `n_max` in an array.
fn texts(fields: &mut Fields, key: &str, n_max: usize) -> Result<Option<Vec<String>>, Fault> {
    let path = fields.path(key);
    let allowed = format!("up to {n_max} strings of 1 to {STOP_BYTES_MAX} bytes");
    let list = match fields.take(key) {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => return Err(wrong(&path, &other, allowed)),
    };
    if list.len() > n_max {
        return Err(invalid(&path, format_args!("got {} strings, allowed are {allowed}", list.len())));
    }
    let text = |one| match one {
        Value::String(text) if (1..=STOP_BYTES_MAX).contains(&text.len()) => Ok(text),
        other => Err(wrong(&path, &other, &allowed)),
    };
    list.into_iter().map(text).collect::<Result<_, _>>().map(Some)
}

/// A number for each token id; which ids there are, the model knows.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(Token, f32)>, Fault> {
    let path = fields.path("logit_bias");
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(&path, &other, "an object of token ids and numbers")),
    };
    if map.len() > N_LOGIT_BIAS_MAX {
        return Err(invalid(&path, format_args!("got {} tokens, allowed are {N_LOGIT_BIAS_MAX}", map.len())));
    }
    map.into_iter()
        .map(|(id, bias)| {
            // One way to write each, so that no token stands twice.
            let Some(token) = id.parse().ok().filter(|n: &u32| n.to_string() == id).map(Token) else {
                return Err(invalid(&path, "a key is no token id; allowed is a whole number in decimal"));
            };
            match bias.as_f64() {
                Some(x) if (-100.0..=100.0).contains(&x) => Ok((token, single(x))),
                _ => Err(wrong(&format!("{path}.{}", token.0), &bias, "a number from -100 to 100")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::fields::parse_json;
    use crate::engine::Code;

    fn read(body: &str) -> Result<Sampling, Fault> {
        let mut fields = Fields::new(parse_json(body.as_bytes())?, "", false)?;
        let mut sampling = take(&mut fields)?;
        take_more(&mut fields, &mut sampling)?;
        fields.finish()?;
        Ok(sampling)
    }

    #[test]
    fn every_field_is_taken() {
        let all = r#"{"temperature":1,"top_k":5,"top_p":0.5,"min_p":0.1,"typical_p":0.9,"repeat_penalty":1.1,
            "frequency_penalty":-1,"presence_penalty":2,"repeat_last_n":4096,"dry_multiplier":0.8,"dry_base":1.5,
            "dry_allowed_length":3,"dry_last_n":9,"dry_breakers":["\n"],"mirostat":2,"mirostat_tau":4,
            "mirostat_eta":0.2,"logit_bias":{"7":-100,"8":1},"min_tokens":10,"seed":1}"#;
        let wanted = Sampling {
            temperature: Some(1.0),
            top_k: Some(5),
            top_p: Some(0.5),
            min_p: Some(0.1),
            typical_p: Some(0.9),
            repeat_penalty: Some(1.1),
            frequency_penalty: Some(-1.0),
            presence_penalty: Some(2.0),
            repeat_last_n: Some(4096),
            dry_multiplier: Some(0.8),
            dry_base: Some(1.5),
            dry_allowed_length: Some(3),
            dry_last_n: Some(9),
            dry_breakers: Some(vec!["\n".into()]),
            mirostat: true,
            mirostat_tau: Some(4.0),
            mirostat_eta: Some(0.2),
            logit_bias: vec![(Token(7), -100.0), (Token(8), 1.0)],
            min_tokens: 10,
            logprobs: None,
            seed: Some(1),
        };
        assert_eq!(read(all).unwrap(), wanted);
        assert_eq!(
            read(r#"{"mirostat":0,"logit_bias":{},"dry_breakers":null}"#).unwrap(),
            Sampling::default()
        );
    }

    #[test]
    fn ranges_are_kept() {
        for (field, param) in [
            (r#""min_p":1.1"#, "min_p"),
            (r#""min_p":"x""#, "min_p"),
            (r#""typical_p":0"#, "typical_p"),
            (r#""top_p":1e-99"#, "top_p"),
            (r#""repeat_penalty":0"#, "repeat_penalty"),
            (r#""frequency_penalty":2.1"#, "frequency_penalty"),
            (r#""presence_penalty":-2.1"#, "presence_penalty"),
            (r#""repeat_last_n":4097"#, "repeat_last_n"),
            (r#""dry_multiplier":-1"#, "dry_multiplier"),
            (r#""dry_base":0.9"#, "dry_base"),
            (r#""dry_allowed_length":0"#, "dry_allowed_length"),
            (r#""dry_breakers":[""]"#, "dry_breakers"),
            (r#""mirostat":1"#, "mirostat"),
            (r#""mirostat":3"#, "mirostat"),
            (r#""mirostat_tau":0"#, "mirostat_tau"),
            (r#""mirostat_eta":2"#, "mirostat_eta"),
            (r#""min_tokens":-1"#, "min_tokens"),
            (r#""logit_bias":[]"#, "logit_bias"),
            (r#""logit_bias":{"a":1}"#, "logit_bias"),
            (r#""logit_bias":{"1":1,"01":2}"#, "logit_bias"),
            (r#""logit_bias":{"+1":1}"#, "logit_bias"),
            (r#""logit_bias":{"+1":1}"#, "logit_bias"),
            (r#""logit_bias":{"4294967296":1}"#, "logit_bias"),
            (r#""logit_bias":{"1":101}"#, "logit_bias.1"),
        ] {
            let fault = read(&format!("{{{field}}}")).expect_err(field);
            assert_eq!((fault.code, fault.param.as_deref()), (Code::InvalidValue, Some(param)), "{field}");
            assert!(fault.message.contains("allowed"), "{}", fault.message);
        }
        let many: Vec<String> = (0..=N_LOGIT_BIAS_MAX).map(|i| format!("\"{i}\":1")).collect();
        let fault = read(&format!("{{\"logit_bias\":{{{}}}}}", many.join(","))).expect_err("too many");
        assert_eq!(fault.code, Code::InvalidValue);
    }
}
