//! `tokenizer.model`: SentencePiece's own file, a protobuf message (`sentencepiece_model.proto` of
//! github.com/google/sentencepiece). Reads the BPE kind as the families here use it; reads bytes, opens no file.

use super::TextError;
use super::hf::{Arena, CONFIG_FILE, Table, TokenizerConfig, find};
use super::source::{Source, SpacePrefix, VocabKind};
use super::vocab::{CONTROL, USER_DEFINED};
use crate::base::limits::N_VOCAB_MAX;
use crate::base::{Token, shown};

/// The name of the file in messages.
const FILE: &str = "tokenizer.model";

/// A field of a message.
enum Field<'a> {
    /// Wire type 0.
    Number(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Float(f32),
    /// Wire type 1, which nothing here has.
    Other,
}

/// The fields of a message, one after the other.
struct Message<'a> {
    rest: &'a [u8],
}

fn size(n: usize) -> TextError {
    TextError::file(FILE, format!("pieces are {n}, 1 to {N_VOCAB_MAX} are possible"))
}

fn damaged(what: impl Into<String>) -> TextError {
    TextError::file(FILE, format!("{}; the file is damaged or of another kind", what.into()))
}

impl<'a> Message<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], TextError> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| damaged(format!("a field has {n} bytes, but {} are left", self.rest.len())))?;
        self.rest = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, TextError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged("a number has more than 10 bytes"))
    }

    /// The number of the next field and what it holds.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, TextError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(usize::try_from(n).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Float(bytes.first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b)))
            }
            wire => return Err(damaged(format!("wire type {wire}"))),
        };
        Ok(Some((key >> 3, field)))
    }
}

/// What the trainer and the normalizer were told, as far as it matters; defaults of the format.
struct Spec {
    model_type: u64,
    whitespace_as_suffix: bool,
    unk: i64,
    bos: i64,
    eos: i64,
    charsmap: usize,
    dummy_prefix: bool,
    remove_extra: bool,
    escapes: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            model_type: 1,
            whitespace_as_suffix: false,
            unk: 0,
            bos: 1,
            eos: 2,
            charsmap: 0,
            dummy_prefix: true,
            remove_extra: true,
            escapes: true,
        }
    }
}

impl Spec {
    fn trainer(&mut self, bytes: &[u8]) -> Result<(), TextError> {
        let mut message = Message { rest: bytes };
        while let Some((number, field)) = message.next()? {
            let Field::Number(n) = field else { continue };
            match number {
                3 => self.model_type = n,
                24 => self.whitespace_as_suffix = n != 0,
                40 => self.unk = n.cast_signed(),
                41 => self.bos = n.cast_signed(),
                42 => self.eos = n.cast_signed(),
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Result<(), TextError> {
        let mut message = Message { rest: bytes };
        while let Some((number, field)) = message.next()? {
            match (number, field) {
                (2, Field::Bytes(map)) => self.charsmap = map.len(),
                (3, Field::Number(n)) => self.dummy_prefix = n != 0,
                (4, Field::Number(n)) => self.remove_extra = n != 0,
                (5, Field::Number(n)) => self.escapes = n != 0,
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses what no family here does.
    fn check(&self) -> Result<(), TextError> {
        let refuse = |at: &str, found: &str, known| {
            let (at, found) = (at.to_owned(), found.to_owned());
            Err(TextError::Component { file: FILE, at, found, known })
        };
        let other = |found: &str| refuse("trainer_spec.model_type", found, "BPE");
        match self.model_type {
            2 => {}
            1 => return other("unigram"),
            3 => return other("word"),
            4 => return other("char"),
            n => return other(&n.to_string()),
        }
        if self.whitespace_as_suffix {
            return refuse("trainer_spec.treat_whitespace_as_suffix", "true", "false");
        }
        let known = "a normalizer that changes spaces only (name identity)";
        if self.charsmap > 0 {
            let found = format!("a map of {} bytes", self.charsmap);
            return refuse("normalizer_spec.precompiled_charsmap", &found, known);
        }
        if self.remove_extra {
            return refuse("normalizer_spec.remove_extra_whitespaces", "true", known);
        }
        if !self.escapes {
            return refuse("normalizer_spec.escape_whitespaces", "false", known);
        }
        Ok(())
    }
}

impl Source {
    /// What a `tokenizer.model` says, and the `tokenizer_config.json` beside it if there is one.
    ///
    /// # Errors
    /// When the file is no message of this form, is not of the BPE kind, has a normalizer, or contradicts itself.
    pub fn from_sentencepiece(bytes: &[u8], config: Option<&TokenizerConfig>) -> Result<Self, TextError> {
        let (mut pieces, mut scores, mut kinds) = (Arena::default(), Vec::new(), Vec::new());
        let mut spec = Spec::default();
        let mut message = Message { rest: bytes };
        while let Some((number, field)) = message.next()? {
            let Field::Bytes(inner) = field else { continue };
            match number {
                1 => {
                    let (text, score, kind) = piece(inner, kinds.len())?;
                    if kinds.len() == N_VOCAB_MAX || !pieces.push(text) {
                        return Err(size(kinds.len() + 1));
                    }
                    scores.push(score);
                    kinds.push(kind);
                }
                2 => spec.trainer(inner)?,
                3 => spec.normalizer(inner)?,
                _ => {}
            }
        }
        let n = kinds.len();
        if n == 0 {
            return Err(size(n));
        }
        spec.check()?;
        let mut table = Table::in_order(pieces, kinds);
        if let Some(config) = config {
            table.add_all(config)?;
        }
        let (pieces, kinds, edges) = table.finish();
        // Added tokens are found as a whole, before anything merges.
        scores.resize(pieces.len(), 0.0);
        let token = |what, text: Option<&str>, id: i64| match text {
            Some(text) => find(&pieces, text).map(Some).ok_or_else(|| {
                let text = shown(text.as_bytes());
                let what = format!("{what}_token is {text}, which is no piece of {FILE} nor added");
                TextError::file(CONFIG_FILE, what)
            }),
            None if id < 0 => Ok(None),
            None => match u32::try_from(id) {
                Ok(id) if (id as usize) < n => Ok(Some(Token(id))),
                _ => {
                    let what = format!("trainer_spec.{what}_id is {id}, there are {n} pieces");
                    Err(TextError::file(FILE, what))
                }
            },
        };
        let add = config.and_then(|c| c.add_bos_token).unwrap_or(true);
        let closes = config.and_then(|c| c.add_eos_token).unwrap_or(false);
        let eos = token("eos", config.and_then(TokenizerConfig::eos), spec.eos)?;
        Ok(Self {
            model: VocabKind::Scores { scores },
            bos: token("bos", config.and_then(TokenizerConfig::bos), spec.bos)?,
            eos,
            eot: None,
            unk: token("unk", None, spec.unk)?,
            pieces,
            kinds,
            trusted: true,
            edges,
            nfc: false,
            fuse_unk: false,
            add_bos: add,
            close: eos.filter(|_| closes),
            space_prefix: if spec.dummy_prefix { SpacePrefix::Always } else { SpacePrefix::Never },
            strips_space: spec.dummy_prefix,
        })
    }
}

/// Text, score and kind of piece `i`. Its types are those of ggml.
fn piece(bytes: &[u8], i: usize) -> Result<(&[u8], f32, u8), TextError> {
    let (mut text, mut score, mut kind) = (&[][..], 0.0, 1);
    let mut message = Message { rest: bytes };
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => text = bytes,
            (2, Field::Float(x)) => score = x,
            (3, Field::Number(n @ 1..=6)) => kind = n as u8,
            (3, Field::Number(n)) => {
                return Err(damaged(format!("pieces[{i}].type is {n}, 1 to 6 are possible")));
            }
            _ => {}
        }
    }
    // What only templates may write, though the file has it as text.
    let is_role = text.starts_with(b"<|") && text.ends_with(b"|>")
        || matches!(text, b"<start_of_turn>" | b"<end_of_turn>");
    if kind == USER_DEFINED && is_role {
        kind = CONTROL;
    }
    Ok((text, score, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Special, Tokenizer};

    fn varint(mut n: u64, out: &mut Vec<u8>) {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    }

    fn bytes(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
        varint(field << 3 | 2, out);
        varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }

    fn numbers(fields: &[(u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for &(field, n) in fields {
            varint(field << 3, &mut out);
            varint(n, &mut out);
        }
        out
    }

    const PIECES: [(&str, f32, u64); 8] = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("\u{2581}a", -1.0, 1),
        ("\u{2581}", -2.0, 1),
        ("a", -3.0, 1),
        ("<|user|>", 0.0, 4),
        ("<think>", 0.0, 4),
    ];

    fn file(trainer: &[(u64, u64)], normalizer: &[(u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (text, score, kind) in PIECES {
            let mut piece = Vec::new();
            bytes(1, text.as_bytes(), &mut piece);
            piece.push(2 << 3 | 5);
            piece.extend_from_slice(&score.to_le_bytes());
            piece.extend(numbers(&[(3, kind)]));
            bytes(1, &piece, &mut out);
        }
        bytes(2, &numbers(trainer), &mut out);
        bytes(3, &numbers(normalizer), &mut out);
        out
    }

    fn good() -> Vec<u8> {
        file(&[(3, 2), (40, 0), (41, 1), (42, 2), (43, u64::MAX)], &[(4, 0)])
    }

    #[test]
    fn pieces_scores_types_and_flags_are_taken() {
        let t =
            Tokenizer::new(Source::from_sentencepiece(&good(), None).expect("reads")).expect("a tokenizer");
        let ids = |text: &str, special| {
            let mut out = Vec::new();
            t.encode(text, special, &mut out);
            out.iter().map(|t| t.0).collect::<Vec<_>>()
        };
        assert_eq!((t.add_bos(), t.bos(), t.is_end(Token(2))), (true, Some(Token(1)), true));
        assert_eq!(ids("a a", Special::AsText), [3, 3]);
        assert_eq!(ids("<think>", Special::AsText), [7]);
        assert!(
            t.is_special(Token(6)) && !ids("<|user|>", Special::AsText).contains(&6),
            "a role is no text"
        );
        let config = br#"{"add_bos_token": false, "eos_token": "<think>", "added_tokens_decoder":
            {"8": {"content": "<x>", "special": true, "rstrip": true}, "7": {"content": "<think>", "special": true}}}"#;
        let config = TokenizerConfig::parse(config).expect("reads");
        let source = Source::from_sentencepiece(&good(), Some(&config)).expect("reads");
        let t = Tokenizer::new(source).expect("a tokenizer");
        assert!(!t.add_bos() && t.is_end(Token(7)) && t.is_special(Token(7)) && t.is_special(Token(8)));
        let bare = Source::from_sentencepiece(&file(&[(3, 2)], &[(3, 0), (4, 0)]), None).expect("reads");
        assert_eq!((bare.space_prefix, bare.strips_space), (SpacePrefix::Never, false));
    }

    #[test]
    fn other_kinds_and_damage_are_refused() {
        let said = |bytes: &[u8]| Source::from_sentencepiece(bytes, None).expect_err("must fail").to_string();
        assert!(said(&file(&[], &[(4, 0)])).contains("unigram"), "the default of the format");
        assert!(said(&file(&[(3, 4)], &[(4, 0)])).contains("char"));
        assert!(said(&file(&[(3, 2)], &[])).contains("normalizer_spec.remove_extra_whitespaces is true"));
        assert!(
            said(&file(&[(3, 2)], &[(4, 0), (5, 0)])).contains("normalizer_spec.escape_whitespaces is false")
        );
        assert!(
            said(&file(&[(3, 2), (41, 8)], &[(4, 0)]))
                .contains("trainer_spec.bos_id is 8, there are 8 pieces")
        );
        let mut mapped = good();
        let mut normalizer = Vec::new();
        bytes(2, b"map", &mut normalizer);
        bytes(3, &normalizer, &mut mapped);
        assert!(said(&mapped).contains("map of 3 bytes"));
        assert!(said(b"").contains("pieces are 0"));
        assert!(said(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).contains("4294967295 bytes"));
        assert!(said(&[0xff; 11]).contains("more than 10 bytes"));
        assert!(said(&[0x0b]).contains("wire type 3"));
        let mut typed = Vec::new();
        bytes(1, &numbers(&[(3, 7)]), &mut typed);
        assert!(said(&typed).contains("pieces[0].type is 7"));
        let whole = good();
        arbtest::arbtest(|u| {
            let mut bytes = whole.clone();
            for _ in 0..u.int_in_range(1..=4)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            bytes.truncate(u.int_in_range(0..=bytes.len())?);
            let _any = Source::from_sentencepiece(&bytes, None).and_then(Tokenizer::new);
            Ok(())
        });
    }
}
