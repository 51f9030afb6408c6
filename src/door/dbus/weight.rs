//! How much a message holds, seen before any of it becomes values: an empty text takes five bytes of a message and a
//! hundred times as many in memory. (D-Bus specification, "Marshaling (Wire Format)".)

use crate::base::limits::N_BUS_VALUE_MAX;

/// Deepest nesting that is followed; the specification allows 64 in all.
const DEPTH_MAX: usize = 64;

/// Whether `body`, of the types `signature`, holds at most [`N_BUS_VALUE_MAX`] values. What is no such body is not judged
/// here: whoever reads it refuses it.
pub(super) fn fits(body: &[u8], signature: &str, little: bool) -> bool {
    let mut scan = Scan { body, at: 0, little, n_left: N_BUS_VALUE_MAX };
    let mut rest = signature.as_bytes();
    while !rest.is_empty() {
        match scan.value(rest, 0) {
            Ok(after) => rest = after,
            Err(Stop::TooMany) => return false,
            Err(Stop::Malformed) => return true,
        }
    }
    true
}

enum Stop {
    TooMany,
    Malformed,
}

struct Scan<'b> {
    body: &'b [u8],
    at: usize,
    little: bool,
    n_left: usize,
}

impl<'b> Scan<'b> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn skip(&mut self, n: usize) -> Result<&'b [u8], Stop> {
        let end = self.at.checked_add(n).ok_or(Stop::Malformed)?;
        let bytes = self.body.get(self.at..end).ok_or(Stop::Malformed)?;
        self.at = end;
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize, Stop> {
        self.align(4);
        let bytes = self.skip(4)?.try_into().map_err(|_| Stop::Malformed)?;
        let n = if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        usize::try_from(n).map_err(|_| Stop::Malformed)
    }

    /// Passes over the value whose type `of` begins with; gives the types behind it.
    fn value<'s>(&mut self, of: &'s [u8], depth: usize) -> Result<&'s [u8], Stop> {
        self.n_left = self.n_left.checked_sub(1).ok_or(Stop::TooMany)?;
        if depth > DEPTH_MAX {
            return Err(Stop::Malformed);
        }
        let (kind, rest) = of.split_first().ok_or(Stop::Malformed)?;
        match kind {
            b'y' => self.skip(1).map(drop)?,
            b'n' | b'q' => {
                self.align(2);
                self.skip(2).map(drop)?;
            }
            b'b' | b'i' | b'u' | b'h' => {
                self.align(4);
                self.skip(4).map(drop)?;
            }
            b'x' | b't' | b'd' => {
                self.align(8);
                self.skip(8).map(drop)?;
            }
            b's' | b'o' => {
                let n = self.length()?;
                self.skip(n.saturating_add(1)).map(drop)?;
            }
            b'g' => {
                let n = self.skip(1)?.first().copied().unwrap_or(0);
                self.skip(usize::from(n) + 1).map(drop)?;
            }
            b'v' => {
                let n = self.skip(1)?.first().copied().unwrap_or(0);
                let inner = self.skip(usize::from(n) + 1)?.split_last().ok_or(Stop::Malformed)?.1;
                self.value(inner, depth + 1).map(drop)?;
            }
            b'a' => return self.array(rest, depth),
            b'(' | b'{' => {
                self.align(8);
                let mut inner = rest;
                while !matches!(inner.first(), Some(b')' | b'}')) {
                    inner = self.value(inner, depth + 1)?;
                }
                return inner.get(1..).ok_or(Stop::Malformed);
            }
            _ => return Err(Stop::Malformed),
        }
        Ok(rest)
    }

    fn array<'s>(&mut self, of: &'s [u8], depth: usize) -> Result<&'s [u8], Stop> {
        let n = self.length()?;
        self.align(match of.first() {
            Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
            Some(b'n' | b'q') => 2,
            Some(b'y' | b'g' | b'v') => 1,
            _ => 4,
        });
        let end = self.at.checked_add(n).filter(|end| *end <= self.body.len()).ok_or(Stop::Malformed)?;
        while self.at < end {
            let before = self.at;
            self.value(of, depth + 1)?;
            if self.at == before {
                // Nothing that has no bytes is an element.
                return Err(Stop::Malformed);
            }
        }
        behind(of, depth)
    }
}

/// The types behind the first one of `of`.
fn behind(of: &[u8], depth: usize) -> Result<&[u8], Stop> {
    if depth > DEPTH_MAX {
        return Err(Stop::Malformed);
    }
    let (kind, mut rest) = of.split_first().ok_or(Stop::Malformed)?;
    match kind {
        b'a' => behind(rest, depth + 1),
        b'(' | b'{' => {
            while !matches!(rest.first(), Some(b')' | b'}')) {
                rest = behind(rest, depth + 1)?;
            }
            rest.get(1..).ok_or(Stop::Malformed)
        }
        _ => Ok(rest),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use zbus::Variant;
    use zbus::wire::serialized::Context;
    use zbus::wire::{BE, LE, to_bytes};

    use super::*;

    #[test]
    fn what_is_too_much_is_seen_before_it_is_read() {
        let messages = |n: usize| vec![("user", ""); n];
        let options =
            |n| HashMap::from([("messages", Variant::new(messages(n))), ("raw", Variant::new(true))]);
        for endian in [LE, BE] {
            let fits = |n| {
                let body = to_bytes(Context::new(endian, 0), &("hi", options(n))).unwrap();
                fits(&body, "sa{sv}", endian == LE)
            };
            // A pair is three values; around them are ten.
            let most = (N_BUS_VALUE_MAX - 10) / 3;
            assert!(fits(1) && fits(most) && !fits(most + 1), "{endian:?}");
        }
        let texts = |n| to_bytes(Context::new(LE, 0), &(vec![""; n], 7_u64, vec![1.5; 3])).unwrap();
        assert!(fits(&texts(N_BUS_VALUE_MAX - 6), "asxad", true));
        assert!(!fits(&texts(N_BUS_VALUE_MAX - 5), "asxad", true));
    }

    #[test]
    fn what_is_no_body_is_left_to_others() {
        let body = [255_u8; 40];
        for signature in ["s", "as", "a{sv}", "v", "(", "aa", "a(", "a{s", ")", "z", "avvv", "((((", "g"] {
            for n in 0..body.len() {
                assert!(
                    fits(&body[..n], signature, true) && fits(&vec![0; n], signature, false),
                    "{signature} {n}"
                );
            }
        }
    }
}
