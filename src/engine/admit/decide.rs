//! What is decided of one request or text: may it be asked for, and what are its tokens.

use std::path::Path;

use super::item::{Text, Tokenized};
use crate::base::Token;
use crate::base::limits::{N_STOP_MAX, STOP_BYTES_MAX};
use crate::engine::loaded::Loaded;
use crate::engine::prompt::{bounded, encode_chat, tokenize};
use crate::engine::{Caching, Code, Effort, Fault, Input, Request, Task};
use crate::text::Special;

/// A prompt that was admitted.
pub(super) struct Prompt {
    pub tokens: Vec<Token>,
    /// Those that any conversation begins with.
    pub n_common: usize,
    /// It is a conversation and the model has no template.
    pub no_template: bool,
    /// The text was cut.
    pub truncated: bool,
}

/// The tokens of a text.
pub(super) fn read(model: &Loaded, text: &Text, renderer: Option<&Path>) -> Result<Tokenized, Fault> {
    match text {
        Text::Plain { text, add_special, parse_special } => {
            bounded("a text", text.len(), "text")?;
            let tok = &model.tokenizer;
            let mut tokens = Vec::new();
            if *add_special && tok.add_bos() {
                tokens.extend(tok.bos());
            }
            let special = if *parse_special { Special::Parse } else { Special::AsText };
            tok.encode(text, special, &mut tokens);
            Ok(Tokenized { tokens, prompt: None })
        }
        Text::Chat(messages) => {
            let tokens = encode_chat(model, messages, Effort::None, renderer, "messages")?;
            let prompt = model.tokenizer.decode_with_control(&tokens);
            Ok(Tokenized { tokens, prompt: Some(String::from_utf8_lossy(&prompt).into_owned()) })
        }
    }
}

/// Whether a request may be asked for, whatever its model and its text.
pub(super) fn check(request: &Request) -> Result<(), Fault> {
    check_stops(request)?;
    if request.cache == Caching::Public && request.caller.uid != 0 {
        let message =
            "publish: what a request begins with is published for all users by root alone; leave it out";
        return Err(Fault::new(Code::NotAuthorized, message).at("publish"));
    }
    Ok(())
}

/// The prompt of a request for `model`, if it can be served.
pub(super) fn admit(model: &Loaded, request: &Request, renderer: Option<&Path>) -> Result<Prompt, Fault> {
    check_bias(model, request)?;
    if request.task == Task::Generate && !model.generates() {
        let message = format!("model {} makes vectors of texts and continues none; name another", model.id);
        return Err(Fault::new(Code::UnsupportedModel, message).at("model"));
    }
    if request.task != Task::Generate && !model.embeds() {
        let message = format!("model {} makes no vectors of texts; name another", model.id);
        return Err(Fault::new(Code::UnsupportedModel, message).at("model"));
    }
    let (mut tokens, no_template) = tokenize(model, request, renderer)?;
    let n_ctx = model.n_ctx;
    let truncated = request.task == (Task::Embed { truncate: true }) && tokens.len() > n_ctx;
    if truncated {
        // What closes a text still does.
        let close = model.tokenizer.close().filter(|close| tokens.last() == Some(close));
        tokens.truncate(n_ctx - usize::from(close.is_some()));
        tokens.extend(close);
    }
    if tokens.is_empty() {
        return Err(Fault::new(Code::InvalidValue, "the prompt has 0 tokens, at least 1 is needed")
            .at(request.input_field));
    }
    // At least one token of an answer.
    let n = tokens.len() + usize::from(request.task == Task::Generate);
    if n > n_ctx {
        let answer = if n > tokens.len() { " with at least 1 of the answer" } else { "" };
        let larger = match n_ctx < model.n_ctx_train() {
            true => ", or give the model a larger context",
            false => "",
        };
        let message = format!(
            "the prompt has {} tokens, model {} has room for {n_ctx}{answer}; shorten it{larger}",
            tokens.len(),
            model.id
        );
        let fault = Fault::new(Code::ContextTooLong, message).at(request.input_field);
        return Err(fault.room(n as u64, n_ctx as u64));
    }
    let n_common = match &request.input {
        Input::Chat(_) => model.common.of(model, request.effort, renderer, &tokens),
        _ => 0,
    };
    Ok(Prompt { tokens, n_common, no_template, truncated })
}

fn check_stops(request: &Request) -> Result<(), Fault> {
    let n = request.stop.len();
    if n > N_STOP_MAX {
        return Err(Fault::new(
            Code::InvalidValue,
            format!("{n} stop strings, at most {N_STOP_MAX} are taken"),
        )
        .at("stop"));
    }
    for (i, s) in request.stop.iter().enumerate() {
        if s.is_empty() || s.len() > STOP_BYTES_MAX {
            let message = format!("a stop string of {} bytes, 1 to {STOP_BYTES_MAX} are taken", s.len());
            return Err(Fault::new(Code::InvalidValue, message).at(format!("stop[{i}]")));
        }
    }
    Ok(())
}

fn check_bias(model: &Loaded, request: &Request) -> Result<(), Fault> {
    let n = model.n_vocab();
    match request.sampling.logit_bias.iter().find(|(token, _)| token.index() >= n) {
        Some((token, _)) => {
            let message = format!("logit_bias: token {} is not in the vocabulary of {n}", token.0);
            Err(Fault::new(Code::InvalidValue, message).at("logit_bias"))
        }
        None => Ok(()),
    }
}
