//! Attention over a cache. Queries of one key-value head, of several tokens, are the rows of two small products for each
//! block of keys: with the keys, and, as weights, with the values.
//!
//! Blocks of 64 keys stand at absolute positions. Each has its own maximum, and is merged into the sum of its segment of
//! 512 keys in ascending order, segments likewise (Milakov and Gimelshein, "Online normalizer calculation for softmax",
//! 2018; the split over segments: Dao et al., "Flash-Decoding", 2023). Which tokens come together, and which thread has
//! which segment, changes nothing.

use std::ops::Range;

use half::f16;

use super::cache::{Blocks, KvType, key_panel_bytes, numbers};
use super::pool::{Out, Pool};
use super::tensor::{Panels, Q8Block, Q8Four, Q8View, Scores, n_fours};
use super::{BY_FOURS, Hints, Kernels, PANEL, Q8_BLOCK, math};
use crate::base::limits::{ATTN_BLOCK, HEAD_DIM_MAX};
use crate::quant::Quant;

/// Keys of a segment: what a thread takes of a long context.
const SEGMENT: usize = 8 * ATTN_BLOCK;
/// Segments that are under way at a time.
const SPLITS: usize = 16;
/// Most queries of a tile.
const ROWS: usize = 24;
/// Most floats of a tile's queries: they live on the stack.
const FLOATS: usize = 2_048;
/// Fours of a tile: of all numbers of rows, two have the most.
const FOURS: usize = if BY_FOURS { FLOATS / Q8_BLOCK / 2 } else { 0 };

/// Attention of the tokens at `pos` and after, each over the keys up to its own or the last `window` of them.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries, `[n_tokens, n_head * head_dim]`.
    pub q: &'a [f32],
    /// Keys and values, of at least the positions that the tokens see.
    pub cache: Blocks<'a>,
    /// Query heads: each key-value head serves as many of them.
    pub n_head: usize,
    /// Position of the first token.
    pub pos: usize,
    /// Keys that a token sees, its own the last; `None`: all.
    pub window: Option<usize>,
    /// Scores of products.
    pub scores: Scores,
    /// A score per query head that takes part in the sum and has no value, `[n_head]` (gpt-oss).
    pub sinks: Option<&'a [f32]>,
}

/// Largest score and sum of a query's weights so far; a query that has seen nothing has a largest of minus infinity.
type State = (f32, f32);

const NOTHING: State = (f32::NEG_INFINITY, 0.0);

/// Some queries of one key-value head on their way. A thread has one for all of its items, because clearing it takes longer
/// than a short item: what an item reads of it, it has written.
pub(super) struct Tile {
    /// `[n_rows][stride]`.
    q: [f32; FLOATS],
    /// Scores of a block, then weights.
    weights: [[f32; ATTN_BLOCK]; ROWS],
    /// Weighted values of a block, `[n_rows][stride]`.
    block: [f32; FLOATS],
    /// Those of a segment, and their states.
    sums: [f32; FLOATS],
    states: [State; ROWS],
    /// Those of all segments.
    total: [f32; FLOATS],
    /// Codes of `q`, for keys in 8 bits.
    codes: [Q8Block; FLOATS / Q8_BLOCK],
    /// Those by fours.
    fours: [Q8Four; FOURS],
}

impl Tile {
    pub(super) fn new() -> Self {
        Self {
            q: [0.0; FLOATS],
            weights: [[0.0; ATTN_BLOCK]; ROWS],
            block: [0.0; FLOATS],
            sums: [0.0; FLOATS],
            states: [NOTHING; ROWS],
            total: [0.0; FLOATS],
            codes: [Q8Block::default(); FLOATS / Q8_BLOCK],
            fours: [Q8Four::default(); FOURS],
        }
    }
}

/// Adds what stands in `x` to the weighted values `y`.
fn merge(kernels: &Kernels, (y, y_state): (&mut [f32], &mut State), (x, x_state): (&[f32], State)) {
    if x_state.0 == f32::NEG_INFINITY {
        return;
    }
    if y_state.0 == f32::NEG_INFINITY {
        y.copy_from_slice(x);
        *y_state = x_state;
        return;
    }
    let top = x_state.0.max(y_state.0);
    let (old, new) = (math::exp(y_state.0 - top), math::exp(x_state.0 - top));
    kernels.blend(y, old, x, new);
    *y_state = (top, y_state.1 * old + x_state.1 * new);
}

impl Attention<'_> {
    /// Floats of room that [`Pool::attention`] wants beside its output, for one token's heads.
    #[must_use]
    pub fn room(n_head: usize, head_dim: usize) -> usize {
        n_head * (SPLITS * (head_dim.next_multiple_of(Q8_BLOCK) + 2) + 2)
    }

    fn group(&self) -> usize {
        self.n_head / self.cache.shape.n_head_kv
    }

    fn head_dim(&self) -> usize {
        self.cache.shape.head_dim
    }

    fn width(&self) -> usize {
        self.n_head * self.head_dim()
    }

    fn n_tokens(&self) -> usize {
        self.q.len() / self.width()
    }

    /// Floats from one query of a tile to the next.
    fn stride(&self) -> usize {
        self.head_dim().next_multiple_of(Q8_BLOCK)
    }

    /// Where row `r` of a key-value head's queries has its head, in `q` and in the output.
    fn at(&self, kv_head: usize, r: usize) -> usize {
        r / self.group() * self.width() + (kv_head * self.group() + r % self.group()) * self.head_dim()
    }

    /// Positions that row `r` sees.
    fn sees(&self, r: usize) -> Range<usize> {
        let end = self.pos + r / self.group() + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    fn check(&self, out: &[f32]) {
        let (shape, n) = (self.cache.shape, self.n_tokens());
        assert!(self.group() * shape.n_head_kv == self.n_head && self.n_head > 0, "heads of an attention");
        assert!(shape.head_dim <= HEAD_DIM_MAX, "a head of {}", shape.head_dim);
        assert_eq!((self.q.len(), out.len()), (n * self.width(), n * self.width()), "shape of an attention");
        assert!(self.sinks.is_none_or(|s| s.len() == self.n_head), "a sink for each head");
        let (sees, there) = (self.sees(0).start..self.pos + n, self.cache.positions());
        assert!(there.start <= sees.start && sees.end <= there.end, "{sees:?} are seen, {there:?} are there");
    }

    /// Rows of a key-value head's queries: those of all tokens.
    fn n_rows(&self) -> usize {
        self.n_tokens() * self.group()
    }

    /// Tiles of a key-value head.
    fn n_tiles(&self) -> usize {
        self.n_rows().div_ceil((FLOATS / self.stride()).min(ROWS))
    }

    /// Rows of a tile.
    fn rows(&self, tile: usize) -> Range<usize> {
        let take = (FLOATS / self.stride()).min(ROWS);
        tile * take..((tile + 1) * take).min(self.n_rows())
    }

    /// Tiles of all key-value heads.
    fn n_items(&self) -> usize {
        self.n_tiles() * self.cache.shape.n_head_kv
    }

    /// The segments that rows see some of.
    fn segments(&self, rows: &Range<usize>) -> Range<usize> {
        self.sees(rows.start).start / SEGMENT..(self.sees(rows.end - 1).end).div_ceil(SEGMENT)
    }

    /// Puts the queries of some rows into the tile.
    fn fill(&self, kernels: &Kernels, tile: &mut Tile, kv_head: usize, rows: &Range<usize>) {
        let (d, stride, n) = (self.head_dim(), self.stride(), rows.len());
        for (q, r) in tile.q.chunks_exact_mut(stride).zip(rows.clone()) {
            q[..d].copy_from_slice(&self.q[self.at(kv_head, r)..][..d]);
            q[d..].fill(0.0);
        }
        if self.cache.shape.kind == KvType::Q8_0 {
            let (codes, n_blocks) = (&mut tile.codes[..n * stride / Q8_BLOCK], stride / Q8_BLOCK);
            kernels.quantize(&tile.q[..n * stride], codes);
            if kernels.arranges(n) {
                kernels.arrange(codes, n_blocks, &mut tile.fours[..n_fours(n, n_blocks)]);
            }
        }
    }

    /// Makes the weighted values and states of segment `segment` in the tile.
    fn segment(
        &self,
        kernels: &Kernels,
        tile: &mut Tile,
        kv_head: usize,
        rows: &Range<usize>,
        segment: usize,
    ) {
        let stride = self.stride();
        tile.states.fill(NOTHING);
        let (first, last) = (self.sees(rows.start).start, self.sees(rows.end - 1).end);
        let of = (first / ATTN_BLOCK * ATTN_BLOCK).max(segment * SEGMENT)..last.min((segment + 1) * SEGMENT);
        for start in of.step_by(ATTN_BLOCK) {
            // Keys of the block that some row sees.
            let any = first.max(start) - start..last.min(start + ATTN_BLOCK) - start;
            let block = self.cache.head(start / ATTN_BLOCK, kv_head);
            self.score(kernels, tile, rows.len(), block, &any);
            let mut states = [NOTHING; ROWS];
            for (i, r) in rows.clone().enumerate() {
                let sees = self.sees(r);
                let (from, to) = (sees.start.max(start), sees.end.min(start + ATTN_BLOCK));
                let weights = &mut tile.weights[i];
                if from < to {
                    weights[..from - start].fill(f32::NEG_INFINITY);
                    weights[to - start..].fill(f32::NEG_INFINITY);
                    states[i] = kernels.weigh(weights, self.scores);
                } else {
                    weights.fill(0.0);
                }
            }
            self.weighted(kernels, tile, rows.len(), block, &any);
            let blocks = tile.block.chunks_exact(stride).zip(states);
            let sums = tile.sums.chunks_exact_mut(stride).zip(&mut tile.states);
            sums.zip(blocks).take(rows.len()).for_each(|(y, x)| merge(kernels, y, x));
        }
    }

    /// Products of the queries with the keys of the panels in which `any` are, of a head's block.
    fn score(&self, k: &Kernels, tile: &mut Tile, n: usize, block: &[u8], any: &Range<usize>) {
        let (d, stride) = (self.head_dim(), self.stride());
        let panels = any.start / PANEL..any.end.div_ceil(PANEL);
        let keys = &block[..self.cache.shape.head().values];
        let out = &mut tile.weights.as_flattened_mut()[..n * ATTN_BLOCK];
        let out = (&mut out[panels.start * PANEL..], ATTN_BLOCK);
        let (first, by) = (panels.start * PANEL * d, PANEL * d);
        match self.cache.shape.kind {
            KvType::F16 => {
                let b = &numbers::<f16>(keys)[first..];
                let keys = Panels { b, stride: by, n: panels.len(), n_k: d };
                k.mix(k.mix_f16, (&tile.q, stride), n, keys, out, false);
            }
            KvType::F32 => {
                let b = &numbers::<f32>(keys)[first..];
                let keys = Panels { b, stride: by, n: panels.len(), n_k: d };
                k.mix(k.mix_f32, (&tile.q, stride), n, keys, out, false);
            }
            KvType::Q8_0 => {
                let blocks = &tile.codes[..n * stride / Q8_BLOCK];
                let fours = &tile.fours[..n_fours(n, stride / Q8_BLOCK)];
                let queries = Q8View { blocks, fours, n_tokens: n, n_cols: stride };
                let mut sums = [[0.0; PANEL]; ROWS];
                let panels = keys.chunks_exact(key_panel_bytes(d)).take(panels.end).skip(panels.start);
                for (i, panel) in panels.enumerate() {
                    k.packed(Quant::Q8_0, panel, Hints::default(), &queries, &mut sums[..n]);
                    for (row, sums) in out.0.chunks_mut(ATTN_BLOCK).zip(&sums) {
                        row[i * PANEL..(i + 1) * PANEL].copy_from_slice(sums);
                    }
                }
            }
        }
    }

    /// The values of `any` of a head's block, weighted, into the tile's.
    fn weighted(&self, k: &Kernels, tile: &mut Tile, n: usize, block: &[u8], any: &Range<usize>) {
        let (d, stride, of) = (self.head_dim(), self.stride(), self.cache.shape.head());
        let n_panels = d.div_ceil(PANEL);
        let (values, scales) = (&block[of.values..of.scales], &block[of.scales..]);
        let (first, by, n_k) = (any.start * PANEL, ATTN_BLOCK * PANEL, any.len());
        let weights = (&tile.weights.as_flattened()[any.start..], ATTN_BLOCK);
        let out = &mut tile.block[..n * stride];
        match self.cache.shape.kind {
            KvType::F16 => {
                let b = &numbers::<f16>(values)[first..];
                let values = Panels { b, stride: by, n: n_panels, n_k };
                k.mix(k.mix_f16, weights, n, values, (out, stride), false);
            }
            KvType::F32 => {
                let b = &numbers::<f32>(values)[first..];
                let values = Panels { b, stride: by, n: n_panels, n_k };
                k.mix(k.mix_f32, weights, n, values, (out, stride), false);
            }
            KvType::Q8_0 => {
                // The scale of a value's 32 dimensions goes to its weight.
                let mut scaled = [[0.0; ATTN_BLOCK]; ROWS];
                let mut own = [0.0; ATTN_BLOCK];
                for (i, scales) in scales.chunks_exact(2 * ATTN_BLOCK).enumerate() {
                    k.unpack(Quant::F16, &scales[2 * any.start..2 * any.end], &mut own[..n_k]);
                    for (y, x) in scaled.iter_mut().zip(&tile.weights).take(n) {
                        for ((y, x), scale) in y.iter_mut().zip(&x[any.start..any.end]).zip(&own) {
                            *y = x * scale;
                        }
                    }
                    let panels = 2 * i..n_panels.min(2 * i + 2);
                    let b = &numbers::<i8>(values)[first + panels.start * by..];
                    let values = Panels { b, stride: by, n: panels.len(), n_k };
                    let scaled = (scaled.as_flattened(), ATTN_BLOCK);
                    k.mix(k.mix_i8, scaled, n, values, (&mut out[i * Q8_BLOCK..], stride), false);
                }
            }
        }
    }

    /// Attention of one tile. `write` gives the head of the output that begins at a place of its own.
    fn item<'b>(
        &self,
        kernels: &Kernels,
        tile: &mut Tile,
        item: usize,
        write: impl Fn(usize) -> &'b mut [f32],
    ) {
        let stride = self.stride();
        // Late tokens see more keys: the longest items first.
        let n_head_kv = self.cache.shape.n_head_kv;
        let kv_head = item % n_head_kv;
        let rows = self.rows(self.n_tiles() - 1 - item / n_head_kv);
        self.fill(kernels, tile, kv_head, &rows);
        let mut states = [NOTHING; ROWS];
        for segment in self.segments(&rows) {
            self.segment(kernels, tile, kv_head, &rows, segment);
            let parts = tile.sums.chunks_exact(stride).zip(tile.states);
            let sums = tile.total.chunks_exact_mut(stride).zip(&mut states);
            sums.zip(parts).take(rows.len()).for_each(|(y, x)| merge(kernels, y, x));
        }
        for ((r, sums), state) in rows.zip(tile.total.chunks_exact(stride)).zip(states) {
            let total = self.total(kv_head * self.group() + r % self.group(), state);
            write(self.at(kv_head, r)).iter_mut().zip(sums).for_each(|(y, x)| *y = x / total);
        }
    }

    /// The sum of weights of query head `head`, with its sink.
    fn total(&self, head: usize, (max, sum): State) -> f32 {
        sum + self.sinks.map_or(0.0, |sinks| math::exp(sinks[head] - max))
    }
}

impl Pool {
    /// Attention of several sequences: of all query heads of all tokens of each into its part of `out`, one after the
    /// other, `[n_tokens, n_head * head_dim]`. `room` is as long as [`Attention::room`] says.
    ///
    /// # Panics
    /// If shapes do not agree.
    pub fn attention(&self, sequences: &[Attention<'_>], room: &mut [f32], out: &mut [f32]) {
        let mut rest = &mut *out;
        for a in sequences {
            let (own, others) = rest.split_at_mut(a.q.len().min(rest.len()));
            a.check(own);
            rest = others;
        }
        assert!(rest.is_empty(), "{} floats of output too many", rest.len());
        if let [a] = sequences
            && a.n_tokens() == 1
            && a.segments(&(0..a.group())).len() > 1
            && self.n_active() > 1
        {
            return self.attention_split(a, room, out);
        }
        let n_items = sequences.iter().map(Attention::n_items).sum();
        let (kernels, out) = (self.kernels(), Out::new(out));
        self.for_each_with(n_items, &mut self.tiles.borrow_mut(), &|mut item, tile| {
            let mut start = 0;
            for a in sequences {
                if item < a.n_items() {
                    // SAFETY: the parts of the sequences lie one behind the other in `out`, as was checked; items write to
                    // different heads of them.
                    let write = |at: usize| unsafe { out.slice(start + at, a.head_dim()) };
                    return a.item(kernels, tile, item, write);
                }
                item -= a.n_items();
                start += a.q.len();
            }
        });
    }

    /// The same of one token, segments of its context on several threads.
    fn attention_split(&self, a: &Attention<'_>, room: &mut [f32], out: &mut [f32]) {
        let (d, stride, n_head_kv, group) = (a.head_dim(), a.stride(), a.cache.shape.n_head_kv, a.group());
        assert!(room.len() >= Attention::room(a.n_head, d), "room of an attention");
        let (kernels, n_tiles) = (self.kernels(), a.n_tiles());
        // The states of all heads, then of each segment its sums and states, `[n_head][stride]` and `[n_head][2]`.
        let (states, room) = room.split_at_mut(2 * a.n_head);
        let states = states.as_chunks_mut::<2>().0;
        states.fill([NOTHING.0, NOTHING.1]);
        let each = a.n_head * (stride + 2);
        let segments = a.segments(&(0..group));
        for first in segments.clone().step_by(SPLITS) {
            let n = (segments.end - first).min(SPLITS);
            let parts = Out::new(&mut room[..n * each]);
            self.for_each_with(n * n_tiles * n_head_kv, &mut self.tiles.borrow_mut(), &|item, tile| {
                let (kv_head, item) = (item % n_head_kv, item / n_head_kv);
                let (i, rows) = (item / n_tiles, a.rows(item % n_tiles));
                a.fill(kernels, tile, kv_head, &rows);
                a.segment(kernels, tile, kv_head, &rows, first + i);
                for ((r, sums), state) in rows.zip(tile.sums.chunks_exact(stride)).zip(tile.states) {
                    let head = kv_head * group + r;
                    // SAFETY: the segment is one of `n` and the head one of `n_head`, so both stretches lie inside the
                    // room; each segment of a head is taken by one thread.
                    let (y, own) = unsafe {
                        let states = i * each + a.n_head * stride + 2 * head;
                        (parts.slice(i * each + head * stride, stride), parts.slice(states, 2))
                    };
                    y.copy_from_slice(sums);
                    own.copy_from_slice(&[state.0, state.1]);
                }
            });
            for part in room[..n * each].chunks_exact(each) {
                let (sums, own) = part.split_at(a.n_head * stride);
                let heads = out.chunks_exact_mut(d).zip(&mut *states);
                let parts = sums.chunks_exact(stride).zip(own.as_chunks::<2>().0);
                for ((y, state), (x, own)) in heads.zip(parts) {
                    let mut so_far = (state[0], state[1]);
                    merge(kernels, (y, &mut so_far), (&x[..d], (own[0], own[1])));
                    *state = [so_far.0, so_far.1];
                }
            }
        }
        for (head, (y, state)) in out.chunks_exact_mut(d).zip(states).enumerate() {
            let total = a.total(head, (state[0], state[1]));
            y.iter_mut().for_each(|y| *y /= total);
        }
    }
}
