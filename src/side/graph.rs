//! Models that are ONNX graphs run in a program of their own, `sotto-onnx`: this is its client, and what the two say to
//! each other.
//!
//! A connection is a model: the first frame has its file, and when the connection ends the helper does. It is a service
//! that systemd starts for each connection where its socket is, with a user of its own, else a child of this process. What
//! it answers is taken as input from outside.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::base::limits::N_VOCAB_MAX;
use crate::base::{Token, shown};
use crate::format::hf::is_plain;
use crate::format::hf::onnx::Pool;
use crate::os::message::{Frame, Frames};

/// The version of all that is said here.
pub const VERSION: u16 = 2;
/// The name of the helper's program.
pub const PROGRAM: &str = "sotto-onnx";
/// Longest refusal that is passed on.
const SAID_CHARS_MAX: usize = 500;
/// Most numbers that a text becomes.
const N_EMBD_MAX: usize = 16_384;
/// Most logits of a token.
const N_LOGITS_MAX: usize = 2 * N_VOCAB_MAX;

/// What the client says.
pub mod ask {
    /// JSON of [`super::Open`], with the file of the graph; of a decoder also the one that begins a text, where that is
    /// another.
    pub const OPEN: u16 = 1;
    /// The files that were asked for, in that order.
    pub const FILES: u16 = 2;
    /// Texts that become vectors ([`super::texts_into`]).
    pub const EMBED: u16 = 3;
    /// The next tokens of a text that is continued: its number, how many tokens it has so far (with none it begins anew),
    /// whether logits are wanted, then the tokens; 32 bits each.
    pub const STEP: u16 = 4;
    /// The numbers of texts that have ended; there is no answer.
    pub const END: u16 = 5;
}

/// What the helper says.
pub mod say {
    /// The graph has its weights in these files beside it: a JSON list of names.
    pub const NEEDS: u16 = 0x81;
    /// JSON of [`super::Opened`].
    pub const OPENED: u16 = 0x82;
    /// A vector of each text, one after the other, 32-bit floats.
    pub const VECTORS: u16 = 0x83;
    /// After a step: the logits after its last token, 32-bit floats, if they were wanted.
    pub const LOGITS: u16 = 0x84;
    /// Why not, a text.
    pub const FAILED: u16 = 0xff;
}

/// Numbers of a step before its tokens.
pub const STEP_NUMBERS: usize = 3;

/// What is to be opened, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// It continues texts; else it makes vectors of them.
    pub generates: bool,
    /// How a text's states become a vector.
    pub pool: Pool,
    /// Vectors have the length 1.
    pub unit: bool,
    /// Threads that compute.
    pub threads: usize,
}

/// What was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Numbers of a vector; 0: it makes none.
    pub n_embd: usize,
    /// Logits of a token; 0: it continues no text.
    pub n_vocab: usize,
    /// Whether a text may be read in parts at no more cost than at once.
    pub in_parts: bool,
    /// Bytes that the helper has resident.
    pub resident_bytes: u64,
}

/// Where the helper is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Helper {
    /// The socket of its service, if there is one.
    pub socket: Option<PathBuf>,
    /// Places where its program may be.
    pub programs: Vec<PathBuf>,
}

/// A graph that cannot be had, or an answer of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// There is no helper.
    #[error(
        "it is an ONNX graph, and the program that runs those is not installed: no {PROGRAM} at {}; install it, or build \
         it with `cargo build --release --features onnx`", looked.join(", ")
    )]
    NoHelper {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// There is no service of it.
    #[error(
        "it is an ONNX graph, and nothing listens at {socket} that runs those; install {PROGRAM} with its units, and \
         `systemctl enable --now {PROGRAM}.socket`"
    )]
    NoService {
        /// Its socket.
        socket: String,
    },
    /// It does not start.
    #[error("{PROGRAM} cannot be started at {at}: {source}")]
    Start {
        /// Its program or socket.
        at: String,
        /// The system's word.
        source: io::Error,
    },
    /// It did not answer in time, and is ended.
    #[error(
        "{PROGRAM} did not answer within {s} s and was ended; the graph computes for too long here: use a smaller model, or \
         shorter texts"
    )]
    Slow {
        /// Seconds.
        s: u64,
    },
    /// It is gone.
    #[error("{PROGRAM} ended ({how}) {when}")]
    Gone {
        /// How.
        how: String,
        /// What it was at.
        when: &'static str,
    },
    /// It does not say what it should.
    #[error("{PROGRAM} does not answer as it should: {what}")]
    Talk {
        /// What it says.
        what: String,
    },
    /// A file of the model cannot be opened.
    #[error("{file}: {source}; the files of a graph lie together, get those that are missing")]
    File {
        /// The file.
        file: String,
        /// The system's word.
        source: io::Error,
    },
    /// A file beside the graph that is not beside it.
    #[error(
        "the graph has weights in {name}, which is no plain name of a file beside it; the file is hostile or broken"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// It refuses, in its own words.
    #[error("{what}")]
    Refused {
        /// Its words.
        what: String,
    },
}

/// A helper with a graph.
#[derive(Debug)]
pub struct Graph {
    frames: Frames,
    child: Option<Child>,
    dir: PathBuf,
    opened: Option<Opened>,
}

impl Graph {
    /// Starts a helper, and gives it the graph at `path`, and the one that begins texts where that is another;
    /// [`Self::open`] tells when it has them.
    ///
    /// # Errors
    /// When there is no helper, or no file.
    pub fn start(
        helper: &Helper,
        path: &Path,
        first: Option<&Path>,
        open: &Open,
    ) -> Result<Self, GraphError> {
        let file = |path: &Path| {
            regular(path).map_err(|source| GraphError::File { file: path.display().to_string(), source })
        };
        let graphs = [path].into_iter().chain(first).map(file).collect::<Result<Vec<_>, _>>()?;
        let graphs: Vec<_> = graphs.iter().map(AsFd::as_fd).collect();
        let (stream, child) = connect(helper)?;
        let wrong = |source| GraphError::Start { at: "its socket".into(), source };
        let frames = Frames::new(stream, VERSION, None).map_err(wrong)?;
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut new = Self { frames, child, dir, opened: None };
        let body = serde_json::to_vec(open).map_err(|e| GraphError::Talk { what: e.to_string() })?;
        let sent = new.frames.send(ask::OPEN, &body, &graphs);
        sent.map_err(|e| new.lost(&e, "before it had the model"))?;
        Ok(new)
    }

    /// What was opened; `None` if it is still at it after `wait`.
    ///
    /// # Errors
    /// When the helper refuses the graph or is gone.
    pub fn open(&mut self, wait: Duration) -> Result<Option<&Opened>, GraphError> {
        const WHEN: &str = "while it opened the model: the file is broken, or asks for more memory than it may have, or as many \
             helpers run as may";
        while self.opened.is_none() {
            let Some(frame) = self.frames.take(wait).map_err(|e| self.lost(&e, WHEN))? else {
                return Ok(None);
            };
            match frame.kind {
                say::FAILED => return Err(refused(&frame)),
                say::NEEDS => {
                    let names: Vec<String> = json(&frame)?;
                    let files =
                        names.iter().map(|name| beside(&self.dir, name)).collect::<Result<Vec<_>, _>>()?;
                    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                    let sent = self.frames.send(ask::FILES, &[], &files);
                    sent.map_err(|e| self.lost(&e, WHEN))?;
                }
                say::OPENED => {
                    let opened: Opened = json(&frame)?;
                    if opened.n_embd > N_EMBD_MAX || opened.n_vocab > N_LOGITS_MAX {
                        let Opened { n_embd, n_vocab, .. } = opened;
                        let what = format!(
                            "a vector of {n_embd} numbers (at most {N_EMBD_MAX} are taken), {n_vocab} logits (at most \
                             {N_LOGITS_MAX})"
                        );
                        return Err(GraphError::Talk { what });
                    }
                    self.opened = Some(opened);
                }
                other => return Err(odd(other)),
            }
        }
        Ok(self.opened.as_ref())
    }

    /// What was opened; nothing before that.
    #[must_use]
    pub fn opened(&self) -> Opened {
        self.opened.clone().unwrap_or_default()
    }

    /// Asks for the vectors of texts, which [`Self::answer`] brings.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn embed(&mut self, texts: &[&[Token]]) -> Result<(), GraphError> {
        let mut body = Vec::new();
        texts_into(texts, &mut body);
        self.frames.send(ask::EMBED, &body, &[]).map_err(|e| self.lost(&e, "before it had a text"))
    }

    /// Takes text `id`, which has `at` tokens so far, on by `tokens`; [`Self::answer`] brings the logits after the last one,
    /// if it `draws`.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn step(&mut self, id: u32, at: usize, tokens: &[Token], draws: bool) -> Result<(), GraphError> {
        let numbers = [id, u32::try_from(at).unwrap_or(u32::MAX), u32::from(draws)];
        let numbers = numbers.into_iter().chain(tokens.iter().map(|token| token.0));
        let body: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        self.frames.send(ask::STEP, &body, &[]).map_err(|e| self.lost(&e, "before it had a text"))
    }

    /// Tells that texts have ended.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn end(&mut self, ids: &[u32]) -> Result<(), GraphError> {
        let body: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.frames.send(ask::END, &body, &[]).map_err(|e| self.lost(&e, "between two texts"))
    }

    /// The answer to what was asked for first; `None` if there is none after `wait`. A refusal is one, too.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn answer(&mut self, wait: Duration) -> Result<Option<Frame>, GraphError> {
        self.frames.take(wait).map_err(|e| self.lost(&e, "while it read a text"))
    }

    /// The vectors of `n` texts, of an answer.
    ///
    /// # Errors
    /// When the helper refuses, or says something else.
    pub fn vectors(&self, answer: &Frame, n: usize) -> Result<Vec<Vec<f32>>, GraphError> {
        let (width, numbers) = (self.opened().n_embd, floats(&answer.body));
        match answer.kind {
            say::FAILED => Err(refused(answer)),
            say::VECTORS if width > 0 && numbers.len() == n * width => {
                Ok(numbers.chunks_exact(width).map(<[f32]>::to_vec).collect())
            }
            other => Err(odd(other)),
        }
    }

    /// The logits of an answer to a step that `draws`, or none.
    ///
    /// # Errors
    /// When the helper refuses, or says something else.
    pub fn logits(&self, answer: &Frame, draws: bool) -> Result<Vec<f32>, GraphError> {
        let (wanted, numbers) = (if draws { self.opened().n_vocab } else { 0 }, floats(&answer.body));
        match answer.kind {
            say::FAILED => Err(refused(answer)),
            say::LOGITS if numbers.len() == wanted => Ok(numbers),
            other => Err(odd(other)),
        }
    }

    /// What is said of a connection that broke.
    fn lost(&mut self, e: &io::Error, when: &'static str) -> GraphError {
        if e.kind() == ErrorKind::InvalidData {
            return GraphError::Talk { what: e.to_string() };
        }
        let status = self.child.as_mut().and_then(ended);
        GraphError::Gone { how: status.map_or_else(|| e.to_string(), |status| status.to_string()), when }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It would end by itself, but not before it has done what it is at.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a child ended whose socket is closed; it has a moment for it.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    (0..100).find_map(|_| match child.try_wait() {
        Ok(None) => {
            std::thread::sleep(Duration::from_millis(5));
            None
        }
        Ok(status) => Some(status),
        Err(_) => Some(None),
    })?
}

/// A helper of one's own: its service, else a child.
fn connect(helper: &Helper) -> Result<(UnixStream, Option<Child>), GraphError> {
    let at = |path: &Path| {
        let at = path.display().to_string();
        move |source| GraphError::Start { at, source }
    };
    if let Some(path) = helper.socket.as_deref() {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok((stream, None)),
            // One that was left behind has nobody.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                if helper.programs.is_empty() {
                    return Err(GraphError::NoService { socket: path.display().to_string() });
                }
            }
            Err(e) => return Err(at(path)(e)),
        }
    }
    let Some(program) = helper.programs.iter().find(|path| path.is_file()) else {
        let looked = helper.socket.iter().chain(&helper.programs).map(|path| path.display().to_string());
        return Err(GraphError::NoHelper { looked: looked.collect() });
    };
    let (ours, theirs) = UnixStream::pair().map_err(at(program))?;
    let child = Command::new(program)
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        // A signal for all of a terminal is for who started it; it ends with that one.
        .process_group(0)
        .spawn()
        .map_err(at(program))?;
    Ok((ours, Some(child)))
}

/// The file `name` beside a graph in `dir`.
fn beside(dir: &Path, name: &str) -> Result<File, GraphError> {
    if !is_plain(name) {
        return Err(GraphError::Name { name: shown(name.as_bytes()) });
    }
    let path = dir.join(name);
    regular(&path).map_err(|source| GraphError::File { file: path.display().to_string(), source })
}

/// Opens a regular file, and waits for nobody: a pipe would wait for its writer.
fn regular(path: &Path) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn json<T: for<'de> Deserialize<'de>>(frame: &Frame) -> Result<T, GraphError> {
    serde_json::from_slice(&frame.body).map_err(|e| GraphError::Talk { what: e.to_string() })
}

/// What the helper said against it; it may repeat what stands in a file.
fn refused(frame: &Frame) -> GraphError {
    let text = String::from_utf8_lossy(&frame.body);
    let what = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID_CHARS_MAX).collect();
    GraphError::Refused { what }
}

fn odd(kind: u16) -> GraphError {
    GraphError::Talk {
        what: format!("a frame of kind {kind:#x} that does not belong there, or of another length"),
    }
}

/// Writes texts: their number and their lengths, then all tokens, 32 bits each, the low byte first.
pub fn texts_into(texts: &[&[Token]], out: &mut Vec<u8>) {
    let mut put = |n: u32| out.extend_from_slice(&n.to_le_bytes());
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    put(count(texts.len()));
    texts.iter().for_each(|text| put(count(text.len())));
    texts.iter().copied().flatten().for_each(|token| put(token.0));
}

/// Reads what [`texts_into`] wrote; `None` if it is something else.
#[must_use]
pub fn texts_from(body: &[u8]) -> Option<Vec<Vec<Token>>> {
    let numbers = whole_numbers(body)?;
    let (n, rest) = numbers.split_first()?;
    let (lens, mut rest) = rest.split_at_checked(*n as usize)?;
    let mut texts = Vec::new();
    for len in lens {
        let (text, after) = rest.split_at_checked(*len as usize)?;
        texts.push(text.iter().map(|id| Token(*id)).collect());
        rest = after;
    }
    rest.is_empty().then_some(texts)
}

/// 32-bit numbers with the low byte first; `None` if there is a part of one.
#[must_use]
pub fn whole_numbers(body: &[u8]) -> Option<Vec<u32>> {
    let (numbers, rest) = body.as_chunks::<4>();
    rest.is_empty().then(|| numbers.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

/// 32-bit floats with the low byte first.
fn floats(body: &[u8]) -> Vec<f32> {
    body.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_as_they_went() {
        let (one, other) = ([Token(7), Token(1)], [Token(9)]);
        let mut body = Vec::new();
        texts_into(&[&one, &[], &other], &mut body);
        assert_eq!(texts_from(&body), Some(vec![one.to_vec(), Vec::new(), other.to_vec()]));
        for end in 0..body.len() {
            assert_eq!(texts_from(&body[..end]), None, "{end}");
        }
        let mut huge = u32::MAX.to_le_bytes().to_vec();
        huge.extend([0; 8]);
        assert_eq!(texts_from(&huge), None);
    }

    #[test]
    fn a_file_beside_a_graph_is_beside_it() {
        let dir = std::env::temp_dir();
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0"] {
            assert!(matches!(beside(&dir, name), Err(GraphError::Name { .. })), "{name}");
        }
        assert!(matches!(beside(&dir, "sotto-is-not-there"), Err(GraphError::File { .. })));
        assert!(beside(Path::new("/"), "proc").is_err(), "a folder");
    }

    #[test]
    fn without_a_helper_it_is_said_how_to_get_one() {
        let mut helper = Helper {
            socket: Some("/sotto-is-not-there/socket".into()),
            programs: vec!["/sotto-is-not-there/sotto-onnx".into()],
        };
        let open = Open { generates: false, pool: Pool::Mean, unit: true, threads: 1 };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let said = |helper: &Helper| Graph::start(helper, &file, None, &open).expect_err("none").to_string();
        let both = said(&helper);
        assert!(both.contains("--features onnx") && both.contains("/sotto-is-not-there/socket"), "{both}");
        helper.programs.clear();
        let service = said(&helper);
        assert!(
            service.contains("/sotto-is-not-there/socket") && service.contains("enable --now"),
            "{service}"
        );
    }
}
