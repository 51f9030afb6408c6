//! A conversation in the terminal.
#![expect(clippy::print_stderr, reason = "this file talks with a person at a terminal")]

use std::path::PathBuf;

use clap::Args;

use super::backend::Backend;
use super::lines::{Entry, Lines};
use super::show::{self, Show};
use super::{Failure, HowArgs};
use crate::base::limits::INPUT_BYTES_MAX;
use crate::engine::{Code, Input, Message, Role};

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// Instructions that come before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Keep nothing of what is typed
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    how: HowArgs,
}

const HELP: &str = "\
/reset          begins the conversation anew; the instructions stay
/system TEXT    gives other instructions and begins anew; without TEXT: tells them
/help           this
/exit           leaves, as Ctrl-D does
A line that ends with \\ goes on in the next; \"\"\" opens and closes many lines.
Ctrl-C stops an answer. Arrows recall lines, but those that begin with a space.";

const RESET: &str = "/reset begins the conversation anew";

/// Talks until end of input.
pub(super) fn run(args: ChatArgs) -> Result<(), Failure> {
    let mut backend = Backend::open(&args.how)?;
    let mut lines = Lines::open(history_file().filter(|_| !args.no_history))?;
    let person = lines.terminal();
    backend.stoppable = person;
    let mut show = Show::new(true);
    show.stoppable = person;
    let mut talk = Talk { backend, how: args.how, messages: Vec::new(), show };
    talk.begin(args.system);
    if person {
        eprintln!("/help lists the commands, Ctrl-D leaves.");
    }
    loop {
        let done = match lines.entry()? {
            Entry::End => return Ok(()),
            Entry::Interrupted => {
                eprintln!("/exit or Ctrl-D leaves.");
                continue;
            }
            Entry::Command(line) => match talk.command(&line) {
                Ok(true) => continue,
                Ok(false) => return Ok(()),
                Err(failure) => Err(failure),
            },
            Entry::NotText => {
                Err(Failure::usage("what was typed is no UTF-8; set the terminal to it, and type it again"))
            }
            Entry::TooLong => Err(Failure::usage(format!(
                "a message has more than the {INPUT_BYTES_MAX} bytes that are taken; send less at a time"
            ))),
            Entry::Message(text) if text.trim().is_empty() => continue,
            Entry::Message(text) => talk.say(text),
        };
        match done {
            // A person keeps the conversation, and can say it again or in another way; a script is told by the exit code.
            Err(failure) if person => show::error(&failure.message),
            done => done?,
        }
    }
}

/// A conversation under way.
struct Talk {
    backend: Backend,
    how: HowArgs,
    messages: Vec<Message>,
    show: Show,
}

impl Talk {
    /// Forgets everything and gives these instructions.
    fn begin(&mut self, system: Option<String>) {
        self.messages = system.into_iter().map(|content| Message { role: Role::System, content }).collect();
    }

    /// The instructions.
    fn system(&self) -> Option<String> {
        let first = self.messages.first().filter(|m| m.role == Role::System);
        first.map(|m| m.content.clone())
    }

    /// Does what a line says; false ends the conversation.
    fn command(&mut self, line: &str) -> Result<bool, Failure> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (name, rest.trim()) {
            ("/exit", "") => return Ok(false),
            ("/help", "") => eprintln!("{HELP}"),
            ("/reset", "") => self.begin(self.system()),
            ("/system", "") => match self.system() {
                Some(text) => eprintln!("{}", show::plain(&text)),
                None => eprintln!("there are no instructions; /system TEXT gives some"),
            },
            ("/system", text) => self.begin(Some(text.into())),
            _ => {
                let message =
                    format!("no such command: {line}; /help lists them, a space before it sends it as text");
                return Err(Failure::usage(message));
            }
        }
        Ok(true)
    }

    /// Says `text` and shows the answer.
    fn say(&mut self, text: String) -> Result<(), Failure> {
        self.messages.push(Message { role: Role::User, content: text });
        let question = self.how.question(Input::Chat(self.messages.clone()));
        let answer = match self.backend.generate(&question, &mut self.show) {
            Ok(answer) => answer,
            Err(failure) => {
                // What was refused is not part of the conversation.
                self.messages.pop();
                return Err(match failure.is(Code::ContextTooLong) {
                    true => Failure { message: format!("{}; {RESET}", failure.message), ..failure },
                    false => failure,
                });
            }
        };
        if answer.done.is_none() {
            show::note("stopped");
        }
        if answer.done.is_none() && answer.text.is_empty() {
            self.messages.pop();
            return Ok(());
        }
        if let Some(n) = answer.filled_context() {
            show::note(&format!("the context is full at {n} tokens, the answer is cut; {RESET}"));
        }
        self.messages.push(Message { role: Role::Assistant, content: answer.text });
        Ok(())
    }
}

/// Where what was typed is kept: in the user's folder for state (XDG Base Directory Specification, 0.8).
fn history_file() -> Option<PathBuf> {
    let home = || Some(crate::app::folder("HOME")?.join(".local/state"));
    let state = crate::app::folder("XDG_STATE_HOME").or_else(home)?;
    Some(state.join("sotto/chat-history"))
}
