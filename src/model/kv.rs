//! The keys and values of one sequence.

use half::f16;
use zerocopy::FromZeros;

use super::ModelError;
use crate::kernel::{Kernels, KvView};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 32-bit floats.
    F32,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::F16, Self::F32];

    /// Its name, as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Numbers of one layer, `[n_head_kv][n_ctx][head_dim]`. Zeroed memory from the system: pages that no position has
/// reached cost nothing.
#[derive(Debug)]
enum Buf {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Buf {
    fn new(kind: KvType, n: usize) -> Option<Self> {
        match kind {
            KvType::F16 => f16::new_vec_zeroed(n).ok().map(Self::F16),
            KvType::F32 => f32::new_vec_zeroed(n).ok().map(Self::F32),
        }
    }

    fn view(&self) -> KvView<'_> {
        match self {
            Self::F16(b) => KvView::F16(b),
            Self::F32(b) => KvView::F32(b),
        }
    }

    fn store(&mut self, kernels: &Kernels, at: usize, x: &[f32]) {
        match self {
            Self::F16(b) => kernels.store_f16(x, &mut b[at..at + x.len()]),
            Self::F32(b) => b[at..at + x.len()].copy_from_slice(x),
        }
    }
}

/// Keys and values of one sequence, all layers.
#[derive(Debug)]
pub struct Kv {
    layers: Vec<(Buf, Buf)>,
    n_ctx: usize,
    n_head_kv: usize,
    head_dim: usize,
    /// Positions that hold a token.
    len: usize,
}

impl Kv {
    /// A cache of `n_ctx` positions.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        kind: KvType,
        n_layer: usize,
        n_ctx: usize,
        n_head_kv: usize,
        head_dim: usize,
    ) -> Result<Self, ModelError> {
        let n = n_ctx * n_head_kv * head_dim;
        let need = (2 * n_layer * n * kind.bytes()) as u64;
        let layer = || Some((Buf::new(kind, n)?, Buf::new(kind, n)?));
        let layers: Option<Vec<_>> = (0..n_layer).map(|_| layer()).collect();
        let layers = layers.ok_or(ModelError::KvMemory { need, n_ctx })?;
        Ok(Self { layers, n_ctx, n_head_kv, head_dim, len: 0 })
    }

    /// Positions it has room for.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Positions that hold a token.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Positions up to `len` now hold a token: a step is complete.
    pub(super) fn advance(&mut self, len: usize) {
        assert!(len <= self.n_ctx, "{len} positions in a cache of {}", self.n_ctx);
        self.len = len;
    }

    /// Stores the keys and values of one token, `[n_head_kv, head_dim]` each, at `pos` of `layer`.
    pub(super) fn store(&mut self, kernels: &Kernels, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
        assert!(pos < self.n_ctx, "position {pos} in a cache of {}", self.n_ctx);
        let (n_ctx, head_dim) = (self.n_ctx, self.head_dim);
        let (kb, vb) = &mut self.layers[layer];
        for head in 0..self.n_head_kv {
            let at = (head * n_ctx + pos) * head_dim;
            let of = head * head_dim..(head + 1) * head_dim;
            kb.store(kernels, at, &k[of.clone()]);
            vb.store(kernels, at, &v[of]);
        }
    }

    /// Keys and values of `layer`, `[n_head_kv][n_ctx][head_dim]`.
    pub(super) fn view(&self, layer: usize) -> (KvView<'_>, KvView<'_>) {
        let (k, v) = &self.layers[layer];
        (k.view(), v.view())
    }
}
