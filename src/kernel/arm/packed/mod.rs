//! Products with packed weights: a lane of a register is a row, four registers (**quads**) are the 16 rows of a panel.
//!
//! The tiers differ in one function, `exact`: the exact integer sums of some rows and tokens over a group of 32 weights.
//! What becomes of them ([`mod@factors`]) is the same code, so all tiers, and tiles of all widths, give the same bits.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernel::tensor::{FOUR, Pair, Q8Block, Q8Four};
use crate::kernel::{Hints, PANEL, Q8_BLOCK};
use crate::quant::Quant;
use crate::quant::packed::{Integers, Packing};
use factors::{RUN, Run, Token, factors, finish, floats};

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

/// Whether two groups share bytes of integers.
const fn six_bits(packing: &Packing) -> bool {
    matches!(packing.integers, Integers::ScaleAndMin6 | Integers::Halves6)
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

/// The bits of `x` above the low four, with the low four of `low`. In assembly, like the next one: the compiler makes three
/// instructions of what intrinsics say.
#[inline]
#[target_feature(enable = "neon")]
fn low_nibbles(mut x: uint8x16_t, low: uint8x16_t) -> uint8x16_t {
    // SAFETY: the instruction touches nothing but the registers named.
    unsafe {
        asm!(
            "bit {x:v}.16b, {low:v}.16b, {mask:v}.16b",
            x = inout(vreg) x, low = in(vreg) low, mask = in(vreg) constant(15),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}

/// The bits of `x` above the low four, with the high four of `high` below.
#[inline]
#[target_feature(enable = "neon")]
fn inserted(mut x: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
    // SAFETY: as above.
    unsafe {
        asm!(
            "sri {x:v}.16b, {high:v}.16b, #4",
            x = inout(vreg) x, high = in(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
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

/// The register as it is, of which the compiler knows nothing any more: constants it would make anew for each use.
#[inline]
#[target_feature(enable = "neon")]
fn hidden(mut x: uint8x16_t) -> uint8x16_t {
    // SAFETY: no instruction; the register comes out as it went in.
    unsafe { asm!("/* {0:v} */", inout(vreg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// A byte in all lanes.
#[inline]
#[target_feature(enable = "neon")]
fn constant(byte: u8) -> uint8x16_t {
    hidden(vdupq_n_u8(byte))
}

/// The bits of a code.
#[inline]
#[target_feature(enable = "neon")]
fn mask<const Q: usize>() -> uint8x16_t {
    let packing = const { &packing(Q) };
    constant((1 << ((packing.low + packing.high) % 8)) - 1)
}

/// The codes of `step`, from its [`bits`] and [`mask`]: four weights of four rows, unsigned or from the table. `BY_TWOS` if
/// those of step `step + 4` (`step - 4`) are made at the same time.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const Q: usize, const BY_TWOS: bool>(
    [low, high]: [uint8x16_t; 2],
    step: usize,
    mask: uint8x16_t,
) -> int8x16_t {
    let packing = const { &packing(Q) };
    let (bits, from) = match packing.low {
        2 => (2, step / 2 * 2),
        4 => (4, step / 4 * 4),
        _ => return vreinterpretq_s8_u8(low),
    };
    let code = if packing.high == 0 {
        let code = shifted(low, 0, from);
        if from + bits == 8 { code } else { vandq_u8(code, mask) }
    } else if packing.high == 2 && BY_TWOS {
        // Bits that would not be overwritten or fall off are cut off first, for two steps at once.
        let at = step / 2 * 2;
        let high = vandq_u8(high, constant(if at.is_multiple_of(4) { 0x33 } else { 0xcc }));
        let high = shifted(high, 4, at);
        if from == 0 { low_nibbles(high, low) } else { inserted(high, low) }
    } else {
        // The further bits go above the low ones, with others that are cut off at the end.
        let at = if packing.high == 1 { step } else { step / 2 * 2 };
        let code = match (bits, from) {
            (4, 0) => vsliq_n_u8::<4>(low, shifted(high, 0, at)),
            (4, _) => vsriq_n_u8::<4>(shifted(high, 4, at), low),
            _ => vsliq_n_u8::<2>(shifted(low, 0, from), shifted(high, 0, at)),
        };
        vandq_u8(code, mask)
    };
    match packing.table {
        // SAFETY: the table has 16 bytes.
        Some(table) => vqtbl1q_s8(unsafe { vld1q_s8(table.as_ptr()) }, code),
        None => vreinterpretq_s8_u8(code),
    }
}

/// 16 bytes of a section, or of activations, `$behind` (a constant) and `$at` from its first. By themselves: two
/// such loads in one instruction take a Cortex-A55 longer.
macro_rules! load_alone {
    ($section:expr, $at:expr, $behind:expr) => {{
        let out: uint8x16_t;
        // SAFETY: sections hold all groups and blocks of the columns, and callers ask for those alone, as for what blocks and
        // fours of activations hold; the load takes any alignment.
        unsafe {
            asm!(
                "ldr {out:q}, [{from}, #{behind}]",
                out = lateout(vreg) out, from = in(reg) $section.as_ptr().add($at), behind = const $behind,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        out
    }};
}

/// The [`bits`] of steps `STEP` and `STEP + 4`, which share bytes in most formats, of quad `I` behind `place`.
#[inline]
#[target_feature(enable = "neon")]
fn two_bits<const Q: usize, const I: usize, const STEP: usize>(place: &Place<'_>) -> [[uint8x16_t; 2]; 2] {
    let packing = const { &packing(Q) };
    let low = load_alone!(place.low, place.at[0], low_at(&self::packing(Q), STEP) + 16 * I);
    let second = match packing.low {
        8 => load_alone!(place.low, place.at[0], low_at(&self::packing(Q), STEP + 4) + 16 * I),
        _ => low,
    };
    let high = match packing.high {
        0 => vdupq_n_u8(0),
        _ => load_alone!(place.high, place.at[1], high_at(&self::packing(Q), STEP) + 16 * I),
    };
    [[low, high], [second, high]]
}

/// The [`codes`] of both.
#[inline]
#[target_feature(enable = "neon")]
fn two_codes<const Q: usize, const I: usize, const STEP: usize>(
    place: &Place<'_>,
    mask: uint8x16_t,
) -> [int8x16_t; 2] {
    let [first, second] = two_bits::<Q, I, STEP>(place);
    [codes::<Q, true>(first, STEP, mask), codes::<Q, true>(second, STEP + 4, mask)]
}

/// Puts the blocks of four tokens side by side: of each step the four codes of each token.
#[target_feature(enable = "neon")]
pub(super) fn arrange_steps(rows: [&[Q8Block]; FOUR], out: &mut [Q8Four]) {
    arrange::<false>(rows, out);
}

/// The same: of every two steps the eight codes of each token, so that `smmla` has two tokens in a register.
#[target_feature(enable = "neon")]
pub(super) fn arrange_eights(rows: [&[Q8Block]; FOUR], out: &mut [Q8Four]) {
    arrange::<true>(rows, out);
}

#[inline]
#[target_feature(enable = "neon")]
fn arrange<const EIGHTS: bool>(rows: [&[Q8Block]; FOUR], out: &mut [Q8Four]) {
    // A block and a four are whole registers: 32 codes, then four words; those of four tokens.
    const { assert!(size_of::<Q8Block>() == 48 && size_of::<Q8Four>() == FOUR * 48) };
    for (g, out) in out.iter_mut().enumerate() {
        for at in [0, 16, 32] {
            let of = |row: &[Q8Block]| {
                let from = std::ptr::from_ref(&row[g]).cast::<i32>();
                // SAFETY: `at` and the 16 bytes behind it lie inside a block; the load takes any alignment.
                unsafe { vld1q_s32(from.add(at / 4)) }
            };
            let (a, b, c, d) = (of(rows[0]), of(rows[1]), of(rows[2]), of(rows[3]));
            let to = std::ptr::from_mut(out).cast::<i32>();
            // SAFETY: four times `at` and the 64 bytes behind it lie inside a four; the stores take any alignment.
            unsafe {
                let to = to.add(at);
                if EIGHTS && at < Q8_BLOCK {
                    let [a, b, c, d] = [a, b, c, d].map(|x| vreinterpretq_s64_s32(x));
                    vst4q_s64(to.cast(), int64x2x4_t(a, b, c, d));
                } else {
                    vst4q_s32(to, int32x4x4_t(a, b, c, d));
                }
            }
        }
    }
}

/// The sums of the codes of both halves, of the [`Pair`]s of each lane.
#[inline]
#[target_feature(enable = "neon")]
fn sums_of_halves([first, both]: [uint32x4_t; 2]) -> [int32x4_t; 2] {
    let [first, both] = [first, both].map(|x| vreinterpretq_s16_u32(x));
    [vpaddlq_s16(first), vpaddlq_s16(vsubq_s16(both, first))]
}

/// 1.5 · 2^23. Its bits and those of a whole number of up to 2^22, added as integers, are the sum of both as a float:
/// cheaper than a conversion, which is slow on most cores.
const MAGIC: f32 = 12_582_912.0;

/// What sums of products begin with, `N` registers: loads, because cores load beside their multiplications, and copy registers
/// instead of them.
#[inline]
#[target_feature(enable = "neon")]
fn magic<const N: usize>() -> [int32x4_t; N] {
    static LANES: [f32; 4] = [MAGIC; 4];
    let mut out = [vdupq_n_s32(0); N];
    for out in &mut out {
        // SAFETY: four floats are there. Not said to be pure: of one such load the compiler would make copies.
        unsafe {
            asm!(
                "ldr {out:q}, [{from}]",
                out = lateout(vreg) *out, from = in(reg) LANES.as_ptr(),
                options(readonly, nostack, preserves_flags)
            );
        }
    }
    out
}

/// What is taken off sums that began with [`MAGIC`], of both halves, or of the group in the first, for the [`Pair`]s of each
/// lane: that, and what making codes unsigned added.
#[inline]
#[target_feature(enable = "neon")]
fn start<const Q: usize>([first, both]: [uint32x4_t; 2]) -> [float32x4_t; 2] {
    let packing = const { &packing(Q) };
    let magic = vdupq_n_s32(MAGIC.to_bits() as i32);
    let mut out = [magic; 2];
    if packing.bias != 0 {
        let shift = packing.bias.trailing_zeros() as i32;
        out[0] = vpaddlq_s16(vreinterpretq_s16_u32(both));
        if halves(packing) {
            out = sums_of_halves([first, both]);
        }
        for out in &mut out[..1 + usize::from(halves(packing))] {
            *out = vaddq_s32(magic, vshlq_s32(*out, vdupq_n_s32(shift)));
        }
    }
    [vreinterpretq_f32_s32(out[0]), vreinterpretq_f32_s32(out[1])]
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

/// The products of a tier over its `alone`, for one token, and its `tile` for several, up to eight where it is `$wide`. A macro,
/// because a function cannot be generic over its features.
macro_rules! products {
    ($features:literal, $twice:literal, $wide:literal) => {
        /// Indexed by format.
        pub(in crate::kernel::arm) const PRODUCTS: [Option<PackedFn>; Quant::COUNT] = table!(product);

        /// The products of a panel with all tokens: eight, four or two at a time, or one alone. A tile of three is not worth
        /// its code. Tiles take a run of groups each in turn, which stays in the first-level cache with its factors.
        #[target_feature(enable = $features)]
        fn product<const Q: usize>(panel: &[u8], _: Hints<'_>, x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
            let panel = Panel::new(const { &packing(Q) }, panel, x.n_cols);
            let n_groups = x.n_cols / Q8_BLOCK;
            let (together, rest) = sums.split_at_mut(sums.len() & !1);
            if let [sums] = rest {
                alone::<Q>(&panel, &x.row(together.len())[..n_groups], sums);
            }
            if together.is_empty() {
                return;
            }
            together.fill([0.0; PANEL]);
            let mut run = Run::<$twice>::new();
            for g in (0..n_groups).step_by(RUN) {
                let n = RUN.min(n_groups - g);
                run.fill::<Q>(&panel, g, n);
                let (mut sums, mut fours) = (&mut *together, x.fours);
                while !sums.is_empty() {
                    let four = |i: usize| &fours[i * n_groups..][g..g + n];
                    let taken = match &mut *sums {
                        [a, b, c, d, e, f, h, i, ..] if $wide => {
                            let sums = [a, b, c, d, e, f, h, i];
                            some::<Q, 8, 2, 1>(&panel, &run, g, [four(0), four(1)], sums)
                        }
                        [a, b, c, d, ..] => some::<Q, 4, 1, 2>(&panel, &run, g, [four(0)], [a, b, c, d]),
                        [a, b, ..] => some::<Q, 2, 1, 2>(&panel, &run, g, [four(0)], [a, b]),
                        _ => break,
                    };
                    sums = &mut sums[taken..];
                    fours = &fours[taken.div_ceil(FOUR) * n_groups..];
                }
            }
        }

        /// Adds the products of a run of groups from `g` on with `T` tokens, which are in `F` fours, `N` quads at a time; tells
        /// how many tokens those are.
        #[target_feature(enable = $features)]
        fn some<const Q: usize, const T: usize, const F: usize, const N: usize>(
            panel: &Panel<'_>,
            run: &Run<$twice>,
            g: usize,
            x: [&[Q8Four]; F],
            mut sums: [&mut [f32; PANEL]; T],
        ) -> usize {
            let n = x[0].len().min(RUN);
            for first in (0..4).step_by(N) {
                let mut found = begin(&sums, first);
                for j in 0..n {
                    let mut fours = [&x[0][0]; F];
                    for (four, x) in fours.iter_mut().zip(x) {
                        // A length that need not be checked.
                        *four = &x[..n][j];
                    }
                    let place = panel.codes(const { &packing(Q) }, g + j, 4 * first);
                    tile::<Q, T, F, N>(&place, &fours, run, j, first, &mut found);
                }
                end(&found, &mut sums, first);
            }
            T
        }
    };
}

/// The products of a tier for one token, over its `exact`.
macro_rules! alone {
    ($features:literal, $zip:literal) => {
        /// The products of a panel with a token.
        #[inline(never)]
        #[target_feature(enable = $features)]
        pub(super) fn alone<const Q: usize>(panel: &Panel<'_>, x: &[Q8Block], sums: &mut [f32; PANEL]) {
            let mut found = [vdupq_n_f32(0.0); 4];
            macro_rules! group {
                ($odd:literal, $floats:expr, $g:expr, $x:expr) => {
                    let exact = exact::<Q, 1, 4>(&panel.codes(const { &packing(Q) }, $g, 0), $x);
                    let factors = factors::<Q, $odd, $zip>(panel, $floats, $g);
                    let token = Token::new::<Q>($x.scale, $x.sum, [$x.first, $x.both]);
                    for (i, found) in found.iter_mut().enumerate() {
                        *found =
                            finish::<Q, 4>(&factors, i, &token, [exact[0][0][i], exact[1][0][i]], *found);
                    }
                };
            }
            if const { six_bits(&packing(Q)) } {
                for (b, x) in x.as_chunks::<8>().0.iter().enumerate() {
                    let floats = floats::<Q>(panel, b);
                    for (j, [first, second]) in x.as_chunks::<2>().0.iter().enumerate() {
                        group!(0, floats, 8 * b + 2 * j, first);
                        pin!(&mut found);
                        group!(1, floats, 8 * b + 2 * j + 1, second);
                    }
                }
            } else if const { packing(Q).groups == 8 && $zip } {
                for (b, x) in x.as_chunks::<8>().0.iter().enumerate() {
                    let floats = floats::<Q>(panel, b);
                    for (j, x) in x.iter().enumerate() {
                        group!(0, floats, 8 * b + j, x);
                    }
                }
            } else {
                // Plain NEON has no registers for floats of blocks.
                for (g, x) in x.iter().enumerate() {
                    group!(0, floats::<Q>(panel, g / const { packing(Q).groups }), g, x);
                }
            }
            store(&found, sums);
        }
    };
}

/// Sums of `N` quads and `T` tokens of a tile.
type Found<const T: usize, const N: usize> = [[float32x4_t; N]; T];

/// Those from quad `first` on.
#[inline]
#[target_feature(enable = "neon")]
fn begin<const T: usize, const N: usize>(sums: &[&mut [f32; PANEL]; T], first: usize) -> Found<T, N> {
    let mut found = [[vdupq_n_f32(0.0); N]; T];
    for (found, sums) in found.iter_mut().zip(sums) {
        for (found, sums) in found.iter_mut().zip(&sums.as_chunks::<4>().0[first..]) {
            // SAFETY: four floats are there; the load takes any alignment.
            *found = unsafe { vld1q_f32(sums.as_ptr()) };
        }
    }
    found
}

/// Puts them back.
#[inline]
#[target_feature(enable = "neon")]
fn end<const T: usize, const N: usize>(found: &Found<T, N>, sums: &mut [&mut [f32; PANEL]; T], first: usize) {
    for (found, sums) in found.iter().zip(sums) {
        store(found, &mut sums[4 * first..]);
    }
}

/// Writes registers.
#[inline]
#[target_feature(enable = "neon")]
fn store(found: &[float32x4_t], sums: &mut [f32]) {
    for (found, sums) in found.iter().zip(sums.as_chunks_mut::<4>().0) {
        // SAFETY: there is room for four floats; the store takes any alignment.
        unsafe { vst1q_f32(sums.as_mut_ptr(), *found) };
    }
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
mod factors;
mod i8mm;
mod neon;

pub(super) use dotprod::{PRODUCTS as DOTPROD, peak as dotprod_peak};
pub(super) use i8mm::{PRODUCTS as I8MM, peak as i8mm_peak};
pub(super) use neon::{PRODUCTS as NEON, peak as neon_peak};
