//! Weights stored one by one (IEEE 754 binary32, binary16; bfloat16), little-endian.

use half::{bf16, f16};
use zerocopy::little_endian::{F32, U16};

use super::blocks;

pub(super) fn unpack_f32(bytes: &[u8], out: &mut [f32]) {
    for (w, y) in blocks::<F32>(bytes).iter().zip(out) {
        *y = w.get();
    }
}

pub(super) fn unpack_f16(bytes: &[u8], out: &mut [f32]) {
    for (w, y) in blocks::<U16>(bytes).iter().zip(out) {
        *y = f16::from_bits(w.get()).to_f32();
    }
}

pub(super) fn unpack_bf16(bytes: &[u8], out: &mut [f32]) {
    for (w, y) in blocks::<U16>(bytes).iter().zip(out) {
        *y = bf16::from_bits(w.get()).to_f32();
    }
}
