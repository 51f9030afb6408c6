//! Finding a byte string in a table of them, at 6 bytes a string and without copies.

use std::hash::{BuildHasher, RandomState};

use crate::base::{Numbers, Strings};

const EMPTY: u32 = u32::MAX;
/// The seed of tables that come with their strings.
const KEPT_SEED: u64 = 0x5350_6f74_746f_0001;
/// Most slots that are looked at in such a table, whose word nobody need believe: in true ones the longest run has a
/// few hundred.
const KEPT_PROBES: usize = 1_024;

/// Positions in a [`Strings`] by content: open addressing, linear probing, at most two thirds full.
pub(super) struct Index {
    slots: Numbers,
    /// Drawn anew for each index, so that a file cannot be made to collide.
    seed: u64,
    /// Most slots that are looked at for a string.
    n_probe: usize,
}

impl Index {
    /// Of the strings `i` for which `keep(i, string)`; of equal ones the first. `twin(first, later)` hears of the
    /// others. A table that came with the strings is taken as it is: it was made by [`Self::kept`] of such an index.
    pub(super) fn new(
        strings: &Strings,
        keep: impl Fn(usize, &[u8]) -> bool,
        mut twin: impl FnMut(u32, u32),
    ) -> Self {
        if let Some(slots) = strings.slots() {
            return Self { slots: slots.clone(), seed: KEPT_SEED, n_probe: KEPT_PROBES.min(slots.len()) };
        }
        let seed = RandomState::new().hash_one(strings.len());
        let mut slots = vec![EMPTY; strings.len() + strings.len() / 2 + 1];
        for (i, string) in strings.iter().enumerate() {
            if keep(i, string)
                && let Ok(entry) = u32::try_from(i)
                && let Some(first) = insert(&mut slots, seed, strings, entry, string).1
            {
                twin(first, entry);
            }
        }
        Self { n_probe: slots.len(), slots: slots.into(), seed }
    }

    /// The slots of a table that may be kept with `strings`, the table this was made of. `None` if one of them would
    /// not be found there.
    pub(super) fn kept(&self, strings: &Strings) -> Option<Vec<u32>> {
        let mut entries: Vec<u32> = self.slots.iter().filter(|entry| *entry != EMPTY).collect();
        entries.sort_unstable();
        let mut slots = vec![EMPTY; self.slots.len()];
        let n_probe = |entry: u32| {
            let string = strings.get(entry as usize)?;
            Some(insert(&mut slots, KEPT_SEED, strings, entry, string).0)
        };
        let longest = entries.into_iter().map(n_probe).try_fold(0, |most: usize, n| Some(most.max(n?)));
        longest.filter(|n| *n <= KEPT_PROBES).map(|_| slots)
    }

    /// Where the string that `parts` make together stands in `strings`, the table this was made of.
    pub(super) fn get(&self, strings: &Strings, parts: &[&[u8]]) -> Option<u32> {
        let n = self.slots.len();
        let first = first_slot(self.seed, n, parts);
        for slot in (first..n).chain(0..first).take(self.n_probe) {
            match self.slots.get(slot)? {
                EMPTY => return None,
                entry if strings.get(entry as usize).is_some_and(|s| equal(s, parts)) => return Some(entry),
                _ => {}
            }
        }
        None
    }
}

/// Puts `entry` where `string` belongs, unless an equal one is there, which is told; also how many slots were looked
/// at. There is always an empty one.
fn insert(
    slots: &mut [u32],
    seed: u64,
    strings: &Strings,
    entry: u32,
    string: &[u8],
) -> (usize, Option<u32>) {
    let (n, first) = (slots.len(), first_slot(seed, slots.len(), &[string]));
    for (i, slot) in (first..n).chain(0..first).enumerate() {
        match slots[slot] {
            EMPTY => {
                slots[slot] = entry;
                return (i + 1, None);
            }
            other if strings.get(other as usize) == Some(string) => return (i + 1, Some(other)),
            _ => {}
        }
    }
    (n, None)
}

/// The slot of `n` where looking begins: the hash as a fraction of 2^64 of the slots.
fn first_slot(seed: u64, n: usize, parts: &[&[u8]]) -> usize {
    ((u128::from(hash(seed, parts)) * n as u128) >> 64) as usize
}

/// FNV-1a over the bytes, then a folded multiplication that spreads them over the high bits.
fn hash(seed: u64, parts: &[&[u8]]) -> u64 {
    let mut h = seed;
    for &byte in parts.iter().copied().flatten() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let wide = u128::from(h) * 0x9e37_79b9_7f4a_7c15;
    (wide as u64) ^ ((wide >> 64) as u64)
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

    #[test]
    fn a_table_that_is_kept_finds_the_same() {
        let words: Vec<String> = (0..5000).map(|i| format!("w{}", i % 4500)).collect();
        let strings = Strings::owned(&words);
        let index = Index::new(&strings, |i, _| i != 600, |_, _| {});
        let slots = index.kept(&strings).expect("short runs");
        let with = strings.clone().with_slots(Some(slots.into()));
        let kept = Index::new(&with, |_, _| panic!("it is there"), |_, _| {});
        for word in words.iter().map(String::as_bytes).chain([b"w".as_slice(), b"w5000", b""]) {
            assert_eq!(kept.get(&with, &[word]), index.get(&strings, &[word]));
        }
        // Tables that lie: without an empty slot, with entries beyond the strings, with none at all.
        for slots in [vec![7; 100_000], vec![EMPTY - 1; 3], Vec::new()] {
            let with = strings.clone().with_slots(Some(slots.into()));
            let index = Index::new(&with, |_, _| true, |_, _| {});
            assert!(index.get(&with, &[b"w8"]).is_none());
        }
    }
}
