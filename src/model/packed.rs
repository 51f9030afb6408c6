//! Packing a model: its checkpoint, with the tensors that products read in the packed layout, in memory or as a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::load::Model;
use super::{ModelError, vocab};
use crate::format::pack::{Form, Image, Placed, in_order};
use crate::format::{self, Checkpoint, Origin, TensorInfo};
use crate::kernel::{Pool, Rows};
use crate::os::file::{self, NewFile};
use crate::os::memory::Memory;
use crate::os::pages::{LARGE_PAGE, Pages};
use crate::os::tree::Tree;
use crate::quant::packed::PANEL;
use crate::quant::{Quant, narrow_row};

/// Whether weights are packed when a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// They are read as the file has them: mapped, shared, reclaimable.
    Off,
    /// Into memory of the process, where there is enough.
    Memory,
    /// Into a file of the cache, which is mapped; where that cannot be written, into memory.
    Cache,
}

impl Pack {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Off, Self::Memory, Self::Cache];

    /// The name in the configuration and of flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Memory => "memory",
            Self::Cache => "cache",
        }
    }

    /// The choice of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pack| pack.name() == name)
    }
}

/// Why a model is not packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// There is no matrix that could be.
    #[error("{file}: there is nothing to pack: no matrix of it begins with a panel of 16 rows")]
    Nothing {
        /// The model.
        file: String,
    },
    /// It is a directory, whose tokenizer and metadata a file of ours would lack.
    #[error(
        "{file}: a directory in the layout of Hugging Face is packed in memory alone, when it is loaded; \
         make a GGUF file of it to pack it into a file"
    )]
    Directory {
        /// The model.
        file: String,
    },
    /// It is.
    #[error("{file}: is packed already; it is loaded as it is")]
    Already {
        /// The model.
        file: String,
    },
    /// Too little memory beside what others need.
    #[error("{need} bytes of memory are needed to pack in memory, {have} can be had")]
    Memory {
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// Too little room for the file.
    #[error("{path}: {need} bytes of room are needed, {have} are free; make room, or choose another place")]
    Room {
        /// The file.
        path: String,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// More than the cache may hold.
    #[error("{path}: {need} bytes are needed, engine.pack_cache_gib allows {max}")]
    Bound {
        /// The file.
        path: String,
        /// Bytes needed.
        need: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// Nobody says where the cache is.
    #[error("there is no place for packed models: CACHE_DIRECTORY, XDG_CACHE_HOME and HOME are not set")]
    NoCache,
    /// The file cannot be written.
    #[error("{path}: cannot be written: {source}")]
    Write {
        /// The file.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// What was written cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The output matrix, and the embedding, which is the output matrix too where there is no other.
const OUTPUT: &str = "output.weight";
const EMBEDDING: &str = "token_embd.weight";
/// Bytes of a file that are written at a time, beside the maps all the memory that packing takes.
const BUFFER: usize = 4 << 20;

/// Packs a model, a stretch at a time.
pub struct Packer {
    file: Arc<Checkpoint>,
    to: Target,
    tensors: Vec<Placed>,
    /// What is next: the tensor, and its first row or panel.
    next: (usize, usize),
    /// Bytes of the file that are through, and in all.
    done: u64,
    total: u64,
}

/// Where packed tensors go.
enum Target {
    Memory(Pages),
    File(Box<Writing>),
    /// The file has its name.
    Written(PathBuf),
}

/// A packed file that is being written.
struct Writing {
    path: PathBuf,
    file: NewFile,
    image: Image,
    /// What is not written yet, and where it begins: on a border of large pages.
    buffer: Vec<u8>,
    start: usize,
    /// Of the tensor that is under way, and of those before it.
    sum: Xxh3,
    sums: Vec<u64>,
}

impl Packer {
    /// Packs into memory of the process what products read; everything else stays where it is.
    ///
    /// # Errors
    /// When there is nothing to pack, or less memory beside what others need than an eighth more than it takes.
    pub fn memory(model: &Model) -> Result<Self, PackError> {
        let file = model.checkpoint_arc();
        let mut from: Vec<_> = file.tensors().filter(|(name, t)| packs(model, name, t)).collect();
        // A file is read from its beginning to its end.
        from.sort_by_key(|(_, t)| (t.part, t.range.start));
        let (mut tensors, mut end) = (Vec::<Placed>::new(), 0);
        for (name, t) in from {
            let Some(placed) = Placed::new(name, t, Form::Packed(t.quant), end) else { continue };
            end = placed.to.range.end;
            tensors.push(placed);
        }
        if tensors.is_empty() {
            return Err(nothing(model));
        }
        let need = end as u64 + end as u64 / 8;
        let have = Memory::read(&Tree::default()).map_or(u64::MAX, |memory| memory.available);
        let pages = match need <= have {
            true => Pages::new(end).ok(),
            false => None,
        };
        let pages = pages.ok_or(PackError::Memory { need, have })?;
        Ok(Self::new(file.clone(), Target::Memory(pages), tensors))
    }

    /// The packed file of a model that was made of what `source` says ([`format::pack::identity`]). With `head` the
    /// output matrix is in that format; an embedding that is the output matrix too stands beside it, as the file has
    /// it.
    ///
    /// # Errors
    /// When there is nothing to pack.
    pub fn image(model: &Model, source: &str, head: Option<Quant>) -> Result<Image, PackError> {
        let file = model.checkpoint();
        let tied = file.tensor(OUTPUT).is_none();
        let mut forms = Vec::new();
        for (name, t) in in_order(file) {
            let form = if packs(model, name, t) { Form::Packed(t.quant) } else { Form::AsItIs };
            match head {
                Some(head) if name == OUTPUT => forms.push((name, t, Form::Packed(head))),
                Some(head) if tied && name == EMBEDDING => {
                    forms.extend([(name, t, Form::AsItIs), (OUTPUT, t, Form::Packed(head))]);
                }
                _ => forms.push((name, t, form)),
            }
        }
        let some = forms.iter().any(|(.., form)| *form != Form::AsItIs);
        if !some || file.is_packed() || file.origin() == Origin::HuggingFace {
            return Err(nothing(model));
        }
        // The tokenizer finds its pieces by tables that need not be made again.
        Image::new(file, source, &vocab::tables(file), &forms).ok_or_else(|| nothing(model))
    }

    /// Writes `image` of the model as file `path`; `spare` bytes of the file system are to stay free.
    ///
    /// # Errors
    /// When there is no room, or the file cannot be created.
    pub fn file(model: &Model, image: Image, path: &Path, spare: u64) -> Result<Self, PackError> {
        let new = create(path, image.len() as u64, spare)?;
        let tensors = image.tensors.clone();
        let writing = Writing {
            path: path.to_owned(),
            file: new,
            image,
            buffer: Vec::with_capacity(BUFFER + LARGE_PAGE),
            start: 0,
            sum: Xxh3::new(),
            sums: Vec::with_capacity(tensors.len()),
        };
        Ok(Self::new(model.checkpoint_arc(), Target::File(Box::new(writing)), tensors))
    }

    fn new(file: Arc<Checkpoint>, to: Target, tensors: Vec<Placed>) -> Self {
        let total = tensors.iter().map(|t| t.from.range.len() as u64).sum();
        Self { file, to, tensors, next: (0, 0), done: 0, total }
    }

    /// Bytes of the file that are through, and that are to be in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    /// Packs the next `n_bytes` of the file, or a little more; false when nothing is left. What was read is let go: its
    /// pages are the system's. What was written is on the disk.
    ///
    /// # Errors
    /// When a file cannot be written on; then it is gone.
    pub fn work(&mut self, pool: &Pool, n_bytes: usize) -> Result<bool, PackError> {
        let mut left = n_bytes;
        while left > 0 && self.next.0 < self.tensors.len() {
            left = left.saturating_sub(self.stretch(pool, left)?);
        }
        match std::mem::replace(&mut self.to, Target::Written(PathBuf::new())) {
            Target::File(w) if self.next.0 < self.tensors.len() => {
                w.file.sync().map_err(|source| w.failed(source))?;
                self.to = Target::File(w);
            }
            Target::File(w) => {
                self.to = Target::Written(w.publish()?);
                return Ok(true);
            }
            other => self.to = other,
        }
        Ok(left < n_bytes)
    }

    /// Packs or copies at most about `n_bytes` of one tensor, and says how many of the file's they were.
    fn stretch(&mut self, pool: &Pool, n_bytes: usize) -> Result<usize, PackError> {
        let (i, first) = self.next;
        let Placed { from, to, .. } = &self.tensors[i];
        // Rows go one by one, or as many as make a panel.
        let each = if to.packed { PANEL } else { 1 };
        let n_all = from.n_rows.div_ceil(each);
        let (taken, given) = (from.range.len() / from.n_rows * each, to.range.len() / n_all);
        let most = match &self.to {
            Target::Memory(_) => n_bytes,
            _ => n_bytes.min(BUFFER),
        };
        let n = most.div_ceil(taken.max(given)).min(n_all - first);
        let at = to.range.start + first * given;
        let source =
            from.range.start + first * taken..(from.range.start + (first + n) * taken).min(from.range.end);
        let out = match &mut self.to {
            Target::Memory(pages) => &mut pages[at..at + n * given],
            Target::File(w) => {
                // Zeros up to it: the header's place, and gaps between tensors.
                let at = at - w.start;
                w.buffer.resize(at + n * given, 0);
                &mut w.buffer[at..]
            }
            Target::Written(_) => return Ok(n_bytes),
        };
        let bytes = self.file.bytes(from);
        if to.packed {
            let rows = Rows::new(from.quant, from.n_rows, from.n_cols, bytes);
            let rows = rows.expect("the reader checked shape and length");
            match to.quant == from.quant {
                true => pool.pack(&rows, first, out),
                false => narrowed(pool, &rows, first, n, out),
            }
        } else {
            out.copy_from_slice(&bytes[source.start - from.range.start..source.end - from.range.start]);
        }
        self.file.forget(from.part, source.start, source.len());
        let ended = first + n == n_all;
        if let Target::File(w) = &mut self.to {
            w.put(n * given, ended)?;
        }
        self.next = if ended { (i + 1, 0) } else { (i, first + n) };
        self.done += source.len() as u64;
        Ok(source.len())
    }

    /// The packed model.
    ///
    /// # Errors
    /// When the file that was written cannot be read.
    ///
    /// # Panics
    /// If something is left.
    pub fn finish(self) -> Result<Checkpoint, PackError> {
        match self.to {
            Target::Memory(pages) => {
                assert_eq!(self.done, self.total, "a model is packed as a whole");
                let tensors = self.tensors.into_iter().map(|t| (t.name, t.to)).collect();
                Ok(self.file.with_tensors(Arc::new(pages), tensors))
            }
            Target::Written(path) => Ok(format::open(&path).map_err(ModelError::from)?),
            Target::File(_) => panic!("a model is packed as a whole"),
        }
    }
}

impl Writing {
    fn failed(&self, source: std::io::Error) -> PackError {
        PackError::Write { path: self.path.display().to_string(), source }
    }

    /// Takes the last `n` bytes of the buffer as the tensor's next, and `ended` as its end. Writes what fills large pages:
    /// what is written like that lies so in memory, and is mapped so.
    fn put(&mut self, n: usize, ended: bool) -> Result<(), PackError> {
        self.sum.update(&self.buffer[self.buffer.len() - n..]);
        let whole = self.buffer.len() / LARGE_PAGE * LARGE_PAGE;
        self.file.write(self.start as u64, &self.buffer[..whole]).map_err(|source| self.failed(source))?;
        self.buffer.drain(..whole);
        self.start += whole;
        if ended {
            self.sums.push(self.sum.digest());
            self.sum.reset();
        }
        Ok(())
    }

    fn publish(mut self) -> Result<PathBuf, PackError> {
        let path = self.path;
        let failed = |source| PackError::Write { path: path.display().to_string(), source };
        self.file.write(self.start as u64, &self.buffer).map_err(failed)?;
        self.file.write(0, self.image.header(&self.sums)).map_err(failed)?;
        self.file.publish().map_err(failed)?;
        Ok(path)
    }
}

/// A new file of `len` bytes; `spare` bytes of the file system are to stay free.
pub(super) fn create(path: &Path, len: u64, spare: u64) -> Result<NewFile, PackError> {
    let name = || path.display().to_string();
    let write = |source| PackError::Write { path: name(), source };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (need, have) = (len.saturating_add(spare), file::free_bytes(folder).map_err(write)?);
    if need > have {
        return Err(PackError::Room { path: name(), need, have });
    }
    NewFile::create(path, len).map_err(write)
}

/// Packs `n` panels of `rows` as Q4_0.
fn narrowed(pool: &Pool, rows: &Rows<'_>, first: usize, n: usize, out: &mut [u8]) {
    let (start, n_cols) = (first * PANEL, rows.n_cols());
    let n_rows = (n * PANEL).min(rows.n_rows() - start);
    let row_bytes = Quant::Q4_0.row_bytes(n_cols).expect("the image was made for it");
    let mut narrow = vec![0; n_rows * row_bytes];
    pool.for_each_row(&mut narrow, row_bytes, &|i, out| {
        let mut x = vec![0.0; n_cols];
        rows.unpack_part(start + i, 0, &mut x);
        narrow_row(&x, out);
    });
    pool.pack(&Rows::new(Quant::Q4_0, n_rows, n_cols, &narrow).expect("whole rows"), 0, out);
}

/// Whether the tensor is to be packed.
fn packs(model: &Model, name: &str, t: &TensorInfo) -> bool {
    !model.checkpoint().is_packed() && t.quant.row_bytes(t.n_cols).is_some() && model.packable(name)
}

fn nothing(model: &Model) -> PackError {
    let file = model.checkpoint().file().into();
    match model.checkpoint().origin() {
        _ if model.checkpoint().is_packed() => PackError::Already { file },
        Origin::HuggingFace => PackError::Directory { file },
        Origin::Gguf { .. } => PackError::Nothing { file },
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packer({} of {} bytes)", self.done, self.total)
    }
}
