//! What sums of products are multiplied with and how they are added up: the same code for all tiers.

use super::*;
use crate::quant::packed::Float;

/// Four quads.
pub(super) type Rows16 = [float32x4_t; 4];

/// Small integers of rows as floats: signed, or, less than 1,024, not.
#[inline]
#[target_feature(enable = "neon")]
fn widened<const ZIP: bool>(bytes: uint8x16_t, signed: bool) -> Rows16 {
    let mut out = [vdupq_n_f32(0.0); 4];
    if ZIP {
        // As the last bits of 2^23, which is faster than conversions where dot products are.
        let bytes = if signed { veorq_u8(bytes, constant(0x80)) } else { bytes };
        let (zero, exponent) =
            (constant(0), vreinterpretq_u16_u8(hidden(vreinterpretq_u8_u16(vdupq_n_u16(0x4b00)))));
        let offset = vdupq_n_f32(if signed { 8_388_736.0 } else { 8_388_608.0 });
        let offset = vreinterpretq_f32_u8(hidden(vreinterpretq_u8_f32(offset)));
        let two = [vzip1q_u8(bytes, zero), vzip2q_u8(bytes, zero)];
        for (out, eight) in out.as_chunks_mut::<2>().0.iter_mut().zip(two) {
            let eight = vreinterpretq_u16_u8(eight);
            let four = [vzip1q_u16(eight, exponent), vzip2q_u16(eight, exponent)];
            *out = four.map(|four| vsubq_f32(vreinterpretq_f32_u16(four), offset));
        }
        return out;
    }
    let bytes = vreinterpretq_s8_u8(bytes);
    let two = [vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))];
    for (out, eight) in out.as_chunks_mut::<2>().0.iter_mut().zip(two) {
        let four = [vmovl_s16(vget_low_s16(eight)), vmovl_s16(vget_high_s16(eight))];
        *out = four.map(|four| vcvtq_f32_s32(four));
    }
    out
}

/// Sixteen-bit floats of eight rows.
#[inline]
#[target_feature(enable = "neon")]
fn widened_floats(eight: uint16x8_t, float: Float) -> [float32x4_t; 2] {
    let mut out = [vdupq_n_f32(0.0); 2];
    for (four, out) in [vget_low_u16(eight), vget_high_u16(eight)].into_iter().zip(&mut out) {
        *out = match float {
            Float::F16 => vcvt_f32_f16(vreinterpret_f16_u16(four)),
            Float::BF16 => vreinterpretq_f32_u32(vshll_n_u16::<16>(four)),
        };
    }
    out
}

/// Bytes of rows times 2^-24: as the smallest of 16-bit floats, for which there is an instruction less.
#[inline]
#[target_feature(enable = "neon")]
fn tiny(bytes: uint8x16_t) -> Rows16 {
    let [a, b] = widened_floats(vmovl_u8(vget_low_u8(bytes)), Float::F16);
    let [c, d] = widened_floats(vmovl_high_u8(bytes), Float::F16);
    [a, b, c, d]
}

/// `d` and `dmin` of a block. That of formats with a minimum for a group is times -2^24, see [`tiny`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn floats<const Q: usize>(panel: &Panel<'_>, b: usize) -> [Rows16; 2] {
    let packing = const { &packing(Q) };
    let each = if packing.mins { 2 } else { 1 };
    let mut out = [[vdupq_n_f32(0.0); 4]; 2];
    for (i, out) in out.iter_mut().enumerate().take(each) {
        let at = (b * each + i) * PANEL * 2;
        for (j, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let eight = vreinterpretq_u16_u8(load(panel.floats, at + 16 * j));
            *out = widened_floats(eight, packing.float);
        }
    }
    if let Integers::ScaleAndMin6 = packing.integers {
        out[1] = out[1].map(|dmin| vmulq_f32(dmin, vdupq_n_f32(-16_777_216.0)));
    }
    out
}

/// The factors of group `g`, which is the second of two if it is `ODD`, with the floats of its block.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn factors<const Q: usize, const ODD: usize, const ZIP: bool>(
    panel: &Panel<'_>,
    [d, mut dmin]: [Rows16; 2],
    g: usize,
) -> Factors<4> {
    let packing = const { &packing(Q) };
    let byte = |i: usize| load(panel.integers, i * PANEL);
    let none = [[vdupq_n_f32(0.0); 4]; 2];
    let (scales, mins) = match packing.integers {
        Integers::None => (none, none),
        Integers::Scale => ([widened::<ZIP>(byte(g), true), none[1]], none),
        Integers::Halves => {
            ([widened::<ZIP>(byte(2 * g), true), widened::<ZIP>(byte(2 * g + 1), true)], none)
        }
        Integers::HalvesAndMins => {
            let (scales, mins) = (byte(2 * g), byte(2 * g + 1));
            (
                [widened::<ZIP>(and(scales, 15), false), widened::<ZIP>(vshrq_n_u8::<4>(scales), false)],
                [widened::<ZIP>(and(mins, 15), false), widened::<ZIP>(vshrq_n_u8::<4>(mins), false)],
            )
        }
        Integers::ScaleAndMin6 | Integers::Halves6 => {
            let (at, j) = (g / 8 * 12, g % 8);
            let (low, top) = (byte(at + j), byte(at + 8 + j / 2));
            // The two high bits above the four low ones: from places 0 and 2, or from 4 and 6.
            let [first, second] = if ODD == 0 {
                [vsliq_n_u8::<4>(low, top), vsriq_n_u8::<4>(vshlq_n_u8::<2>(top), low)]
            } else {
                [vsliq_n_u8::<4>(low, vshrq_n_u8::<4>(top)), vsriq_n_u8::<4>(vshrq_n_u8::<2>(top), low)]
            };
            let six = constant(63);
            let (first, second) =
                (vandq_u8(first, six), if ODD == 0 { vandq_u8(second, six) } else { second });
            if let Integers::Halves6 = packing.integers {
                let [first, second] = [first, second].map(|x| vsubq_u8(x, vdupq_n_u8(32)));
                ([widened::<ZIP>(first, true), widened::<ZIP>(second, true)], none)
            } else {
                for (dmin, min) in dmin.iter_mut().zip(tiny(second)) {
                    *dmin = vmulq_f32(*dmin, min);
                }
                ([widened::<ZIP>(first, false), none[1]], none)
            }
        }
    };
    Factors { scales, d, mins, dmin }
}

/// What the sums of a group are multiplied with, for `N` quads.
pub(super) struct Factors<const N: usize> {
    /// Of both halves, or of the group in the first.
    scales: [[float32x4_t; N]; 2],
    d: [float32x4_t; N],
    /// Minima of both halves.
    mins: [[float32x4_t; N]; 2],
    /// What they are multiplied with; where the group has one minimum, the product, less than 0.
    dmin: [float32x4_t; N],
}

/// What a token multiplies sums with, a number for each lane: scale, scaled sum of codes, sums of codes of both halves.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) scale: float32x4_t,
    pub(super) sum: float32x4_t,
    pub(super) halves: [float32x4_t; 2],
}

impl Token {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn new<const Q: usize>(scale: f32, sum: f32, [first, both]: [Pair; 2]) -> Self {
        Self::of::<Q>(vdupq_n_f32(scale), vdupq_n_f32(sum), [vdupq_n_u32(first), vdupq_n_u32(both)])
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn of<const Q: usize>(scale: float32x4_t, sum: float32x4_t, pairs: [uint32x4_t; 2]) -> Self {
        let mut halves = [vdupq_n_f32(0.0); 2];
        if let Integers::HalvesAndMins = const { &packing(Q) }.integers {
            halves = sums_of_halves(pairs).map(|sum| vcvtq_f32_s32(sum));
        }
        Self { scale, sum, halves }
    }

    /// Those of four tokens, a lane each, and what is taken off their sums ([`start`]).
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn four<const Q: usize>(x: &Q8Four) -> (Self, [float32x4_t; 2]) {
        let x = std::slice::from_ref(x);
        let pairs = [
            load_alone!(x, 0, std::mem::offset_of!(Q8Four, first)),
            load_alone!(x, 0, std::mem::offset_of!(Q8Four, both)),
        ];
        let floats = [
            load_alone!(x, 0, std::mem::offset_of!(Q8Four, scale)),
            load_alone!(x, 0, std::mem::offset_of!(Q8Four, sum)),
        ];
        let pairs = pairs.map(|pair| vreinterpretq_u32_u8(pair));
        let [scale, sum] = floats.map(|x| vreinterpretq_f32_u8(x));
        (Self::of::<Q>(scale, sum, pairs), start::<Q>(pairs))
    }

    /// The same with other lanes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn with(&self, lanes: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self { scale: lanes(self.scale), sum: lanes(self.sum), halves: self.halves.map(lanes) }
    }
}

/// Adds the sums of a group, times the `i`-th factors, to a sum: one float sum for each row and token, groups in ascending
/// order. Sums times integers are exact, for they stay below 2^24: at most 2 · 16 · 32 · 127 · 128 (Q6_K).
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn finish<const Q: usize, const N: usize>(
    factors: &Factors<N>,
    i: usize,
    x: &Token,
    exact: [float32x4_t; 2],
    sum: float32x4_t,
) -> float32x4_t {
    let packing = const { &packing(Q) };
    let Factors { scales, d, mins, dmin } = factors;
    let exact = match packing.integers {
        Integers::None => exact[0],
        Integers::Scale | Integers::ScaleAndMin6 => vmulq_f32(exact[0], scales[0][i]),
        _ => vfmaq_f32(vmulq_f32(exact[0], scales[0][i]), exact[1], scales[1][i]),
    };
    let sum = vfmaq_f32(sum, exact, vmulq_f32(d[i], x.scale));
    if !packing.mins {
        sum
    } else if let Integers::HalvesAndMins = packing.integers {
        let exact = vfmaq_f32(vmulq_f32(mins[0][i], x.halves[0]), mins[1][i], x.halves[1]);
        vfmsq_f32(sum, exact, vmulq_f32(dmin[i], x.scale))
    } else if let Integers::ScaleAndMin6 = packing.integers {
        vfmaq_f32(sum, dmin[i], x.sum)
    } else {
        vfmsq_f32(sum, dmin[i], x.sum)
    }
}

/// Groups whose factors are made ready at once: a block of 256 weights, or eight of 32.
pub(super) const RUN: usize = 8;

/// Factors of a run of groups, made ready once for all tokens. A row is there `TWICE` or once, beside itself.
pub(super) struct Run<const TWICE: usize> {
    factors: [[[[f32; 4]; TWICE]; 4]; RUN * 6],
}

impl<const TWICE: usize> Run<TWICE> {
    /// Which of the six a format has: scales and minima of both halves, `d`, `dmin`.
    const fn has<const Q: usize>() -> [bool; 6] {
        let packing = &packing(Q);
        let both = halves(packing);
        let scale = !matches!(packing.integers, Integers::None);
        let mins = matches!(packing.integers, Integers::HalvesAndMins);
        [scale, both, true, mins, mins, packing.mins]
    }

    pub(super) const fn new() -> Self {
        Self { factors: [[[[0.0; 4]; TWICE]; 4]; RUN * 6] }
    }

    /// Takes the factors of `n` groups from `first` on.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn fill<const Q: usize>(&mut self, panel: &Panel<'_>, first: usize, n: usize) {
        let groups = const { packing(Q).groups };
        let mut of_block = floats::<Q>(panel, first / groups);
        for (j, g) in (first..first + n).enumerate() {
            if groups == 1 {
                of_block = floats::<Q>(panel, g);
            }
            let Factors { scales, d, mins, dmin } = match g % 2 {
                0 => factors::<Q, 0, false>(panel, of_block, g),
                _ => factors::<Q, 1, false>(panel, of_block, g),
            };
            let all = [scales[0], scales[1], d, mins[0], mins[1], dmin];
            for (k, (of_rows, has)) in all.into_iter().zip(const { Self::has::<Q>() }).enumerate() {
                if !has {
                    continue;
                }
                for (quad, to) in of_rows.into_iter().zip(&mut self.factors[RUN * k + j]) {
                    let lanes = match TWICE {
                        1 => [quad; 2],
                        _ => [vzip1q_f32(quad, quad), vzip2q_f32(quad, quad)],
                    };
                    for (lanes, to) in lanes.into_iter().zip(to) {
                        // SAFETY: there is room for four floats; the store takes any alignment.
                        unsafe { vst1q_f32(to.as_mut_ptr(), lanes) };
                    }
                }
            }
        }
    }

    /// Those of quad `i` of the `j`-th group.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn quad<const Q: usize>(&self, j: usize, i: usize) -> Factors<TWICE> {
        let mut all = [[vdupq_n_f32(0.0); TWICE]; 6];
        for (k, (of_rows, has)) in all.iter_mut().zip(const { Self::has::<Q>() }).enumerate() {
            for (lanes, from) in of_rows.iter_mut().zip(&self.factors[RUN * k + j][i]) {
                if has {
                    // SAFETY: four floats are there; the load takes any alignment.
                    *lanes = unsafe { vld1q_f32(from.as_ptr()) };
                }
            }
        }
        let [first, second, d, min, min_of_second, dmin] = all;
        Factors { scales: [first, second], d, mins: [min, min_of_second], dmin }
    }
}
