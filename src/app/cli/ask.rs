//! One question, or one text to continue.

use std::io::{IsTerminal, Read};

use clap::Args;
use serde_json::json;

use super::backend::Backend;
use super::show::Show;
use super::{Failure, HowArgs, Question};
use crate::base::limits::INPUT_BYTES_MAX;
use crate::engine::{Input, Message, Role};

#[derive(Debug, Args)]
pub(super) struct AskArgs {
    /// The question. What comes on standard input follows it after a blank line; without a question, or with `-`,
    /// standard input is the question
    question: Vec<String>,
    /// Instructions that come before the question
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON object when the answer is complete
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompleteArgs {
    /// The text to continue; `-` or nothing reads it from standard input
    prompt: Option<String>,
    /// Print one JSON object when the answer is complete
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: HowArgs,
}

/// Asks a question through the model's chat template.
pub(super) fn ask(args: AskArgs) -> Result<(), Failure> {
    let words = args.question.join(" ");
    let question = match (words.as_str(), std::io::stdin().is_terminal()) {
        ("", true) => return Err(nothing("question")),
        (_, true) => words,
        ("" | "-", false) => input()?,
        (_, false) => match input()? {
            input if input.is_empty() => words,
            input => format!("{words}\n\n{input}"),
        },
    };
    if question.is_empty() {
        return Err(Failure::usage("the question has 0 bytes; give it as an argument, or pipe it in"));
    }
    let mut messages: Vec<Message> =
        args.system.into_iter().map(|content| Message { role: Role::System, content }).collect();
    messages.push(Message { role: Role::User, content: question });
    answer(&args.how, args.how.question(Input::Chat(messages)), args.json, true)
}

/// Continues a text as it stands.
pub(super) fn complete(args: CompleteArgs) -> Result<(), Failure> {
    let prompt = text(args.prompt, "prompt")?;
    answer(&args.how, args.how.question(Input::Text(prompt)), args.json, false)
}

fn answer(how: &HowArgs, question: Question, json: bool, newline: bool) -> Result<(), Failure> {
    let backend = Backend::open(how)?;
    let mut show = if json { Show::silent() } else { Show::new(newline) };
    let answered = backend.generate(&question, &mut show);
    if json {
        match &answered {
            Ok(answer) => super::show::json(&answer.json())?,
            Err(Failure { error: Some(error), .. }) => super::show::json(&json!({ "error": error }))?,
            // Nobody who has a code for it: a daemon that died, for one.
            Err(Failure { message, .. }) => super::show::json(&json!({ "error": { "message": message } }))?,
        }
        return answered.map(drop);
    }
    let answer = answered?;
    if let Some(n) = answer.filled_context() {
        super::show::note(&format!("the context is full at {n} tokens, the answer is cut"));
    }
    Ok(())
}

fn nothing(what: &str) -> Failure {
    Failure::usage(format!("no {what}: give it as an argument, or pipe it in"))
}

/// The argument, or standard input where that is absent or `-`.
pub(super) fn text(argument: Option<String>, what: &str) -> Result<String, Failure> {
    match argument {
        Some(text) if text != "-" => Ok(text),
        None if std::io::stdin().is_terminal() => Err(nothing(what)),
        _ => input(),
    }
}

/// Standard input without its last newline.
fn input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(INPUT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::usage(format!("standard input: {e}")))?;
    if bytes.len() > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!(
            "standard input has more than the {INPUT_BYTES_MAX} bytes that are taken"
        )));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        Failure::usage(format!("standard input: no UTF-8 at byte {}", e.utf8_error().valid_up_to()))
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
