//! Just enough of HTTP to see what goes over the socket, byte by byte where a test wants it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest silence of the daemon that a test takes.
const SILENCE: Duration = Duration::from_secs(60);

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Its head in small letters.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// The lines of a stream of events that have text.
    pub(crate) fn tokens(&self) -> Vec<&str> {
        self.text().lines().filter(|line| line.contains("\"token\"")).collect()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// A field of the one error body.
    pub(crate) fn error(&self, key: &str) -> String {
        let json = self.json();
        let value = &json["error"][key];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A request with a body.
pub(crate) fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!(
        "POST {path} HTTP/1.1\r\nhost: sotto\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A request without one.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: sotto\r\nconnection: close\r\n\r\n").into_bytes()
}

/// One request under way. Dropping it hangs up.
pub(crate) struct Call {
    reader: BufReader<UnixStream>,
    pub(crate) status: u16,
    head: String,
    chunked: bool,
    /// Bytes of the present chunk that were not read yet.
    left: usize,
    line: Vec<u8>,
}

impl Call {
    /// Sends `request`; reads nothing yet.
    pub(crate) fn send(socket: &Path, request: &[u8]) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(SILENCE)).expect("a socket has time-outs");
        // Who is refused early hears it though not all was taken.
        let _ = stream.write_all(request);
        let reader = BufReader::new(stream);
        Self { reader, status: 0, head: String::new(), chunked: false, left: 0, line: Vec::new() }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn half_close(&self) {
        self.reader.get_ref().shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// Reads the head.
    pub(crate) fn head(&mut self) -> &mut Self {
        while !self.head.ends_with("\r\n\r\n") {
            let n = self.reader.read_line(&mut self.head).expect("a head arrives");
            assert!(n > 0, "the connection ended in the head: {:?}", self.head);
        }
        self.status = self.head.get(9..12).and_then(|s| s.parse().ok()).expect("a status");
        self.head.make_ascii_lowercase();
        self.chunked = self.head.contains("transfer-encoding: chunked");
        self
    }

    fn byte(&mut self) -> Option<u8> {
        if self.chunked && self.left == 0 {
            let mut size = String::new();
            while size.trim().is_empty() {
                size.clear();
                if self.reader.read_line(&mut size).expect("a chunk arrives") == 0 {
                    return None;
                }
            }
            self.left = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
            if self.left == 0 {
                return None;
            }
        }
        let mut byte = [0];
        let n = self.reader.read(&mut byte).expect("bytes arrive");
        self.left = self.left.saturating_sub(n);
        (n == 1).then_some(byte[0])
    }

    /// The next line of the body; `None` after the last.
    pub(crate) fn line(&mut self) -> Option<String> {
        self.line.clear();
        while let Some(byte) = self.byte() {
            self.line.push(byte);
            if byte == b'\n' {
                break;
            }
        }
        (!self.line.is_empty()).then(|| String::from_utf8(self.line.clone()).expect("lines are text"))
    }

    /// The next event of that name, skipping others.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the stream ended before {name}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            if event["event"] == name {
                return event;
            }
            assert!(event["event"] != "error" && event["event"] != "done", "before {name}: {event}");
        }
    }

    /// All lines that are left.
    pub(crate) fn lines_to_end(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.line()).collect()
    }

    /// Reads to the end.
    pub(crate) fn finish(mut self) -> Answer {
        self.head();
        let mut body = Vec::new();
        while let Some(byte) = self.byte() {
            body.push(byte);
        }
        Answer { status: self.status, head: self.head, body }
    }
}

/// The answer to `request`.
pub(crate) fn ask(socket: &Path, request: &[u8]) -> Answer {
    Call::send(socket, request).finish()
}
