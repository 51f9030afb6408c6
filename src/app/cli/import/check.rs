//! Whether a file that was made of an ONNX graph says what the graph says, and how fast each says it.

use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::app::cli::show::{Show, Step};
use crate::base::Token;
use crate::engine::{ModelFile, Solo};
use crate::format::Checkpoint;
use crate::format::hf::onnx;
use crate::model::{Pack, Precision, vocab};
use crate::os::clock;
use crate::os::interrupt::Noticed;
use crate::os::message::Frame;
use crate::quant::Quant;
use crate::side::graph::{Graph, GraphError, Open};
use crate::text::Special;

/// What is read, and then written on token by token.
const TEXT: &str = "A visitor asks at the desk how to get to the old harbour. Take the stairs down to the river, says the \
                    clerk, and follow the water for ten minutes; the harbour is behind the second bridge. It is open until \
                    6 p.m., and children pay nothing. Thank you! And is there a café near it? There are two: one of them \
                    bakes its own bread.";
/// Most tokens that are read, and those of them that are written on. A model with layers that see a window reads beyond that, if
/// it is no longer than this.
const N_TOKENS: usize = 64;
const WINDOW_MAX: usize = 1_024;
const N_WRITTEN: usize = 16;
/// Times that each is timed; the fastest counts.
const N_TIMED: usize = 3;
/// How long the helper is waited for, and between two looks at Ctrl-C.
const WAIT_US: u64 = 300_000_000;
const LOOK: Duration = Duration::from_millis(100);

/// How far the logits of weights that are still the graph's may be: 32-bit floats, or 16-bit ones that tract computes with.
pub(super) fn of_floats(source: &Checkpoint) -> f64 {
    let narrow = source.tensors().any(|(_, info)| matches!(info.quant, Quant::F16 | Quant::BF16));
    if narrow { 1e-2 } else { 1e-4 }
}

/// How far a file with matrices of this type may be from its graph: of random weights four bits leave 0.7, weights in a wrong
/// order are at 1.4.
pub(super) fn of_type(quant: Quant) -> f64 {
    match quant {
        Quant::F16 => 1e-2,
        Quant::Q8_0 => 0.1,
        _ => 1.0,
    }
}

/// Positions that some layers see, if that is so.
pub(super) fn window(source: &Checkpoint) -> usize {
    let key = source.metadata().map(|(key, _)| key).find(|key| key.ends_with(".attention.sliding_window"));
    let found = key.and_then(|key| source.uint(key).ok().flatten());
    found.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// Tokens a second.
#[derive(Clone, Copy, Default)]
pub(super) struct Speed {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

/// How far logits are from those of the graph.
#[derive(Clone, Copy)]
pub(super) struct Compared {
    /// Relative, by the root of squares.
    pub(super) distance: f64,
    /// Places that were compared, and those where the likeliest token is the same.
    pub(super) n: usize,
    pub(super) n_same: usize,
}

/// What runs the graph that a file is made of.
pub(super) struct Peer<'i> {
    graph: Graph,
    /// What is read, how many of it at once.
    tokens: Vec<Token>,
    n_prompt: usize,
    threads: usize,
    next_id: u32,
    interrupted: &'i Noticed,
}

/// Who reads tokens behind those that it has read, and gives the logits after the last.
type Reads<'r> = dyn FnMut(usize, &[Token]) -> Result<Vec<f32>, Failure> + 'r;

impl<'i> Peer<'i> {
    /// Of the graph of `model`; `None` if that is no graph.
    ///
    /// # Errors
    /// In the first place why there is nothing that runs it, in the second what else is wrong.
    pub(super) fn of(
        model: &Path,
        window: usize,
        threads: usize,
        interrupted: &'i Noticed,
        show: &mut Show,
    ) -> Result<Option<Result<Self, GraphError>>, Failure> {
        let Some((dir, graph)) = onnx::find(model) else { return Ok(None) };
        let dir = onnx::open(&dir, &graph).map_err(Failure::usage)?;
        let mut tokens = Vec::new();
        vocab::of_graph(&dir).map_err(Failure::usage)?.encode(TEXT, Special::AsText, &mut tokens);
        let beyond = if window > WINDOW_MAX { 0 } else { window + 2 * N_WRITTEN };
        let n = N_TOKENS.max(beyond).min(dir.n_ctx);
        let tokens: Vec<Token> = tokens.iter().copied().cycle().take(n.max(1)).collect();
        if tokens.is_empty() {
            return Err(Failure::usage(
                "the tokenizer makes no tokens of any text: its vocabulary is damaged",
            ));
        }
        let n_prompt = tokens.len().saturating_sub(N_WRITTEN).max(1);
        let open = Open { generates: true, pool: dir.pool, unit: dir.unit, threads };
        let started = Graph::start(&crate::app::helper(false), &dir.graph, dir.first.as_deref(), &open);
        let graph = match started.and_then(|graph| opened(graph, interrupted, show)) {
            Ok(graph) => graph,
            Err(e) => return Ok(Some(Err(e))),
        };
        Ok(Some(Ok(Self { graph, tokens, n_prompt, threads, next_id: 0, interrupted })))
    }

    /// Compares the file at `path`, whose logits may be away from the graph's by `bound`.
    ///
    /// # Errors
    /// When they are further away, or cannot be had.
    pub(super) fn hold(&mut self, path: &Path, bound: f64, show: &mut Show) -> Result<Compared, Failure> {
        show.step(Step::Waiting, 0, 0);
        let (tokens, n_prompt) = (self.tokens.clone(), self.n_prompt);
        let solo = self.opened(path, Pack::Off)?;
        let mut reader = solo.reader(Precision::F32, tokens.len())?;
        let (prompt, written) = tokens.split_at(n_prompt);
        let (_, file) = told(&mut |_, tokens| Ok(reader.read_on(tokens)?.to_vec()), (prompt, written))?;
        let (_, graph) = self.told((prompt, written))?;
        let found = compared(&graph, &file)?;
        if found.distance.is_nan() {
            let what =
                "logits are no numbers: the weights are damaged, check their checksum and get them anew";
            return Err(Failure::new(1, what));
        }
        if found.distance > bound {
            let what = format!(
                "logits are {:.1e} from those of the graph, more than the {bound:.0e} that rounding explains: the graph \
                 computes something that the files beside it do not tell; run the graph itself",
                found.distance
            );
            return Err(Failure::new(1, what));
        }
        Ok(found)
    }

    /// How fast the graph, and the file at `path`, read and write.
    ///
    /// # Errors
    /// When one of them cannot.
    pub(super) fn speeds(&mut self, path: &Path, show: &mut Show) -> Result<[Speed; 2], Failure> {
        let tokens = self.tokens.iter().copied().take(N_TOKENS).collect::<Vec<_>>();
        let n_prompt = tokens.len().saturating_sub(N_WRITTEN).max(1);
        let solo = self.opened(path, Pack::Memory)?;
        let mut best = [Speed::default(); 2];
        for i in 0..N_TIMED {
            show.step(Step::Measuring, i as u64, N_TIMED as u64);
            let mut reader = solo.reader(Precision::default(), tokens.len())?;
            let (file, _) =
                told(&mut |_, tokens| Ok(reader.read_on(tokens)?.to_vec()), tokens.split_at(n_prompt))?;
            let (graph, _) = self.told(tokens.split_at(n_prompt))?;
            for (best, speed) in best.iter_mut().zip([graph, file]) {
                *best =
                    Speed { prefill: best.prefill.max(speed.prefill), decode: best.decode.max(speed.decode) };
            }
        }
        Ok(best)
    }

    /// The model in the file at `path`.
    fn opened(&self, path: &Path, pack: Pack) -> Result<Solo, Failure> {
        let file = ModelFile { id: "imported".into(), path: path.to_owned() };
        let kernels = crate::app::kernels().map_err(Failure::usage)?;
        Ok(Solo::open(kernels, &file, self.threads, pack, None, &mut |_, _| {})?)
    }

    /// What the graph tells of a text of its own.
    fn told(&mut self, text: (&[Token], &[Token])) -> Result<(Speed, Vec<Vec<f32>>), Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let told = told(&mut |at, tokens| self.step(id, at, tokens), text)?;
        self.graph.end(&[id]).map_err(Failure::internal)?;
        Ok(told)
    }

    /// The logits of the graph after `tokens` more of text `id`.
    fn step(&mut self, id: u32, at: usize, tokens: &[Token]) -> Result<Vec<f32>, Failure> {
        self.graph.step(id, at, tokens, true).map_err(Failure::internal)?;
        let graph = &mut self.graph;
        let answer: Frame = waited(self.interrupted, || graph.answer(LOOK)).map_err(Failure::internal)?;
        self.graph.logits(&answer, true).map_err(Failure::internal)
    }
}

/// The helper once it has its graph.
fn opened(mut graph: Graph, interrupted: &Noticed, show: &mut Show) -> Result<Graph, GraphError> {
    waited(interrupted, || {
        show.step(Step::Waiting, 0, 0);
        Ok(graph.open(LOOK)?.map(|_| ()))
    })?;
    Ok(graph)
}

/// What `look` finds, unless it takes for ever or Ctrl-C comes.
fn waited<T>(
    interrupted: &Noticed,
    mut look: impl FnMut() -> Result<Option<T>, GraphError>,
) -> Result<T, GraphError> {
    let since = clock::now_us();
    loop {
        match look()? {
            Some(found) => return Ok(found),
            None if interrupted.came() || clock::now_us().saturating_sub(since) > WAIT_US => {
                return Err(GraphError::Slow { s: WAIT_US / 1_000_000 });
            }
            None => {}
        }
    }
}

/// Reads a prompt and writes on: how fast, and the logits after the prompt and each token.
fn told(
    read: &mut Reads<'_>,
    (prompt, written): (&[Token], &[Token]),
) -> Result<(Speed, Vec<Vec<f32>>), Failure> {
    let per_second =
        |n: usize, since: u64| n as f64 * 1e6 / clock::now_us().saturating_sub(since).max(1) as f64;
    let since = clock::now_us();
    let mut rows = vec![read(0, prompt)?];
    let prefill = per_second(prompt.len(), since);
    let since = clock::now_us();
    for (i, token) in written.iter().enumerate() {
        rows.push(read(prompt.len() + i, std::slice::from_ref(token))?);
    }
    Ok((Speed { prefill, decode: per_second(written.len(), since) }, rows))
}

/// How far rows of logits are from those of the graph, and in how many the likeliest token is the same.
fn compared(graph: &[Vec<f32>], file: &[Vec<f32>]) -> Result<Compared, Failure> {
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let (mut apart, mut all, mut n_same) = (0.0, 0.0, 0);
    for (g, f) in graph.iter().zip(file) {
        if g.len() != f.len() {
            let what = format!("the graph gives {} logits, its weights make {}", g.len(), f.len());
            return Err(Failure::new(1, what));
        }
        n_same += usize::from(best(g) == best(f));
        apart += g.iter().zip(f).map(|(g, f)| f64::from(g - f).powi(2)).sum::<f64>();
        all += g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    }
    Ok(Compared { distance: (apart / all).sqrt(), n: graph.len(), n_same })
}
