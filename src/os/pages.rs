//! Memory in whole pages, aligned and zeroed, large pages where the system gives them.

use std::io;
use std::ops::{Deref, DerefMut};

/// Bytes of a large page, with small ones of 4 KiB. Where the system has others this is as good as any number.
pub const LARGE_PAGE: usize = 2 << 20;

/// Anonymous memory of the process.
#[derive(Debug)]
pub struct Pages {
    map: memmap2::MmapMut,
}

impl Pages {
    /// `len` bytes of zeros. The system is asked for large pages (2 MB): a processor that reads gigabytes in a row
    /// looks up fewer of them. It may give none.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(len: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        // Best effort: kernels are built without.
        let _given = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// The same in small pages alone, to compare.
    ///
    /// # Errors
    /// When there is no room.
    pub fn small(len: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(len.max(1))?;
        let _given = map.advise(memmap2::Advice::NoHugePage);
        Ok(Self { map })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

/// Keeps `bytes` in memory, whatever else wants it, until their memory goes back to the system.
///
/// # Errors
/// When that is more than this process may lock.
pub fn lock(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the range is that of a slice; its pages are read in and stay, their contents do not change.
    Ok(unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len()) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_zeros() {
        let mut pages = Pages::new(100_000).expect("room");
        assert!(pages.iter().all(|b| *b == 0) && pages.len() == 100_000);
        assert!(pages.as_ptr().addr().is_multiple_of(4_096));
        pages[99_999] = 1;
        assert!(Pages::new(usize::MAX / 2).is_err());
        lock(&pages[5_000..9_000]).expect("a page or two may be locked");
        assert!(pages[5_000..9_000].iter().all(|b| *b == 0));
    }
}
