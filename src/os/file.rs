//! Files that stand under their name only once they are whole.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use rustix::io::Errno;

/// Opens a regular file to be read. Nothing else is waited for: a pipe opens only once somebody writes.
///
/// # Errors
/// When it cannot be opened, or is something else.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let at_once = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = match at_once {
        // Another process has a lease on it (a file server, say), and is asked to give it up; no pipe has one.
        Err(e) if e.kind() == ErrorKind::WouldBlock => File::open(path)?,
        at_once => at_once?,
    };
    let meta = file.metadata()?;
    if meta.is_file() {
        return Ok((file, meta));
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))
}

/// The text of a regular file of at most `bytes_max`: a device or a pipe might never end.
///
/// # Errors
/// When it cannot be read, is something else than a regular file or no text, or longer.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let wrong = |what: String| io::Error::new(ErrorKind::InvalidInput, what);
    let (file, meta) = open(path)?;
    let mut text = String::new();
    // It may grow meanwhile.
    file.take(bytes_max + 1).read_to_string(&mut text)?;
    match text.len() as u64 {
        n if n > bytes_max => {
            Err(wrong(format!("{} bytes long, at most {bytes_max} are read", n.max(meta.len()))))
        }
        _ => Ok(text),
    }
}

/// Ending of a file that is not whole.
pub const UNFINISHED: &str = "tmp";

/// A file of a known length on its way to its name. Until [`Self::publish`] it is beside it under a name of its own,
/// which goes when this is dropped.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl NewFile {
    /// Creates it with `len` zeros, for which the file system keeps room if it can.
    ///
    /// # Errors
    /// When it cannot be created, or there is no room.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: the counter hands out numbers, it orders nothing.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}-{n}.{UNFINISHED}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        // From here on it is removed where something fails.
        let new = Self { file, temporary, path: path.to_owned() };
        match fallocate(&new.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => {}
            // The room is then taken piece by piece.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => new.file.set_len(len)?,
            Err(e) => return Err(e.into()),
        }
        Ok(new)
    }

    /// Writes `bytes` from byte `at` on.
    ///
    /// # Errors
    /// When the system does not take them all.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives it its name, in place of whatever has it, once all of it is on the disk.
    ///
    /// # Errors
    /// When the disk does not take it or the name cannot be given.
    pub fn publish(self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        // The name itself. Some file systems have nothing to wait for, and the file is whole either way.
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _on_disk = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After it got its name there is nothing under this one.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Writes `bytes` as file `path`, in place of what has the name, without waiting for the disk: after a loss of power it may
/// be empty.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = NewFile::create(path, bytes.len() as u64)?;
    new.write(0, bytes)?;
    std::fs::rename(&new.temporary, &new.path)
}

/// Makes a file the youngest: it was changed now.
///
/// # Errors
/// When this user may not.
pub fn touch(path: &Path) -> io::Result<()> {
    File::open(path)?.set_modified(SystemTime::now())
}

/// How long ago a file was changed; 0 where that is still to come.
#[must_use]
pub fn age(of: &Metadata) -> Duration {
    of.modified().ok().and_then(|changed| changed.elapsed().ok()).unwrap_or_default()
}

/// Bytes that this user may still write to the file system that holds `path`.
///
/// # Errors
/// When the system does not tell.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let of = statvfs(path)?;
    Ok(of.f_bavail.saturating_mul(of.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = std::env::temp_dir().join(format!("sotto-new-file-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("a");
        let names = || std::fs::read_dir(&dir).unwrap().count();
        let new = NewFile::create(&path, 8).unwrap();
        new.write(4, b"abcd").unwrap();
        new.sync().unwrap();
        assert!(!path.exists() && names() == 1);
        drop(new);
        assert_eq!(names(), 0, "dropped");
        std::fs::write(&path, b"before").unwrap();
        let new = NewFile::create(&path, 8).unwrap();
        new.write(4, b"abcd").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        new.publish().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"\0\0\0\0abcd".to_vec(), 1));
        assert!(free_bytes(&dir).unwrap() > 0);
        replace(&path, b"other").unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"other".to_vec(), 1));
        touch(&path).unwrap();
        assert!(age(&path.metadata().unwrap()) < Duration::from_secs(60));
        assert!(NewFile::create(&path, u64::MAX / 4).is_err() && names() == 1, "no room");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
