//! A directory with an ONNX graph: which file it is, and what the small files beside it say of it. The graph itself is
//! read by the program that runs it (`side::graph`); its weights are read here, to be written as another file.
//!
//! The files are those of Hugging Face's hub and of sentence-transformers (`modules.json` names the folders of pooling
//! and normalisation).

mod proto;
mod weights;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{self, Config};
use super::files::{self, chat_template, named, optional};
use super::{Shard, Texts, translate_by};
use crate::base::SharedBytes;
use crate::base::limits::{MODEL_CONFIG_BYTES_MAX, N_CTX_MAX, TOKENIZER_BYTES_MAX};
use crate::format::json::{self, Json};
use crate::format::{Checkpoint, FormatError};

/// Where the graph is, in the order in which it is looked for.
const GRAPHS: [&str; 8] = [
    "model.onnx",
    "onnx/model.onnx",
    "decoder_model_merged.onnx",
    "onnx/decoder_model_merged.onnx",
    WITH_PAST,
    "onnx/decoder_with_past_model.onnx",
    // It cannot go on with a text, but has all weights.
    BEGINS,
    "onnx/decoder_model.onnx",
];
/// The graph that goes on with a text, where there are two, and the one that begins it, beside it.
const WITH_PAST: &str = "decoder_with_past_model.onnx";
const BEGINS: &str = "decoder_model.onnx";
/// What the names of graphs begin with that continue text, and of no others.
const DECODERS: &str = "decoder_";
/// Bytes of a number of a key and of a value.
const KEY_AND_VALUE: u64 = 8;
/// Positions where no file tells them: BERT's.
const N_CTX: usize = 512;

/// Which of a text's states become its vector, where the graph does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The mean of all.
    #[default]
    Mean,
    /// That of the first token.
    First,
    /// That of the last one.
    Last,
    /// Of each number the largest.
    Max,
}

/// What a directory says of its graph.
#[derive(Clone)]
pub struct GraphDir {
    /// The directory, for messages.
    pub file: String,
    /// The graph.
    pub graph: PathBuf,
    /// The graph that begins a text, where that is another one.
    pub first: Option<PathBuf>,
    /// Its bytes, and those of files beside it that begin with its name.
    pub bytes: u64,
    /// The kind of model, such as `bert`.
    pub architecture: String,
    /// Whether it continues text; else it makes vectors of texts.
    pub generates: bool,
    /// Positions of a text, special tokens among them.
    pub n_ctx: usize,
    /// Bytes that it keeps of a token of a text that it continues: keys and values as 32-bit floats.
    pub token_bytes: u64,
    /// How the states of a text become a vector.
    pub pool: Pool,
    /// Vectors have the length 1.
    pub unit: bool,
    /// `tokenizer.json`.
    pub tokenizer_json: SharedBytes,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<SharedBytes>,
    /// The chat template.
    pub chat_template: Option<String>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

impl std::fmt::Debug for GraphDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GraphDir({})", self.file)
    }
}

/// The directory of an ONNX model at `path`, which is the directory or its graph; `None` if it is something else.
#[must_use]
pub fn find(path: &Path) -> Option<(PathBuf, PathBuf)> {
    if path.extension().is_some_and(|e| e == "onnx") {
        let dir = path.parent().unwrap_or(Path::new(""));
        let above = dir.parent().filter(|_| dir.ends_with("onnx") && !dir.join("tokenizer.json").is_file());
        return Some((above.unwrap_or(dir).to_owned(), path.to_owned()));
    }
    // Weights of its own are run by our own decoder.
    if files::has_weights(path) {
        return None;
    }
    let graph = GRAPHS.iter().map(|name| path.join(name)).find(|graph| graph.is_file())?;
    Some((path.to_owned(), graph))
}

/// The model whose weights `graph` holds and which the files of `dir` describe. Its matrices lie as the graph has them,
/// most of them turned ([`TensorInfo::turned`](crate::format::TensorInfo::turned)): it is to be written anew, not to be run.
///
/// # Errors
/// When a file is missing or damaged, the weights are no floats, or the model is of a class that is not translated.
pub fn weights(dir: &Path, graph: &Path) -> Result<Checkpoint, FormatError> {
    let (texts, text) = files::read(dir)?;
    let folder = graph.parent().unwrap_or(Path::new(""));
    let name = graph.file_name().unwrap_or_default().to_string_lossy();
    let first = files::shard(folder, &name, "the command")?;
    let beside = |file: &str| files::shard(folder, file, &name);
    let mut checkpoint = translate(&dir.display().to_string(), &texts, first, &beside)?;
    checkpoint.text = text;
    Ok(checkpoint)
}

/// The same of a graph that is in memory; `beside` opens the files that it names.
///
/// # Errors
/// As [`weights`].
pub fn translate(
    dir: &str,
    texts: &Texts,
    graph: Shard,
    beside: &dyn Fn(&str) -> Result<Shard, FormatError>,
) -> Result<Checkpoint, FormatError> {
    let (file, bytes) = (graph.file.clone(), graph.bytes.clone());
    let graphs = weights::Graphs::read(&file, (*bytes).as_ref())?;
    let mut shards = vec![graph];
    for name in graphs.files()? {
        shards.push(beside(name)?);
    }
    translate_by(dir, texts, shards, |tensors, shards| graphs.give(tensors, shards))
}

impl GraphDir {
    /// Bytes that its weights take in memory: floats are kept as they are, and again as products want them.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        self.bytes.saturating_mul(2)
    }
}

/// Whether the model at `path` is a graph that makes vectors of texts, as far as the small files tell.
#[must_use]
pub fn encodes(path: &Path) -> bool {
    let Some((dir, graph)) = find(path) else { return false };
    let read = optional(&dir, "config.json", MODEL_CONFIG_BYTES_MAX).ok().flatten();
    let config = read.and_then(|map| json::parse("config.json", (*map).as_ref()).ok());
    !generates(&graph, config.as_ref().and_then(|config| config.get("architectures")))
}

/// Whether a graph of one of these classes continues text.
fn generates(graph: &Path, classes: Option<&Json>) -> bool {
    let known = |name: &str| ["ForCausalLM", "LMHeadModel"].iter().any(|end| name.ends_with(end));
    let class = |json: &Json| matches!(json, Json::Str(class) if known(class));
    graph.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DECODERS))
        || matches!(classes, Some(Json::List(list)) if list.iter().any(class))
}

/// Reads what stands beside a graph.
///
/// # Errors
/// When there is no tokenizer, or a file is damaged.
pub fn open(dir: &Path, graph: &Path) -> Result<GraphDir, FormatError> {
    let Some(tokenizer_json) = optional(dir, "tokenizer.json", TOKENIZER_BYTES_MAX)? else {
        let why = "holds no tokenizer.json; get it from where the graph is from".into();
        return Err(FormatError::Set { file: dir.display().to_string(), why });
    };
    let small = |name: &str| -> Result<Option<(String, Json)>, FormatError> {
        let file = named(dir, name);
        let map = optional(dir, name, MODEL_CONFIG_BYTES_MAX)?;
        map.map(|map| json::parse(&file, (*map).as_ref()).map(|json| (file, json))).transpose()
    };
    let (config, generation) = (small("config.json")?, small("generation_config.json")?);
    let (config, generation) = (of(&config)?, of(&generation)?);
    let eos = match &config {
        Some(config) => config::eos(config, generation.as_ref())?,
        None => Vec::new(),
    };
    let architecture = match &config {
        Some(config) => config.str(&["model_type"])?.unwrap_or("onnx").to_owned(),
        None => "onnx".to_owned(),
    };
    let generates = generates(graph, config.as_ref().and_then(|config| config.get("architectures")));
    let first = graph.file_name().filter(|name| *name == WITH_PAST).map(|_| graph.with_file_name(BEGINS));
    if let Some(first) = first.as_ref().filter(|first| !first.is_file()) {
        let why = format!("holds {WITH_PAST}, but not {} that begins texts; get it too", first.display());
        return Err(FormatError::Set { file: dir.display().to_string(), why });
    }
    let tokenizer_config = optional(dir, "tokenizer_config.json", MODEL_CONFIG_BYTES_MAX)?;
    let chat_template = chat_template(dir, tokenizer_config.as_deref())?;
    let (pool, unit) = pooling(dir, &small)?;
    Ok(GraphDir {
        file: dir.display().to_string(),
        graph: graph.to_owned(),
        bytes: bytes(graph).saturating_add(first.as_deref().map_or(0, bytes)),
        first,
        architecture,
        generates,
        n_ctx: n_ctx(&small, (*tokenizer_json).as_ref(), config.as_ref(), generates)?,
        token_bytes: config.as_ref().filter(|_| generates).map_or(0, token_bytes),
        pool,
        unit,
        tokenizer_json: tokenizer_json as SharedBytes,
        tokenizer_config: tokenizer_config.map(|map| map as SharedBytes),
        chat_template,
        eos,
    })
}

fn of(read: &Option<(String, Json)>) -> Result<Option<Config<'_>>, FormatError> {
    read.as_ref().map(|(file, json)| Config::new(file, json)).transpose()
}

/// Reads one of the small files, if it is there.
type Small<'a> = dyn Fn(&str) -> Result<Option<(String, Json)>, FormatError> + 'a;

/// How the states of a text become a vector: what `modules.json` names, else their mean as it is.
fn pooling(dir: &Path, small: &Small<'_>) -> Result<(Pool, bool), FormatError> {
    let (mut pool, mut unit) = (Pool::Mean, false);
    let Some((file, modules)) = small("modules.json")? else { return Ok((pool, unit)) };
    let Json::List(modules) = modules else {
        return Err(wrong(&file, "the whole", &modules, "a list of modules wanted"));
    };
    for (i, module) in modules.iter().enumerate() {
        let kind = match module.get("type") {
            Some(Json::Str(kind)) => kind.rsplit('.').next().unwrap_or(kind),
            _ => return Err(wrong(&file, &format!("[{i}].type"), module, "the name of a class wanted")),
        };
        match kind {
            "Transformer" => {}
            "Normalize" => unit = true,
            "Pooling" => {
                let folder = match module.get("path") {
                    Some(Json::Str(folder)) if files::is_plain(folder) => folder,
                    other => {
                        let found = other.unwrap_or(&Json::Null);
                        return Err(wrong(&file, &format!("[{i}].path"), found, "a folder beside it wanted"));
                    }
                };
                pool = pool_of(&small(&format!("{folder}/config.json"))?, dir)?;
            }
            _ => {
                let known = "Transformer, Pooling and Normalize are known; this model has a layer more";
                return Err(wrong(
                    &file,
                    &format!("[{i}].type"),
                    module.get("type").unwrap_or(module),
                    known,
                ));
            }
        }
    }
    Ok((pool, unit))
}

/// What `1_Pooling/config.json` says.
fn pool_of(read: &Option<(String, Json)>, dir: &Path) -> Result<Pool, FormatError> {
    let Some((file, json)) = read else {
        let why = "holds no configuration of the pooling that modules.json names".into();
        return Err(FormatError::Set { file: dir.display().to_string(), why });
    };
    let yes = |key: &str| json.get(key) == Some(&Json::Bool(true));
    let known = [
        ("pooling_mode_mean_tokens", Pool::Mean),
        ("pooling_mode_cls_token", Pool::First),
        ("pooling_mode_lasttoken", Pool::Last),
        ("pooling_mode_max_tokens", Pool::Max),
    ];
    let other = ["pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"];
    let mut asked = known.iter().filter(|(key, _)| yes(key));
    match (asked.next(), asked.next(), other.iter().find(|key| yes(key))) {
        (Some((_, pool)), None, None) => Ok(*pool),
        _ => {
            let wanted = "one of mean_tokens, cls_token, lasttoken and max_tokens wanted";
            Err(wrong(file, "pooling_mode_*", json, wanted))
        }
    }
}

/// Positions of a text: what was decided for sentences, else what the tokenizer cuts to, else what the model has.
fn n_ctx(
    small: &Small<'_>,
    tokenizer: &[u8],
    config: Option<&Config<'_>>,
    generates: bool,
) -> Result<usize, FormatError> {
    #[derive(Deserialize)]
    struct Tokenizer {
        truncation: Option<Truncation>,
    }
    #[derive(Deserialize)]
    struct Truncation {
        max_length: Option<usize>,
    }
    let number = |json: Option<&Json>| match json {
        // A huge number stands for none.
        Some(Json::Int(n)) => usize::try_from(*n).ok().filter(|n| (1..=N_CTX_MAX).contains(n)),
        _ => None,
    };
    let trained = config.and_then(|config| {
        let keys = ["max_position_embeddings", "n_positions", "max_seq_len"];
        keys.iter().find_map(|key| number(config.get(key)))
    });
    if generates {
        return Ok(trained.unwrap_or(N_CTX));
    }
    if let Some((_, json)) = small("sentence_bert_config.json")?
        && let Some(n) = number(json.get("max_seq_length"))
    {
        return Ok(n.min(trained.unwrap_or(N_CTX_MAX)));
    }
    // What is wrong with it is told when it is read for its tokens.
    let cut = serde_json::from_slice::<Tokenizer>(tokenizer).ok();
    let cut = cut.and_then(|t| t.truncation?.max_length).filter(|n| (1..=N_CTX_MAX).contains(n));
    let limit = small("tokenizer_config.json")?.and_then(|(_, json)| number(json.get("model_max_length")));
    Ok(cut.or(limit).or(trained).unwrap_or(N_CTX).min(trained.unwrap_or(N_CTX_MAX)))
}

/// Bytes that a decoder keeps of a token, as far as its configuration tells.
fn token_bytes(config: &Config<'_>) -> u64 {
    let number = |keys: &[&str]| match keys.iter().find_map(|key| config.get(key)) {
        Some(Json::Int(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    let heads = number(&["num_attention_heads", "n_head"]).filter(|n| *n > 0);
    let width = number(&["head_dim"]).or_else(|| number(&["hidden_size", "n_embd"])?.checked_div(heads?));
    let kept = number(&["num_key_value_heads"]).or(heads);
    let factors = [number(&["num_hidden_layers", "n_layer"]), kept, width, Some(KEY_AND_VALUE)];
    factors.into_iter().try_fold(1, |n: u64, factor| n.checked_mul(factor?)).unwrap_or(0)
}

/// Bytes of a graph with the files beside it that belong to it by their names.
fn bytes(graph: &Path) -> u64 {
    let stem = graph.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let all = graph.parent().and_then(|dir| {
        std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).ok()
    });
    let sizes = all.into_iter().flatten().flatten().filter_map(|entry| {
        let ours = entry.file_name().to_string_lossy().starts_with(&stem);
        // Through links, which the hub's cache has.
        ours.then(|| std::fs::metadata(entry.path()).ok()).flatten().map(|meta| meta.len())
    });
    sizes.fold(0, u64::saturating_add)
}

fn wrong(file: &str, key: &str, found: &Json, wanted: &str) -> FormatError {
    FormatError::Config { file: file.into(), key: key.into(), found: found.describe(), wanted: wanted.into() }
}
