//! The 16 rows of a panel as one register of 512 bits has them, in two of 256: a model for tests.

use std::arch::x86_64::*;

use super::ymm;
use crate::kernel::PANEL;

pub(super) type I = [ymm::I; 2];
pub(super) type F = [ymm::F; 2];
pub(super) const N: usize = 1;
pub(super) const BYTES: usize = 64;

macro_rules! both {
    ($(fn $name:ident $(<const $k:ident: i32>)? ($($arg:ident: $ty:ty),*) -> $out:ty { |$i:ident| $body:expr })*) => {
        $(
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            pub(super) fn $name $(<const $k: i32>)? ($($arg: $ty),*) -> $out {
                [{ let $i = 0; $body }, { let $i = 1; $body }]
            }
        )*
    };
}

both! {
    fn zero() -> I { |_i| ymm::zero() }
    fn zero_floats() -> F { |_i| ymm::zero_floats() }
    fn right<const K: i32>(x: I) -> I { |i| ymm::right::<K>(x[i]) }
    fn left<const K: i32>(x: I) -> I { |i| ymm::left::<K>(x[i]) }
    fn keep(x: I, mask: u8) -> I { |i| ymm::keep(x[i], mask) }
    fn or(x: I, y: I) -> I { |i| ymm::or(x[i], y[i]) }
    fn flip(x: I) -> I { |i| ymm::flip(x[i]) }
    fn splat(x: i32) -> I { |_i| ymm::splat(x) }
    fn add(x: I, y: I) -> I { |i| ymm::add(x[i], y[i]) }
    fn mul(x: I, y: I) -> I { |i| ymm::mul(x[i], y[i]) }
    fn look_up(table: &[u8; 16], x: I) -> I { |i| ymm::look_up(table, x[i]) }
    fn float(x: I) -> F { |i| ymm::float(x[i]) }
    fn splat_float(x: f32) -> F { |_i| ymm::splat_float(x) }
    fn times(x: F, y: F) -> F { |i| ymm::times(x[i], y[i]) }
    fn fma(x: F, y: F, sum: F) -> F { |i| ymm::fma(x[i], y[i], sum[i]) }
    fn fnma(x: F, y: F, sum: F) -> F { |i| ymm::fnma(x[i], y[i], sum[i]) }
    fn load(bytes: &[u8], at: usize) -> I { |i| ymm::load(bytes, at + ymm::BYTES * i) }
    fn unsigned(bytes: __m128i, _i: usize) -> I { |i| ymm::unsigned(bytes, i) }
    fn signed(bytes: __m128i, _i: usize) -> I { |i| ymm::signed(bytes, i) }
    fn half_floats(bytes: &[u8], at: usize, _i: usize) -> F { |i| ymm::half_floats(bytes, at, i) }
    fn brain_floats(bytes: &[u8], at: usize, _i: usize) -> F { |i| ymm::brain_floats(bytes, at, i) }
    fn load_floats(x: &[f32; PANEL], _i: usize) -> F { |i| ymm::load_floats(x, i) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn store_floats(x: F, y: &mut [f32; PANEL], _i: usize) {
    ymm::store_floats(x[0], y, 0);
    ymm::store_floats(x[1], y, 1);
}
