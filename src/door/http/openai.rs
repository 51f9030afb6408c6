//! The fields of `/v1/chat/completions` and `/v1/completions`.

use serde_json::Value;

use crate::base::limits::{N_CHOICE_MAX, N_TOP_LOGPROB_MAX};
use crate::door::ask::{self, Ask, TOOLS_NOT_YET};
use crate::door::fields::{Fields, Kind, NotYet, invalid, missing, unsupported, wrong};
use crate::door::sampling;
use crate::engine::{Fault, Input};

/// A request in one of OpenAI's shapes.
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) input: Input,
    pub(super) input_field: &'static str,
    pub(super) stream: bool,
    pub(super) usage: bool,
    /// So many choices.
    pub(super) n: usize,
}

/// Known to others and not to us: only null passes.
const REJECTED: &[NotYet] = &[
    rejected("audio"),
    rejected("modalities"),
    rejected("prediction"),
    rejected("web_search_options"),
    rejected("functions"),
    rejected("function_call"),
    rejected("verbosity"),
];

const fn rejected(key: &'static str) -> NotYet {
    NotYet { key, kind: Kind::Any, neutral: |_| false }
}

const CHAT_NOT_YET: &[NotYet] =
    &[NotYet { key: "response_format", kind: Kind::Object, neutral: is_text_format }];

fn is_text_format(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|format| format.len() == 1 && format.get("type").is_some_and(|t| *t == "text"))
}

/// What both shapes share beside the rest of a request.
struct Common {
    stream: bool,
    usage: bool,
    n: usize,
}

fn common(fields: &mut Fields) -> Result<(Ask, Common), Fault> {
    fields.not_yet(REJECTED)?;
    hints(fields)?;
    let mut ask = Ask::take(fields)?;
    if let Some(mut sotto) = fields.object("sotto")? {
        ask.take_service(&mut sotto)?;
        fields.close(sotto)?;
    }
    let stream = fields.flag("stream")?.unwrap_or(false);
    let mut usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        usage = options.flag("include_usage")?.unwrap_or(false);
        options.flag("include_obfuscation")?;
        fields.close(options)?;
    }
    let n = fields.whole("n", 1, N_CHOICE_MAX as u64)?.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    Ok((ask, Common { stream, usage, n }))
}

/// Fields that common clients send and that have no effect.
fn hints(fields: &mut Fields) -> Result<(), Fault> {
    for key in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.text(key)?;
    }
    if let Some(value) = fields.take("metadata").filter(|value| !value.is_object()) {
        return Err(wrong(&fields.path("metadata"), &value, "an object"));
    }
    fields.not_yet(&[NotYet { key: "store", kind: Kind::Bool, neutral: |v| *v == false }])?;
    match fields.text("service_tier")?.as_deref() {
        None | Some("auto" | "default") => Ok(()),
        Some(_) => Err(invalid("service_tier", "allowed is auto or default")),
    }
}

/// A chat request.
pub(super) fn chat(fields: &mut Fields) -> Result<Asked, Fault> {
    let (mut ask, Common { stream, usage, n }) = common(fields)?;
    fields.not_yet(CHAT_NOT_YET)?;
    fields.not_yet(TOOLS_NOT_YET)?;
    let newer = ask::max_tokens(fields, "max_completion_tokens")?;
    match (ask.max_tokens, newer) {
        (Some(old), Some(new)) if old != new => {
            let what = format!("is {new} and max_tokens is {old}; give one of them");
            return Err(invalid("max_completion_tokens", what));
        }
        _ => ask.max_tokens = newer.or(ask.max_tokens),
    }
    ask.effort = sampling::effort(fields)?;
    ask.sampling.logprobs = logprobs(fields)?;
    ask.check("sotto.min_tokens")?;
    let messages = fields.list("messages")?.ok_or_else(|| missing("messages", "give the conversation"))?;
    let input = Input::Chat(ask::messages(messages, "messages")?);
    Ok(Asked { ask, input, input_field: "messages", stream, usage, n })
}

/// `logprobs` says whether, `top_logprobs` how many beside.
fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Fault> {
    let asked = fields.flag("logprobs")?.unwrap_or(false);
    let n =
        fields.whole("top_logprobs", 0, u64::from(N_TOP_LOGPROB_MAX))?.and_then(|n| u32::try_from(n).ok());
    match n {
        Some(1..) if !asked => Err(invalid("top_logprobs", "goes with logprobs only; set that to true")),
        n => Ok(asked.then(|| n.unwrap_or(0))),
    }
}

/// A completion request: a prompt continued as it stands.
pub(super) fn completion(fields: &mut Fields) -> Result<Asked, Fault> {
    let (mut ask, Common { stream, usage, n }) = common(fields)?;
    ask.sampling.logprobs = sampling::logprobs(fields)?;
    ask.check("sotto.min_tokens")?;
    let input = match fields.take("prompt") {
        Some(Value::String(text)) => Input::Text(text),
        Some(Value::Array(list)) if list.iter().any(Value::is_string) => {
            return Err(unsupported("prompt", "several prompts in one request; send one request each"));
        }
        Some(Value::Array(list)) => ask::tokens(list, "prompt")?,
        Some(other) => return Err(wrong("prompt", &other, "a string or an array of token ids")),
        None => return Err(missing("prompt", "give the text to continue")),
    };
    Ok(Asked { ask, input, input_field: "prompt", stream, usage, n })
}
