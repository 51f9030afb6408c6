//! Products with packed weights. A few tokens are multiplied with codes as they are read; more, with codes that were
//! unpacked before, some groups at a time, which stay in the first-level cache.
//!
//! [`kernels!`] is what tiers have in common. A tier tells it its registers, how bytes that exact sums are multiplied with
//! are widened, and by `products!` how a group's exact sums are made. Floats go the same way in all of them, and as in products
//! with rows: their bits are equal.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::kernel::tensor::{Q8Block, Q8View};
use crate::kernel::{PANEL, Q8_BLOCK};

/// Bytes of a line of a cache.
const LINE: usize = 64;
/// Groups that are unpacked at a time: a block of the formats with the longest ones.
const UNIT: usize = 8;

/// Brings a panel into the second-level cache, so many lines for each group of the one before it: by itself a
/// processor of Zen 3 reads as if it computed and read in turns.
struct Ahead {
    at: *const u8,
    lines: usize,
}

impl Ahead {
    fn new(next: &[u8], n_groups: usize) -> Self {
        Self { at: next.as_ptr(), lines: next.len().div_ceil(LINE * n_groups) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn group(&mut self) {
        for _ in 0..self.lines {
            _mm_prefetch::<_MM_HINT_T1>(self.at.cast());
            self.at = self.at.wrapping_add(LINE);
        }
    }
}

/// The blocks of `T` tokens from `t` on, from group `first` on.
fn blocks<const T: usize>(x: &Q8View<'_>, t: usize, first: usize) -> [*const Q8Block; T] {
    let n_groups = x.n_cols / Q8_BLOCK;
    std::array::from_fn(|i| x.blocks.as_ptr().wrapping_add((t + i) * n_groups + first))
}

/// Bits `FROM ..` of each byte as bits `TO ..`, of which `mask` are kept.
macro_rules! moved {
    ($v:ident, $x:expr, $from:expr, $to:expr, $mask:expr) => {{
        const LEFT: i32 = if $to > $from { $to - $from } else { 0 };
        const RIGHT: i32 = if $from > $to { $from - $to } else { 0 };
        $v::keep($v::right::<RIGHT>($v::left::<LEFT>($x)), $mask)
    }};
}

/// Codes of the step `$step` of a group, in the registers of a panel. A macro, because what is not unrolled and inlined
/// here costs ten times the time.
macro_rules! codes {
    ($v:ident, $plan:expr, $part:expr, $step:literal) => {{
        let (packing, part) = (&$plan.packing, $part);
        let mut out = [$v::zero(); $v::N];
        for (i, out) in out.iter_mut().enumerate() {
            let low = match packing.low {
                2 => moved!($v, $v::load(part.low, $step % 2 * 64 + $v::BYTES * i), $step / 2 * 2, 0, 3),
                4 => moved!($v, $v::load(part.low, $step % 4 * 64 + $v::BYTES * i), $step / 4 * 4, 0, 15),
                _ => $v::load(part.low, $step * 64 + $v::BYTES * i),
            };
            *out = match (packing.high, packing.low) {
                (0, _) => low,
                (1, 2) => $v::or(low, moved!($v, $v::load(part.high, $v::BYTES * i), $step, 2, 4)),
                (1, _) => $v::or(low, moved!($v, $v::load(part.high, $v::BYTES * i), $step, 4, 16)),
                _ => {
                    let high = $v::load(part.high, $step % 2 * 64 + $v::BYTES * i);
                    $v::or(low, moved!($v, high, $step / 2 * 2, 4, 48))
                }
            };
            if let Some(table) = &$plan.table {
                *out = $v::look_up(table, *out);
            }
        }
        out
    }};
}

/// Adds what the exact sums of a group stand for to the float sums. A macro for the same reason.
macro_rules! add {
    ($v:ident, $plan:expr, $f:expr, $x:expr, $exact:expr, $sums:ident) => {
        leave($sums);
        for ((x, exact), sums) in $x.into_iter().zip($exact).zip(&mut *$sums) {
            let scale = $v::splat_float(x.scale);
            for i in 0..$v::N {
                let by = $v::times($f.d[i], scale);
                let mut sum = $v::fma($v::float(exact[i]), by, $v::load_floats(sums, i));
                if $plan.packing.mins {
                    sum = match $plan.packing.integers {
                        Integers::HalvesAndMins => {
                            let exact = of_halves(x, $f.half_mins[0][i], $f.half_mins[1][i]);
                            $v::fnma($v::float(exact), $v::times($f.min[i], scale), sum)
                        }
                        _ => $v::fnma($f.min[i], $v::splat_float(x.sum), sum),
                    };
                }
                $v::store_floats(sum, sums, i);
            }
        }
    };
}

/// Keeps float sums in memory from group to group: for all the compiler knows they are read here. Registers are needed for
/// the exact sums.
#[inline]
fn leave<const T: usize>(sums: &mut [[f32; PANEL]; T]) {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", in(reg) sums.as_mut_ptr(), options(nostack, preserves_flags)) };
}

/// The kernels of a tier with these features and registers `$v`: a tile has at most `$tile` tokens, and
/// `$products!(v, plan, x, scales, codes)` makes the exact sums of a group. Beside that the place has `widened`, a byte of
/// each row as that multiplies exact sums, and `of_halves`, a block's activations times the minima of a group's halves.
macro_rules! kernels {
    ($features:literal, $v:ident, $tile:literal, $products:ident) => {
        /// Indexed by format.
        pub(in crate::kernel) const PRODUCTS: [Option<PackedFn>; Quant::COUNT] = table!(
            product: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4
        );

        /// What the exact sums of a group are multiplied with, and its minima.
        #[derive(Clone, Copy)]
        struct Factors {
            /// Of each half.
            scales: [[$v::I; $v::N]; 2],
            d: [$v::F; $v::N],
            /// That of the group; of halves, what theirs are multiplied with.
            min: [$v::F; $v::N],
            half_mins: [[$v::I; $v::N]; 2],
        }

        impl Factors {
            /// Those of a group, the `j`-th of its block, with the floats of that.
            #[target_feature(enable = $features)]
            #[inline]
            fn read(plan: &Plan, part: &Part<'_>, j: usize, d: [$v::F; $v::N], dmin: [$v::F; $v::N]) -> Self {
                let (scales, mins) = integers(&plan.packing, part, j);
                let mut min = dmin;
                if plan.packing.integers == Integers::ScaleAndMin6 {
                    for (i, min) in min.iter_mut().enumerate() {
                        *min = $v::times(*min, $v::float($v::unsigned(mins[0], i)));
                    }
                }
                Self {
                    scales: [widened(scales[0]), widened(scales[1])],
                    d,
                    min,
                    half_mins: [widened(mins[0]), widened(mins[1])],
                }
            }
        }

        /// Float `i` of a block.
        #[target_feature(enable = $features)]
        #[inline]
        fn floats(packing: &Packing, part: &Part<'_>, i: usize) -> [$v::F; $v::N] {
            let at = i * 2 * PANEL;
            let mut out = [$v::zero_floats(); $v::N];
            for (k, out) in out.iter_mut().enumerate() {
                *out = match packing.float {
                    Float::F16 => $v::half_floats(part.floats, at, k),
                    Float::BF16 => $v::brain_floats(part.floats, at, k),
                };
            }
            out
        }

        /// Adds the products of a panel with tokens `x` to their sums. Each has one float sum, groups in ascending order.
        ///
        /// # Safety
        /// The panel has the sections of its columns, and each of `x` a block for every group.
        #[target_feature(enable = $features)]
        unsafe fn tile<const Q: usize, const T: usize>(
            sections: Sections<'_>,
            ahead: &mut Ahead,
            n_groups: usize,
            x: [*const Q8Block; T],
            sums: &mut [[f32; PANEL]; T],
        ) {
            let plan = &const { plan(Q) };
            let packing = &plan.packing;
            for b in 0..n_groups / packing.groups {
                // SAFETY: the caller's promise.
                let block = unsafe { sections.part(b * packing.groups) };
                let d = floats(packing, &block, 0);
                let dmin = if packing.mins { floats(packing, &block, 1) } else { d };
                for j in 0..packing.groups {
                    let g = b * packing.groups + j;
                    ahead.group();
                    // SAFETY: the caller's promise.
                    let part = unsafe { sections.part(g) };
                    // SAFETY: the caller's promise.
                    let x: [&Q8Block; T] = std::array::from_fn(|t| unsafe { &*x[t].add(g) });
                    let factors = Factors::read(plan, &part, j, d, dmin);
                    let exact = $products!($v, plan, x, factors.scales, (read part));
                    add!($v, plan, factors, x, exact, sums);
                }
            }
        }

        /// Some groups of a panel, their codes a byte each.
        #[derive(Clone, Copy)]
        struct Unpacked {
            codes: [[$v::I; $v::N]; 8],
            factors: Factors,
        }

        /// As [`tile`], of unpacked groups, with the same bits.
        ///
        /// # Safety
        /// Each of `x` has a block for every group.
        #[target_feature(enable = $features)]
        unsafe fn unpacked_tile<const Q: usize, const T: usize>(
            groups: &[Unpacked],
            x: [*const Q8Block; T],
            sums: &mut [[f32; PANEL]; T],
        ) {
            let plan = &const { plan(Q) };
            for (g, group) in groups.iter().enumerate() {
                // SAFETY: the caller's promise.
                let x: [&Q8Block; T] = std::array::from_fn(|t| unsafe { &*x[t].add(g) });
                let exact = $products!($v, plan, x, group.factors.scales, (taken group));
                add!($v, plan, group.factors, x, exact, sums);
            }
        }

        /// Unpacks groups `first ..` of a panel.
        ///
        /// # Safety
        /// The panel has the sections of its columns, and those groups.
        #[target_feature(enable = $features)]
        unsafe fn unpack<const Q: usize>(
            sections: Sections<'_>,
            ahead: &mut Ahead,
            first: usize,
            out: &mut [Unpacked],
        ) {
            let plan = &const { plan(Q) };
            let packing = &plan.packing;
            for (g, out) in (first..).zip(out) {
                ahead.group();
                // SAFETY: the caller's promise.
                let part = unsafe { sections.part(g) };
                let d = floats(packing, &part, 0);
                let dmin = if packing.mins { floats(packing, &part, 1) } else { d };
                out.factors = Factors::read(plan, &part, g % packing.groups, d, dmin);
                out.codes[0] = codes!($v, plan, &part, 0);
                out.codes[1] = codes!($v, plan, &part, 1);
                out.codes[2] = codes!($v, plan, &part, 2);
                out.codes[3] = codes!($v, plan, &part, 3);
                out.codes[4] = codes!($v, plan, &part, 4);
                out.codes[5] = codes!($v, plan, &part, 5);
                out.codes[6] = codes!($v, plan, &part, 6);
                out.codes[7] = codes!($v, plan, &part, 7);
            }
        }

        /// The products of a panel with all tokens.
        #[target_feature(enable = $features)]
        fn product<const Q: usize>(panel: &[u8], hints: Hints<'_>, x: &Q8View<'_>, sums: &mut [[f32; PANEL]]) {
            let plan = const { plan(Q) };
            let packing = plan.packing;
            assert!(
                x.n_cols.is_multiple_of(Q8_BLOCK * packing.groups)
                    && panel.len() == packing.sections(x.n_cols)[4]
                    && x.blocks.len() == sums.len() * x.n_cols / Q8_BLOCK,
                "a panel of {} columns",
                x.n_cols
            );
            sums.fill([0.0; PANEL]);
            let n_groups = x.n_cols / Q8_BLOCK;
            let sections = Sections::new(&packing, panel, x.n_cols);
            let mut ahead = Ahead::new(hints.next, n_groups);
            if plan.wide || sums.len() < hints.unpack_from {
                let mut t = 0;
                while t < sums.len() {
                    t += match sums.len() - t {
                        1 => some::<Q, 1>(sections, &mut ahead, x, t, sums),
                        2 => some::<Q, 2>(sections, &mut ahead, x, t, sums),
                        3 => some::<Q, 3>(sections, &mut ahead, x, t, sums),
                        n if n < $tile => some::<Q, 4>(sections, &mut ahead, x, t, sums),
                        _ => some::<Q, $tile>(sections, &mut ahead, x, t, sums),
                    };
                    ahead.lines = 0;
                }
                return;
            }
            let zero = Factors {
                scales: [[$v::zero(); $v::N]; 2],
                d: [$v::zero_floats(); $v::N],
                min: [$v::zero_floats(); $v::N],
                half_mins: [[$v::zero(); $v::N]; 2],
            };
            let mut unit = [Unpacked { codes: [[$v::zero(); $v::N]; 8], factors: zero }; UNIT];
            for first in (0..n_groups).step_by(UNIT) {
                let unit = &mut unit[..UNIT.min(n_groups - first)];
                // SAFETY: the panel was checked above, and these groups are below n_groups.
                unsafe { unpack::<Q>(sections, &mut ahead, first, unit) };
                let mut t = 0;
                while t < sums.len() {
                    t += match sums.len() - t {
                        1 => some_unpacked::<Q, 1>(unit, first, x, t, sums),
                        2 => some_unpacked::<Q, 2>(unit, first, x, t, sums),
                        3 => some_unpacked::<Q, 3>(unit, first, x, t, sums),
                        n if n < $tile => some_unpacked::<Q, 4>(unit, first, x, t, sums),
                        _ => some_unpacked::<Q, $tile>(unit, first, x, t, sums),
                    };
                }
            }
        }

        /// The products of a panel, which [`product`] checked, with `T` tokens from `t` on. Returns `T`.
        #[target_feature(enable = $features)]
        fn some<const Q: usize, const T: usize>(
            sections: Sections<'_>,
            ahead: &mut Ahead,
            x: &Q8View<'_>,
            t: usize,
            sums: &mut [[f32; PANEL]],
        ) -> usize {
            let Some(sums) = sums[t..].first_chunk_mut() else { return T };
            // SAFETY: `product` checked the panel, and that each of these tokens has all its blocks.
            unsafe { tile::<Q, T>(sections, ahead, x.n_cols / Q8_BLOCK, blocks(x, t, 0), sums) };
            T
        }

        /// The same, of groups `first ..`, unpacked.
        #[target_feature(enable = $features)]
        fn some_unpacked<const Q: usize, const T: usize>(
            groups: &[Unpacked],
            first: usize,
            x: &Q8View<'_>,
            t: usize,
            sums: &mut [[f32; PANEL]],
        ) -> usize {
            let Some(sums) = sums[t..].first_chunk_mut() else { return T };
            // SAFETY: `product` checked that each of these tokens has all its blocks; these groups are some of them.
            unsafe { unpacked_tile::<Q, T>(groups, blocks(x, t, first), sums) };
            T
        }
    };
}

macro_rules! table {
    ($product:ident: $($quant:ident)*) => {{
        let mut all: [Option<PackedFn>; Quant::COUNT] = [None; Quant::COUNT];
        $(all[Quant::$quant as usize] = Some($product::<{ Quant::$quant as usize }>);)*
        all
    }};
}

/// Codes of a step, read from a panel or taken from what was unpacked.
macro_rules! step_codes {
    ($v:ident, $plan:expr, (read $part:ident), $step:literal) => {
        codes!($v, $plan, &$part, $step)
    };
    ($v:ident, $plan:expr, (taken $group:ident), $step:literal) => {
        $group.codes[$step]
    };
}

mod avx2;
mod panel;
#[cfg(test)]
mod twice;
mod vnni;
mod ymm;
mod zmm;

pub(super) use avx2::{PRODUCTS as AVX2, peak as avx2_peak};
pub(super) use panel::TWO_WAYS;
#[cfg(test)]
pub(super) use vnni::model;
pub(super) use vnni::{avx_vnni, avx512};
