//! The 16 rows of a panel in one register of 512 bits.

use std::arch::x86_64::*;

use super::panel::load16;
use crate::kernel::PANEL;

/// Integers, of 8, 16 or 32 bits.
pub(super) type I = __m512i;
/// Floats.
pub(super) type F = __m512;
/// Registers of a panel.
pub(super) const N: usize = 1;
/// Bytes of one.
pub(super) const BYTES: usize = 64;

macro_rules! ops {
    ($(fn $name:ident $(<const $k:ident: i32>)? ($($arg:ident: $ty:ty),*) -> $out:ty { $body:expr })*) => {
        $(
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
            #[inline]
            pub(super) fn $name $(<const $k: i32>)? ($($arg: $ty),*) -> $out { $body }
        )*
    };
}

ops! {
    fn zero() -> I { _mm512_setzero_si512() }
    fn zero_floats() -> F { _mm512_setzero_ps() }
    fn right<const K: i32>(x: I) -> I { _mm512_srl_epi16(x, _mm_cvtsi32_si128(K)) }
    fn left<const K: i32>(x: I) -> I { _mm512_sll_epi16(x, _mm_cvtsi32_si128(K)) }
    fn keep(x: I, mask: u8) -> I { _mm512_and_si512(x, _mm512_set1_epi8(mask as i8)) }
    fn or(x: I, y: I) -> I { _mm512_or_si512(x, y) }
    fn flip(x: I) -> I { _mm512_xor_si512(x, _mm512_set1_epi8(-128)) }
    fn splat(x: i32) -> I { _mm512_set1_epi32(x) }
    fn add(x: I, y: I) -> I { _mm512_add_epi32(x, y) }
    fn mul(x: I, y: I) -> I { _mm512_mullo_epi32(x, y) }
    fn look_up(table: &[u8; 16], x: I) -> I { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load16(table, 0)), x) }
    fn float(x: I) -> F { _mm512_cvtepi32_ps(x) }
    fn splat_float(x: f32) -> F { _mm512_set1_ps(x) }
    fn times(x: F, y: F) -> F { _mm512_mul_ps(x, y) }
    fn fma(x: F, y: F, sum: F) -> F { _mm512_fmadd_ps(x, y, sum) }
    fn fnma(x: F, y: F, sum: F) -> F { _mm512_fnmadd_ps(x, y, sum) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
pub(super) fn load(bytes: &[u8], at: usize) -> I {
    let bytes: &[u8; BYTES] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 64 bytes are there; the load takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
fn load32(bytes: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[at..].first_chunk().expect("in the panel");
    // SAFETY: 32 bytes are there; the load takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// A byte of each row as 32 bits without sign.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn unsigned(bytes: __m128i, _i: usize) -> I {
    _mm512_cvtepu8_epi32(bytes)
}

/// The same with sign.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn signed(bytes: __m128i, _i: usize) -> I {
    _mm512_cvtepi8_epi32(bytes)
}

/// A float of each row.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn half_floats(bytes: &[u8], at: usize, _i: usize) -> F {
    _mm512_cvtph_ps(load32(bytes, at))
}

/// The same of their upper halves.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn brain_floats(bytes: &[u8], at: usize, _i: usize) -> F {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load32(bytes, at))))
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn load_floats(x: &[f32; PANEL], _i: usize) -> F {
    // SAFETY: 16 floats are there; the load takes any alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
#[inline]
pub(super) fn store_floats(x: F, y: &mut [f32; PANEL], _i: usize) {
    // SAFETY: there is room for 16 floats; the store takes any alignment.
    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), x) }
}
