//! A generation that writes to a pipe: one event is one write of at most PIPE_BUF bytes, made on the engine's thread;
//! a task here watches for room and for the reader's end, and says the outcome on the bus.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::ioctl_fionread;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::base::limits::EVENT_BYTES_MAX;
use crate::door::queue::{READ_LOOK, Unread};
use crate::door::wire;
use crate::engine::{Code, Engine, Event, Fault, Handle, Logprob, Offer, Request, Sink};

use super::options::Format;
use super::record::{Record, Recorder};

/// A pipe: the end to write to, which never blocks, and the end for the caller. No child inherits either.
pub(super) fn pair() -> io::Result<(Sender, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((Sender::from_owned_fd(writer.into())?, reader.into()))
}

struct Shared {
    pipe: Sender,
    /// An event was turned away.
    full: Notify,
}

/// The last event, and whether it still has to be written.
struct Last {
    event: Event,
    unwritten: Option<Vec<u8>>,
}

impl Last {
    fn unsaid(fault: Fault, format: Format) -> Self {
        let event = Event::Failed(fault);
        let unwritten = line(&event, format);
        Self { event, unwritten }
    }

    /// Nobody reads any more.
    fn closed() -> Self {
        let fault = Fault::new(Code::Cancelled, "the reader closed the stream");
        Self { event: Event::Failed(fault), unwritten: None }
    }
}

/// The line of `event`; text streams have none but text.
fn line(event: &Event, format: Format) -> Option<Vec<u8>> {
    if format == Format::Events { wire::event_line(event) } else { None }
}

/// The engine's end. It lets go of the pipe with the last event, so that the reader sees the end at once.
struct PipeSink {
    shared: Option<Arc<Shared>>,
    last: Option<oneshot::Sender<Last>>,
    format: Format,
    /// What is already written of the text that is offered again: nothing, or so many bytes.
    sent: Option<usize>,
}

enum Wrote {
    All,
    Full,
    Gone,
}

fn write(pipe: &Sender, bytes: &[u8]) -> Wrote {
    match pipe.try_write(bytes) {
        // Up to PIPE_BUF bytes a pipe takes all or nothing.
        Ok(_) => Wrote::All,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Wrote::Full,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => write(pipe, bytes),
        Err(_) => Wrote::Gone,
    }
}

impl PipeSink {
    fn offer_text(&mut self, pipe: &Shared, text: &str, logprob: Option<&Logprob>) -> Offer {
        loop {
            let rest = text.get(self.sent.unwrap_or(0)..).unwrap_or_default();
            // The first line tells of the token.
            let logprob = logprob.filter(|_| self.sent.is_none() && self.format == Format::Events);
            if rest.is_empty() && logprob.is_none() {
                break;
            }
            let (n, bytes) = match self.format {
                Format::Events => wire::token_line(rest, logprob),
                Format::Text => {
                    let n = rest.floor_char_boundary(EVENT_BYTES_MAX);
                    (n, rest.as_bytes()[..n].to_vec())
                }
            };
            match write(&pipe.pipe, &bytes) {
                Wrote::All => self.sent = Some(self.sent.unwrap_or(0) + n),
                Wrote::Full => {
                    pipe.full.notify_one();
                    return Offer::Full;
                }
                Wrote::Gone => return Offer::Gone,
            }
        }
        self.sent = None;
        Offer::Taken
    }

    /// Takes the last event, written or not: the task writes it once there is room.
    fn end(&mut self, shared: Arc<Shared>, event: &Event) -> Offer {
        let unwritten =
            line(event, self.format).filter(|line| matches!(write(&shared.pipe, line), Wrote::Full));
        drop(shared);
        if let Some(last) = self.last.take() {
            let _ = last.send(Last { event: event.clone(), unwritten });
        }
        Offer::Taken
    }
}

impl Sink for PipeSink {
    fn offer(&mut self, event: &Event) -> Offer {
        let Some(shared) = self.shared.take() else { return Offer::Gone };
        if event.is_terminal() {
            return self.end(shared, event);
        }
        let offer = match event {
            Event::Text { text, logprob } => self.offer_text(&shared, text, logprob.as_deref()),
            state => match line(state, self.format).map(|line| write(&shared.pipe, &line)) {
                None | Some(Wrote::All) => Offer::Taken,
                // States are news; a reader that does not keep up misses them.
                Some(Wrote::Full) => Offer::Taken,
                Some(Wrote::Gone) => Offer::Gone,
            },
        };
        if offer == Offer::Gone {
            // What comes behind, the end among it, may be dropped unsaid.
            if let Some(last) = self.last.take() {
                let _ = last.send(Last::closed());
            }
        }
        self.shared = Some(shared);
        offer
    }
}

/// The last line of a stream that had no room for it.
pub(super) struct Rest {
    shared: Arc<Shared>,
    line: Option<Vec<u8>>,
}

impl Rest {
    /// Writes it once there is room.
    pub(super) async fn write(self) {
        let Self { shared, line: Some(line) } = self else { return };
        while matches!(write(&shared.pipe, &line), Wrote::Full) {
            if shared.pipe.writable().await.is_err() {
                break;
            }
        }
    }
}

/// Runs `request` into `pipe` and into `record`, to its last event. The reader's end cancels, seen even while nothing is
/// written; one that does not read holds up nothing but its own last line, which is left over.
pub(super) async fn run(
    engine: &Engine,
    request: Request,
    pipe: Sender,
    format: Format,
    record: &Arc<Record>,
) -> Rest {
    // The first readiness has to be seen before the engine's thread can write.
    let _ = pipe.writable().await;
    let shared = Arc::new(Shared { pipe, full: Notify::new() });
    let (last, outcome) = oneshot::channel();
    let sink = PipeSink { shared: Some(shared.clone()), last: Some(last), format, sent: None };
    let sink = Recorder { record: record.clone(), inner: Box::new(sink) };
    let ended = match engine.submit(request, Box::new(sink)) {
        Ok(handle) => follow(&shared, handle, outcome, format).await,
        Err(fault) => Last::unsaid(fault, format),
    };
    // One that the engine did not say.
    record.heard(&ended.event);
    Rest { shared, line: ended.unwritten }
}

async fn follow(
    shared: &Shared,
    handle: Handle,
    mut outcome: oneshot::Receiver<Last>,
    format: Format,
) -> Last {
    let (mut full, mut unread) = (false, Unread::default());
    loop {
        tokio::select! {
            biased;
            last = &mut outcome => {
                let message = "the engine stopped without an end; look at the journal";
                return last.unwrap_or_else(|_| Last::unsaid(Fault::new(Code::Internal, message), format));
            }
            _ = shared.pipe.ready(Interest::ERROR) => {
                drop(handle);
                return Last::closed();
            }
            () = shared.full.notified(), if !full => full = true,
            // An error counts as room: the next write finds it.
            _ = shared.pipe.writable(), if full => {
                (full, unread) = (false, Unread::default());
                handle.drained();
            }
            () = sleep(READ_LOOK), if full => {
                if unread.is_less(ioctl_fionread(&shared.pipe).ok()) {
                    handle.drained();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_pipe_takes_up_where_it_stopped_and_still_gets_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (pipe, reader) = pair().unwrap();
            pipe.writable().await.unwrap();
            let shared = Arc::new(Shared { pipe, full: Notify::new() });
            let (last, mut outcome) = oneshot::channel();
            let mut sink = PipeSink {
                shared: Some(shared.clone()),
                last: Some(last),
                format: Format::Events,
                sent: None,
            };
            let text = "wörd\n".repeat(40_000);
            let event = Event::Text { text: text.clone(), logprob: None };
            let mut reader = std::fs::File::from(reader);
            let (mut bytes, mut n_full) = (Vec::new(), 0);
            let mut read = |bytes: &mut Vec<u8>| {
                let mut part = vec![0; 65_536];
                let n = reader.read(&mut part).unwrap();
                bytes.extend(&part[..n]);
            };
            while sink.offer(&event) == Offer::Full {
                n_full += 1;
                read(&mut bytes);
                shared.pipe.writable().await.unwrap();
            }
            assert!(n_full > 1);
            let filler = Event::Text { text: "x".repeat(4000), logprob: None };
            while sink.offer(&filler) == Offer::Taken {}
            assert_eq!(sink.offer(&Event::Failed(Fault::new(Code::Stalled, "slow"))), Offer::Taken);
            assert!(outcome.try_recv().unwrap().unwritten.is_some());
            assert_eq!(sink.offer(&event), Offer::Gone);
            drop(shared);
            while !bytes.is_empty() {
                let before = bytes.len();
                read(&mut bytes);
                if bytes.len() == before {
                    break;
                }
            }
            let values = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
            let values = values.map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
            let joined: String = values.map(|value| value["text"].as_str().unwrap().to_owned()).collect();
            assert_eq!(joined.trim_end_matches('x'), text);
        });
    }

    #[test]
    fn who_closes_the_stream_has_cancelled_whatever_is_said_behind() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (pipe, reader) = pair().unwrap();
            pipe.writable().await.unwrap();
            drop(reader);
            let shared = Some(Arc::new(Shared { pipe, full: Notify::new() }));
            let (last, mut outcome) = oneshot::channel();
            let mut sink = PipeSink { shared, last: Some(last), format: Format::Text, sent: None };
            assert_eq!(sink.offer(&Event::Text { text: "a".into(), logprob: None }), Offer::Gone);
            // As the engine does with what is still to be said to nobody.
            drop(sink);
            let ended = outcome.try_recv().unwrap().event;
            assert!(matches!(&ended, Event::Failed(fault) if fault.code == Code::Cancelled), "{ended:?}");
        });
    }
}
