//! The files of a directory: found, bounded, mapped or read.

use std::fmt;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Shard, Texts};
use crate::base::limits::{
    FILE_NAME_BYTES_MAX, MODEL_CONFIG_BYTES_MAX, N_PART_MAX, N_TENSOR_MAX, SAFETENSORS_INDEX_MAX,
    TEMPLATE_BYTES_MAX, TOKENIZER_BYTES_MAX,
};
use crate::base::{SharedBytes, shown};
use crate::format::FormatError;
use crate::format::checkpoint::TextFiles;
use crate::format::json::{self, Json};
use crate::os::map::{Map, MapError};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What a directory holds whose weights are read by `onnx`, if it is a file.
const GRAPH: &str = "model.onnx";

/// Reads the small files that there are.
pub(super) fn read(dir: &Path) -> Result<(Texts, TextFiles), FormatError> {
    let config = required(dir, "config.json", MODEL_CONFIG_BYTES_MAX)?;
    let tokenizer_config = optional(dir, "tokenizer_config.json", MODEL_CONFIG_BYTES_MAX)?;
    let chat_template = chat_template(dir, tokenizer_config.as_deref())?;
    let generation_config = optional(dir, "generation_config.json", MODEL_CONFIG_BYTES_MAX)?;
    let texts = Texts {
        config: (*config).as_ref().to_vec(),
        generation_config: generation_config.map(|map| (*map).as_ref().to_vec()),
        chat_template,
    };
    let shared = |map: Option<Arc<Map>>| map.map(|m| m as SharedBytes);
    let files = TextFiles {
        tokenizer_json: shared(optional(dir, "tokenizer.json", TOKENIZER_BYTES_MAX)?),
        tokenizer_config: shared(tokenizer_config),
        tokenizer_model: shared(optional(dir, "tokenizer.model", TOKENIZER_BYTES_MAX)?),
    };
    Ok((texts, files))
}

/// The chat template of a directory: a file of its own, else what its `tokenizer_config.json` has.
pub(super) fn chat_template(dir: &Path, config: Option<&Map>) -> Result<Option<String>, FormatError> {
    let in_config = match config {
        Some(map) => template_in(&named(dir, "tokenizer_config.json"), map.as_ref())?,
        None => None,
    };
    match optional(dir, "chat_template.jinja", TEMPLATE_BYTES_MAX)? {
        Some(map) => text(&named(dir, "chat_template.jinja"), (*map).as_ref()).map(Some),
        None => Ok(in_config),
    }
}

/// Whether there are weights of safetensors in a directory.
pub(super) fn has_weights(dir: &Path) -> bool {
    [WEIGHTS, INDEX].iter().any(|name| dir.join(name).is_file())
}

/// The files of tensors: one, or those that the index names.
pub(super) fn shards(dir: &Path) -> Result<Vec<Shard>, FormatError> {
    let one = optional(dir, WEIGHTS, usize::MAX)?;
    if let Some(map) = one {
        return Ok(vec![Shard { file: named(dir, WEIGHTS), bytes: map.clone(), map: Some(map) }]);
    }
    let Some(index) = optional(dir, INDEX, SAFETENSORS_INDEX_MAX)? else {
        let there = [WEIGHTS, INDEX, GRAPH].into_iter().find(|name| dir.join(name).exists());
        let why = match there {
            Some(name) => format!("holds a {name} that is no regular file"),
            None => format!("holds neither {WEIGHTS} nor {INDEX}, and no {GRAPH}"),
        };
        return Err(FormatError::Set { file: dir.display().to_string(), why });
    };
    let index_file = named(dir, INDEX);
    let mut shards = Vec::new();
    for name in index_files(&index_file, (*index).as_ref())? {
        shards.push(shard(dir, &name, INDEX)?);
    }
    Ok(shards)
}

/// The file `name` of tensors, which `by` names.
pub(super) fn shard(dir: &Path, name: &str, by: &str) -> Result<Shard, FormatError> {
    let map = Arc::new(Map::open(&dir.join(name)).map_err(|e| match e {
        MapError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            FormatError::Set { file: named(dir, name), why: format!("is missing, although {by} names it") }
        }
        other => other.into(),
    })?);
    Ok(Shard { file: named(dir, name), bytes: map.clone(), map: Some(map) })
}

/// The files that an index names, each a plain name; `file` is the index's own name for messages.
///
/// # Errors
/// On anything but an object with a `weight_map` from tensors to files of the same directory.
pub fn index_files(file: &str, bytes: &[u8]) -> Result<Vec<String>, FormatError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|e| json::wrong(file, bytes, &e))?;
    let mut names: Vec<String> = Vec::new();
    for name in index.weight_map.0 {
        let set = |why: String| FormatError::Set { file: file.into(), why };
        if !is_plain(&name) {
            let name = shown(name.as_bytes());
            return Err(set(format!(
                "names the file {name}, which is not a plain name in its own directory"
            )));
        }
        if names.len() == N_PART_MAX {
            return Err(set(format!("names more than {N_PART_MAX} files")));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(FormatError::Set { file: file.into(), why: "names no file".into() });
    }
    Ok(names)
}

/// Whether `name` is that of something in one's own directory.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0'])
        && name.len() <= FILE_NAME_BYTES_MAX
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Index {
    #[serde(rename = "metadata", default)]
    _metadata: IgnoredAny,
    weight_map: FileNames,
}

/// The different values of an object.
struct FileNames(std::collections::BTreeSet<String>);

impl<'de> Deserialize<'de> for FileNames {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = FileNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FileNames, A::Error> {
                let mut out = std::collections::BTreeSet::new();
                let mut n = 0_usize;
                while let Some((IgnoredAny, file)) = map.next_entry::<IgnoredAny, String>()? {
                    n = n.saturating_add(1);
                    if n > N_TENSOR_MAX {
                        return Err(A::Error::custom(format!("more than {N_TENSOR_MAX} tensors")));
                    }
                    out.insert(file);
                }
                Ok(FileNames(out))
            }
        }
        reader.deserialize_map(Values)
    }
}

/// The chat template in `tokenizer_config.json`: a string, or the one called `default` of a list.
///
/// # Errors
/// When the bytes are no JSON object, or the template is of another type or longer than any template.
pub fn template_in(file: &str, bytes: &[u8]) -> Result<Option<String>, FormatError> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object")]
    struct Outer<'a> {
        #[serde(borrow)]
        chat_template: Option<&'a RawValue>,
    }
    let outer: Outer<'_> = serde_json::from_slice(bytes).map_err(|e| json::wrong(file, bytes, &e))?;
    let Some(raw) = outer.chat_template else { return Ok(None) };
    let wrong = |key: &str, found: &Json| FormatError::Config {
        file: file.into(),
        key: key.into(),
        found: found.describe(),
        wanted: "a text, or a list of objects with name and template, wanted".into(),
    };
    let text = match json::parse(file, raw.get().as_bytes())? {
        Json::Str(text) => text,
        Json::List(list) => {
            if let Some(i) = list.iter().position(|one| !matches!(one, Json::Map(_))) {
                return Err(wrong(&format!("chat_template[{i}]"), list.get(i).unwrap_or(&Json::Null)));
            }
            let is_default = |one: &Json| matches!(one.get("name"), Some(Json::Str(s)) if s == "default");
            let Some(i) = list.iter().position(is_default) else { return Ok(None) };
            match list.get(i).and_then(|one| one.get("template")) {
                Some(Json::Str(text)) => text.clone(),
                other => {
                    let key = format!("chat_template[{i}].template");
                    return Err(wrong(&key, other.unwrap_or(&Json::Null)));
                }
            }
        }
        other => return Err(wrong("chat_template", &other)),
    };
    match text.len() {
        0..=TEMPLATE_BYTES_MAX => Ok(Some(text)),
        n => Err(too_long(file, n, TEMPLATE_BYTES_MAX)),
    }
}

fn text(file: &str, bytes: &[u8]) -> Result<String, FormatError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|e| FormatError::NotUtf8 {
        file: file.into(),
        what: "the text".into(),
        at: e.valid_up_to() as u64,
    })
}

pub(super) fn named(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

fn too_long(file: &str, found: usize, max: usize) -> FormatError {
    FormatError::TooLong { file: file.into(), found: found as u64, max: max as u64 }
}

/// A file that must be there.
fn required(dir: &Path, name: &str, max: usize) -> Result<Arc<Map>, FormatError> {
    optional(dir, name, max)?.ok_or_else(|| absent(dir, name))
}

/// What is said where a directory has no file `name`, which may be because it holds GGUF files.
fn absent(dir: &Path, name: &str) -> FormatError {
    let file = dir.display().to_string();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    let ggufs: Vec<_> = names.take(2).collect();
    match &ggufs[..] {
        [] => FormatError::Set { file, why: format!("holds no {name}") },
        [one] => FormatError::NotThisLayout { file, found: one.display().to_string() },
        _ => FormatError::NotThisLayout { file, found: "several GGUF files".into() },
    }
}

/// A file that may be there, of at most `max` bytes.
pub(super) fn optional(dir: &Path, name: &str, max: usize) -> Result<Option<Arc<Map>>, FormatError> {
    match Map::open(&dir.join(name)) {
        Ok(map) if map.as_ref().len() > max => Err(too_long(&named(dir, name), map.as_ref().len(), max)),
        Ok(map) => Ok(Some(Arc::new(map))),
        Err(MapError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_templates_the_default_counts() {
        let read = |text: &str| template_in("f", text.as_bytes()).expect("reads");
        assert_eq!(read(r#"{"bos_token": "<s>"}"#), None);
        assert_eq!(read(r#"{"chat_template": "one"}"#).as_deref(), Some("one"));
        let two =
            r#"{"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(read(two).as_deref(), Some("d"));
        let long = format!(r#"{{"chat_template": "{}"}}"#, "x".repeat(TEMPLATE_BYTES_MAX + 1));
        assert!(template_in("f", long.as_bytes()).is_err());
    }
}
