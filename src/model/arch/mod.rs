//! Architectures as data: one short description each over the one decoder. A new one is a file here, a line in
//! [`ALL`] and a golden fixture; new maths adds a value to an enum of this file, never a second decoder.

mod llama;

/// What an architecture does differently from the others.
#[derive(Debug, PartialEq)]
pub struct Arch {
    /// `general.architecture` in GGUF, and the prefix of its keys.
    pub gguf: &'static str,
    /// Which dimensions of a head turn together.
    pub rope: Rope,
}

/// Which two dimensions of a head a rotation takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// Neighbours, (0, 1), (2, 3), … (GGUF's llama: its converter permutes q and k).
    Pairs,
    /// A dimension and the one half a head further, (0, n/2), (1, n/2 + 1), ….
    Halves,
}

/// Every architecture.
pub const ALL: &[&Arch] = &[&llama::LLAMA];

/// The architecture that GGUF names so.
#[must_use]
pub fn by_gguf(name: &str) -> Option<&'static Arch> {
    ALL.iter().copied().find(|a| a.gguf == name)
}

/// The names of all, for messages.
#[must_use]
pub fn names() -> String {
    ALL.iter().map(|a| a.gguf).collect::<Vec<_>>().join(", ")
}
