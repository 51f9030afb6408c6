//! Which model files there are.

use std::path::{Path, PathBuf};

use crate::engine::ModelFile;

/// File name of the model in the box.
const BOX: &str = "story-2.8m-q8_0.gguf";
/// Folders above a program that may hold `models/`: a build for another target lies four deep.
const ANCESTORS: usize = 5;

/// The entry of one file; its id is the file name without its ending.
pub(super) fn file(path: &Path) -> ModelFile {
    let id = path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    ModelFile { id, path: path.to_owned() }
}

/// The `*.gguf` files of `dirs`, sorted by id; of two with one id the earlier folder's counts. A folder that is not
/// there is empty.
pub(super) fn scan(dirs: &[PathBuf]) -> Vec<ModelFile> {
    let mut found: Vec<ModelFile> = Vec::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            let model = file(&path);
            if path.extension().is_some_and(|e| e == "gguf") && !found.iter().any(|m| m.id == model.id) {
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
