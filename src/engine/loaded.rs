//! An opened model with what admission needs of it: its hyperparameters, tokenizer and template, no weights in memory yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::manners::Short;
use super::mock::Play;
use super::prompt::Common;
use super::scheduler::ModelKey;
use super::{Code, Fault, Mock, ModelFile, ModelHeader, ModelSettings, Options};
use crate::base::limits::TEMPLATE_BYTES_MAX;
use crate::format::hf::onnx::{self, GraphDir};
use crate::format::{self, Checkpoint};
use crate::model::{KvType, Model, ModelError, vocab};
use crate::os::file::read_text;
use crate::side::graph::GraphError;
use crate::text::Tokenizer;

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
const LICENSE: &str = "general.license";

/// What computes.
pub(super) enum Body {
    /// Our own decoder, with these weights: as the file has them, or their packed form.
    Own(Arc<Model>),
    /// A helper, with this graph.
    Graph(GraphDir),
}

/// A model with what admission needs of it.
pub(super) struct Loaded {
    /// Names it in the scheduler.
    pub key: ModelKey,
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    pub body: Body,
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
    pub common: Common,
    /// It cannot be had in place of the same model with another context, which stays.
    pub refused: AtomicBool,
}

/// What is to be opened, and how.
pub(super) struct Opening<'o> {
    /// What will name it in the scheduler.
    pub key: ModelKey,
    pub file: &'o ModelFile,
    pub options: &'o Options,
    /// What it has of its own, in place of `options`.
    pub own: Option<&'o ModelSettings>,
    /// Positions of its sequences, in place of both.
    pub n_ctx: Option<usize>,
}

impl Loaded {
    /// Opens a model file with its tokenizer and template; its packed form where the cache has one. A mock's has no file.
    pub(super) fn open(opening: &Opening) -> Result<Self, ModelError> {
        let Opening { file: ModelFile { id, path }, options, .. } = opening;
        if let Some(mock) = options.mock {
            let loaded = Self::new(opening, Mock::checkpoint(id)?)?;
            return Ok(Self { play: Some(Play::new(id, mock)), ..loaded });
        }
        if let Some((dir, graph)) = onnx::find(path) {
            return Self::of_graph(opening, onnx::open(&dir, &graph)?);
        }
        let packed = match options.used_cache().map(|cache| cache.find(path)) {
            None | Some(Ok(None)) => None,
            Some(Ok(Some(found))) => Some(Self::new(opening, found)),
            Some(Err(e)) => Some(Err(e)),
        };
        match packed {
            Some(Ok(loaded)) => return Ok(loaded),
            Some(Err(e)) => log::warn!("model {id}: packed anew: {e}"),
            None => {}
        }
        Self::new(opening, format::open(path)?)
    }

    fn of_graph(opening: &Opening, dir: GraphDir) -> Result<Self, ModelError> {
        let tokenizer = vocab::of_graph(&dir)?;
        let (own_template, n_max) = (dir.chat_template.clone().unwrap_or_default(), dir.n_ctx);
        Self::with(opening, Body::Graph(dir), tokenizer, &own_template, n_max)
    }

    fn new(opening: &Opening, checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let model = Arc::new(Model::new(Arc::new(checkpoint))?);
        let tokenizer = vocab::tokenizer(model.checkpoint())?;
        if tokenizer.n_vocab() > model.hyper().n_vocab {
            return Err(ModelError::Hyper {
                file: model.checkpoint().file().into(),
                key: format!("the length of {}", vocab::pieces_key(model.checkpoint())),
                found: tokenizer.n_vocab().to_string(),
                wanted: format!("at most the {} rows of token_embd.weight wanted", model.hyper().n_vocab),
            });
        }
        // A value that is no text is refused here, not when somebody asks. It may be as long as the file, and stays there.
        let own_template = model.checkpoint().str(CHAT_TEMPLATE)?.unwrap_or_default();
        Self::with(opening, Body::Own(model.clone()), tokenizer, own_template, model.hyper().n_ctx_train)
    }

    /// With `n_max` positions at the most.
    fn with(
        opening: &Opening,
        body: Body,
        tokenizer: Tokenizer,
        own_template: &str,
        n_max: usize,
    ) -> Result<Self, ModelError> {
        let &Opening { key, file, options, own, n_ctx } = opening;
        let ModelFile { id, path } = file.clone();
        let template = own.and_then(|own| own.template.as_deref()).map(template).transpose()?;
        let tokenizer = tokenizer.with_template(template.as_deref().unwrap_or(own_template));
        let n_ctx = n_ctx.or(own.and_then(|own| own.n_ctx)).unwrap_or(options.n_ctx);
        Ok(Self {
            key,
            id,
            path,
            tokenizer,
            n_ctx: n_ctx.min(n_max),
            kv: own.and_then(|own| own.kv).unwrap_or(options.kv),
            max_sequences: own.and_then(|own| own.max_sequences).unwrap_or(options.max_sequences),
            template,
            play: None,
            common: Common::default(),
            refused: AtomicBool::new(false),
            body,
        })
    }

    /// The source of its chat template.
    pub(super) fn template(&self) -> Option<&str> {
        self.template.as_deref().or_else(|| match &self.body {
            Body::Own(model) => model.checkpoint().str(CHAT_TEMPLATE).ok().flatten(),
            Body::Graph(dir) => dir.chat_template.as_deref(),
        })
    }

    /// The weights of our own decoder, if that runs it.
    pub(super) fn own(&self) -> Option<&Arc<Model>> {
        match &self.body {
            Body::Own(model) => Some(model),
            Body::Graph(_) => None,
        }
    }

    /// Tokens that may be asked for are below this.
    pub(super) fn n_vocab(&self) -> usize {
        self.own().map_or_else(|| self.tokenizer.n_vocab(), |model| model.hyper().n_vocab)
    }

    /// Positions that it may have.
    pub(super) fn n_ctx_train(&self) -> usize {
        match &self.body {
            Body::Own(model) => model.hyper().n_ctx_train,
            Body::Graph(dir) => dir.n_ctx,
        }
    }

    /// Whether it makes vectors of texts.
    pub(super) fn embeds(&self) -> bool {
        match &self.body {
            Body::Own(model) => model.pooling().is_some(),
            Body::Graph(dir) => !dir.generates,
        }
    }

    /// Whether it continues text.
    pub(super) fn generates(&self) -> bool {
        match &self.body {
            Body::Own(_) => true,
            Body::Graph(dir) => dir.generates,
        }
    }

    /// Bytes of its files.
    pub(super) fn file_bytes(&self) -> u64 {
        match &self.body {
            Body::Own(model) => model.file_bytes(),
            Body::Graph(dir) => dir.bytes,
        }
    }

    /// What the doors tell of it.
    pub(super) fn header(&self) -> ModelHeader {
        let known = ModelHeader {
            n_ctx: self.n_ctx,
            n_ctx_train: self.n_ctx_train(),
            chat: self.template().is_some() && self.generates(),
            embeds: self.embeds(),
            generates: self.generates(),
            ..ModelHeader::default()
        };
        match &self.body {
            Body::Own(model) => ModelHeader {
                architecture: model.architecture().into(),
                quantization: model.quantization().into(),
                parameters: model.parameters(),
                license: model.checkpoint().str(LICENSE).ok().flatten().unwrap_or_default().into(),
                ..known
            },
            Body::Graph(dir) => {
                ModelHeader { architecture: dir.architecture.clone(), quantization: "ONNX".into(), ..known }
            }
        }
    }
}

/// The chat template in a file.
fn template(file: &Path) -> Result<String, ModelError> {
    read_text(file, TEMPLATE_BYTES_MAX as u64)
        .map_err(|source| ModelError::Template { file: file.display().to_string(), source })
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

/// What is said when the helper of model `id` fails.
pub(super) fn graph_fault(id: &str, e: &GraphError) -> Fault {
    let code = match e {
        GraphError::NoHelper { .. } | GraphError::NoService { .. } => Code::UnsupportedModel,
        _ => Code::LoadFailed,
    };
    Fault::new(code, format!("model {id}: {e}"))
}

/// What is said of a model for which there is not enough memory.
pub(super) fn short_fault(id: &str, short: &Short) -> Fault {
    let (need, have) = short.numbers();
    Fault::new(Code::InsufficientMemory, format!("model {id}: {short}")).room(need, have)
}

/// What is said when model `id` makes a vector of a text that is none.
pub(super) fn no_vector_fault(id: &str) -> Fault {
    Fault::new(
        Code::DamagedModel,
        format!(
            "model {id}: its weights make a vector of the text that is not finite, or of nothing but zeros; the file is \
             damaged: check its checksum and get it anew"
        ),
    )
}

/// What is said when no logit of model `id` is finite after the token at position `pos`; `ours` has a cache of its own.
pub(super) fn damaged_fault(id: &str, pos: usize, ours: bool) -> Fault {
    let narrow = match ours {
        true => " (if it is sound, its keys do not fit 16 bits: they do with engine.kv_type = \"f32\")",
        false => "",
    };
    Fault::new(
        Code::DamagedModel,
        format!(
            "model {id}: its weights give values that are not finite, after the token at position {pos}; the file is \
             damaged: check its checksum and get it anew{narrow}"
        ),
    )
}
