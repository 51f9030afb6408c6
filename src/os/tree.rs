//! The files in which a machine tells of itself, `/proc` and `/sys`, below a folder that is given: `/`, or one that a test
//! has made. What is absent, too long, no text or no regular file is not there.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::base::limits::{N_READING_MAX, READING_BYTES_MAX};

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    /// This machine's.
    fn default() -> Self {
        Self::new("/")
    }
}

impl Tree {
    /// The tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)))
    }

    /// The text of the file `path`, such as `/proc/meminfo`.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        let path = self.path(path);
        // Looked at before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut text = String::new();
        let file = std::fs::File::open(path).ok()?;
        let n = file.take(READING_BYTES_MAX as u64 + 1).read_to_string(&mut text).ok()?;
        (n <= READING_BYTES_MAX).then_some(text)
    }

    /// The one number that the file `path` holds.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.trim().parse().ok()
    }

    /// The number behind `key` at the start of a line of the file `path`; what stands behind it is ignored.
    #[must_use]
    pub fn field(&self, path: &str, key: &str) -> Option<u64> {
        let text = self.text(path)?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(key));
        lines.find_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
    }

    /// The names in the folder `path`, sorted; none where there is no folder.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let names = folder.take(N_READING_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    }
}

/// A tree that a test makes, removed when it is dropped.
#[cfg(test)]
pub(crate) struct Made {
    pub tree: Tree,
}

#[cfg(test)]
impl Made {
    /// With these files and their texts.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let made = Self {
            tree: Tree::new(std::env::temp_dir().join(format!("sotto-tree-{}-{n}", std::process::id()))),
        };
        std::fs::create_dir(&made.tree.root).expect("a folder");
        files.iter().for_each(|(path, text)| made.write(path, text));
        made
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.tree.path(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
}

#[cfg(test)]
impl Drop for Made {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.tree.root));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_there() {
        let made = Made::new(&[("/a/number", " 12\n"), ("/a/text", "key 7 x\nkeys 8\n"), ("/a/minus", "-3")]);
        made.write("/a/long", vec![b'1'; READING_BYTES_MAX + 1]);
        made.write("/a/bytes", [0xff, 0xfe]);
        let tree = &made.tree;
        assert_eq!((tree.number("/a/number"), tree.number("/a/minus")), (Some(12_u64), Some(-3_i64)));
        assert_eq!((tree.field("/a/text", "key "), tree.field("/a/text", "keys ")), (Some(7), Some(8)));
        assert_eq!(tree.names("/a"), ["bytes", "long", "minus", "number", "text"]);
        for path in ["/a/long", "/a/bytes", "/a", "/absent", "/a/number/x", ""] {
            assert_eq!(tree.text(path), None, "{path}");
        }
        assert_eq!((tree.number::<u64>("/a/minus"), tree.number::<u64>("/a/text")), (None, None));
        assert!(tree.names("/a/number").is_empty());
        assert_eq!(Tree::default().text("/dev/null"), None, "no regular file");
        assert!(Tree::default().text("/proc/self/stat").is_some());
    }
}
