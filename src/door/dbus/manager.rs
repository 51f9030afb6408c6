//! `org.sotto.Sotto1.Manager`.

use std::collections::{BTreeMap, HashMap};

use zbus::message::Header;
use zbus::names::{OwnedUniqueName, UniqueName};
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{Connection, ObjectPath, OwnedFd, OwnedObjectPath, OwnedVariant, Variant};

use crate::base::limits::REPLY_BYTES_MAX;
use crate::door::fault;
use crate::door::id::{new_id, parse_id};
use crate::door::queue::Generation;
use crate::door::wire;
use crate::engine::{Code, Done, Engine, Event, Fault};

use super::callers::Callers;
use super::options::{self, Format, Options};
use super::{PATH, Refusal, details, pipe};

/// Interface of a generation's `Done` signal.
const GENERATION: &str = "org.sotto.Sotto1.Generation";

/// What is told about an answer besides its text.
pub(super) type Info = BTreeMap<&'static str, OwnedVariant>;

/// The object at [`PATH`].
#[derive(Debug)]
pub(super) struct Manager {
    engine: Engine,
    callers: Callers,
}

impl Manager {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, callers: Callers::default() }
    }

    /// The options of a call; what is wrong with them is counted.
    fn read(&self, input: String, options: &Options) -> Result<options::Asked, Fault> {
        options::read(input, options).inspect_err(|fault| self.engine.metrics().error(fault.code))
    }

    /// Generates and gives the complete answer.
    async fn answer(
        &self,
        sender: Option<&UniqueName<'_>>,
        connection: &Connection,
        input: String,
        options: &Options,
    ) -> Result<(String, Info), Fault> {
        let asked = self.read(input, options)?;
        if asked.format.is_some() {
            let message = "format: goes with StartGeneration only; leave it out";
            return Err(Fault::new(Code::UnknownField, message).at("format"));
        }
        let known = self.callers.know(connection, sender).await?;
        let request = asked.ask.request(new_id(), known.caller, asked.input, "input");
        let generation = Generation::start(&self.engine, request)?;
        let (text, logprobs, done) = tokio::select! {
            answer = whole(generation) => answer?,
            () = known.gone() => return Err(Fault::new(Code::Cancelled, "the caller left the bus")),
        };
        let mut info = info(&done);
        info.extend(logprobs.and_then(|json| Some(("logprobs", variant(json)?))));
        Ok((text, info))
    }
}

#[zbus::interface(name = "org.sotto.Sotto1.Manager", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("text", "info"))]
    async fn generate(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        input: String,
        options: Options,
    ) -> Result<(String, Info), Refusal> {
        let answered = self.answer(header.sender(), connection, input, &options).await;
        let code = answered.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "ok");
        self.engine.metrics().request("dbus", "Generate", code);
        Ok(answered?)
    }

    #[zbus(out_args("generation", "stream"))]
    async fn start_generation(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        input: String,
        options: Options,
    ) -> Result<(ResponseDispatchNotifier<OwnedObjectPath>, OwnedFd), Refusal> {
        let asked = self.read(input, &options)?;
        let known = self.callers.know(connection, header.sender()).await?;
        let id = new_id();
        let path = OwnedObjectPath::from(
            ObjectPath::try_from(format!("{PATH}/generation/{id}"))
                .map_err(|e| Fault::new(Code::Internal, format!("the path of {id} is refused: {e}")))?,
        );
        let (writer, reader) = pipe::pair().map_err(|e| {
            Fault::new(Code::Internal, format!("no pipe can be made: {e}; too many streams are open"))
        })?;
        let (reply, replied) = ResponseDispatchNotifier::new(path.clone());
        let request = asked.ask.request(id, known.caller, asked.input, "input");
        let (engine, connection) = (self.engine.clone(), connection.clone());
        let owner = header.sender().map(|name| OwnedUniqueName::from(name.to_owned()));
        let format = asked.format.unwrap_or(Format::Events);
        tokio::spawn(async move {
            // The caller knows the generation before it hears of it.
            replied.await;
            let last = pipe::run(&engine, request, writer, format).await;
            let code = if let Event::Failed(fault) = &last { fault.code.as_str() } else { "ok" };
            engine.metrics().request("dbus", "StartGeneration", code);
            tell(&connection, owner, &path, &last).await;
        });
        Ok((reply, reader.into()))
    }

    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        generation: ObjectPath<'_>,
    ) -> Result<(), Refusal> {
        let known = self.callers.know(connection, header.sender()).await?;
        let below = generation.as_str().strip_prefix(PATH).and_then(|rest| rest.strip_prefix("/generation/"));
        let id = below.and_then(parse_id).ok_or_else(|| {
            let message = format!("this is no path of a generation: those are {PATH}/generation/ID");
            Fault::new(Code::UnknownObject, message).at("generation")
        })?;
        // One that has ended is no error, and another uid's looks the same as one that never was.
        self.engine.cancel(&id, known.caller.uid);
        Ok(())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn tier(&self) -> &'static str {
        self.engine.tier()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Vec<String> {
        Vec::new()
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.engine.state().as_str()
    }

    #[zbus(property)]
    fn state_reason(&self) -> &'static str {
        self.engine.state().reason()
    }

    #[zbus(property)]
    fn default_model(&self) -> String {
        self.engine.resolve(None).unwrap_or_default()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn queue_length(&self) -> u32 {
        u32::try_from(self.engine.status().queue_length).unwrap_or(u32::MAX)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn active_generations(&self) -> u32 {
        u32::try_from(self.engine.status().active_generations).unwrap_or(u32::MAX)
    }
}

/// The complete answer, and what its tokens tell as a JSON array, if they do. D-Bus text has no NUL, so one in an answer
/// becomes U+FFFD.
async fn whole(mut generation: Generation) -> Result<(String, Option<String>, Done), Fault> {
    let mut answer = String::new();
    let mut told = String::new();
    loop {
        match generation.next().await {
            Event::Text { text, logprob } => {
                answer += &text.replace('\0', "\u{fffd}");
                if let Some(logprob) = logprob {
                    told += if told.is_empty() { "[" } else { "," };
                    told += &wire::logprob_text(&logprob);
                }
            }
            Event::Done(done) => {
                let told = (!told.is_empty()).then(|| told + "]");
                return Ok((answer, told, done));
            }
            Event::Failed(fault) => return Err(fault),
            _ => {}
        }
        if answer.len() + told.len() > REPLY_BYTES_MAX {
            let message =
                format!("the answer passed {REPLY_BYTES_MAX} bytes; use StartGeneration or the socket");
            return Err(Fault::new(Code::BodyTooLarge, message));
        }
    }
}

pub(super) fn variant<'v>(value: impl Into<Variant<'v>>) -> Option<OwnedVariant> {
    // Only file descriptors can fail to be owned.
    value.into().try_into_owned().ok()
}

fn info(done: &Done) -> Info {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let usage = BTreeMap::from([
        ("prompt_tokens", count(done.usage.prompt_tokens)),
        ("cached_tokens", count(done.usage.cached_tokens)),
        ("completion_tokens", count(done.usage.completion_tokens)),
        ("reasoning_tokens", 0),
    ]);
    let timings = BTreeMap::from([
        ("queue_ms", done.timings.queue_ms),
        ("load_ms", done.timings.load_ms),
        ("prefill_ms", done.timings.prefill_ms),
        ("decode_ms", done.timings.decode_ms),
        ("ttft_ms", done.timings.ttft_ms),
    ]);
    [
        ("id", variant(done.id.as_str())),
        ("model", variant(done.model.as_str())),
        ("finish_reason", variant(done.stop_detail.reason().as_str())),
        ("stop_detail", variant(done.stop_detail.as_str())),
        ("seed", variant(done.seed)),
        ("usage", variant(usage)),
        ("timings", variant(timings)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

/// Sends `Done` to the owner alone, after its stream was closed.
async fn tell(connection: &Connection, owner: Option<OwnedUniqueName>, path: &OwnedObjectPath, last: &Event) {
    let (finish_reason, error, info) = match last {
        Event::Done(done) => (done.stop_detail.reason().as_str(), "", info(done)),
        Event::Failed(fault) => ("error", fault::dbus_name(fault.code), details(fault)),
        _ => return,
    };
    let owner = owner.as_ref().map(|name| name.as_str());
    let body = (finish_reason, error, info.into_iter().collect::<HashMap<_, _>>());
    // An owner that has left is not there to be told.
    let _ = connection.emit_signal(owner, path, GENERATION, "Done", &body).await;
}
