//! Admission: everything that is decided before a request may wait. Model known and readable, template rendered,
//! text tokenized, prompt within the context. Runs on a thread of its own, so that a long text stops nobody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Weak};

use super::handle::{Live, Shared};
use super::manners::Short;
use super::mock::Play;
use super::models::{Asker, Wish};
use super::prompt::{Common, bounded, encode_chat, tokenize};
use super::run::{Command, Job};
use super::scheduler::ModelKey;
use super::{
    Admitted, Caching, Code, Effort, Event, Fault, Input, Message, Mock, ModelFile, ModelHeader,
    ModelSettings, Options, Request, Sink, Task,
};
use crate::base::Token;
use crate::base::limits::{N_STOP_MAX, STOP_BYTES_MAX, TEMPLATE_BYTES_MAX};
use crate::format::{self, Checkpoint};
use crate::model::{KvType, Model, ModelError, vocab};
use crate::os::file::read_text;

use crate::text::{Special, Tokenizer};

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
const LICENSE: &str = "general.license";

/// A model with what admission needs of it.
pub(super) struct Loaded {
    /// Names it in the scheduler.
    pub key: ModelKey,
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// As the file has it, or its packed form.
    pub model: Arc<Model>,
    pub tokenizer: Tokenizer,
    /// Positions that a sequence of it may have.
    pub n_ctx: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Sequences that are decoded together.
    pub max_sequences: usize,
    /// The chat template in place of its own.
    template: Option<String>,
    /// What it does, if it is one of a mock.
    pub play: Option<Play>,
    /// What prompts in its template begin with.
    common: Common,
}

impl Loaded {
    /// Opens a model file with its tokenizer and template, for what it has of its `own` or else of `options`, and with
    /// `n_ctx` positions if they are given; its packed form where the cache has one.
    pub(super) fn open(
        key: ModelKey,
        file: &ModelFile,
        options: &Options,
        own: Option<&ModelSettings>,
        n_ctx: Option<usize>,
    ) -> Result<Self, ModelError> {
        let (id, path) = (&file.id, &file.path);
        let new = |checkpoint| Self::new(key, file, options, own, n_ctx, checkpoint);
        let packed = match options.used_cache().map(|cache| cache.find(path)) {
            None | Some(Ok(None)) => None,
            Some(Ok(Some(found))) => Some(new(found)),
            Some(Err(e)) => Some(Err(e)),
        };
        match packed {
            Some(Ok(loaded)) => return Ok(loaded),
            Some(Err(e)) => log::warn!("model {id}: packed anew: {e}"),
            None => {}
        }
        new(format::open(path)?)
    }

    /// One of a mock's.
    fn mock(
        key: ModelKey,
        file: &ModelFile,
        options: &Options,
        own: Option<&ModelSettings>,
        n_ctx: Option<usize>,
        mock: Mock,
    ) -> Result<Self, ModelError> {
        let loaded = Self::new(key, file, options, own, n_ctx, Mock::checkpoint(&file.id)?)?;
        Ok(Self { play: Some(Play::new(&file.id, mock)), ..loaded })
    }

    fn new(
        key: ModelKey,
        file: &ModelFile,
        options: &Options,
        own: Option<&ModelSettings>,
        n_ctx: Option<usize>,
        checkpoint: Checkpoint,
    ) -> Result<Self, ModelError> {
        let ModelFile { id, path } = file.clone();
        let model = Model::new(Arc::new(checkpoint))?;
        let tokenizer = vocab::tokenizer(model.checkpoint())?;
        if tokenizer.n_vocab() > model.hyper().n_vocab {
            return Err(ModelError::Hyper {
                file: model.checkpoint().file().into(),
                key: format!("the length of {}", vocab::pieces_key(model.checkpoint())),
                found: tokenizer.n_vocab().to_string(),
                wanted: format!("at most the {} rows of token_embd.weight wanted", model.hyper().n_vocab),
            });
        }
        // A value that is no text is refused here, not when somebody asks.
        let own_template = model.checkpoint().str(CHAT_TEMPLATE)?;
        let template = own.and_then(|own| own.template.as_deref()).map(template).transpose()?;
        let tokenizer = tokenizer.with_template(template.as_deref().or(own_template).unwrap_or_default());
        let n_ctx = n_ctx.or(own.and_then(|own| own.n_ctx)).unwrap_or(options.n_ctx);
        Ok(Self {
            key,
            id,
            path,
            tokenizer,
            n_ctx: n_ctx.min(model.hyper().n_ctx_train),
            kv: own.and_then(|own| own.kv).unwrap_or(options.kv),
            max_sequences: own.and_then(|own| own.max_sequences).unwrap_or(options.max_sequences),
            template,
            play: None,
            common: Common::default(),
            model: Arc::new(model),
        })
    }

    /// The source of its chat template.
    pub(super) fn template(&self) -> Option<&str> {
        self.template.as_deref().or_else(|| self.model.checkpoint().str(CHAT_TEMPLATE).ok().flatten())
    }

    /// What the doors tell of it.
    pub(super) fn header(&self) -> ModelHeader {
        let h = self.model.hyper();
        ModelHeader {
            architecture: self.model.architecture().into(),
            quantization: self.model.quantization().into(),
            parameters: self.model.parameters(),
            n_ctx: self.n_ctx,
            n_ctx_train: h.n_ctx_train,
            chat: self.template().is_some(),
            embeds: self.model.pooling().is_some(),
            license: self.model.checkpoint().str(LICENSE).ok().flatten().unwrap_or_default().into(),
        }
    }
}

/// The chat template in a file.
fn template(file: &Path) -> Result<String, ModelError> {
    read_text(file, TEMPLATE_BYTES_MAX as u64)
        .map_err(|source| ModelError::Template { file: file.display().to_string(), source })
}

/// A prompt that was admitted.
struct Prompt {
    model: Arc<Loaded>,
    tokens: Vec<Token>,
    /// Those that any conversation begins with.
    n_common: usize,
    /// It is a conversation and the model has no template.
    no_template: bool,
}

/// A request on its way to admission.
pub(super) struct Submission {
    pub request: Request,
    pub sink: Box<dyn Sink>,
    pub live: Arc<Live>,
    pub submitted_us: u64,
}

/// What is to become tokens.
#[derive(Clone, Debug)]
pub enum Text {
    /// A text as it stands.
    Plain {
        /// The text.
        text: String,
        /// With the token that begins every text, if the model has one.
        add_special: bool,
        /// Names of control tokens in it become those tokens.
        parse_special: bool,
    },
    /// A conversation in the model's template.
    Chat(Vec<Message>),
}

/// A text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// Of a conversation, its text in the model's template.
    pub prompt: Option<String>,
}

/// A text on its way to the admission thread, and who is told of its tokens.
pub(super) struct ToTokenize {
    pub uid: u32,
    pub model: Option<String>,
    pub text: Text,
    pub tell: Box<dyn FnOnce(Result<Tokenized, Fault>) + Send>,
}

/// A model that is to be loaded.
pub(super) struct ToLoad {
    pub uid: u32,
    pub model: String,
    pub pin: bool,
    /// Positions of its sequences; `None`: as it is loaded, or as configured.
    pub n_ctx: Option<usize>,
    /// `None`: the daemon's own wish.
    pub asker: Option<Asker>,
}

/// A model whose header is to be read, if that was not done yet.
pub(super) struct ToDescribe {
    pub uid: u32,
    pub id: String,
    pub tell: Box<dyn FnOnce() + Send>,
}

/// What the admission thread takes.
pub(super) enum ToAdmit {
    Submit(Box<Submission>),
    Tokenize(Box<ToTokenize>),
    Load(Box<ToLoad>),
    Describe(ToDescribe),
}

/// What waits to be read, of each uid by itself: a long text of one keeps no other waiting for more than itself.
#[derive(Default)]
struct Waiting {
    of_uid: BTreeMap<u32, VecDeque<ToAdmit>>,
    /// Whose turn it is.
    turn: VecDeque<u32>,
}

impl Waiting {
    fn push(&mut self, item: ToAdmit) {
        let uid = match &item {
            ToAdmit::Submit(s) => s.request.caller.uid,
            ToAdmit::Tokenize(t) => t.uid,
            ToAdmit::Load(l) => l.uid,
            ToAdmit::Describe(d) => d.uid,
        };
        let own = self.of_uid.entry(uid).or_default();
        if own.is_empty() {
            self.turn.push_back(uid);
        }
        own.push_back(item);
    }

    fn pop(&mut self) -> Option<ToAdmit> {
        let uid = self.turn.pop_front()?;
        let own = self.of_uid.get_mut(&uid)?;
        let item = own.pop_front();
        if own.is_empty() {
            self.of_uid.remove(&uid);
        } else {
            self.turn.push_back(uid);
        }
        item
    }
}

/// The admission thread.
pub(super) struct Admission {
    shared: Arc<Shared>,
    engine: Sender<Command>,
    /// Opened models; one whose last user is gone is opened anew.
    opened: HashMap<String, Weak<Loaded>>,
    /// Models opened so far.
    n_opened: u32,
}

impl Admission {
    pub(super) fn new(shared: Arc<Shared>, engine: Sender<Command>) -> Self {
        Self { shared, engine, opened: HashMap::new(), n_opened: 0 }
    }

    /// Serves until every sender is gone. How much may wait, senders have bounded ([`Shared::enter`]).
    pub(super) fn run(mut self, inbox: &Receiver<ToAdmit>) {
        let mut waiting = Waiting::default();
        while let Ok(first) = inbox.recv() {
            waiting.push(first);
            while let Some(item) = waiting.pop() {
                self.take(item);
                inbox.try_iter().for_each(|item| waiting.push(item));
            }
        }
    }

    fn take(&mut self, item: ToAdmit) {
        match item {
            ToAdmit::Submit(s) => {
                let uid = s.request.caller.uid;
                self.submit(*s);
                self.shared.leave(uid);
            }
            ToAdmit::Tokenize(t) => {
                let ToTokenize { uid, model, text, tell } = *t;
                let read = catch_unwind(AssertUnwindSafe(|| self.read(model.as_deref(), &text)));
                tell(read.unwrap_or_else(|_| Err(unprepared())));
                self.shared.leave(uid);
            }
            ToAdmit::Load(l) => {
                self.shared.leave(l.uid);
                self.load(*l);
            }
            ToAdmit::Describe(ToDescribe { uid, id, tell }) => {
                self.shared.leave(uid);
                if self.shared.undescribed(&id) {
                    // A model that cannot be read is told of as failed.
                    drop(self.model(Some(&id)));
                }
                tell();
            }
        }
    }

    fn load(&mut self, to: ToLoad) {
        let ToLoad { model: name, pin, n_ctx, asker, .. } = to;
        let opened = catch_unwind(AssertUnwindSafe(|| self.open(Some(&name), n_ctx)));
        match (opened.unwrap_or_else(|_| Err(unprepared())), asker) {
            (Ok(model), asker) => {
                // A stopped engine lets go of the sink, and who reads it is told.
                self.shared.busy.store(true, Ordering::Release);
                drop(self.engine.send(Command::Load(Box::new(Wish { model, pin, asker }))));
            }
            (Err(fault), Some(mut asker)) => {
                self.shared.metrics.error(fault.code);
                asker.sink.offer(&Event::Failed(fault));
            }
            (Err(fault), None) => {
                log::error!(model = name.as_str(), code = fault.code.as_str(); "{}", fault.message);
            }
        }
    }

    /// The tokens of a text.
    fn read(&mut self, model: Option<&str>, text: &Text) -> Result<Tokenized, Fault> {
        let model = self.model(model)?;
        match text {
            Text::Plain { text, add_special, parse_special } => {
                bounded("a text", text.len(), "text")?;
                let tok = &model.tokenizer;
                let mut tokens = Vec::new();
                if *add_special && tok.add_bos() {
                    tokens.extend(tok.bos());
                }
                let special = if *parse_special { Special::Parse } else { Special::AsText };
                tok.encode(text, special, &mut tokens);
                Ok(Tokenized { tokens, prompt: None })
            }
            Text::Chat(messages) => {
                let renderer = self.shared.options.renderer.as_deref();
                let tokens = encode_chat(&model, messages, Effort::None, renderer, "messages")?;
                let prompt = model.tokenizer.decode_with_control(&tokens);
                Ok(Tokenized { tokens, prompt: Some(String::from_utf8_lossy(&prompt).into_owned()) })
            }
        }
    }

    fn submit(&mut self, mut s: Submission) {
        // A caller that left while others were tokenized costs nothing.
        if s.live.cancelled() {
            s.sink.offer(&Event::Failed(Fault::new(Code::Cancelled, "the caller left")));
            return;
        }
        // A panic here (a template, a tokenizer) fails this request alone.
        let admitted = catch_unwind(AssertUnwindSafe(|| self.admit(&s.request)));
        let fault = match admitted {
            Ok(Ok(Prompt { model, tokens, n_common, no_template })) => {
                self.shared.spend(s.request.caller.uid, tokens.len());
                let told = Admitted { model: model.id.clone(), prompt_tokens: tokens.len(), no_template };
                s.sink.offer(&Event::Admitted(told));
                let job = Job {
                    request: s.request,
                    sink: s.sink,
                    live: s.live,
                    model,
                    tokens,
                    n_common,
                    submitted_us: s.submitted_us,
                };
                self.shared.busy.store(true, Ordering::Release);
                if let Err(e) = self.engine.send(Command::Run(Box::new(job)))
                    && let Command::Run(mut job) = e.0
                {
                    job.sink.offer(&Event::Failed(super::handle::engine_gone()));
                }
                return;
            }
            Ok(Err(fault)) => fault,
            Err(_) => unprepared(),
        };
        self.shared.metrics.error(fault.code);
        s.sink.offer(&Event::Failed(fault));
    }

    fn admit(&mut self, request: &Request) -> Result<Prompt, Fault> {
        check_stops(request)?;
        if request.cache == Caching::Public && request.caller.uid != 0 {
            let message =
                "publish: what a request begins with is published for all users by root alone; leave it out";
            return Err(Fault::new(Code::NotAuthorized, message).at("publish"));
        }
        let model = self.model(request.model.as_deref())?;
        check_bias(&model, request)?;
        if request.task == Task::Embed && model.model.pooling().is_none() {
            let message =
                format!("model {} ranks pairs of texts and makes no vectors; name another", model.id);
            return Err(Fault::new(Code::UnsupportedModel, message).at("model"));
        }
        let renderer = self.shared.options.renderer.as_deref();
        let (tokens, no_template) = tokenize(&model, request, renderer)?;
        let n_ctx = model.n_ctx;
        if tokens.is_empty() {
            return Err(Fault::new(Code::InvalidValue, "the prompt has 0 tokens, at least 1 is needed")
                .at(request.input_field));
        }
        // At least one token of an answer.
        let n = tokens.len() + usize::from(request.task == Task::Generate);
        if n > n_ctx {
            let (id, more) = (&model.id, n - tokens.len());
            let message = format!(
                "the prompt has {} tokens, model {id} has room for {n_ctx} with at least {more} of the answer; \
                 shorten it, or give the model a larger context",
                tokens.len()
            );
            let fault = Fault::new(Code::ContextTooLong, message).at(request.input_field);
            return Err(fault.room(n as u64, n_ctx as u64));
        }
        let n_common = match &request.input {
            Input::Chat(_) => model.common.of(&model, request.effort, renderer, &tokens),
            _ => 0,
        };
        Ok(Prompt { model, tokens, n_common, no_template })
    }

    /// The model that `name` stands for, opened.
    fn model(&mut self, name: Option<&str>) -> Result<Arc<Loaded>, Fault> {
        self.open(name, None)
    }

    /// The same, with `n_ctx` positions if they are given.
    fn open(&mut self, name: Option<&str>, n_ctx: Option<usize>) -> Result<Arc<Loaded>, Fault> {
        let id = self.shared.resolve(name).ok_or_else(|| self.shared.unknown_model(name))?;
        let fits =
            |model: &Arc<Loaded>| n_ctx.is_none_or(|n| model.n_ctx == n.min(model.model.hyper().n_ctx_train));
        if let Some(model) = self.opened.get(&id).and_then(Weak::upgrade).filter(fits) {
            return Ok(model);
        }
        let path = self.shared.path(&id).ok_or_else(|| self.shared.unknown_model(name))?;
        self.n_opened = self.n_opened.wrapping_add(1);
        let file = ModelFile { id: id.clone(), path };
        let settings = self.shared.settings();
        let (own, o, key) = (settings.of_model.get(&id), &self.shared.options, ModelKey(self.n_opened));
        let opened = match o.mock {
            Some(mock) => Loaded::mock(key, &file, o, own, n_ctx, mock),
            None => Loaded::open(key, &file, o, own, n_ctx),
        };
        match opened {
            Ok(model) => {
                let model = Arc::new(model);
                self.shared.set_header(&id, &model);
                self.opened.insert(id, Arc::downgrade(&model));
                Ok(model)
            }
            Err(e) => {
                let fault = load_fault(&id, &e);
                self.shared.set_failed(&id, fault.code);
                log::error!(
                    message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = id.as_str();
                    "model {id}: {e}"
                );
                Err(fault)
            }
        }
    }
}

/// What is said when model `id` cannot be used.
pub(super) fn load_fault(id: &str, e: &ModelError) -> Fault {
    let code = match e {
        ModelError::Architecture { .. } => Code::UnsupportedModel,
        ModelError::KvMemory { .. } => Code::InsufficientMemory,
        _ => Code::LoadFailed,
    };
    Fault::new(code, format!("model {id}: {e}"))
}

/// What is said of a model for which there is not enough memory.
pub(super) fn short_fault(id: &str, short: &Short) -> Fault {
    let (need, have) = short.numbers();
    Fault::new(Code::InsufficientMemory, format!("model {id}: {short}")).room(need, have)
}

/// What is said when no logit of model `id` is finite after the token at position `pos`.
pub(super) fn damaged_fault(id: &str, pos: usize) -> Fault {
    Fault::new(
        Code::DamagedModel,
        format!(
            "model {id}: its weights give values that are not finite, after the token at position {pos}; the file is \
             damaged: check its checksum and get it anew (if it is sound, its keys do not fit 16 bits: they do with \
             engine.kv_type = \"f32\")"
        ),
    )
}

fn check_stops(request: &Request) -> Result<(), Fault> {
    let n = request.stop.len();
    if n > N_STOP_MAX {
        return Err(Fault::new(
            Code::InvalidValue,
            format!("{n} stop strings, at most {N_STOP_MAX} are taken"),
        )
        .at("stop"));
    }
    for (i, s) in request.stop.iter().enumerate() {
        if s.is_empty() || s.len() > STOP_BYTES_MAX {
            let message = format!("a stop string of {} bytes, 1 to {STOP_BYTES_MAX} are taken", s.len());
            return Err(Fault::new(Code::InvalidValue, message).at(format!("stop[{i}]")));
        }
    }
    Ok(())
}

fn check_bias(model: &Loaded, request: &Request) -> Result<(), Fault> {
    let n = model.model.hyper().n_vocab;
    match request.sampling.logit_bias.iter().find(|(token, _)| token.index() >= n) {
        Some((token, _)) => {
            let message = format!("logit_bias: token {} is not in the vocabulary of {n}", token.0);
            Err(Fault::new(Code::InvalidValue, message).at("logit_bias"))
        }
        None => Ok(()),
    }
}

fn unprepared() -> Fault {
    Fault::new(Code::Internal, "preparing the prompt failed; the log has the place")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_read_in_turn() {
        let mut waiting = Waiting::default();
        let text = || Text::Plain { text: String::new(), add_special: false, parse_special: false };
        for (uid, n) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")] {
            let of = ToTokenize { uid, model: Some(n.into()), text: text(), tell: Box::new(|_| {}) };
            waiting.push(ToAdmit::Tokenize(Box::new(of)));
        }
        let mut order = String::new();
        while let Some(item) = waiting.pop() {
            let ToAdmit::Tokenize(item) = item else { continue };
            order += &item.model.unwrap_or_default();
        }
        assert_eq!((order.as_str(), waiting.of_uid.len()), ("adebfc", 0));
    }
}
