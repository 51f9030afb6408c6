//! Jobs of a pool: whoever has which part, results are those of one thread.

use super::*;

#[test]
fn threads_change_no_bit() {
    let mut rng = Rng::new(5);
    let (n_rows, n_cols, n_tokens) = (130, 256, 5);
    let bytes = weights(&mut rng, Quant::Q4_0, n_rows, n_cols);
    let bias = floats(&mut rng, n_rows);
    let x = floats(&mut rng, n_tokens * n_cols);
    let mut first: Option<Vec<f32>> = None;
    for n_threads in [1, 2, 3] {
        let pool = Pool::new(select(None).expect("some tier"), n_threads).expect("threads");
        let mut acts = Q8Acts::new(n_tokens, n_cols);
        for _ in 0..200 {
            let mut y = vec![1.0; n_tokens * n_rows];
            pool.quantize(&x, n_cols, &mut acts);
            let rows = Rows::new(Quant::Q4_0, n_rows, n_cols, &bytes[1..]).expect("whole rows");
            let epilogue = Epilogue { bias: Some(&bias), add: true, ..Epilogue::default() };
            let product = Product { weights: Weights::Rows(rows), y: Output::Floats(&mut y), epilogue };
            pool.matmul(Input { x: &x, n_cols, q8: Some(&acts) }, &mut [product]);
            assert_eq!(first.get_or_insert_with(|| y.clone()), &y, "{n_threads} threads");
        }
    }
}

/// A gated product is the two products and the activation, with biases and rows that fill no panel.
#[test]
fn gates_are_two_products() {
    let mut rng = Rng::new(18);
    let (n_rows, n_cols, n_tokens) = (37, 64, 5);
    let x = floats(&mut rng, n_tokens * n_cols);
    for k in tiers() {
        let pool = Pool::new(k, 2).expect("threads");
        let mut acts = Q8Acts::new(n_tokens, n_cols);
        pool.quantize(&x, n_cols, &mut acts);
        let input = Input { x: &x, n_cols, q8: Some(&acts) };
        let bytes = [Quant::Q4_0, Quant::F16].map(|quant| weights(&mut rng, quant, n_rows, n_cols));
        let rows = |i: usize, quant| Rows::new(quant, n_rows, n_cols, &bytes[i][1..]).expect("whole rows");
        let (gate, up) = (Weights::Rows(rows(0, Quant::Q4_0)), Weights::Rows(rows(1, Quant::F16)));
        let biases = [floats(&mut rng, n_rows), floats(&mut rng, n_rows)];
        for act in [Act::Silu, Act::Gelu, Act::ClampedSilu] {
            let product = |weights, bias, gated| {
                let mut y = vec![0.0; n_tokens * n_rows];
                let epilogue = Epilogue { bias: Some(bias), gated, add: false };
                pool.matmul(input, &mut [Product { weights, y: Output::Floats(&mut y), epilogue }]);
                y
            };
            let (mut wanted, ups) = (product(gate, &biases[0][..], None), product(up, &biases[1][..], None));
            k.gate(act, &mut wanted, &ups);
            let found = product(gate, &biases[0][..], Some(Gated { up, bias: Some(&biases[1]), act }));
            close(&found, &wanted, 1e-6, k);
        }
    }
}

/// Codes that a product gives are those of its floats, on all threads or some of them.
#[test]
fn codes_of_a_product_are_those_of_its_floats() {
    let mut rng = Rng::new(19);
    let (n_rows, n_cols) = (96, 64);
    let bytes = [(); 2].map(|()| weights(&mut rng, Quant::Q5_0, n_rows, n_cols));
    let rows = |i: usize| Rows::new(Quant::Q5_0, n_rows, n_cols, &bytes[i][1..]).expect("whole rows");
    let bias = floats(&mut rng, n_rows);
    for k in tiers() {
        let pool = Pool::new(k, 3).expect("threads");
        for n_tokens in [1, 2, 17, 128] {
            let x = floats(&mut rng, n_tokens * n_cols);
            let [mut acts, mut wanted, mut found] =
                [n_cols, n_rows, n_rows].map(|n| Q8Acts::new(n_tokens, n));
            pool.quantize(&x, n_cols, &mut acts);
            let mut packed = vec![0; n_rows / PANEL * Packed::panel_bytes(&rows(1))];
            pool.pack(&rows(1), 0, &mut packed);
            let up = Packed::new(Quant::Q5_0, n_rows, n_cols, &packed).expect("whole panels");
            for gated in [None, Some(Gated { up: Weights::Packed(up), bias: None, act: Act::Silu })] {
                let epilogue = Epilogue { bias: Some(&bias), gated, add: false };
                let multiply = |y: Output<'_>| {
                    let input = Input { x: &[], n_cols, q8: Some(&acts) };
                    pool.matmul(input, &mut [Product { weights: Weights::Rows(rows(0)), y, epilogue }]);
                };
                let mut y = vec![0.0; n_tokens * n_rows];
                multiply(Output::Floats(&mut y));
                pool.quantize(&y, n_rows, &mut wanted);
                pool.set_active(n_tokens % 4);
                multiply(Output::Codes(&mut found));
                pool.set_active(usize::MAX);
                assert_eq!(found.view().blocks, wanted.view().blocks, "{k:?}, {n_tokens} tokens");
            }
        }
    }
}

/// What many threads store is what one does, token by token, in several pages as well.
#[test]
fn heads_are_stored_by_all_threads() {
    let mut rng = Rng::new(20);
    let (n_head, n_head_kv) = (4, 2);
    for head_dim in [20, 64] {
        for kind in KvType::ALL {
            for (n, pos) in [(1, 5), (37, 11), (64, 63), (128, 63)] {
                let pool = Pool::new(select(None).expect("some tier"), 3).expect("threads");
                let room = || Held::new(BlockShape { kind, n_head_kv, head_dim }, 192);
                let (mut found, mut wanted) = (room(), room());
                let [n_q, n_kv] = [n_head, n_head_kv].map(|heads| heads * head_dim);
                // Enough to be worth other threads.
                let wide = n_q.max(SMALL / n + 1);
                let (mut q, k, v) =
                    (floats(&mut rng, n * wide), floats(&mut rng, n * n_kv), floats(&mut rng, n * n_kv));
                for t in 0..n {
                    let doubled: Vec<f32> = k[t * n_kv..][..n_kv].iter().map(|x| 2.0 * x).collect();
                    wanted.blocks_mut().store(pool.kernels(), pos + t, &doubled, &v[t * n_kv..][..n_kv]);
                }
                let heads = Heads { q: &mut q, k: &mut k.clone(), v: &mut v.clone() };
                pool.store_heads(heads, found.blocks_mut(), pos, &|t, Heads { q, k, .. }| {
                    q.fill(t as f32);
                    k.iter_mut().for_each(|x| *x *= 2.0);
                });
                for (page, (found, wanted)) in found.pages.iter().zip(&wanted.pages).enumerate() {
                    assert!(found.bytes() == wanted.bytes(), "{kind:?}, {n} tokens from {pos}, page {page}");
                }
                assert!(q.chunks_exact(wide).enumerate().all(|(t, row)| row.iter().all(|x| *x == t as f32)));
            }
        }
    }
}

#[test]
#[should_panic(expected = "panicked")]
fn a_panic_in_a_worker_reaches_the_caller() {
    let pool = Pool::new(&SCALAR, 2).expect("threads");
    let mut y = vec![0.0; 2 * 8_192];
    let main = std::thread::current().id();
    for _ in 0..1_000 {
        pool.for_each_row(&mut y, 8, &|_, _| assert!(std::thread::current().id() == main, "a worker fails"));
    }
}
