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

use half::f16;
use zerocopy::FromZeros;

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

#[derive(Debug)]
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
        let (d, n_slots) = (self.head_dim, self.n_slots);
        assert!(slot < n_slots, "slot {slot} of {n_slots}");
        assert_eq!(
            (k.len(), v.len()),
            (self.n_head_kv * d, self.n_head_kv * d),
            "keys and values of a position"
        );
        let n_panels = d.div_ceil(PANEL);
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let key_at = (head * n_slots + slot / PANEL * PANEL) * d + slot % PANEL;
            let value_at = |panel: usize| ((head * n_panels + panel) * n_slots + slot) * PANEL;
            match &mut self.stored {
                Stored::F16 { keys, values } => {
                    let mut half = [f16::ZERO; HEAD_DIM_MAX];
                    let half = &mut half[..d];
                    kernels.store_f16(k, half);
                    scatter(half, &mut keys[key_at..], PANEL);
                    kernels.store_f16(v, half);
                    for (i, part) in half.chunks(PANEL).enumerate() {
                        values[value_at(i)..][..part.len()].copy_from_slice(part);
                    }
                }
                Stored::F32 { keys, values } => {
                    scatter(k, &mut keys[key_at..], PANEL);
                    for (i, part) in v.chunks(PANEL).enumerate() {
                        values[value_at(i)..][..part.len()].copy_from_slice(part);
                    }
                }
                Stored::Q8 { keys, values, scales } => {
                    let n_blocks = d.div_ceil(Q8_BLOCK);
                    let (mut codes, mut own) = ([0; HEAD_DIM_MAX], [f16::ZERO; HEAD_DIM_MAX / Q8_BLOCK]);
                    let (codes, own) = (&mut codes[..n_blocks * Q8_BLOCK], &mut own[..n_blocks]);
                    kernels.store_q8(k, &mut codes[..d], own);
                    let bytes = key_panel_bytes(d);
                    let panel = &mut keys[(head * n_slots + slot) / PANEL * bytes..][..bytes];
                    let (steps, floats) = panel.split_at_mut(Q8.sections(codes.len())[3]);
                    for (i, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                        let at = 4 * (i * PANEL + slot % PANEL);
                        steps[at..at + 4].copy_from_slice(&four.map(|code| code as u8));
                    }
                    for (i, scale) in own.iter().enumerate() {
                        floats[2 * (i * PANEL + slot % PANEL)..][..2].copy_from_slice(&scale.to_le_bytes());
                    }
                    kernels.store_q8(v, &mut codes[..d], own);
                    for (i, part) in codes[..d].chunks(PANEL).enumerate() {
                        values[value_at(i)..][..part.len()].copy_from_slice(part);
                    }
                    scatter(own, &mut scales[head * n_blocks * n_slots + slot..], n_slots);
                }
            }
        }
    }
}

/// `y[i * stride] = x[i]`.
fn scatter<T: Copy>(x: &[T], y: &mut [T], stride: usize) {
    for (x, y) in x.iter().zip(y.iter_mut().step_by(stride)) {
        *y = *x;
    }
}
