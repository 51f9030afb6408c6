//! Keys and values of one layer, in the order in which attention reads them.
//!
//! Both stand in panels of 16 lanes, so that one kernel multiplies with both ([`super::Kernels::mix`]) and no sum crosses
//! lanes: a lane of a key panel is a position, a lane of a value panel a dimension.
//!
//! | | f16, f32 | q8_0 |
//! |-|-|-|
//! | keys | `[n_head_kv][n_slots / 16][head_dim][16 slots]` | the same 16 rows of weights as a packed Q8_0 panel ([`crate::quant::packed`]), `head_dim` rounded up to 32 |
//! | values | `[n_head_kv][head_dim / 16, rounded up][n_slots][16 dims]` | codes the same; scales `[n_head_kv][head_dim / 32, rounded up][n_slots]` |
//!
//! Zeroed memory from the system: pages that no position has reached cost nothing.

use std::marker::PhantomData;

use half::f16;
use zerocopy::FromZeros;

use super::pool::{Out, Pool, SMALL};
use super::{Kernels, PANEL, Q8_BLOCK};
use crate::base::limits::{ATTN_BLOCK, HEAD_DIM_MAX};
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

#[derive(Debug, PartialEq)]
pub(super) enum Stored {
    F16 { keys: Vec<f16>, values: Vec<f16> },
    F32 { keys: Vec<f32>, values: Vec<f32> },
    Q8 { keys: Vec<u8>, values: Vec<i8>, scales: Vec<f16> },
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct Cache {
    pub(super) n_head_kv: usize,
    pub(super) head_dim: usize,
    pub(super) n_slots: usize,
    pub(super) stored: Stored,
}

impl Cache {
    /// Room for `n_slots` positions, whole blocks of [`ATTN_BLOCK`]. `None` when the memory cannot be had.
    ///
    /// # Panics
    /// If slots are no whole blocks or a head is too wide.
    #[must_use]
    pub fn new(kind: KvType, n_head_kv: usize, head_dim: usize, n_slots: usize) -> Option<Self> {
        assert!(
            n_slots.is_multiple_of(ATTN_BLOCK) && head_dim <= HEAD_DIM_MAX,
            "{n_slots} slots of {head_dim}"
        );
        let n_rows = n_head_kv.checked_mul(n_slots)?;
        let n_keys = n_rows.checked_mul(head_dim)?;
        let n_values = n_rows.checked_mul(head_dim.next_multiple_of(PANEL))?;
        let stored = match kind {
            KvType::F16 => Stored::F16 {
                keys: f16::new_vec_zeroed(n_keys).ok()?,
                values: f16::new_vec_zeroed(n_values).ok()?,
            },
            KvType::F32 => Stored::F32 {
                keys: f32::new_vec_zeroed(n_keys).ok()?,
                values: f32::new_vec_zeroed(n_values).ok()?,
            },
            KvType::Q8_0 => Stored::Q8 {
                keys: u8::new_vec_zeroed((n_rows / PANEL).checked_mul(key_panel_bytes(head_dim))?).ok()?,
                values: i8::new_vec_zeroed(n_values).ok()?,
                scales: f16::new_vec_zeroed(n_rows.checked_mul(head_dim.div_ceil(Q8_BLOCK))?).ok()?,
            },
        };
        Some(Self { n_head_kv, head_dim, n_slots, stored })
    }

    /// Positions that it holds.
    #[must_use]
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Stores the keys and values of the position in `slot`, `[n_head_kv, head_dim]` each.
    ///
    /// # Panics
    /// If there is no such slot or the lengths do not agree.
    pub fn store(&mut self, kernels: &Kernels, slot: usize, k: &[f32], v: &[f32]) {
        // SAFETY: nobody else has the cache.
        unsafe { self.slots().store(kernels, slot, k, v) }
    }

    fn slots(&mut self) -> Slots<'_> {
        let places = match &mut self.stored {
            Stored::F16 { keys, values } => Places::F16 { keys: Out::new(keys), values: Out::new(values) },
            Stored::F32 { keys, values } => Places::F32 { keys: Out::new(keys), values: Out::new(values) },
            Stored::Q8 { keys, values, scales } => {
                Places::Q8 { keys: Out::new(keys), values: Out::new(values), scales: Out::new(scales) }
            }
        };
        Slots {
            n_head_kv: self.n_head_kv,
            head_dim: self.head_dim,
            n_slots: self.n_slots,
            places,
            of: PhantomData,
        }
    }
}

/// The slots of a cache, for threads that store to some of them each.
struct Slots<'a> {
    n_head_kv: usize,
    head_dim: usize,
    n_slots: usize,
    places: Places,
    of: PhantomData<&'a mut Cache>,
}

/// As [`Stored`].
enum Places {
    F16 { keys: Out<f16>, values: Out<f16> },
    F32 { keys: Out<f32>, values: Out<f32> },
    Q8 { keys: Out<u8>, values: Out<i8>, scales: Out<f16> },
}

impl Slots<'_> {
    /// As [`Cache::store`].
    ///
    /// # Safety
    /// Nobody else uses the slot meanwhile.
    unsafe fn store(&self, kernels: &Kernels, slot: usize, k: &[f32], v: &[f32]) {
        let (d, n_slots) = (self.head_dim, self.n_slots);
        assert!(slot < n_slots, "slot {slot} of {n_slots}");
        assert_eq!(
            (k.len(), v.len()),
            (self.n_head_kv * d, self.n_head_kv * d),
            "keys and values of a position"
        );
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let key_at = (head * n_slots + slot / PANEL * PANEL) * d + slot % PANEL;
            match &self.places {
                Places::F16 { keys, values } => {
                    let mut half = [f16::ZERO; HEAD_DIM_MAX];
                    let half = &mut half[..d];
                    kernels.store_f16(k, half);
                    // SAFETY: head < n_head_kv and slot < n_slots, so the elements lie inside the arrays that
                    // `Cache::new` made; each belongs to one slot, the caller's.
                    unsafe { keys.scatter(key_at, PANEL, half) };
                    kernels.store_f16(v, half);
                    // SAFETY: as above.
                    unsafe { self.values(values, head, slot, half) };
                }
                Places::F32 { keys, values } => {
                    // SAFETY: as above.
                    unsafe {
                        keys.scatter(key_at, PANEL, k);
                        self.values(values, head, slot, v);
                    }
                }
                Places::Q8 { keys, values, scales } => {
                    let n_blocks = d.div_ceil(Q8_BLOCK);
                    let (mut codes, mut own) = ([0; HEAD_DIM_MAX], [f16::ZERO; HEAD_DIM_MAX / Q8_BLOCK]);
                    let (codes, own) = (&mut codes[..n_blocks * Q8_BLOCK], &mut own[..n_blocks]);
                    kernels.store_q8(k, &mut codes[..d], own);
                    let panel = (head * n_slots + slot) / PANEL * key_panel_bytes(d);
                    let floats = panel + Q8.sections(codes.len())[3];
                    for (i, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                        let at = panel + 4 * (i * PANEL + slot % PANEL);
                        // SAFETY: as above.
                        unsafe { keys.scatter(at, 1, &four.map(|code| code as u8)) };
                    }
                    for (i, scale) in own.iter().enumerate() {
                        let at = floats + 2 * (i * PANEL + slot % PANEL);
                        // SAFETY: as above.
                        unsafe { keys.scatter(at, 1, &scale.to_le_bytes()) };
                    }
                    kernels.store_q8(v, &mut codes[..d], own);
                    // SAFETY: as above.
                    unsafe {
                        self.values(values, head, slot, &codes[..d]);
                        scales.scatter(head * n_blocks * n_slots + slot, n_slots, own);
                    }
                }
            }
        }
    }

    /// Writes the values of a head.
    ///
    /// # Safety
    /// There are this head and slot, and nobody else uses them meanwhile.
    unsafe fn values<T: Copy>(&self, values: &Out<T>, head: usize, slot: usize, v: &[T]) {
        let n_panels = self.head_dim.div_ceil(PANEL);
        for (i, part) in v.chunks(PANEL).enumerate() {
            let at = ((head * n_panels + i) * self.n_slots + slot) * PANEL;
            // SAFETY: the caller's promise; a panel of values has 16 for each slot.
            unsafe { values.scatter(at, 1, part) };
        }
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
    /// Calls `f(t, rows)` for the rows of each token, and stores its keys and values in `cache`: those of the first in
    /// slot `slot`, the others behind it, around the end.
    ///
    /// # Panics
    /// If shapes do not agree, or there are more tokens than slots.
    pub fn store_heads(&self, heads: Heads<'_>, cache: &mut Cache, slot: usize, f: &OnHeads<'_>) {
        let (n_kv, n_slots) = (cache.n_head_kv * cache.head_dim, cache.n_slots);
        let Heads { q, k, v } = heads;
        let n = k.len() / n_kv;
        let n_q = q.len() / n.max(1);
        assert_eq!((q.len(), k.len(), v.len()), (n * n_q, n * n_kv, n * n_kv), "rows of heads");
        assert!(slot < n_slots && n <= n_slots, "{n} tokens from slot {slot} of {n_slots}");
        let (wide, before) = (q.len() >= SMALL, slot % PANEL);
        let (q, k, v, slots) = (Out::new(q), Out::new(k), Out::new(v), cache.slots());
        let kernels = self.kernels();
        // Slots of a panel share lines of the cache: they are one thread's.
        self.for_each((before + n).div_ceil(PANEL), wide, &|panel| {
            for t in (panel * PANEL).max(before) - before..((panel + 1) * PANEL - before).min(n) {
                // SAFETY: t < n, so the rows lie inside their arrays; each token is in one panel, taken by one thread.
                let (q, k, v) =
                    unsafe { (q.slice(t * n_q, n_q), k.slice(t * n_kv, n_kv), v.slice(t * n_kv, n_kv)) };
                f(t, Heads { q: &mut *q, k: &mut *k, v: &mut *v });
                // SAFETY: no two of at most n_slots tokens have the same slot.
                unsafe { slots.store(kernels, (slot + t) % n_slots, k, v) };
            }
        });
    }
}
