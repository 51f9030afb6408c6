//! Multiplies packed weights so many times and ends: what `count.py` counts the instructions of. Prints nothing.
//!
//! arguments: TIER FORMAT TOKENS TIMES; with `codes` for a format it makes the codes of activations instead.

use sotto::kernel::{self, Epilogue, Input, Output, Packed, Pool, Product, Q8Acts, Rows, Tier, Weights};
use sotto::quant::{Quant, packed};

const ROWS: usize = 64;
const COLS: usize = 2_048;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [tier, format, tokens, times] = &args[..] else { return };
    let kernels =
        kernel::select(Some(Tier::from_name(tier).expect("a tier"))).expect("a tier of this machine");
    let (n_tokens, times): (usize, usize) = (tokens.parse().expect("tokens"), times.parse().expect("times"));
    let pool = Pool::new(kernels, 1).expect("a pool");
    let x: Vec<f32> = (0..n_tokens * COLS).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    let mut acts = Q8Acts::new(n_tokens, COLS);
    pool.quantize(&x, COLS, &mut acts);
    if format == "codes" {
        return (0..times).for_each(|_| pool.quantize(&x, COLS, &mut acts));
    }
    let quant = Quant::ALL.into_iter().find(|quant| quant.name() == format).expect("a format");
    // Whatever stands where the floats are: 0x2222 is 0.012, and a power of two of 0x22 is normal.
    let bytes = vec![0x22; ROWS * quant.row_bytes(COLS).expect("whole blocks")];
    let rows = Rows::new(quant, ROWS, COLS, &bytes).expect("whole rows");
    let mut panels = vec![0; packed::bytes(quant, ROWS, COLS).expect("small")];
    pool.pack(&rows, 0, &mut panels);
    let weights = Weights::Packed(Packed::new(quant, ROWS, COLS, &panels).expect("whole panels"));
    let mut y = vec![0.0; n_tokens * ROWS];
    for _ in 0..times {
        let product = Product { weights, y: Output::Floats(&mut y), epilogue: Epilogue::default() };
        pool.matmul(Input { x: &x, n_cols: COLS, q8: Some(&acts) }, &mut [product]);
    }
}
