//! `/v1/embeddings`: texts as vectors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Response;
use serde::Serialize;
use serde_json::Value;

use crate::base::limits::N_EMBED_MAX;
use crate::door::ask;
use crate::door::embed::{Embed, Vectors};
use crate::door::fields::{Fields, invalid, missing, parse_json, wrong};
use crate::engine::{Caller, Code, Engine, Fault, Input};

use super::body::{self, Body};

/// What is answered, as OpenAI has it.
#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Item>,
    model: String,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    sotto: Option<Cut>,
}

/// Which texts were longer than the model reads, from 0.
#[derive(Serialize)]
struct Cut {
    truncated: Vec<usize>,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    /// 32-bit floats with the low byte first.
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// What a body asks for.
pub(super) struct Asked {
    embed: Embed,
    inputs: Vec<Input>,
    in_base64: bool,
}

/// What a body asks for, and the fields in it that are ignored.
pub(super) fn read(bytes: &[u8], lenient: bool) -> Result<(Asked, Vec<String>), Fault> {
    let mut fields = Fields::new(parse_json(bytes)?, "", lenient)?;
    let mut embed = Embed::take(&mut fields)?;
    fields.text("user")?;
    if let Some(mut sotto) = fields.object("sotto")? {
        embed.take_service(&mut sotto)?;
        fields.close(sotto)?;
    }
    let in_base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(invalid("encoding_format", "allowed is float or base64")),
    };
    let inputs = inputs(&mut fields)?;
    Ok((Asked { embed, inputs, in_base64 }, fields.finish()?))
}

/// The vectors.
pub(super) async fn answer(engine: &Engine, caller: Caller, asked: Asked) -> Result<Response<Body>, Fault> {
    let Asked { embed, inputs, in_base64 } = asked;
    let Vectors { model, vectors, n_tokens, truncated } = embed.run(engine, caller, inputs, "input").await?;
    let base64 = |vector: Vec<f32>| {
        let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
        Numbers::Base64(STANDARD.encode(bytes))
    };
    let item = |(index, vector)| Item {
        object: "embedding",
        index,
        embedding: if in_base64 { base64(vector) } else { Numbers::Floats(vector) },
    };
    let data = vectors.into_iter().enumerate().map(item).collect();
    let usage = Usage { prompt_tokens: n_tokens, total_tokens: n_tokens };
    let sotto = (!truncated.is_empty()).then_some(Cut { truncated });
    let text = serde_json::to_string(&List { object: "list", data, model, usage, sotto })
        .map_err(|e| Fault::new(Code::Internal, format!("the vectors cannot be written: {e}")))?;
    Ok(body::json_text(text + "\n"))
}

/// One text or several, or the tokens of one or several.
fn inputs(fields: &mut Fields) -> Result<Vec<Input>, Fault> {
    let list = match fields.take("input") {
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(wrong("input", &other, "a text, an array of texts, or token ids")),
        None => return Err(missing("input", "give the text, or an array of texts")),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![ask::tokens(list, "input")?]);
    }
    if list.len() > N_EMBED_MAX {
        let what = format!(
            "got {} texts, allowed are {N_EMBED_MAX}; send the others in a call of their own",
            list.len()
        );
        return Err(invalid("input", what));
    }
    let one = |(i, value): (usize, Value)| match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(tokens) => ask::tokens(tokens, &format!("input[{i}]")),
        other => Err(wrong(&format!("input[{i}]"), &other, "a text, or an array of token ids")),
    };
    list.into_iter().enumerate().map(one).collect()
}
