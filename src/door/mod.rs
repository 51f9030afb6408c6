//! Layer 6: the ways in. A door bounds and parses its input, makes a [`Request`](crate::engine::Request), prints each
//! [`Event`](crate::engine::Event), and decides nothing.
//!
//! Shared by the doors: [`fields`] and [`ask`] read what a caller asks for, [`wire`] writes events, [`fault`] holds
//! the names of failures, [`queue`] carries events from the engine's threads.

mod ask;
#[cfg(feature = "http")]
pub mod client;
#[cfg(feature = "dbus")]
pub mod dbus;
mod fault;
mod fields;
#[cfg(feature = "http")]
pub mod http;
mod queue;
mod wire;

use std::hash::BuildHasher;

use crate::engine::GenerationId;

/// A new id. Ids are unique, not secret (whoever asks about one is checked by uid), so the keys that the standard
/// library draws for its hash tables are random enough.
fn new_id() -> GenerationId {
    let half = || u128::from(std::hash::RandomState::new().hash_one(std::process::id()));
    GenerationId::from_bits(half() << 64 | half())
}

/// The id that `text` writes; `None` if it is none.
fn parse_id(text: &str) -> Option<GenerationId> {
    let digit = |c: char| "0123456789abcdefghjkmnpqrstvwxyz".find(c);
    let mut bits = 0_u128;
    for c in text.chars().take(32) {
        bits = bits << 5 | digit(c)? as u128;
    }
    Some(GenerationId::from_bits(bits)).filter(|id| id.as_str() == text)
}

/// `text` cut to at most `max` bytes at a code point, with a mark where something is missing.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(3));
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_nothing_else_is() {
        for _ in 0..64 {
            let id = new_id();
            assert_eq!(parse_id(id.as_str()), Some(id.clone()));
            assert_ne!(id, new_id());
        }
        for bad in ["", "0", "é", "zzzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000i", &"0".repeat(27)]
        {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn cutting_keeps_code_points_whole() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("aéééé", 6), "aé…");
    }
}
