//! Keys and values in the order in which attention reads them.
//!
//! 64 positions of some layers stand in a [`Page`], those of one layer in a block of it. Sequences that begin alike share
//! pages, so a page is written only while one sequence has it. In a block, one key-value head after the other:
//!
//! | | f16, f32 | q8_0 |
//! |-|-|-|
//! | keys | `[4 panels][head_dim][16 positions]` | the same 16 rows of weights as a packed Q8_0 panel ([`crate::quant::packed`]), `head_dim` rounded up to 32 |
//! | values | `[head_dim / 16, rounded up][64 positions][16 dims]` | codes the same; scales `[head_dim / 32, rounded up][64 positions]` |
//!
//! Both stand in panels of 16 lanes, so that one kernel multiplies with both ([`super::Kernels::mix`]) and no sum crosses
//! lanes: a lane of a key panel is a position, a lane of a value panel a dimension.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::pool::{Out, Pool, SMALL};
use super::{Kernels, PANEL, Q8_BLOCK};
use crate::base::limits::{ATTN_BLOCK, HEAD_DIM_MAX, PREFILL_CHUNK_MAX};
use crate::os::pages::Pages;
use crate::quant::Quant;
use crate::quant::packed::Packing;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit codes with a 16-bit scale for each 32 of a head.
    Q8_0,
    /// 32-bit floats.
    F32,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::F32];

    /// The name in configuration and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::F32 => "f32",
        }
    }

    /// The type of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Bytes of the keys and values of one head at one position.
    #[must_use]
    pub fn head_bytes(self, head_dim: usize) -> usize {
        let values = head_dim.next_multiple_of(PANEL);
        match self {
            Self::F16 => 2 * (head_dim + values),
            Self::Q8_0 => key_panel_bytes(head_dim) / PANEL + values + 2 * head_dim.div_ceil(Q8_BLOCK),
            Self::F32 => 4 * (head_dim + values),
        }
    }
}

/// How 8-bit keys are packed.
const Q8: Packing = match Packing::of(Quant::Q8_0) {
    Some(packing) => packing,
    None => panic!("a format with blocks"),
};

/// Bytes of 16 keys in 8 bits.
pub(super) const fn key_panel_bytes(head_dim: usize) -> usize {
    Q8.sections(head_dim.next_multiple_of(Q8_BLOCK))[4]
}

/// Memory that pages may take, of all who share it.
#[derive(Debug)]
pub struct Budget {
    max: AtomicU64,
    used: AtomicU64,
}

impl Budget {
    /// Pages of at most `max` bytes together.
    #[must_use]
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { max: AtomicU64::new(max), used: AtomicU64::new(0) })
    }

    /// Allows `max` bytes from now on, if that is more than before.
    pub fn raise(&self, max: u64) {
        self.max.fetch_max(max, Ordering::Relaxed);
    }

    /// Bytes of the pages that live.
    #[must_use]
    pub fn used(&self) -> u64 {
        // Relaxed, here and below: the count orders nothing.
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let more = |used: u64| used.checked_add(bytes).filter(|all| *all <= max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// Keys and values of 64 positions, a block of each layer that they are kept for. Zeroed memory from the system: what no
/// position has reached costs nothing.
#[derive(Debug)]
pub struct Page {
    bytes: Pages,
    budget: Arc<Budget>,
}

impl Page {
    /// A page of `len` bytes.
    ///
    /// # Errors
    /// When the budget or the system has no more.
    pub fn new(len: usize, budget: &Arc<Budget>) -> io::Result<Self> {
        if !budget.take(len as u64) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match Pages::small(len) {
            Ok(bytes) => Ok(Self { bytes, budget: budget.clone() }),
            Err(e) => {
                budget.used.fetch_sub(len as u64, Ordering::Relaxed);
                Err(e)
            }
        }
    }

    /// Another one with the same bytes.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn copy(&self) -> io::Result<Self> {
        let mut copy = Self::new(self.bytes.len(), &self.budget)?;
        copy.bytes.copy_from_slice(&self.bytes);
        Ok(copy)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// The block of a layer in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// How it stores.
    pub kind: KvType,
    /// Key-value heads.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Bytes of a head in a block, and where its values and their scales begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadShape {
    pub values: usize,
    pub scales: usize,
    pub bytes: usize,
}

impl BlockShape {
    pub(super) fn head(self) -> HeadShape {
        let (d, lanes) = (self.head_dim, self.head_dim.next_multiple_of(PANEL));
        let (keys, values, scales) = match self.kind {
            KvType::F16 => (2 * d * ATTN_BLOCK, 2 * lanes * ATTN_BLOCK, 0),
            KvType::F32 => (4 * d * ATTN_BLOCK, 4 * lanes * ATTN_BLOCK, 0),
            KvType::Q8_0 => (
                key_panel_bytes(d) * (ATTN_BLOCK / PANEL),
                lanes * ATTN_BLOCK,
                2 * d.div_ceil(Q8_BLOCK) * ATTN_BLOCK,
            ),
        };
        HeadShape { values: keys, scales: keys + values, bytes: keys + values + scales }
    }

    /// Bytes of a block: a whole number of 64.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.n_head_kv * self.head().bytes
    }
}

/// What a sequence keeps of one layer: a block in each of its pages.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// The blocks.
    pub shape: BlockShape,
    /// Where in each page they begin, in bytes; a whole number of 64.
    pub at: usize,
    /// The pages, one after the other.
    pub pages: &'a [Arc<Page>],
    /// Position of the first one, in pages.
    pub first: usize,
}

impl<'a> Blocks<'a> {
    /// Bytes of head `head` at the positions of page `page` of all.
    pub(super) fn head(&self, page: usize, head: usize) -> &'a [u8] {
        let bytes = self.shape.head().bytes;
        &self.pages[page - self.first].bytes[self.at + head * bytes..][..bytes]
    }

    /// Positions that are there.
    pub(super) fn positions(&self) -> std::ops::Range<usize> {
        self.first * ATTN_BLOCK..(self.first + self.pages.len()) * ATTN_BLOCK
    }
}

/// Bytes as numbers.
///
/// # Panics
/// If they are no whole number of them, or lie at an odd place.
pub(super) fn numbers<T: FromBytes + Immutable>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).expect("blocks begin at whole numbers of 64")
}

/// The same, to be stored to.
#[derive(Debug)]
pub struct BlocksMut<'a> {
    /// The blocks.
    pub shape: BlockShape,
    /// Where in each page they begin, in bytes; a whole number of 64.
    pub at: usize,
    /// The pages; those that are stored to are nobody else's.
    pub pages: &'a mut [Arc<Page>],
    /// Position of the first one, in pages.
    pub first: usize,
}

/// Pages that a step of one sequence stores to.
const N_PAGE: usize = PREFILL_CHUNK_MAX / ATTN_BLOCK + 1;

/// Blocks that threads store to, some positions each.
struct Slots<'a> {
    shape: BlockShape,
    /// Of the pages from `first` on.
    blocks: [Option<Out<u8>>; N_PAGE],
    first: usize,
    of: std::marker::PhantomData<&'a mut [Arc<Page>]>,
}

impl BlocksMut<'_> {
    /// The blocks of the `n` positions from `pos` on.
    ///
    /// # Panics
    /// If there are none, or somebody else has them too.
    fn slots(&mut self, pos: usize, n: usize) -> Slots<'_> {
        let (first, end) = (pos / ATTN_BLOCK, (pos + n).div_ceil(ATTN_BLOCK));
        assert!(end - first <= N_PAGE, "{n} positions at once");
        let (at, bytes) = (self.at, self.shape.bytes());
        let mut blocks = [const { None }; N_PAGE];
        let pages = &mut self.pages[first - self.first..end - self.first];
        for (block, page) in blocks.iter_mut().zip(pages) {
            let page = Arc::get_mut(page).expect("pages that are stored to are nobody else's");
            *block = Some(Out::new(&mut page.bytes[at..at + bytes]));
        }
        Slots { shape: self.shape, blocks, first, of: std::marker::PhantomData }
    }

    /// Stores the keys and values of position `pos`, `[n_head_kv, head_dim]` each.
    ///
    /// # Panics
    /// If there is no such position or the lengths do not agree.
    pub fn store(&mut self, kernels: &Kernels, pos: usize, k: &[f32], v: &[f32]) {
        // SAFETY: nobody else has the blocks.
        unsafe { self.slots(pos, 1).store(kernels, pos, k, v) }
    }
}

impl Slots<'_> {
    /// As [`BlocksMut::store`].
    ///
    /// # Safety
    /// Nobody else uses the position meanwhile.
    unsafe fn store(&self, kernels: &Kernels, pos: usize, k: &[f32], v: &[f32]) {
        let BlockShape { kind, n_head_kv, head_dim: d } = self.shape;
        assert_eq!((k.len(), v.len()), (n_head_kv * d, n_head_kv * d), "keys and values of a position");
        let Some(block) = &self.blocks[pos / ATTN_BLOCK - self.first] else { panic!("no page for {pos}") };
        let (slot, of) = (pos % ATTN_BLOCK, self.shape.head());
        let (panel, lane) = (slot / PANEL, slot % PANEL);
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let (keys, values) = (head * of.bytes, head * of.bytes + of.values);
            // SAFETY, of all below: head < n_head_kv and slot < 64, so what is written lies inside the block of
            // `self.shape.bytes()` (see `BlockShape::head`); each element belongs to one position, the caller's.
            match kind {
                KvType::F16 => {
                    let mut half = [f16::ZERO; HEAD_DIM_MAX];
                    let half = &mut half[..d];
                    kernels.store_f16(k, half);
                    // SAFETY: as above.
                    unsafe { scatter(block, keys + 2 * (panel * d * PANEL + lane), half) };
                    kernels.store_f16(v, half);
                    // SAFETY: as above.
                    unsafe { in_panels(block, values, slot, half) };
                }
                KvType::F32 => {
                    // SAFETY: as above.
                    unsafe {
                        scatter(block, keys + 4 * (panel * d * PANEL + lane), k);
                        in_panels(block, values, slot, v);
                    }
                }
                KvType::Q8_0 => {
                    let n_blocks = d.div_ceil(Q8_BLOCK);
                    let (mut codes, mut own) = ([0_i8; HEAD_DIM_MAX], [f16::ZERO; HEAD_DIM_MAX / Q8_BLOCK]);
                    let (codes, own) = (&mut codes[..n_blocks * Q8_BLOCK], &mut own[..n_blocks]);
                    kernels.store_q8(k, &mut codes[..d], own);
                    let panel = keys + panel * key_panel_bytes(d);
                    let floats = panel + Q8.sections(codes.len())[3];
                    for (i, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { block.scatter(panel + 4 * (i * PANEL + lane), 1, four.as_bytes()) };
                    }
                    for (i, scale) in own.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { block.scatter(floats + 2 * (i * PANEL + lane), 1, scale.as_bytes()) };
                    }
                    kernels.store_q8(v, &mut codes[..d], own);
                    // SAFETY: as above.
                    unsafe { in_panels(block, values, slot, &codes[..d]) };
                    for (i, scale) in own.iter().enumerate() {
                        let at = head * of.bytes + of.scales + 2 * (i * ATTN_BLOCK + slot);
                        // SAFETY: as above.
                        unsafe { block.scatter(at, 1, scale.as_bytes()) };
                    }
                }
            }
        }
    }
}

/// Writes the dimensions of a key, one to each row of 16 positions, the first at byte `at`.
///
/// # Safety
/// They lie inside the block, at whole numbers of `T`, and nobody else uses them meanwhile.
unsafe fn scatter<T: Copy>(block: &Out<u8>, at: usize, x: &[T]) {
    // SAFETY: the caller's promise.
    unsafe { block.cast::<T>(at).scatter(0, PANEL, x) };
}

/// Writes the dimensions of the value of slot `slot`, 16 of them together; the head's values begin at byte `at`.
///
/// # Safety
/// As of [`scatter`].
unsafe fn in_panels<T: Copy>(block: &Out<u8>, at: usize, slot: usize, x: &[T]) {
    for (i, part) in x.chunks(PANEL).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { block.cast::<T>(at).scatter((i * ATTN_BLOCK + slot) * PANEL, 1, part) };
    }
}

/// Rows of a token, or of several of a sequence, that attention is about to read.
#[derive(Debug)]
pub struct Heads<'a> {
    /// Queries, `[n_tokens, n_head * head_dim]`.
    pub q: &'a mut [f32],
    /// Keys, `[n_tokens, n_head_kv * head_dim]`.
    pub k: &'a mut [f32],
    /// Values, `[n_tokens, n_head_kv * head_dim]`.
    pub v: &'a mut [f32],
}

/// Takes which token it is and its rows.
type OnHeads<'a> = dyn Fn(usize, Heads<'_>) + Sync + 'a;

impl Pool {
    /// Calls `f(t, rows)` for the rows of each token, and stores its keys and values in `blocks`: those of the first at
    /// position `pos`, the others behind it.
    ///
    /// # Panics
    /// If shapes do not agree, or there are no blocks for so many.
    pub fn store_heads(&self, heads: Heads<'_>, mut blocks: BlocksMut<'_>, pos: usize, f: &OnHeads<'_>) {
        let n_kv = blocks.shape.n_head_kv * blocks.shape.head_dim;
        let Heads { q, k, v } = heads;
        let n = k.len() / n_kv;
        let n_q = q.len() / n.max(1);
        assert_eq!((q.len(), k.len(), v.len()), (n * n_q, n * n_kv, n * n_kv), "rows of heads");
        let slots = blocks.slots(pos, n);
        let (wide, before) = (q.len() >= SMALL, pos % PANEL);
        let (q, k, v) = (Out::new(q), Out::new(k), Out::new(v));
        let kernels = self.kernels();
        // Positions of a panel share lines of the cache: they are one thread's.
        self.for_each((before + n).div_ceil(PANEL), wide, &|panel| {
            for t in (panel * PANEL).max(before) - before..((panel + 1) * PANEL - before).min(n) {
                // SAFETY: t < n, so the rows lie inside their arrays; each token is in one panel, taken by one thread.
                let (q, k, v) =
                    unsafe { (q.slice(t * n_q, n_q), k.slice(t * n_kv, n_kv), v.slice(t * n_kv, n_kv)) };
                f(t, Heads { q: &mut *q, k: &mut *k, v: &mut *v });
                // SAFETY: each token has a position of its own.
                unsafe { slots.store(kernels, pos + t, k, v) };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted() {
        let budget = Budget::new(200);
        let page = Page::new(128, &budget).expect("room");
        assert_eq!((budget.used(), page.len()), (128, 128));
        assert!(Page::new(73, &budget).is_err() && page.copy().is_err());
        drop(page);
        assert_eq!(budget.used(), 0);
        assert!(Page::new(usize::MAX, &Budget::new(u64::MAX)).is_err());
    }
}
