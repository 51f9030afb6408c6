//! A file as read-only memory.
//!
//! The rule for files that shrink under the map: reading a page that the file no longer has raises SIGBUS and ends
//! the process; systemd starts it again and the next load refuses the file with its numbers. Model files are
//! therefore replaced by renaming a new file over the old one (the map keeps the old bytes), never rewritten in
//! place, and belong to root.

use std::fs::File;
use std::path::Path;

use rustix::mm::{Advice, madvise};

/// A file could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file cannot be opened.
    #[error("{path}: cannot be opened: {source}{}", hint(source))]
    Open {
        /// The file.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is a directory, device or pipe.
    #[error("{path}: not a regular file; give the path of a model file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// It has no bytes.
    #[error("{path}: 0 bytes long; the file is empty, fetch it again")]
    Empty {
        /// The file.
        path: String,
    },
    /// The map failed.
    #[error("{path}: {len} bytes cannot be mapped: {source}")]
    Map {
        /// The file.
        path: String,
        /// Its length.
        len: u64,
        /// The system's word.
        source: std::io::Error,
    },
}

fn hint(e: &std::io::Error) -> &'static str {
    match e.kind() {
        std::io::ErrorKind::NotFound => "; check the path",
        std::io::ErrorKind::PermissionDenied => {
            "; the user of this process must be allowed to read it (the service cannot see files in /home)"
        }
        _ if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            "; the link leads to itself, give the path of the file that is meant"
        }
        _ => "",
    }
}

/// A whole file, mapped privately for reading. The bytes may lie at any address that the file's own offsets give
/// relative to a page.
#[derive(Debug)]
pub struct Map {
    map: memmap2::Mmap,
}

impl Map {
    /// Maps `path`.
    ///
    /// # Errors
    /// When it cannot be opened, is no regular file, is empty, or the address space is short.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let name = || path.display().to_string();
        let open = |source| MapError::Open { path: name(), source };
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let meta = std::fs::metadata(path).map_err(open)?;
        if !meta.is_file() {
            return Err(MapError::NotAFile { path: name() });
        }
        Self::of(&File::open(path).map_err(open)?, &name())
    }

    /// Maps an open file, which is called `name` in messages.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn of(file: &File, name: &str) -> Result<Self, MapError> {
        let name = || name.to_owned();
        let meta = file.metadata().map_err(|source| MapError::Open { path: name(), source })?;
        if !meta.is_file() {
            return Err(MapError::NotAFile { path: name() });
        }
        if meta.len() == 0 {
            return Err(MapError::Empty { path: name() });
        }
        // SAFETY: the map is private and read-only and lives as long as `Map`; that nobody shortens the file while
        // it is mapped is the rule in the module's head, whose breach ends the process, not its memory safety.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(|source| MapError::Map {
            path: name(),
            len: meta.len(),
            source,
        })?;
        // Best effort: file systems that have large pages (ext4 since Linux 6.16, XFS, Btrfs) then read whole ones.
        let _given = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// Reads `start .. start + len` (clamped to the file) into the page cache and maps the pages, so that the first
    /// token does not wait for page faults one by one.
    pub fn populate(&self, start: usize, len: usize) {
        let page = rustix::param::page_size();
        let start = start.min(self.map.len()) / page * page;
        let len = len.min(self.map.len() - start);
        if len == 0 {
            return;
        }
        let at = self.map.as_ptr().wrapping_add(start).cast_mut().cast();
        // SAFETY: `at .. at + len` lies in the map, `at` is page-aligned because maps begin on a page; the advice
        // only reads pages in. Kernels before 5.14 refuse it, and the pages then come in at first touch.
        let _ = unsafe { madvise(at, len, Advice::LinuxPopulateRead) };
    }
}

impl Map {
    /// Lets go of the whole pages in `start .. start + len` (clamped to the file): they come in again when they are
    /// read.
    pub fn forget(&self, start: usize, len: usize) {
        let page = rustix::param::page_size();
        let end = start.saturating_add(len).min(self.map.len()) / page * page;
        let start = start.min(end).next_multiple_of(page);
        if start >= end {
            return;
        }
        let at = self.map.as_ptr().wrapping_add(start).cast_mut().cast();
        // SAFETY: `at .. at + (end - start)` lies in the map, on page borders; the map is read-only and of a file, so its
        // bytes are the same when they come in again.
        let _ = unsafe { madvise(at, end - start, Advice::LinuxDontNeed) };
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_mapped_say_why() {
        let dir = std::env::temp_dir();
        let said = |path: &Path| Map::open(path).expect_err("must fail").to_string();
        assert!(said(&dir.join("sotto-no-such-file")).contains("check the path"));
        assert!(said(&dir).contains("not a regular file"));
        assert!(said(Path::new("/dev/null")).contains("not a regular file"));
        let empty = dir.join(format!("sotto-empty-{}", std::process::id()));
        std::fs::write(&empty, b"").unwrap();
        assert!(said(&empty).contains("0 bytes"));
        std::fs::write(&empty, b"abc").unwrap();
        let map = Map::open(&empty).unwrap();
        map.populate(0, usize::MAX);
        map.populate(usize::MAX, 1);
        map.forget(0, usize::MAX);
        map.forget(usize::MAX, 1);
        assert_eq!(map.as_ref(), b"abc");
        std::fs::remove_file(&empty).unwrap();
    }
}
