//! Products with 8-bit weights, by our own kernels: the weights stay what they are, where tract would unfold them into
//! floats of four times the size when it folds constants. Activations become two codes of 8 bits, of the number and of what
//! that leaves of it, 32 with one scale: with one alone the vectors of a sentence encoder of six layers were at a cosine of
//! 0.9988 to those of floats, with two at 0.9999999.

use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use tract_onnx::pb::TensorProto;
use tract_onnx::tract_hir::internal::*;

use crate::read::{bytes_of, floats_of};
use sotto::base::limits::PREFILL_CHUNK_MAX;
use sotto::kernel::{Epilogue, Input, Output, Packed, Pool, Product, Q8Acts, Rows, Weights};
use sotto::quant::{Quant, packed};

/// Weights of a block of Q8_0, and its bytes.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 34;

/// A matrix `[n_cols, n_rows]` as ONNX has it, packed for products with `n_cols` activations.
#[derive(Clone)]
pub(super) struct Matrix {
    n_rows: usize,
    n_cols: usize,
    /// Blocks of Q8_0 with the scale 1, in panels.
    bytes: Arc<Vec<u8>>,
    /// What each sum is multiplied with, `[n_rows]`.
    scales: Arc<Vec<f32>>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} x {})", self.n_rows, self.n_cols)
    }
}

impl Matrix {
    /// Of codes and scales; `None` if they are no such matrix, or not one for the kernels.
    pub(super) fn new(codes: &TensorProto, scale: &TensorProto) -> Option<Self> {
        let (n_cols, n_rows, codes) = bytes_of(codes)?;
        let mut scales = floats_of(scale)?;
        if scales.len() == 1 {
            scales = vec![scales[0]; n_rows];
        }
        // One for each column of ONNX's matrix: its last dimension.
        let each =
            matches!(scale.dims.as_slice(), [] | [.., _]) && scale.dims.iter().rev().skip(1).all(|d| *d == 1);
        // -128 has no opposite, which kernels rely on.
        let fits =
            each && n_cols % BLOCK == 0 && n_cols > 0 && !codes.contains(&0x80) && scales.len() == n_rows;
        if !fits {
            return None;
        }
        let mut rows = vec![0; n_rows * n_cols / BLOCK * BLOCK_BYTES];
        for (r, row) in rows.chunks_exact_mut(n_cols / BLOCK * BLOCK_BYTES).enumerate() {
            for (b, block) in row.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                let (one, out) = block.split_at_mut(2);
                one.copy_from_slice(&f16::ONE.to_le_bytes());
                for (k, out) in out.iter_mut().enumerate() {
                    *out = codes[(b * BLOCK + k) * n_rows + r];
                }
            }
        }
        let rows = Rows::new(Quant::Q8_0, n_rows, n_cols, &rows).ok()?;
        let mut bytes = vec![0; packed::bytes(Quant::Q8_0, n_rows, n_cols)?];
        for (i, panel) in bytes.chunks_exact_mut(Packed::panel_bytes(&rows)).enumerate() {
            Packed::pack_panel(&rows, i, panel);
        }
        Some(Self { n_rows, n_cols, bytes: Arc::new(bytes), scales: Arc::new(scales) })
    }
}

/// Threads that compute products, and room for the codes of their activations.
pub(super) struct Worker {
    pool: Pool,
    q8: Q8Acts,
    n_cols_max: usize,
    /// The parts of activations.
    coarse: Vec<f32>,
    fine: Vec<f32>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({} threads)", self.pool.n_threads())
    }
}

impl Worker {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, q8: Q8Acts::new(0, 0), n_cols_max: 0, coarse: Vec::new(), fine: Vec::new() }
    }

    /// Takes activations apart: what codes can say of them, by blocks, and what is left.
    fn split(&mut self, x: &[f32]) {
        self.coarse.clear();
        self.fine.clear();
        for block in x.chunks(BLOCK) {
            let step = block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            self.coarse.extend(block.iter().map(|x| (x * inverse).round() * step));
        }
        self.fine.extend(x.iter().zip(&self.coarse).map(|(x, coarse)| x - coarse));
    }

    /// `y[t][r] = scales[r] · Σ_c codes[c][r] · x[t][c]`.
    fn multiply(&mut self, m: &Matrix, x: &[f32], y: &mut [f32]) -> TractResult<()> {
        if m.n_cols > self.n_cols_max {
            self.n_cols_max = m.n_cols;
            self.q8 = Q8Acts::new(PREFILL_CHUNK_MAX, m.n_cols);
        }
        let weights =
            Packed::new(Quant::Q8_0, m.n_rows, m.n_cols, &m.bytes).map_err(|e| format_err!("{e}"))?;
        let chunks = x.chunks(PREFILL_CHUNK_MAX * m.n_cols).zip(y.chunks_mut(PREFILL_CHUNK_MAX * m.n_rows));
        for (x, y) in chunks {
            self.split(x);
            for (add, part) in [(false, &self.coarse), (true, &self.fine)] {
                self.pool.quantize(part, m.n_cols, &mut self.q8);
                let input = Input { x: part, n_cols: m.n_cols, q8: Some(&self.q8) };
                let epilogue = Epilogue { add, ..Epilogue::default() };
                let y = Output::Floats(&mut *y);
                self.pool.matmul(input, &mut [Product { weights: Weights::Packed(weights), y, epilogue }]);
            }
            for row in y.chunks_exact_mut(m.n_rows) {
                row.iter_mut().zip(m.scales.iter()).for_each(|(y, scale)| *y *= scale);
            }
        }
        Ok(())
    }
}

/// A product as a node of a graph, `[…, n_cols]` to `[…, n_rows]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Int8MatMul {
    /// The name of its weights.
    pub name: String,
    /// They, and who multiplies with them; nothing until the graph is read.
    pub parts: Option<(Matrix, Arc<Mutex<Worker>>)>,
}

impl PartialEq for Int8MatMul {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Int8MatMul {}

impl Int8MatMul {
    fn matrix(&self) -> TractResult<&Matrix> {
        self.parts.as_ref().map(|(matrix, _)| matrix).with_context(|| format!("no weights of {}", self.name))
    }
}

impl Expansion for Int8MatMul {
    fn name(&self) -> StaticName {
        "Int8MatMul".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        let n_rows = self.matrix()?.n_rows;
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        s.given(&inputs[0].shape, move |s, mut shape| {
            if let Some(last) = shape.last_mut() {
                *last = n_rows.to_dim();
            }
            s.equals(&outputs[0].shape, shape)
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Int8MatMul {
    fn name(&self) -> StaticName {
        "Int8MatMul".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Int8MatMul {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (matrix, worker) = self.parts.as_ref().with_context(|| format!("no weights of {}", self.name))?;
        let x = args_1!(inputs);
        let mut shape: TVec<usize> = x.shape().into();
        match shape.last_mut() {
            Some(last) if *last == matrix.n_cols => *last = matrix.n_rows,
            _ => bail!("{} has {} columns, its input {:?}", self.name, matrix.n_cols, x.shape()),
        }
        let mut y = Tensor::zero::<f32>(&shape)?;
        let x = x.to_plain_array_view::<f32>()?;
        let x = x.as_standard_layout();
        let mut out = y.to_plain_array_view_mut::<f32>()?;
        let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) else { bail!("an input in pieces") };
        worker.lock().unwrap_or_else(PoisonError::into_inner).multiply(matrix, x, out)?;
        Ok(tvec![y.into_tvalue()])
    }
}

impl TypedOp for Int8MatMul {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.clone();
        let rank = shape.rank();
        ensure!(rank > 0, "a product of a number");
        shape.set(rank - 1, self.matrix()?.n_rows.to_dim());
        Ok(tvec![f32::datum_type().fact(shape)])
    }

    as_op!();
}
