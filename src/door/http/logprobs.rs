//! How likely tokens were, in OpenAI's two shapes.

use serde_json::{Map, Number, Value, json};

use crate::engine::{Likely, Logprob};

/// Of a chat: `logprobs` of a choice.
pub(super) fn chat<'a>(told: impl IntoIterator<Item = &'a Logprob>) -> Value {
    let content: Vec<Value> = told
        .into_iter()
        .map(|one| {
            let mut value = likely(&one.drawn);
            let top: Vec<Value> = one.top.iter().map(likely).collect();
            if let Some(map) = value.as_object_mut() {
                map.insert("top_logprobs".into(), top.into());
            }
            value
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

fn likely(one: &Likely) -> Value {
    json!({ "token": text(one), "logprob": number(one.logprob), "bytes": one.bytes })
}

/// Of a completion: `logprobs` of a choice. With each token comes the number of characters before it.
pub(super) fn completion<'a>(told: impl IntoIterator<Item = (usize, &'a Logprob)>) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (offset, one) in told {
        tokens.push(Value::from(text(&one.drawn)));
        logprobs.push(number(one.drawn.logprob));
        let top: Map<String, Value> = one.top.iter().map(|top| (text(top), number(top.logprob))).collect();
        tops.push(Value::from(top));
        offsets.push(Value::from(offset));
    }
    json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
}

fn text(one: &Likely) -> String {
    String::from_utf8_lossy(&one.bytes).into_owned()
}

/// In as few digits as tell single precision apart.
fn number(x: f32) -> Value {
    x.to_string().parse::<Number>().map_or(Value::Null, Value::Number)
}
