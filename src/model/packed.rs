//! Packing a model: its checkpoint, with the tensors that products read in the packed layout.

use std::sync::Arc;

use super::load::Model;
use crate::format::{Checkpoint, TensorInfo};
use crate::kernel::{Kernels, Pool, Rows};
use crate::os::pages::{self, Pages};
use crate::quant::packed::{PANEL, Packing};

/// Whether weights are packed when a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pack {
    /// They are read as the file has them: mapped, shared, reclaimable.
    #[default]
    Off,
    /// Into memory of the process, where there is enough.
    Memory,
}

impl Pack {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Off, Self::Memory];

    /// The name in the configuration and of flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Memory => "memory",
        }
    }

    /// The choice of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pack| pack.name() == name)
    }
}

/// A tensor on its way into panels.
struct Job {
    name: String,
    /// In the file.
    from: TensorInfo,
    /// In the memory.
    to: TensorInfo,
}

impl Job {
    fn n_panels(&self) -> usize {
        self.from.n_rows.div_ceil(PANEL)
    }

    fn panel_bytes(&self) -> usize {
        self.to.range.len() / self.n_panels()
    }

    fn row_bytes(&self) -> usize {
        self.from.range.len() / self.from.n_rows
    }
}

/// Packs a model's matrices, a stretch at a time.
pub struct Packer {
    file: Arc<Checkpoint>,
    pages: Pages,
    jobs: Vec<Job>,
    /// The next panel: its tensor, its number there.
    next: (usize, usize),
    /// Bytes of the file that were packed, and in all.
    done: u64,
    total: u64,
}

impl Packer {
    /// Room for all matrices of `model` that products read. `None` if it is not to be packed, `kernels` have no products for
    /// it, there are no matrices of a packed format, or no memory for them beside what others need: an eighth more than
    /// they take.
    #[must_use]
    pub fn new(model: &Model, pack: Pack, kernels: &Kernels) -> Option<Self> {
        if pack == Pack::Off || !kernels.packs() {
            return None;
        }
        let (mut jobs, mut at) = (Vec::new(), 0);
        for (name, from) in model.checkpoint().tensors() {
            let packing = Packing::of(from.quant).filter(|_| !from.packed && model.packable(name));
            let Some(bytes) = packing.and_then(|packing| packing.bytes(from.n_rows, from.n_cols)) else {
                continue;
            };
            let to = TensorInfo { packed: true, range: at..at + bytes, ..from.clone() };
            jobs.push(Job { name: name.into(), from: from.clone(), to });
            at += bytes;
        }
        let room = pages::available().is_none_or(|bytes| bytes >= at as u64 + at as u64 / 8);
        if jobs.is_empty() || !room {
            return None;
        }
        // A file is read from its beginning to its end.
        jobs.sort_by_key(|job| (job.from.part, job.from.range.start));
        let total = jobs.iter().map(|job| job.from.range.len() as u64).sum();
        let pages = Pages::new(at).ok()?;
        Some(Self { file: model.checkpoint_arc(), pages, jobs, next: (0, 0), done: 0, total })
    }

    /// Bytes of the file that were packed, and that are to be packed in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    /// Packs the next `n_bytes` of the file, or a little more; false when nothing is left. What was packed is let go: its
    /// pages are the system's.
    ///
    /// # Panics
    /// Never: the reader checked shapes and lengths.
    pub fn work(&mut self, pool: &Pool, n_bytes: usize) -> bool {
        let mut left = n_bytes;
        while left > 0 {
            let (i, first) = self.next;
            let Some(job) = self.jobs.get(i) else { return false };
            let (from, row_bytes, panel_bytes) = (&job.from, job.row_bytes(), job.panel_bytes());
            let n = (left.div_ceil(PANEL * row_bytes)).min(job.n_panels() - first);
            let at = job.to.range.start + first * panel_bytes;
            let rows = Rows::new(from.quant, from.n_rows, from.n_cols, self.file.bytes(from));
            let rows = rows.expect("the reader checked shape and length");
            pool.pack(&rows, first, &mut self.pages[at..at + n * panel_bytes]);
            let bytes = (n * PANEL).min(from.n_rows - first * PANEL) * row_bytes;
            self.file.forget(from.part, from.range.start + first * PANEL * row_bytes, bytes);
            self.done += bytes as u64;
            left = left.saturating_sub(bytes);
            self.next = if first + n == job.n_panels() { (i + 1, 0) } else { (i, first + n) };
        }
        true
    }

    /// The model with its packed tensors.
    ///
    /// # Panics
    /// If something is left.
    #[must_use]
    pub fn finish(self) -> Checkpoint {
        assert_eq!(self.done, self.total, "a model is packed as a whole");
        let tensors = self.jobs.into_iter().map(|job| (job.name, job.to)).collect();
        self.file.with_tensors(Arc::new(self.pages), tensors)
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packer({} of {} bytes)", self.done, self.total)
    }
}
