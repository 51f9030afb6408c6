//! The flags that say how tokens are drawn, and how much the model thinks.

use clap::Args;

use crate::base::Token;
use crate::base::limits::STOP_BYTES_MAX;
use crate::engine::{Effort, Sampling};

/// Flags of everything that draws.
#[derive(Debug, Default, Args)]
pub(super) struct SamplingArgs {
    /// 0 takes the likeliest token, higher is more varied, up to 2 [default: 0.8]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, 0.0, 2.0))]
    temperature: Option<f32>,
    /// Draw among the N likeliest tokens only; 0 is off [default: 40]
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Draw among the likeliest tokens that have this share together [default: 0.95]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| above_to(s, 1.0))]
    top_p: Option<f32>,
    /// Draw among tokens at least this many times as likely as the likeliest; 0 is off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, 0.0, 1.0))]
    min_p: Option<f32>,
    /// Draw among the most typical tokens that have this share together; 1 is off [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| above_to(s, 1.0))]
    typical_p: Option<f32>,
    /// Make tokens seen lately less likely, by a factor; 1 is off [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, 0.5, 2.0))]
    repeat_penalty: Option<f32>,
    /// Make them less likely for each time they were seen; 0 is off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, -2.0, 2.0))]
    frequency_penalty: Option<f32>,
    /// Make them less likely once they were seen; 0 is off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, -2.0, 2.0))]
    presence_penalty: Option<f32>,
    /// So many tokens of prompt and answer are lately [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=4096))]
    repeat_last_n: Option<u32>,
    /// Make tokens that prolong a repetition less likely (DRY); 0 is off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, 0.0, 5.0))]
    dry_multiplier: Option<f32>,
    /// The more so the longer it is, by this factor a token [default: 1.75]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = |s: &str| from_to(s, 1.0, 4.0))]
    dry_base: Option<f32>,
    /// Repetitions of so many tokens are allowed [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    dry_allowed_length: Option<u32>,
    /// Within so many tokens of prompt and answer [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=4096))]
    dry_last_n: Option<u32>,
    /// No repetition reaches over a token that holds this text; may be given several times, empty for none [default:
    /// newline, colon, quote, asterisk]
    #[arg(long, value_name = "TEXT", value_parser = breaker)]
    dry_breakers: Option<Vec<String>>,
    /// Hold the surprise of the answer steady instead of cutting (mirostat 2)
    #[arg(long)]
    mirostat: bool,
    /// The surprise to hold, in bits, up to 20 [default: 5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "mirostat", value_parser = |s: &str| above_to(s, 20.0))]
    mirostat_tau: Option<f32>,
    /// How fast it is approached, up to 1 [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "mirostat", value_parser = |s: &str| above_to(s, 1.0))]
    mirostat_eta: Option<f32>,
    /// Make a token likelier or, below 0, less likely; may be given several times
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    logit_bias: Vec<(Token, f32)>,
    /// The answer has at least so many tokens [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_tokens: u32,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(..1 << 53))]
    seed: Option<u64>,
    /// How much the model thinks first, where it can: none, low, medium, high [default: none]
    #[arg(long, value_name = "HOW", value_parser = effort)]
    reasoning_effort: Option<Effort>,
}

impl SamplingArgs {
    /// What the flags ask for.
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_last_n: self.repeat_last_n,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_last_n: self.dry_last_n,
            dry_breakers: self
                .dry_breakers
                .as_ref()
                .map(|all| all.iter().filter(|text| !text.is_empty()).cloned().collect()),
            mirostat: self.mirostat,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            logit_bias: self.logit_bias.clone(),
            min_tokens: self.min_tokens,
            seed: self.seed,
            ..Sampling::default()
        }
    }

    /// How much to think.
    pub(super) fn effort(&self) -> Effort {
        self.reasoning_effort.unwrap_or_default()
    }
}

/// The same as fields of a request to the daemon.
#[cfg(feature = "http")]
pub(super) fn fields(s: &Sampling, effort: Effort) -> serde_json::Map<String, serde_json::Value> {
    use serde_json::Value;
    // Through their decimal text, so that 0.8 is not sent as 0.800000011920929.
    let float = |x: f32| x.to_string().parse::<serde_json::Number>().map_or(Value::Null, Value::Number);
    let bias = s.logit_bias.iter().map(|(token, x)| (token.0.to_string(), float(*x)));
    // A name is absent where nothing is asked, so that older daemons do not stumble over it.
    [
        ("temperature", s.temperature.map(float)),
        ("top_k", s.top_k.map(Value::from)),
        ("top_p", s.top_p.map(float)),
        ("min_p", s.min_p.map(float)),
        ("typical_p", s.typical_p.map(float)),
        ("repeat_penalty", s.repeat_penalty.map(float)),
        ("frequency_penalty", s.frequency_penalty.map(float)),
        ("presence_penalty", s.presence_penalty.map(float)),
        ("repeat_last_n", s.repeat_last_n.map(Value::from)),
        ("dry_multiplier", s.dry_multiplier.map(float)),
        ("dry_base", s.dry_base.map(float)),
        ("dry_allowed_length", s.dry_allowed_length.map(Value::from)),
        ("dry_last_n", s.dry_last_n.map(Value::from)),
        ("dry_breakers", s.dry_breakers.clone().map(Value::from)),
        ("mirostat", s.mirostat.then(|| 2.into())),
        ("mirostat_tau", s.mirostat_tau.map(float)),
        ("mirostat_eta", s.mirostat_eta.map(float)),
        ("logit_bias", (!s.logit_bias.is_empty()).then(|| Value::Object(bias.collect()))),
        ("min_tokens", (s.min_tokens > 0).then(|| s.min_tokens.into())),
        ("seed", s.seed.map(Value::from)),
        ("reasoning_effort", (effort != Effort::None).then(|| effort.as_str().into())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

fn number(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "a number is wanted".to_owned())
}

fn from_to(text: &str, min: f32, max: f32) -> Result<f32, String> {
    let x = number(text)?;
    if (min..=max).contains(&x) { Ok(x) } else { Err(format!("from {min} to {max} is possible")) }
}

fn above_to(text: &str, max: f32) -> Result<f32, String> {
    let x = number(text)?;
    if x > 0.0 && x <= max { Ok(x) } else { Err(format!("above 0 to {max} is possible")) }
}

fn bias(text: &str) -> Result<(Token, f32), String> {
    let (id, x) = text.split_once('=').ok_or("a token id, an equals sign and a number are wanted")?;
    let id = id.parse().map_err(|_| "a token id is a whole number")?;
    Ok((Token(id), from_to(x, -100.0, 100.0)?))
}

fn breaker(text: &str) -> Result<String, String> {
    match text.len() {
        0..=STOP_BYTES_MAX => Ok(text.to_owned()),
        n => Err(format!("{n} bytes, at most {STOP_BYTES_MAX} are possible")),
    }
}

fn effort(text: &str) -> Result<Effort, String> {
    let known = Effort::ALL.into_iter().find(|effort| effort.as_str() == text);
    known.ok_or_else(|| "none, low, medium or high is possible".to_owned())
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    #[test]
    fn flags_become_the_fields_of_the_same_name() {
        let flags = "x --temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --typical-p 0.8 --repeat-penalty 1.1 \
            --frequency-penalty -0.5 --presence-penalty 0.5 --repeat-last-n 32 --dry-multiplier 0.8 --dry-base 2 \
            --dry-allowed-length 3 --dry-last-n 9 --dry-breakers . --dry-breakers ! --mirostat --mirostat-tau 4 \
            --mirostat-eta 0.2 --logit-bias 7=-1.5 \
            --logit-bias 8=100 --min-tokens 3 --seed 9 --reasoning-effort low";
        let args = Flags::try_parse_from(flags.split_whitespace()).expect("they parse").sampling;
        let wanted = serde_json::json!({
            "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "repeat_penalty": 1.1,
            "frequency_penalty": -0.5, "presence_penalty": 0.5, "repeat_last_n": 32, "dry_multiplier": 0.8,
            "dry_base": 2, "dry_allowed_length": 3, "dry_last_n": 9,
            "dry_breakers": [".", "!"], "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2,
            "logit_bias": {"7": -1.5, "8": 100}, "min_tokens": 3, "seed": 9, "reasoning_effort": "low",
        });
        assert_eq!(serde_json::Value::from(fields(&args.sampling(), args.effort())), wanted);
        let none = Flags::try_parse_from(["x"]).expect("they parse").sampling;
        assert!(fields(&none.sampling(), none.effort()).is_empty());
        let no_breakers = Flags::try_parse_from(["x", "--dry-breakers", ""]).expect("they parse").sampling;
        assert_eq!(no_breakers.sampling().dry_breakers, Some(Vec::new()));
        for wrong in [
            "--dry-last-n 4097",
            "--top-p 0",
            "--temperature 3",
            "--logit-bias 7",
            "--logit-bias a=1",
            "--mirostat-tau 4",
            "--reasoning-effort x",
        ] {
            assert!(Flags::try_parse_from(["x"].into_iter().chain(wrong.split(' '))).is_err(), "{wrong}");
        }
    }
}
