//! Tables of byte strings that stay where they are: a vocabulary of 262,144 pieces costs 4 bytes a piece, not an
//! owned string each.

use std::ops::Range;
use std::sync::Arc;

/// Bytes that several owners share, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Whole numbers of 32 bits: of this process's own, or as they lie in shared bytes, little-endian at any alignment.
/// Clones share them.
#[derive(Clone)]
pub enum Numbers {
    /// Of its own.
    Own(Arc<Vec<u32>>),
    /// Four bytes each, in this range.
    Shared(SharedBytes, Range<usize>),
}

impl Numbers {
    /// The whole ones as they lie in bytes.
    fn chunks(&self) -> &[[u8; 4]] {
        match self {
            Self::Own(_) => &[],
            Self::Shared(bytes, range) => {
                (**bytes).as_ref().get(range.clone()).unwrap_or_default().as_chunks().0
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Own(all) => all.len(),
            Self::Shared(..) => self.chunks().len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `i`.
    #[must_use]
    #[inline]
    pub fn get(&self, i: usize) -> Option<u32> {
        match self {
            Self::Own(all) => all.get(i).copied(),
            Self::Shared(..) => self.chunks().get(i).map(|raw| u32::from_le_bytes(*raw)),
        }
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let own: &[u32] = match self {
            Self::Own(all) => all,
            Self::Shared(..) => &[],
        };
        own.iter().copied().chain(self.chunks().iter().map(|raw| u32::from_le_bytes(*raw)))
    }
}

impl From<Vec<u32>> for Numbers {
    fn from(all: Vec<u32>) -> Self {
        Self::Own(Arc::new(all))
    }
}

/// Byte strings that lie one after the other in shared bytes, each followed by `gap` bytes that belong to none
/// (in GGUF the 8-byte length of the next one).
#[derive(Clone)]
pub struct Strings {
    bytes: SharedBytes,
    base: usize,
    /// `n + 1` offsets from `base`; string `i` is `starts[i] .. starts[i + 1] - gap`.
    starts: Numbers,
    gap: u32,
    /// A table to find them by, which came with them.
    slots: Option<Numbers>,
}

impl Strings {
    /// The strings of `bytes` whose `i`-th one is `base + starts[i] .. base + starts[i + 1] - gap`.
    /// `None` if a range is not inside `bytes` or `starts` is empty.
    #[must_use]
    pub fn new(bytes: SharedBytes, base: usize, starts: impl Into<Numbers>, gap: u32) -> Option<Self> {
        let (starts, len) = (starts.into(), (*bytes).as_ref().len());
        let behind = starts.iter().skip(1);
        let ordered = starts.iter().zip(behind).all(|(a, b)| a.checked_add(gap).is_some_and(|end| end <= b));
        let last = base.checked_add(starts.get(starts.len().checked_sub(1)?)? as usize)?;
        (ordered && last.checked_sub(gap as usize)? <= len).then_some(Self {
            bytes,
            base,
            starts,
            gap,
            slots: None,
        })
    }

    /// The same with a table to find them by. What it holds is nobody's promise.
    #[must_use]
    pub fn with_slots(self, slots: Option<Numbers>) -> Self {
        Self { slots, ..self }
    }

    /// The table that came with them.
    #[must_use]
    pub fn slots(&self) -> Option<&Numbers> {
        self.slots.as_ref()
    }

    /// A table of its own bytes, for tests and small vocabularies.
    #[must_use]
    pub fn owned<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Self {
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for item in items {
            bytes.extend_from_slice(item.as_ref());
            starts.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Self { bytes: Arc::new(bytes), base: 0, starts: starts.into(), gap: 0, slots: None }
    }

    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// String `i`.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let (start, end) = (self.starts.get(i)?, self.starts.get(i.checked_add(1)?)?);
        (*self.bytes).as_ref().get(self.base + start as usize..self.base + (end - self.gap) as usize)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Strings({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_stay_inside_their_bytes() {
        let bytes: SharedBytes = Arc::new(b"..ab--c--".to_vec());
        let s = Strings::new(bytes.clone(), 2, vec![0, 4, 7], 2).expect("valid");
        assert_eq!(s.iter().collect::<Vec<_>>(), [b"ab".as_slice(), b"c"]);
        assert_eq!(s.get(2), None);
        assert!(Strings::new(bytes.clone(), 2, vec![0, 4, 10], 2).is_none(), "past the end");
        assert!(Strings::new(bytes.clone(), 2, vec![0, 1, 7], 2).is_none(), "shorter than the gap");
        assert!(Strings::new(bytes, 2, vec![], 2).is_none());
        assert_eq!(Strings::owned(["x", "", "yz"]).get(2), Some(b"yz".as_slice()));
    }

    #[test]
    fn numbers_are_the_same_wherever_they_lie() {
        let own = Numbers::from(vec![0, 2, 5]);
        let bytes: SharedBytes = Arc::new(b"?\0\0\0\0\x02\0\0\0\x05\0\0\0abcde".to_vec());
        let shared = Numbers::Shared(bytes.clone(), 1..13);
        for numbers in [own, shared] {
            assert_eq!((numbers.len(), numbers.get(2), numbers.get(3)), (3, Some(5), None));
            assert!(!numbers.is_empty() && numbers.iter().eq([0, 2, 5]));
            let strings = Strings::new(bytes.clone(), 13, numbers, 0).expect("valid");
            assert_eq!(strings.iter().collect::<Vec<_>>(), [b"ab".as_slice(), b"cde"]);
        }
        assert!(Numbers::Shared(bytes, 1..99).is_empty(), "outside");
    }
}
