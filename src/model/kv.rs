//! What a sequence keeps between its steps: keys and values of attention, in pages of 64 positions, and states of recurrent
//! layers. Sequences that begin alike share pages: one is written only while one sequence has it.

use std::sync::Arc;

use zerocopy::FromZeros;

use super::ModelError;
use crate::base::limits::ATTN_BLOCK;
use crate::kernel::{BlockShape, Blocks, BlocksMut, Page};

pub use crate::kernel::{Budget, KvType};

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
        Paging::new(self, kind).bytes(n_ctx, n_tokens_max)
    }
}

/// Layers that see equally far, and so keep the same pages.
#[derive(Clone, Copy, Debug)]
struct Group {
    window: Option<usize>,
    page_bytes: usize,
}

impl Group {
    /// The first page that a token at position `pos` sees some of.
    fn first(&self, pos: usize) -> usize {
        self.window.map_or(0, |w| (pos + 1).saturating_sub(w) / ATTN_BLOCK)
    }

    /// Most pages that a sequence keeps of a context of `n_ctx`, where steps have at most `n_tokens_max`.
    fn n_pages(&self, n_ctx: usize, n_tokens_max: usize) -> usize {
        let all = n_ctx.div_ceil(ATTN_BLOCK);
        self.window.map_or(all, |w| all.min((w + n_tokens_max).saturating_sub(2) / ATTN_BLOCK + 2))
    }
}

/// Where the blocks of a cache are.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: usize,
    /// Where in a page.
    at: usize,
    shape: BlockShape,
}

/// How what a model's sequences keep stands in pages.
#[derive(Debug)]
pub struct Paging {
    groups: Vec<Group>,
    /// Of each cache of the layout.
    places: Vec<Place>,
    states: Vec<StateShape>,
}

impl Paging {
    /// That of `layout` with keys and values stored as `kind`.
    #[must_use]
    pub fn new(layout: &Layout, kind: KvType) -> Self {
        let (mut groups, mut places) = (Vec::<Group>::new(), Vec::new());
        for cache in &layout.caches {
            let shape = BlockShape { kind, n_head_kv: cache.n_head_kv, head_dim: cache.head_dim };
            let group = groups.iter().position(|g| g.window == cache.window).unwrap_or_else(|| {
                groups.push(Group { window: cache.window, page_bytes: 0 });
                groups.len() - 1
            });
            places.push(Place { group, at: groups[group].page_bytes, shape });
            groups[group].page_bytes += shape.bytes();
        }
        Self { groups, places, states: layout.states.clone() }
    }

    /// Bytes of a sequence of `n_ctx` positions whose steps have at most `n_tokens_max`.
    #[must_use]
    pub fn bytes(&self, n_ctx: usize, n_tokens_max: usize) -> u64 {
        let pages = |g: &Group| (g.n_pages(n_ctx, n_tokens_max) as u64).saturating_mul(g.page_bytes as u64);
        self.groups.iter().map(pages).fold(self.state_bytes(), u64::saturating_add)
    }

    /// Bytes of the keys and values of 64 positions.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.page_bytes as u64).sum()
    }

    /// Bytes of the states of a sequence.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.states.iter().map(|s| 4 * (s.conv + s.state) as u64).sum()
    }

    /// Whether others can go on from a sequence only where a step of it ended: states are known there alone, and a window
    /// leaves behind what came before.
    #[must_use]
    pub fn resumes_at_steps(&self) -> bool {
        !self.states.is_empty() || self.groups.iter().any(|g| g.window.is_some())
    }

    /// From how many of `blocks`, those of a beginning, a sequence can go on; 0: it has to begin anew.
    #[must_use]
    pub fn resumable(&self, blocks: &[&Block]) -> usize {
        let whole = |n: &usize| {
            let kept = |(i, g): (usize, &Group)| {
                blocks[g.first(n * ATTN_BLOCK)..*n].iter().all(|block| block.pages[i].is_some())
            };
            let states = self.states.is_empty() || blocks[n - 1].states.is_some();
            states && self.groups.iter().enumerate().all(kept)
        };
        (1..=blocks.len()).rev().find(whole).unwrap_or(0)
    }
}

/// The state of one recurrent layer.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Inputs of its convolution, oldest first.
    pub conv: Vec<f32>,
    /// `[heads]` parts.
    pub state: Vec<f32>,
}

/// 64 positions of a sequence that others may begin with.
#[derive(Clone, Debug)]
pub struct Block {
    /// Of each group; absent where a window has left it behind.
    pages: Vec<Option<Arc<Page>>>,
    /// States of recurrent layers behind them, where they were kept.
    states: Option<Arc<Vec<State>>>,
}

impl Block {
    /// Its bytes, whoever else has them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let pages = self.pages.iter().flatten().map(|page| page.len() as u64);
        let states =
            self.states.iter().flat_map(|s| s.iter()).map(|s| 4 * (s.conv.len() + s.state.len()) as u64);
        pages.chain(states).sum()
    }
}

/// Pages of a group, one after the other.
#[derive(Debug, Default)]
struct Table {
    /// Position of the first one, in pages.
    first: usize,
    pages: Vec<Arc<Page>>,
}

/// What one sequence keeps, all layers.
#[derive(Debug)]
pub struct Kv {
    paging: Arc<Paging>,
    budget: Arc<Budget>,
    /// One for each group.
    tables: Vec<Table>,
    states: Vec<State>,
    n_ctx: usize,
    n_tokens_max: usize,
    /// Positions that hold a token.
    len: usize,
}

impl Kv {
    /// One that may come to hold `n_ctx` positions, in steps of at most `n_tokens_max`, in pages from `budget`. It has none yet:
    /// [`Self::reserve`].
    ///
    /// # Errors
    /// When there is no memory for states.
    pub fn new(
        paging: &Arc<Paging>,
        budget: &Arc<Budget>,
        n_ctx: usize,
        n_tokens_max: usize,
    ) -> Result<Self, ModelError> {
        let state = |shape: &StateShape| {
            let zeroed = |n| f32::new_vec_zeroed(n).ok();
            Some(State { conv: zeroed(shape.conv)?, state: zeroed(shape.state)? })
        };
        let states: Option<Vec<_>> = paging.states.iter().map(state).collect();
        let tables = paging.groups.iter().map(|_| Table::default()).collect();
        let (paging, budget) = (paging.clone(), budget.clone());
        match states {
            Some(states) => Ok(Self { paging, budget, tables, states, n_ctx, n_tokens_max, len: 0 }),
            None => Err(ModelError::KvMemory { need: paging.bytes(n_ctx, n_tokens_max), n_ctx }),
        }
    }

    /// Makes room for all positions at once.
    ///
    /// # Errors
    /// When the budget or the system has no more pages.
    pub fn reserve_all(&mut self) -> Result<(), ModelError> {
        for (group, table) in self.paging.groups.iter().zip(&mut self.tables) {
            while table.pages.len() < group.n_pages(self.n_ctx, self.n_tokens_max) {
                let page = Page::new(group.page_bytes, &self.budget);
                table.pages.push(Arc::new(
                    page.map_err(|_| no_memory(&self.paging, self.n_ctx, self.n_tokens_max))?,
                ));
            }
        }
        Ok(())
    }

    /// Makes room for the `n` positions behind those that hold a token: pages that are there and nobody else's.
    ///
    /// # Errors
    /// When the budget or the system has no more pages. What was there stays.
    pub fn reserve(&mut self, n: usize) -> Result<(), ModelError> {
        let (len, end) = (self.len, (self.len + n).div_ceil(ATTN_BLOCK));
        let full = |_| no_memory(&self.paging, self.n_ctx, self.n_tokens_max);
        for (group, table) in self.paging.groups.iter().zip(&mut self.tables) {
            if table.pages.is_empty() {
                table.first = group.first(len);
            }
            for i in len / ATTN_BLOCK..end {
                match table.pages.get_mut(i - table.first) {
                    None => {
                        let page = Page::new(group.page_bytes, &self.budget).map_err(full)?;
                        table.pages.push(Arc::new(page));
                    }
                    Some(page) if Arc::strong_count(page) > 1 => {
                        let own = match i * ATTN_BLOCK < len {
                            true => page.copy(),
                            false => Page::new(group.page_bytes, &self.budget),
                        };
                        *page = Arc::new(own.map_err(full)?);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Bytes of its pages and states, shared ones among them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let pages = |(g, t): (&Group, &Table)| t.pages.len() as u64 * g.page_bytes as u64;
        self.paging.groups.iter().zip(&self.tables).map(pages).sum::<u64>() + self.paging.state_bytes()
    }

    /// Positions it may come to hold.
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

    /// The `i`-th 64 positions, for others to begin with. `None` while some hold no token. With the states of recurrent
    /// layers where they end here.
    #[must_use]
    pub fn share(&self, i: usize) -> Option<Block> {
        let end = (i + 1) * ATTN_BLOCK;
        if end > self.len {
            return None;
        }
        let pages = self.tables.iter().map(|t| i.checked_sub(t.first).and_then(|i| t.pages.get(i).cloned()));
        let states = (end == self.len && !self.states.is_empty()).then(|| Arc::new(self.states.clone()));
        Some(Block { pages: pages.collect(), states })
    }

    /// Begins with `blocks`, from which [`Paging::resumable`] says that a sequence can go on.
    ///
    /// # Panics
    /// If it holds tokens already, or cannot go on from there.
    pub fn adopt(&mut self, blocks: &[&Block]) {
        assert!(self.len == 0 && self.paging.resumable(blocks) == blocks.len(), "a beginning to go on from");
        let len = blocks.len() * ATTN_BLOCK;
        assert!(len <= self.n_ctx, "{len} positions of {}", self.n_ctx);
        for (i, (group, table)) in self.paging.groups.iter().zip(&mut self.tables).enumerate() {
            table.first = group.first(len);
            table.pages.clear();
            table.pages.extend(blocks[table.first..].iter().filter_map(|block| block.pages[i].clone()));
        }
        if let Some(states) = blocks.last().and_then(|block| block.states.as_ref()) {
            for (own, state) in self.states.iter_mut().zip(states.iter()) {
                own.conv.copy_from_slice(&state.conv);
                own.state.copy_from_slice(&state.state);
            }
        }
        self.len = len;
    }

    /// Forgets the positions from `len` on, and all of them where what is left would not be enough to go on: a
    /// recurrent state cannot be taken back, and a window has dropped what came before it. Returns how many are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        if len < self.len {
            let mut tables = self.paging.groups.iter().zip(&self.tables);
            let kept = tables.all(|(g, t)| t.first <= g.first(len));
            match self.states.is_empty() && kept {
                true => self.len = len,
                false => self.clear(),
            }
        }
        self.len
    }

    /// Forgets everything; pages stay.
    fn clear(&mut self) {
        self.len = 0;
        self.tables.iter_mut().for_each(|t| t.first = 0);
        for s in &mut self.states {
            s.conv.fill(0.0);
            s.state.fill(0.0);
        }
    }

    /// A step that began at the present length was stopped: what it stored does not count.
    pub(super) fn stopped(&mut self) {
        if !self.states.is_empty() {
            self.clear();
        }
    }

    /// Positions up to `len` now hold a token: a step is complete. Pages that a window has left behind come to stand behind
    /// the last one.
    pub(super) fn advance(&mut self, len: usize) {
        assert!(len <= self.n_ctx, "{len} positions of {}", self.n_ctx);
        assert!(len - self.len <= self.n_tokens_max, "a step of {} tokens", len - self.len);
        self.len = len;
        for (group, table) in self.paging.groups.iter().zip(&mut self.tables) {
            let left = group.first(len).saturating_sub(table.first);
            table.pages.rotate_left(left);
            table.first += left;
        }
    }

    /// As if a step had filled the positions up to `len`.
    #[cfg(test)]
    pub(crate) fn advance_for_test(&mut self, len: usize) {
        self.advance(len);
    }

    /// Room to store keys and values of cache `index` in.
    pub(super) fn blocks_mut(&mut self, index: usize) -> BlocksMut<'_> {
        let Place { group, at, shape } = self.paging.places[index];
        let table = &mut self.tables[group];
        BlocksMut { shape, at, pages: &mut table.pages, first: table.first }
    }

    /// Keys and values of cache `index`.
    pub(super) fn blocks(&self, index: usize) -> Blocks<'_> {
        let Place { group, at, shape } = self.paging.places[index];
        let table = &self.tables[group];
        Blocks { shape, at, pages: &table.pages, first: table.first }
    }

    pub(super) fn state(&mut self, index: usize) -> &mut State {
        &mut self.states[index]
    }
}

fn no_memory(paging: &Paging, n_ctx: usize, n_tokens_max: usize) -> ModelError {
    ModelError::KvMemory { need: paging.bytes(n_ctx, n_tokens_max), n_ctx }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: CacheShape = CacheShape { n_head_kv: 1, head_dim: 8, window: None };
    const STATE: StateShape = StateShape { conv: 8, heads: 1, state: 4 };

    fn windowed(window: usize) -> CacheShape {
        CacheShape { window: Some(window), ..FULL }
    }

    fn kv(caches: &[CacheShape], states: &[StateShape], n_ctx: usize, n_tokens_max: usize) -> Kv {
        let layout = Layout { caches: caches.to_vec(), states: states.to_vec() };
        let paging = Arc::new(Paging::new(&layout, KvType::F16));
        Kv::new(&paging, &Budget::new(u64::MAX), n_ctx, n_tokens_max).unwrap()
    }

    /// Takes `n` tokens, in steps of at most `step`.
    fn take(kv: &mut Kv, n: usize, step: usize) {
        for i in (0..n).step_by(step) {
            let n = step.min(n - i);
            kv.reserve(n).unwrap();
            kv.advance(kv.len() + n);
        }
    }

    #[test]
    fn windows_keep_their_window_and_what_a_step_needs() {
        let shape = CacheShape { n_head_kv: 2, head_dim: 20, window: Some(100) };
        let layout = Layout { caches: vec![shape], states: vec![] };
        // A step of 128 from position p: those from p - 99 to p + 127 are in at most five pages.
        assert_eq!(layout.bytes(KvType::F32, 4_096, 128), 5 * 64 * 2 * 4 * (20 + 32));
        assert_eq!(layout.bytes(KvType::Q8_0, 4_096, 128), 5 * 64 * 2 * (36 + 32 + 2));
        assert_eq!(layout.bytes(KvType::F32, 90, 128), 2 * 64 * 2 * 4 * (20 + 32));
        for (window, step) in [(100, 128), (1, 1), (64, 64), (300, 7)] {
            let mut kv = kv(&[FULL, windowed(window)], &[], 2_000, step);
            take(&mut kv, 1_900, step);
            assert!(kv.bytes() <= kv.paging.bytes(2_000, step), "a window of {window}, steps of {step}");
            assert_eq!(kv.budget.used(), kv.bytes());
            assert!(kv.blocks(1).first * ATTN_BLOCK <= 1_901 - window);
        }
    }

    /// A cache goes back only as far as what is still there allows.
    #[test]
    fn truncation_forgets_all_where_it_must() {
        let at = |caches: &[CacheShape], states: &[StateShape], len: usize, to: usize| {
            let mut kv = kv(caches, states, 1_000, 16);
            take(&mut kv, len, 16);
            kv.truncate(to)
        };
        assert_eq!((at(&[FULL], &[], 900, 3), at(&[FULL], &[], 5, 9)), (3, 5));
        // After 500, what the next token sees begins at 461, in the page from 448 on: the token after 487 sees from 448.
        let both = [FULL, windowed(40)];
        assert_eq!((at(&both, &[], 500, 487), at(&both, &[], 500, 486), at(&both, &[], 60, 5)), (487, 0, 5));
        assert_eq!((at(&[FULL], &[STATE], 500, 499), at(&[FULL], &[STATE], 500, 500)), (0, 500));
    }

    /// Who begins with another's pages never writes to them, and memory is counted once.
    #[test]
    fn pages_are_shared_until_written() {
        let mut a = kv(&[FULL, windowed(70)], &[], 1_000, 64);
        take(&mut a, 192, 64);
        let blocks: Vec<Block> = (0..3).map(|i| a.share(i).unwrap()).collect();
        take(&mut a, 8, 64);
        let own = a.budget.used();
        assert!(a.share(3).is_none());
        let blocks: Vec<&Block> = blocks.iter().collect();
        // The window of position 192 begins at 123: the first page is gone, the other two are there.
        assert_eq!(a.paging.resumable(&blocks), 3);
        assert_eq!(a.paging.resumable(&blocks[..1]), 0, "a window has left it behind");
        let mut b = Kv::new(&a.paging, &a.budget, 1_000, 64).unwrap();
        b.adopt(&blocks);
        assert_eq!((b.len(), a.budget.used()), (192, own));
        take(&mut b, 1, 1);
        assert_eq!(a.budget.used(), own + a.paging.page_bytes());
        // Going back into a shared page copies it.
        assert_eq!(b.truncate(191), 191);
        take(&mut b, 1, 1);
        assert!(!Arc::ptr_eq(&a.tables[0].pages[2], &b.tables[0].pages[2]));
        assert!(Arc::ptr_eq(&a.tables[0].pages[1], &b.tables[0].pages[1]));
    }

    #[test]
    fn states_are_kept_where_a_block_ends() {
        let mut a = kv(&[FULL], &[STATE], 1_000, 100);
        take(&mut a, 64, 64);
        a.states[0].state[3] = 5.0;
        let first = a.share(0).unwrap();
        take(&mut a, 100, 100);
        let second = a.share(1).unwrap();
        assert_eq!(a.paging.resumable(&[&first, &second]), 1, "the second one's states are not known");
        let mut b = Kv::new(&a.paging, &a.budget, 1_000, 100).unwrap();
        b.adopt(&[&first]);
        assert_eq!((b.len(), b.states[0].state[3]), (64, 5.0));
    }

    #[test]
    fn a_budget_ends() {
        let layout = Layout { caches: vec![FULL], states: vec![] };
        let paging = Arc::new(Paging::new(&layout, KvType::F16));
        let mut kv = Kv::new(&paging, &Budget::new(2 * paging.page_bytes()), 1_000, 128).unwrap();
        take(&mut kv, 128, 128);
        assert!(kv.reserve(1).is_err() && kv.reserve_all().is_err());
        assert_eq!(kv.len(), 128);
    }
}
