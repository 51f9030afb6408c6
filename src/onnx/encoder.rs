//! Graphs that make vectors of texts: an encoder of BERT's family, with its pooling in the graph or left to us.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use crate::OnnxError;
use crate::graph::{self, Parsed};
use crate::int8::Worker;
use sotto::base::Token;
use sotto::format::hf::onnx::Pool as Pooling;

/// What a graph may want of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Ids,
    /// 1 for each token, 0 for what fills a row.
    Mask,
    /// 0: all of it is one text.
    Types,
    /// From 0.
    Positions,
}

/// Names of outputs that are vectors already, and of those that are the states of tokens.
const VECTORS: [&str; 1] = ["sentence_embedding"];
const STATES: [&str; 3] = ["last_hidden_state", "token_embeddings", "hidden_states"];
/// Most tokens, with those that fill rows, that are read together.
const BATCH_TOKENS: usize = 512;
/// Texts are read together if none is shorter than this share of the longest.
const SHORTEST: (usize, usize) = (7, 8);

/// An encoder.
pub(super) struct Encoder {
    plan: Arc<TypedRunnableModel>,
    wants: Vec<Wants>,
    /// How states become a vector; `None` where the graph does that.
    pooling: Option<Pooling>,
    unit: bool,
    n_embd: usize,
}

impl Encoder {
    /// Of `model`, with weights in `files` beside it.
    ///
    /// # Errors
    /// When it is no graph of this kind, or cannot be run.
    pub(super) fn new(
        model: ModelProto,
        files: &BTreeMap<String, &[u8]>,
        (pooling, unit): (Pooling, bool),
        worker: &Arc<Mutex<Worker>>,
    ) -> Result<Self, OnnxError> {
        let Parsed { mut graph, names } = graph::parse(model, files, worker)?;
        let wants = inputs(&mut graph)?;
        let outlets: Vec<OutletId> = graph.output_outlets().map_err(|e| OnnxError::run(&e))?.to_vec();
        let named =
            |known: &[&str]| known.iter().find_map(|name| names.get(*name)).filter(|o| outlets.contains(o));
        let (outlet, pooling) = match (named(&VECTORS), named(&STATES), outlets.first()) {
            (Some(outlet), ..) => (*outlet, None),
            (None, Some(outlet), _) | (None, None, Some(outlet)) => (*outlet, Some(pooling)),
            (None, None, None) => return Err(OnnxError::Damaged { what: "it has no output".into() }),
        };
        graph.select_output_outlets(&[outlet]).map_err(|e| OnnxError::run(&e))?;
        let plan = graph.into_typed().and_then(graph::runnable).map_err(|e| OnnxError::run(&e))?;
        let mut new = Self { plan, wants, pooling, unit, n_embd: 0 };
        // Whether it runs is found out now, and how wide it is, whatever is read.
        let wide = |n| new.read(&[&[Token(0); 3][..n]]).map(|probe| probe.first().map_or(0, Vec::len));
        let n_embd = wide(2)?;
        if n_embd != wide(3)? {
            return Err(OnnxError::Unsupported { what: "makes longer vectors of longer texts".into() });
        }
        new.n_embd = n_embd;
        Ok(new)
    }

    /// Numbers of a vector.
    pub(super) fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// The vectors of `texts`, in their order; those of about one length are read together.
    ///
    /// # Errors
    /// When one is empty, or the graph cannot be run with it.
    pub(super) fn embed(&self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>, OnnxError> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(texts[*i].len()));
        let mut all = vec![Vec::new(); texts.len()];
        let mut rest = order.as_slice();
        while let Some(first) = rest.first() {
            let longest = texts[*first].len();
            if longest == 0 {
                return Err(OnnxError::Run { what: "a text has no tokens".into() });
            }
            let fits = |i: &usize| texts[*i].len() * SHORTEST.1 >= longest * SHORTEST.0;
            let n_max = (BATCH_TOKENS / longest).max(1);
            let n = rest.iter().take(n_max).take_while(|i| fits(i)).count();
            let (batch, after) = rest.split_at(n);
            let read: Vec<&[Token]> = batch.iter().map(|i| texts[*i].as_slice()).collect();
            for (i, vector) in batch.iter().zip(self.read(&read)?) {
                all[*i] = vector;
            }
            rest = after;
        }
        Ok(all)
    }

    /// The vectors of texts that are read together; the first is the longest.
    fn read(&self, texts: &[&[Token]]) -> Result<Vec<Vec<f32>>, OnnxError> {
        let (n, width) = (texts.len(), texts.first().map_or(0, |text| text.len()));
        let row = |text: &[Token], wants: Wants| -> Vec<i64> {
            let of = |(i, token): (usize, Option<&Token>)| match (wants, token) {
                (Wants::Ids, Some(token)) => i64::from(token.0),
                (Wants::Mask, Some(_)) => 1,
                (Wants::Positions, _) => i as i64,
                (Wants::Types, _) | (_, None) => 0,
            };
            (0..width).map(|i| of((i, text.get(i)))).collect()
        };
        let input = |wants: &Wants| {
            let all: Vec<i64> = texts.iter().flat_map(|text| row(text, *wants)).collect();
            Ok(Tensor::from_shape(&[n, width], &all)?.into_tvalue())
        };
        let run = || -> TractResult<Vec<Vec<f32>>> {
            let inputs = self.wants.iter().map(input).collect::<TractResult<TVec<TValue>>>()?;
            let out = self.plan.run(inputs)?;
            let out = out.first().context("it has no output")?;
            ensure!(out.datum_type().is_float(), "its output is {:?}, no floats", out.datum_type());
            let out = out.cast_to::<f32>()?;
            let numbers = out.to_plain_array_view::<f32>()?;
            let numbers = numbers.as_standard_layout();
            let numbers = numbers.as_slice().context("an output in pieces")?;
            let shape = out.shape();
            match (self.pooling, shape) {
                (None, [b, wide]) | (Some(_), [b, wide]) if *b == n && *wide > 0 => {
                    Ok(numbers.chunks_exact(*wide).map(<[f32]>::to_vec).collect())
                }
                (Some(how), [b, s, wide]) if (*b, *s) == (n, width) && *wide > 0 => {
                    let states = numbers.chunks_exact(s * wide).zip(texts);
                    Ok(states
                        .map(|(states, text)| pooled(how, &states[..text.len() * wide], *wide))
                        .collect())
                }
                _ => bail!(
                    "its output is {shape:?} for {n} texts of {width} tokens; [texts, width] or [texts, tokens, width] works"
                ),
            }
        };
        let mut vectors = run().map_err(|e| OnnxError::run(&e))?;
        for vector in vectors.iter_mut().filter(|_| self.unit) {
            let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            }
        }
        Ok(vectors)
    }
}

/// The vector of a text of the states of its tokens, `[tokens, width]`.
fn pooled(how: Pooling, states: &[f32], width: usize) -> Vec<f32> {
    let mut rows = states.chunks_exact(width);
    match how {
        Pooling::First => rows.next().unwrap_or_default().to_vec(),
        Pooling::Last => rows.next_back().unwrap_or_default().to_vec(),
        Pooling::Max => {
            let mut most = vec![f32::NEG_INFINITY; width];
            rows.for_each(|row| most.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(*x)));
            most
        }
        Pooling::Mean => {
            let (mut sum, n) = (vec![0.0; width], rows.len().max(1) as f32);
            rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += x));
            sum.iter_mut().for_each(|s| *s /= n);
            sum
        }
    }
}

/// What the graph wants, in the order of its inputs, each `[texts, tokens]` of 64-bit integers from now on.
fn inputs(graph: &mut InferenceModel) -> Result<Vec<Wants>, OnnxError> {
    let outlets = graph.input_outlets().map_err(|e| OnnxError::run(&e))?.to_vec();
    let (texts, tokens) = (graph.symbols.sym("texts"), graph.symbols.sym("tokens"));
    let mut wants = Vec::new();
    for (i, outlet) in outlets.iter().enumerate() {
        let name = graph.node(outlet.node).name.clone();
        wants.push(match name.as_str() {
            "input_ids" => Wants::Ids,
            "attention_mask" => Wants::Mask,
            "token_type_ids" => Wants::Types,
            "position_ids" => Wants::Positions,
            _ => {
                let what = format!(
                    "wants the input {name:?}; input_ids, attention_mask, token_type_ids and position_ids are known"
                );
                return Err(OnnxError::Unsupported { what });
            }
        });
        let fact = InferenceFact::dt_shape(i64::datum_type(), tvec![texts.to_dim(), tokens.to_dim()]);
        graph.set_input_fact(i, fact).map_err(|e| OnnxError::run(&e))?;
    }
    match wants.contains(&Wants::Ids) {
        true => Ok(wants),
        false => Err(OnnxError::Unsupported { what: "has no input input_ids, so it reads no text".into() }),
    }
}
