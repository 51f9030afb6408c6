//! The patterns that cut text into words before merging: regular expressions of the models' makers, each written out
//! by hand as what it finds at the beginning of a text.
//!
//! `\s` is property White_Space throughout.

use super::unicode::{Class, class, is_capital, is_letter, is_number, is_small};

/// A regular expression. What it finds in text becomes a word, and so does each stretch of text between two finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    /// with `\p{M}` wherever `\p{L}` is gathered if `marks`.
    Words { fold: Fold, digits: usize, marks: bool },
    /// `P?U*L+C?|P?U+L*C?|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` where P is
    /// `[^\r\n\p{L}\p{N}]`, U and L are the two of `case`, and C is a contraction if there is a `fold`.
    Cased { case: Case, digits: usize, fold: Option<Fold> },
    /// `\p{N}{1,n}`
    Digits(usize),
    /// `[0-9][0-9][0-9]`
    AsciiThrees,
    /// `[\p{P}$+<=>^~|]+`, with the backtick if `backtick`.
    Punctuation { backtick: bool },
    /// `[\r\n]`
    LineEnd,
    /// `\s?\p{L}+`
    SpacedLetters,
    /// `\s?\p{P}+`
    SpacedPunctuation,
    /// `\s?[…]+` over the cased letters that DeepSeek lists.
    SpacedCased,
    /// `\s?[!-/:-~！-／：-～‘-‟　-。]+`
    SpacedSigns,
    /// `\s+$`
    TrailingSpace,
    /// `[一-龥ࠀ-一가-퟿]+`, of which white space is none.
    AsianWide,
    /// `[一-龥぀-ゟ゠-ヿ]+`
    Asian,
    /// `[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    DeepSeek3,
}

/// How a contraction such as `'s` may be spelt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// `'s`
    Lower,
    /// `'[sS]`
    Ascii,
    /// `(?i:'s)`: ſ is an s, too.
    Unicode,
}

/// Which letters may lead a word of [`Pattern::Cased`] and which may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// `[\p{L}--a-z]` and `[\p{L}--A-Z]`: llama.cpp's reading of the next.
    Ascii,
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    Unicode,
}

impl Case {
    fn leads(self, c: char) -> bool {
        match self {
            Self::Ascii => is_letter(c) && !c.is_ascii_lowercase(),
            Self::Unicode => matches!(class(c), Class::Letter | Class::Mark) && !is_small(c),
        }
    }

    fn follows(self, c: char) -> bool {
        match self {
            Self::Ascii => is_letter(c) && !c.is_ascii_uppercase(),
            Self::Unicode => matches!(class(c), Class::Letter | Class::Mark) && !is_capital(c),
        }
    }
}

impl Pattern {
    /// The pattern as llama.cpp reads it.
    pub(super) fn plain(self) -> Self {
        let ascii = |fold: Fold| if fold == Fold::Unicode { Fold::Ascii } else { fold };
        match self {
            Self::Words { fold, digits, marks } => Self::Words { fold: ascii(fold), digits, marks },
            Self::Cased { digits, fold, .. } => {
                Self::Cased { case: Case::Ascii, digits, fold: fold.map(ascii) }
            }
            other => other,
        }
    }

    /// Whether every text is found from end to end, without a stretch between.
    pub(super) fn covers(self) -> bool {
        matches!(self, Self::Gpt2 | Self::Words { .. } | Self::Cased { .. })
    }

    /// Bytes of the first word of `text`, which is not empty.
    pub(super) fn word(self, text: &str) -> usize {
        if self == Self::TrailingSpace {
            let end = text.trim_end().len();
            return if end == 0 { text.len() } else { end };
        }
        let found = |(at, _): (usize, char)| self.find(&text[at..]).map(|len| if at == 0 { len } else { at });
        text.char_indices().find_map(found).unwrap_or(text.len())
    }

    /// Bytes of what the pattern finds at the beginning of `text`, which is not empty. Where it finds nothing it has
    /// looked at a few characters only.
    fn find(self, text: &str) -> Option<usize> {
        let first = text.chars().next()?;
        match self {
            Self::Gpt2 => Some(gpt2(text, first)),
            Self::Words { fold, digits, marks } => Some(words(text, first, fold, digits, marks)),
            Self::Cased { case, digits, fold } => cased(text, first, case, fold)
                .or_else(|| some(digits_up_to(text, digits)))
                .or_else(|| signs(text, first, &['\r', '\n', '/'], is_sign))
                .or_else(|| white(text)),
            Self::Digits(n) => some(digits_up_to(text, n)),
            Self::AsciiThrees => {
                let found = text.as_bytes().get(..3)?;
                found.iter().all(u8::is_ascii_digit).then_some(3)
            }
            Self::Punctuation { backtick } => some(run(text, |c| {
                class(c) == Class::Punctuation || c.is_ascii_punctuation() && (backtick || c != '`')
            })),
            Self::LineEnd => is_line_end(first).then_some(1),
            Self::SpacedLetters => spaced(text, first, is_letter),
            Self::SpacedPunctuation => spaced(text, first, |c| class(c) == Class::Punctuation),
            Self::SpacedCased => spaced(text, first, |c| {
                c.is_ascii_alphabetic() || DEEPSEEK_CASED.iter().any(|r| r.contains(&c))
            }),
            // The list has the ideographic space; to llama.cpp white space above ASCII is in no list.
            Self::SpacedSigns => spaced(
                text,
                first,
                |c| matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '、'..='。'),
            ),
            Self::TrailingSpace => None,
            Self::AsianWide => some(run(text, |c| {
                matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}') && !c.is_whitespace()
            })),
            Self::Asian => {
                some(run(text, |c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}')))
            }
            Self::DeepSeek3 => deepseek3(text, first),
        }
    }
}

/// A find of no characters is none.
fn some(len: usize) -> Option<usize> {
    (len > 0).then_some(len)
}

fn gpt2(text: &str, first: char) -> usize {
    if let Some(len) = contraction(text, Fold::Lower) {
        return len;
    }
    let space = usize::from(first == ' ');
    let kind = |c: char| match class(c) {
        Class::Letter => 0,
        Class::Number => 1,
        Class::Space => 2,
        _ => 3,
    };
    match text[space..].chars().next().map(kind) {
        Some(next) if next != 2 => space + run(&text[space..], |c| kind(c) == next),
        _ => spaces(text),
    }
}

fn words(text: &str, first: char, fold: Fold, digits: usize, marks: bool) -> usize {
    let gathered = |c: char| is_letter(c) || marks && class(c) == Class::Mark;
    let sign = |c: char| is_sign(c) && !(marks && class(c) == Class::Mark);
    contraction(text, fold)
        .or_else(|| led(text, first, gathered))
        .or_else(|| some(digits_up_to(text, digits)))
        .or_else(|| signs(text, first, &['\r', '\n'], sign))
        .or_else(|| white(text))
        .unwrap_or(first.len_utf8())
}

/// `[^\r\n\p{L}\p{N}]?` and then what is gathered.
fn led(text: &str, first: char, gathered: impl Fn(char) -> bool) -> Option<usize> {
    let lead = lead(first);
    match run(&text[lead..], &gathered) {
        0 => some(run(text, gathered)),
        n => Some(lead + n),
    }
}

/// `[^\r\n\p{L}\p{N}]?`
fn lead(first: char) -> usize {
    if is_line_end(first) || is_letter(first) || is_number(first) { 0 } else { first.len_utf8() }
}

fn cased(text: &str, first: char, case: Case, fold: Option<Fold>) -> Option<usize> {
    // `U*L+`: where nothing that follows comes behind all that leads, the last of what leads may do both.
    let lower = |text: &str| {
        let head = run(text, |c| case.leads(c));
        match run(&text[head..], |c| case.follows(c)) {
            0 => {
                text[..head].char_indices().rfind(|&(_, c)| case.follows(c)).map(|(at, c)| at + c.len_utf8())
            }
            tail => Some(head + tail),
        }
    };
    // `U+L*`, tried after that: nothing that follows comes behind.
    let upper = |text: &str| some(run(text, |c| case.leads(c)));
    let lead = lead(first);
    let with = |find: &dyn Fn(&str) -> Option<usize>| {
        find(&text[lead..]).map(|n| lead + n).or_else(|| if lead > 0 { find(text) } else { None })
    };
    let end = with(&lower).or_else(|| with(&upper))?;
    Some(end + fold.and_then(|fold| contraction(&text[end..], fold)).unwrap_or(0))
}

fn deepseek3(text: &str, first: char) -> Option<usize> {
    let letters = |c: char| matches!(class(c), Class::Letter | Class::Mark);
    if first.is_ascii_punctuation() {
        let n = run(&text[1..], |c| c.is_ascii_alphabetic());
        if n > 0 {
            return Some(1 + n);
        }
    }
    let no_lead =
        is_line_end(first) || matches!(class(first), Class::Letter | Class::Punctuation | Class::Symbol);
    let lead = if no_lead { 0 } else { first.len_utf8() };
    match run(&text[lead..], letters) {
        0 => some(run(text, letters)),
        n => Some(lead + n),
    }
    .or_else(|| signs(text, first, &['\r', '\n'], |c| matches!(class(c), Class::Punctuation | Class::Symbol)))
    .or_else(|| white(text))
}

/// `\s?` and then a run of what is `like` it.
fn spaced(text: &str, first: char, like: impl Fn(char) -> bool) -> Option<usize> {
    let space = if first.is_whitespace() { first.len_utf8() } else { 0 };
    some(run(&text[space..], like)).map(|n| space + n)
}

/// ` ?[sign]+[ends]*`
fn signs(text: &str, first: char, ends: &[char], sign: impl Fn(char) -> bool) -> Option<usize> {
    let space = usize::from(first == ' ');
    let end = space + some(run(&text[space..], sign))?;
    Some(end + run(&text[end..], |c| ends.contains(&c)))
}

/// `[^\s\p{L}\p{N}]`
fn is_sign(c: char) -> bool {
    !matches!(class(c), Class::Space | Class::Letter | Class::Number)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`
fn white(text: &str) -> Option<usize> {
    let white = &text[..run(text, char::is_whitespace)];
    match white.rfind(['\r', '\n']) {
        Some(last) => Some(last + 1),
        None => some(spaces(text)),
    }
}

/// `\s+(?!\S)|\s+`: white space, but the last of several goes with the word that follows.
fn spaces(text: &str) -> usize {
    let white = run(text, char::is_whitespace);
    let last = text[..white].chars().next_back().map_or(0, char::len_utf8);
    if white < text.len() && white > last { white - last } else { white }
}

/// Bytes of the at most `n` numbers at the beginning.
fn digits_up_to(text: &str, n: usize) -> usize {
    text.chars().take(n).take_while(|&c| is_number(c)).map(char::len_utf8).sum()
}

/// Bytes of the characters at the beginning that are `like` it.
fn run(text: &str, like: impl Fn(char) -> bool) -> usize {
    text.find(|c| !like(c)).unwrap_or(text.len())
}

/// Bytes of an English contraction at the beginning.
fn contraction(text: &str, fold: Fold) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    if fold == Fold::Unicode && rest.starts_with('ſ') {
        return Some(1 + 'ſ'.len_utf8());
    }
    [b"s".as_slice(), b"t", b"re", b"ve", b"m", b"ll", b"d"]
        .into_iter()
        .find(|&tail| match rest.as_bytes().get(..tail.len()) {
            Some(found) if fold != Fold::Lower => found.eq_ignore_ascii_case(tail),
            found => found == Some(tail),
        })
        .map(|tail| 1 + tail.len())
}

/// The letters above ASCII that DeepSeek's first pattern lists: those with case.
#[rustfmt::skip]
const DEEPSEEK_CASED: [std::ops::RangeInclusive<char>; 85] = [
    '\u{b5}'..='\u{b5}', '\u{c0}'..='\u{d6}', '\u{d8}'..='\u{f6}', '\u{f8}'..='\u{1ba}',
    '\u{1bc}'..='\u{1bf}', '\u{1c4}'..='\u{293}', '\u{295}'..='\u{2af}', '\u{370}'..='\u{373}',
    '\u{376}'..='\u{376}', '\u{377}'..='\u{377}', '\u{37b}'..='\u{37d}', '\u{37f}'..='\u{37f}',
    '\u{386}'..='\u{386}', '\u{388}'..='\u{38a}', '\u{38c}'..='\u{38c}', '\u{38e}'..='\u{3a1}',
    '\u{3a3}'..='\u{3f5}', '\u{3f7}'..='\u{481}', '\u{48a}'..='\u{52f}', '\u{531}'..='\u{556}',
    '\u{10a0}'..='\u{10c5}', '\u{13a0}'..='\u{13f5}', '\u{13f8}'..='\u{13fd}', '\u{1c90}'..='\u{1cba}',
    '\u{1cbd}'..='\u{1cbf}', '\u{1d00}'..='\u{1d2b}', '\u{1d6b}'..='\u{1d77}', '\u{1d79}'..='\u{1d9a}',
    '\u{1e00}'..='\u{1f15}', '\u{1f18}'..='\u{1f1d}', '\u{1f20}'..='\u{1f45}', '\u{1f48}'..='\u{1f4d}',
    '\u{1f50}'..='\u{1f57}', '\u{1f59}'..='\u{1f59}', '\u{1f5b}'..='\u{1f5b}', '\u{1f5d}'..='\u{1f5d}',
    '\u{1f5f}'..='\u{1f7d}', '\u{1f80}'..='\u{1fb4}', '\u{1fb6}'..='\u{1fbc}', '\u{1fbe}'..='\u{1fbe}',
    '\u{1fc2}'..='\u{1fc4}', '\u{1fc6}'..='\u{1fcc}', '\u{1fd0}'..='\u{1fd3}', '\u{1fd6}'..='\u{1fdb}',
    '\u{1fe0}'..='\u{1fec}', '\u{1ff2}'..='\u{1ff4}', '\u{1ff6}'..='\u{1ffc}', '\u{2102}'..='\u{2102}',
    '\u{2107}'..='\u{2107}', '\u{210a}'..='\u{2113}', '\u{2115}'..='\u{2115}', '\u{2119}'..='\u{211d}',
    '\u{2124}'..='\u{2124}', '\u{2126}'..='\u{2126}', '\u{2128}'..='\u{2128}', '\u{212a}'..='\u{212d}',
    '\u{212f}'..='\u{2134}', '\u{2139}'..='\u{2139}', '\u{213c}'..='\u{213f}', '\u{2145}'..='\u{2149}',
    '\u{214e}'..='\u{214e}', '\u{2183}'..='\u{2183}', '\u{2184}'..='\u{2184}', '\u{2c00}'..='\u{2c7b}',
    '\u{2c7e}'..='\u{2ce4}', '\u{2ceb}'..='\u{2cee}', '\u{2cf2}'..='\u{2cf2}', '\u{2cf3}'..='\u{2cf3}',
    '\u{a640}'..='\u{a66d}', '\u{a680}'..='\u{a69b}', '\u{a722}'..='\u{a76f}', '\u{a771}'..='\u{a787}',
    '\u{a78b}'..='\u{a78e}', '\u{ab70}'..='\u{abbf}', '\u{fb00}'..='\u{fb06}', '\u{fb13}'..='\u{fb17}',
    '\u{ff21}'..='\u{ff3a}', '\u{ff41}'..='\u{ff5a}', '\u{10400}'..='\u{1044f}', '\u{104b0}'..='\u{104d3}',
    '\u{104d8}'..='\u{104fb}', '\u{10c80}'..='\u{10cb2}', '\u{10cc0}'..='\u{10cf2}',
    '\u{118a0}'..='\u{118df}', '\u{1e900}'..='\u{1e943}',
];
