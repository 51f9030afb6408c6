//! What a panel of packed weights has where, and its integers: the same for all tiers of x86-64.

use std::arch::x86_64::*;

use crate::kernel::PANEL;
use crate::quant::packed::{Integers, Packing};
use crate::quant::{E2M1, Quant};

/// What is known of a format when its kernel is compiled.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub packing: Packing,
    /// Codes are signed, of 8 bits.
    pub wide: bool,
    /// Both halves of a group have a scale.
    pub halves: bool,
    /// Taken off the unsigned codes in 16-bit sums.
    pub bias: i16,
    /// It is put back behind: the codes were unsigned, and only their sums would not have fitted.
    pub back: bool,
    /// E2M1 with `bias` added.
    pub table: Option<[u8; 16]>,
}

/// Formats whose codes may be unpacked before: bytes are codes already.
pub(in crate::kernel::x86) const TWO_WAYS: [bool; Quant::COUNT] = {
    let mut all = [false; Quant::COUNT];
    let mut i = 0;
    while i < Quant::COUNT {
        all[i] = Packing::of(Quant::ALL[i]).is_some() && !plan(i).wide;
        i += 1;
    }
    all
};

pub(super) const fn plan(quant: usize) -> Plan {
    let Some(packing) = Packing::of(Quant::ALL[quant]) else { panic!("a format without blocks") };
    let halves = matches!(packing.integers, Integers::Halves | Integers::Halves6 | Integers::HalvesAndMins);
    let mut plan =
        Plan { packing, wide: packing.low == 8, halves, bias: packing.bias as i16, back: false, table: None };
    if let Some(values) = packing.table {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = values[i] as u8;
            i += 1;
        }
        plan.table = Some(table);
    }
    if let Quant::MXFP4 = Quant::ALL[quant] {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = (E2M1[i] + 12) as u8;
            i += 1;
        }
        plan.table = Some(table);
        plan.bias = 12;
    } else if packing.table.is_some() {
        plan.wide = true;
    } else if packing.high == 1 && packing.bias == 0 {
        plan.bias = 16;
        plan.back = true;
    }
    plan
}

/// What a panel has for one group: its codes; integers and floats are those of its block.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub low: &'a [u8],
    pub high: &'a [u8],
    pub integers: &'a [u8],
    pub floats: &'a [u8],
}

/// Where a panel of so many columns has what.
#[derive(Clone, Copy)]
pub(super) struct Sections<'a> {
    panel: &'a [u8],
    groups: usize,
    starts: [usize; 4],
    lens: [usize; 4],
}

impl<'a> Sections<'a> {
    pub(super) fn new(packing: &Packing, panel: &'a [u8], n_cols: usize) -> Self {
        let [low, high, integers, floats, _] = packing.sections(n_cols);
        Self { panel, groups: packing.groups, starts: [low, high, integers, floats], lens: packing.parts() }
    }

    /// Group `g`.
    ///
    /// # Safety
    /// The panel has the sections of its columns, and they have such a group.
    #[inline]
    pub(super) unsafe fn part(&self, g: usize) -> Part<'a> {
        let of = |section: usize, i: usize| {
            let (start, len) = (self.starts[section], self.lens[section]);
            // SAFETY: the caller's promise: group and block lie inside their sections.
            unsafe { self.panel.get_unchecked(start + i * len..start + (i + 1) * len) }
        };
        let b = g / self.groups;
        Part { low: of(0, g), high: of(1, g), integers: of(2, b), floats: of(3, b) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load16(bytes: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Integers of a group, the `j`-th of its block, a byte of each row: what sums of its halves are multiplied with, signed,
/// and the minima, of both halves or of the group.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn integers(packing: &Packing, part: &Part<'_>, j: usize) -> ([__m128i; 2], [__m128i; 2]) {
    let byte = |i: usize| load16(part.integers, i * PANEL);
    let nibble = _mm_set1_epi8(15);
    let high = |x: __m128i| _mm_and_si128(_mm_srli_epi16::<4>(x), nibble);
    let none = [_mm_setzero_si128(); 2];
    match packing.integers {
        Integers::None => ([_mm_set1_epi8(1); 2], none),
        Integers::Scale => ([byte(j); 2], none),
        Integers::Halves => ([byte(2 * j), byte(2 * j + 1)], none),
        Integers::HalvesAndMins => {
            let (scales, mins) = (byte(2 * j), byte(2 * j + 1));
            ([_mm_and_si128(scales, nibble), high(scales)], [_mm_and_si128(mins, nibble), high(mins)])
        }
        Integers::ScaleAndMin6 | Integers::Halves6 => {
            let (low, top) = (byte(j), byte(8 + j / 2));
            let top = if j.is_multiple_of(2) { top } else { _mm_srli_epi16::<4>(top) };
            let two = _mm_set1_epi8(0x30);
            let first =
                _mm_or_si128(_mm_and_si128(low, nibble), _mm_and_si128(_mm_slli_epi16::<4>(top), two));
            let second = _mm_or_si128(high(low), _mm_and_si128(_mm_slli_epi16::<2>(top), two));
            if packing.integers == Integers::ScaleAndMin6 {
                return ([first; 2], [second; 2]);
            }
            let signed = |x| _mm_sub_epi8(x, _mm_set1_epi8(32));
            ([signed(first), signed(second)], none)
        }
    }
}
