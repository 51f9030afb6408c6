//! Merging neighbours by rank: the loop that both families of vocabulary share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A run of the text; it begins where it began when the merging did.
struct Symbol {
    start: u32,
    /// 0 once it is part of its left neighbour.
    len: u32,
    prev: u32,
    next: u32,
    /// Of the pair that it makes with its right neighbour, if the two may merge.
    rank: Option<u32>,
}

/// Buffers of the loop, kept from word to word. A run of `n` symbols takes O(n log n).
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// Rank and left symbol of pairs that could merge: the best rank first, of equal ones the leftmost. What was put
    /// here holds as long as the symbol still has that rank.
    pairs: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Merger {
    /// Cuts `text` into runs of the lengths `units`, which add up to it, and merges the pair of neighbours that
    /// `rank(left, right, both)` finds lowest until none has a rank. The runs that are left come in order.
    ///
    /// # Panics
    /// If `text` has 4 GiB or more.
    pub(super) fn run(
        &mut self,
        text: &[u8],
        units: impl Iterator<Item = usize>,
        rank: impl Fn(&[u8], &[u8], &[u8]) -> Option<u32>,
    ) -> impl Iterator<Item = Range<usize>> {
        assert!(text.len() < NONE as usize, "text of {} bytes is tokenized in one piece", text.len());
        self.symbols.clear();
        self.pairs.clear();
        let mut start = 0;
        for (i, len) in (0_u32..).zip(units) {
            let len = len as u32;
            self.symbols.push(Symbol { start, len, prev: i.wrapping_sub(1), next: i + 1, rank: None });
            start += len;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for left in 0..self.symbols.len() as u32 {
            self.offer(text, left, &rank);
        }
        while let Some(Reverse((pair_rank, at))) = self.pairs.pop() {
            let left = &self.symbols[at as usize];
            let right = left.next;
            if left.rank != Some(pair_rank) || right == NONE {
                continue;
            }
            let right = &mut self.symbols[right as usize];
            let (len, next) = (right.len, right.next);
            (right.len, right.rank) = (0, None);
            if next != NONE {
                self.symbols[next as usize].prev = at;
            }
            let left = &mut self.symbols[at as usize];
            left.len += len;
            left.next = next;
            let prev = left.prev;
            if prev != NONE {
                self.offer(text, prev, &rank);
            }
            self.offer(text, at, &rank);
        }
        let range = |s: &Symbol| s.start as usize..(s.start + s.len) as usize;
        self.symbols.iter().filter(|s| s.len > 0).map(range)
    }

    /// Puts the pair of `left` and its right neighbour up for merging if it has a rank.
    fn offer(&mut self, text: &[u8], left: u32, rank: &impl Fn(&[u8], &[u8], &[u8]) -> Option<u32>) {
        let a = &self.symbols[left as usize];
        let found = self.symbols.get(a.next as usize).and_then(|b| {
            let (from, mid, to) = (a.start as usize, b.start as usize, (b.start + b.len) as usize);
            rank(&text[from..mid], &text[mid..to], &text[from..to])
        });
        self.symbols[left as usize].rank = found;
        if let Some(rank) = found {
            self.pairs.push(Reverse((rank, left)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: look at all pairs, merge the best, begin again.
    fn naive(text: &[u8], rank: impl Fn(&[u8], &[u8], &[u8]) -> Option<u32>) -> Vec<Vec<u8>> {
        let mut runs: Vec<Vec<u8>> = text.iter().map(|&b| vec![b]).collect();
        loop {
            let pairs = runs.windows(2).enumerate();
            let best = pairs.filter_map(|(i, w)| Some((rank(&w[0], &w[1], &w.concat())?, i))).min();
            let Some((_, i)) = best else { return runs };
            let right = runs.remove(i + 1);
            runs[i].extend(right);
        }
    }

    #[test]
    fn merges_as_the_definition_does() {
        // Any fixed rule will do: rank by a hash of the pair, with gaps and ties.
        let rank = |left: &[u8], right: &[u8], both: &[u8]| {
            let sum = both.iter().fold(left.len() as u32, |h, &b| h.wrapping_mul(31).wrapping_add(b.into()));
            (right.len() < 4 && sum % 3 != 0).then_some(sum % 7)
        };
        arbtest::arbtest(|u| {
            let n = u.int_in_range(0..=40)?;
            let text: Vec<u8> = (0..n).map(|_| u.int_in_range(b'a'..=b'c')).collect::<Result<_, _>>()?;
            let mut merger = Merger::default();
            let runs = merger.run(&text, text.iter().map(|_| 1), rank).map(|r| text[r].to_vec());
            assert_eq!(runs.collect::<Vec<_>>(), naive(&text, rank));
            Ok(())
        });
    }
}
