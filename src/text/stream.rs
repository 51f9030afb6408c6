//! Bytes that come token by token, as text.

/// Holds back the beginning of a character until the rest of it comes.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    /// Between calls at most 3 bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` all whole characters of what was held back and `bytes`; what can never be one becomes
    /// U+FFFD as in [`String::from_utf8_lossy`].
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let rest = chunk.invalid();
            let incomplete = std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_none());
            if rest.is_empty() || incomplete && done + rest.len() == self.held.len() {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            done += rest.len();
        }
        self.held.drain(..done);
    }

    /// Ends the text: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_anywhere_gives_the_same_text() {
        // Bytes that begin, continue and break characters, often next to each other.
        let bytes =
            [0x61, 0xc3, 0xa9, 0xe6, 0xbc, 0xa2, 0xf0, 0x9f, 0x99, 0x82, 0xff, 0xed, 0xa0, 0xc0, 0xf4, 0x90];
        arbtest::arbtest(|u| {
            let n = u.int_in_range(0..=24)?;
            let all: Vec<u8> = (0..n).map(|_| u.choose(&bytes).copied()).collect::<Result<_, _>>()?;
            let (mut stream, mut text, mut rest) = (Utf8Stream::default(), String::new(), all.as_slice());
            while !rest.is_empty() {
                let (part, after) = rest.split_at(u.int_in_range(1..=rest.len())?);
                stream.push(part, &mut text);
                assert!(stream.held.len() <= 3);
                rest = after;
            }
            stream.finish(&mut text);
            assert_eq!(text, String::from_utf8_lossy(&all));
            Ok(())
        });
    }

    #[test]
    fn whole_characters_come_at_once() {
        let (mut stream, mut text) = (Utf8Stream::default(), String::new());
        stream.push(b"a\xe6\xbc", &mut text);
        assert_eq!(text, "a");
        stream.push(b"\xa2", &mut text);
        assert_eq!(text, "a漢");
    }
}
