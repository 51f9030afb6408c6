//! From what was read to a graph that tract has taken in.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::optim::Optimizer;

use crate::OnnxError;
use crate::int8::{Int8MatMul, Worker};
use crate::read::{self, PRODUCT};

/// A graph, and what its values are called.
pub(super) struct Parsed {
    pub(super) graph: InferenceModel,
    pub(super) names: HashMap<String, OutletId>,
}

/// Takes `model` in, with weights in `files` beside it; its products with 8-bit weights are computed by `worker`.
///
/// # Errors
/// When it is damaged, or tract does not know something in it.
pub(super) fn parse(
    mut model: ModelProto,
    files: &BTreeMap<String, &[u8]>,
    worker: &Arc<Mutex<Worker>>,
) -> Result<Parsed, OnnxError> {
    read::bring_in(&mut model, files)?;
    let products = read::take_products(model.graph.get_or_insert_default());
    let mut onnx = onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    // Named by its weights, which are put in below.
    onnx.op_register.insert(PRODUCT, |_, node| {
        let name = node.attribute.first().map(|a| String::from_utf8_lossy(&a.s).into_owned());
        let op = Int8MatMul { name: name.unwrap_or_default(), parts: None };
        Ok((expand(op), vec![]))
    });
    if let Some(node) =
        read::unknown(model.graph.get_or_insert_default(), &|op| onnx.op_register.0.contains_key(op))
    {
        let what =
            format!("has the operator {:?} ({:?}), which tract does not know", node.op_type, node.name);
        return Err(OnnxError::Unsupported { what });
    }
    let parsed = onnx.parse(&model, None).map_err(|e| OnnxError::run(&e))?;
    // Twice the weights are not kept.
    drop(model);
    let (mut graph, names) = (parsed.model, parsed.outlets_by_name);
    if let Some(name) = parsed.unresolved_inputs.first() {
        return Err(OnnxError::Damaged { what: format!("nothing makes {name:?}, which a node reads") });
    }
    for node in graph.nodes_mut() {
        if let Some(op) = node.op_as_mut::<Box<dyn Expansion>>()
            && let Some(op) = op.as_any_mut().downcast_mut::<Int8MatMul>()
        {
            op.parts = products.get(&op.name).cloned().map(|matrix| (matrix, worker.clone()));
        }
    }
    Ok(Parsed { graph, names })
}

/// A pass of tract 0.23 that is wrong where a mask depends on two dimensions, as that of a causal decoder does: it puts a
/// constant of two rows in its place.
const WRONG: &str = "FoldUniformMask";

/// Makes a graph one that runs, as [`TypedModel::into_optimized`] does, without the pass that is wrong.
pub(super) fn runnable(mut graph: TypedModel) -> TractResult<Arc<TypedRunnableModel>> {
    let mut tidy = Optimizer::declutter();
    tidy.passes.retain(|pass| !format!("{pass:?}").starts_with(WRONG));
    tidy.optimize(&mut graph)?;
    graph.optimize()?;
    graph.into_runnable()
}
