//! From fields to a request: what chat, completions, the native route and the bus have in common.

use serde_json::Value;

#[cfg(feature = "http")]
use crate::base::Token;
use crate::base::limits::N_CTX_MAX;
use crate::engine::{
    Caching, Caller, Class, Effort, Fault, GenerationId, Input, Message, Request, Role, Sampling, Task,
};

use super::fields::{Fields, Kind, NotYet, invalid, missing, unsupported, wrong};
use super::sampling;

/// A request without its input, its caller and its id.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    pub(super) max_tokens: Option<u32>,
    pub(super) effort: Effort,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) cache: Caching,
    pub(super) class: Class,
    pub(super) deadline_ms: Option<u64>,
}

impl Ask {
    /// The request.
    pub(super) fn request(
        self,
        id: GenerationId,
        caller: Caller,
        input: Input,
        input_field: &'static str,
    ) -> Request {
        Request {
            id,
            caller,
            model: self.model,
            task: Task::Generate,
            input,
            input_field,
            effort: self.effort,
            sampling: self.sampling,
            max_tokens: self.max_tokens,
            stop: self.stop,
            cache: self.cache,
            class: self.class,
            deadline_ms: self.deadline_ms,
        }
    }

    /// Takes what every generating request has: `model`, `max_tokens`, sampling, `stop`.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, Fault> {
        Ok(Self {
            model: fields.text("model")?,
            max_tokens: max_tokens(fields, "max_tokens")?,
            sampling: sampling::take(fields)?,
            stop: sampling::stop(fields)?,
            ..Self::default()
        })
    }

    /// Takes what stands in `sotto` of the OpenAI shapes, else beside the rest: further sampling, and `class`,
    /// `deadline_ms`, `cache`, `publish`.
    pub(super) fn take_service(&mut self, fields: &mut Fields) -> Result<(), Fault> {
        fields.not_yet(SERVICE_NOT_YET)?;
        sampling::take_more(fields, &mut self.sampling)?;
        self.class = fields.class()?;
        self.cache = match (fields.flag("cache")?, fields.flag("publish")?) {
            (Some(false), Some(true)) => {
                return Err(invalid(&fields.path("publish"), "goes only with cache; leave one out"));
            }
            (_, Some(true)) => Caching::Public,
            (Some(false), _) => Caching::Off,
            _ => Caching::Own,
        };
        self.deadline_ms = fields.whole("deadline_ms", 1, u64::from(u32::MAX))?;
        Ok(())
    }

    /// Whether what was taken fits together; `min_tokens` stood at the path `at`.
    pub(super) fn check(&self, at: &str) -> Result<(), Fault> {
        let min = self.sampling.min_tokens;
        match self.max_tokens {
            Some(max) if min > max => {
                Err(invalid(at, format_args!("is {min} and the most tokens are {max}")))
            }
            _ => Ok(()),
        }
    }
}

/// Takes a count of tokens.
pub(super) fn max_tokens(fields: &mut Fields, key: &str) -> Result<Option<u32>, Fault> {
    Ok(fields.whole(key, 1, u64::from(u32::MAX))?.and_then(|n| u32::try_from(n).ok()))
}

pub(super) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

const SERVICE_NOT_YET: &[NotYet] = &[
    NotYet { key: "grammar", kind: Kind::Text, neutral: |_| false },
    NotYet { key: "regex", kind: Kind::Text, neutral: |_| false },
    NotYet { key: "choices", kind: Kind::List, neutral: |_| false },
];

/// Tools: without any, how to choose among them asks for nothing.
pub(super) const TOOLS_NOT_YET: &[NotYet] = &[
    NotYet { key: "tools", kind: Kind::List, neutral: is_empty },
    NotYet { key: "tool_choice", kind: Kind::TextOrObject, neutral: |v| *v == "none" || *v == "auto" },
    NotYet { key: "parallel_tool_calls", kind: Kind::Bool, neutral: |_| true },
];

const NATIVE_NOT_YET: &[NotYet] = &[NotYet { key: "schema", kind: Kind::Object, neutral: |_| false }];

/// Token ids at `path`.
#[cfg(feature = "http")]
pub(super) fn tokens(list: Vec<Value>, path: &str) -> Result<Input, Fault> {
    if list.is_empty() {
        return Err(invalid(path, "got no token, allowed is one or more"));
    }
    let id = |(i, value): (usize, Value)| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(Token(id)),
        None => Err(wrong(&format!("{path}[{i}]"), &value, "a token id, a whole number")),
    };
    Ok(Input::Tokens(list.into_iter().enumerate().map(id).collect::<Result<_, _>>()?))
}

/// Messages at `path`, at least one.
pub(super) fn messages(list: Vec<Value>, path: &str) -> Result<Vec<Message>, Fault> {
    if list.is_empty() {
        return Err(invalid(path, "got no message, allowed is one or more"));
    }
    list.into_iter().enumerate().map(|(i, value)| message(value, &format!("{path}[{i}]"))).collect()
}

/// One message. Parts of messages are never ignored, however lenient the caller: they would change what is said.
fn message(value: Value, at: &str) -> Result<Message, Fault> {
    let mut fields = Fields::new(value, at, false)?;
    let role = match fields.text("role")?.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => {
            return Err(unsupported(&fields.path("role"), "tools are not supported by this version"));
        }
        Some(_) => {
            return Err(invalid(&fields.path("role"), "allowed is system, developer, user or assistant"));
        }
        None => return Err(missing(&fields.path("role"), "say who speaks: system, user or assistant")),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts_text(parts, &fields.path("content"))?,
        Some(other) => return Err(wrong(&fields.path("content"), &other, "a string or text parts")),
        // The official client sends its own empty answers back like this.
        None if role == Role::Assistant => String::new(),
        None => return Err(missing(&fields.path("content"), "say what is said: a string or text parts")),
    };
    fields.text("name")?;
    fields.not_yet(&[
        NotYet { key: "refusal", kind: Kind::Any, neutral: |_| false },
        NotYet { key: "annotations", kind: Kind::List, neutral: is_empty },
        NotYet { key: "audio", kind: Kind::Any, neutral: |_| false },
        NotYet { key: "function_call", kind: Kind::Any, neutral: |_| false },
        NotYet { key: "tool_calls", kind: Kind::List, neutral: is_empty },
        NotYet { key: "tool_call_id", kind: Kind::Text, neutral: |_| false },
    ])?;
    fields.finish()?;
    Ok(Message { role, content })
}

fn parts_text(parts: Vec<Value>, path: &str) -> Result<String, Fault> {
    let mut content = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::new(part, &format!("{path}[{i}]"), false)?;
        match part.text("type")?.as_deref() {
            Some("text") => {}
            Some(_) => return Err(unsupported(&part.path("type"), "only text parts are supported")),
            None => return Err(missing(&part.path("type"), "say what it is: text")),
        }
        match part.text("text")? {
            Some(text) => content += &text,
            None => return Err(missing(&part.path("text"), "a text part has a text")),
        }
        part.finish()?;
    }
    Ok(content)
}

/// What a plain input becomes: the text itself when it is raw, else the last message of a conversation.
pub(super) fn conversation(system: Option<String>, mut history: Vec<Message>, input: String) -> Input {
    if let Some(content) = system {
        history.insert(0, Message { role: Role::System, content });
    }
    history.push(Message { role: Role::User, content: input });
    Input::Chat(history)
}

/// Takes the native fields but those of the input.
pub(super) fn native(fields: &mut Fields) -> Result<Ask, Fault> {
    fields.not_yet(NATIVE_NOT_YET)?;
    fields.not_yet(TOOLS_NOT_YET)?;
    let mut ask = Ask::take(fields)?;
    ask.take_service(fields)?;
    ask.effort = sampling::effort(fields)?;
    ask.sampling.logprobs = sampling::logprobs(fields)?;
    ask.check("min_tokens")?;
    Ok(ask)
}

/// Takes the native input and the name of its field: exactly one of `input`, `messages`, `tokens`; `system` and `raw`
/// with `input` only.
#[cfg(feature = "http")]
pub(super) fn native_input(fields: &mut Fields) -> Result<(Input, &'static str), Fault> {
    let (input, messages_list, ids) =
        (fields.text("input")?, fields.list("messages")?, fields.list("tokens")?);
    let (system, raw) = (fields.text("system")?, fields.flag("raw")?);
    let n_given =
        usize::from(input.is_some()) + usize::from(messages_list.is_some()) + usize::from(ids.is_some());
    if n_given > 1 {
        return Err(invalid(
            "input",
            format_args!("{n_given} of input, messages, tokens are given, allowed is one"),
        ));
    }
    if input.is_none() && system.is_some() {
        return Err(invalid("system", "goes with input only; make it the first message"));
    }
    if input.is_none() && raw.is_some() {
        return Err(invalid("raw", "goes with input only"));
    }
    match (input, messages_list, ids) {
        (Some(_), ..) if raw == Some(true) && system.is_some() => {
            Err(invalid("system", "a raw input has no messages; leave system or raw out"))
        }
        (Some(text), ..) if raw == Some(true) => Ok((Input::Text(text), "input")),
        (Some(text), ..) => Ok((conversation(system, Vec::new(), text), "input")),
        (_, Some(list), _) => Ok((Input::Chat(messages(list, "messages")?), "messages")),
        (.., Some(list)) => Ok((tokens(list, "tokens")?, "tokens")),
        _ => Err(missing("input", "give one of input, messages, tokens")),
    }
}

/// How a model is to be loaded: whether it is pinned (it is), and its positions; `None`: as it is, or as configured.
pub(super) fn load(fields: &mut Fields) -> Result<(bool, Option<usize>), Fault> {
    let pin = fields.flag("pin")?.unwrap_or(true);
    let n_ctx = fields.whole("context", 2, N_CTX_MAX as u64)?.map(|n| n as usize);
    Ok((pin, n_ctx))
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::super::fields::parse_json;
    use super::*;
    use crate::engine::Code;

    fn read(body: &str) -> Result<(Ask, Input), Fault> {
        let mut fields = Fields::new(parse_json(body.as_bytes())?, "", false)?;
        let (input, _) = native_input(&mut fields)?;
        let ask = native(&mut fields)?;
        fields.finish()?;
        Ok((ask, input))
    }

    #[test]
    fn neutral_values_pass_and_others_name_their_field() {
        let neutral = r#"{"input":"a","min_p":0,"repeat_penalty":1.0,"logit_bias":{},"tools":[],"tool_choice":"auto",
            "cache":true,"schema":null,"stop":null,"class":"background","deadline_ms":5,"seed":9007199254740991}"#;
        let (ask, _) = read(neutral).unwrap();
        assert_eq!(
            (ask.class, ask.deadline_ms, ask.sampling.seed),
            (Class::Background, Some(5), Some(sampling::SEED_MAX))
        );
        for (field, param, code) in [
            (r#""logprobs":21"#, "logprobs", Code::InvalidValue),
            (r#""logprobs":true"#, "logprobs", Code::InvalidValue),
            (r#""reasoning_effort":"max""#, "reasoning_effort", Code::InvalidValue),
            (r#""max_tokens":4,"min_tokens":5"#, "min_tokens", Code::InvalidValue),
            (r#""schema":{}"#, "schema", Code::UnsupportedField),
            (r#""temperature":2.5"#, "temperature", Code::InvalidValue),
            (r#""temperature":true"#, "temperature", Code::InvalidValue),
            (r#""top_p":0"#, "top_p", Code::InvalidValue),
            (r#""max_tokens":0"#, "max_tokens", Code::InvalidValue),
            (r#""max_tokens":1.0"#, "max_tokens", Code::InvalidValue),
            (r#""seed":9007199254740992"#, "seed", Code::InvalidValue),
            (r#""stop":["a",""]"#, "stop", Code::InvalidValue),
            (r#""stop":["1","2","3","4","5","6","7","8","9"]"#, "stop", Code::InvalidValue),
            (r#""class":"fast""#, "class", Code::InvalidValue),
            (r#""tokens":[1]"#, "input", Code::InvalidValue),
            (r#""frobnicate":1"#, "frobnicate", Code::UnknownField),
        ] {
            let fault = read(&format!(r#"{{"input":"a",{field}}}"#)).expect_err(field);
            assert_eq!((fault.code, fault.param.as_deref()), (code, Some(param)), "{field}");
            assert!(fault.message.contains(param), "{}", fault.message);
        }
    }

    #[test]
    fn messages_are_read_whole_or_not_at_all() {
        let chat = |message: &str| read(&format!(r#"{{"messages":[{message}]}}"#));
        let sdk = r#"{"role":"assistant","content":"a","refusal":null,"annotations":[],"audio":null,
            "function_call":null,"tool_calls":null}"#;
        assert!(chat(sdk).is_ok());
        let (_, input) =
            chat(r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#)
                .unwrap();
        assert_eq!(input, Input::Chat(vec![Message { role: Role::User, content: "ab".into() }]));
        for (message, param) in [
            (
                r#"{"role":"user","content":[{"type":"image_url","image_url":{}}]}"#,
                "messages[0].content[0].type",
            ),
            (r#"{"role":"tool","content":"x"}"#, "messages[0].role"),
            (r#"{"role":"user"}"#, "messages[0].content"),
            (r#"{"content":"x"}"#, "messages[0].role"),
            (r#"{"role":"user","content":"x","mood":1}"#, "messages[0].mood"),
            (r#""hello""#, "messages[0]"),
            ("", "messages"),
        ] {
            assert_eq!(chat(message).unwrap_err().param.as_deref(), Some(param), "{message}");
        }
    }
}
