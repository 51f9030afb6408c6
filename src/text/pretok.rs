//! Cutting text into words before merging: which patterns each family of models uses, under the names that GGUF files
//! have for them (`tokenizer.ggml.pre`, as llama.cpp reads it).

use super::TextError;
use super::split::{Case, Fold, Pattern};

/// How a byte-level vocabulary cuts text into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pre {
    /// One after the other: each cuts the words of the one before.
    patterns: Vec<Pattern>,
    /// Whether a word that is a piece is taken as it is, be it out of the merges' reach.
    pub(super) ignore_merges: bool,
    /// Whether bos goes before a prompt where the file does not say.
    adds_bos: bool,
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|…`
const LLAMA3: &[Pattern] = &[Pattern::Words { fold: Fold::Ascii, digits: 3, marks: false }];
const QWEN2: &[Pattern] = &[Pattern::Words { fold: Fold::Ascii, digits: 1, marks: false }];
const QWEN35: &[Pattern] = &[Pattern::Words { fold: Fold::Ascii, digits: 1, marks: true }];
const GPT2: &[Pattern] = &[Pattern::Gpt2];
const STARCODER: &[Pattern] = &[Pattern::Digits(1), Pattern::Gpt2];
const TEKKEN: &[Pattern] = &[Pattern::Cased { case: Case::Ascii, digits: 1, fold: None }];
const GPT4O: &[Pattern] = &[Pattern::Cased { case: Case::Ascii, digits: 3, fold: Some(Fold::Ascii) }];
const DEEPSEEK3: &[Pattern] = &[Pattern::Digits(3), Pattern::Asian, Pattern::DeepSeek3];
const DEEPSEEK_LLM: &[Pattern] = &[
    Pattern::LineEnd,
    Pattern::SpacedCased,
    Pattern::SpacedSigns,
    Pattern::TrailingSpace,
    Pattern::AsianWide,
    Pattern::Digits(usize::MAX),
];
const DEEPSEEK_CODER: &[Pattern] = &[
    Pattern::LineEnd,
    Pattern::SpacedLetters,
    Pattern::SpacedPunctuation,
    Pattern::AsianWide,
    Pattern::Digits(1),
];
const FALCON: &[Pattern] = &[Pattern::Punctuation { backtick: true }, Pattern::Gpt2, Pattern::AsciiThrees];
/// What llama.cpp takes where a file names nothing.
const DEFAULT: &[Pattern] = &[
    Pattern::Punctuation { backtick: false },
    Pattern::Gpt2,
    Pattern::Digits(usize::MAX),
    Pattern::AsciiThrees,
];

/// A word that is a piece stays whole.
const WHOLE: bool = true;
/// Bos goes before a prompt.
const BOS: bool = true;

/// Names of files, their patterns, `ignore_merges`, and whether bos goes before a prompt.
#[rustfmt::skip]
const NAMES: &[(&[&str], &[Pattern], bool, bool)] = &[
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], LLAMA3, WHOLE, BOS),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], LLAMA3, false, false),
    (&["glm4"], LLAMA3, WHOLE, false),
    (&["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open", "grok-2"], QWEN2, false, false),
    (&["qwen35"], QWEN35, false, false),
    (&["gpt-2", "phi-2", "mpt", "olmo", "exaone4", "granite-docling", "jais", "trillion", "gigachat", "mellum",
       "a.x-4.0"], GPT2, false, false),
    (&["starcoder", "refact", "smollm", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], STARCODER, false,
     false),
    (&["tekken"], TEKKEN, WHOLE, BOS),
    (&["gpt-4o", "llama4", "kanana2", "minimax-m2"], GPT4O, false, false),
    (&["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"], DEEPSEEK3, false, false),
    (&["deepseek-llm"], DEEPSEEK_LLM, false, false),
    (&["deepseek-coder"], DEEPSEEK_CODER, false, false),
    (&["falcon"], FALCON, false, false),
    (&["default"], DEFAULT, false, false),
];

impl Pre {
    /// What `tokenizer.ggml.pre` names; a file that names nothing means `default`.
    ///
    /// # Errors
    /// When the name is not known.
    pub fn named(name: Option<&str>) -> Result<Self, TextError> {
        let name = name.unwrap_or("default");
        let (_, patterns, ignore_merges, adds_bos) =
            NAMES
                .iter()
                .find(|(names, ..)| names.contains(&name))
                .ok_or_else(|| TextError::PreTokenizer { found: name.chars().take(64).collect() })?;
        Ok(Self { patterns: patterns.to_vec(), ignore_merges: *ignore_merges, adds_bos: *adds_bos })
    }

    /// Patterns that a `tokenizer.json` spells out.
    pub(super) fn new(patterns: Vec<Pattern>, ignore_merges: bool) -> Self {
        Self { patterns, ignore_merges, adds_bos: false }
    }

    /// Whether bos goes before a prompt where the file does not say.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// A name that means the same, but for what only llama.cpp's reading of the patterns does: in a contraction `ſ` is no
    /// `s` to it, and the letters that may begin a word and follow in it are told by their case in ASCII alone.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        let alike = |patterns: &[Pattern]| {
            patterns.len() == self.patterns.len()
                && patterns.iter().zip(&self.patterns).all(|(a, b)| a.plain() == b.plain())
        };
        let same = |(_, patterns, ignore_merges, _): &&(_, &[Pattern], bool, _)| {
            *ignore_merges == self.ignore_merges && alike(patterns)
        };
        NAMES.iter().find(same).and_then(|(names, ..)| names.first().copied())
    }

    /// The names that are known.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().flat_map(|(names, ..)| names.iter().copied())
    }

    /// Hands the words of `text` to `take`; together they are `text`, none is empty.
    pub fn words<'a>(&self, text: &'a str, mut take: impl FnMut(&'a str)) {
        cut(&self.patterns, text, &mut take);
    }
}

/// The words that `patterns` cut.
fn cut<'a>(patterns: &[Pattern], mut text: &'a str, take: &mut dyn FnMut(&'a str)) {
    let Some((pattern, more)) = patterns.split_first() else { return take(text) };
    while !text.is_empty() {
        let (word, rest) = text.split_at(pattern.word(text));
        cut(more, word, take);
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        Pre::named(Some(name)).expect("a known name").words(text, |word| out.push(word.to_owned()));
        out
    }

    #[test]
    fn words_of_the_common_patterns() {
        let text = "It's I'LL  go\n\n  1234 x+=1\t\ty ";
        let gpt2 = [
            "It", "'s", " I", "'", "LL", " ", " go", "\n\n ", " 1234", " x", "+=", "1", "\t", "\t", "y", " ",
        ];
        assert_eq!(cut("gpt-2", text), gpt2);
        let llama = [
            "It", "'s", " I", "'LL", " ", " go", "\n\n", " ", " ", "123", "4", " x", "+=", "1", "\t", "\ty",
            " ",
        ];
        assert_eq!(cut("llama-bpe", text), llama);
        let qwen = [
            "It", "'s", " I", "'LL", " ", " go", "\n\n", " ", " ", "1", "2", "3", "4", " x", "+=", "1", "\t",
            "\ty", " ",
        ];
        assert_eq!(cut("qwen2", text), qwen);
        assert_eq!(cut("llama-bpe", " \n \n  é!\r\n\r\n-"), [" \n \n", " ", " é", "!\r\n\r\n", "-"]);
        assert_eq!(
            cut("gpt-4o", "fooBar'S XMLa 漢A 12345/\n"),
            ["foo", "Bar'S", " XMLa", " 漢", "A", " ", "123", "45", "/\n"]
        );
        assert_eq!(
            cut("deepseek-v3", "a1234 漢字かな\u{200d}🙂 .b"),
            ["a", "123", "4", " ", "漢字かな", "\u{200d}", "🙂", " .", "b"]
        );
    }

    #[test]
    fn words_are_never_empty_and_make_the_text() {
        let alphabet: Vec<char> =
            "ab'sLlſ 1٣½\t\n\r\u{a0}\u{3000}éÉ漢か\u{301}\u{200d}🙂+.`/\0".chars().collect();
        let names: Vec<&str> = Pre::names().collect();
        arbtest::arbtest(|u| {
            let n = u.int_in_range(0..=30)?;
            let text: String = (0..n).map(|_| u.choose(&alphabet)).collect::<Result<_, _>>()?;
            for name in &names {
                let words = cut(name, &text);
                assert!(words.iter().all(|w| !w.is_empty()), "{name} {text:?}");
                assert_eq!(words.concat(), text, "{name}");
            }
            Ok(())
        });
    }

    #[test]
    fn a_name_is_found_for_what_it_means() {
        for name in Pre::names() {
            let pre = Pre::named(Some(name)).expect("a known name");
            let found = pre.name().expect("it has one");
            assert_eq!(
                Pre { adds_bos: false, ..Pre::named(Some(found)).unwrap() },
                Pre { adds_bos: false, ..pre }
            );
        }
        let unicode = Pattern::Words { fold: Fold::Unicode, digits: 1, marks: false };
        assert_eq!(Pre::new(vec![unicode], false).name(), Some("qwen2"));
        assert_eq!(Pre::new(vec![unicode], true).name(), None);
        assert_eq!(Pre::new(vec![Pattern::Digits(2)], false).name(), None);
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let said = Pre::named(Some("superbpe")).expect_err("must fail").to_string();
        assert!(said.contains("\"superbpe\"") && Pre::names().all(|name| said.contains(name)), "{said}");
        assert_eq!(Pre::named(None), Pre::named(Some("default")));
    }
}
