//! `org.sotto.Sotto1.Session`: a conversation whose state stays in the daemon. What was said is kept here; that its beginning
//! need not be read again is the prefix cache's work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use zbus::OwnedVariant;

use crate::door::ask::{self, Ask};
use crate::door::fields::{Fields, invalid};
use crate::engine::{Code, Fault, GenerationId, Input, Message, Role};

use super::call::{Call, Refusal};
use super::info::{Info, collect, variant};
use super::options::{self, Format, Options};
use super::paths::{self, Kind};
use super::record::Record;
use super::shelf::Owned;
use super::{Door, interfaces, manager};

/// Options that only a whole session has.
const OF_SESSION: [&str; 4] = ["model", "system", "messages", "raw"];

#[derive(Debug)]
struct Turns {
    messages: Vec<Message>,
    /// The generation under way.
    running: Option<GenerationId>,
    /// Positions of the context that the last turn came to.
    used: usize,
    last: Instant,
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Session {
    id: GenerationId,
    uid: u32,
    pub(super) model: String,
    n_ctx: usize,
    /// Options of every turn.
    defaults: Map<String, Value>,
    /// What it begins with.
    base: Vec<Message>,
    turns: Mutex<Turns>,
    /// Why it was closed.
    closed: watch::Sender<Option<&'static str>>,
}

impl Owned for Session {
    fn uid(&self) -> u32 {
        self.uid
    }
}

/// A turn under way. When it is dropped, the next one may begin.
pub(super) struct Turn {
    session: Arc<Session>,
    id: GenerationId,
    /// What it adds before the answer.
    asked: Vec<Message>,
}

impl Turn {
    /// Keeps what was said: also an answer that broke off, as far as it went.
    pub(super) fn keep(mut self, record: &Record) {
        let (text, end) = (record.text(), record.last());
        let mut turns = self.session.turns();
        if let Some(Ok(done)) = &end {
            turns.used = done.usage.prompt_tokens + done.usage.completion_tokens;
        }
        if turns.running.as_ref() == Some(&self.id) && (matches!(end, Some(Ok(_))) || !text.is_empty()) {
            turns.messages.append(&mut self.asked);
            turns.messages.push(Message { role: Role::Assistant, content: text });
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.session.turns();
        turns.running.take_if(|running| *running == self.id);
        turns.last = Instant::now();
    }
}

impl Session {
    /// Reads what a session is opened with.
    pub(super) fn open(call: &Call, id: GenerationId, options: &Options) -> Result<Arc<Self>, Fault> {
        let (mut map, _) = options::map(String::new(), options)?;
        if map.contains_key("format") || map.contains_key("raw") {
            let key = if map.contains_key("raw") { "raw" } else { "format" };
            return Err(invalid(key, "not an option of a session; leave it out"));
        }
        let mut fields = Fields::new(map.clone().into(), "", false)?;
        let system = fields.text("system")?.map(|content| Message { role: Role::System, content });
        let base: Vec<Message> =
            system.into_iter().chain(options::take_history(&mut fields)?.unwrap_or_default()).collect();
        // Every turn reads the others again; what is wrong with them is told now.
        let ask = ask::native(&mut fields)?;
        fields.finish()?;
        for key in ["system", "messages", "messages_json", "model"] {
            map.remove(key);
        }
        let engine = &call.door.engine;
        let model = engine.known(ask.model.as_deref())?;
        let models = engine.models();
        let header = models.iter().find(|info| info.id == model).and_then(|info| info.header.as_ref());
        let n_ctx = header.map_or(engine.options().n_ctx, |header| header.n_ctx);
        let turns = Turns { messages: base.clone(), running: None, used: 0, last: Instant::now() };
        Ok(Arc::new(Self {
            id,
            uid: call.uid(),
            model,
            n_ctx,
            defaults: map,
            base,
            turns: turns.into(),
            closed: watch::Sender::new(None),
        }))
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_of(&self, uid: u32) -> bool {
        self.uid == uid
    }

    /// Ends it; a turn under way is cancelled.
    pub(super) fn close(&self, door: &Door, why: &'static str) {
        self.closed.send_if_modified(|closed| closed.is_none() && closed.replace(why).is_none());
        if let Some(running) = &self.turns().running {
            door.engine.cancel(running, self.uid);
        }
    }

    /// Watches over it until it is closed, its owner has left, or nobody has used it for too long.
    pub(super) async fn live(self: Arc<Self>, call: Arc<Call>) {
        let mut closed = self.closed.subscribe();
        let why = loop {
            let idle = Duration::from_secs(call.door.options.sessions.borrow().idle_s);
            let until = {
                let turns = self.turns();
                if turns.running.is_some() { Instant::now() + idle } else { turns.last + idle }
            };
            tokio::select! {
                why = async { closed.wait_for(Option::is_some).await.map_or(None, |why| *why) } => break why,
                () = call.known.gone() => break None,
                () = sleep_until(until) => {
                    let turns = self.turns();
                    if turns.running.is_none() && turns.last.elapsed() >= idle {
                        break Some("idle");
                    }
                }
            }
        };
        call.door.sessions.remove(self.id.as_str());
        self.close(&call.door, why.unwrap_or("closed"));
        if let Some(why) = why {
            call.tell(
                &paths::object(Kind::Session, self.id.as_str()),
                interfaces::SESSION,
                "Closed",
                &(why,),
            )
            .await;
        }
    }

    pub(super) fn property(&self, name: &str) -> Option<OwnedVariant> {
        let count = |n: usize| variant(u32::try_from(n).unwrap_or(u32::MAX));
        match name {
            "Id" => variant(self.id.as_str()),
            "Model" => variant(paths::model(Some(&self.model))),
            "ContextUsed" => count(self.turns().used),
            "ContextLimit" => count(self.n_ctx),
            _ => None,
        }
    }

    pub(super) async fn method(self: &Arc<Self>, call: Arc<Call>, member: &str) -> Result<(), Refusal> {
        match member {
            "Send" => manager::start(call, Some(self)).await,
            "Ask" => manager::ask(&call, Some(self)).await,
            "Reset" => {
                {
                    let mut turns = self.turns();
                    if turns.running.is_some() {
                        return Err(busy().into());
                    }
                    turns.messages.clone_from(&self.base);
                    (turns.used, turns.last) = (0, Instant::now());
                }
                call.reply(&()).await
            }
            "History" => {
                let messages: Vec<Info> = self
                    .turns()
                    .messages
                    .iter()
                    .map(|message| {
                        let content = message.content.replace('\0', "\u{fffd}");
                        collect([("role", variant(message.role.as_str())), ("content", variant(content))])
                    })
                    .collect();
                call.reply(&(messages,)).await
            }
            _ => {
                self.close(&call.door, "closed");
                call.reply(&()).await
            }
        }
    }

    /// Begins a turn.
    pub(super) fn turn(
        self: &Arc<Self>,
        id: GenerationId,
        input: String,
        options: &Options,
    ) -> Result<(Ask, Input, Option<Format>, Turn), Fault> {
        if let Some(key) = OF_SESSION.into_iter().find(|key| options.has(key)) {
            return Err(invalid(key, "is not for a turn of a session; leave it out"));
        }
        let (own, input) = options::map(input, options)?;
        let mut map = self.defaults.clone();
        map.extend(own);
        let mut fields = Fields::new(map.into(), "", false)?;
        let format = options::format(&mut fields)?;
        let mut asked = match fields.list("messages_json")? {
            Some(list) => ask::messages(list, "messages_json")?,
            None => Vec::new(),
        };
        // Tool turns end in a message of their own.
        if asked.is_empty() || !input.is_empty() {
            asked.push(Message { role: Role::User, content: input });
        }
        let mut ask = ask::native(&mut fields)?;
        fields.finish()?;
        ask.model = Some(self.model.clone());
        if self.closed.borrow().is_some() {
            return Err(Fault::new(Code::UnknownObject, "the session is closed; open a new one"));
        }
        let mut turns = self.turns();
        if turns.running.is_some() {
            return Err(busy());
        }
        turns.running = Some(id.clone());
        let mut messages = turns.messages.clone();
        drop(turns);
        messages.extend(asked.iter().cloned());
        Ok((ask, Input::Chat(messages), format, Turn { session: self.clone(), id, asked }))
    }
}

fn busy() -> Fault {
    let message = "the session has a generation under way; wait for its end, or cancel it";
    Fault::new(Code::SessionBusy, message).retry_after(1_000)
}
