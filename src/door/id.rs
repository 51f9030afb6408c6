//! Names of generations, and names that messages repeat.

use std::hash::BuildHasher;

use crate::engine::GenerationId;

/// A new id. Ids are unique, not secret (whoever asks about one is checked by uid), so the keys that the standard
/// library draws for its hash tables are random enough.
pub(super) fn new_id() -> GenerationId {
    let half = || u128::from(std::hash::RandomState::new().hash_one(std::process::id()));
    GenerationId::from_bits(half() << 64 | half())
}

/// The id that `text` writes; `None` if it is none.
pub(super) fn parse_id(text: &str) -> Option<GenerationId> {
    Some(GenerationId::from_bits(bits(text)?)).filter(|id| id.as_str() == text)
}

/// The number that `text` writes, of more than 128 bits the last.
fn bits(text: &str) -> Option<u128> {
    let digit = |c: char| "0123456789abcdefghjkmnpqrstvwxyz".find(c);
    text.chars().take(32).try_fold(0_u128, |bits, c| Some(bits << 5 | digit(c)? as u128))
}

/// The id `i` behind `first`: that of choice `i` of the request that `first` names.
#[cfg(feature = "http")]
pub(super) fn after(first: &GenerationId, i: usize) -> GenerationId {
    GenerationId::from_bits(bits(first.as_str()).unwrap_or_default().wrapping_add(i as u128))
}

/// `text` cut to at most `max` bytes at a code point, with a mark where something is missing.
pub(super) fn cut(text: &str, max: usize) -> String {
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
