//! Frames on a Unix socket between two processes of this program, with open files where there are any.
//!
//! A frame is a header of 8 bytes, the length of what follows (32 bits), a version and a kind (16 bits each), all with
//! the low byte first, and as many bytes. Files come with the header (unix(7), SCM_RIGHTS).

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::clock;

const HEADER: usize = 8;
/// Most files with a frame.
pub const N_FILES_MAX: usize = 16;
/// Longest frame: the logits of a vocabulary of a million.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// What came.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u16,
    /// What it says.
    pub body: Vec<u8>,
    /// What came with it.
    pub files: Vec<File>,
}

/// One end of a connection on which frames go both ways.
#[derive(Debug)]
pub struct Frames {
    stream: UnixStream,
    version: u16,
    read: Vec<u8>,
    files: Vec<File>,
    /// Whether the other end is waited for where it does not read.
    waits: bool,
    /// What it has not read yet, if it is not.
    unsent: Vec<u8>,
}

impl Frames {
    /// Speaks `version` on `stream`; waits at most `patience` where the other end does not read. With none it waits never:
    /// what is not read at once goes with [`Self::take`].
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn new(stream: UnixStream, version: u16, patience: Option<Duration>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(patience)?;
        let waits = patience.is_some();
        Ok(Self { stream, version, read: Vec::new(), files: Vec::new(), waits, unsent: Vec::new() })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the other end is gone, there is too much for a frame, or the other end does not read: it was waited for, or files
    /// cannot be sent behind what it has not read.
    pub fn send(&mut self, kind: u16, body: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        if body.len() > FRAME_BYTES_MAX || files.len() > N_FILES_MAX {
            let what = format!("{} bytes and {} files are too much for a frame", body.len(), files.len());
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[4..6].copy_from_slice(&self.version.to_le_bytes());
        header[6..].copy_from_slice(&kind.to_le_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(N_FILES_MAX))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !with.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too many files for a frame"));
        }
        if !self.unsent.is_empty() {
            if !files.is_empty() {
                return Err(io::Error::new(ErrorKind::WouldBlock, "the other program does not read"));
            }
            self.unsent.extend_from_slice(&header);
            self.unsent.extend_from_slice(body);
            return self.flush();
        }
        let flags = self.flags();
        let mut sent = 0;
        while sent < HEADER + body.len() {
            let (head, rest) = match sent.checked_sub(HEADER) {
                None => (&header[sent..], body),
                Some(at) => (&[][..], &body[at..]),
            };
            match sendmsg(&self.stream, &[IoSlice::new(head), IoSlice::new(rest)], &mut with, flags) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) if !self.waits && (sent > 0 || files.is_empty()) => {
                    self.unsent.extend_from_slice(head);
                    self.unsent.extend_from_slice(rest);
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            }
            // They go once, with the first byte.
            with.clear();
        }
        Ok(())
    }

    fn flags(&self) -> SendFlags {
        if self.waits { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT }
    }

    /// Sends what the other end reads of what is unsent.
    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.stream, &self.unsent, self.flags()) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// The next frame; `None` if it is not whole after `wait`.
    ///
    /// # Errors
    /// When the other end is gone (`UnexpectedEof`), or what it says is no frame of this version.
    pub fn take(&mut self, wait: Duration) -> io::Result<Option<Frame>> {
        let until = clock::now_us().saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            let left = Duration::from_micros(until.saturating_sub(clock::now_us()));
            self.flush()?;
            let flags = if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut fds = [PollFd::new(&self.stream, flags)];
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(None),
                Ok(_) => self.receive()?,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for the next frame as long as the other end lives.
    ///
    /// # Errors
    /// As of [`Self::take`].
    pub fn wait(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.take(Duration::from_secs(3_600))? {
                return Ok(frame);
            }
        }
    }

    /// Takes the first frame out of what was read, once it is all there.
    fn whole(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.read.first_chunk::<HEADER>() else { return Ok(None) };
        let &[a, b, c, d, v, w, k, l] = header;
        let n = u32::from_le_bytes([a, b, c, d]) as usize;
        let (version, kind) = (u16::from_le_bytes([v, w]), u16::from_le_bytes([k, l]));
        if version != self.version {
            let what = format!(
                "the other program speaks version {version}, this one {}; install both of one release",
                self.version
            );
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        if n > FRAME_BYTES_MAX {
            let what = format!("a frame of {n} bytes, at most {FRAME_BYTES_MAX} are taken");
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        if self.read.len() < HEADER + n {
            return Ok(None);
        }
        let body = self.read[HEADER..HEADER + n].to_vec();
        self.read.drain(..HEADER + n);
        Ok(Some(Frame { kind, body, files: std::mem::take(&mut self.files) }))
    }

    /// Reads what is there.
    fn receive(&mut self) -> io::Result<()> {
        let mut piece = [0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(N_FILES_MAX))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut piece)],
            &mut with,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        let n = match got {
            Ok(got) => got.bytes,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.files.extend(fds.map(|fd: OwnedFd| File::from(fd)));
            }
        }
        if n == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other program is gone"));
        }
        if self.files.len() > N_FILES_MAX {
            let what = format!("more than {N_FILES_MAX} files came with a frame");
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        self.read.extend_from_slice(&piece[..n]);
        Ok(())
    }
}

impl AsFd for Frames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn pair() -> (Frames, Frames, UnixStream) {
        let (one, other) = UnixStream::pair().expect("two sockets");
        let raw = other.try_clone().expect("a descriptor");
        let frames = |stream| Frames::new(stream, 3, Some(Duration::from_millis(100))).expect("a socket");
        (frames(one), frames(other), raw)
    }

    #[test]
    fn frames_come_as_they_went_with_their_files() {
        let (mut one, mut other, _) = pair();
        let path = std::env::temp_dir().join(format!("sotto-frame-{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        std::fs::remove_file(&path).expect("it is ours");
        file.write_all(b"model").expect("there is room");
        let long = vec![7; 60_000];
        one.send(1, b"{}", &[file.as_fd(), file.as_fd()]).expect("it goes");
        one.send(2, b"", &[]).expect("it goes");
        one.send(9, &long, &[]).expect("it goes");
        let mut frame = other.wait().expect("it comes");
        assert_eq!((frame.kind, frame.body.as_slice(), frame.files.len()), (1, &b"{}"[..], 2));
        let mut text = String::new();
        frame.files[1].rewind().expect("a file");
        frame.files[1].read_to_string(&mut text).expect("a file");
        assert_eq!(text, "model");
        let frame = other.wait().expect("it comes");
        assert_eq!((frame.kind, frame.body.len(), frame.files.len()), (2, 0, 0));
        assert_eq!(other.wait().expect("it comes").body, long);
        assert!(other.take(Duration::from_millis(5)).expect("nothing").is_none());
        drop(other);
        assert_eq!(one.wait().expect_err("it is gone").kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, wanted) in [
            (&[1, 0, 0, 0, 4, 0, 1, 0, 7][..], "version 4, this one 3"),
            (&[0, 0, 0, 255, 3, 0, 1, 0], "4278190080 bytes"),
        ] {
            let (mut one, _other, mut raw) = pair();
            raw.write_all(bytes).expect("there is room");
            let said = one.wait().expect_err("no frame").to_string();
            assert!(said.contains(wanted), "{said}");
        }
        let (mut one, other, mut raw) = pair();
        raw.write_all(&[9, 0, 0, 0, 3, 0, 1, 0, 7]).expect("there is room");
        assert!(one.take(Duration::from_millis(5)).expect("a part").is_none());
        drop((other, raw));
        assert_eq!(one.wait().expect_err("cut").kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn who_does_not_read_is_given_up() {
        let (mut one, _other, _) = pair();
        let sent = (0..100).try_for_each(|_| one.send(1, &vec![0; FRAME_BYTES_MAX / 8], &[]));
        assert!(sent.is_err());
        assert!(one.send(1, &vec![0; FRAME_BYTES_MAX + 1], &[]).is_err());
    }

    #[test]
    fn what_is_not_read_at_once_is_sent_when_it_is() {
        let (one, other) = UnixStream::pair().expect("two sockets");
        let mut one = Frames::new(one, 3, None).expect("a socket");
        let mut other = Frames::new(other, 3, Some(Duration::from_secs(5))).expect("a socket");
        let long: Vec<u8> = (0..FRAME_BYTES_MAX).map(|i| (i * 7) as u8).collect();
        one.send(1, &long, &[]).expect("it is kept");
        one.send(2, b"behind", &[]).expect("it is kept");
        let file = File::open("/dev/null").expect("a file");
        assert_eq!(one.send(3, b"", &[file.as_fd()]).expect_err("not now").kind(), ErrorKind::WouldBlock);
        let reader = crate::os::thread::start("reader", move || {
            let frames = [other.wait(), other.wait()].map(|frame| frame.expect("it comes").body);
            other.send(4, b"", &[]).expect("it goes");
            frames
        });
        assert_eq!(one.take(Duration::from_secs(60)).expect("it comes").expect("in time").kind, 4);
        let [first, second] = reader.expect("a thread").join().expect("it ends");
        assert!(first == long && second == b"behind");
    }
}
