//! Who answers: a daemon behind its socket, or an engine in this process.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};

#[cfg(feature = "http")]
use super::sampling;
use super::show::Show;
use super::{Failure, HowArgs};
use crate::app::catalog;
#[cfg(feature = "http")]
use crate::door::client::{Client, ClientEvent};
use crate::engine::{
    Caller, Class, Door, Effort, Engine, Event, Fault, GenerationId, Input, Offer, Options, Request,
    Sampling, Sink,
};
use crate::os::clock;

/// Seconds that a generation in this process may take: ten years, for nobody else waits.
const NO_DEADLINE_S: u64 = 315_360_000;

/// What to generate.
pub(super) struct Question {
    pub input: Input,
    pub sampling: Sampling,
    pub effort: Effort,
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
}

/// Who answers.
pub(super) enum Backend {
    /// A daemon, asked for this model.
    #[cfg(feature = "http")]
    Daemon { client: Client, model: Option<String>, has_template: bool },
    /// An engine of our own.
    Local(Engine),
}

/// Whether `model` means a file rather than a name: it exists, or looks like a path.
fn is_file(model: &str) -> bool {
    model.ends_with(".gguf") || model.contains('/') || Path::new(model).is_file()
}

impl Backend {
    /// The one that the flags ask for.
    pub(super) fn open(how: &HowArgs) -> Result<Self, Failure> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads SOTTO_MODEL (API text, section 6)"
        )]
        let model = how.model.clone().or_else(|| std::env::var("SOTTO_MODEL").ok().filter(|m| !m.is_empty()));
        match model {
            Some(file) if is_file(&file) => Self::local(how, Path::new(&file)),
            Some(name) if how.local => {
                let found = catalog::scan(&catalog::default_dirs()).into_iter().find(|m| m.id == name);
                let dirs = catalog::default_dirs()
                    .iter()
                    .map(|d| d.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ");
                let found = found
                    .ok_or_else(|| Failure::usage(format!("no model {name} in {dirs}; name a .gguf file")))?;
                Self::local(how, &found.path)
            }
            None if how.local => {
                let found = catalog::in_the_box();
                Self::local(
                    how,
                    &found.ok_or_else(|| {
                        Failure::usage("the model in the box is not installed; name one by --model FILE")
                    })?,
                )
            }
            name => Self::daemon(how, name),
        }
    }

    fn local(how: &HowArgs, path: &Path) -> Result<Self, Failure> {
        if !path.exists() {
            return Err(Failure::usage(format!(
                "--model {}: no such file; name a .gguf file",
                path.display()
            )));
        }
        let model = catalog::file(path);
        let defaults = Options::default();
        let options = Options {
            default_model: Some(model.id.clone()),
            models: vec![model],
            threads: how.threads.unwrap_or(0) as usize,
            n_ctx: how.context.map_or(defaults.n_ctx, |n| n as usize),
            deadline_s: NO_DEADLINE_S,
            renderer: Some(crate::app::RENDERER.into()),
            ..defaults
        };
        let kernels = crate::app::kernels().map_err(Failure::usage)?;
        Ok(Self::Local(Engine::start(kernels, options)?))
    }

    #[cfg(feature = "http")]
    fn daemon(how: &HowArgs, model: Option<String>) -> Result<Self, Failure> {
        if let Some(flag) =
            [("--context", how.context), ("--threads", how.threads)].into_iter().find(|f| f.1.is_some())
        {
            let message =
                format!("{} is the daemon's to decide; use it with --local or --model FILE", flag.0);
            return Err(Failure::usage(message));
        }
        let mut client = Client::connect(&how.socket).map_err(|e| {
            Failure::usage(format!("{e}, or run the model in this process with --local or --model FILE"))
        })?;
        // The daemon knows whether its model has a template once it has read the file's header.
        let name = model.as_deref().unwrap_or("default");
        let info = client.get(&format!("/v1/models/{name}")).unwrap_or_default();
        let capabilities = info.pointer("/sotto/capabilities").and_then(|c| c.as_array()).cloned();
        let has_template = capabilities.is_none_or(|c| c.iter().any(|c| c == "chat"));
        Ok(Self::Daemon { client, model, has_template })
    }

    #[cfg(not(feature = "http"))]
    fn daemon(_: &HowArgs, _: Option<String>) -> Result<Self, Failure> {
        Err(Failure::usage("this sotto was built without the socket; use --local or --model FILE"))
    }

    /// Generates, showing what comes; returns the answer.
    pub(super) fn generate(&mut self, question: &Question, show: &mut Show) -> Result<String, Failure> {
        let answer = match self {
            #[cfg(feature = "http")]
            Self::Daemon { client, model, has_template } => {
                if !*has_template && matches!(question.input, Input::Chat(_)) {
                    show.no_template(model.as_deref().unwrap_or("of the daemon"));
                }
                remote(client, model.as_deref(), question, show)
            }
            Self::Local(engine) => local(engine, question, show),
        };
        show.finish();
        answer
    }
}

/// Events on their way to the main thread. Unbounded, but an answer is not: the context bounds it.
struct ToMain(Sender<Event>);

impl Sink for ToMain {
    fn offer(&mut self, event: &Event) -> Offer {
        match self.0.send(event.clone()) {
            Ok(()) => Offer::Taken,
            Err(_) => Offer::Gone,
        }
    }
}

fn local(engine: &Engine, question: &Question, show: &mut Show) -> Result<String, Failure> {
    let bits = clock::random_bits().map_err(|e| Failure::internal(format!("no random bits: {e}")))?;
    let request = Request {
        id: GenerationId::from_bits(bits),
        caller: Caller { uid: rustix::process::getuid().as_raw(), pid: None, door: Door::Local },
        model: None,
        input: question.input.clone(),
        input_field: "input",
        effort: question.effort,
        sampling: question.sampling.clone(),
        max_tokens: question.max_tokens,
        stop: question.stop.clone(),
        class: Class::Interactive,
        deadline_ms: None,
    };
    let (to_main, events) = mpsc::channel();
    let _handle = engine.submit(request, Box::new(ToMain(to_main)))?;
    let mut answer = String::new();
    for event in events {
        match event {
            Event::Admitted(a) if a.no_template => show.no_template(&a.model),
            Event::Loading { done, total, .. } => show.progress("loading", done, total),
            Event::Prefill { done, total, .. } => show.progress("reading", done as u64, total as u64),
            Event::Text { text, .. } => {
                show.text(&text)?;
                answer.push_str(&text);
            }
            Event::Done(_) => return Ok(answer),
            Event::Failed(fault) => return Err(fault.into()),
            _ => {}
        }
    }
    Err(Fault::new(crate::engine::Code::Internal, "the engine stopped without an answer").into())
}

#[cfg(feature = "http")]
fn remote(
    client: &mut Client,
    model: Option<&str>,
    question: &Question,
    show: &mut Show,
) -> Result<String, Failure> {
    let mut body = serde_json::Map::new();
    let mut put = |key: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            body.insert(key.into(), value);
        }
    };
    put("model", model.map(Into::into));
    match &question.input {
        Input::Text(text) => {
            put("input", Some(text.as_str().into()));
            put("raw", Some(true.into()));
        }
        Input::Chat(messages) => {
            let message = |m: &crate::engine::Message| serde_json::json!({"role": m.role.as_str(), "content": m.content});
            put("messages", Some(messages.iter().map(message).collect()));
        }
        Input::Tokens(_) => return Err(Failure::internal("the command line makes no tokens")),
    }
    put("max_tokens", question.max_tokens.map(Into::into));
    put("stop", (!question.stop.is_empty()).then(|| question.stop.clone().into()));
    body.extend(sampling::fields(&question.sampling, question.effort));
    let (mut answer, mut end, mut broken) = (String::new(), None, None);
    let called = client.generate(body.into(), &mut |event| match event {
        ClientEvent::Queued { position } => show.waiting(position),
        ClientEvent::Loading { done, total } => show.progress("loading", done, total),
        ClientEvent::Prefill { done, total } => show.progress("reading", done, total),
        ClientEvent::Text(text) => {
            broken = broken.take().or_else(|| show.text(&text).err());
            answer.push_str(&text);
        }
        ClientEvent::Done(_) => end = Some(Ok(())),
        ClientEvent::Error { code, message } => {
            end = Some(Err(Failure { code: exit_code(&code), message: format!("{code}: {message}") }))
        }
        ClientEvent::Unknown => {}
    });
    if let Some(failure) = broken {
        return Err(failure);
    }
    called.map_err(Failure::usage)?;
    match end {
        Some(result) => result.map(|()| answer),
        None => Err(Failure::internal(
            "the daemon went away before the end of the answer; its journal has the reason",
        )),
    }
}

#[cfg(feature = "http")]
fn exit_code(code: &str) -> u8 {
    let known = crate::engine::Code::ALL.iter().find(|c| c.as_str() == code);
    known.map_or(crate::app::EXIT_USAGE, |c| crate::app::exit_code(*c))
}

/// The file that the flags name where only a file will do.
pub(super) fn file_or_box(file: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let found = file.or_else(catalog::in_the_box);
    found.ok_or_else(|| Failure::usage("the model in the box is not installed; name a .gguf file"))
}
