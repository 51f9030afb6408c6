//! What a sequence keeps between its steps: keys and values of attention, states of recurrent layers.

use zerocopy::FromZeros;

use super::ModelError;
use crate::base::limits::ATTN_BLOCK;
use crate::kernel;

pub use crate::kernel::KvType;

/// Keys and values of a layer, or of several that share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Heads.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions that a token sees, its own among them; `None`: all.
    pub window: Option<usize>,
}

impl CacheShape {
    /// Positions that it holds for a context of `n_ctx` and steps of at most `n_tokens_max`, in whole blocks of attention.
    /// A window keeps what the first token of a step sees while the last one is stored.
    fn n_slots(&self, n_ctx: usize, n_tokens_max: usize) -> usize {
        let n = self.window.map_or(n_ctx, |w| (w + n_tokens_max - 1).min(n_ctx));
        n.next_multiple_of(ATTN_BLOCK)
    }
}

/// The state of a recurrent layer, in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// Inputs of its convolution.
    pub conv: usize,
    /// Heads, each with its part of `state`.
    pub heads: usize,
    /// Its recurrence.
    pub state: usize,
}

/// What a sequence of a model keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Keys and values.
    pub caches: Vec<CacheShape>,
    /// States.
    pub states: Vec<StateShape>,
}

impl Layout {
    /// Bytes for a context of `n_ctx` and steps of at most `n_tokens_max`.
    #[must_use]
    pub fn bytes(&self, kind: KvType, n_ctx: usize, n_tokens_max: usize) -> u64 {
        let cache = |c: &CacheShape| {
            (c.n_slots(n_ctx, n_tokens_max) as u64)
                .saturating_mul((c.n_head_kv * kind.head_bytes(c.head_dim)) as u64)
        };
        let caches = self.caches.iter().map(cache).fold(0, u64::saturating_add);
        caches.saturating_add(self.states.iter().map(|s| 4 * (s.conv + s.state) as u64).sum())
    }
}

#[derive(Debug)]
struct Cache {
    rows: kernel::Cache,
    window: Option<usize>,
}

/// The state of one recurrent layer.
#[derive(Debug)]
pub(super) struct State {
    /// Inputs of its convolution, oldest first.
    pub conv: Vec<f32>,
    /// `[heads]` parts.
    pub state: Vec<f32>,
}

/// What one sequence keeps, all layers.
#[derive(Debug)]
pub struct Kv {
    caches: Vec<Cache>,
    states: Vec<State>,
    n_ctx: usize,
    n_tokens_max: usize,
    /// Positions that hold a token.
    len: usize,
}

impl Kv {
    /// Room for `n_ctx` positions that come in steps of at most `n_tokens_max`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(layout: &Layout, kind: KvType, n_ctx: usize, n_tokens_max: usize) -> Result<Self, ModelError> {
        let cache = |shape: &CacheShape| {
            let n_slots = shape.n_slots(n_ctx, n_tokens_max);
            let rows = kernel::Cache::new(kind, shape.n_head_kv, shape.head_dim, n_slots)?;
            Some(Cache { rows, window: shape.window })
        };
        let state = |shape: &StateShape| {
            let zeroed = |n| f32::new_vec_zeroed(n).ok();
            Some(State { conv: zeroed(shape.conv)?, state: zeroed(shape.state)? })
        };
        let caches: Option<Vec<_>> = layout.caches.iter().map(cache).collect();
        let states: Option<Vec<_>> = layout.states.iter().map(state).collect();
        let (Some(caches), Some(states)) = (caches, states) else {
            return Err(ModelError::KvMemory { need: layout.bytes(kind, n_ctx, n_tokens_max), n_ctx });
        };
        Ok(Self { caches, states, n_ctx, n_tokens_max, len: 0 })
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

    /// Forgets the positions from `len` on, and all of them where what is left would not be enough to go on: a
    /// recurrent state cannot be taken back, and a window has dropped what came before it. Returns how many are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        if len < self.len {
            let kept = |c: &Cache| {
                let n = c.rows.n_slots();
                n >= self.len || c.window.is_some_and(|w| len + n >= self.len + w)
            };
            self.len = if self.states.is_empty() && self.caches.iter().all(kept) { len } else { 0 };
            self.clear_states();
        }
        self.len
    }

    /// A step that began at the present length was stopped: what it stored does not count.
    pub(super) fn stopped(&mut self) {
        if !self.states.is_empty() {
            self.len = 0;
            self.clear_states();
        }
    }

    fn clear_states(&mut self) {
        for s in &mut self.states {
            s.conv.fill(0.0);
            s.state.fill(0.0);
        }
    }

    /// Positions up to `len` now hold a token: a step is complete.
    pub(super) fn advance(&mut self, len: usize) {
        assert!(len <= self.n_ctx, "{len} positions in a cache of {}", self.n_ctx);
        assert!(len - self.len <= self.n_tokens_max, "a step of {} tokens", len - self.len);
        self.len = len;
    }

    /// Cache `index`, and its slot of `pos`, from which on `n` tokens are to be stored.
    pub(super) fn slots(&mut self, index: usize, pos: usize, n: usize) -> (&mut kernel::Cache, usize) {
        assert!(pos + n <= self.n_ctx, "positions {pos} to {} in a cache of {}", pos + n, self.n_ctx);
        let cache = &mut self.caches[index].rows;
        let slot = pos % cache.n_slots();
        (cache, slot)
    }

    /// Keys and values of cache `index`.
    pub(super) fn cache(&self, index: usize) -> &kernel::Cache {
        &self.caches[index].rows
    }

    pub(super) fn state(&mut self, index: usize) -> &mut State {
        &mut self.states[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_keep_their_window_and_what_a_step_needs() {
        let shape = CacheShape { n_head_kv: 2, head_dim: 20, window: Some(100) };
        assert_eq!(shape.n_slots(4_096, 128), 256);
        assert_eq!(shape.n_slots(90, 128), 128);
        assert_eq!(CacheShape { window: None, ..shape }.n_slots(4_095, 128), 4_096);
        let layout = Layout { caches: vec![shape], states: vec![] };
        assert_eq!(layout.bytes(KvType::F32, 4_096, 128), 256 * 2 * 4 * (20 + 32));
        assert_eq!(layout.bytes(KvType::Q8_0, 4_096, 128), 256 * 2 * (36 + 32 + 2));
    }

    /// A cache goes back only as far as what is still there allows.
    #[test]
    fn truncation_forgets_all_where_it_must() {
        let cache = |window| CacheShape { n_head_kv: 1, head_dim: 8, window };
        let at = |layout: &Layout, len: usize, to: usize| {
            let mut kv = Kv::new(layout, KvType::F16, 1_000, 16).unwrap();
            kv.len = len;
            kv.truncate(to)
        };
        let full = Layout { caches: vec![cache(None)], states: vec![] };
        assert_eq!((at(&full, 900, 3), at(&full, 5, 9)), (3, 5));
        let windowed = Layout { caches: vec![cache(None), cache(Some(40))], states: vec![] };
        // 64 slots: from 500, those from 436 on are there; the first token after 476 sees from 437 on.
        assert_eq!((at(&windowed, 500, 476), at(&windowed, 500, 475), at(&windowed, 60, 5)), (476, 0, 5));
        let recurrent = Layout { states: vec![StateShape { conv: 8, heads: 1, state: 4 }], ..full };
        assert_eq!((at(&recurrent, 500, 499), at(&recurrent, 500, 500)), (0, 500));
    }
}
