//! `sotto`: asks a daemon, or runs a model in its own process.

mod backend;
mod chat;
mod inspect;
mod sampling;
mod show;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::backend::{Backend, Question};
use self::sampling::SamplingArgs;
use super::{EXIT_INTERNAL, EXIT_USAGE};
use crate::base::limits::INPUT_BYTES_MAX;
use crate::engine::{Fault, Input, Message, Role};

/// Where the daemon listens when no flag says otherwise.
pub(super) const SOCKET: &str = "/run/sotto/api.sock";

/// A language model as a system service on small machines.
#[derive(Debug, Parser)]
#[command(name = "sotto", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask one question and print the answer
    Ask(AskArgs),
    /// Talk with the model; every answer knows the conversation so far
    Chat(ChatArgs),
    /// Continue a text, byte for byte, without any template
    Complete(CompleteArgs),
    /// Tell what a model file holds and what it needs
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct AskArgs {
    /// The question; `-` or nothing reads it from standard input
    question: Option<String>,
    /// Instructions that come before the question
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct ChatArgs {
    /// Instructions that come before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct CompleteArgs {
    /// The text to continue; `-` or nothing reads it from standard input
    prompt: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A model file; without it the model in the box
    file: Option<PathBuf>,
    /// Positions to count the memory for
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    context: u32,
}

/// Flags of everything that generates.
#[derive(Debug, Args)]
struct HowArgs {
    /// Model file to run in this process, or the name of one that the daemon has
    #[arg(long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// Run the model in this process, without a daemon; without --model the one in the box
    #[arg(long)]
    local: bool,
    /// Socket of the daemon
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Most tokens to generate [default: as many as the context has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Positions of the context, in this process [default: 4096, at most the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    context: Option<u32>,
    /// Threads, in this process [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
}

impl HowArgs {
    fn question(&self, input: Input) -> Question {
        Question {
            input,
            sampling: self.sampling.sampling(),
            effort: self.sampling.effort(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
        }
    }
}

/// Why a command failed, with its exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: EXIT_USAGE, message: message.to_string() }
    }

    fn internal(message: impl std::fmt::Display) -> Self {
        Self { code: EXIT_INTERNAL, message: message.to_string() }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { code: super::exit_code(fault.code), message: fault.to_string() }
    }
}

/// Runs the command line of this process; returns the exit code.
#[must_use]
pub fn run() -> u8 {
    if let Some(code) = super::as_renderer() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors; clap picks the stream.
            drop(e.print());
            return if e.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    let done = match cli.command {
        Command::Ask(args) => ask(args),
        Command::Chat(args) => chat::run(&args.how, args.system),
        Command::Complete(args) => complete(args),
        Command::Inspect(args) => inspect::run(args.file, args.context as usize),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            show::error(&failure.message);
            failure.code
        }
    }
}

fn ask(args: AskArgs) -> Result<(), Failure> {
    let question = text(args.question, "question")?;
    let mut messages: Vec<Message> =
        args.system.into_iter().map(|content| Message { role: Role::System, content }).collect();
    messages.push(Message { role: Role::User, content: question });
    let mut backend = Backend::open(&args.how)?;
    let question = args.how.question(Input::Chat(messages));
    let mut show = show::Show::new(true);
    backend.generate(&question, &mut show)?;
    Ok(())
}

fn complete(args: CompleteArgs) -> Result<(), Failure> {
    let prompt = text(args.prompt, "prompt")?;
    let mut backend = Backend::open(&args.how)?;
    let question = args.how.question(Input::Text(prompt));
    let mut show = show::Show::new(false);
    backend.generate(&question, &mut show)?;
    Ok(())
}

/// The argument, or standard input without its last newline.
fn text(argument: Option<String>, what: &str) -> Result<String, Failure> {
    match argument {
        Some(text) if text != "-" => Ok(text),
        None if std::io::stdin().is_terminal() => {
            Err(Failure::usage(format!("no {what}: give it as an argument, or pipe it in")))
        }
        _ => {
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
    }
}
