//! A directory of packed models, each made of a file that is loaded again and again.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::packed::{PackError, Packer};
use super::{Model, ModelError};
use crate::format::{self, Checkpoint, pack};
use crate::os::file::{self, UNFINISHED};

/// Ending of the files in it.
const ENDING: &str = "packed.gguf";
/// Ending, after that of a packed file, of what measurements with it found; it goes with it.
const TUNING: &str = "tuning.json";
/// Bytes of a model's name in the name of its file: with the rest it stays below what Linux takes.
const STEM_MAX: usize = 100;
/// A file that is still unfinished after this was left by a process that was ended.
const LEFT: Duration = Duration::from_secs(3_600);

/// Where packed models are kept, and how many bytes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The directory; it is made when it is needed.
    pub dir: PathBuf,
    /// The oldest go where all would be more.
    pub bytes_max: u64,
}

impl Cache {
    /// The packed form of the model `source`, if it is here and was made of that file as it is now.
    ///
    /// # Errors
    /// When it is here but damaged, or of another layout.
    pub fn find(&self, source: &Path) -> Result<Option<Checkpoint>, ModelError> {
        let Ok((place, identity)) = self.place(source) else { return Ok(None) };
        if !place.exists() {
            return Ok(None);
        }
        let found = format::open(&place)?;
        if found.str(pack::SOURCE)? != Some(&identity) {
            return Ok(None);
        }
        // What is used is young. In a directory that cannot be written nothing is removed either.
        let _ = file::touch(&place);
        Ok(Some(found))
    }

    /// What packs `model`, which `source` holds, into its file here, in place of what was made of an earlier `source`.
    /// Others are removed, the oldest first, where there would be too many bytes.
    ///
    /// # Errors
    /// When there is nothing to pack, no room (a tenth of the file is to stay free), or the directory cannot be
    /// written.
    pub fn packer(&self, model: &Model, source: &Path) -> Result<Packer, PackError> {
        let write = |path: &Path| {
            let path = path.display().to_string();
            move |source| PackError::Write { path, source }
        };
        let (place, identity) = self.place(source).map_err(write(source))?;
        let image = Packer::image(model, &identity, None)?;
        let need = image.len() as u64;
        if need > self.bytes_max {
            let path = place.display().to_string();
            return Err(PackError::Bound { path, need, max: self.bytes_max });
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.and_then(|()| self.trim(need, &place)).map_err(write(&self.dir))?;
        removed(&tuning(&place)).map_err(write(&self.dir))?;
        Packer::file(model, image, &place, need / 10)
    }

    /// Where the packed form of `source` is, and what it must be made of.
    fn place(&self, source: &Path) -> std::io::Result<(PathBuf, String)> {
        let path = source.canonicalize()?;
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let stem = &stem[..stem.floor_char_boundary(STEM_MAX)];
        let name = format!("{stem}-{:016x}.{ENDING}", pack::hash(path.as_os_str().as_encoded_bytes()));
        Ok((self.dir.join(name), pack::identity(source)?))
    }

    /// Removes what was left unfinished, and the oldest files until `need` bytes more fit the bound; `place` is going
    /// to be replaced, and does not count.
    fn trim(&self, need: u64, place: &Path) -> std::io::Result<()> {
        let mut files: Vec<(Duration, u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some(meta) = path.symlink_metadata().ok().filter(Metadata::is_file) else { continue };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(ENDING) && path != place {
                files.push((file::age(&meta), meta.len(), path));
            } else if name.contains(ENDING) && name.ends_with(UNFINISHED) && file::age(&meta) > LEFT {
                removed(&path)?;
            }
        }
        files.sort();
        let mut sum = need;
        for (_, len, path) in files {
            sum = sum.saturating_add(len);
            if sum > self.bytes_max {
                removed(&path)?;
                removed(&tuning(&path))?;
            }
        }
        Ok(())
    }
}

/// Where what measurements with a packed file found is kept.
#[must_use]
pub fn tuning(packed: &Path) -> PathBuf {
    let mut path = packed.as_os_str().to_owned();
    path.push(".");
    path.push(TUNING);
    path.into()
}

/// Removes a file, which another process may have done a moment ago.
fn removed(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
