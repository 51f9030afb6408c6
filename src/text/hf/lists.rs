//! The two long lists of a `tokenizer.json`, read into one block of bytes each: 262,144 pieces and half a million merges
//! never become as many strings.

use std::fmt;
use std::sync::Arc;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use crate::base::Strings;
use crate::base::limits::N_VOCAB_MAX;

/// Byte strings that are added one after the other.
pub(in super::super) struct Arena {
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Default for Arena {
    fn default() -> Self {
        Self { bytes: Vec::new(), starts: vec![0] }
    }
}

impl Arena {
    pub(in super::super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Adds to the string that is being written.
    fn write(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }

    /// Ends the string that is being written. False where all of them have 4 GiB.
    fn end(&mut self) -> bool {
        u32::try_from(self.bytes.len()).map(|end| self.starts.push(end)).is_ok()
    }

    /// Adds a string. False where all of them have 4 GiB.
    pub(in super::super) fn push(&mut self, string: &[u8]) -> bool {
        self.write(string);
        self.end()
    }

    pub(in super::super) fn get(&self, i: usize) -> &[u8] {
        &self.bytes[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    pub(in super::super) fn into_strings(mut self) -> Strings {
        self.bytes.shrink_to_fit();
        self.starts.shrink_to_fit();
        let none = || Strings::owned::<&str>([]);
        Strings::new(Arc::new(self.bytes), 0, self.starts, 0).unwrap_or_else(none)
    }
}

/// Of strings that no 32-bit number counts.
pub(super) const TOO_LONG: &str = "4 GiB of text are too much";

/// `"vocab": {"piece": id, …}`.
#[derive(Default)]
pub(super) struct VocabList {
    pub(super) pieces: Arena,
    /// Of each piece.
    pub(super) ids: Vec<u32>,
}

impl<'de> Deserialize<'de> for VocabList {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Self::default())
    }
}

impl<'de> Visitor<'de> for VocabList {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of pieces with their ids")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while map.next_key_seed(Text(&mut self.pieces))?.is_some() {
            if !self.pieces.end() {
                return Err(A::Error::custom(TOO_LONG));
            }
            let Id(id) = map.next_value()?;
            self.ids.push(id);
        }
        Ok(self)
    }

    /// A vocabulary of another model: its type is named when all was read.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self)
    }
}

/// The id of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub(super) u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_u64(IdVisitor)
    }
}

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token's id, from 0 to {},", N_VOCAB_MAX - 1)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Id, E> {
        let id = u32::try_from(n).ok().filter(|id| (*id as usize) < N_VOCAB_MAX);
        id.map(Id).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(n), &self))
    }
}

/// `"merges": ["left right", …]`, or `[["left", "right"], …]`.
#[derive(Default)]
pub(super) struct MergeList(pub(super) Arena);

impl<'de> Deserialize<'de> for MergeList {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for MergeList {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element_seed(Merge(&mut self.0))?.is_some() {
            if !self.0.end() {
                return Err(A::Error::custom(TOO_LONG));
            }
        }
        Ok(self)
    }
}

/// Writes a text.
struct Text<'a>(&'a mut Arena);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a piece")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// Writes a merge in its one-line form.
struct Merge<'a>(&'a mut Arena);

impl<'de> DeserializeSeed<'de> for Merge<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Merge<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two pieces with a space between, or a list of two,")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let mut parts = text.split(' ');
        if parts.clone().count() != 2 || parts.any(str::is_empty) {
            return Err(E::invalid_value(Unexpected::Str(text), &self));
        }
        self.0.write(text.as_bytes());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut n = usize::from(list.next_element_seed(Text(self.0))?.is_some());
        self.0.write(b" ");
        while list.next_element_seed(Text(self.0))?.is_some() {
            n += 1;
        }
        if n == 2 { Ok(()) } else { Err(A::Error::invalid_length(n, &self)) }
    }
}
