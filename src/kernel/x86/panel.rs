//! Reading packed weights, AVX2: a lane of a register is a row, two registers are the 16 rows of a panel.

use std::arch::x86_64::*;

use crate::kernel::PANEL;
use crate::quant::packed::{Float, Integers, Packing};
use crate::quant::{E2M1, Quant};

/// 16 rows: the first eight, the others.
pub(super) type Two = [__m256i; 2];

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
pub(super) fn load(bytes: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load16(bytes: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 16 bytes are there; the load takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Bits `FROM ..` of each byte as bits `TO ..`, of which `mask` are kept.
macro_rules! moved {
    ($x:expr, $from:expr, $to:expr, $mask:expr) => {{
        const LEFT: i32 = if $to > $from { $to - $from } else { 0 };
        const RIGHT: i32 = if $from > $to { $from - $to } else { 0 };
        let x = _mm256_srli_epi16::<RIGHT>(_mm256_slli_epi16::<LEFT>($x));
        _mm256_and_si256(x, _mm256_set1_epi8($mask as i8))
    }};
}

/// Codes of the step `$step` of a group: 8 rows in each of two registers. A macro, because what is not unrolled and
/// inlined here costs ten times the time.
macro_rules! codes {
    ($plan:expr, $part:expr, $step:literal) => {{
        let (packing, part) = (&$plan.packing, $part);
        let mut out = [_mm256_setzero_si256(); 2];
        for (i, out) in out.iter_mut().enumerate() {
            let low = match packing.low {
                2 => moved!(load(part.low, $step % 2 * 64 + 32 * i), $step / 2 * 2, 0, 3),
                4 => moved!(load(part.low, $step % 4 * 64 + 32 * i), $step / 4 * 4, 0, 15),
                _ => load(part.low, $step * 64 + 32 * i),
            };
            *out = match (packing.high, packing.low) {
                (0, _) => low,
                (1, 2) => _mm256_or_si256(low, moved!(load(part.high, 32 * i), $step, 2, 4)),
                (1, _) => _mm256_or_si256(low, moved!(load(part.high, 32 * i), $step, 4, 16)),
                _ => {
                    let high = load(part.high, $step % 2 * 64 + 32 * i);
                    _mm256_or_si256(low, moved!(high, $step / 2 * 2, 4, 48))
                }
            };
            if let Some(table) = &$plan.table {
                *out = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(table, 0)), *out);
            }
        }
        out
    }};
}

/// A byte of each row as pairs of 16-bit numbers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn doubled(bytes: __m128i) -> Two {
    let (low, high) = (_mm_unpacklo_epi8(bytes, bytes), _mm_unpackhi_epi8(bytes, bytes));
    [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
}

/// The bytes of each row as 32-bit floats.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn as_floats(bytes: __m128i) -> [__m256; 2] {
    [
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))),
    ]
}

/// Integers of a group, the `j`-th of its block: what sums of its halves are multiplied with, and the minima: bytes of
/// each row, of both halves or of the group.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn integers(packing: &Packing, part: &Part<'_>, j: usize) -> ([Two; 2], [__m128i; 2]) {
    let byte = |i: usize| load16(part.integers, i * PANEL);
    let nibble = _mm_set1_epi8(15);
    let high = |x: __m128i| _mm_and_si128(_mm_srli_epi16::<4>(x), nibble);
    let none = [_mm_setzero_si128(); 2];
    match packing.integers {
        Integers::None => ([[_mm256_set1_epi16(1); 2]; 2], none),
        Integers::Scale => ([doubled(byte(j)); 2], none),
        Integers::Halves => ([doubled(byte(2 * j)), doubled(byte(2 * j + 1))], none),
        Integers::HalvesAndMins => {
            let (scales, mins) = (byte(2 * j), byte(2 * j + 1));
            let scales = [doubled(_mm_and_si128(scales, nibble)), doubled(high(scales))];
            (scales, [_mm_and_si128(mins, nibble), high(mins)])
        }
        Integers::ScaleAndMin6 | Integers::Halves6 => {
            let (low, top) = (byte(j), byte(8 + j / 2));
            let top = if j.is_multiple_of(2) { top } else { _mm_srli_epi16::<4>(top) };
            let two = _mm_set1_epi8(0x30);
            let first =
                _mm_or_si128(_mm_and_si128(low, nibble), _mm_and_si128(_mm_slli_epi16::<4>(top), two));
            let second = _mm_or_si128(high(low), _mm_and_si128(_mm_slli_epi16::<2>(top), two));
            if packing.integers == Integers::ScaleAndMin6 {
                return ([doubled(first); 2], [second; 2]);
            }
            let signed = |x| doubled(_mm_sub_epi8(x, _mm_set1_epi8(32)));
            ([signed(first), signed(second)], none)
        }
    }
}

/// Float `i` of a block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn floats(packing: &Packing, part: &Part<'_>, i: usize) -> [__m256; 2] {
    let at = i * 2 * PANEL;
    let (low, high) = (load16(part.floats, at), load16(part.floats, at + 16));
    match packing.float {
        Float::F16 => [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)],
        Float::BF16 => {
            let wide = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)));
            [wide(low), wide(high)]
        }
    }
}

pub(super) use {codes, moved};
