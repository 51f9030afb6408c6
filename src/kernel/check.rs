//! Conformance: every kernel of every tier that this machine has, against the scalar definition, on seeded input.
//! Integers must be equal bit for bit; float sums of n products may differ by `n * 2^-23` of the sum of magnitudes.

use std::sync::Arc;

use half::f16;

use super::pool::SMALL;
use super::tensor::{Packed, Q8Acts, Rows, Scores};
use super::*;
use crate::base::rng::Rng;
use crate::os::pages::Pages;
use crate::quant;

mod jobs;

/// Those of this machine, and models of those that it may not have.
fn tiers() -> Vec<&'static Kernels> {
    let all = available().into_iter().map(|t| select(Some(t)).expect("available"));
    #[cfg(target_arch = "x86_64")]
    let all = all.chain(x86::models());
    all.collect()
}

fn floats(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.next_f32() * 2.0 - 1.0).collect()
}

/// Where a block has its 16-bit floats.
fn floats_at(quant: Quant) -> &'static [usize] {
    match quant {
        Quant::F32 | Quant::MXFP4 => &[],
        Quant::F16 | Quant::BF16 | Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0 => &[0],
        Quant::IQ4_NL | Quant::IQ4_XS => &[0],
        Quant::Q4_1 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K => &[0, 2],
        Quant::Q2_K => &[80, 82],
        Quant::Q3_K => &[108],
        Quant::Q6_K => &[208],
        Quant::TQ1_0 => &[52],
        Quant::TQ2_0 => &[64],
    }
}

/// Random bytes as rows of `quant`, with scales of a normal size; one byte further in, so that nothing is aligned.
fn weights(rng: &mut Rng, quant: Quant, n_rows: usize, n_cols: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    let small = |rng: &mut Rng| f16::from_f32(rng.next_f32() / 64.0).to_le_bytes();
    for _ in 0..n_rows * n_cols / quant.block_len() {
        let at = bytes.len();
        bytes.extend((0..quant.block_bytes()).map(|_| rng.next_u64() as u8));
        let block = &mut bytes[at..];
        match quant {
            Quant::F32 => block.copy_from_slice(&(rng.next_f32() - 0.5).to_le_bytes()),
            Quant::F16 => block.copy_from_slice(&f16::from_f32(rng.next_f32() - 0.5).to_le_bytes()),
            Quant::BF16 => block.copy_from_slice(&bf16::from_f32(rng.next_f32() - 0.5).to_le_bytes()),
            // A power of two from 2^-8 to 2^-5.
            Quant::MXFP4 => block[0] = 120 + block[0] % 4,
            _ => floats_at(quant).iter().for_each(|at| block[*at..at + 2].copy_from_slice(&small(rng))),
        }
    }
    bytes
}

#[test]
fn tiers_have_names_and_errors_name_the_choices() {
    assert_eq!(Tier::from_name("scalar"), Ok(Tier::Scalar));
    let unknown = Tier::from_name("avx1024").expect_err("no such tier").to_string();
    assert!(unknown.contains("avx1024") && unknown.contains("scalar"), "{unknown}");
    let absent = if cfg!(target_arch = "x86_64") { Tier::Neon } else { Tier::Avx2 };
    let unsupported = select(Some(absent)).expect_err("another architecture").to_string();
    assert!(unsupported.contains("lacks") && unsupported.contains("scalar"), "{unsupported}");
    assert_eq!(select(None).expect("some tier").tier(), *available().last().expect("some tier"));
}

#[test]
fn codes_are_equal_in_all_tiers() {
    let mut rng = Rng::new(1);
    for k in tiers() {
        for n_blocks in [0, 1, 3, 64] {
            let n = n_blocks * Q8_BLOCK;
            for kind in 0..5 {
                let mut x = floats(&mut rng, n);
                match kind {
                    0 => {}
                    1 => x.fill(0.0),
                    2 => x.iter_mut().for_each(|v| *v *= 1e-40),
                    3 => x.iter_mut().for_each(|v| *v *= 1e30),
                    _ => x
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v = [127.0, -127.0, 0.5, 1.5, -2.5][i % 5]),
                }
                let make = |k: &Kernels| {
                    let mut blocks = vec![Q8Block::default(); n_blocks];
                    k.quantize(&x, &mut blocks);
                    blocks
                };
                let (found, wanted) = (make(k), make(&SCALAR));
                assert_eq!(found, wanted, "{k:?}, case {kind}, {n_blocks} blocks");
                assert!(
                    found.iter().all(|b| b.codes.iter().all(|c| *c >= -127)),
                    "{k:?}: -128 is not a code of activations"
                );
            }
        }
        for (odd, at) in
            [f32::NAN, f32::INFINITY].into_iter().flat_map(|odd| (0..Q8_BLOCK).map(move |at| (odd, at)))
        {
            let mut x = [1.0; Q8_BLOCK];
            x[at] = odd;
            let mut block = Q8Block::default();
            k.quantize(&x, std::slice::from_mut(&mut block));
            assert!(block.codes.iter().all(|c| *c >= -127), "{k:?}");
            assert!(!block.scale.is_finite() && !block.sum.is_finite(), "{k:?}: {odd} at {at} is lost");
        }
    }
}

#[test]
fn products_agree_and_batches_change_no_bit() {
    let mut rng = Rng::new(2);
    for k in tiers() {
        for quant in Quant::ALL {
            for (n_rows, blocks) in [(1, 1), (3, 2), (16, 1), (5, 9), (9, 40)] {
                // Formats without blocks take any width; the others whole blocks of 256 or 32.
                let n_cols = if quant.block_len() == 1 { blocks * 43 } else { blocks * quant.block_len() };
                let bytes = weights(&mut rng, quant, n_rows, n_cols);
                let rows = Rows::new(quant, n_rows, n_cols, &bytes[1..]).expect("whole rows");
                for n_tokens in [1, 2, 4, 7] {
                    let x = floats(&mut rng, n_tokens * n_cols);
                    let mut exact = vec![0.0; n_rows * n_tokens];
                    let mut magnitude = vec![0.0; n_rows * n_tokens];
                    let mut row = vec![0.0; n_cols];
                    for r in 0..n_rows {
                        rows.unpack_part(r, 0, &mut row);
                        for t in 0..n_tokens {
                            let products =
                                row.iter().zip(&x[t * n_cols..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                            exact[r * n_tokens + t] = products.clone().sum::<f64>();
                            magnitude[r * n_tokens + t] = products.map(f64::abs).sum::<f64>();
                        }
                    }
                    let mut sums = vec![[f32::NAN; PANEL]; n_tokens];
                    k.rows_f32(quant, &bytes[1..], &x, n_cols, &mut sums);
                    let mut panel = Pages::new(Packed::panel_bytes(&rows)).expect("room");
                    Packed::pack_panel(&rows, 0, &mut panel);
                    let mut packed = vec![[f32::NAN; PANEL]; n_tokens];
                    k.packed_f32(quant, &panel, &x, n_cols, &mut packed);
                    for (t, (sums, packed)) in sums.iter().zip(&packed).enumerate() {
                        let mut alone = [[f32::NAN; PANEL]];
                        k.packed_f32(quant, &panel, &x[t * n_cols..(t + 1) * n_cols], n_cols, &mut alone);
                        let wanted = &sums[..n_rows];
                        assert_eq!(
                            &packed[..n_rows],
                            wanted,
                            "{k:?} {} by floats from a panel",
                            quant.name()
                        );
                        assert_eq!(&alone[0][..n_rows], wanted, "{k:?} {}: token {t} alone", quant.name());
                    }
                    let tile = (0..n_rows).flat_map(|r| sums.iter().map(move |sums| sums[r]));
                    for (i, y) in tile.enumerate() {
                        let bound = magnitude[i] * n_cols as f64 * 1.2e-7 + 1e-30;
                        assert!(
                            (f64::from(y) - exact[i]).abs() <= bound,
                            "{k:?} {} {n_rows}x{n_cols}: {y} for {}",
                            quant.name(),
                            exact[i]
                        );
                    }
                    if !k.takes_codes(quant) {
                        continue;
                    }
                    let acts = coded(k, &x, n_cols);
                    let view = acts.view();
                    let (mut tile, mut wanted) = (vec![0.0; n_rows * n_tokens], vec![0.0; n_rows * n_tokens]);
                    k.rows_q8(quant, &bytes[1..], &view, &mut tile);
                    SCALAR.rows_q8(quant, &bytes[1..], &view, &mut wanted);
                    for (i, (y, w)) in tile.iter().zip(&wanted).enumerate() {
                        let bound = (magnitude[i] * n_cols as f64 * 1.2e-7 + 1e-30) as f32;
                        assert!(
                            (y - w).abs() <= bound,
                            "{k:?} {} {n_rows}x{n_cols}: {y} for {w}",
                            quant.name()
                        );
                    }
                    // A token alone gives the same bits as in the batch.
                    for t in 0..n_tokens {
                        let one = coded(k, &x[t * n_cols..(t + 1) * n_cols], n_cols);
                        let mut column = vec![0.0; n_rows];
                        k.rows_q8(quant, &bytes[1..], &one.view(), &mut column);
                        let batch: Vec<f32> = tile.iter().skip(t).step_by(n_tokens).copied().collect();
                        assert_eq!(column, batch, "{k:?} {}: token {t} of {n_tokens}", quant.name());
                    }
                }
            }
        }
    }
}

/// The codes of `x` `[n_tokens, n_cols]`.
fn coded(k: &Kernels, x: &[f32], n_cols: usize) -> Q8Acts {
    let n = x.len() / n_cols;
    let mut acts = Q8Acts::new(n, n_cols);
    let (blocks, fours) = acts.reshape(n, n_cols);
    k.quantize(x, blocks);
    if k.arranges(n) {
        k.arrange(blocks, n_cols / Q8_BLOCK, fours);
    }
    acts
}

/// The sums of one panel, `[n_tokens][PANEL]`, and the activations.
fn packed(k: &Kernels, quant: Quant, rows: &[u8], x: &[f32], n_cols: usize) -> Vec<[f32; PANEL]> {
    let n_rows = rows.len() / quant.row_bytes(n_cols).expect("whole blocks");
    let mut panel = vec![0; packed::bytes(quant, n_rows, n_cols).expect("small")];
    Packed::pack_panel(&Rows::new(quant, n_rows, n_cols, rows).expect("whole rows"), 0, &mut panel);
    let n_tokens = x.len() / n_cols;
    let acts = coded(k, x, n_cols);
    let both = [0, usize::MAX].map(|unpack_from| {
        let mut sums = vec![[f32::NAN; PANEL]; n_tokens];
        k.packed(quant, &panel, Hints { next: &panel, unpack_from }, &acts.view(), &mut sums);
        sums
    });
    let [sums, other] = both;
    let bits = |sums: &[[f32; PANEL]]| sums.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&sums) == bits(&other), "{k:?} {}: two ways", quant.name());
    sums
}

/// Close to those of the scalar tier, and a batch changes no bit.
#[test]
fn packed_products_agree_and_batches_change_no_bit() {
    let mut rng = Rng::new(12);
    for k in tiers() {
        for quant in Quant::ALL.into_iter().filter(|q| Packing::of(*q).is_some()) {
            for (n_rows, blocks) in [(1, 1), (16, 2), (5, 9)] {
                let n_cols = blocks * quant.block_len();
                let bytes = weights(&mut rng, quant, n_rows, n_cols);
                let x = floats(&mut rng, 12 * n_cols);
                let wanted = packed(&SCALAR, quant, &bytes[1..], &x, n_cols);
                for sums in &wanted {
                    assert!(sums[n_rows..].iter().all(|y| *y == 0.0), "absent rows");
                }
                for n_tokens in 1..=12 {
                    let found = packed(k, quant, &bytes[1..], &x[..n_tokens * n_cols], n_cols);
                    let alone = packed(k, quant, &bytes[1..], &x[..n_cols], n_cols);
                    assert_eq!(found[0], alone[0], "{k:?} {}: {n_tokens} tokens", quant.name());
                    for (t, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                        let last = packed(k, quant, &bytes[1..], &x[t * n_cols..(t + 1) * n_cols], n_cols);
                        assert_eq!(*found, last[0], "{k:?} {}: token {t} of {n_tokens}", quant.name());
                        let size: f32 = wanted.iter().map(|y| y.abs()).sum::<f32>() / n_rows as f32;
                        for (y, w) in found.iter().zip(wanted) {
                            let bound = 1e-5 * (w.abs() + size) + 1e-30;
                            assert!(
                                (y - w).abs() <= bound,
                                "{k:?} {} {n_rows}x{n_cols}: {y} for {w}",
                                quant.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Within a tier a product has the same bits packed and from rows, at any number of tokens.
#[test]
fn packed_products_have_the_bits_of_rows() {
    let mut rng = Rng::new(13);
    for k in tiers() {
        let pool = Pool::new(k, 1).expect("a pool");
        for quant in Quant::ALL.into_iter().filter(|q| Packing::of(*q).is_some()) {
            for (n_rows, blocks, n_tokens) in [(1, 1, 1), (16, 5, 1), (16, 5, 4), (7, 3, 6)] {
                let n_cols = blocks * quant.block_len();
                let bytes = weights(&mut rng, quant, n_rows, n_cols);
                let x = floats(&mut rng, n_tokens * n_cols);
                let mut acts = Q8Acts::new(n_tokens, n_cols);
                pool.quantize(&x, n_cols, &mut acts);
                let mut tile = vec![0.0; n_rows * n_tokens];
                k.rows_q8(quant, &bytes[1..], &acts.view(), &mut tile);
                let sums = packed(k, quant, &bytes[1..], &x, n_cols);
                for (t, sums) in sums.iter().enumerate() {
                    let rows: Vec<f32> = tile.iter().skip(t).step_by(n_tokens).copied().collect();
                    assert_eq!(sums[..n_rows], rows, "{k:?} {} {n_rows}x{n_cols}, token {t}", quant.name());
                }
            }
        }
    }
}

/// Blocks of one byte over and over with scales of 1, against activations of ±127 whose codes are exact.
#[test]
fn extreme_codes_do_not_overflow() {
    for k in tiers() {
        for quant in Quant::ALL.into_iter().filter(|q| k.takes_codes(*q)) {
            for byte in [0x00, 0x0f, 0x7f, 0x80, 0xf0, 0xff] {
                let n_cols = 64 * 256;
                let mut bytes = vec![byte; quant.row_bytes(n_cols).expect("whole blocks")];
                for block in bytes.chunks_exact_mut(quant.block_bytes()) {
                    let ones = floats_at(quant).iter();
                    ones.for_each(|at| block[*at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes()));
                    if quant == Quant::MXFP4 {
                        block[0] = 128;
                    }
                }
                let mut row = vec![0.0; n_cols];
                quant::unpack_row(quant, &bytes, &mut row);
                for signs in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
                    let x: Vec<f32> = (0..n_cols).map(|i| 127.0 * signs[i % 2]).collect();
                    let products = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let exact: f64 = products.clone().sum();
                    // One or two float sums for each 32 weights.
                    let bound =
                        products.map(f64::abs).sum::<f64>() * f64::from(f32::EPSILON) * n_cols as f64 / 16.0;
                    let acts = coded(k, &x, n_cols);
                    let mut y = [0.0];
                    k.rows_q8(quant, &bytes, &acts.view(), &mut y);
                    for y in [y[0], packed(k, quant, &bytes, &x, n_cols)[0][0]] {
                        let off = (f64::from(y) - exact).abs();
                        assert!(off <= bound, "{k:?} {} of {byte:#04x}: {y} for {exact}", quant.name());
                    }
                }
            }
        }
    }
}

/// The definition's bits, but for what a NaN carries.
#[test]
fn unpacking_is_equal_in_all_tiers() {
    let mut rng = Rng::new(6);
    for k in tiers() {
        for quant in Quant::ALL {
            let n = if quant.block_len() == 1 { 43 } else { 8 * quant.block_len() };
            let sane = weights(&mut rng, quant, 1, n);
            let any: Vec<u8> = (0..sane.len()).map(|_| rng.next_u64() as u8).collect();
            for bytes in [sane, any] {
                let (mut found, mut wanted) = (vec![0.0; n], vec![0.0; n]);
                // SAFETY: the machine has the features of the tier; `n` weights are whole blocks.
                unsafe { (k.unpack[quant as usize])(&bytes[1..], &mut found) };
                quant::unpack_row(quant, &bytes[1..], &mut wanted);
                let bits = |x: &[f32]| -> Vec<u32> {
                    x.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
                };
                assert_eq!(bits(&found), bits(&wanted), "{k:?} {}", quant.name());
            }
        }
    }
}

/// Whatever stands in a file: floats come out, at worst a NaN.
#[test]
fn damaged_blocks_do_no_harm() {
    let mut rng = Rng::new(7);
    for k in tiers() {
        for quant in Quant::ALL {
            let (n_rows, n_cols, n_tokens) = (5, 4 * 256, 5);
            let n_bytes = n_rows * quant.row_bytes(n_cols).expect("whole blocks");
            let x = floats(&mut rng, n_tokens * n_cols);
            let acts = coded(k, &x, n_cols);
            for case in 0..50 {
                let bytes: Vec<u8> = match case {
                    0 => vec![0x00; n_bytes],
                    // All ones is a NaN, 7c an infinity, each in every place.
                    1 => vec![0xff; n_bytes],
                    2 => vec![0x7c; n_bytes],
                    _ => (0..n_bytes).map(|_| rng.next_u64() as u8).collect(),
                };
                let (mut tile, mut sums) = (vec![0.0; n_rows * n_tokens], [[0.0; PANEL]; 5]);
                k.rows_f32(quant, &bytes, &x, n_cols, &mut sums);
                assert!(
                    case != 0 || sums.as_flattened().iter().all(|y| y.is_finite()),
                    "{k:?} {}",
                    quant.name()
                );
                if k.takes_codes(quant) {
                    k.rows_q8(quant, &bytes, &acts.view(), &mut tile);
                }
                assert!(case != 0 || tile.iter().all(|y| y.is_finite()), "{k:?} {}", quant.name());
            }
        }
    }
}

#[test]
fn elementwise_kernels_agree() {
    let mut rng = Rng::new(3);
    for k in tiers() {
        for n in [1, 7, 8, 16, 33, 192, 2048] {
            let (x, w) = (floats(&mut rng, n), floats(&mut rng, n));
            let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
            k.rms_norm(&x, &w, 1e-5, &mut a);
            SCALAR.rms_norm(&x, &w, 1e-5, &mut b);
            close(&a, &b, 1e-5, k);
            let (mut a, mut b): (Vec<f32>, Vec<f32>) =
                (x.iter().map(|v| v * 20.0).collect(), x.iter().map(|v| v * 20.0).collect());
            k.swiglu(&mut a, &w);
            SCALAR.swiglu(&mut b, &w);
            close(&a, &b, 1e-5, k);
            let (mut a, mut b) = (vec![f16::ZERO; n], vec![f16::ZERO; n]);
            k.store_f16(&x, &mut a);
            SCALAR.store_f16(&x, &mut b);
            assert_eq!(a, b, "{k:?}");
        }
    }
}

/// Pages, and the shape of their only block.
struct Held {
    shape: BlockShape,
    pages: Vec<Arc<Page>>,
}

impl Held {
    fn new(shape: BlockShape, n: usize) -> Self {
        let budget = Budget::new(u64::MAX);
        let page = |_| Arc::new(Page::new(shape.bytes(), &budget).expect("room"));
        Self { shape, pages: (0..n.div_ceil(ATTN_BLOCK)).map(page).collect() }
    }

    fn blocks(&self, first: usize) -> Blocks<'_> {
        Blocks { shape: self.shape, at: 0, pages: &self.pages[first..], first }
    }

    fn blocks_mut(&mut self) -> BlocksMut<'_> {
        BlocksMut { shape: self.shape, at: 0, pages: &mut self.pages, first: 0 }
    }
}

/// Keys and values `[n][n_head_kv, d]`, stored.
fn held(k: &Kernels, kind: KvType, (n_head_kv, d): (usize, usize), keys: &[f32], values: &[f32]) -> Held {
    let mut held = Held::new(BlockShape { kind, n_head_kv, head_dim: d }, keys.len() / (n_head_kv * d));
    for (pos, (k_row, v_row)) in keys.chunks(n_head_kv * d).zip(values.chunks(n_head_kv * d)).enumerate() {
        held.blocks_mut().store(k, pos, k_row, v_row);
    }
    held
}

fn attend(pool: &Pool, a: &Attention<'_>) -> Vec<f32> {
    let mut room = vec![f32::NAN; Attention::room(a.n_head, a.cache.shape.head_dim)];
    let mut out = vec![f32::NAN; a.q.len()];
    pool.attention(std::slice::from_ref(a), &mut room, &mut out);
    out
}

/// Attention as the formula has it, in f64.
fn exact(a: &Attention<'_>, keys: &[f32], values: &[f32]) -> Vec<f32> {
    let (d, n_head_kv) = (a.cache.shape.head_dim, a.cache.shape.n_head_kv);
    let heads = a.q.chunks(d).enumerate().map(|(i, q)| {
        let (t, head) = (i / a.n_head, i % a.n_head);
        let of = |x: &[f32], pos: usize, c: usize| {
            f64::from(x[(pos * n_head_kv + head / (a.n_head / n_head_kv)) * d + c])
        };
        let end = a.pos + t + 1;
        let sees = a.window.map_or(0, |w| end.saturating_sub(w))..end;
        let score = |pos: usize| {
            let x =
                (0..d).map(|c| f64::from(q[c]) * of(keys, pos, c)).sum::<f64>() * f64::from(a.scores.scale);
            let cap = f64::from(a.scores.cap);
            if cap > 0.0 { cap * (x / cap).tanh() } else { x }
        };
        let weights: Vec<f64> = sees.clone().map(|pos| score(pos).exp()).collect();
        let total = weights.iter().sum::<f64>() + a.sinks.map_or(0.0, |s| f64::from(s[head]).exp());
        let value =
            |c| sees.clone().zip(&weights).map(|(pos, w)| w * of(values, pos, c)).sum::<f64>() / total;
        (0..d).map(|c| value(c) as f32).collect::<Vec<f32>>()
    });
    heads.flatten().collect()
}

#[test]
fn attention_is_what_the_formula_says() {
    let mut rng = Rng::new(4);
    for k in tiers() {
        let pool = Pool::new(k, 2).expect("threads");
        for (i, d) in [1, 8, 16, 20, 33, 64, 80, 128, 512].into_iter().enumerate() {
            for (group, n_head_kv, n) in [(1, 2, 3), (2, 1, 70), (3, 3, 64), (7, 2, 130), (30, 1, 600)] {
                let (keys, values) =
                    (floats(&mut rng, n * n_head_kv * d), floats(&mut rng, n * n_head_kv * d));
                let n_tokens = [1, 2, 5][(i + group) % 3];
                let q = floats(&mut rng, n_tokens * group * n_head_kv * d);
                let sinks = floats(&mut rng, group * n_head_kv);
                for (kind, bound) in [(KvType::F32, 2e-5), (KvType::F16, 1e-3), (KvType::Q8_0, 2e-2)] {
                    let held = held(k, kind, (n_head_kv, d), &keys, &values);
                    let a = Attention {
                        q: &q,
                        cache: held.blocks(0),
                        n_head: group * n_head_kv,
                        pos: n - n_tokens.min(n),
                        window: [None, Some(1), Some(66)][(i + n) % 3],
                        scores: Scores { scale: 1.0 / (d as f32).sqrt(), cap: [0.0, 5.0][i % 2] },
                        sinks: (i % 3 == 0).then_some(&sinks),
                    };
                    let a = Attention { q: &q[..q.len() / n_tokens * n_tokens.min(n)], ..a };
                    let (found, wanted) = (attend(&pool, &a), exact(&a, &keys, &values));
                    for (y, w) in found.iter().zip(&wanted) {
                        assert!((y - w).abs() <= bound, "{k:?} {kind:?} {d} x {group} x {n}: {y} for {w}");
                    }
                }
            }
        }
    }
}

#[test]
fn rotations_and_stored_codes_are_equal_in_all_tiers() {
    let mut rng = Rng::new(17);
    for k in tiers() {
        for n in [1, 3, 4, 5, 16, 33] {
            let (cos, sin) = (floats(&mut rng, n), floats(&mut rng, n));
            let head = floats(&mut rng, 2 * n + 3);
            let turned = |k: &Kernels| {
                let (mut pairs, mut halves) = (head.clone(), head.clone());
                k.rope_pairs(&mut pairs, &cos, &sin);
                k.rope_halves(&mut halves, &cos, &sin);
                [pairs, halves]
            };
            assert_eq!(turned(k), turned(&SCALAR), "{k:?}: {n} pairs");
        }
        for n in [1, 31, 32, 64, 100] {
            for odd in [0.0, 1e-40, 1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = floats(&mut rng, n);
                x[n / 2] = odd;
                let stored = |k: &Kernels| {
                    let (mut codes, mut scales) = (vec![0; n], vec![f16::ZERO; n.div_ceil(Q8_BLOCK)]);
                    k.store_q8(&x, &mut codes, &mut scales);
                    (codes, scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>())
                };
                assert_eq!(stored(k), stored(&SCALAR), "{k:?}: {odd} among {n}");
            }
        }
    }
}

/// However a sequence was cut, on however many threads, with or without the pages that a window has left behind.
#[test]
fn chunks_and_threads_change_no_bit_of_attention() {
    let mut rng = Rng::new(14);
    for k in tiers() {
        for (d, group, n_head_kv, n, window) in
            [(64, 3, 2, 1_200, None), (16, 1, 1, 9_000, None), (40, 5, 1, 700, Some(150))]
        {
            let (keys, values) = (floats(&mut rng, n * n_head_kv * d), floats(&mut rng, n * n_head_kv * d));
            let q = floats(&mut rng, n * group * n_head_kv * d);
            let width = group * n_head_kv * d;
            let last = n - 40..n;
            for kind in KvType::ALL {
                let whole = held(k, kind, (n_head_kv, d), &keys, &values);
                let at = |pos: usize, n: usize| Attention {
                    q: &q[pos * width..(pos + n) * width],
                    cache: whole.blocks(0),
                    n_head: group * n_head_kv,
                    pos,
                    window,
                    scores: Scores { scale: 0.3, cap: 0.0 },
                    sinks: None,
                };
                let pools = [1, 2, 3].map(|n| Pool::new(k, n).expect("threads"));
                let wanted = attend(&pools[0], &at(last.start, last.len()));
                for pool in &pools {
                    for chunk in [1, 7, 40] {
                        let parts =
                            last.clone().step_by(chunk).map(|pos| attend(pool, &at(pos, chunk.min(n - pos))));
                        let found: Vec<f32> = parts.flatten().collect();
                        assert_eq!(found, wanted, "{pool:?} {kind:?}: {d} x {group} by {chunk}");
                    }
                }
                let Some(window) = window else { continue };
                let cache = whole.blocks((last.start + 1 - window) / ATTN_BLOCK);
                let found = attend(&pools[1], &Attention { cache, ..at(last.start, last.len()) });
                assert_eq!(found, wanted, "{k:?} {kind:?}: from page {} on", cache.first);
            }
        }
    }
}

/// What a cache of 8 bits keeps is within half a step and the rounding of a scale.
#[test]
fn stored_codes_are_close() {
    let mut rng = Rng::new(15);
    for k in tiers() {
        for n in [1, 20, 32, 80, 512] {
            let x = floats(&mut rng, n);
            let (mut codes, mut scales) = (vec![0; n], vec![f16::ZERO; n.div_ceil(Q8_BLOCK)]);
            k.store_q8(&x, &mut codes, &mut scales);
            for (i, (x, code)) in x.iter().zip(&codes).enumerate() {
                let step = scales[i / Q8_BLOCK].to_f32();
                assert!(
                    (x - step * f32::from(*code)).abs() <= 0.58 * step,
                    "{k:?}: {x} became {code} of {step}"
                );
            }
        }
    }
}

/// The threads of a pool share the work without changing a bit, and a pool that was idle wakes up.
fn close(a: &[f32], b: &[f32], bound: f32, k: &Kernels) {
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= bound * (1.0 + y.abs()), "{k:?}: {x} for {y}");
    }
}
