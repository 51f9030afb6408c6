//! Tables of byte strings that stay where they are: a vocabulary of 262,144 pieces costs 4 bytes a piece, not an
//! owned string each.

use std::sync::Arc;

/// Bytes that several owners share, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Byte strings that lie one after the other in shared bytes, each followed by `gap` bytes that belong to none
/// (in GGUF the 8-byte length of the next one).
#[derive(Clone)]
pub struct Strings {
    bytes: SharedBytes,
    base: usize,
    /// `n + 1` offsets from `base`; string `i` is `starts[i] .. starts[i + 1] - gap`. Clones share them.
    starts: Arc<Vec<u32>>,
    gap: u32,
}

impl Strings {
    /// The strings of `bytes` whose `i`-th one is `base + starts[i] .. base + starts[i + 1] - gap`.
    /// `None` if a range is not inside `bytes` or `starts` is empty.
    #[must_use]
    pub fn new(bytes: SharedBytes, base: usize, starts: Vec<u32>, gap: u32) -> Option<Self> {
        let len = (*bytes).as_ref().len();
        let ordered = starts.windows(2).all(|w| w[0].checked_add(gap).is_some_and(|end| end <= w[1]));
        let last = base.checked_add(*starts.last()? as usize)?;
        (ordered && last.checked_sub(gap as usize)? <= len).then(|| Self {
            bytes,
            base,
            starts: Arc::new(starts),
            gap,
        })
    }

    /// A table of its own bytes, for tests and small vocabularies.
    #[must_use]
    pub fn owned<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Self {
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for item in items {
            bytes.extend_from_slice(item.as_ref());
            starts.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Self { bytes: Arc::new(bytes), base: 0, starts: Arc::new(starts), gap: 0 }
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
        let (start, end) = (*self.starts.get(i)?, *self.starts.get(i.checked_add(1)?)?);
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
}
