//! Options of a call (`a{sv}`) as the fields that the native route has: same names, same ranges.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use zbus::zvariant::Type;
use zbus::{OwnedVariant, Signature, Variant};

use crate::base::limits::{INPUT_BYTES_MAX, NAME_SHOWN_BYTES_MAX};
use crate::door::ask::{self, Ask};
use crate::door::fields::{Fields, invalid, parse_json};
use crate::door::id::cut;
use crate::engine::{Code, Fault, Input, Message};

/// What is written to a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Events, one per line.
    Events,
    /// The answer's text and nothing else.
    Text,
}

/// A call's input and options.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) input: Input,
    /// `None`: not given.
    pub(super) format: Option<Format>,
}

/// Options of a call, `a{sv}`; a key that stands twice is refused, not decided between.
#[derive(Debug)]
pub(super) struct Options(Vec<(String, OwnedVariant)>);

impl Options {
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(own, _)| own == key)
    }
}

impl Type for Options {
    const SIGNATURE: &'static Signature = <HashMap<String, OwnedVariant>>::SIGNATURE;
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Options;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("options")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Options, A::Error> {
                let (mut all, mut keys) = (Vec::new(), HashSet::new());
                while let Some((key, value)) = entries.next_entry::<String, OwnedVariant>()? {
                    if !keys.insert(key.clone()) {
                        let key = cut(&key, NAME_SHOWN_BYTES_MAX);
                        return Err(A::Error::custom(format_args!("the option `{key}` stands twice")));
                    }
                    all.push((key, value));
                }
                Ok(Options(all))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Signature that the option `key` must have.
fn signature(key: &str) -> Option<&'static str> {
    Some(match key {
        "model" | "system" | "class" | "format" | "schema" | "grammar" | "regex" | "tools"
        | "tool_choice" | "reasoning_effort" | "messages_json" => "s",
        "raw"
        | "cache"
        | "publish"
        | "parallel_tool_calls"
        | "pin"
        | "force"
        | "add_special"
        | "parse_special"
        | "normalize"
        | "truncate" => "b",
        "max_tokens" | "min_tokens" | "top_k" | "repeat_last_n" | "dry_allowed_length" | "dry_last_n"
        | "mirostat" | "deadline_ms" | "logprobs" | "context" | "dimensions" => "u",
        "seed" => "t",
        "temperature" | "top_p" | "min_p" | "typical_p" | "repeat_penalty" | "frequency_penalty"
        | "presence_penalty" | "dry_multiplier" | "dry_base" | "mirostat_tau" | "mirostat_eta" => "d",
        "stop" | "choices" | "dry_breakers" => "as",
        "messages" => "a(ss)",
        "logit_bias" => "a{ud}",
        _ => return None,
    })
}

/// A value of one of those signatures; what JSON cannot write (a number that is none) is null.
fn to_json(value: &Variant<'_>) -> Value {
    match value {
        Variant::Str(text) => text.as_str().into(),
        Variant::Bool(x) => (*x).into(),
        Variant::U32(x) => (*x).into(),
        Variant::U64(x) => (*x).into(),
        Variant::F64(x) => (*x).into(),
        Variant::Array(list) => list.inner().iter().map(to_json).collect(),
        Variant::Structure(pair) => match pair.fields() {
            [role, content] => json!({ "role": to_json(role), "content": to_json(content) }),
            _ => Value::Null,
        },
        Variant::Dict(entries) => entries
            .iter()
            .map(|(key, value)| (to_json(key).to_string(), to_json(value)))
            .collect::<Map<_, _>>()
            .into(),
        _ => Value::Null,
    }
}

fn option(key: &str, value: &Variant<'_>) -> Result<Value, Fault> {
    let Some(wanted) = signature(key) else {
        let message = format!("{}: no such option; leave it out", cut(key, NAME_SHOWN_BYTES_MAX));
        return Err(Fault::new(Code::UnknownField, message).at(key));
    };
    let got = value.value_signature().to_string();
    if got != wanted {
        return Err(invalid(
            key,
            format_args!("got the type {got}, allowed is {wanted}; numbers are not converted"),
        ));
    }
    let json = to_json(value);
    if json.is_null() {
        return Err(invalid(key, "is no finite number"));
    }
    match (key, &json) {
        // JSON inside of a string.
        ("tools" | "schema" | "messages_json", Value::String(text)) => {
            parse_json(text.as_bytes()).map_err(|e| invalid(key, e.message))
        }
        _ => Ok(json),
    }
}

/// Bytes of the texts in `value`.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(map) => map.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// The options of a call as JSON, beside its input.
///
/// # Errors
/// `body_too_large` above [`INPUT_BYTES_MAX`], else what is wrong with an option, naming it.
pub(super) fn map(input: String, options: &Options) -> Result<(Map<String, Value>, String), Fault> {
    let mut map = Map::new();
    let mut n_bytes = input.len();
    for (key, value) in &options.0 {
        let value = option(key, value)?;
        n_bytes = n_bytes.saturating_add(text_bytes(&value));
        map.insert(key.clone(), value);
    }
    if n_bytes > INPUT_BYTES_MAX {
        let message = format!(
            "the texts of the call have {n_bytes} bytes, allowed are {INPUT_BYTES_MAX}; send longer ones through the \
             socket"
        );
        return Err(Fault::new(Code::BodyTooLarge, message));
    }
    Ok((map, input))
}

/// The options of a call that generates nothing.
pub(super) fn fields(options: &Options) -> Result<Fields, Fault> {
    Fields::new(map(String::new(), options)?.0.into(), "", false)
}

/// Takes the format of a stream; `None`: not given.
pub(super) fn format(fields: &mut Fields) -> Result<Option<Format>, Fault> {
    match fields.text("format")?.as_deref() {
        None => Ok(None),
        Some("events") => Ok(Some(Format::Events)),
        Some("text") => Ok(Some(Format::Text)),
        Some(_) => Err(invalid("format", "allowed is events or text")),
    }
}

/// Reads a call that generates.
///
/// # Errors
/// As of [`map`].
pub(super) fn read(input: String, options: &Options) -> Result<Asked, Fault> {
    let (map, input) = map(input, options)?;
    let mut fields = Fields::new(map.into(), "", false)?;
    let format = format(&mut fields)?;
    let input = take_input(input, &mut fields)?;
    let ask = ask::native(&mut fields)?;
    fields.finish()?;
    Ok(Asked { ask, input, format })
}

/// What came before, under either of its names.
pub(super) fn take_history(fields: &mut Fields) -> Result<Option<Vec<Message>>, Fault> {
    let mut history = None;
    for key in ["messages", "messages_json"] {
        let Some(list) = fields.list(key)? else { continue };
        if history.is_some() {
            return Err(invalid(key, "excludes messages; give one of them"));
        }
        history = Some(ask::messages(list, key)?);
    }
    Ok(history)
}

/// `messages`, then `input`; or `input` alone and raw.
fn take_input(input: String, fields: &mut Fields) -> Result<Input, Fault> {
    let history = take_history(fields)?;
    let system = fields.text("system")?;
    match (fields.flag("raw")?.unwrap_or(false), history) {
        (true, Some(_)) => Err(invalid("raw", "a raw input has no messages; leave one out")),
        (true, None) if system.is_some() => {
            Err(invalid("system", "a raw input has no messages; leave one out"))
        }
        (true, None) => Ok(Input::Text(input)),
        // Tool turns end in a message of their own.
        (false, Some(history)) if input.is_empty() && system.is_none() => Ok(Input::Chat(history)),
        (false, history) => Ok(ask::conversation(system, history.unwrap_or_default(), input)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Role;
    use zbus::wire::serialized::{Context, Data};
    use zbus::wire::to_bytes;

    fn call(options: Vec<(&str, Variant<'_>)>) -> Result<Asked, Fault> {
        let options = options
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.try_into_owned().unwrap()))
            .collect();
        read("hi".into(), &Options(options))
    }

    #[test]
    fn options_have_the_types_of_the_interface() {
        let asked = call(vec![
            ("messages", Variant::new(vec![("system", "be brief"), ("user", "a")])),
            ("temperature", Variant::new(0.5)),
            ("max_tokens", Variant::new(7_u32)),
            ("seed", Variant::new(3_u64)),
            ("stop", Variant::new(vec!["x"])),
            ("min_p", Variant::new(0.25)),
            ("logit_bias", Variant::new(HashMap::from([(12_u32, -1.5)]))),
            ("dry_breakers", Variant::new(vec!["."])),
            ("mirostat", Variant::new(2_u32)),
            ("logprobs", Variant::new(3_u32)),
            ("reasoning_effort", Variant::new("low")),
            ("tools", Variant::new("[]")),
            ("format", Variant::new("text")),
        ])
        .unwrap();
        assert_eq!((asked.ask.max_tokens, asked.ask.sampling.seed), (Some(7), Some(3)));
        assert_eq!(asked.format, Some(Format::Text));
        let sampling = &asked.ask.sampling;
        assert_eq!((sampling.min_p, sampling.logprobs, sampling.mirostat), (Some(0.25), Some(3), true));
        assert_eq!(sampling.logit_bias, [(crate::base::Token(12), -1.5)]);
        assert_eq!(sampling.dry_breakers.as_deref(), Some(&[".".to_owned()][..]));
        assert_eq!(asked.ask.effort, crate::engine::Effort::Low);
        let Input::Chat(messages) = asked.input else { panic!("no conversation") };
        assert_eq!(
            messages.iter().map(|m| m.role).collect::<Vec<_>>(),
            [Role::System, Role::User, Role::User]
        );
        for (key, value, code) in [
            ("temperature", Variant::new(1_u32), Code::InvalidValue),
            ("temperature", Variant::new(f64::NAN), Code::InvalidValue),
            ("temperature", Variant::new(3.0), Code::InvalidValue),
            ("max_tokens", Variant::new(7_i32), Code::InvalidValue),
            ("max_tokens", Variant::new(0_u32), Code::InvalidValue),
            ("stop", Variant::new("x"), Code::InvalidValue),
            ("tools", Variant::new("["), Code::InvalidValue),
            ("schema", Variant::new("{}"), Code::UnsupportedField),
            ("regex", Variant::new("a"), Code::UnsupportedField),
            ("logprobs", Variant::new(21_u32), Code::InvalidValue),
            ("min_p", Variant::new(1.5), Code::InvalidValue),
            ("mirostat", Variant::new(1_u32), Code::InvalidValue),
            ("min_tokens", Variant::new(1_i32), Code::InvalidValue),
            ("logit_bias", Variant::new(HashMap::from([(1_u32, f64::NAN)])), Code::InvalidValue),
            ("logit_bias", Variant::new(HashMap::from([("1", 1.0)])), Code::InvalidValue),
            ("reasoning_effort", Variant::new("much"), Code::InvalidValue),
            ("format", Variant::new("xml"), Code::InvalidValue),
            ("temprature", Variant::new(1.0), Code::UnknownField),
            ("system", Variant::new("x".repeat(INPUT_BYTES_MAX)), Code::BodyTooLarge),
        ] {
            let fault = call(vec![(key, value)]).expect_err(key);
            assert_eq!(fault.code, code, "{key}: {}", fault.message);
        }
    }

    #[test]
    fn a_key_stands_once() {
        let context = Context::new(zbus::wire::LE, 0);
        let once = to_bytes(context, &HashMap::from([("raw", Variant::new(true))])).unwrap();
        let read = |bytes: &[u8]| {
            Data::new(bytes.to_vec(), context).deserialize::<Options>().map(|(o, _)| o.0.len())
        };
        assert_eq!(read(&once).unwrap(), 1);
        // Entries begin at multiples of 8, the length before them counts no padding.
        let (head, entry) = once.split_at(8);
        let mut twice = [head, entry].concat();
        twice.resize(twice.len().next_multiple_of(8), 0);
        twice.extend(entry);
        let len = twice.len() as u32 - 8;
        twice[..4].copy_from_slice(&len.to_le_bytes());
        let refused = read(&twice).unwrap_err().to_string();
        assert!(refused.contains("`raw` stands twice"), "{refused}");
    }
}
