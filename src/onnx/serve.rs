//! The helper's side of a connection: it opens one graph, and answers until the other side is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::OnnxError;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::int8::Worker;
use crate::read;
use sotto::base::Token;
use sotto::kernel::{self, Pool};
use sotto::os::map::Map;
use sotto::os::message::{Frame, Frames};
use sotto::os::process;
use sotto::side::graph::{Open, Opened, STEP_NUMBERS, VERSION, ask, say, texts_from, whole_numbers};

/// How long the other side may take to read.
const PATIENCE: Duration = Duration::from_secs(60);
/// Address space for a graph: so many times its bytes, and so much beside.
const TIMES: u64 = 8;
const BESIDE: u64 = 2 << 30;

/// What goes wrong with a graph, in words for the other side.
type Said<T> = Result<T, String>;

/// What was opened.
enum Model {
    Encoder(Encoder),
    Decoder(Box<Decoder>),
}

/// Serves one connection.
///
/// # Errors
/// When the connection breaks in the middle of something.
pub(crate) fn serve(stream: UnixStream) -> io::Result<()> {
    let mut frames = Frames::new(stream, VERSION, Some(PATIENCE))?;
    let panicked = catch_panics();
    let mut model = match open(&mut frames, &panicked) {
        Ok(Some((model, opened))) => {
            frames.send(say::OPENED, &serde_json::to_vec(&opened)?, &[])?;
            model
        }
        Ok(None) => return Ok(()),
        Err(what) => return frames.send(say::FAILED, what.as_bytes(), &[]),
    };
    loop {
        let Some(frame) = next(&mut frames)? else { return Ok(()) };
        match answer(&mut model, &frame, &panicked) {
            Ok(Some((kind, body))) => frames.send(kind, &body, &[])?,
            Ok(None) => {}
            Err(what) => frames.send(say::FAILED, what.as_bytes(), &[])?,
        }
    }
}

/// The next frame; `None` if the other side is gone.
fn next(frames: &mut Frames) -> io::Result<Option<Frame>> {
    match frames.wait() {
        Ok(frame) => Ok(Some(frame)),
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where and how the last panic was, which is told in place of an answer.
type Panicked = Arc<Mutex<String>>;

fn catch_panics() -> Panicked {
    let last = Panicked::default();
    let seen = last.clone();
    std::panic::set_hook(Box::new(move |info| {
        let what = info.payload_as_str().unwrap_or("for no known reason");
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = what.to_owned();
    }));
    last
}

/// Does something with a graph, whose code may panic where it does not know what it reads.
fn caught<T>(panicked: &Panicked, f: impl FnOnce() -> Said<T>) -> Said<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        let last = panicked.lock().unwrap_or_else(PoisonError::into_inner);
        Err(OnnxError::stopped(&last).to_string())
    })
}

/// Opens the graph that the other side gives; `None` if it left.
fn open(frames: &mut Frames, panicked: &Panicked) -> Said<Option<(Model, Opened)>> {
    let words = |e: io::Error| e.to_string();
    let Some(frame) = next(frames).map_err(words)? else { return Ok(None) };
    let open: Open = match frame.kind {
        ask::OPEN => {
            serde_json::from_slice(&frame.body).map_err(|e| format!("what is asked is no JSON: {e}"))?
        }
        other => return Err(format!("a frame of kind {other} before there is a model")),
    };
    if !matches!((frame.files.len(), open.generates), (1, _) | (2, true)) {
        return Err(format!("{} files came with a model", frame.files.len()));
    }
    let graphs = frame.files.iter().map(|file| Map::of(file, "the graph").map_err(|e| e.to_string()));
    let graphs = graphs.collect::<Said<Vec<_>>>()?;
    let bytes = graphs.iter().fold(0_u64, |n, map| n.saturating_add(map.as_ref().len() as u64));
    // Files beside it may ask for more.
    process::limit_memory(room(bytes), false).map_err(words)?;
    let read = |map: &Map| read::model(map.as_ref()).map_err(|e| e.to_string());
    let mut read = caught(panicked, || graphs.iter().map(read).collect::<Said<Vec<_>>>())?.into_iter();
    let (Some(mut model), mut first) = (read.next(), read.next()) else {
        return Err("no file came with a model".into());
    };
    drop(graphs);
    let mut names = BTreeSet::new();
    for graph in first.iter_mut().chain([&mut model]) {
        names.extend(read::files(graph).map_err(|e| e.to_string())?);
    }
    let names: Vec<String> = names.into_iter().collect();
    let mut maps = Vec::new();
    if !names.is_empty() {
        let body = serde_json::to_vec(&names).map_err(|e| e.to_string())?;
        frames.send(say::NEEDS, &body, &[]).map_err(words)?;
        let Some(frame) = next(frames).map_err(words)? else { return Ok(None) };
        if frame.kind != ask::FILES || frame.files.len() != names.len() {
            return Err(format!("{} files came, {} are wanted", frame.files.len(), names.len()));
        }
        for (file, name) in frame.files.into_iter().zip(&names) {
            maps.push(Map::of(&file, name).map_err(|e| e.to_string())?);
        }
    }
    let all = maps.iter().fold(bytes, |n, map| n.saturating_add(map.as_ref().len() as u64));
    process::limit_memory(room(all), true).map_err(words)?;
    let files: BTreeMap<String, &[u8]> =
        names.iter().cloned().zip(maps.iter().map(|map| map.as_ref())).collect();
    let kernels = kernel::select(None).map_err(|e| e.to_string())?;
    let pool = Pool::new(kernels, open.threads.clamp(1, 64)).map_err(words)?;
    let worker = Arc::new(Mutex::new(Worker::new(pool)));
    let model = caught(panicked, || {
        let opened = if open.generates {
            let first = match first {
                None => read::branches(&mut model).map_err(|e| e.to_string())?,
                two => two,
            };
            Decoder::new(model, first, &files, &worker).map(|new| Model::Decoder(Box::new(new)))
        } else {
            Encoder::new(model, &files, (open.pool, open.unit), &worker).map(Model::Encoder)
        };
        opened.map_err(|e| e.to_string())
    })?;
    drop(files);
    sotto::os::memory::trim();
    let resident_bytes = process::usage().map_or(0, |usage| usage.rss_bytes);
    let opened = match &model {
        Model::Encoder(encoder) => Opened { n_embd: encoder.n_embd(), resident_bytes, ..Opened::default() },
        Model::Decoder(decoder) => Opened {
            n_vocab: decoder.n_vocab(),
            in_parts: decoder.reads_in_parts(),
            resident_bytes,
            ..Opened::default()
        },
    };
    Ok(Some((model, opened)))
}

/// Address space for a graph of so many bytes.
fn room(bytes: u64) -> u64 {
    bytes.saturating_mul(TIMES).saturating_add(BESIDE)
}

/// The answer to a frame, if it gets one.
fn answer(model: &mut Model, frame: &Frame, panicked: &Panicked) -> Said<Option<(u16, Vec<u8>)>> {
    let floats = |all: Vec<f32>| all.into_iter().flat_map(f32::to_le_bytes).collect();
    match (frame.kind, model) {
        (ask::EMBED, Model::Encoder(encoder)) => {
            let texts = texts_from(&frame.body).ok_or("texts of another form")?;
            let vectors = caught(panicked, || encoder.embed(&texts).map_err(|e| e.to_string()))?;
            Ok(Some((say::VECTORS, floats(vectors.concat()))))
        }
        (ask::STEP, Model::Decoder(decoder)) => {
            let numbers = whole_numbers(&frame.body).ok_or("a step of another form")?;
            let (&[id, at, draws], tokens) =
                numbers.split_first_chunk::<STEP_NUMBERS>().ok_or("a step of another form")?;
            let tokens: Vec<Token> = tokens.iter().map(|id| Token(*id)).collect();
            let step = || decoder.step(id, at as usize, &tokens, draws != 0).map_err(|e| e.to_string());
            Ok(Some((say::LOGITS, floats(caught(panicked, step)?))))
        }
        (ask::END, Model::Decoder(decoder)) => {
            for id in whole_numbers(&frame.body).unwrap_or_default() {
                decoder.end(id);
            }
            Ok(None)
        }
        (other, _) => Err(format!("a frame of kind {other}, which is not for this model")),
    }
}
