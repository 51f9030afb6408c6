//! From what is asked to tokens: texts as they stand, conversations through the model's template.

use std::path::Path;
use std::sync::Mutex;

use super::loaded::Loaded;
use super::metrics::lock;
use super::{Code, Effort, Fault, Input, Message, Request, Role, Task};
use crate::base::Token;
use crate::base::limits::{ATTN_BLOCK, INPUT_BYTES_MAX};
use crate::os::clock;
use crate::side::render::{self, RenderError};
use crate::text::{Chat, Json, Moment, Special, Template, TemplateInput, TextError};

/// Seconds of a day, whose date a template may tell.
const DAY_S: u64 = 86_400;

/// The prompt's tokens, and whether a conversation had to do without a template.
pub(super) fn tokenize(
    model: &Loaded,
    request: &Request,
    renderer: Option<&Path>,
) -> Result<(Vec<Token>, bool), Fault> {
    let field = request.input_field;
    let tok = &model.tokenizer;
    let no_template = matches!(request.input, Input::Chat(_)) && model.template().is_none();
    let thinks = request.effort != Effort::None;
    if thinks && !(matches!(request.input, Input::Chat(_)) && model.template().is_some()) {
        return Err(no_thinking(&model.id));
    }
    let mut tokens = Vec::new();
    match &request.input {
        Input::Text(text) => {
            bounded("a text", text.len(), field)?;
            if tok.add_bos() {
                tokens.extend(tok.bos());
            }
            tok.encode(text, Special::AsText, &mut tokens);
            if request.task != Task::Generate {
                tokens.extend(tok.close());
            }
        }
        Input::Chat(messages) => tokens = encode_chat(model, messages, request.effort, renderer, field)?,
        Input::Tokens(ids) => {
            let n = model.n_vocab();
            if let Some(i) = ids.iter().position(|t| t.index() >= n) {
                let message = format!("token {} is not in the vocabulary of {n}", ids[i].0);
                return Err(Fault::new(Code::InvalidValue, message).at(format!("{field}[{i}]")));
            }
            tokens.extend_from_slice(ids);
        }
    }
    Ok((tokens, no_template))
}

pub(super) fn bounded(what: &str, bytes: usize, field: &str) -> Result<(), Fault> {
    match bytes > INPUT_BYTES_MAX {
        true => {
            let message = format!("{what} of {bytes} bytes, at most {INPUT_BYTES_MAX} are taken");
            Err(Fault::new(Code::BodyTooLarge, message).at(field))
        }
        false => Ok(()),
    }
}

/// The tokens of a conversation, ready for its answer; without a template, of its texts one after the other.
pub(super) fn encode_chat(
    model: &Loaded,
    messages: &[Message],
    effort: Effort,
    renderer: Option<&Path>,
    field: &str,
) -> Result<Vec<Token>, Fault> {
    bounded("messages", messages.iter().map(|m| m.content.len()).sum(), field)?;
    let chat = Chat {
        messages: messages.iter().map(|m| Json::message(m.role.as_str(), &m.content)).collect(),
        variables: thinking(effort),
        must_read: match effort {
            Effort::None => Vec::new(),
            _ => SWITCHES.iter().map(|&name| name.to_owned()).collect(),
        },
        add_generation_prompt: true,
        moment: Moment::from_unix(clock::unix_s()),
    };
    let render = |input: &TemplateInput| match (model.template(), renderer) {
        (None, _) => Ok(input.chat.contents().join("\n\n")),
        (Some(template), Some(program)) => render::render(program, template, input),
        (Some(template), None) => Ok(Template::new(template)?.render(input)?),
    };
    model.tokenizer.encode_chat(render, &chat).map_err(|e| {
        let (code, id) = (render_code(&e), &model.id);
        if let RenderError::Text(TextError::Unread { .. }) = e {
            return no_thinking(id);
        }
        Fault::new(code, format!("the chat template of model {id} refuses the conversation: {e}")).at(field)
    })
}

/// The tokens that every conversation in a model's template begins with, whoever speaks: they are nobody's own.
#[derive(Debug, Default)]
pub(super) struct Common(Mutex<Vec<Beginning>>);

/// Of a day and an effort, which templates may tell of.
#[derive(Debug)]
struct Beginning {
    day: u64,
    effort: Effort,
    tokens: Vec<Token>,
}

impl Common {
    /// How many of `prompt`'s first tokens they are.
    pub(super) fn of(
        &self,
        model: &Loaded,
        effort: Effort,
        renderer: Option<&Path>,
        prompt: &[Token],
    ) -> usize {
        // Nothing shorter is shared.
        if prompt.len() < ATTN_BLOCK || model.template().is_none() {
            return 0;
        }
        let day = clock::unix_s() / DAY_S;
        let mut all = lock(&self.0);
        all.retain(|known| known.day == day);
        if all.iter().all(|known| known.effort != effort) {
            let tokens = beginning(model, effort, renderer);
            all.push(Beginning { day, effort, tokens });
        }
        let known = all.iter().find(|known| known.effort == effort).map_or(&[][..], |known| &known.tokens);
        if prompt.starts_with(known) { known.len() } else { 0 }
    }
}

/// What two conversations that have nothing in common begin with. One that the template refuses has nothing.
fn beginning(model: &Loaded, effort: Effort, renderer: Option<&Path>) -> Vec<Token> {
    let said = |content: &str| {
        let message = Message { role: Role::User, content: content.to_owned() };
        encode_chat(model, &[message], effort, renderer, "messages").unwrap_or_default()
    };
    let (one, other) = (said("a"), said("7 times"));
    let n = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    one[..n].to_vec()
}

/// Variables by which templates let the model think.
const SWITCHES: [&str; 3] = ["enable_thinking", "thinking", "reasoning_effort"];

/// What a template is told of `effort`.
fn thinking(effort: Effort) -> Vec<(String, Json)> {
    let asked = effort != Effort::None;
    let mut variables = vec![("enable_thinking".to_owned(), asked.into())];
    if asked {
        variables.push(("thinking".to_owned(), true.into()));
        variables.push(("reasoning_effort".to_owned(), effort.as_str().into()));
    }
    variables
}

fn no_thinking(id: &str) -> Fault {
    let message =
        format!("reasoning_effort: the chat template of model {id} has no switch for it; leave it out");
    Fault::new(Code::UnsupportedField, message).at("reasoning_effort")
}

fn render_code(e: &RenderError) -> Code {
    match e {
        RenderError::Process { .. } => Code::Internal,
        _ => Code::InvalidValue,
    }
}
