//! Products with packed weights: a lane of a register is a row, four registers (**quads**) are the 16 rows of a panel.
//!
//! The tiers differ in one function, `exact`: the exact integer sums of some rows and tokens over a group of 32 weights.
//! What becomes of them ([`finish`]) is the same code, so all tiers, and tiles of all widths, give the same bits.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernel::tensor::Q8Block;
use crate::kernel::{Hints, PANEL, Q8_BLOCK};
use crate::quant::Quant;
use crate::quant::packed::{Float, Integers, Packing};

/// Sums of `N` quads and `T` tokens over both halves of a group, whole numbers. Formats without scales of halves have the
/// sums of the group in the first.
type Exact<const T: usize, const N: usize> = [[[float32x4_t; N]; T]; 2];

const fn packing(quant: usize) -> Packing {
    match Packing::of(Quant::ALL[quant]) {
        Some(packing) => packing,
        None => panic!("a format without blocks"),
    }
}

/// Whether both halves of a group have a scale.
const fn halves(packing: &Packing) -> bool {
    matches!(packing.integers, Integers::Halves | Integers::Halves6 | Integers::HalvesAndMins)
}

/// The sections of a panel.
struct Panel<'a> {
    low: &'a [u8],
    high: &'a [u8],
    integers: &'a [u8],
    floats: &'a [u8],
}

/// `N` quads of a group, from row `4 N part` on.
#[derive(Clone, Copy)]
struct Place<'a> {
    low: &'a [u8],
    high: &'a [u8],
    /// Where they begin in both.
    at: [usize; 2],
}

impl<'a> Panel<'a> {
    /// Cuts `panel` up, of `n_cols` weights a row; panics if it is too short.
    #[inline]
    fn new(packing: &Packing, panel: &'a [u8], n_cols: usize) -> Self {
        let [low, high, integers, floats, end] = packing.sections(n_cols);
        Self {
            low: &panel[low..high],
            high: &panel[high..integers],
            integers: &panel[integers..floats],
            floats: &panel[floats..end],
        }
    }

    /// The codes of group `g`, from row `row` on.
    #[inline]
    fn codes(&self, packing: &Packing, g: usize, row: usize) -> Place<'a> {
        let (low, high) = (PANEL * Q8_BLOCK * packing.low / 8, PANEL * Q8_BLOCK * packing.high / 8);
        Place { low: self.low, high: self.high, at: [g * low + 4 * row, g * high + 4 * row] }
    }
}

/// 16 bytes of a section. Unchecked: a branch for each group would cost cores that run instructions in order a tenth of
/// their time.
#[inline]
#[target_feature(enable = "neon")]
fn load(section: &[u8], at: usize) -> uint8x16_t {
    debug_assert!(at + 16 <= section.len());
    // SAFETY: sections hold all groups and blocks of the columns ([`Panel::new`]), and callers ask for those alone; the
    // load takes any alignment.
    unsafe { vld1q_u8(section.as_ptr().add(at)) }
}

/// Eight bytes of a section.
#[inline]
#[target_feature(enable = "neon")]
fn load8(section: &[u8], at: usize) -> uint8x8_t {
    debug_assert!(at + 8 <= section.len());
    // SAFETY: as above.
    unsafe { vld1_u8(section.as_ptr().add(at)) }
}

/// The activations of a block.
#[inline]
#[target_feature(enable = "neon")]
fn load_codes(codes: &[i8; Q8_BLOCK]) -> [int8x16_t; 2] {
    // SAFETY: 32 codes are there; the load takes any alignment.
    let int8x16x2_t(a, b) = unsafe { vld1q_s8_x2(codes.as_ptr()) };
    [a, b]
}

/// Every byte `left - right` bits up, or down where that is negative.
#[inline]
#[target_feature(enable = "neon")]
fn shifted(x: uint8x16_t, left: usize, right: usize) -> uint8x16_t {
    if left == right { x } else { vshlq_u8(x, vdupq_n_s8(left as i8 - right as i8)) }
}

#[inline]
#[target_feature(enable = "neon")]
fn and(x: uint8x16_t, mask: u8) -> uint8x16_t {
    vandq_u8(x, vdupq_n_u8(mask))
}

/// Where the low bits of the codes of `step` are, from the first of the group on: bytes.
#[inline]
const fn low_at(packing: &Packing, step: usize) -> usize {
    64 * match packing.low {
        2 => step % 2,
        4 => step % 4,
        _ => step,
    }
}

/// The same of further bits.
#[inline]
const fn high_at(packing: &Packing, step: usize) -> usize {
    64 * if packing.high == 2 { step % 2 } else { 0 }
}

/// The low bits, with others around, of step `step` of quad `i`, and the further bits.
#[inline]
#[target_feature(enable = "neon")]
fn bits<const Q: usize>(place: &Place<'_>, i: usize, step: usize) -> [uint8x16_t; 2] {
    let packing = const { &packing(Q) };
    let low = load(place.low, place.at[0] + low_at(packing, step) + 16 * i);
    match packing.high {
        0 => [low, vdupq_n_u8(0)],
        _ => [low, load(place.high, place.at[1] + high_at(packing, step) + 16 * i)],
    }
}

/// The codes of `step`, from its [`bits`]: four weights of four rows, unsigned or from the table.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const Q: usize>([low, high]: [uint8x16_t; 2], step: usize) -> int8x16_t {
    let packing = const { &packing(Q) };
    let (bits, from) = match packing.low {
        2 => (2, step / 2 * 2),
        4 => (4, step / 4 * 4),
        _ => return vreinterpretq_s8_u8(low),
    };
    let code = if packing.high == 0 {
        let code = shifted(low, 0, from);
        if from + bits == 8 { code } else { and(code, (1 << bits) - 1) }
    } else {
        // The further bits go above the low ones, with others that are cut off at the end.
        let at = if packing.high == 1 { step } else { step / 2 * 2 };
        let code = match (bits, from) {
            (4, 0) => vsliq_n_u8::<4>(low, shifted(high, 0, at)),
            (4, _) => vsriq_n_u8::<4>(shifted(high, 4, at), low),
            _ => vsliq_n_u8::<2>(shifted(low, 0, from), shifted(high, 0, at)),
        };
        and(code, (1 << (bits + packing.high)) - 1)
    };
    match packing.table {
        // SAFETY: the table has 16 bytes.
        Some(table) => vqtbl1q_s8(unsafe { vld1q_s8(table.as_ptr()) }, code),
        None => vreinterpretq_s8_u8(code),
    }
}

/// Sums of the codes of a token's block in four parts.
#[inline]
#[target_feature(enable = "neon")]
fn pairs(x: &Q8Block) -> int16x4_t {
    let (first, both) = (vdup_n_u32(x.first), vdup_n_u32(x.both));
    let second = vsub_s16(vreinterpret_s16_u32(both), vreinterpret_s16_u32(first));
    vreinterpret_s16_u32(vset_lane_u32::<0>(x.first, vreinterpret_u32_s16(second)))
}

/// The sums of the codes of both halves.
#[inline]
#[target_feature(enable = "neon")]
fn sums_of_halves(x: &Q8Block) -> int32x2_t {
    vpaddl_s16(pairs(x))
}

/// 1.5 · 2^23. Its bits and those of a whole number of up to 2^22, added as integers, are the sum of both as a float:
/// cheaper than a conversion, which is slow on most cores.
const MAGIC: f32 = 12_582_912.0;

/// What sums of products begin with, for both halves, or for the group in the first; the same for each row. That is
/// [`MAGIC`], and what making codes unsigned added, taken off.
#[inline]
#[target_feature(enable = "neon")]
fn start<const Q: usize>(x: &Q8Block) -> [int32x4_t; 2] {
    let packing = const { &packing(Q) };
    let magic = vdup_n_s32(MAGIC.to_bits() as i32);
    if packing.bias == 0 {
        return [vdupq_n_s32(MAGIC.to_bits() as i32); 2];
    }
    let mut sums = sums_of_halves(x);
    if !halves(packing) {
        sums = vpadd_s32(sums, sums);
    }
    let start = vmls_n_s32(magic, sums, i32::from(packing.bias));
    [vdupq_lane_s32::<0>(start), vdupq_lane_s32::<1>(start)]
}

/// A sum that began with [`start`].
#[inline]
#[target_feature(enable = "neon")]
fn ended(sum: int32x4_t) -> float32x4_t {
    vsubq_f32(vreinterpretq_f32_s32(sum), vdupq_n_f32(MAGIC))
}

/// Byte `i` of rows, from row `row` on: 16 or 8 of them.
#[inline]
#[target_feature(enable = "neon")]
fn bytes<const N: usize>(section: &[u8], i: usize, row: usize) -> uint8x16_t {
    match N {
        4 => load(section, i * PANEL),
        _ => vcombine_u8(load8(section, i * PANEL + row), vdup_n_u8(0)),
    }
}

/// Bytes of rows as floats.
#[inline]
#[target_feature(enable = "neon")]
fn widened<const N: usize>(bytes: uint8x16_t) -> [float32x4_t; N] {
    let bytes = vreinterpretq_s8_u8(bytes);
    let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
    let mut out = [vdupq_n_f32(0.0); N];
    for (i, out) in out.iter_mut().enumerate() {
        let eight = if i < 2 { low } else { high };
        *out = vcvtq_f32_s32(vmovl_s16(if i % 2 == 0 { vget_low_s16(eight) } else { vget_high_s16(eight) }));
    }
    out
}

/// Integers of a group: scales and minima of both halves, or of the group in the first.
#[inline]
#[target_feature(enable = "neon")]
fn integers<const Q: usize, const N: usize>(
    section: &[u8],
    g: usize,
    row: usize,
) -> ([[float32x4_t; N]; 2], [[float32x4_t; N]; 2]) {
    let packing = const { &packing(Q) };
    let byte = |i: usize| bytes::<N>(section, i, row);
    let none = [[vdupq_n_f32(0.0); N]; 2];
    match packing.integers {
        Integers::None => (none, none),
        Integers::Scale => ([widened(byte(g)), none[1]], none),
        Integers::Halves => ([widened(byte(2 * g)), widened(byte(2 * g + 1))], none),
        Integers::HalvesAndMins => {
            let nibbles = |x| [widened(and(x, 15)), widened(vshrq_n_u8::<4>(x))];
            (nibbles(byte(2 * g)), nibbles(byte(2 * g + 1)))
        }
        Integers::ScaleAndMin6 | Integers::Halves6 => {
            let (at, j) = (g / 8 * 12, g % 8);
            let (low, top) = (byte(at + j), byte(at + 8 + j / 2));
            // The two high bits to places 4 and 5, from 0 and 2 or from 4 and 6.
            let up = 4 - j as i8 % 2 * 4;
            let six = |low, up| vorrq_u8(low, and(vshlq_u8(top, vdupq_n_s8(up)), 0x30));
            let (first, second) = (six(and(low, 15), up), six(vshrq_n_u8::<4>(low), up - 2));
            match packing.integers {
                Integers::Halves6 => {
                    let signed = |x| widened(vsubq_u8(x, vdupq_n_u8(32)));
                    ([signed(first), signed(second)], none)
                }
                _ => ([widened(first), none[1]], [widened(second), none[1]]),
            }
        }
    }
}

/// Float `i` of block `b`.
#[inline]
#[target_feature(enable = "neon")]
fn floats<const Q: usize, const N: usize>(
    section: &[u8],
    b: usize,
    i: usize,
    row: usize,
) -> [float32x4_t; N] {
    let packing = const { &packing(Q) };
    let at = ((b * if packing.mins { 2 } else { 1 } + i) * PANEL + row) * 2;
    let mut out = [vdupq_n_f32(0.0); N];
    for (i, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let eight = vreinterpretq_u16_u8(load(section, at + 16 * i));
        for (four, out) in [vget_low_u16(eight), vget_high_u16(eight)].into_iter().zip(out) {
            *out = match packing.float {
                Float::F16 => vcvt_f32_f16(vreinterpret_f16_u16(four)),
                Float::BF16 => vreinterpretq_f32_u32(vshll_n_u16::<16>(four)),
            };
        }
    }
    out
}

/// What the sums of a group are multiplied with, for `N` quads.
struct Factors<const N: usize> {
    /// Of both halves, or of the group in the first.
    scales: [[float32x4_t; N]; 2],
    d: [float32x4_t; N],
    /// Minima of both halves.
    mins: [[float32x4_t; N]; 2],
    /// What they are multiplied with; where the group has one minimum, the product.
    dmin: [float32x4_t; N],
}

#[inline]
#[target_feature(enable = "neon")]
fn factors<const Q: usize, const N: usize>(panel: &Panel<'_>, g: usize, row: usize) -> Factors<N> {
    let packing = const { &packing(Q) };
    let b = g / packing.groups;
    let (scales, mins) = integers::<Q, N>(panel.integers, g, row);
    let d = floats::<Q, N>(panel.floats, b, 0, row);
    let mut dmin = d;
    if packing.mins {
        dmin = floats::<Q, N>(panel.floats, b, 1, row);
        if let Integers::ScaleAndMin6 = packing.integers {
            for (dmin, min) in dmin.iter_mut().zip(mins[0]) {
                *dmin = vmulq_f32(*dmin, min);
            }
        }
    }
    Factors { scales, d, mins, dmin }
}

/// Adds the sums of a group, times its factors, to the sums of a token: one float sum for each row, groups in ascending
/// order. Sums times integers are exact, for they stay below 2^24: at most 2 · 16 · 32 · 127 · 128 (Q6_K).
#[inline]
#[target_feature(enable = "neon")]
fn finish<const Q: usize, const N: usize>(
    factors: &Factors<N>,
    x: &Q8Block,
    exact: [&[float32x4_t; N]; 2],
    sums: &mut [float32x4_t],
) {
    let packing = const { &packing(Q) };
    let Factors { scales, d, mins, dmin } = factors;
    for (i, sum) in sums.iter_mut().enumerate().take(N) {
        let exact = match packing.integers {
            Integers::None => exact[0][i],
            Integers::Scale | Integers::ScaleAndMin6 => vmulq_f32(exact[0][i], scales[0][i]),
            _ => vfmaq_f32(vmulq_f32(exact[0][i], scales[0][i]), exact[1][i], scales[1][i]),
        };
        *sum = vfmaq_f32(*sum, exact, vmulq_n_f32(d[i], x.scale));
        if !packing.mins {
            continue;
        }
        *sum = if let Integers::HalvesAndMins = packing.integers {
            let x_sums = vcvt_f32_s32(sums_of_halves(x));
            let exact = vmulq_lane_f32::<0>(mins[0][i], x_sums);
            let exact = vfmaq_lane_f32::<1>(exact, mins[1][i], x_sums);
            vfmsq_f32(*sum, exact, vmulq_n_f32(dmin[i], x.scale))
        } else {
            vfmsq_f32(*sum, dmin[i], vdupq_n_f32(x.sum))
        };
    }
}

/// Keeps sums in registers from step to step: for all the compiler knows they are changed here, and memory with them.
/// Without it the loads of all steps go to the front and the sums onto the stack, or tokens are taken one after the other,
/// for which cores that run instructions in order wait.
macro_rules! pin {
    ($sums:expr) => {
        for sum in $sums {
            // SAFETY: no instruction; the register comes out as it went in.
            unsafe { asm!("/* {0:v} */", inout(vreg) * sum, options(nostack, preserves_flags)) };
        }
    };
}

/// A product of every format with blocks, indexed by format.
macro_rules! table {
    ($product:ident) => {
        table!($product: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ2_0 MXFP4)
    };
    ($product:ident: $($quant:ident)*) => {{
        let mut all: [Option<PackedFn>; Quant::COUNT] = [None; Quant::COUNT];
        $(all[Quant::$quant as usize] = Some($product::<{ Quant::$quant as usize }>);)*
        // Packed alike.
        all[Quant::TQ1_0 as usize] = all[Quant::TQ2_0 as usize];
        all
    }};
}

/// The products of a tier over its `exact`: `$few` tells the quads of a tile of several tokens, of the packing. A macro,
/// because a function cannot be generic over its features.
macro_rules! products {
    ($features:literal, $few:expr) => {
        /// Indexed by format.
        pub(in crate::kernel::arm) const PRODUCTS: [Option<PackedFn>; Quant::COUNT] = table!(product);

        /// The products of a panel with all tokens: four, two or one at a time. The panel stays in the first-level cache,
        /// and a tile of three is not worth its code.
        #[target_feature(enable = $features)]
        fn product<const Q: usize>(panel: &[u8], _: Hints<'_>, x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
            let packing = const { &packing(Q) };
            let panel = Panel::new(packing, panel, x.n_cols);
            let few = $few(packing) == 2;
            let mut first = 0;
            while first < sums.len() {
                first += match sums.len() - first {
                    1 => some::<Q, 1, 4>(&panel, x, first, sums),
                    2 | 3 if few => some::<Q, 2, 2>(&panel, x, first, sums),
                    2 | 3 => some::<Q, 2, 4>(&panel, x, first, sums),
                    _ if few => some::<Q, 4, 2>(&panel, x, first, sums),
                    _ => some::<Q, 4, 4>(&panel, x, first, sums),
                };
            }
        }

        /// The products of a panel with `T` tokens from `first` on; tells how many those are.
        #[target_feature(enable = $features)]
        fn some<const Q: usize, const T: usize, const N: usize>(
            panel: &Panel<'_>,
            x: &Q8View<'_>,
            first: usize,
            sums: &mut [[f32; PANEL]],
        ) -> usize {
            let packing = const { &packing(Q) };
            let n_groups = x.n_cols / Q8_BLOCK;
            let mut rows = [x.row(first); T];
            for (t, row) in rows.iter_mut().enumerate() {
                // A length that the loop below need not check.
                *row = &x.row(first + t)[..n_groups];
            }
            let mut found = [[vdupq_n_f32(0.0); 4]; T];
            for g in 0..n_groups {
                for part in 0..4 / N {
                    let row = 4 * N * part;
                    let place = panel.codes(packing, g, row);
                    let exact = exact::<Q, T, N>(&place, &rows, g);
                    let factors = factors::<Q, N>(panel, g, row);
                    for t in 0..T {
                        let exact = [&exact[0][t], &exact[1][t]];
                        finish::<Q, N>(&factors, &rows[t][g], exact, &mut found[t][row / 4..][..N]);
                    }
                }
            }
            for (found, sums) in found.iter().zip(&mut sums[first..]) {
                for (found, sums) in found.iter().zip(sums.as_chunks_mut::<4>().0) {
                    // SAFETY: there is room for four floats; the store takes any alignment.
                    unsafe { vst1q_f32(sums.as_mut_ptr(), *found) };
                }
            }
            T
        }
    };
}

/// What a tier could do at best: its instruction on eight sums in registers, of so many products each.
macro_rules! peak {
    ($features:literal, $name:literal, $sums:literal, $codes:literal, $products:literal) => {
        #[target_feature(enable = $features)]
        pub(in crate::kernel::arm) fn peak(n_rounds: u32) -> u64 {
            let (w, mut s) = (vdupq_n_s8(3), [vdupq_n_s32(0); 8]);
            for _ in 0..n_rounds {
                // SAFETY: the function has the instruction, which touches nothing but the registers named.
                unsafe {
                    asm!(
                        concat!($name, " {0:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {1:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {2:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {3:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {4:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {5:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {6:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        concat!($name, " {7:v}.", $sums, ", {8:v}.", $codes, ", {8:v}.", $codes),
                        inout(vreg) s[0],
                        inout(vreg) s[1],
                        inout(vreg) s[2],
                        inout(vreg) s[3],
                        inout(vreg) s[4],
                        inout(vreg) s[5],
                        inout(vreg) s[6],
                        inout(vreg) s[7],
                        in(vreg) w,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
            std::hint::black_box(s);
            u64::from(n_rounds) * 8 * $products
        }
    };
}

mod dotprod;
mod i8mm;
mod neon;

pub(super) use dotprod::{PRODUCTS as DOTPROD, peak as dotprod_peak};
pub(super) use i8mm::{PRODUCTS as I8MM, peak as i8mm_peak};
pub(super) use neon::{PRODUCTS as NEON, peak as neon_peak};
