//! `org.sotto.Sotto1.Manager`, and how a generation goes that is asked for there or in a session.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{sleep, timeout};
use zbus::{OwnedFd, OwnedVariant};

use crate::base::limits::{
    INPUT_BYTES_MAX, KEPT_ENDED_MAX, KEPT_TEXT_BYTES_MAX, N_EMBED_BUS_MAX, REPLY_BYTES_MAX,
};
use crate::door::ask;
use crate::door::embed::{Embed, FEATURES, Vectors};
use crate::door::fault;
use crate::door::id::{new_id, parse_id};
use crate::door::queue::Generation;
use crate::door::told;
use crate::engine::{Code, Fault, Input, LoadRequest, ModelState, Request, Text, Tokenized};

use super::call::{Call, Refusal};
use super::dispatch::unknown_object;
use super::info::{collect, details, of, variant};
use super::job::Job;
use super::options::{self, Format, Options};
use super::paths::{self, Kind, Place};
use super::polkit::Permit;
use super::record::Record;
use super::session::{Session, Turn};
use super::{Door, KEPT, interfaces, pipe};

impl Door {
    /// The value of a property of the manager.
    pub(super) fn manager_property(&self, name: &str) -> Option<OwnedVariant> {
        let count = |n: usize| variant(u32::try_from(n).unwrap_or(u32::MAX));
        match name {
            "Version" => variant(env!("CARGO_PKG_VERSION")),
            "Tier" => variant(self.engine.tier()),
            "Features" => variant(FEATURES.to_vec()),
            "State" => variant(self.engine.state().as_str()),
            "StateReason" => variant(self.engine.state().reason()),
            "DefaultModel" => variant(self.engine.resolve(None).unwrap_or_default()),
            "LoadedModels" => variant(self.loaded_models()),
            "QueueLength" => count(self.engine.status().queue_length),
            "ActiveGenerations" => count(self.engine.status().active_generations),
            _ => None,
        }
    }

    /// Of the ended generations of `uid`, keeps the latest: so many, and so much text.
    fn tidy(&self, uid: u32) {
        let own = self.generations.ids(uid).into_iter().filter_map(|id| self.generations.get(&id, uid));
        let mut ended: Vec<_> = own.filter_map(|record| Some((record.ended_at()?, record))).collect();
        ended.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        let mut bytes = 0;
        for (i, (_, record)) in ended.iter().enumerate() {
            bytes += record.bytes();
            if i > 0 && (i >= KEPT_ENDED_MAX || bytes > KEPT_TEXT_BYTES_MAX) {
                self.generations.remove(record.id.as_str());
            }
        }
    }
}

/// A method of the manager.
pub(super) async fn method(call: Arc<Call>, member: &str) -> Result<(), Refusal> {
    match member {
        "Generate" => ask(&call, None).await,
        "StartGeneration" => start(call, None).await,
        "Cancel" => cancel(&call).await,
        "ListModels" => {
            call.door.describe_models(call.uid()).await;
            let models = call.door.engine.models();
            let told =
                models.iter().map(|info| (paths::model(Some(&info.id)), call.door.model_properties(info)));
            call.reply(&(told.collect::<Vec<_>>(),)).await
        }
        "LoadModel" => load_model(call).await,
        "UnloadModel" => unload_model(&call).await,
        "OpenSession" => open_session(call).await,
        "Embed" => embed(&call).await,
        "Tokenize" => tokenize(&call).await,
        "Reload" => {
            call.may(Permit::Manage).await?;
            if let Some(reload) = &call.door.options.reload {
                (reload.0)()?;
            }
            call.reply(&()).await
        }
        _ => Err(Fault::new(Code::Internal, format!("{member} is declared and not served")).into()),
    }
}

/// What is to be generated.
struct Asked {
    request: Request,
    format: Option<Format>,
    turn: Option<Turn>,
}

/// Reads a call that generates, alone or in a session.
fn read(call: &Call, session: Option<&Arc<Session>>) -> Result<Asked, Fault> {
    let (input, options): (String, Options) = call.args()?;
    let (id, caller) = (new_id(), call.known.caller);
    match session {
        None => options::read(input, &options).map(|asked| Asked {
            request: asked.ask.request(id, caller, asked.input, "input"),
            format: asked.format,
            turn: None,
        }),
        Some(session) => session.turn(id.clone(), input, &options).map(|(ask, input, format, turn)| Asked {
            request: ask.request(id, caller, input, "input"),
            format,
            turn: Some(turn),
        }),
    }
}

/// One call, one answer: `Generate` and `Ask`.
pub(super) async fn ask(call: &Call, session: Option<&Arc<Session>>) -> Result<(), Refusal> {
    call.may(Permit::Generate).await?;
    let Asked { request, format, turn } = read(call, session)?;
    if format.is_some() {
        let message = "format: goes only where a stream is returned; leave it out";
        return Err(Fault::new(Code::UnknownField, message).at("format").into());
    }
    let record = Record::new(request.id.clone(), call.uid());
    let mut generation = Generation::start(&call.door.engine, request)?;
    while !record.has_ended() && record.bytes() <= REPLY_BYTES_MAX {
        tokio::select! {
            event = generation.next() => record.heard(&event),
            () = call.known.gone() => record.fail(Fault::new(Code::Cancelled, "the caller left the bus")),
        }
    }
    if !record.has_ended() {
        let message = format!("the answer passed {REPLY_BYTES_MAX} bytes; use a stream, or the socket");
        record.fail(Fault::new(Code::BodyTooLarge, message));
    }
    if let Some(turn) = turn {
        turn.keep(&record);
    }
    call.reply(&record.answer()?).await
}

/// A generation with a stream: `StartGeneration` and `Send`.
pub(super) async fn start(call: Arc<Call>, session: Option<&Arc<Session>>) -> Result<(), Refusal> {
    call.may(Permit::Generate).await?;
    let Asked { request, format, turn } = read(&call, session)?;
    let record = Record::new(request.id.clone(), call.uid());
    let path = paths::object(Kind::Generation, record.id.as_str());
    let (writer, reader) = pipe::pair().map_err(|e| {
        Fault::new(Code::Internal, format!("no pipe can be made: {e}; too many streams are open"))
    })?;
    call.door.generations.put(record.id.as_str(), record.clone());
    call.door.tidy(call.uid());
    // The caller knows the generation before it hears of it.
    call.reply(&(path.clone(), OwnedFd::from(reader))).await?;
    let format = format.unwrap_or(Format::Events);
    tokio::spawn(async move {
        let door = call.door.clone();
        let rest = pipe::run(&door.engine, request, writer, format, &record).await;
        if let Some(turn) = turn {
            turn.keep(&record);
        }
        let (finish_reason, error, info) = match record.last() {
            Some(Ok(done)) => (done.stop_detail.reason().as_str(), "", of(&done)),
            Some(Err(fault)) => {
                call.count(fault.code);
                ("error", fault::dbus_name(fault.code), details(&fault))
            }
            None => return,
        };
        call.tell(&path, interfaces::GENERATION, "Done", &(finish_reason, error, info)).await;
        door.tidy(record.uid);
        // It is only kept from here on: nobody waits for that.
        let (known, kept_by) = (call.known.clone(), Arc::downgrade(&door));
        drop((call, door));
        let kept = async {
            // Who looks again within that time finds the last line.
            tokio::join!(sleep(KEPT), timeout(KEPT, rest.write()))
        };
        tokio::select! {
            _ = kept => {}
            () = known.gone() => {}
        }
        if let Some(door) = kept_by.upgrade() {
            door.generations.remove(record.id.as_str());
        }
    });
    Ok(())
}

/// Methods of a generation.
pub(super) async fn of_generation(call: &Call, record: &Record, member: &str) -> Result<(), Refusal> {
    if member == "Cancel" {
        call.door.engine.cancel(&record.id, record.uid);
        return call.reply(&()).await;
    }
    tokio::select! {
        () = record.finished() => call.reply(&record.answer().map_err(Refusal::again)?).await,
        () = call.known.gone() => Ok(()),
    }
}

async fn cancel(call: &Call) -> Result<(), Refusal> {
    let (path,): (zbus::OwnedObjectPath,) = call.args()?;
    let id = match paths::place(path.as_str()) {
        Some(Place::Object(Kind::Generation, id)) => parse_id(id),
        _ => None,
    };
    let id = id.ok_or_else(|| {
        let message = format!("this is no path of a generation: those are {}/generation/ID", paths::ROOT);
        Fault::new(Code::UnknownObject, message).at("generation")
    })?;
    let (door, uid) = (&call.door, call.uid());
    // One that has ended is no error.
    let own = door.engine.cancel(&id, uid) || door.generations.get(id.as_str(), uid).is_some();
    let found = own || (call.may(Permit::Manage).await.is_ok() && door.engine.cancel(&id, 0));
    if !found {
        return Err(unknown_object(path.as_str()).into());
    }
    call.reply(&()).await
}

async fn load_model(call: Arc<Call>) -> Result<(), Refusal> {
    call.may(Permit::LoadModel).await?;
    let (model, options): (String, Options) = call.args()?;
    let mut fields = options::fields(&options)?;
    let (pin, n_ctx) = ask::load(&mut fields)?;
    fields.finish()?;
    let engine = &call.door.engine;
    let resolved = engine.known(Some(&model))?;
    let loaded = engine.models().iter().any(|info| info.id == resolved && info.state == ModelState::Loaded);
    let id = new_id();
    let job = Job::new(id.clone(), call.uid());
    let request = LoadRequest { id: id.clone(), caller: call.known.caller, model: resolved, pin, n_ctx };
    let mut load = Generation::load(engine, request)?;
    if loaded {
        // There may be nothing to do: then the job has ended when its caller hears of it.
        job.heard(load.next().await);
    }
    call.door.jobs.put(id.as_str(), job.clone());
    call.reply(&(paths::object(Kind::Job, id.as_str()),)).await?;
    tokio::spawn(job.follow(load, call));
    Ok(())
}

async fn unload_model(call: &Call) -> Result<(), Refusal> {
    let (model, options): (String, Options) = call.args()?;
    let mut fields = options::fields(&options)?;
    let force = fields.flag("force")?.unwrap_or(false);
    fields.finish()?;
    call.may(if force { Permit::Manage } else { Permit::LoadModel }).await?;
    told::unload(&call.door.engine, &model, force).await?;
    call.reply(&()).await
}

async fn open_session(call: Arc<Call>) -> Result<(), Refusal> {
    call.may(Permit::Generate).await?;
    let (options,): (Options,) = call.args()?;
    call.door.engine.takes()?;
    let id = new_id();
    let session = Session::open(&call, id.clone(), &options)?;
    let (limits, uid) = (*call.door.options.sessions.borrow(), call.uid());
    call.door.sessions.put_if(id.as_str(), session.clone(), |all| {
        let (mut n, mut own) = (0, 0);
        all.for_each(|other| {
            n += 1;
            own += usize::from(other.is_of(uid));
        });
        let full = |n, whose, max, key| {
            let message =
                format!("{n} sessions {whose}are open, at most {max} may (session.{key}); close one");
            Err(Fault::new(Code::QueueFull, message).retry_after(1_000))
        };
        if own >= limits.max_per_uid {
            return full(own, "of this user ", limits.max_per_uid, "max_per_uid");
        }
        if n >= limits.max { full(n, "", limits.max, "max") } else { Ok(()) }
    })?;
    call.reply(&(paths::object(Kind::Session, id.as_str()),)).await?;
    tokio::spawn(session.live(call));
    Ok(())
}

async fn embed(call: &Call) -> Result<(), Refusal> {
    call.may(Permit::Generate).await?;
    let (inputs, options): (Vec<String>, Options) = call.args()?;
    let mut fields = options::fields(&options)?;
    let mut embed = Embed::take(&mut fields)?;
    embed.normalize = fields.flag("normalize")?.unwrap_or(true);
    embed.take_service(&mut fields)?;
    fields.finish()?;
    let (n, n_bytes) = (inputs.len(), inputs.iter().map(String::len).sum::<usize>());
    if n == 0 || n > N_EMBED_BUS_MAX || n_bytes > INPUT_BYTES_MAX {
        let message = format!(
            "inputs: got {n} texts of {n_bytes} bytes, allowed are 1 to {N_EMBED_BUS_MAX} of {INPUT_BYTES_MAX} bytes; \
             send more through the socket"
        );
        let code = if n == 0 { Code::InvalidValue } else { Code::BodyTooLarge };
        return Err(Fault::new(code, message).at("inputs").into());
    }
    let inputs = inputs.into_iter().map(Input::Text).collect();
    let Vectors { model, vectors, n_tokens, truncated } = tokio::select! {
        made = embed.run(&call.door.engine, call.known.caller, inputs, "inputs") => made?,
        // Nobody is there to be answered.
        () = call.known.gone() => return Ok(()),
    };
    let n_bytes = size_of::<f64>() * vectors.iter().map(Vec::len).sum::<usize>();
    if n_bytes > REPLY_BYTES_MAX {
        let message =
            format!("the vectors have {n_bytes} bytes, an answer at most {REPLY_BYTES_MAX}; use the socket");
        return Err(Fault::new(Code::BodyTooLarge, message).at("inputs").into());
    }
    let vectors: Vec<Vec<f64>> =
        vectors.into_iter().map(|vector| vector.into_iter().map(f64::from).collect()).collect();
    let n_tokens = u32::try_from(n_tokens).unwrap_or(u32::MAX);
    let usage = HashMap::from([("prompt_tokens", n_tokens), ("total_tokens", n_tokens)]);
    let truncated: Vec<u32> = truncated.into_iter().filter_map(|i| u32::try_from(i).ok()).collect();
    let mut info = collect([("model", variant(model)), ("usage", variant(usage))]);
    if !truncated.is_empty() {
        info.extend(collect([("truncated", variant(truncated))]));
    }
    call.reply(&(vectors, info)).await
}

async fn tokenize(call: &Call) -> Result<(), Refusal> {
    let (text, options): (String, Options) = call.args()?;
    let mut fields = options::fields(&options)?;
    let model = fields.text("model")?;
    let [add_special, parse_special] =
        [fields.flag("add_special")?, fields.flag("parse_special")?].map(|flag| flag.unwrap_or(false));
    fields.finish()?;
    let text = Text::Plain { text, add_special, parse_special };
    let Tokenized { tokens, .. } = told::tokenize(&call.door.engine, call.uid(), model, text).await?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    call.reply(&(ids,)).await
}
