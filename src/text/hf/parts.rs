//! The components of a `tokenizer.json` around the model: a closed list, told by name. What is not in it is refused:
//! ignoring it would give other tokens.

use serde_json::Value;

use super::super::TextError;
use super::super::source::{SpacePrefix, WordRules};
use super::super::split::{Case, Fold, Pattern};
use super::super::spm::SPACE;
use super::{FILE, shown_value};

/// What the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bpe,
    WordPiece,
}

/// What the components say.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// How text is made ready for WordPiece; the model's own part of the rules is empty.
    pub(super) words: Option<WordRules>,
    pub(super) nfc: bool,
    /// Whether spaces become [`SPACE`] before anything else.
    escapes: bool,
    /// Where a space is put that nobody wrote.
    pub(super) prefix: Option<SpacePrefix>,
    patterns: Vec<Pattern>,
    /// Whether text becomes letters that stand for bytes.
    pub(super) spells_bytes: bool,
    /// Whether a pre-tokenizer cuts at spaces.
    cuts_spaces: bool,
    /// Whether the decoder drops the first space.
    pub(super) strips: bool,
    /// The texts of the tokens that go before a text, with their ids.
    pub(super) begins: Vec<(String, u32)>,
    /// Special tokens behind it, likewise.
    pub(super) closes: Vec<(String, u32)>,
}

/// A component with the keys that lead to it, or each of a sequence of them.
fn each(
    at: &str,
    list: &'static str,
    value: &Value,
    take: &mut dyn FnMut(&str, &str, &Value) -> Result<(), TextError>,
) -> Result<(), TextError> {
    if value.is_null() {
        return Ok(());
    }
    match value["type"].as_str() {
        Some("Sequence") => {
            let all = value[list].as_array().ok_or_else(|| unknown(at, value, "a Sequence with a list"))?;
            let mut in_order = all.iter().enumerate();
            in_order.try_for_each(|(i, value)| each(&format!("{at}.{list}[{i}]"), list, value, take))
        }
        Some(kind) => take(at, kind, value),
        None => Err(unknown(at, value, "a component with a type")),
    }
}

fn unknown(at: &str, found: &Value, known: &'static str) -> TextError {
    TextError::Component { file: FILE, at: at.to_owned(), found: shown_value(found), known }
}

impl Parts {
    pub(super) fn read(
        model: Kind,
        normalizer: &Value,
        pre_tokenizer: &Value,
        decoder: &Value,
        post_processor: &Value,
    ) -> Result<Self, TextError> {
        let mut parts = Self::default();
        if model == Kind::WordPiece {
            parts.words = Some(words(normalizer, pre_tokenizer, decoder)?);
            each("post_processor", "processors", post_processor, &mut |at, kind, value| {
                parts.post_processor(at, kind, value)
            })?;
            return Ok(parts);
        }
        each("normalizer", "normalizers", normalizer, &mut |at, kind, value| {
            parts.normalizer(at, kind, value)
        })?;
        each("pre_tokenizer", "pretokenizers", pre_tokenizer, &mut |at, kind, value| {
            parts.pre_tokenizer(at, kind, value)
        })?;
        let mut decodes_bytes = false;
        each("decoder", "decoders", decoder, &mut |at, kind, value| {
            decodes_bytes |= kind == "ByteLevel";
            parts.decoder(at, kind, value)
        })?;
        each("post_processor", "processors", post_processor, &mut |at, kind, value| {
            parts.post_processor(at, kind, value)
        })?;
        let wanted = if !parts.spells_bytes {
            let escapes = parts.escapes || parts.prefix.is_some();
            let fits = escapes && parts.patterns.is_empty() && !decodes_bytes;
            (!fits).then_some("a ByteLevel one, Metaspace, or a normalizer that makes spaces ▁")
        } else {
            let fits = !parts.escapes && parts.prefix.is_none() && !parts.cuts_spaces && !parts.strips;
            (!fits).then_some("ByteLevel without other treatment of spaces")
        };
        match wanted {
            Some(known) => Err(unknown("pre_tokenizer", pre_tokenizer, known)),
            None => Ok(parts),
        }
    }

    /// The patterns of the byte-level kind.
    pub(super) fn take_patterns(&mut self) -> Vec<Pattern> {
        std::mem::take(&mut self.patterns)
    }

    fn normalizer(&mut self, at: &str, kind: &str, value: &Value) -> Result<(), TextError> {
        match kind {
            "NFC" => self.nfc = true,
            "Prepend" if value["prepend"] == SPACE => self.prefix = Some(SpacePrefix::Always),
            "Replace" if value["pattern"]["String"] == " " && value["content"] == SPACE => {
                self.escapes = true
            }
            _ => {
                return Err(unknown(at, value, "NFC, Prepend ▁, Replace of a space by ▁, Sequence"));
            }
        }
        Ok(())
    }

    fn pre_tokenizer(&mut self, at: &str, kind: &str, value: &Value) -> Result<(), TextError> {
        let refuse = |known| Err(unknown(at, value, known));
        if self.spells_bytes {
            return refuse("nothing behind ByteLevel");
        }
        match kind {
            "ByteLevel" => {
                if value["add_prefix_space"] == true {
                    return refuse("ByteLevel without add_prefix_space");
                }
                self.spells_bytes = true;
                if value["use_regex"] != false {
                    self.patterns.push(Pattern::Gpt2);
                }
            }
            "Digits" => {
                self.patterns.push(Pattern::Digits(if value["individual_digits"] == true {
                    1
                } else {
                    usize::MAX
                }));
            }
            "Punctuation" if value["behavior"] == "Contiguous" => {
                self.patterns.push(Pattern::Punctuation { backtick: true });
            }
            // The normalizer left none.
            "Split" if value["pattern"]["String"] == " " && self.escapes => self.cuts_spaces = true,
            "Split" => {
                let regex = value["pattern"]["Regex"].as_str();
                let Some(pattern) = regex.and_then(pattern) else {
                    return refuse(
                        "Split by the regular expressions of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2 to 3.5, \
                        Mistral's tekken and DeepSeek 3",
                    );
                };
                // To keep what is found alone, or to drop what is between finds: the same where nothing is between.
                let invert = value["invert"] == true;
                match value["behavior"].as_str() {
                    Some("Isolated") => {}
                    Some("Removed") if invert && pattern.covers() => {}
                    _ => return refuse("Split with behavior Isolated"),
                }
                self.patterns.push(pattern);
            }
            "Metaspace" => {
                if value["replacement"] != SPACE || value["split"] != false {
                    return refuse("Metaspace with replacement ▁ and split false");
                }
                self.prefix = Some(match (value["prepend_scheme"].as_str(), &value["add_prefix_space"]) {
                    (Some("never"), _) | (None, Value::Bool(false)) => SpacePrefix::Never,
                    (Some("first"), _) => SpacePrefix::First,
                    (Some("always") | None, _) => SpacePrefix::Missing,
                    (Some(_), _) => return refuse("Metaspace with prepend_scheme always, first or never"),
                });
            }
            _ => return refuse("ByteLevel, Split, Digits, Punctuation, Metaspace, Sequence"),
        }
        Ok(())
    }

    fn decoder(&mut self, at: &str, kind: &str, value: &Value) -> Result<(), TextError> {
        match kind {
            "ByteLevel" | "ByteFallback" | "Fuse" => {}
            "Replace" if value["pattern"]["String"] == SPACE && value["content"] == " " => {}
            "Strip"
                if value["content"] == " "
                    && value["stop"] == 0
                    && (value["start"] == 0 || value["start"] == 1) =>
            {
                self.strips |= value["start"] == 1;
            }
            "Metaspace" if value["replacement"] == SPACE => {
                self.strips |= value["prepend_scheme"] != "never" && value["add_prefix_space"] != false;
            }
            _ => {
                let known = "ByteLevel, ByteFallback, Fuse, Replace of ▁ by a space, Strip of one, Metaspace, Sequence";
                return Err(unknown(at, value, known));
            }
        }
        Ok(())
    }

    fn post_processor(&mut self, at: &str, kind: &str, value: &Value) -> Result<(), TextError> {
        let refuse = |known| Err(unknown(at, value, known));
        match kind {
            // Mends offsets only.
            "ByteLevel" => Ok(()),
            "TemplateProcessing" => {
                let mut seen_text = false;
                for item in value["single"].as_array().into_iter().flatten() {
                    if !item["Sequence"].is_null() {
                        seen_text = true;
                        continue;
                    }
                    let id = &item["SpecialToken"]["id"];
                    let Some(name) = id.as_str() else { return refuse("templates of special tokens") };
                    let ids = value["special_tokens"][name]["ids"].as_array().map_or(&[][..], Vec::as_slice);
                    let [id] = ids else { return refuse("special tokens with one id") };
                    let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                        return refuse("special tokens with one id");
                    };
                    let tokens = if seen_text { &mut self.closes } else { &mut self.begins };
                    tokens.push((name.to_owned(), id));
                }
                if seen_text { Ok(()) } else { refuse("templates with the text in them") }
            }
            "BertProcessing" | "RobertaProcessing" => {
                let token = |key: &str| {
                    let id = value[key][1].as_u64().and_then(|id| u32::try_from(id).ok())?;
                    Some((value[key][0].as_str()?.to_owned(), id))
                };
                let (Some(begin), Some(close)) = (token("cls"), token("sep")) else {
                    return refuse("the text and the id of cls and of sep");
                };
                self.begins.push(begin);
                self.closes.push(close);
                Ok(())
            }
            _ => refuse("ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing, Sequence"),
        }
    }
}

/// What the components around a WordPiece model say.
fn words(normalizer: &Value, pre_tokenizer: &Value, decoder: &Value) -> Result<WordRules, TextError> {
    if normalizer["type"] != "BertNormalizer" {
        return Err(unknown("normalizer", normalizer, "BertNormalizer before a WordPiece model"));
    }
    if pre_tokenizer["type"] != "BertPreTokenizer" {
        return Err(unknown("pre_tokenizer", pre_tokenizer, "BertPreTokenizer before a WordPiece model"));
    }
    if !decoder.is_null() && decoder["type"] != "WordPiece" {
        return Err(unknown("decoder", decoder, "WordPiece behind a WordPiece model"));
    }
    let yes = |key: &str| normalizer[key] != false;
    let lower = yes("lowercase");
    Ok(WordRules {
        clean: yes("clean_text"),
        chinese: yes("handle_chinese_chars"),
        // Where it is not said, they go with the case.
        accents: !normalizer["strip_accents"].as_bool().unwrap_or(lower),
        lower,
        inside: String::new(),
        max_chars: 0,
    })
}

/// The pattern of a regular expression that is known.
fn pattern(regex: &str) -> Option<Pattern> {
    let words = |digits, marks| Pattern::Words { fold: Fold::Unicode, digits, marks };
    let cased = |digits, fold| Pattern::Cased { case: Case::Unicode, digits, fold };
    Some(match regex {
        GPT2 | GPT2_SHORT => Pattern::Gpt2,
        GPT4 | GPT4_SHORT => words(3, false),
        QWEN2 | QWEN2_SHORT => words(1, false),
        QWEN35 => words(1, true),
        TEKKEN => cased(1, None),
        GPT4O => cased(3, Some(Fold::Unicode)),
        r"\p{N}{1,3}" => Pattern::Digits(3),
        r"\p{N}" => Pattern::Digits(1),
        r"\p{N}+" => Pattern::Digits(usize::MAX),
        "[一-龥぀-ゟ゠-ヿ]+" => Pattern::Asian,
        DEEPSEEK3 => Pattern::DeepSeek3,
        _ => return None,
    })
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT2_SHORT: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's, too.
const GPT4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As tiktoken has it. Only the spelling differs: white space runs greedily up to its last line end, and what is
/// possessive cannot give anything back.
const GPT4_SHORT: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SHORT: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
