//! The weights of an ONNX graph of a decoder, under the names that its class has in Hugging Face's directories. Exporters
//! keep the names of most; a matrix that they turn around before it is multiplied with loses its own (`onnx::MatMul_732`)
//! and is told by the node that uses it, whose name is the path of its module (`/model/layers.0/self_attn/q_proj/MatMul`), or
//! whose metadata have it (`torch.onnx`'s `namespace`).
//!
//! Read are the tensors alone, in place; what else the graph computes is not looked at. Everything that the class does not
//! know by name is a constant of the graph (masks, tables of positions) and is passed over.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::super::names::Target;
use super::super::{Shard, Tensors, Used, files};
use super::proto::{Field, Message};
use crate::base::limits::{N_DIM_SKIPPED_MAX, N_ONNX_GRAPH_MAX, N_PART_MAX, N_TENSOR_MAX, ONNX_DEPTH_MAX};
use crate::base::shown;
use crate::format::FormatError;
use crate::format::safetensors::{Stored, bits};

/// Operators whose weights are integers.
const QUANTIZED: &[&str] = &[
    "DequantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinearMatMul",
    "QMoE",
];

/// How an own name of a weight begins, and how it ends.
const OWN: &[&str] = &["model.", "transformer.", "lm_head."];
const ENDINGS: &[&str] = &[".weight", ".bias"];

/// An input of a node that is a weight of its module: its place, what the weight is called, and how it is used.
type Use = (usize, &'static str, Used);

/// The tensors of a graph and of the graphs in it.
pub(super) struct Graphs<'a> {
    file: Message<'a>,
    scopes: Vec<Scope<'a>>,
}

/// A graph: what its nodes may name is here or in the graph around it.
struct Scope<'a> {
    graph: Range<usize>,
    this: usize,
    outer: Option<usize>,
    /// Sorted by name.
    tensors: Vec<Tensor<'a>>,
}

/// A tensor that a graph brings along.
struct Tensor<'a> {
    name: &'a str,
    at: Range<usize>,
    /// By the node that has the path of the tensor's own name.
    used: Cell<Used>,
}

/// A node, as far as weights go.
#[derive(Default)]
struct Node<'a> {
    inputs: [&'a str; 3],
    output: &'a str,
    name: &'a str,
    /// Modules around it, each with its class, and then the node itself.
    namespace: &'a str,
    op: &'a str,
    /// The tensor that it is, if it is a constant.
    constant: Option<Range<usize>>,
    /// Whether the right matrix of a product has a row for each column of the outcome.
    rows: bool,
    /// Whether its product is multiplied with something.
    scaled: bool,
}

/// A tensor with its place, which is not checked.
struct Read<'a> {
    dtype: u64,
    /// Dimensions, slowest first.
    shape: Vec<u64>,
    /// Its bytes in the graph's file.
    here: Option<Range<usize>>,
    outside: Option<Outside<'a>>,
}

/// A stretch of another file.
#[derive(Default)]
struct Outside<'a> {
    location: &'a str,
    offset: Option<&'a str>,
    length: Option<&'a str>,
}

impl<'a> Graphs<'a> {
    /// Finds the tensors of a graph; `file` is its name for messages. Memory is at most 8 bytes for each byte of it.
    ///
    /// # Errors
    /// When it is no graph, or one with quantized weights.
    pub(super) fn read(file: &'a str, data: &'a [u8]) -> Result<Self, FormatError> {
        let file = Message::whole(file, data);
        let mut graph = None;
        for field in file.fields() {
            if let (7, Field::Bytes(found)) = field? {
                graph = Some(found);
            }
        }
        let graph = graph.ok_or_else(|| file.wrong("the model", "it has no graph"))?;
        let mut all = Self { file, scopes: Vec::new() };
        all.collect(graph, None, 0)?;
        Ok(all)
    }

    fn collect(&mut self, graph: Message<'a>, outer: Option<usize>, depth: usize) -> Result<(), FormatError> {
        let many = |what: &str, found: usize, max: usize| FormatError::TooMany {
            file: graph.file().into(),
            what: what.into(),
            found: found as u64,
            max: max as u64,
        };
        if depth > ONNX_DEPTH_MAX {
            return Err(many("the nesting of graphs", depth, ONNX_DEPTH_MAX));
        }
        let this = self.scopes.len();
        if this == N_ONNX_GRAPH_MAX {
            return Err(many("the number of graphs", this.saturating_add(1), N_ONNX_GRAPH_MAX));
        }
        // What a list of them takes is known before there is one.
        let mut n = 0_usize;
        each_tensor(graph, &mut |_, _| n = n.saturating_add(1))?;
        let before: usize = self.scopes.iter().map(|scope| scope.tensors.len()).sum();
        if n.saturating_add(before) > N_TENSOR_MAX {
            return Err(many("the number of tensors", n.saturating_add(before), N_TENSOR_MAX));
        }
        let mut tensors = Vec::with_capacity(n);
        each_tensor(graph, &mut |name, at| {
            tensors.push(Tensor { name, at, used: Cell::new(Used::AsNamed) })
        })?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(b.name));
        if let Some([twin, _]) = tensors.array_windows().find(|[a, b]| a.name == b.name) {
            let what = format!("tensor {}", shown(twin.name.as_bytes()));
            return Err(FormatError::Duplicate { file: graph.file().into(), what });
        }
        // Exporters keep one of several that are equal, and give it the names of the others by nodes that do nothing.
        let mut twins = Vec::new();
        for field in graph.fields() {
            let (1, Field::Bytes(message)) = field? else { continue };
            let node = Node::read(message)?;
            if node.op == "Identity"
                && let Ok(i) = tensors.binary_search_by(|tensor| tensor.name.cmp(node.inputs[0]))
                && let Some(tensor) = tensors.get(i)
                && tensors.binary_search_by(|tensor| tensor.name.cmp(node.output)).is_err()
            {
                let n = n.saturating_add(before).saturating_add(twins.len());
                if n >= N_TENSOR_MAX {
                    return Err(many("the number of tensors", n.saturating_add(1), N_TENSOR_MAX));
                }
                twins.push(Tensor {
                    name: node.output,
                    at: tensor.at.clone(),
                    used: Cell::new(Used::AsNamed),
                });
            }
        }
        tensors.extend(twins);
        tensors.sort_unstable_by(|a, b| a.name.cmp(b.name));
        self.scopes.push(Scope { graph: graph.range(), this, outer, tensors });
        for field in graph.fields() {
            let (1, Field::Bytes(message)) = field? else { continue };
            let node = Node::read(message)?;
            if QUANTIZED.contains(&node.op) {
                return Err(FormatError::QuantizedGraph {
                    file: graph.file().into(),
                    node: if node.name.is_empty() { node.output } else { node.name }.into(),
                    op: node.op.into(),
                });
            }
            for field in message.fields() {
                let (5, Field::Bytes(attribute)) = field? else { continue };
                for field in attribute.fields() {
                    // `g` and `graphs`.
                    if let (6 | 11, Field::Bytes(inner)) = field? {
                        self.collect(inner, Some(this), depth.saturating_add(1))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The files beside the graph that hold tensors, each a plain name, in the order of their names.
    ///
    /// # Errors
    /// When one is elsewhere, or there are too many.
    pub(super) fn files(&self) -> Result<Vec<&'a str>, FormatError> {
        let mut names = BTreeSet::new();
        for tensor in self.scopes.iter().flat_map(|scope| &scope.tensors) {
            let Some(Outside { location, .. }) = Read::tensor(self.file.at(&tensor.at))?.outside else {
                continue;
            };
            let set = |why: String| FormatError::Set { file: self.file.file().into(), why };
            if !files::is_plain(location) {
                let name = shown(location.as_bytes());
                return Err(set(format!(
                    "has weights in the file {name}, which is not a plain name in its own directory"
                )));
            }
            names.insert(location);
            if names.len() > N_PART_MAX {
                return Err(set(format!("has weights in more than {N_PART_MAX} files")));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Gives all weights to `to`; `shards` are the graph and the files that [`Self::files`] named, in their order.
    ///
    /// # Errors
    /// When one is not as it must be, or two differ that are the same by their names.
    pub(super) fn give(&self, to: &mut Tensors<'_>, shards: &[Shard]) -> Result<(), FormatError> {
        // How a matrix with a name of its own lies is told by the node of its module.
        self.each_use(&mut |tensor, name, used| {
            if own(tensor.name) == name {
                tensor.used.set(used);
            }
            Ok(())
        })?;
        let mut giver = Giver { graphs: self, files: self.files()?, shards, given: HashMap::new() };
        for tensor in self.scopes.iter().flat_map(|scope| &scope.tensors) {
            let name = own(tensor.name);
            let weight = OWN.iter().any(|begin| name.starts_with(begin))
                && ENDINGS.iter().any(|ending| name.ends_with(ending));
            match to.target(name) {
                Target::Tensor(known, _) => giver.give(to, known, tensor, name, tensor.used.get(), true)?,
                Target::Skipped => to.skip()?,
                Target::NoBlock(_) | Target::Unknown if weight => {
                    let (part, stored) = giver.place(tensor, name)?;
                    to.take(self.file.file(), part, giver.data(part), stored, Used::AsNamed)?;
                }
                _ => {}
            }
        }
        self.each_use(&mut |tensor, name, used| match to.target(name) {
            Target::Tensor(known, _) => giver.give(to, known, tensor, name, used, false),
            _ => Ok(()),
        })
    }

    /// Tells of each use of a tensor by a node whose name is the path of a module: the tensor, the name that a weight has
    /// there, and how it is used.
    fn each_use(&self, tell: &mut Tell<'_, 'a>) -> Result<(), FormatError> {
        for scope in &self.scopes {
            for field in self.file.at(&scope.graph).fields() {
                let (1, Field::Bytes(message)) = field? else { continue };
                let node = Node::read(message)?;
                let Some(path) = node.module() else { continue };
                for (input, ending, used) in node.uses() {
                    let Some(tensor) = node.inputs.get(*input).and_then(|name| self.find(scope, name)) else {
                        continue;
                    };
                    // Single numbers are the graph's own.
                    let vector = *ending == "bias" || *used == Used::Factor;
                    if vector && !matches!(Read::tensor(self.file.at(&tensor.at))?.shape[..], [n] if n > 1) {
                        continue;
                    }
                    tell(tensor, own(&format!("{path}.{ending}")), *used)?;
                }
            }
        }
        Ok(())
    }

    /// The tensor that a node in `scope` means by `name`.
    fn find(&self, scope: &Scope<'a>, name: &str) -> Option<&Tensor<'a>> {
        let mut next = Some(scope.this);
        while let Some(scope) = next.and_then(|i| self.scopes.get(i)) {
            if let Ok(i) = scope.tensors.binary_search_by(|tensor| tensor.name.cmp(name)) {
                return scope.tensors.get(i);
            }
            next = scope.outer;
        }
        None
    }
}

/// What is told of a use.
type Tell<'t, 'a> = dyn FnMut(&Tensor<'a>, &str, Used) -> Result<(), FormatError> + 't;

/// Gives weights on, each once.
struct Giver<'g, 'a> {
    graphs: &'g Graphs<'a>,
    files: Vec<&'a str>,
    shards: &'g [Shard],
    /// By GGUF's names: whether the name was its own, and where it is.
    given: HashMap<String, (bool, usize, Range<usize>)>,
}

impl Giver<'_, '_> {
    fn data(&self, part: usize) -> &[u8] {
        self.shards.get(part).map_or(&[], |shard| (*shard.bytes).as_ref())
    }

    /// Gives the weight `known` on, which the class calls `name`. A name of its own goes before the node's.
    fn give(
        &mut self,
        to: &mut Tensors<'_>,
        known: String,
        tensor: &Tensor<'_>,
        name: &str,
        used: Used,
        own: bool,
    ) -> Result<(), FormatError> {
        let file = self.graphs.file.file();
        match self.given.get(&known) {
            None => {}
            Some((true, ..)) if !own => return Ok(()),
            Some((_, other, at)) => {
                let (part, stored) = self.place(tensor, name)?;
                let same = (*other, at) == (part, &stored.range)
                    || self.data(*other).get(at.clone()) == self.data(part).get(stored.range);
                return match same {
                    // The two graphs of one decoder may both bring it.
                    true => Ok(()),
                    false => {
                        let what = format!("weight {}, with other values,", shown(name.as_bytes()));
                        Err(FormatError::Duplicate { file: file.into(), what })
                    }
                };
            }
        }
        let (part, stored) = self.place(tensor, name)?;
        if let Entry::Vacant(place) = self.given.entry(known) {
            place.insert((own, part, stored.range.clone()));
        }
        to.take(file, part, self.data(part), stored, used)
    }

    /// The tensor under another name, and the shard that has its bytes, as many as its shape needs.
    fn place(&self, tensor: &Tensor<'_>, name: &str) -> Result<(usize, Stored), FormatError> {
        let message = self.graphs.file.at(&tensor.at);
        let read = Read::tensor(message)?;
        let what = format!("tensor {}", shown(tensor.name.as_bytes()));
        let dtype = type_of(read.dtype);
        let Some(bits) = bits(dtype) else {
            let found = format!("number {} of ONNX", read.dtype);
            return Err(FormatError::Dtype {
                file: message.file().into(),
                tensor: tensor.name.into(),
                found,
            });
        };
        let n_bits = read.shape.iter().try_fold(bits, |n, d| n.checked_mul(*d));
        let Some(n_bytes) = n_bits.map(|bits| bits.div_ceil(8)) else {
            return Err(message.wrong(what, format!("its shape {:?} is beyond any file", read.shape)));
        };
        let (part, range) = match (read.here, &read.outside) {
            (_, Some(outside)) => self.outside(outside, n_bytes, message, &what)?,
            (Some(range), None) => (0, range),
            (None, None) if n_bytes == 0 => (0, 0..0),
            (None, None) => return Err(message.wrong(what, "its bytes are not in one piece")),
        };
        if range.len() as u64 != n_bytes {
            return Err(FormatError::Shape {
                file: message.file().into(),
                tensor: tensor.name.into(),
                shape: read.shape,
                why: format!("{dtype} of that shape takes {n_bytes} bytes, {} are there", range.len()),
            });
        }
        Ok((part, Stored { name: name.into(), dtype: dtype.into(), shape: read.shape, range }))
    }

    /// Where a tensor of `n_bytes` is in another file.
    fn outside(
        &self,
        outside: &Outside<'_>,
        n_bytes: u64,
        message: Message<'_>,
        what: &str,
    ) -> Result<(usize, Range<usize>), FormatError> {
        let number = |key: &str, text: Option<&str>, absent: u64| match text {
            None => Ok(absent),
            Some(text) => text.parse::<u64>().map_err(|_| {
                message.wrong(what, format!("{key} of its bytes is {}, no number", shown(text.as_bytes())))
            }),
        };
        let offset = number("the offset", outside.offset, 0)?;
        let length = number("the length", outside.length, n_bytes)?;
        // The graph itself is the first one.
        let part = self.files.binary_search(&outside.location).ok().and_then(|i| i.checked_add(1));
        let shard = part.and_then(|part| Some((part, self.shards.get(part)?)));
        let Some((part, shard)) = shard else {
            return Err(message.wrong(what, "the file with its bytes is absent"));
        };
        let have = (*shard.bytes).as_ref().len();
        let start = usize::try_from(offset).ok().filter(|start| *start <= have);
        let end =
            start.zip(usize::try_from(length).ok()).and_then(|(start, length)| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if end <= have => Ok((part, start..end)),
            _ => Err(FormatError::Truncated {
                file: shard.file.clone(),
                what: what.into(),
                at: offset,
                need: length,
                have: (have as u64).saturating_sub(offset),
            }),
        }
    }
}

/// Tells the name and the place of each tensor that a graph itself brings along.
fn each_tensor<'a>(
    graph: Message<'a>,
    tell: &mut dyn FnMut(&'a str, Range<usize>),
) -> Result<(), FormatError> {
    for field in graph.fields() {
        match field? {
            (5, Field::Bytes(tensor)) => match Read::name(tensor)? {
                "" => {}
                name => tell(name, tensor.range()),
            },
            (1, Field::Bytes(node)) => match Node::read(node)? {
                Node { constant: Some(at), output, .. } if !output.is_empty() => tell(output, at),
                _ => {}
            },
            _ => {}
        }
    }
    Ok(())
}

impl<'a> Node<'a> {
    fn read(message: Message<'a>) -> Result<Self, FormatError> {
        let (mut node, mut n_inputs) = (Self::default(), 0_usize);
        for field in message.fields() {
            match field? {
                (1, Field::Bytes(text)) => {
                    if let Some(input) = node.inputs.get_mut(n_inputs) {
                        *input = text.text("the input of a node")?;
                    }
                    n_inputs = n_inputs.saturating_add(1);
                }
                (2, Field::Bytes(text)) if node.output.is_empty() => {
                    node.output = text.text("the output of a node")?;
                }
                (3, Field::Bytes(text)) => node.name = text.text("the name of a node")?,
                (4, Field::Bytes(text)) => node.op = text.text("the operator of a node")?,
                (5, Field::Bytes(attribute)) => node.attribute(attribute)?,
                (9, Field::Bytes(entry)) => {
                    if let ("namespace", value) = pair(entry, "metadata")? {
                        node.namespace = value;
                    }
                }
                _ => {}
            }
        }
        if node.op != "Constant" {
            node.constant = None;
        }
        Ok(node)
    }

    fn attribute(&mut self, message: Message<'a>) -> Result<(), FormatError> {
        let (mut name, mut number, mut float, mut tensor) = ("", 0, 1.0, None);
        for field in message.fields() {
            match field? {
                (1, Field::Bytes(text)) => name = text.text("the name of an attribute")?,
                (2, Field::Float(x)) => float = x,
                (3, Field::Number(n)) => number = n,
                (5, Field::Bytes(message)) => tensor = Some(message.range()),
                _ => {}
            }
        }
        match name {
            "transB" => self.rows = number != 0,
            "alpha" | "beta" => self.scaled |= float != 1.0,
            "value" => self.constant = tensor,
            _ => {}
        }
        Ok(())
    }

    /// The path of the module that it is in.
    fn module(&self) -> Option<String> {
        if let Some((path, _)) = self.name.trim_start_matches('/').rsplit_once('/') {
            return Some(path.replace('/', "."));
        }
        let (module, _) = self.namespace.rsplit('/').nth(1)?.split_once(": ")?;
        Some(module.to_owned())
    }

    /// The inputs that are weights of its module, if they are tensors that the graph brings along.
    fn uses(&self) -> &'static [Use] {
        const BIAS: Use = (2, "bias", Used::AsNamed);
        match self.op {
            "MatMul" => &[(1, "weight", Used::Columns)],
            "Gemm" if self.scaled => &[],
            "Gemm" if self.rows => &[(1, "weight", Used::Rows), BIAS],
            "Gemm" => &[(1, "weight", Used::Columns), BIAS],
            "Gather" | "Transpose" => &[(0, "weight", Used::AsNamed)],
            "Conv" => &[(1, "weight", Used::AsNamed), BIAS],
            "Mul" => &[(0, "weight", Used::Factor), (1, "weight", Used::Factor)],
            "Add" => &[(0, "bias", Used::AsNamed), (1, "bias", Used::AsNamed)],
            "LayerNormalization" => &[(1, "weight", Used::Factor), BIAS],
            "RMSNormalization" | "SimplifiedLayerNormalization" => &[(1, "weight", Used::Factor)],
            _ => &[],
        }
    }
}

impl<'a> Read<'a> {
    fn name(message: Message<'a>) -> Result<&'a str, FormatError> {
        let mut name = "";
        for field in message.fields() {
            if let (8, Field::Bytes(text)) = field? {
                name = text.text("the name of a tensor")?;
            }
        }
        Ok(name)
    }

    fn tensor(message: Message<'a>) -> Result<Self, FormatError> {
        let mut read = Self { dtype: 0, shape: Vec::new(), here: None, outside: None };
        let (mut pieces, mut elsewhere, mut outside) = (0_usize, false, Outside::default());
        for field in message.fields() {
            match field? {
                (1, Field::Number(n)) => read.dimension(n, message)?,
                (1, Field::Bytes(all)) => all.numbers().try_for_each(|n| read.dimension(n?, message))?,
                (2, Field::Number(n)) => read.dtype = n,
                // Floats one after the other are the bytes that they would be otherwise.
                (4 | 9, Field::Bytes(bytes)) => {
                    read.here = Some(bytes.range());
                    pieces = pieces.saturating_add(1);
                }
                (4, _) => pieces = 2,
                (13, Field::Bytes(entry)) => outside.entry(entry)?,
                (14, Field::Number(n)) => elsewhere = n == 1,
                _ => {}
            }
        }
        read.here = read.here.filter(|_| pieces == 1);
        read.outside = elsewhere.then_some(outside);
        Ok(read)
    }

    fn dimension(&mut self, n: u64, message: Message<'a>) -> Result<(), FormatError> {
        if self.shape.len() == N_DIM_SKIPPED_MAX {
            return Err(message.wrong("a tensor", format!("it has more than {N_DIM_SKIPPED_MAX} dimensions")));
        }
        self.shape.push(n);
        Ok(())
    }
}

impl<'a> Outside<'a> {
    fn entry(&mut self, message: Message<'a>) -> Result<(), FormatError> {
        match pair(message, "external data")? {
            ("location", value) => self.location = value,
            ("offset", value) => self.offset = Some(value),
            ("length", value) => self.length = Some(value),
            _ => {}
        }
        Ok(())
    }
}

/// A key and its value, of `what`.
fn pair<'a>(message: Message<'a>, what: &'static str) -> Result<(&'a str, &'a str), FormatError> {
    let (mut key, mut value) = ("", "");
    for field in message.fields() {
        match field? {
            (1, Field::Bytes(text)) => key = text.text(what)?,
            (2, Field::Bytes(text)) => value = text.text(what)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// The own name of a tensor, without what is added where two graphs become one, and without the modules that an exporter put
/// around the model.
fn own(name: &str) -> &str {
    let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    let name = match name.rsplit_once("_merged_") {
        Some((stem, n)) if digits(n) => stem,
        _ => name,
    };
    let starts =
        |at: usize| name.get(at..).is_some_and(|name| OWN.iter().any(|begin| name.starts_with(begin)));
    let mut parts = std::iter::once(0).chain(name.match_indices('.').map(|(i, _)| i.saturating_add(1)));
    parts.find(|at| starts(*at)).and_then(|at| name.get(at..)).unwrap_or(name)
}

/// The name that safetensors has for a type of ONNX; empty if it has none.
fn type_of(number: u64) -> &'static str {
    match number {
        1 => "F32",
        2 => "U8",
        3 => "I8",
        4 => "U16",
        5 => "I16",
        6 => "I32",
        7 => "I64",
        9 => "BOOL",
        10 => "F16",
        11 => "F64",
        12 => "U32",
        13 => "U64",
        16 => "BF16",
        17 => "F8_E4M3",
        19 => "F8_E5M2",
        _ => "",
    }
}
