//! From the bytes of a file to a graph that tract reads: weights in files beside it are brought in, and products with
//! 8-bit weights are made one node, which our own kernels compute.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

use crate::OnnxError;
use crate::int8::Matrix;

/// The node that stands for a product with 8-bit weights; its first attribute names the weights.
pub(super) const PRODUCT: &str = "sotto.Int8MatMul";
/// Deepest nesting of graphs in graphs.
const DEPTH_MAX: usize = 4;
/// Most files beside a graph.
const N_FILES_MAX: usize = sotto::os::message::N_FILES_MAX;

fn damaged(what: impl std::fmt::Display) -> OnnxError {
    OnnxError::Damaged { what: what.to_string() }
}

/// The graph in the bytes of a file. Of a mapped one: what is no graph then costs nothing, and nothing is opened, which
/// the user of this process may not be allowed to.
///
/// # Errors
/// When it is no ONNX, or has no graph in it.
pub(super) fn model(bytes: &[u8]) -> Result<ModelProto, OnnxError> {
    let model = ModelProto::decode(bytes).map_err(damaged)?;
    match &model.graph {
        Some(graph) if !graph.node.is_empty() => Ok(model),
        _ => Err(damaged("it has no graph, or one without nodes")),
    }
}

/// All tensors that a graph brings along.
fn tensors<'g>(
    graph: &'g mut GraphProto,
    depth: usize,
    all: &mut Vec<&'g mut TensorProto>,
) -> Result<(), OnnxError> {
    if depth > DEPTH_MAX {
        return Err(OnnxError::Unsupported { what: format!("has graphs nested deeper than {DEPTH_MAX}") });
    }
    all.extend(graph.initializer.iter_mut());
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        let AttributeProto { t, tensors: list, g, graphs, .. } = attribute;
        all.extend(t.iter_mut().chain(list));
        for inner in g.iter_mut().chain(graphs) {
            tensors(inner, depth + 1, all)?;
        }
    }
    Ok(())
}

/// The first node with an operator that nobody `knows`, of a graph and those in it.
pub(super) fn unknown<'g>(graph: &'g GraphProto, knows: &dyn Fn(&str) -> bool) -> Option<&'g NodeProto> {
    graph.node.iter().find_map(|node| match knows(&node.op_type) {
        false => Some(node),
        true => {
            let inner = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
            inner.into_iter().find_map(|graph| unknown(graph, knows))
        }
    })
}

fn is_outside(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

fn entry<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

/// The files that have weights of the graph.
///
/// # Errors
/// When a tensor does not say which, or there are too many.
pub(super) fn files(model: &mut ModelProto) -> Result<Vec<String>, OnnxError> {
    let mut all = Vec::new();
    tensors(model.graph.get_or_insert_default(), 0, &mut all)?;
    let mut names = BTreeSet::new();
    for tensor in all.iter().filter(|tensor| is_outside(tensor)) {
        let name = entry(tensor, "location");
        names.insert(
            name.ok_or_else(|| damaged("a tensor is in another file, and none is named"))?.to_owned(),
        );
    }
    match names.len() {
        0..=N_FILES_MAX => Ok(names.into_iter().collect()),
        n => Err(OnnxError::Unsupported {
            what: format!("has weights in {n} files; at most {N_FILES_MAX} work"),
        }),
    }
}

/// Brings weights in from the files that [`files`] named.
///
/// # Errors
/// When one of them is too short.
pub(super) fn bring_in(model: &mut ModelProto, files: &BTreeMap<String, &[u8]>) -> Result<(), OnnxError> {
    let mut all = Vec::new();
    tensors(model.graph.get_or_insert_default(), 0, &mut all)?;
    for tensor in all.into_iter().filter(|tensor| is_outside(tensor)) {
        let number = |key| {
            let read = |text: &str| {
                text.parse::<usize>().map_err(|_| damaged(format!("{key} of a tensor is no number")))
            };
            entry(tensor, key).map(read).transpose()
        };
        let name = entry(tensor, "location").unwrap_or_default();
        let bytes = files.get(name).ok_or_else(|| damaged("a file beside it is missing"))?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let rest = bytes.get(offset..);
        let part = rest.and_then(|rest| length.map_or(Some(rest), |n| rest.get(..n)));
        let Some(part) = part else {
            let n = length.map_or("all".to_owned(), |n| n.to_string());
            return Err(damaged(format!("{n} bytes at {offset} of a file of {} are wanted", bytes.len())));
        };
        tensor.raw_data = part.to_vec();
        tensor.external_data.clear();
        tensor.data_location = None;
    }
    Ok(())
}

/// The input by which a graph of two is told which.
const BRANCH: &str = "use_cache_branch";

/// Takes a graph of two apart: the one that begins a text, and the one that goes on. `None` where it is one for both.
///
/// # Errors
/// When the two are not what they should be.
pub(super) fn branches(model: &mut ModelProto) -> Result<Option<ModelProto>, OnnxError> {
    let is_switch = |node: &NodeProto| node.op_type == "If" && node.input.iter().any(|name| name == BRANCH);
    let graph = model.graph.get_or_insert_default();
    let Some(i) = graph.node.iter().position(is_switch) else { return Ok(None) };
    let switch = graph.node.remove(i);
    if !graph.node.is_empty() {
        return Err(OnnxError::Unsupported {
            what: format!("has more beside the two that {BRANCH} chooses of"),
        });
    }
    graph.input.retain(|input| input.name != BRANCH);
    let branch = |name: &str| {
        let graph = switch.attribute.iter().find(|a| a.name == name).and_then(|a| a.g.clone());
        graph.ok_or_else(|| damaged(format!("its If has no {name}")))
    };
    let (begins, goes_on) = (branch("else_branch")?, branch("then_branch")?);
    let mut first = model.clone();
    inline(first.graph.get_or_insert_default(), begins, &switch)?;
    inline(model.graph.get_or_insert_default(), goes_on, &switch)?;
    Ok(Some(first))
}

/// Puts a branch in the place of the node that it stands in.
fn inline(graph: &mut GraphProto, branch: GraphProto, switch: &NodeProto) -> Result<(), OnnxError> {
    if branch.output.len() != switch.output.len() {
        let (n, wanted) = (branch.output.len(), switch.output.len());
        return Err(damaged(format!("a branch has {n} outputs, {wanted} are wanted")));
    }
    graph.node.extend(branch.node);
    graph.initializer.extend(branch.initializer);
    for (inner, outer) in
        branch.output.iter().zip(&switch.output).filter(|(inner, outer)| inner.name != **outer)
    {
        graph.node.push(NodeProto {
            op_type: "Identity".into(),
            name: format!("{outer} of a branch"),
            input: vec![inner.name.clone()],
            output: vec![outer.clone()],
            ..Default::default()
        });
    }
    let read: HashSet<&str> = graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
    let unread = |name: &String| !read.contains(name.as_str());
    let (inputs, weights): (HashSet<String>, HashSet<String>) = (
        graph.input.iter().map(|i| i.name.clone()).filter(unread).collect(),
        graph.initializer.iter().map(|t| t.name.clone()).filter(unread).collect(),
    );
    graph.input.retain(|input| !inputs.contains(&input.name));
    graph.initializer.retain(|tensor| !weights.contains(&tensor.name));
    Ok(())
}

/// A graph, and who makes and reads its values.
struct Values<'g> {
    graph: &'g GraphProto,
    /// How many nodes read each.
    uses: HashMap<&'g str, usize>,
    results: HashSet<&'g str>,
    made: HashMap<&'g str, usize>,
    weights: HashMap<&'g str, &'g TensorProto>,
}

/// A product with 8-bit weights that is to be a node of its own.
struct Found {
    /// What is multiplied.
    x: String,
    /// The name of the weights.
    codes: String,
    matrix: Matrix,
    /// The nodes that it takes the place of; the last one makes its result.
    nodes: Vec<usize>,
}

impl<'g> Values<'g> {
    fn new(graph: &'g GraphProto) -> Self {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for name in graph.node.iter().flat_map(|node| &node.input) {
            *uses.entry(name).or_default() += 1;
        }
        let made = graph.node.iter().enumerate();
        Self {
            graph,
            uses,
            results: graph.output.iter().map(|output| output.name.as_str()).collect(),
            made: made.flat_map(|(i, n)| n.output.iter().map(move |name| (name.as_str(), i))).collect(),
            weights: graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect(),
        }
    }

    /// Whether one node alone reads it, and nobody else.
    fn once(&self, name: &str) -> bool {
        self.uses.get(name) == Some(&1) && !self.results.contains(name)
    }

    /// The node that makes `name`, if it is of this kind.
    fn of(&self, name: &str, kind: &str) -> Option<(usize, &'g NodeProto)> {
        let i = *self.made.get(name)?;
        self.graph.node.get(i).filter(|node| node.op_type == kind).map(|node| (i, node))
    }

    /// The first of the two inputs of `node` that `pick` takes, and the other one.
    fn either<T>(&self, node: &'g NodeProto, pick: impl Fn(&'g str) -> Option<T>) -> Option<(T, &'g str)> {
        let [a, b] = node.input.as_slice() else { return None };
        pick(a).map(|found| (found, b.as_str())).or_else(|| pick(b).map(|found| (found, a.as_str())))
    }

    /// `MatMul(x, Mul(Cast(W), scale))`: weights that are unfolded in the graph.
    fn unfolded(&self, i: usize, node: &'g NodeProto) -> Option<Found> {
        let [x, right] = node.input.as_slice() else { return None };
        let (scaled, mul) = self.of(right, "Mul").filter(|_| self.once(right))?;
        let ((cast, codes), scale) = self.either(mul, |name| {
            let (cast, node) = self.of(name, "Cast").filter(|_| self.once(name))?;
            Some((cast, node.input.first().filter(|name| self.once(name))?))
        })?;
        let matrix = Matrix::new(self.weights.get(codes.as_str())?, self.weights.get(scale)?)?;
        Some(Found { x: x.clone(), codes: codes.clone(), matrix, nodes: vec![scaled, cast, i] })
    }

    /// `Mul(Cast(MatMulInteger(q, W, zero, 0)), Mul(step, scale))` with `q, step, zero = DynamicQuantizeLinear(x)`: activations
    /// become codes in the graph, with one step for all of them. They are multiplied as they are instead: what comes out is
    /// nearer to what the model was before its weights became integers, and no text depends on those beside it.
    fn dynamic(&self, i: usize, node: &'g NodeProto) -> Option<Found> {
        let ((cast, product), scales) = self.either(node, |name| {
            let (cast, node) = self.of(name, "Cast").filter(|_| self.once(name))?;
            let sum = node.input.first().filter(|name| self.once(name))?;
            Some((cast, self.of(sum, "MatMulInteger")?))
        })?;
        let (scaled, mul) = self.of(scales, "Mul").filter(|_| self.once(scales))?;
        let (product, node) = product;
        let [q, codes, _, zero] = node.input.as_slice() else { return None };
        let (quantized, dynamic) = self.of(q, "DynamicQuantizeLinear")?;
        let (_, scale) =
            self.either(mul, |name| self.of(name, "DynamicQuantizeLinear").filter(|(i, _)| *i == quantized))?;
        let zero = self.weights.get(zero.as_str())?;
        let is_zero = zero.raw_data.iter().all(|b| *b == 0) && zero.int32_data.iter().all(|n| *n == 0);
        let matrix = Matrix::new(self.weights.get(codes.as_str())?, self.weights.get(scale)?)?;
        (is_zero && self.once(codes)).then(|| Found {
            x: dynamic.input.first().cloned().unwrap_or_default(),
            codes: codes.clone(),
            matrix,
            nodes: vec![product, cast, scaled, i],
        })
    }
}

/// Makes each product with 8-bit weights, and a scale for each column or one for all, a node of its own, and takes its
/// weights out. The products that are left are tract's.
pub(super) fn take_products(graph: &mut GraphProto) -> HashMap<String, Matrix> {
    let values = Values::new(graph);
    let found: Vec<Found> = graph
        .node
        .iter()
        .enumerate()
        .filter_map(|(i, node)| match node.op_type.as_str() {
            "MatMul" => values.unfolded(i, node),
            "Mul" => values.dynamic(i, node),
            _ => None,
        })
        .collect();
    let (mut all, mut gone) = (HashMap::new(), HashSet::new());
    for Found { x, codes, matrix, nodes } in found {
        let Some((last, others)) = nodes.split_last() else { continue };
        gone.extend(others.iter().copied());
        let name =
            AttributeProto { name: "weights".into(), s: codes.clone().into_bytes(), ..Default::default() };
        let node = &mut graph.node[*last];
        *node = NodeProto {
            input: vec![x],
            output: std::mem::take(&mut node.output),
            name: std::mem::take(&mut node.name),
            op_type: PRODUCT.into(),
            attribute: vec![name],
            ..Default::default()
        };
        all.insert(codes, matrix);
    }
    let mut i = 0;
    graph.node.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
    let read: HashSet<String> = graph.node.iter().flat_map(|node| node.input.iter().cloned()).collect();
    // Nobody reads these codes any more.
    let unread = |node: &NodeProto| {
        node.op_type == "DynamicQuantizeLinear" && !node.output.iter().any(|name| read.contains(name))
    };
    graph.node.retain(|node| !unread(node));
    graph.initializer.retain(|tensor| !all.contains_key(&tensor.name));
    all
}

/// The 8-bit integers of a tensor `[rows, columns]`, if it is one.
pub(super) fn bytes_of(tensor: &TensorProto) -> Option<(usize, usize, &[u8])> {
    let [rows, columns] = tensor.dims.as_slice() else { return None };
    let (rows, columns) = (usize::try_from(*rows).ok()?, usize::try_from(*columns).ok()?);
    let fits =
        tensor.data_type == DataType::Int8 as i32 && tensor.raw_data.len() == rows.checked_mul(columns)?;
    fits.then_some((rows, columns, tensor.raw_data.as_slice()))
}

/// The 32-bit floats of a tensor, whatever its shape.
pub(super) fn floats_of(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return Some(tensor.float_data.clone());
    }
    let (floats, rest) = tensor.raw_data.as_chunks::<4>();
    rest.is_empty().then(|| floats.iter().map(|b| f32::from_le_bytes(*b)).collect())
}
