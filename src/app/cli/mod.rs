//! `sotto`: asks a daemon, or runs a model in its own process.

mod ask;
mod backend;
mod bench;
mod ceilings;
mod chat;
#[cfg(any(feature = "dbus", feature = "http"))]
mod config;
#[cfg(feature = "http")]
mod doctor;
#[cfg(feature = "http")]
mod embed;
mod import;
mod inspect;
mod lines;
#[cfg(feature = "http")]
mod models;
mod output;
mod pack;
mod perplexity;
mod sampling;
mod show;
#[cfg(feature = "http")]
mod status;
mod tokenize;

#[cfg(feature = "http")]
use std::path::Path;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;
#[cfg(feature = "http")]
use tokio::runtime::{Builder, Runtime};

use self::backend::Question;
use self::sampling::SamplingArgs;
use super::{EXIT_INTERNAL, EXIT_USAGE};
#[cfg(feature = "http")]
use crate::door::client::Client;
use crate::door::done;
use crate::engine::{Code, Fault, Input};
use crate::model::Pack;

/// Where the daemon listens when no flag says otherwise.
#[cfg(any(feature = "dbus", feature = "http"))]
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
    Ask(ask::AskArgs),
    /// Talk with the model; every answer knows the conversation so far
    Chat(chat::ChatArgs),
    /// Continue a text, byte for byte, without any template
    Complete(ask::CompleteArgs),
    /// Tell what a model file holds and what it needs
    Inspect(inspect::InspectArgs),
    /// Write a model in the order in which kernels read it, to be mapped for ever after
    Pack(pack::PackArgs),
    /// Make a GGUF file of a directory of Hugging Face or of an ONNX graph's weights
    Import(import::ImportArgs),
    /// Tell the tokens of a text, or the text of tokens
    Tokenize(tokenize::TokenizeArgs),
    /// Turn texts into vectors
    #[cfg(feature = "http")]
    Embed(embed::EmbedArgs),
    /// Measure how well a model foretells a text
    Perplexity(perplexity::PerplexityArgs),
    /// Measure how fast a model runs here
    Bench(bench::BenchArgs),
    /// Check or show the daemon's configuration
    #[cfg(any(feature = "dbus", feature = "http"))]
    Config(config::ConfigArgs),
    /// Tell what the daemon does now: models, queue, memory, temperature, your generations
    #[cfg(feature = "http")]
    Status(status::StatusArgs),
    /// List your generations that are under way
    #[cfg(feature = "http")]
    Ps(status::PsArgs),
    /// Cancel a generation
    #[cfg(feature = "http")]
    Cancel(status::CancelArgs),
    /// Load a model into the daemon, and keep it there
    #[cfg(feature = "http")]
    Load(models::LoadArgs),
    /// Let the daemon let go of a model
    #[cfg(feature = "http")]
    Unload(models::UnloadArgs),
    /// Look for what is amiss on this machine, and say what helps
    #[cfg(feature = "http")]
    Doctor(doctor::DoctorArgs),
}

/// Which daemon is asked.
#[cfg(feature = "http")]
#[derive(Debug, Args)]
struct SocketArgs {
    /// Socket of the daemon [default: /run/sotto/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[cfg(feature = "http")]
impl SocketArgs {
    fn path(&self) -> &Path {
        self.socket.as_deref().unwrap_or(Path::new(SOCKET))
    }

    /// Its client, and what to wait with.
    fn client(&self) -> Result<(Client, Runtime), Failure> {
        let runtime = Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(|e| Failure::internal(format!("cannot wait for an answer: {e}")))?;
        Ok((Client::new(self.path()), runtime))
    }
}

/// Flags of everything that generates.
#[derive(Debug, Default, Args)]
struct HowArgs {
    /// Model file to run in this process, or the name of one that the daemon has
    #[arg(long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// Run the model in this process, without a daemon; without --model the one in the box
    #[arg(long)]
    local: bool,
    /// Socket of the daemon [default: /run/sotto/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
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
    /// How weights are read, in this process: as the file has them (off), packed into memory, or into a file of the
    /// cache [default: cache]
    #[arg(long, value_name = "HOW", value_parser = bench::pack)]
    pack: Option<Pack>,
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
    /// The fields of the event `error`, where the engine or the daemon says so.
    error: Option<Value>,
}

impl Failure {
    fn new(code: u8, message: impl std::fmt::Display) -> Self {
        Self { code, message: message.to_string(), error: None }
    }

    fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(EXIT_USAGE, message)
    }

    /// Whether the engine or the daemon calls it so.
    fn is(&self, code: Code) -> bool {
        self.error.as_ref().is_some_and(|error| error["code"] == code.as_str())
    }

    fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(EXIT_INTERNAL, message)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let error = Some(done::error_fields(&fault));
        Self { code: super::exit_code(fault.code), message: fault.to_string(), error }
    }
}

/// The definition of all commands and flags, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
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
        Command::Ask(args) => ask::ask(args),
        Command::Chat(args) => chat::run(args),
        Command::Complete(args) => ask::complete(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Tokenize(args) => tokenize::run(args),
        #[cfg(feature = "http")]
        Command::Embed(args) => embed::run(args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        #[cfg(any(feature = "dbus", feature = "http"))]
        Command::Config(args) => config::run(&args),
        #[cfg(feature = "http")]
        Command::Status(args) => status::run(&args),
        #[cfg(feature = "http")]
        Command::Ps(args) => status::ps(&args),
        #[cfg(feature = "http")]
        Command::Cancel(args) => status::cancel(&args),
        #[cfg(feature = "http")]
        Command::Load(args) => models::load(&args),
        #[cfg(feature = "http")]
        Command::Unload(args) => models::unload(&args),
        #[cfg(feature = "http")]
        Command::Doctor(args) => doctor::run(&args),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            show::error(&failure.message);
            failure.code
        }
    }
}
