//! Packed models: GGUF files whose matrices stand in panels ([`crate::quant::packed`]), with checksums, and with a
//! word about what they were made of (`docs/formats.md`). Reading them is the reader of GGUF; this file has what is
//! different.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::checkpoint::{Checkpoint, TensorInfo};
use super::gguf::Out;
use super::{Array, FormatError, Kind, Value, split};
use crate::base::{Numbers, Strings};
use crate::os::file;
use crate::quant::Quant;
use crate::quant::packed;

/// Version of the layout: of panels and of these keys.
pub const LAYOUT: u64 = 1;
/// Key of the version.
const VERSION: &str = "sotto.pack.version";
/// Key of what the file was made of, as [`identity`] gives it.
pub const SOURCE: &str = "sotto.pack.source";
/// Key of the checksum of all bytes before the first tensor's, with its own eight as zeros.
const HEADER_SUM: &str = "sotto.pack.header_checksum";
/// Key of the checksums of the tensors' bytes, in the order in which they stand in the file.
const TENSOR_SUMS: &str = "sotto.pack.tensor_checksums";
/// Arrays of strings stand as three arrays, with these endings behind this and their key: their bytes one after the
/// other, where each begins and the last ends, and a table to find them by (`text/index.rs`), which need not be there.
const STRINGS: &str = "sotto.pack.strings.";
const BYTES: &str = ".bytes";
const STARTS: &str = ".starts";
const SLOTS: &str = ".slots";
/// Types of tensors in panels: ggml's number of the format with this above it. No other program has such a type, so all
/// others refuse the file.
const TYPES: u32 = 0x5350_0000;
/// What tensors are aligned to: a cache line, and the widest register.
const ALIGNMENT: u64 = 64;
/// Bytes at the beginning of a file that count for its identity.
const HEAD: u64 = 64 << 10;
/// Bytes that are verified at a time.
const VERIFIED: usize = 16 << 20;

/// The format that a type number names, and whether the tensor is packed.
pub(super) fn type_of(number: u32) -> Option<(Quant, bool)> {
    match number & 0xffff_0000 {
        TYPES => Quant::from_ggml(number & 0xffff).map(|q| (q, true)),
        _ => Quant::from_ggml(number).map(|q| (q, false)),
    }
}

/// Whether this key's value is the checksum of the header.
pub(super) fn is_header_sum(key: &str) -> bool {
    key == HEADER_SUM
}

/// Checks the version and, with `sum_at`, where it stands in it, the checksum of the `header` of a packed file, and
/// puts its strings together.
pub(super) fn check(file: &mut Checkpoint, header: &[u8], sum_at: Option<usize>) -> Result<(), FormatError> {
    if !file.is_packed() && !file.metadata.contains_key(VERSION) {
        return Ok(());
    }
    let found = file.require(VERSION, file.uint(VERSION)?)?;
    if found != LAYOUT {
        return Err(FormatError::Layout { file: file.file.clone(), found, read: LAYOUT });
    }
    let sum_at = file.require(HEADER_SUM, sum_at)?;
    let wanted = header.get(sum_at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_le_bytes);
    compare(file, "the header", header_sum(header, sum_at), wanted.unwrap_or(0))?;
    let keys = file.metadata.keys().filter_map(|key| key.strip_prefix(STRINGS)?.strip_suffix(BYTES));
    for key in keys.map(str::to_owned).collect::<Vec<_>>() {
        let strings = strings(file, &key).ok_or_else(|| FormatError::Value {
            file: file.file.clone(),
            key: format!("{STRINGS}{key}{STARTS}"),
            found: "something else".into(),
            wanted: "an array of 32-bit numbers from 0 to the number of bytes",
        })?;
        if file.metadata.insert(key.clone(), Value::Array(Array::Strings(strings))).is_some() {
            return Err(FormatError::Duplicate { file: file.file.clone(), what: format!("key {key}") });
        }
    }
    Ok(())
}

/// The array of strings that stands as three.
fn strings(file: &Checkpoint, key: &str) -> Option<Strings> {
    let range = |ending: &str, wanted: Kind| match file.metadata.get(&format!("{STRINGS}{key}{ending}"))? {
        Value::Array(Array::Scalars(kind, range)) if *kind == wanted => Some(range.clone()),
        _ => None,
    };
    let numbers = |ending| range(ending, Kind::Unsigned(4)).map(|r| Numbers::Shared(file.meta.clone(), r));
    let (bytes, starts) = (range(BYTES, Kind::Unsigned(1))?, numbers(STARTS)?);
    let end = starts.get(starts.len().checked_sub(1)?)?;
    let strings = Strings::new(file.meta.clone(), bytes.start, starts, 0)?;
    (end as usize == bytes.len()).then(|| strings.with_slots(numbers(SLOTS)))
}

fn header_sum(header: &[u8], at: usize) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(header.get(..at).unwrap_or_default());
    sum.update(&[0; 8]);
    sum.update(header.get(at.saturating_add(8)..).unwrap_or_default());
    sum.digest()
}

fn compare(file: &Checkpoint, what: &str, found: u64, wanted: u64) -> Result<(), FormatError> {
    match found == wanted {
        true => Ok(()),
        false => Err(FormatError::Checksum { file: file.file.clone(), what: what.to_owned(), found, wanted }),
    }
}

impl Checkpoint {
    /// Whether it is a packed file, whose bytes [`Self::verify`] can check.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.metadata.contains_key(TENSOR_SUMS)
    }

    /// Reads all tensors of a packed file and compares them with their checksums; `progress` is told bytes read and in
    /// all.
    ///
    /// # Errors
    /// When one differs, or the file has no checksums.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), FormatError> {
        let tensors = in_order(self);
        let sums = match self.metadata.get(TENSOR_SUMS) {
            Some(Value::Array(Array::Scalars(Kind::Unsigned(8), range))) => {
                (*self.meta).as_ref().get(range.clone()).unwrap_or_default().as_chunks::<8>().0
            }
            _ => &[],
        };
        if sums.len() != tensors.len() {
            let found = format!("{} numbers for {} tensors", sums.len(), tensors.len());
            let wanted = "a 64-bit number for each tensor";
            return Err(FormatError::Value {
                file: self.file.clone(),
                key: TENSOR_SUMS.into(),
                found,
                wanted,
            });
        }
        let total = tensors.iter().fold(0, |n: u64, (_, t)| n.saturating_add(t.range.len() as u64));
        let mut done = 0_u64;
        for ((name, info), wanted) in tensors.into_iter().zip(sums) {
            let (mut sum, mut at) = (Xxh3::new(), info.range.start);
            for bytes in self.bytes(info).chunks(VERIFIED) {
                sum.update(bytes);
                self.forget(info.part, at, bytes.len());
                at = at.saturating_add(bytes.len());
                done = done.saturating_add(bytes.len() as u64);
                progress(done, total);
            }
            compare(self, &format!("tensor {name}"), sum.digest(), u64::from_le_bytes(*wanted))?;
        }
        Ok(())
    }
}

/// The tensors in the order in which they stand in the files.
#[must_use]
pub fn in_order(file: &Checkpoint) -> Vec<(&str, &TensorInfo)> {
    let mut tensors: Vec<_> = file.tensors().collect();
    tensors.sort_by_key(|(_, t)| (t.part, t.range.start));
    tensors
}

/// What a model's file is told by later: a line for each of its files with name, bytes, time of the last change, inode,
/// and a hash of its first 64 KiB.
///
/// # Errors
/// When one cannot be read, or `path` is a directory.
pub fn identity(path: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    for path in split::set_of(path) {
        let ((file, meta), mut head) = (file::open(&path)?, Vec::new());
        file.take(HEAD).read_to_end(&mut head)?;
        lines.push(format!(
            "{} {} {}.{:09} {} {:016x}",
            path.file_name().unwrap_or_default().display(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ino(),
            hash(&head)
        ));
    }
    Ok(lines.join("\n"))
}

/// The hash that is used throughout: XXH3, 64 bits (Collet; fast, and no protection against intent).
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// What becomes of a tensor in a packed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is copied.
    AsItIs,
    /// It is packed, in this format.
    Packed(Quant),
}

/// A tensor of a file to be written.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub from: TensorInfo,
    /// Where and how it will be.
    pub to: TensorInfo,
}

impl Placed {
    /// `from`, which is not packed, in its new form at byte `at` of its new place. `None` if it cannot be there.
    #[must_use]
    pub fn new(name: &str, from: &TensorInfo, form: Form, at: usize) -> Option<Self> {
        let (quant, packed, len) = match form {
            Form::AsItIs => (from.quant, false, from.range.len()),
            Form::Packed(quant) => (quant, true, packed::bytes(quant, from.n_rows, from.n_cols)?),
        };
        let to = TensorInfo { quant, packed, part: 0, range: at..at.checked_add(len)?, ..from.clone() };
        Some(Self { name: name.into(), from: from.clone(), to })
    }
}

/// A packed file to be written: all but the bytes of its tensors.
#[derive(Debug)]
pub struct Image {
    header: Vec<u8>,
    header_sum_at: usize,
    tensor_sums_at: usize,
    /// In their order; ranges are of the whole file.
    pub tensors: Vec<Placed>,
}

impl Image {
    /// The metadata of `file` with these of its tensors in these forms, in their order, made of what `source` says,
    /// with these tables for its arrays of strings. `None` if it is too large for this machine's addresses.
    #[must_use]
    pub fn new(
        file: &Checkpoint,
        source: &str,
        tables: &[(&str, Vec<u32>)],
        forms: &[(&str, &TensorInfo, Form)],
    ) -> Option<Self> {
        // Places count from the end of the header, whose length they do not change.
        let (mut tensors, mut end) = (Vec::new(), 0_usize);
        let aligned = |at: usize| at.checked_next_multiple_of(usize::try_from(ALIGNMENT).ok()?);
        for (name, from, form) in forms {
            let placed = Placed::new(name, from, *form, aligned(end)?)?;
            end = placed.to.range.end;
            tensors.push(placed);
        }
        let ours = |key: &str| key.starts_with("sotto.pack.") || key.starts_with("split.");
        let mut keys: Vec<_> =
            file.metadata().filter(|(key, _)| !ours(key) && *key != "general.alignment").collect();
        keys.sort_by_key(|(key, _)| *key);

        let slots = |key: &str| tables.iter().find(|(of, _)| *of == key).map(|(_, slots)| slots.as_slice());
        let n_entries = |(key, value): &(&str, &Value)| match value {
            Value::Array(Array::Strings(_)) => {
                if slots(key).is_some() {
                    3
                } else {
                    2
                }
            }
            _ => 1,
        };
        let mut out = Out(b"GGUF".to_vec());
        out.u32(3);
        out.u64(tensors.len() as u64);
        out.u64(keys.iter().map(n_entries).fold(5_u64, u64::saturating_add));
        out.string(HEADER_SUM.as_bytes());
        out.u32(10);
        let header_sum_at = out.0.len();
        out.u64(0);
        out.key(VERSION, 10);
        out.u64(LAYOUT);
        out.key(SOURCE, 8);
        out.string(source.as_bytes());
        out.key("general.alignment", 10);
        out.u64(ALIGNMENT);
        out.key(TENSOR_SUMS, 9);
        out.u32(10);
        out.u64(tensors.len() as u64);
        let tensor_sums_at = out.0.len();
        tensors.iter().for_each(|_| out.u64(0));
        for (key, value) in keys {
            match value {
                Value::Array(Array::Strings(strings)) => write_strings(&mut out, key, strings, slots(key))?,
                _ => {
                    out.string(key.as_bytes());
                    out.value(value, (*file.meta).as_ref());
                }
            }
        }
        for t in &tensors {
            let kind = t.to.quant.ggml() | if t.to.packed { TYPES } else { 0 };
            out.tensor(&t.name, &t.to, kind, t.to.range.start)?;
        }
        let start = aligned(out.0.len())?;
        out.0.resize(start, 0);
        for t in &mut tensors {
            t.to.range = start.checked_add(t.to.range.start)?..start.checked_add(t.to.range.end)?;
        }
        Some(Self { header: out.0, header_sum_at, tensor_sums_at, tensors })
    }

    /// Bytes of the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(self.header.len(), |t| t.to.range.end)
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The bytes before the first tensor's, with the checksums of all tensors in their order.
    ///
    /// # Panics
    /// If there are not as many as tensors.
    pub fn header(&mut self, sums: &[u64]) -> &[u8] {
        assert_eq!(sums.len(), self.tensors.len(), "a checksum for each tensor");
        let places = self.header.get_mut(self.tensor_sums_at..).unwrap_or_default();
        for (place, sum) in places.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            *place = sum.to_le_bytes();
        }
        let sum = header_sum(&self.header, self.header_sum_at);
        let place = self.header.get_mut(self.header_sum_at..).unwrap_or_default();
        if let Some(place) = place.first_chunk_mut() {
            *place = sum.to_le_bytes();
        }
        &self.header
    }
}

/// An array of strings as the arrays that it stands as. `None` if it has 4 GiB.
fn write_strings(out: &mut Out, key: &str, strings: &Strings, slots: Option<&[u32]>) -> Option<()> {
    let len = |n: usize| u32::try_from(n).ok();
    let mut starts = vec![0_u32];
    for string in strings.iter() {
        let end = starts.last().copied().unwrap_or(0).checked_add(len(string.len())?)?;
        starts.push(end);
    }
    let array = |out: &mut Out, ending: &str, type_number: u32, n: usize| {
        out.key(&format!("{STRINGS}{key}{ending}"), 9);
        out.u32(type_number);
        out.u64(n as u64);
    };
    array(out, BYTES, 0, starts.last().copied().unwrap_or(0) as usize);
    strings.iter().for_each(|string| out.0.extend(string));
    array(out, STARTS, 4, starts.len());
    starts.iter().for_each(|n| out.u32(*n));
    if let Some(slots) = slots {
        array(out, SLOTS, 4, slots.len());
        slots.iter().for_each(|n| out.u32(*n));
    }
    Some(())
}
