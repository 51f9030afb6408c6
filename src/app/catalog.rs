//! Which models there are.

use std::path::{Path, PathBuf};

use crate::engine::ModelFile;
use crate::format::hf::onnx;

/// File name of the model in the box.
const BOX: &str = "story-2.8m-q8_0.gguf";
/// Folders above a program that may hold `models/`: a build for another target lies four deep.
const ANCESTORS: usize = 5;

/// The entry of one model; its id is the file name without its ending and its count of parts, or the directory's.
pub(super) fn file(path: &Path) -> ModelFile {
    // A graph goes by the name of its directory.
    let graph = onnx::find(path).map(|(dir, _)| dir.canonicalize().unwrap_or(dir));
    let named = graph.as_deref().unwrap_or(path);
    let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
    let name = name.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    let id = part(&name).map_or(name.as_str(), |(id, _)| id);
    // It is written to logs and terminals.
    let id = id.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    ModelFile { id, path: path.to_owned() }
}

/// Splits `NAME-00001-of-00003` into its name and which part it is.
fn part(stem: &str) -> Option<(&str, &str)> {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    (digits(count) && digits(number)).then_some((name, number))
}

/// Whether `path` is a model: a `*.gguf`, of several parts the first, or a directory with a `config.json` or an ONNX graph.
fn is_model(path: &Path) -> bool {
    let first = |stem: &str| part(stem).is_none_or(|(_, number)| number == "00001");
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    match path.extension() {
        Some(e) if e == "gguf" && !path.is_dir() => first(stem),
        Some(e) if e == "onnx" && !path.is_dir() => false,
        _ => path.join("config.json").is_file() || onnx::find(path).is_some(),
    }
}

/// The models of `dirs`, sorted by id; of two with one id the earlier folder's counts. A folder that is not there is
/// empty.
pub(super) fn scan(dirs: &[PathBuf]) -> Vec<ModelFile> {
    let mut found: Vec<ModelFile> = Vec::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for path in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_model(p)) {
            let model = file(&path);
            if !found.iter().any(|m| m.id == model.id) {
                found.push(model);
            }
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// The folders that hold models where no configuration names others.
pub(super) fn default_dirs() -> Vec<PathBuf> {
    ["/var/lib/sotto/models", "/usr/share/sotto/models"].map(PathBuf::from).into()
}

/// The model in the box: installed, or in the checkout that this program was built in.
pub(super) fn in_the_box() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let above = program.ancestors().skip(1).take(ANCESTORS);
    let beside =
        above.flat_map(|dir| [dir.join("share/sotto/models").join(BOX), dir.join("models").join(BOX)]);
    let installed = default_dirs().into_iter().map(|dir| dir.join(BOX));
    beside.chain(installed).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_can_be_shown() {
        assert_eq!(file(Path::new("/m/a\nb\u{1b}[31m-00001-of-00002.gguf")).id, "a_b_[31m");
    }

    #[test]
    fn parts_and_directories_are_one_model_each() {
        let dir = std::env::temp_dir().join(format!("sotto-catalogue-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("hf.model")).unwrap();
        std::fs::create_dir_all(dir.join("other")).unwrap();
        for name in
            ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "hf.model/config.json", "c.txt"]
        {
            std::fs::write(dir.join(name), b"x").unwrap();
        }
        let ids: Vec<String> = scan(std::slice::from_ref(&dir)).into_iter().map(|m| m.id).collect();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(ids, ["a", "b", "hf.model"]);
    }
}
