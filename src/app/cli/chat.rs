//! A conversation in the terminal.
#![expect(clippy::print_stderr, reason = "this file talks with a person at a terminal")]

use std::io::IsTerminal;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::backend::Backend;
use super::show::Show;
use super::{Failure, HowArgs};
use crate::engine::{Input, Message, Role};

/// Talks until end of input.
pub(super) fn run(how: &HowArgs, system: Option<String>) -> Result<(), Failure> {
    let mut backend = Backend::open(how)?;
    let mut editor =
        DefaultEditor::new().map_err(|e| Failure::usage(format!("the terminal cannot be read: {e}")))?;
    let mut messages: Vec<Message> =
        system.into_iter().map(|content| Message { role: Role::System, content }).collect();
    let mut show = Show::new(true);
    if std::io::stdin().is_terminal() {
        eprintln!("Ctrl-D ends the conversation, /new begins another.");
    }
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(e) => return Err(Failure::usage(format!("the terminal cannot be read: {e}"))),
        };
        match line.trim() {
            "" => continue,
            "/new" => {
                messages.retain(|m| m.role == Role::System);
                continue;
            }
            _ => {}
        }
        // History is a comfort; a line that it does not take is no failure.
        drop(editor.add_history_entry(&line));
        messages.push(Message { role: Role::User, content: line });
        match backend.generate(&how.question(Input::Chat(messages.clone())), &mut show) {
            Ok(content) => messages.push(Message { role: Role::Assistant, content }),
            Err(failure) if failure.code == super::EXIT_USAGE && !failure.message.is_empty() => {
                super::show::error(&failure.message);
                // What was refused is not part of the conversation.
                messages.pop();
            }
            Err(failure) => return Err(failure),
        }
    }
}
