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

/// Makes each `MatMul(x, Mul(Cast(W), scale))`, with 8-bit weights and a scale for each column or one for all, a node of
/// its own, and takes its weights out. The products that are left are tract's.
pub(super) fn take_products(graph: &mut GraphProto) -> HashMap<String, Matrix> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for name in graph.node.iter().flat_map(|node| &node.input) {
        *uses.entry(name).or_default() += 1;
    }
    let results: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let once = |name: &str| uses.get(name) == Some(&1) && !results.contains(name);
    let made: HashMap<&str, usize> =
        graph.node.iter().enumerate().filter_map(|(i, n)| Some((n.output.first()?.as_str(), i))).collect();
    let weights: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let of = |name: &str, kind: &str| {
        let i = *made.get(name)?;
        graph.node.get(i).filter(|node| node.op_type == kind).map(|node| (i, node))
    };
    let (mut all, mut gone, mut new) = (HashMap::new(), HashSet::new(), Vec::new());
    for (i, node) in graph.node.iter().enumerate().filter(|(_, node)| node.op_type == "MatMul") {
        let found = || {
            let [x, right] = node.input.as_slice() else { return None };
            let (scaled, mul) = of(right, "Mul").filter(|_| once(right))?;
            let [a, b] = mul.input.as_slice() else { return None };
            let (cast, codes, scale) = match (of(a, "Cast"), of(b, "Cast")) {
                (Some((cast, node)), None) => (cast, node.input.first()?, b),
                (None, Some((cast, node))) => (cast, node.input.first()?, a),
                _ => return None,
            };
            let cast_out = graph.node[cast].output.first()?;
            let matrix = Matrix::new(weights.get(codes.as_str())?, weights.get(scale.as_str())?)?;
            (once(cast_out) && once(codes)).then(|| (x.clone(), codes.clone(), matrix, [scaled, cast]))
        };
        if let Some((x, codes, matrix, others)) = found() {
            gone.extend(others);
            let name = AttributeProto {
                name: "weights".into(),
                s: codes.clone().into_bytes(),
                ..Default::default()
            };
            let product = NodeProto {
                input: vec![x],
                output: node.output.clone(),
                name: node.name.clone(),
                op_type: PRODUCT.into(),
                attribute: vec![name],
                ..Default::default()
            };
            new.push((i, product));
            all.insert(codes, matrix);
        }
    }
    for (i, product) in new {
        graph.node[i] = product;
    }
    let mut i = 0;
    graph.node.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
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
