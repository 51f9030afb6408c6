//! Listening sockets: passed by systemd, or bound by ourselves.

use std::ffi::c_int;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::user;

/// Bytes, with what the system keeps for them, that were written to `stream` and not read at its other end. (unix(7) does
/// not tell of it; Linux, net/unix/af_unix.c, `unix_outq_len`.)
///
/// # Errors
/// When the system does not tell.
pub fn unread(stream: impl AsFd) -> io::Result<u64> {
    // SAFETY: the request SIOCOUTQ writes one int and reads nothing (sockios.h), and a Getter has room for that.
    let ask = unsafe { Getter::<SIOCOUTQ, c_int>::new() };
    // SAFETY: the descriptor is open as long as it is borrowed, and the request changes nothing of it.
    let n = unsafe { ioctl(stream, ask) }?;
    Ok(u64::from(n.unsigned_abs()))
}

/// The same number as TIOCOUTQ.
const SIOCOUTQ: Opcode = 0x5411;

/// The listening socket that systemd passed under `name`, ready for use; `None` if it passed none.
///
/// # Errors
/// When what was passed is no socket, or the environment cannot be read.
pub fn passed_listener(name: &str) -> io::Result<Option<UnixListener>> {
    let mut fds = sd_notify::listen_fds_with_names()?;
    let Some((fd, _)) = fds.find(|(_, n)| n == name) else { return Ok(None) };
    // SAFETY: systemd opened this descriptor for us and nothing else in the process uses it (the list is read once,
    // at the start).
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if !listens(&fd) {
        let what =
            format!("descriptor {} named {name} is no listening stream socket of Unix", fd.as_raw_fd());
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(Some(UnixListener::from(fd)))
}

/// The connection that this process serves: the one that systemd passed, or standard input.
///
/// # Errors
/// When it is no connection.
pub fn passed_stream() -> io::Result<UnixStream> {
    let fd = match sd_notify::listen_fds()?.next() {
        // SAFETY: systemd opened this descriptor for us and nothing else in the process uses it (the list is read once,
        // at the start).
        Some(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        None => io::stdin().as_fd().try_clone_to_owned()?,
    };
    let connects = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(&fd) == Ok(false);
    if !connects {
        return Err(io::Error::new(ErrorKind::InvalidInput, "standard input is no connection to a program"));
    }
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(UnixStream::from(fd))
}

fn listens(fd: &OwnedFd) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(fd) == Ok(true)
}

/// Which file a socket's path names now: its device and inode.
#[must_use]
pub fn named(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Whether somebody has connected to `listener` and was not taken yet.
#[must_use]
pub fn is_waited_for(listener: &UnixListener) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    // Where the system does not tell, somebody may wait.
    poll(&mut fds, Some(&Timespec::default())).is_err() || !fds[0].revents().is_empty()
}

/// Waits until the other end of `stream` is closed, whatever is still to be read.
///
/// # Errors
/// When the system does not tell.
pub fn hung_up(stream: impl AsFd) -> io::Result<()> {
    loop {
        // Nothing is asked for: that it hung up is told without.
        let mut fds = [PollFd::new(&stream, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Binds `path` with `mode`, and gives it to `group` if that exists and may be set (the second value tells). A socket
/// that nobody answers on is replaced.
///
/// # Errors
/// When somebody answers on it, the path is something else than a socket, or the folder does not allow it.
pub fn bind(path: &Path, mode: u32, group: &str) -> io::Result<(UnixListener, bool)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "the path exists and is no socket"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(ErrorKind::AddrInUse, "another process answers on it"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    // Nobody may connect before mode and group are set.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    let given = user::group_id(group).is_some_and(|gid| chown(path, None, Some(gid)).is_ok());
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok((listener, given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_listen_is_known() {
        let path = std::env::temp_dir().join(format!("sotto-listens-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        assert!(listens(&listener.into()));
        assert!(named(&path).is_some());
        std::fs::remove_file(&path).expect("it is ours");
        assert_eq!(named(&path), None);
        let (one, _other) = UnixStream::pair().expect("two sockets");
        assert!(!listens(&one.into()));
        assert!(!listens(&std::net::TcpListener::bind("127.0.0.1:0").expect("a port").into()));
        assert!(!listens(&std::fs::File::open("/dev/null").expect("a device").into()));
    }

    #[test]
    fn what_is_read_counts_no_more() {
        use std::io::{Read, Write};
        let (mut one, mut other) = UnixStream::pair().expect("two sockets");
        let left = |one: &UnixStream| unread(one).expect("it is told");
        assert_eq!(left(&one), 0);
        for _ in 0..3 {
            one.write_all(&[7; 100]).expect("there is room");
        }
        let all = left(&one);
        let mut piece = [0; 100];
        other.read_exact(&mut piece).expect("they came");
        let fewer = left(&one);
        assert!(fewer > 0 && fewer < all, "{fewer} of {all}");
        other.read_exact(&mut [0; 200]).expect("they came");
        assert_eq!(left(&one), 0);
        assert!(unread(std::fs::File::open("/dev/null").expect("a device")).is_err());
    }

    #[test]
    fn an_end_that_closes_is_seen_behind_what_it_said() {
        use std::io::Write;
        let (one, mut other) = UnixStream::pair().expect("two sockets");
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = seen.clone();
        let watch = crate::os::thread::start("watch", move || {
            hung_up(&one).expect("it is told");
            assert!(told.load(std::sync::atomic::Ordering::SeqCst), "not before it closed");
        });
        other.write_all(b"not read").expect("there is room");
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
        drop(other);
        watch.expect("a thread").join().expect("it saw it");
    }

    #[test]
    fn who_waits_is_seen_until_taken() {
        let path = std::env::temp_dir().join(format!("sotto-waited-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        assert!(!is_waited_for(&listener));
        let caller = UnixStream::connect(&path).expect("it listens");
        assert!(is_waited_for(&listener));
        // Who has left again still has to be taken.
        drop(caller);
        assert!(is_waited_for(&listener));
        drop(listener.accept().expect("somebody"));
        assert!(!is_waited_for(&listener));
        std::fs::remove_file(path).expect("it is there");
    }
}
