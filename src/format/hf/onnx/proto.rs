//! The wire format of protocol buffers (protobuf.dev, "Encoding"), as far as ONNX uses it: fields with a number, each a
//! varint, four or eight bytes, or a stretch of bytes, which may be a message again. Nothing is copied.

use std::ops::Range;

use crate::format::FormatError;

/// A message, or a text or bytes, in a file.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    file: &'a str,
    data: &'a [u8],
    start: usize,
    end: usize,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    /// A number, signed ones in two's complement.
    Number(u64),
    /// A 32-bit float.
    Float(f32),
    /// Eight bytes.
    Wide,
    /// A stretch of bytes.
    Bytes(Message<'a>),
}

impl<'a> Message<'a> {
    /// All of a file; `file` is its name for messages.
    pub(super) fn whole(file: &'a str, data: &'a [u8]) -> Self {
        Self { file, data, start: 0, end: data.len() }
    }

    /// The stretch of the same file.
    pub(super) fn at(self, range: &Range<usize>) -> Self {
        Self { start: range.start, end: range.end.min(self.data.len()), ..self }
    }

    /// Where it is in the file.
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.end
    }

    /// Its bytes.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Its text.
    pub(super) fn text(self, what: &str) -> Result<&'a str, FormatError> {
        std::str::from_utf8(self.bytes()).map_err(|e| FormatError::NotUtf8 {
            file: self.file.into(),
            what: what.into(),
            at: self.start.saturating_add(e.valid_up_to()) as u64,
        })
    }

    /// Its fields, in their order.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields { of: self, at: self.start }
    }

    /// The numbers one after the other that it consists of (a packed field).
    pub(super) fn numbers(self) -> impl Iterator<Item = Result<u64, FormatError>> {
        let mut fields = self.fields();
        std::iter::from_fn(move || (fields.at < self.end).then(|| fields.varint()))
    }

    /// The name of the file.
    pub(super) fn file(self) -> &'a str {
        self.file
    }

    /// The error that this is not as it must be.
    pub(super) fn wrong(self, what: impl Into<String>, why: impl Into<String>) -> FormatError {
        FormatError::Graph {
            file: self.file.into(),
            what: what.into(),
            at: self.start as u64,
            why: why.into(),
        }
    }
}

/// The fields of a message. After an error there are none.
pub(super) struct Fields<'a> {
    of: Message<'a>,
    at: usize,
}

impl<'a> Fields<'a> {
    fn here(&self) -> Message<'a> {
        Message { start: self.at, ..self.of }
    }

    /// A number of 7 bits a byte, the lowest first.
    fn varint(&mut self) -> Result<u64, FormatError> {
        let begin = self.here();
        let (mut n, mut shift) = (0_u64, 0_u32);
        loop {
            let byte = self.take(1, "a number")?.bytes().first().copied().unwrap_or(0);
            // The tenth byte has one bit.
            if shift > 63 || (shift == 63 && byte & 0x7f > 1) {
                self.at = self.of.end;
                return Err(begin.wrong("a number", "it has more than 64 bits"));
            }
            n |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte < 0x80 {
                return Ok(n);
            }
            shift = shift.saturating_add(7);
        }
    }

    fn take(&mut self, n: u64, what: &str) -> Result<Message<'a>, FormatError> {
        let (here, have) = (self.here(), self.of.end.saturating_sub(self.at));
        let end = usize::try_from(n).ok().filter(|n| *n <= have).and_then(|n| self.at.checked_add(n));
        let Some(end) = end else {
            self.at = self.of.end;
            return Err(FormatError::Truncated {
                file: self.of.file.into(),
                what: what.into(),
                at: here.start as u64,
                need: n,
                have: have as u64,
            });
        };
        self.at = end;
        Ok(Message { end, ..here })
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), FormatError> {
        let begin = self.here();
        let tag = self.varint()?;
        let number = tag >> 3;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8, "a field")?;
                Field::Wide
            }
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(n, "a field")?)
            }
            5 => {
                let raw = self.take(4, "a field")?.bytes().first_chunk().copied().unwrap_or_default();
                Field::Float(f32::from_le_bytes(raw))
            }
            kind => {
                return Err(begin.wrong("a field", format!("it has wire type {kind}; 0, 1, 2, 5 are read")));
            }
        };
        if number == 0 {
            return Err(begin.wrong("a field", "it has number 0"));
        }
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.of.end {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.of.end;
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(data: &[u8]) -> Result<Vec<(u64, String)>, String> {
        let shown = |field: Field<'_>| match field {
            Field::Number(n) => n.to_string(),
            Field::Float(x) => x.to_string(),
            Field::Wide => "wide".into(),
            Field::Bytes(m) => format!("{:?}", m.bytes()),
        };
        let all = Message::whole("f", data).fields().map(|f| f.map(|(n, f)| (n, shown(f))));
        all.collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    #[test]
    fn fields_are_those_of_the_encoding() {
        let data = [0x08, 0x96, 1, 0x12, 2, 7, 8, 0x1d, 0, 0, 0x80, 0x3f, 0x21, 0, 0, 0, 0, 0, 0, 0, 0];
        let wanted = [(1, "150"), (2, "[7, 8]"), (3, "1"), (4, "wide")].map(|(n, s)| (n, s.to_owned()));
        assert_eq!(fields(&data), Ok(wanted.to_vec()));
        let minus_one = [0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        assert_eq!(fields(&minus_one), Ok(vec![(1, u64::MAX.to_string())]));
        let packed = Message::whole("f", &[1, 0x96, 1, 3]);
        assert_eq!(packed.numbers().collect::<Result<Vec<_>, _>>().unwrap(), [1, 150, 3]);
    }

    #[test]
    fn what_is_no_message_is_told_with_its_place() {
        for (data, words) in [
            (&[0x08, 1, 0x12, 9, 1][..], ["byte 4 needs 9 bytes, 1 remain", "cut short"]),
            (&[0x08, 1, 0x10], ["byte 3 needs 1 bytes, 0 remain", "a number"]),
            (&[0x0b], ["byte 0", "wire type 3"]),
            (&[0x02, 0], ["byte 0", "number 0"]),
            (&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], ["byte 1", "more than 64 bits"]),
            (&[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], ["18446744073709551615", "0 remain"]),
        ] {
            let said = fields(data).expect_err("must fail");
            assert!(words.iter().all(|w| said.contains(w)), "{said}");
        }
    }
}
