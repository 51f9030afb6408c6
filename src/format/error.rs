//! What can be wrong with a model file.

/// A model file that cannot be read. Every message names the file, the place and the numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It does not begin as the format does.
    #[error(
        "{file}: begins with bytes {found:02x?}, a GGUF file begins with \"GGUF\"; this is another kind of file"
    )]
    Magic {
        /// The file.
        file: String,
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// A version that is not read.
    #[error("{file}: GGUF version {found}; versions 2 and 3 are read{hint}")]
    Version {
        /// The file.
        file: String,
        /// The version it names.
        found: u32,
        /// What to do.
        hint: &'static str,
    },
    /// The file ends inside something.
    #[error(
        "{file}: {what} at byte {at} needs {need} bytes, {have} remain; the file is cut short, fetch it again"
    )]
    Truncated {
        /// The file.
        file: String,
        /// What was being read.
        what: String,
        /// Where it begins.
        at: u64,
        /// Bytes it needs.
        need: u64,
        /// Bytes that are there.
        have: u64,
    },
    /// A count that the file cannot hold, or that is above what any model needs.
    #[error("{file}: {what} says {found}, at most {max} possible here; the file is damaged or not a model")]
    TooMany {
        /// The file.
        file: String,
        /// The count.
        what: String,
        /// Its value.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// Two things of one name.
    #[error("{file}: {what} occurs twice; the file is damaged or not a model")]
    Duplicate {
        /// The file.
        file: String,
        /// The name.
        what: String,
    },
    /// Text that is no text.
    #[error("{file}: {what} at byte {at} is not UTF-8; the file is damaged or not a model")]
    NotUtf8 {
        /// The file.
        file: String,
        /// What it is.
        what: String,
        /// Where.
        at: u64,
    },
    /// A number that names no type.
    #[error("{file}: {what} has type number {found}; {allowed}")]
    Type {
        /// The file.
        file: String,
        /// What has it.
        what: String,
        /// The number.
        found: u32,
        /// What is possible.
        allowed: String,
    },
    /// A value of another type or range than its key asks for.
    #[error(
        "{file}: key {key} is {found}, {wanted} wanted; the file is damaged or made by an unknown converter"
    )]
    Value {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should.
        wanted: &'static str,
    },
    /// A key that a model must have.
    #[error(
        "{file}: key {key} is absent; the file is no complete model (a vocabulary alone, or another kind of GGUF)"
    )]
    Absent {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// A tensor whose shape makes no sense.
    #[error("{file}: tensor {tensor} has shape {shape:?}: {why}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dimensions, fastest first, as stored.
        shape: Vec<u64>,
        /// What is wrong.
        why: String,
    },
    /// Data outside its place.
    #[error("{file}: tensor {tensor} at byte {at}, {why}; the file is damaged, fetch it again")]
    Offset {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where its data begin.
        at: u64,
        /// What is wrong.
        why: String,
    },
}
