//! Who answers: a daemon behind its socket, or an engine in this process.

use std::future::pending;
use std::io::ErrorKind;
use std::path::Path;
#[cfg(feature = "http")]
use std::{cell::Cell, ops::ControlFlow};

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[cfg(feature = "http")]
use super::SOCKET;
#[cfg(feature = "http")]
use super::embed::{How, Made};
#[cfg(feature = "http")]
use super::sampling;
use super::show::{Show, Step};
use super::{Failure, HowArgs};
use crate::app::catalog;
use crate::base::limits::PACK_CACHE_GIB;
#[cfg(feature = "http")]
use crate::door::client::{self, Client, ClientError, ClientEvent};
use crate::door::done;
#[cfg(feature = "http")]
use crate::door::embed::{Embed, Vectors};
use crate::engine::{
    Caching, Caller, Class, Code, Door, Effort, Engine, Event, Fault, GenerationId, Input, ModelFile, Offer,
    Options, Request, Sampling, Settings, Sink, Task,
};
use crate::model::Pack;
use crate::os::clock;
use crate::os::map::MapError;

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

/// What came back.
pub(super) struct Answer {
    /// The answer, or what there was of it when it was stopped.
    pub text: String,
    /// The fields of the event `done`; `None` if Ctrl-C stopped it.
    pub done: Option<Value>,
}

impl Answer {
    /// Both as one object.
    pub(super) fn json(&self) -> Value {
        let mut all = self.done.clone().unwrap_or_default();
        if let Some(fields) = all.as_object_mut() {
            fields.remove("event");
            fields.insert("text".into(), self.text.as_str().into());
        }
        all
    }

    /// Tokens of prompt and answer, if it ended because they fill the context.
    pub(super) fn filled_context(&self) -> Option<u64> {
        let done = self.done.as_ref()?;
        (done.get("stop_detail")? == "context").then(|| done.pointer("/usage/total_tokens")?.as_u64())?
    }
}

/// Who answers, and how to wait for it.
pub(super) struct Backend {
    who: Who,
    runtime: Runtime,
    /// Ctrl-C ends the answer under way and not the program.
    pub stoppable: bool,
}

enum Who {
    /// A daemon, asked for this model.
    #[cfg(feature = "http")]
    Daemon { client: Client, model: Option<String>, has_template: bool },
    /// An engine of our own.
    Local(Engine),
}

/// Whether `model` means a file rather than a name: it exists, or looks like a path.
fn is_file(model: &str) -> bool {
    model.ends_with(".gguf") || model.contains('/') || Path::new(model).symlink_metadata().is_ok()
}

/// What `--model` says, else the environment.
fn named(model: Option<&str>) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads SOTTO_MODEL (API text, section 6)"
    )]
    let model = model.map(str::to_owned).or_else(|| std::env::var("SOTTO_MODEL").ok());
    model.filter(|m| !m.is_empty())
}

/// The model file to use in this process: a path, the name of an installed one, or none for the one in the box.
pub(super) fn model_file(model: Option<&str>) -> Result<ModelFile, Failure> {
    let Some(model) = named(model) else {
        let found = catalog::in_the_box();
        let found = found.ok_or_else(|| {
            Failure::usage("the model in the box is not installed; name a .gguf file, by --model or as MODEL")
        })?;
        return Ok(catalog::file(&found));
    };
    if is_file(&model) {
        let path = Path::new(&model);
        return match path.metadata() {
            Ok(_) => Ok(catalog::file(path)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(Failure::usage(format!("{model}: no such file; name a .gguf file")))
            }
            Err(source) => Err(Failure::usage(MapError::Open { path: model, source })),
        };
    }
    let dirs = catalog::default_dirs();
    catalog::scan(&dirs).into_iter().find(|m| m.id == model).ok_or_else(|| {
        let dirs = dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
        Failure::usage(format!("no model {model} in {dirs}; name a .gguf file"))
    })
}

impl Backend {
    /// The one that the flags ask for.
    pub(super) fn open(how: &HowArgs) -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(|e| Failure::internal(format!("cannot wait for an answer: {e}")))?;
        let model = named(how.model.as_deref());
        let who = match &model {
            Some(file) if is_file(file) => {
                let name = Path::new(file).file_stem().unwrap_or_default().display();
                if how.socket.is_some() {
                    return Err(Failure::usage(format!(
                        "--socket asks a daemon, and {file} is a file, which this process would run; name a model of \
                         the daemon, such as --model {name}, or leave --socket out"
                    )));
                }
                let file = model_file(Some(file)).map_err(|failure| Failure {
                    message: format!(
                        "{}, or a model by its name: --model {name} asks the daemon, --local --model {name} runs it in \
                         this process",
                        failure.message
                    ),
                    ..failure
                })?;
                Who::local(how, file)
            }
            _ if how.local && how.socket.is_some() => Err(Failure::usage(
                "--socket asks a daemon, --local runs the model in this process; leave one of them out",
            )),
            model if how.local => Who::local(how, model_file(model.as_deref())?),
            _ => Who::daemon(how, model, &runtime),
        }?;
        Ok(Self { who, runtime, stoppable: false })
    }

    /// Generates, showing what comes.
    pub(super) fn generate(&self, question: &Question, show: &mut Show) -> Result<Answer, Failure> {
        let mut text = String::new();
        show.step(Step::Waiting, 0, 0);
        let done = self.runtime.block_on(async {
            let answer = async {
                match &self.who {
                    #[cfg(feature = "http")]
                    Who::Daemon { client, model, has_template } => {
                        if !*has_template && matches!(question.input, Input::Chat(_)) {
                            show.no_template(model.as_deref().unwrap_or("of the daemon"));
                        }
                        remote(client, body(model.as_deref(), question)?, show, &mut text).await
                    }
                    Who::Local(engine) => local(engine, question, show, &mut text).await,
                }
            };
            // Whichever is dropped unfinished is cancelled by that.
            tokio::select! {
                biased;
                () = interrupted(self.stoppable) => Ok(None),
                done = answer => done.map(Some),
            }
        });
        show.finish();
        Ok(Answer { text, done: done? })
    }
}

#[cfg(feature = "http")]
impl Backend {
    /// The vectors of `texts`.
    pub(super) fn embed(&self, texts: Vec<String>, how: &How, show: &mut Show) -> Result<Made, Failure> {
        show.step(Step::Waiting, 0, 0);
        self.runtime.block_on(async {
            match &self.who {
                Who::Daemon { client, model, .. } => {
                    let mut body = serde_json::json!({
                        "model": model, "input": texts, "sotto": { "truncate": how.truncate },
                    });
                    if let Some(n) = how.dimensions {
                        body["dimensions"] = n.into();
                    }
                    made(&client.post("/v1/embeddings", &body).await.map_err(refused)?)
                }
                Who::Local(engine) => {
                    let caller =
                        Caller { uid: rustix::process::getuid().as_raw(), pid: None, door: Door::Local };
                    let inputs = texts.into_iter().map(Input::Text).collect();
                    let asked = Embed::new(how.dimensions.map(|n| n as usize), how.truncate);
                    let vectors = asked.run(engine, caller, inputs, "input").await?;
                    let Vectors { model, vectors, n_tokens, truncated } = vectors;
                    Ok(Made { model, vectors, truncated, n_tokens: n_tokens as u64 })
                }
            }
        })
    }
}

/// What the daemon answers, as OpenAI has it.
#[cfg(feature = "http")]
fn made(answer: &Value) -> Result<Made, Failure> {
    let odd = || Failure::internal("the daemon's answer has no vectors in it");
    let list = answer["data"].as_array().ok_or_else(odd)?;
    let vector = |one: &Value| {
        let numbers = one["embedding"].as_array()?.iter();
        numbers.map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<Vec<f32>>>()
    };
    let cut = answer.pointer("/sotto/truncated").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(Made {
        model: answer["model"].as_str().unwrap_or_default().to_owned(),
        vectors: list.iter().map(vector).collect::<Option<_>>().ok_or_else(odd)?,
        truncated: cut.iter().filter_map(|i| i.as_u64().map(|i| i as usize)).collect(),
        n_tokens: answer.pointer("/usage/prompt_tokens").and_then(Value::as_u64).unwrap_or(0),
    })
}

/// Ends when Ctrl-C is pressed. Until the first call with `catch` Ctrl-C ends the program.
async fn interrupted(catch: bool) {
    if !catch || tokio::signal::ctrl_c().await.is_err() {
        pending::<()>().await;
    }
}

impl Who {
    fn local(how: &HowArgs, model: ModelFile) -> Result<Self, Failure> {
        let defaults = Options::default();
        let options = Options {
            threads: how.threads.unwrap_or(0) as usize,
            n_ctx: how.context.map_or(defaults.n_ctx, |n| n as usize),
            pack: how.pack.unwrap_or(Pack::Cache),
            cache: crate::app::cache(PACK_CACHE_GIB),
            renderer: Some(crate::app::RENDERER.into()),
            helper: crate::app::helper(false),
            ..defaults
        };
        let settings = Settings {
            default_model: Some(model.id.clone()),
            models: vec![model],
            deadline_s: NO_DEADLINE_S,
            ..Settings::default()
        };
        let kernels = crate::app::kernels().map_err(Failure::usage)?;
        Ok(Self::Local(Engine::start(kernels, options, settings)?))
    }

    #[cfg(feature = "http")]
    fn daemon(how: &HowArgs, model: Option<String>, runtime: &Runtime) -> Result<Self, Failure> {
        let given = [
            ("--context", how.context.is_some()),
            ("--threads", how.threads.is_some()),
            ("--pack", how.pack.is_some()),
        ];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
            let message = format!("{flag} is the daemon's to decide; use it with --local or --model FILE");
            return Err(Failure::usage(message));
        }
        let client = Client::new(how.socket.as_deref().unwrap_or(Path::new(SOCKET)));
        // The daemon knows whether its model has a template once it has read the file's header.
        let name = model.as_deref().unwrap_or("default");
        let info =
            match runtime.block_on(client.get(&format!("/v1/models/{}", client::percent_encoded(name)))) {
                Err(e @ ClientError::Connect { .. }) => {
                    return Err(Failure::usage(format!(
                        "{e}, or run the model in this process with --local or --model FILE"
                    )));
                }
                told => told.unwrap_or_default(),
            };
        let capabilities = info.pointer("/sotto/capabilities").and_then(|c| c.as_array()).cloned();
        let has_template = capabilities.is_none_or(|c| c.iter().any(|c| c == "chat"));
        Ok(Self::Daemon { client, model, has_template })
    }

    #[cfg(not(feature = "http"))]
    fn daemon(_: &HowArgs, _: Option<String>, _: &Runtime) -> Result<Self, Failure> {
        Err(Failure::usage("this sotto was built without the socket; use --local or --model FILE"))
    }
}

/// Events on their way to the main thread. Unbounded, but an answer is not: the context bounds it.
struct ToMain(UnboundedSender<Event>);

impl Sink for ToMain {
    fn offer(&mut self, event: &Event) -> Offer {
        match self.0.send(event.clone()) {
            Ok(()) => Offer::Taken,
            Err(_) => Offer::Gone,
        }
    }
}

async fn local(
    engine: &Engine,
    question: &Question,
    show: &mut Show,
    answer: &mut String,
) -> Result<Value, Failure> {
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
        task: Task::Generate,
        cache: Caching::Own,
        class: Class::Interactive,
        deadline_ms: None,
    };
    let (to_main, mut events) = unbounded_channel();
    let _handle = engine.submit(request, Box::new(ToMain(to_main)))?;
    let mut n_prompt = 0;
    while let Some(event) = events.recv().await {
        match event {
            Event::Admitted(a) => {
                n_prompt = a.prompt_tokens as u64;
                if a.no_template {
                    show.no_template(&a.model);
                }
                show.step(Step::Reading, 0, n_prompt);
            }
            Event::Loading { done, total, .. } if done == total => show.step(Step::Reading, 0, n_prompt),
            Event::Loading { done, total, .. } => show.step(Step::Loading, done, total),
            Event::Prefill { done, total, .. } => show.step(Step::Reading, done as u64, total as u64),
            Event::Text { text, .. } => {
                show.text(&text)?;
                answer.push_str(&text);
            }
            Event::Done(end) => return Ok(done::fields(&end)),
            Event::Failed(fault) => return Err(fault.into()),
            _ => {}
        }
    }
    Err(Fault::new(Code::Internal, "the engine stopped without an answer").into())
}

/// A request of `POST /sotto/v1/generate`.
#[cfg(feature = "http")]
fn body(model: Option<&str>, question: &Question) -> Result<Value, Failure> {
    let mut body = serde_json::Map::new();
    let mut put = |key: &str, value: Option<Value>| {
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
    Ok(body.into())
}

#[cfg(feature = "http")]
async fn remote(
    client: &Client,
    body: Value,
    show: &mut Show,
    answer: &mut String,
) -> Result<Value, Failure> {
    let end = Cell::new(None);
    let finish = |how| {
        end.set(Some(how));
        ControlFlow::Break(())
    };
    let called = client
        .generate(body, &mut |event| {
            match event {
                ClientEvent::Queued { position } => show.step(Step::Queued, position, 0),
                ClientEvent::Loading { done, total } if done == total => show.step(Step::Waiting, 0, 0),
                ClientEvent::Loading { done, total } => show.step(Step::Loading, done, total),
                ClientEvent::Prefill { done, total } => show.step(Step::Reading, done, total),
                ClientEvent::Text(text) => {
                    answer.push_str(&text);
                    if let Err(failure) = show.text(&text) {
                        return finish(Err(failure));
                    }
                }
                ClientEvent::Done(done) => return finish(Ok(done)),
                ClientEvent::Error(error) => return finish(Err(elsewhere(told(error)))),
                ClientEvent::Loaded(_) | ClientEvent::Unknown => {}
            }
            ControlFlow::Continue(())
        })
        .await;
    called.map_err(|e| elsewhere(refused(e)))?;
    end.into_inner().unwrap_or_else(|| {
        Err(Failure::internal(
            "the daemon went away before the end of the answer; its journal has the reason",
        ))
    })
}

/// Why the daemon did not do what was asked.
#[cfg(feature = "http")]
pub(super) fn refused(e: ClientError) -> Failure {
    match e {
        ClientError::Refused { error, .. } => told(error),
        // Not of the caller's doing: the daemon died, or was made to.
        ClientError::Http(e) => Failure::internal(ClientError::Http(e)),
        other => Failure::usage(other),
    }
}

/// What answers in this process too says so where the daemon has no such model.
#[cfg(feature = "http")]
fn elsewhere(mut failure: Failure) -> Failure {
    if failure.error.as_ref().is_some_and(|error| error["code"] == Code::UnknownModel.as_str()) {
        failure.message += "; --model FILE or --local runs one in this process";
    }
    failure
}

/// A failure in the daemon's words.
#[cfg(feature = "http")]
pub(super) fn told(mut error: Value) -> Failure {
    let known = Code::ALL.iter().copied().find(|c| error["code"] == c.as_str());
    let exit = known.map_or(crate::app::EXIT_USAGE, crate::app::exit_code);
    let message = client::told(&error);
    if let Some(fields) = error.as_object_mut() {
        // What only one of the two ways to hear of it has.
        fields.retain(|key, value| key != "event" && key != "type" && !value.is_null());
    }
    Failure { code: exit, message, error: Some(error) }
}
