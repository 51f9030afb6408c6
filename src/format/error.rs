//! What can be wrong with a model file.

use crate::base::brief;
use crate::os::map::MapError;

/// A model file that cannot be read. Every message names the file, the place and the numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
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
    #[error("{file}: GGUF version {found}; versions 1 to 3 are read{hint}")]
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
        "{file}: {} at byte {at} needs {need} bytes, {have} remain; the file is cut short, fetch it again",
        brief(what)
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
    #[error(
        "{file}: {} says {found}, at most {max} possible here; the file is damaged or not a model",
        brief(what)
    )]
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
    #[error("{file}: {} occurs twice; the file is damaged or not a model", brief(what))]
    Duplicate {
        /// The file.
        file: String,
        /// The name.
        what: String,
    },
    /// Text that is no text.
    #[error("{file}: {} at byte {at} is not UTF-8; the file is damaged or not a model", brief(what))]
    NotUtf8 {
        /// The file.
        file: String,
        /// What it is.
        what: String,
        /// Where.
        at: u64,
    },
    /// A number that names no type.
    #[error("{file}: {} has type number {found}; {allowed}", brief(what))]
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
        "{file}: key {} is {found}, {wanted} wanted; the file is damaged or made by an unknown converter",
        brief(key)
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
        "{file}: key {key} is absent; the file is no complete model (a vocabulary alone, or of another kind)"
    )]
    Absent {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// A tensor whose shape makes no sense.
    #[error("{file}: tensor {} has shape {shape:?}: {why}", brief(tensor))]
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
    #[error("{file}: tensor {} at byte {at}, {why}; the file is damaged, fetch it again", brief(tensor))]
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
    /// A packed file of another version.
    #[error("{file}: packed in layout {found}, {read} is read; pack the model anew (sotto pack)")]
    Layout {
        /// The file.
        file: String,
        /// Its version.
        found: u64,
        /// The one that is read.
        read: u64,
    },
    /// Bytes that are not those that were written.
    #[error(
        "{file}: the checksum of {} is {found:016x}, {wanted:016x} was written; the file is damaged, pack the model anew",
        brief(what)
    )]
    Checksum {
        /// The file.
        file: String,
        /// What differs.
        what: String,
        /// As it is.
        found: u64,
        /// As it should be.
        wanted: u64,
    },
    /// One of several files that make up a model does not fit the others.
    #[error(
        "{file}: {why}; the files of a model lie in one directory under the names they were published with"
    )]
    Set {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A directory in another layout.
    #[error("{file}: this directory holds no config.json, but {found}; give the path of a file instead")]
    NotThisLayout {
        /// The directory.
        file: String,
        /// What it holds.
        found: String,
    },
    /// Larger than any file of its kind.
    #[error("{file}: {found} bytes long, at most {max} are read; this is another kind of file")]
    TooLong {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// Text that is not the JSON it should be.
    #[error("{file}: {why}; the file is damaged, fetch it again")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, and where.
        why: String,
    },
    /// An entry of `config.json` that is not as it must be.
    #[error("{file}: {key} is {}, {wanted}", brief(found))]
    Config {
        /// The file.
        file: String,
        /// The entry.
        key: String,
        /// What stands there.
        found: String,
        /// What is possible.
        wanted: String,
    },
    /// A class of models whose directories are not translated.
    #[error(
        "{file}: architectures names {}, which is not read from a directory{hint}; a GGUF file of the model may \
         work; read are: {known}",
        brief(found)
    )]
    Class {
        /// The file.
        file: String,
        /// The class.
        found: String,
        /// Why, where there is more to say.
        hint: &'static str,
        /// Those that work.
        known: String,
    },
    /// A tensor type that is not read from safetensors.
    #[error(
        "{file}: tensor {} has type {}; F32, F16 and BF16 are read; use a GGUF file of the model for quantized weights",
        brief(tensor),
        brief(found)
    )]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor that the model's class does not have.
    #[error(
        "{file}: tensor {} is not known in {class}; the checkpoint is of another kind than config.json says",
        brief(tensor)
    )]
    TensorName {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The class.
        class: String,
    },
    /// Something in a file of ONNX that is not as it must be.
    #[error(
        "{file}: {} at byte {at}: {why}; the file is damaged or no ONNX graph, fetch it again",
        brief(what)
    )]
    Graph {
        /// The file.
        file: String,
        /// What it is.
        what: String,
        /// Where it begins.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// A graph whose weights are no floats.
    #[error(
        "{file}: node {} is {}: weights of this graph are quantized, and only floats are imported; take the graph with \
         float weights, --type quantizes them anew",
        brief(node),
        brief(op)
    )]
    QuantizedGraph {
        /// The file.
        file: String,
        /// The node.
        node: String,
        /// Its operator.
        op: String,
    },
}
