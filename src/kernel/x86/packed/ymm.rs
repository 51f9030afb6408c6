//! The 16 rows of a panel in two registers of 256 bits.

use std::arch::x86_64::*;

use super::panel::load16;
use crate::kernel::PANEL;

/// Integers, of 8, 16 or 32 bits.
pub(super) type I = __m256i;
/// Floats.
pub(super) type F = __m256;
/// Registers of a panel.
pub(super) const N: usize = 2;
/// Bytes of one.
pub(super) const BYTES: usize = 32;

macro_rules! ops {
    ($(fn $name:ident $(<const $k:ident: i32>)? ($($arg:ident: $ty:ty),*) -> $out:ty { $body:expr })*) => {
        $(
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            pub(super) fn $name $(<const $k: i32>)? ($($arg: $ty),*) -> $out { $body }
        )*
    };
}

ops! {
    fn zero() -> I { _mm256_setzero_si256() }
    fn zero_floats() -> F { _mm256_setzero_ps() }
    fn right<const K: i32>(x: I) -> I { _mm256_srli_epi16::<K>(x) }
    fn left<const K: i32>(x: I) -> I { _mm256_slli_epi16::<K>(x) }
    fn keep(x: I, mask: u8) -> I { _mm256_and_si256(x, _mm256_set1_epi8(mask as i8)) }
    fn or(x: I, y: I) -> I { _mm256_or_si256(x, y) }
    fn flip(x: I) -> I { _mm256_xor_si256(x, _mm256_set1_epi8(-128)) }
    fn splat(x: i32) -> I { _mm256_set1_epi32(x) }
    fn add(x: I, y: I) -> I { _mm256_add_epi32(x, y) }
    fn mul(x: I, y: I) -> I { _mm256_mullo_epi32(x, y) }
    fn look_up(table: &[u8; 16], x: I) -> I { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(table, 0)), x) }
    fn float(x: I) -> F { _mm256_cvtepi32_ps(x) }
    fn splat_float(x: f32) -> F { _mm256_set1_ps(x) }
    fn times(x: F, y: F) -> F { _mm256_mul_ps(x, y) }
    fn fma(x: F, y: F, sum: F) -> F { _mm256_fmadd_ps(x, y, sum) }
    fn fnma(x: F, y: F, sum: F) -> F { _mm256_fnmadd_ps(x, y, sum) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load(bytes: &[u8], at: usize) -> I {
    let bytes: &[u8; BYTES] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// A byte of each row as 32 bits without sign, of register `i`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn unsigned(bytes: __m128i, i: usize) -> I {
    _mm256_cvtepu8_epi32(if i == 0 { bytes } else { _mm_srli_si128::<8>(bytes) })
}

/// The same with sign.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn signed(bytes: __m128i, i: usize) -> I {
    _mm256_cvtepi8_epi32(if i == 0 { bytes } else { _mm_srli_si128::<8>(bytes) })
}

/// A float of each row, of register `i`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn half_floats(bytes: &[u8], at: usize, i: usize) -> F {
    _mm256_cvtph_ps(load16(bytes, at + 16 * i))
}

/// The same of their upper halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn brain_floats(bytes: &[u8], at: usize, i: usize) -> F {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load16(bytes, at + 16 * i))))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn load_floats(x: &[f32; PANEL], i: usize) -> F {
    // SAFETY: eight floats are there, as i is 0 or 1; the load takes any alignment.
    unsafe { _mm256_loadu_ps(x.as_chunks::<8>().0[i].as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn store_floats(x: F, y: &mut [f32; PANEL], i: usize) {
    // SAFETY: there is room for eight floats, as i is 0 or 1; the store takes any alignment.
    unsafe { _mm256_storeu_ps(y.as_chunks_mut::<8>().0[i].as_mut_ptr(), x) }
}
