//! Graphs that continue text: a causal decoder that takes the keys and values of what was read before, and gives them back
//! with those of what it has read, as the common exporter makes them.
//!
//! A graph that was exported with one token at a time may be wrong with several, and one that was exported with something
//! read before may be wrong with nothing. Whether they are is found out when they are opened, not guessed from their names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::Slice;

use crate::OnnxError;
use crate::graph::{self, Parsed};
use crate::int8::Worker;
use sotto::base::Token;

/// Most texts at a time.
const N_SEQUENCES_MAX: usize = 256;
/// Logits of one way to read a text may be away from those of another by this share.
const SAME: f64 = 1e-3;
/// What inputs and outputs that are kept are called, before the part that is alike.
const PAST: [&str; 2] = ["past_key_values.", "past."];
const PRESENT: [&str; 2] = ["present.", "present_key_values."];
const LOGITS: &str = "logits";

/// What a graph may want of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// The tokens to be read.
    Ids,
    /// 1 for each token, those before among them.
    Mask,
    /// Where each of them stands.
    Positions,
    /// Keys or values of what was read before: which.
    Past(usize),
}

/// Keys or values of a block: `[1, heads, tokens, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// What is alike in the names of its input and output.
    name: String,
    of: DatumType,
    n_heads: usize,
    width: usize,
}

/// A graph that runs.
struct Plan {
    plan: Arc<TypedRunnableModel>,
    wants: Vec<Wants>,
}

/// A text that is being read or written.
#[derive(Clone, Default)]
struct Sequence {
    /// Tokens so far.
    n: usize,
    /// What is kept of them, in the order of [`Decoder::states`].
    past: Vec<TValue>,
}

/// What was found out of graphs.
struct Tried {
    /// They read several tokens at once, behind others too.
    many: bool,
    n_vocab: usize,
}

/// A decoder with its texts.
pub(super) struct Decoder {
    /// Begins texts, where `next` cannot.
    first: Option<Plan>,
    next: Plan,
    /// Whether `next` reads several tokens at once behind others.
    many: bool,
    states: Vec<State>,
    n_vocab: usize,
    sequences: BTreeMap<u32, Sequence>,
}

impl Decoder {
    /// Of the graph `next`, and of `first` where another one begins a text, with weights in `files` beside them.
    ///
    /// # Errors
    /// When they are no graphs of this kind, or cannot be run.
    pub(super) fn new(
        next: ModelProto,
        first: Option<ModelProto>,
        files: &BTreeMap<String, &[u8]>,
        worker: &Arc<Mutex<Worker>>,
    ) -> Result<Self, OnnxError> {
        let mut parsed = graph::parse(next, files, worker)?;
        let states = states(&parsed)?;
        let next = Plan::new(&mut parsed, &states)?;
        drop(parsed);
        let mut new = Self { first: None, next, many: true, states, n_vocab: 0, sequences: BTreeMap::new() };
        let (alone, first) = match (new.tried(None), first) {
            (Ok(tried), first) if tried.many || first.is_none() => (tried, None),
            (Err(e), None) => return Err(OnnxError::run(&e)),
            (_, Some(first)) => {
                let first = Plan::new(&mut graph::parse(first, files, worker)?, &new.states)?;
                (new.tried(Some(&first)).map_err(|e| OnnxError::run(&e))?, Some(first))
            }
            (Ok(tried), None) => (tried, None),
        };
        (new.many, new.n_vocab, new.first) = (alone.many, alone.n_vocab, first);
        Ok(new)
    }

    /// Reads a text of three tokens, begun by `first` where `next` does not begin: token by token, and several at once.
    fn tried(&self, first: Option<&Plan>) -> TractResult<Tried> {
        let text = [Token(0), Token(1), Token(2)];
        let read = |plan: &Plan, so_far: &Sequence, tokens: &[Token]| {
            let mut sequence = so_far.clone();
            plan.run(&self.states, &mut sequence, tokens, true).map(|logits| (logits, sequence))
        };
        let (none, begin) = (Sequence::default(), first.unwrap_or(&self.next));
        let (_, one) = read(begin, &none, &text[..1])?;
        let (_, two) = read(&self.next, &one, &text[1..2])?;
        let (wanted, _) = read(&self.next, &two, &text[2..])?;
        let at_once = read(begin, &none, &text).is_ok_and(|(logits, _)| same(&logits, &wanted));
        let behind = read(&self.next, &one, &text[1..]).is_ok_and(|(logits, _)| same(&logits, &wanted));
        ensure!(
            at_once || first.is_none(),
            "it gives other logits for a text that it reads at once than for one that it reads token by token"
        );
        Ok(Tried { many: at_once && behind, n_vocab: wanted.len() })
    }

    /// Logits of a token.
    pub(super) fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Whether a text may be read in parts at no more cost than at once.
    pub(super) fn reads_in_parts(&self) -> bool {
        self.many
    }

    /// Takes text `id`, which has `at` tokens so far, on by `tokens`; the logits after the last one, if it `draws`. One with
    /// none so far begins anew.
    ///
    /// # Errors
    /// When it does not have so many, or the graph cannot be run with them.
    pub(super) fn step(
        &mut self,
        id: u32,
        at: usize,
        tokens: &[Token],
        draws: bool,
    ) -> Result<Vec<f32>, OnnxError> {
        let has = self.sequences.remove(&id).filter(|_| at > 0);
        let mut sequence = match has {
            None if at == 0 => Sequence::default(),
            Some(sequence) if sequence.n == at => sequence,
            other => {
                let n = other.map_or(0, |sequence| sequence.n);
                let what = format!("a text has {n} tokens here, and {at} where it is asked for");
                return Err(OnnxError::Run { what });
            }
        };
        if tokens.is_empty() || self.sequences.len() >= N_SEQUENCES_MAX {
            let n = self.sequences.len();
            return Err(OnnxError::Run { what: format!("{} tokens, beside {n} texts", tokens.len()) });
        }
        let mut logits = Vec::new();
        let mut rest = tokens;
        while !rest.is_empty() {
            let (plan, n) = match (&self.first, sequence.n) {
                (Some(first), 0) => (first, rest.len()),
                _ if self.many => (&self.next, rest.len()),
                _ => (&self.next, 1),
            };
            let (part, after) = rest.split_at(n);
            let draws = draws && after.is_empty();
            logits = plan.run(&self.states, &mut sequence, part, draws).map_err(|e| OnnxError::run(&e))?;
            rest = after;
        }
        self.sequences.insert(id, sequence);
        Ok(logits)
    }

    /// Lets go of text `id`.
    pub(super) fn end(&mut self, id: u32) {
        self.sequences.remove(&id);
    }
}

/// Whether two rows of logits are alike.
fn same(a: &[f32], b: &[f32]) -> bool {
    let square = |x: f32| f64::from(x).powi(2);
    let (mut apart, mut all) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        apart += square(a - b);
        all += square(*b);
    }
    a.len() == b.len() && apart.sqrt() <= SAME * all.sqrt()
}

impl Plan {
    /// Of a graph that gives logits and `states`.
    fn new(parsed: &mut Parsed, states: &[State]) -> Result<Self, OnnxError> {
        let Parsed { graph, names } = parsed;
        let run = |e| OnnxError::run(&e);
        let (before, tokens) = (graph.symbols.sym("before"), graph.symbols.sym("tokens"));
        let all = before.to_dim() + tokens.to_dim();
        let mut wants = Vec::new();
        for (i, outlet) in graph.input_outlets().map_err(run)?.to_vec().iter().enumerate() {
            let name = graph.node(outlet.node).name.clone();
            let past = cut(&name, &PAST).and_then(|name| states.iter().position(|s| s.name == name));
            let (want, of, shape) = match (name.as_str(), past) {
                (_, Some(i)) => {
                    let State { of, n_heads, width, .. } = &states[i];
                    let shape = tvec![1.to_dim(), n_heads.to_dim(), before.to_dim(), width.to_dim()];
                    (Wants::Past(i), *of, shape)
                }
                ("input_ids", _) => (Wants::Ids, i64::datum_type(), tvec![1.to_dim(), tokens.to_dim()]),
                ("position_ids", _) => {
                    (Wants::Positions, i64::datum_type(), tvec![1.to_dim(), tokens.to_dim()])
                }
                ("attention_mask", _) => (Wants::Mask, i64::datum_type(), tvec![1.to_dim(), all.clone()]),
                _ => {
                    let what = format!(
                        "wants the input {name:?}; input_ids, attention_mask, position_ids and past_key_values are known"
                    );
                    return Err(OnnxError::Unsupported { what });
                }
            };
            graph.set_input_fact(i, InferenceFact::dt_shape(of, shape)).map_err(run)?;
            wants.push(want);
        }
        if !wants.contains(&Wants::Past(0)) {
            // Nothing was read before.
            let all = |fact: &mut InferenceFact| -> TractResult<()> {
                let shape = fact.shape.concretize().context("an input without a shape")?;
                let shape = shape.iter().map(|d| d.substitute(&before, &0.to_dim()));
                fact.shape = shape.collect::<TractResult<TVec<TDim>>>()?.into();
                Ok(())
            };
            for i in 0..wants.len() {
                let mut fact = graph.input_fact(i).map_err(run)?.clone();
                all(&mut fact).map_err(run)?;
                graph.set_input_fact(i, fact).map_err(run)?;
            }
        }
        let outlet = |name: &str| {
            let found = names.get(name).copied();
            found.ok_or_else(|| OnnxError::Unsupported { what: format!("has no output {name:?}") })
        };
        let mut outlets = vec![outlet(LOGITS)?];
        for state in states {
            let found = PRESENT.iter().find_map(|p| names.get(&format!("{p}{}", state.name)).copied());
            outlets.push(match found {
                Some(found) => found,
                None => outlet(&format!("{}{}", PRESENT[0], state.name))?,
            });
        }
        graph.select_output_outlets(&outlets).map_err(run)?;
        let plan = std::mem::take(graph).into_typed().and_then(|mut graph| {
            last_only(&mut graph, &tokens)?;
            graph::runnable(graph)
        });
        Ok(Self { plan: plan.map_err(run)?, wants })
    }

    /// Takes a text on by `tokens`: the logits after the last one, if they are wanted.
    fn run(
        &self,
        states: &[State],
        sequence: &mut Sequence,
        tokens: &[Token],
        draws: bool,
    ) -> TractResult<Vec<f32>> {
        let all = sequence.n + tokens.len();
        let numbers = |all: Vec<i64>| Ok(Tensor::from_shape(&[1, all.len()], &all)?.into_tvalue());
        let mut past = std::mem::take(&mut sequence.past);
        if past.is_empty() {
            let empty = |s: &State| Ok(Tensor::zero_dt(s.of, &[1, s.n_heads, 0, s.width])?.into_tvalue());
            past = states.iter().map(empty).collect::<TractResult<_>>()?;
        }
        let input = |wants: &Wants| match wants {
            Wants::Ids => numbers(tokens.iter().map(|t| i64::from(t.0)).collect()),
            Wants::Mask => numbers(vec![1; all]),
            Wants::Positions => numbers((sequence.n..all).map(|i| i as i64).collect()),
            Wants::Past(i) => past.get(*i).cloned().context("keys and values are missing"),
        };
        let inputs = self.wants.iter().map(input).collect::<TractResult<TVec<TValue>>>()?;
        let mut out = self.plan.run(inputs)?.into_iter();
        let logits = out.next().context("it has no output")?;
        let mut kept = Vec::with_capacity(states.len());
        for (state, value) in states.iter().zip(out) {
            let shape = [1, state.n_heads, all, state.width];
            ensure!(
                value.shape() == shape && value.datum_type() == state.of,
                "{} is {:?} after {all} tokens, {shape:?} wanted",
                state.name,
                value.shape()
            );
            kept.push(value);
        }
        let [1, n, n_vocab] = *logits.shape() else {
            bail!("its logits are {:?}; [1, tokens, vocabulary] works", logits.shape());
        };
        let fits = n > 0 && n <= tokens.len() && n_vocab > 0 && logits.datum_type().is_float();
        ensure!(fits, "its logits are {:?} of {:?}", logits.shape(), logits.datum_type());
        *sequence = Sequence { n: all, past: kept };
        if !draws {
            return Ok(Vec::new());
        }
        let last = logits.slice(1, n - 1, n)?.cast_to::<f32>()?.into_owned();
        Ok(last.to_plain_array_view::<f32>()?.iter().copied().collect())
    }
}

/// Has only the last of `tokens` make logits, the first output: the others' are wanted by nobody, and for a large vocabulary
/// they are much of the work.
fn last_only(graph: &mut TypedModel, tokens: &Symbol) -> TractResult<()> {
    let mut outlets = graph.output_outlets()?.to_vec();
    let Some(logits) = outlets.first_mut() else { return Ok(()) };
    let tokens = tokens.to_dim();
    if graph.outlet_fact(*logits)?.shape.get(1) == Some(&tokens) {
        let last = Slice::new(1, tokens.clone() - 1, tokens);
        *logits = graph.wire_node("sotto.last", last, &[*logits])?[0];
        graph.select_output_outlets(&outlets)?;
    }
    Ok(())
}

/// The rest of a name that begins with one of these.
fn cut<'n>(name: &'n str, begins: &[&str]) -> Option<&'n str> {
    begins.iter().find_map(|begin| name.strip_prefix(begin))
}

/// What a graph keeps of a text, by its inputs.
fn states(parsed: &Parsed) -> Result<Vec<State>, OnnxError> {
    let Parsed { graph, .. } = parsed;
    let run = |e| OnnxError::run(&e);
    let mut states = Vec::new();
    for outlet in graph.input_outlets().map_err(run)? {
        let name = &graph.node(outlet.node).name;
        let Some(rest) = cut(name, &PAST) else { continue };
        let fact = graph.outlet_fact(*outlet).map_err(run)?;
        let dims: Vec<Option<usize>> =
            fact.shape.dims().map(|d| d.concretize().and_then(|d| d.to_usize().ok())).collect();
        let ([_, Some(n_heads), _, Some(width)], Some(of)) = (dims.as_slice(), fact.datum_type.concretize())
        else {
            let what = format!(
                "wants {name:?} of the form {:?}; [texts, heads, tokens, width] works, with the second and last a number",
                fact.shape
            );
            return Err(OnnxError::Unsupported { what });
        };
        states.push(State { name: rest.to_owned(), of, n_heads: *n_heads, width: *width });
    }
    match states.is_empty() {
        false => Ok(states),
        true => {
            let what =
                "takes no keys and values of what was read before (past_key_values); export it with them";
            Err(OnnxError::Unsupported { what: what.into() })
        }
    }
}
