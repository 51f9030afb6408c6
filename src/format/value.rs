//! Metadata values. Strings and arrays stay in the file; a value is their place.

use std::ops::Range;

use crate::base::Strings;

/// Type of a scalar or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned integer of 1, 2, 4 or 8 bytes.
    Unsigned(u8),
    /// Signed integer of 1, 2, 4 or 8 bytes.
    Signed(u8),
    /// Float of 4 or 8 bytes.
    Float(u8),
    /// One byte, 0 or 1.
    Bool,
}

impl Kind {
    /// The number that GGUF has for it.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Unsigned(1) => 0,
            Self::Signed(1) => 1,
            Self::Unsigned(2) => 2,
            Self::Signed(2) => 3,
            Self::Unsigned(4) => 4,
            Self::Signed(4) => 5,
            Self::Float(4) => 6,
            Self::Bool => 7,
            Self::Unsigned(_) => 10,
            Self::Signed(_) => 11,
            Self::Float(_) => 12,
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Unsigned(n) | Self::Signed(n) | Self::Float(n) => usize::from(n),
            Self::Bool => 1,
        }
    }
}

/// An array of the file.
#[derive(Clone, Debug)]
pub enum Array {
    /// Scalars, little-endian, at these bytes of the file.
    Scalars(Kind, Range<usize>),
    /// Strings.
    Strings(Strings),
}

/// One metadata value.
#[derive(Clone, Debug)]
pub enum Value {
    /// An integer.
    Int(i128),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string, at these bytes of the file; UTF-8 was checked.
    Str(Range<usize>),
    /// An array.
    Array(Array),
}

impl Value {
    /// What it is, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Int(n) => format!("the integer {n}"),
            Self::Float(x) => format!("the float {x}"),
            Self::Bool(b) => format!("the bool {b}"),
            Self::Str(r) => format!("a string of {} bytes", r.len()),
            Self::Array(Array::Strings(s)) => format!("an array of {} strings", s.len()),
            Self::Array(Array::Scalars(k, r)) => {
                format!("an array of {} numbers", r.len().checked_div(k.bytes()).unwrap_or(0))
            }
        }
    }
}

/// The scalar in `raw`, which has the kind's length.
pub(super) fn scalar(kind: Kind, raw: &[u8]) -> Value {
    let mut wide = [0_u8; 8];
    for (to, from) in wide.iter_mut().zip(raw) {
        *to = *from;
    }
    let bits = u64::from_le_bytes(wide);
    match kind {
        Kind::Unsigned(_) => Value::Int(i128::from(bits)),
        Kind::Signed(n) => {
            // Shift the sign bit to the top and back.
            let shift = 64_u32.saturating_sub(u32::from(n).saturating_mul(8));
            Value::Int(i128::from(bits.wrapping_shl(shift).cast_signed().wrapping_shr(shift)))
        }
        Kind::Float(4) => {
            Value::Float(f64::from(f32::from_bits(u32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]))))
        }
        Kind::Float(_) => Value::Float(f64::from_bits(bits)),
        Kind::Bool => Value::Bool(bits != 0),
    }
}
