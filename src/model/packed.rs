//! Weights in the packed layout, in memory of their own, made from the file's while a model is loaded.

use std::sync::Arc;

use super::layer::Matrix;
use super::load::Model;
use crate::format::Checkpoint;
use crate::kernel::{Kernels, Packed, Pool, Rows};
use crate::os::pages::{self, Pages};
use crate::quant::Quant;
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

/// A tensor and where it went.
#[derive(Debug)]
struct Tensor {
    quant: Quant,
    n_rows: usize,
    n_cols: usize,
    /// Its part of the checkpoint, and the bytes there.
    part: usize,
    start: usize,
    len: usize,
    /// First byte of its panels.
    at: usize,
    panel_bytes: usize,
}

impl Tensor {
    fn n_panels(&self) -> usize {
        self.n_rows.div_ceil(PANEL)
    }

    fn rows<'a>(&self, file: &'a Checkpoint) -> Rows<'a> {
        let bytes = &(*file.parts()[self.part]).as_ref()[self.start..self.start + self.len];
        Rows::new(self.quant, self.n_rows, self.n_cols, bytes).expect("the reader checked shape and length")
    }
}

/// Packed matrices of a model.
#[derive(Debug)]
pub struct PackedWeights {
    pages: Pages,
    /// By part and start.
    tensors: Vec<Tensor>,
}

impl PackedWeights {
    /// The matrix in panels, if it is here and begins with one.
    pub(super) fn get(&self, m: &Matrix) -> Option<Packed<'_>> {
        let behind = self.tensors.partition_point(|t| (t.part, t.start) <= (m.part, m.start));
        let t = self.tensors[..behind].last()?;
        let first_row = (m.start - t.start) * t.n_rows / t.len;
        let here = t.part == m.part && m.start + m.len <= t.start + t.len;
        if !here || !first_row.is_multiple_of(PANEL) {
            return None;
        }
        let at = t.at + first_row / PANEL * t.panel_bytes;
        let bytes = &self.pages[at..at + m.n_rows.div_ceil(PANEL) * t.panel_bytes];
        Some(Packed::new(t.quant, m.n_rows, t.n_cols, bytes).expect("room for whole panels"))
    }
}

/// Packs a model's matrices, a stretch at a time.
pub struct Packer {
    file: Arc<Checkpoint>,
    weights: PackedWeights,
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
        let (mut tensors, mut at) = (Vec::new(), 0);
        let is_table = |start: usize, part: usize| model.tables().any(|m| (m.part, m.start) == (part, start));
        for (_, t) in model.checkpoint().tensors() {
            let Some(packing) = Packing::of(t.quant) else { continue };
            let Some(bytes) = packing.bytes(t.n_rows, t.n_cols) else { continue };
            if t.n_rows == 0 || is_table(t.range.start, t.part) {
                continue;
            }
            tensors.push(Tensor {
                quant: t.quant,
                n_rows: t.n_rows,
                n_cols: t.n_cols,
                part: t.part,
                start: t.range.start,
                len: t.range.len(),
                at,
                panel_bytes: packing.sections(t.n_cols)[4],
            });
            at += bytes;
        }
        let room = pages::available().is_none_or(|bytes| bytes >= at as u64 + at as u64 / 8);
        if tensors.is_empty() || !room {
            return None;
        }
        tensors.sort_by_key(|t| (t.part, t.start));
        let total = tensors.iter().map(|t| t.len as u64).sum();
        let weights = PackedWeights { pages: Pages::new(at).ok()?, tensors };
        Some(Self { file: model.checkpoint_arc(), weights, next: (0, 0), done: 0, total })
    }

    /// Bytes of the file that were packed, and that are to be packed in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    /// Packs the next `n_bytes` of the file, or a little more; false when nothing is left. What was packed is let go: its
    /// pages are the system's.
    pub fn work(&mut self, pool: &Pool, n_bytes: usize) -> bool {
        let mut left = n_bytes;
        while left > 0 {
            let (i, first) = self.next;
            let Some(t) = self.weights.tensors.get(i) else { return false };
            let row_bytes = t.len / t.n_rows;
            let n = (left.div_ceil(PANEL * row_bytes)).min(t.n_panels() - first);
            let at = t.at + first * t.panel_bytes;
            pool.pack(&t.rows(&self.file), first, &mut self.weights.pages[at..at + n * t.panel_bytes]);
            let bytes = (n * PANEL).min(t.n_rows - first * PANEL) * row_bytes;
            self.file.forget(t.part, t.start + first * PANEL * row_bytes, bytes);
            self.done += bytes as u64;
            left = left.saturating_sub(bytes);
            self.next = if first + n == t.n_panels() { (i + 1, 0) } else { (i, first + n) };
        }
        true
    }

    /// What was packed.
    ///
    /// # Panics
    /// If something is left.
    #[must_use]
    pub fn finish(self) -> PackedWeights {
        assert_eq!(self.done, self.total, "a model is packed as a whole");
        self.weights
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packer({} of {} bytes)", self.done, self.total)
    }
}
