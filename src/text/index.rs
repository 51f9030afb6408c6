//! Finding a byte string in a table of them, at 6 bytes a string and without copies.

use std::hash::{BuildHasher, RandomState};

use crate::base::Strings;

const EMPTY: u32 = u32::MAX;

/// Positions in a [`Strings`] by content: open addressing, linear probing, at most two thirds full.
pub(super) struct Index {
    slots: Vec<u32>,
    /// Drawn anew for each index, so that a file cannot be made to collide.
    seed: u64,
}

impl Index {
    /// Of the strings `i` for which `keep(i, string)`; of equal ones the first. `twin(first, later)` hears of the
    /// others.
    pub(super) fn new(
        strings: &Strings,
        keep: impl Fn(usize, &[u8]) -> bool,
        mut twin: impl FnMut(u32, u32),
    ) -> Self {
        let n = strings.len();
        let seed = RandomState::new().hash_one(n);
        let mut index = Self { slots: vec![EMPTY; n + n / 2 + 1], seed };
        for (i, string) in strings.iter().enumerate() {
            if keep(i, string)
                && let Ok(entry) = u32::try_from(i)
            {
                let slot = index.slot(strings, &[string]);
                match index.slots[slot] {
                    EMPTY => index.slots[slot] = entry,
                    first => twin(first, entry),
                }
            }
        }
        index
    }

    /// Where the string that `parts` make together stands in `strings`, the table this was made of.
    pub(super) fn get(&self, strings: &Strings, parts: &[&[u8]]) -> Option<u32> {
        let entry = self.slots[self.slot(strings, parts)];
        (entry != EMPTY).then_some(entry)
    }

    /// The slot that holds it, else the empty one where it belongs. There is always an empty one.
    fn slot(&self, strings: &Strings, parts: &[&[u8]]) -> usize {
        let n = self.slots.len();
        // The hash as a fraction of 2^64 of the slots.
        let mut slot = ((u128::from(self.hash(parts)) * n as u128) >> 64) as usize;
        loop {
            match self.slots[slot] {
                EMPTY => return slot,
                entry if strings.get(entry as usize).is_some_and(|s| equal(s, parts)) => return slot,
                _ => slot = if slot + 1 == n { 0 } else { slot + 1 },
            }
        }
    }

    /// FNV-1a over the bytes, then a folded multiplication that spreads them over the high bits.
    fn hash(&self, parts: &[&[u8]]) -> u64 {
        let mut h = self.seed;
        for &byte in parts.iter().copied().flatten() {
            h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let wide = u128::from(h) * 0x9e37_79b9_7f4a_7c15;
        (wide as u64) ^ ((wide >> 64) as u64)
    }
}

/// Whether `parts` one after the other are `string`.
fn equal(mut string: &[u8], parts: &[&[u8]]) -> bool {
    for part in parts {
        match string.strip_prefix(*part) {
            Some(rest) => string = rest,
            None => return false,
        }
    }
    string.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_and_the_first_of_equals() {
        let words: Vec<String> = (0..5000).map(|i| format!("w{}", i % 4500)).collect();
        let strings = Strings::owned(&words);
        let mut twins = Vec::new();
        let index = Index::new(&strings, |i, _| i != 600, |first, later| twins.push((first, later)));
        assert_eq!(twins, (0..500).map(|i| (i, i + 4500)).collect::<Vec<_>>());
        for i in 0..4500_u32 {
            let word = &words[i as usize];
            let found = index.get(&strings, &[b"w", &word.as_bytes()[1..]]);
            assert_eq!(found, (i != 600).then_some(i), "{word}");
        }
        assert_eq!(index.get(&strings, &[b"w"]), None);
        assert_eq!(index.get(&strings, &[]), None);
        let none = Strings::owned::<&str>([]);
        assert_eq!(Index::new(&none, |_, _| true, |_, _| {}).get(&none, &[b"a"]), None);
    }
}
