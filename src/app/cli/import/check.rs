//! Whether a file that was made of an ONNX graph says what the graph says, and how fast each says it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use crate::app::cli::show::{Show, Step};
use crate::base::Token;
use crate::engine::{ModelFile, Solo};
use crate::format::hf::onnx;
use crate::model::{Pack, Precision};
use crate::os::clock;
use crate::quant::Quant;
use crate::side::graph::{Graph, GraphError, Open};
use crate::text::Special;

/// What is read, and then written on token by token.
const TEXT: &str = "A visitor asks at the desk how to get to the old harbour. Take the stairs down to the river, says the \
                    clerk, and follow the water for ten minutes; the harbour is behind the second bridge. It is open until \
                    6 p.m., and children pay nothing. Thank you! And is there a café near it? There are two: one of them \
                    bakes its own bread.";
/// Most tokens of it, and those of them that are written on.
const N_TOKENS: usize = 64;
const N_WRITTEN: usize = 16;
/// How long the helper is waited for.
const WAIT: Duration = Duration::from_secs(300);

/// Tokens a second.
#[derive(Clone, Copy)]
pub(super) struct Speed {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

/// What was found.
pub(super) struct Check {
    /// Distance of the logits: relative, by the root of squares.
    pub(super) distance: f64,
    /// Most that it may be.
    pub(super) bound: f64,
    /// Places that were compared, and those where the likeliest token is the same.
    pub(super) n: usize,
    pub(super) n_same: usize,
    pub(super) graph: Speed,
    pub(super) file: Speed,
    pub(super) threads: usize,
}

/// Who reads tokens behind those that it has read, and gives the logits after the last.
type Reads<'r> = dyn FnMut(usize, &[Token]) -> Result<Vec<f32>, Failure> + 'r;

/// How far a file with matrices of this type may be from its graph: of random weights four bits leave 0.7, weights in a wrong
/// order are at 1.4.
fn bound(quant: Quant) -> f64 {
    match quant {
        Quant::F32 => 1e-3,
        Quant::F16 => 1e-2,
        Quant::Q8_0 => 0.1,
        _ => 1.0,
    }
}

/// Compares the GGUF file at `path`, of matrices of type `quant`, with the graph of `model`; `None` if that is no graph.
///
/// # Errors
/// In the first place why there is nothing to compare with, in the second what failed.
pub(super) fn check(
    model: &Path,
    (path, quant): (&Path, Quant),
    threads: usize,
    show: &mut Show,
) -> Result<Option<Result<Check, GraphError>>, Failure> {
    let Some((dir, graph)) = onnx::find(model) else { return Ok(None) };
    let dir = onnx::open(&dir, &graph).map_err(Failure::usage)?;
    let open = Open { generates: true, pool: dir.pool, unit: dir.unit, threads };
    let helper = crate::app::helper(false);
    let mut graph = match opened(Graph::start(&helper, &dir.graph, dir.first.as_deref(), &open), show) {
        Ok(graph) => graph,
        Err(e) => return Ok(Some(Err(e))),
    };
    let file = ModelFile { id: "imported".into(), path: PathBuf::from(path) };
    let kernels = crate::app::kernels().map_err(Failure::usage)?;
    let solo = Solo::open(kernels, &file, threads, Pack::Memory, None, &mut |_, _| {})?;
    let mut tokens = Vec::new();
    solo.tokenizer().encode(TEXT, Special::AsText, &mut tokens);
    tokens.truncate(N_TOKENS.min(dir.n_ctx).min(solo.model().hyper().n_ctx_train));
    let n_prompt = tokens.len().saturating_sub(N_WRITTEN).max(1);

    // The first time they are compared and warm up, the second time they are timed.
    let (mut id, mut rows, mut speeds) = (0, [Vec::new(), Vec::new()], Vec::new());
    let mut all = [Vec::new(), Vec::new()];
    for precision in [Precision::F32, Precision::default()] {
        let mut reader = solo.reader(precision, tokens.len())?;
        let mut ours = |_: usize, tokens: &[Token]| Ok(reader.read_on(tokens)?.to_vec());
        let mut theirs = |at: usize, tokens: &[Token]| step(&mut graph, id, at, tokens);
        let reads: [&mut Reads<'_>; 2] = [&mut theirs, &mut ours];
        speeds.clear();
        for (read, rows) in reads.into_iter().zip(&mut rows) {
            show.step(Step::Measuring, (2 * id as usize + speeds.len()) as u64, 4);
            let (speed, told) = told(read, tokens.split_at(n_prompt))?;
            (*rows, _) = (told, speeds.push(speed));
        }
        if id == 0 {
            all = rows.clone();
        }
        id += 1;
    }
    let [graph_rows, file_rows] = &all;
    let (distance, n_same) = compared(graph_rows, file_rows)?;
    let [graph, file] = <[Speed; 2]>::try_from(speeds).map_err(|_| Failure::internal("two were timed"))?;
    let bound = bound(quant);
    Ok(Some(Ok(Check { distance, bound, n: graph_rows.len(), n_same, graph, file, threads })))
}

/// The helper once it has its graph.
fn opened(started: Result<Graph, GraphError>, show: &mut Show) -> Result<Graph, GraphError> {
    let mut graph = started?;
    let since = clock::now_us();
    while graph.open(Duration::from_millis(100))?.is_none() {
        show.step(Step::Waiting, 0, 0);
        if clock::now_us().saturating_sub(since) > WAIT.as_micros() as u64 {
            return Err(GraphError::slow(WAIT.as_secs()));
        }
    }
    Ok(graph)
}

/// The logits of the graph after `tokens` more of text `id`.
fn step(graph: &mut Graph, id: u32, at: usize, tokens: &[Token]) -> Result<Vec<f32>, Failure> {
    graph.step(id, at, tokens, true).map_err(Failure::internal)?;
    match graph.answer(WAIT).map_err(Failure::internal)? {
        Some(answer) => graph.logits(&answer, true).map_err(Failure::internal),
        None => Err(Failure::internal(GraphError::slow(WAIT.as_secs()))),
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
fn compared(graph: &[Vec<f32>], file: &[Vec<f32>]) -> Result<(f64, usize), Failure> {
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let (mut apart, mut all, mut n_same) = (0.0, 0.0, 0);
    for (g, f) in graph.iter().zip(file) {
        if g.len() != f.len() {
            let what = format!("the graph gives {} logits, the file {}", g.len(), f.len());
            return Err(Failure::new(1, what));
        }
        n_same += usize::from(best(g) == best(f));
        apart += g.iter().zip(f).map(|(g, f)| f64::from(g - f).powi(2)).sum::<f64>();
        all += g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    }
    Ok(((apart / all).sqrt(), n_same))
}
