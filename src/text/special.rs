//! Special tokens in text: finding them, and keeping them out of what users write.
//!
//! A chat template puts the users' text and control tokens into one string. So that the two stay apart, a mark goes
//! into every place of a message where its text could be read as a control token, alone or together with the
//! template's text around it. [`Guards`] says which tokens those are. The mark breaks the token; after the string was
//! cut at the true control tokens, the marks are taken out, and the words around them merge as if there had been none.

use super::TextError;
use super::unicode::{Class, class};
use super::vocab::{Kind, Vocab};
use crate::base::Token;
use crate::base::limits::SPECIAL_BYTES_MAX;

/// A noncharacter: Unicode keeps it for a program's own use, text never needs it.
pub(super) const MARK: char = '\u{fdd0}';

/// What becomes of control tokens that are spelt out in text. User-defined tokens are recognized either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They are text like any other.
    AsText,
    /// They become the tokens: for text that a template has put together.
    Parse,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Special(Token),
}

/// Tokens that are recognized in text as a whole.
pub(super) struct Table {
    /// By their text, without doubles.
    sorted: Vec<Token>,
    /// For each of them the longest other one that it begins with; itself where there is none.
    shorter: Vec<u32>,
    /// The bytes with which one begins.
    first: [bool; 256],
}

impl Table {
    /// The tokens of the wanted kinds. Pieces that are empty or no UTF-8 cannot occur in text.
    pub(super) fn new(vocab: &Vocab, wanted: &[Kind]) -> Result<Self, TextError> {
        let mut tokens = Vec::new();
        for (token, kind, piece) in vocab.tokens() {
            if !wanted.contains(&kind) || piece.is_empty() || std::str::from_utf8(piece).is_err() {
                continue;
            }
            if piece.len() > SPECIAL_BYTES_MAX {
                return Err(TextError::SpecialLength { id: token.0, len: piece.len() });
            }
            tokens.push(token);
        }
        Ok(Self::of(vocab, tokens))
    }

    fn of(vocab: &Vocab, mut sorted: Vec<Token>) -> Self {
        sorted.sort_by_key(|&token| (vocab.piece(token), token));
        sorted.dedup_by_key(|token| vocab.piece(*token));
        let (mut shorter, mut first) = (Vec::with_capacity(sorted.len()), [false; 256]);
        // Those that the last one begins with, shortest first.
        let mut begins: Vec<u32> = Vec::new();
        for (i, &token) in (0..).zip(&sorted) {
            let piece = vocab.piece(token);
            first[usize::from(piece[0])] = true;
            while begins.last().is_some_and(|&j| !piece.starts_with(vocab.piece(sorted[j as usize]))) {
                begins.pop();
            }
            shorter.push(begins.last().copied().unwrap_or(i));
            begins.push(i);
        }
        Self { sorted, shorter, first }
    }

    /// The tokens of this table that `keep`, and those of `other`.
    fn some_and(&self, vocab: &Vocab, other: &Self, keep: impl Fn(Token, &str) -> bool) -> Self {
        let kept = self.sorted.iter().copied().filter(|&token| {
            let piece = std::str::from_utf8(vocab.piece(token));
            piece.is_ok_and(|piece| keep(token, piece))
        });
        Self::of(vocab, kept.chain(other.sorted.iter().copied()).collect())
    }

    /// The longest token that `text` begins with, and its bytes. What `text` begins with stands before it in the order
    /// of texts, and its neighbour there begins with the same.
    fn longest(&self, vocab: &Vocab, text: &str) -> Option<(Token, usize)> {
        let text = text.as_bytes();
        if !text.first().is_some_and(|&byte| self.first[usize::from(byte)]) {
            return None;
        }
        let behind = self.sorted.partition_point(|&token| vocab.piece(token) <= text);
        let mut at = behind.checked_sub(1)?;
        let neighbour = vocab.piece(self.sorted[at]);
        let alike = neighbour.iter().zip(text).take_while(|(a, b)| a == b).count();
        loop {
            let len = vocab.piece(self.sorted[at]).len();
            if len <= alike {
                return Some((self.sorted[at], len));
            }
            let shorter = self.shorter[at] as usize;
            if shorter == at {
                return None;
            }
            at = shorter;
        }
    }

    /// Whether a token begins with all of `text`.
    fn begins(&self, vocab: &Vocab, text: &[u8]) -> bool {
        let at = self.sorted.partition_point(|&token| vocab.piece(token) < text);
        self.sorted.get(at).is_some_and(|&token| vocab.piece(token).starts_with(text))
    }

    /// Cuts `text` into tokens of this table, the leftmost first and the longest of those, and the text between.
    /// `marked` says that a one-character token before a [`MARK`] is text.
    pub(super) fn split<'a>(
        &self,
        vocab: &Vocab,
        text: &'a str,
        marked: bool,
        mut take: impl FnMut(Part<'a>),
    ) {
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            let is_text = |end: usize| marked && end == at + c.len_utf8() && text[end..].starts_with(MARK);
            match self.longest(vocab, &text[at..]) {
                Some((token, len)) if !is_text(at + len) && stands(vocab, token, text, at, at + len) => {
                    let edges = vocab.edges(token);
                    // Marks in white space have nothing left to keep apart.
                    let white = |c: char| c.is_whitespace() || marked && c == MARK;
                    let before = &text[start..at];
                    let before = if edges.left { before.trim_end_matches(white) } else { before };
                    if !before.is_empty() {
                        take(Part::Text(before));
                    }
                    take(Part::Special(token));
                    let behind = &text[at + len..];
                    let behind = if edges.right { behind.trim_start_matches(white) } else { behind };
                    at = text.len() - behind.len();
                    start = at;
                }
                _ => at += c.len_utf8(),
            }
        }
        if start < text.len() {
            take(Part::Text(&text[start..]));
        }
    }

    /// `content` of a message with marks such that no token of this table can be read in it, nor across its borders
    /// with other text. Nothing else changes, but marks that it held already are taken out.
    pub(super) fn mark(&self, vocab: &Vocab, content: &str) -> String {
        let content = content.replace(MARK, "");
        // Templates often trim, so the borders are those of the trimmed text.
        let start = content.len() - content.trim_start().len();
        let end = content.trim_end().len();
        let mut out = String::with_capacity(content.len());
        for (at, c) in content.char_indices() {
            if at == start && self.continues(vocab, &content.as_bytes()[start..end]) {
                out.push(MARK);
            }
            out.push(c);
            // Up to a border it may go on beyond it.
            let open = |end: usize| {
                (at + 1..=at + SPECIAL_BYTES_MAX).contains(&end)
                    && self.first[usize::from(content.as_bytes()[at])]
                    && self.begins(vocab, &content.as_bytes()[at..end])
            };
            if open(end) || open(content.len()) || self.longest(vocab, &content[at..]).is_some() {
                out.push(MARK);
            }
        }
        out
    }

    /// `name` as it is, or with marks where it holds a whole token. A name is compared by templates, so that it is not
    /// marked for what could stand around it: that is the template's own text, which put the name there.
    pub(super) fn mark_name(&self, vocab: &Vocab, name: &str) -> String {
        let mut whole = false;
        self.split(vocab, name, false, |part| whole |= matches!(part, Part::Special(_)));
        if whole { self.mark(vocab, name) } else { name.to_owned() }
    }

    /// Whether `text` could be the rest of a token that began before it.
    fn continues(&self, vocab: &Vocab, text: &[u8]) -> bool {
        let Some(first) = text.first() else { return false };
        self.sorted.iter().any(|&token| {
            let piece = vocab.piece(token);
            let meets = |rest: &[u8]| rest[0] == *first && (rest.starts_with(text) || text.starts_with(rest));
            (1..piece.len()).any(|at| meets(&piece[at..]))
        })
    }
}

/// What a message may not spell. Control tokens, everywhere; and user-defined ones that steer the model all the same,
/// as the roles of DeepSeek and the channels of Gemma 4 do.
pub(super) struct Guards {
    /// In what people and tools say.
    pub(super) said: Table,
    /// In the model's own messages: a template that takes them apart at a token, to leave out what was thought, finds it.
    pub(super) own: Table,
}

impl Guards {
    /// For conversations that `template` puts together; `ends` begin or end a text.
    pub(super) fn new(
        vocab: &Vocab,
        control: &Table,
        user_defined: &Table,
        ends: &[Token],
        template: &str,
    ) -> Self {
        let mut spelt = Vec::new();
        user_defined.split(vocab, template, false, |part| {
            if let Part::Special(token) = part {
                spelt.push(token);
            }
        });
        spelt.sort_unstable();
        let said = |token: Token, piece: &str| {
            let steers = ends.contains(&token) || spelt.binary_search(&token).is_ok();
            is_role(piece) || is_word(piece) && steers
        };
        let own = |token: Token, piece: &str| said(token, piece) && !looks_for(template, piece);
        Self {
            said: user_defined.some_and(vocab, control, said),
            own: user_defined.some_and(vocab, control, own),
        }
    }
}

/// Roles as models name them.
const ROLES: [&str; 8] = ["system", "developer", "user", "assistant", "tool", "model", "human", "bot"];

/// `<|…|>`, `<｜…｜>`, one half of that, `[|…|]`, or a role in other signs, with white space around it or none.
fn is_role(piece: &str) -> bool {
    let (bars, piece) = (['|', '｜'], piece.trim());
    let bare = piece.trim_matches(|c: char| !c.is_alphanumeric());
    if bare.len() < piece.len() && ROLES.iter().any(|role| bare.eq_ignore_ascii_case(role)) {
        return true;
    }
    let angles = piece.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let squares = piece.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    angles.is_some_and(|inner| inner.starts_with(bars) || inner.ends_with(bars))
        || squares.is_some_and(|inner| inner.starts_with(bars) && inner.ends_with(bars))
}

/// What a template does not spell by accident: more than a letter, more than white space, more than a plain word.
fn is_word(piece: &str) -> bool {
    piece.chars().count() > 1 && piece.contains(|c: char| !c.is_alphanumeric() && !c.is_whitespace())
}

/// Whether a template takes texts apart at `piece`.
fn looks_for(template: &str, piece: &str) -> bool {
    ['\'', '"'].iter().any(|quote| {
        let text = format!("{quote}{piece}{quote}");
        template.contains(&format!("split({text}")) || template.contains(&format!("{text} in "))
    })
}

/// Whether `token`, found at `from..to` of `text`, may stand there: one that must stand alone may not touch a word.
fn stands(vocab: &Vocab, token: Token, text: &str, from: usize, to: usize) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_' || class(c) == Class::Mark;
    !vocab.edges(token).word
        || !text[..from].chars().next_back().is_some_and(in_word)
            && !text[to..].chars().next().is_some_and(in_word)
}

#[cfg(test)]
mod tests {
    use super::super::source::Edges;
    use super::*;
    use crate::base::Strings;

    fn table(pieces: &[&str]) -> (Vocab, Table) {
        let vocab =
            Vocab::new(Strings::owned(pieces), vec![3; pieces.len()], true, false).expect("a vocabulary");
        let table = Table::new(&vocab, &[Kind::Control]).expect("a table");
        (vocab, table)
    }

    fn parts(pieces: &[&str], text: &str, marked: bool) -> Vec<String> {
        let (vocab, table) = table(pieces);
        let mut out = Vec::new();
        table.split(&vocab, text, marked, |part| {
            out.push(match part {
                Part::Text(text) => text.to_owned(),
                Part::Special(token) => format!("#{}", token.0),
            });
        });
        out
    }

    #[test]
    fn the_leftmost_and_longest_is_taken() {
        let pieces = ["<a>", "<a><b>", "<b>", "é", "", "<a>"];
        assert_eq!(parts(&pieces, "x<a><b><b>é<a>y<a", false), ["x", "#1", "#2", "#3", "#0", "y<a"]);
        assert_eq!(parts(&pieces, "", false), [""; 0]);
        assert_eq!(parts(&["x"], "<a>", false), ["<a>"]);
    }

    #[test]
    fn tokens_take_white_space_with_them_and_stand_alone() {
        let (mut vocab, table) = table(&["<l>", "<r>", "word"]);
        let (left, right, word) = (true, true, true);
        vocab.set_edges(vec![
            (Token(2), Edges { word, ..Edges::default() }),
            (Token(0), Edges { left, ..Edges::default() }),
            (Token(1), Edges { right, ..Edges::default() }),
        ]);
        let parts = |text: &str| {
            let mut out = Vec::new();
            table.split(&vocab, text, true, |part| out.push(format!("{part:?}")));
            out.join(" ").replace("Special(Token", "(")
        };
        assert_eq!(parts("a <l> <r> \u{3000}b"), r#"Text("a") ((0)) Text(" ") ((1)) Text("b")"#);
        assert_eq!(parts("<r> \n\u{fdd0} <l> <r> "), "((1)) ((0)) Text(\" \") ((1))");
        assert_eq!(parts("word sword word_ word!"), r#"((2)) Text(" sword word_ ") ((2)) Text("!")"#);
    }

    #[test]
    fn marks_keep_text_apart_from_control_tokens() {
        let pieces = ["<s>", "</s>", "|", "<|end|>", "<|end|><s>", "\n\n"];
        let (vocab, table) = table(&pieces);
        assert_eq!(table.mark(&vocab, "a < b > \u{fdd0}c"), "a < b > c", "no look-alike, no mark");
        assert_eq!(table.mark(&vocab, "1<s>"), "1<\u{fdd0}s>");
        assert_eq!(
            table.mark(&vocab, "x<\u{fdd0}/s"),
            "x<\u{fdd0}/s",
            "stripped, then marked: text may follow"
        );
        assert_eq!(table.mark(&vocab, "s>"), "\u{fdd0}s>", "text may go before");
        let alphabet = ["<", "s", ">", "/", "|", "end", "<s>", "<|end|>", " ", "\n", "\u{fdd0}", "é"];
        arbtest::arbtest(|u| {
            let n = u.int_in_range(0..=12)?;
            let content: String = (0..n).map(|_| u.choose(&alphabet).copied()).collect::<Result<_, _>>()?;
            let marked = table.mark(&vocab, &content);
            assert_eq!(marked.replace(MARK, ""), content.replace(MARK, ""));
            for (before, after) in [("", ""), ("<s>", "</s>"), ("<", ">"), ("</", "s>"), ("<|", "end|>")] {
                let n_special = |text: &str| {
                    let mut n = 0;
                    table
                        .split(&vocab, text, true, |part| n += usize::from(matches!(part, Part::Special(_))));
                    n
                };
                let own = n_special(before) + n_special(after);
                for inner in [marked.as_str(), marked.trim()].into_iter().filter(|inner| !inner.is_empty()) {
                    assert!(
                        n_special(&format!("{before}{inner}{after}")) <= own,
                        "{before} {inner:?} {after}"
                    );
                }
            }
            Ok(())
        });
    }

    /// The definition of `longest` and `begins`: all tokens, one by one.
    #[test]
    fn neighbours_in_the_order_of_texts_are_enough() {
        let alphabet = ["<", "|", ">", "a", "<|", "é"];
        arbtest::arbtest(|u| {
            let mut any = |n: usize| -> Result<String, _> {
                (0..u.int_in_range(0..=n)?).map(|_| u.choose(&alphabet).copied()).collect()
            };
            let pieces: Vec<String> = (0..12).map(|_| any(4)).collect::<Result<_, _>>()?;
            let (vocab, table) = table(&pieces.iter().map(String::as_str).collect::<Vec<_>>());
            for _ in 0..8 {
                let text = any(6)?;
                let within = pieces.iter().filter(|p| !p.is_empty() && text.starts_with(p.as_str()));
                let longest = table.longest(&vocab, &text).map(|(_, len)| len);
                assert_eq!(longest, within.map(String::len).max(), "{pieces:?} in {text}");
                let begins = !text.is_empty() && pieces.iter().any(|p| p.starts_with(&text));
                assert_eq!(!text.is_empty() && table.begins(&vocab, text.as_bytes()), begins);
            }
            Ok(())
        });
    }

    #[test]
    fn long_tokens_that_overlap_cost_no_more_than_short_ones() {
        let pieces: Vec<String> = (100..=256).map(|n| "<".repeat(n)).collect();
        let (vocab, table) = table(&pieces.iter().map(String::as_str).collect::<Vec<_>>());
        let n = 1 << 18;
        // Half a minute where each length is looked at by itself.
        assert_eq!(table.mark(&vocab, &"<".repeat(n)).matches(MARK).count(), n + 1);
    }

    #[test]
    fn what_looks_like_a_role_is_one() {
        for role in [
            "<|User|>",
            "<｜Assistant｜>",
            "<|channel>",
            "<channel|>",
            "<|\"|>",
            " <|x|>\n",
            "[|user|]",
            "◁User▷",
        ] {
            assert!(is_role(role) && is_word(role), "{role}");
        }
        for text in ["<think>", "[INST]", "<>", "  ", "<|", "|x|", "<table>"] {
            assert!(!is_role(text), "{text}");
        }
        assert!(is_word("]~b]") && is_word("USER:") && !is_word("\n\n") && !is_word("<") && !is_word("user"));
        let template = "{% if '</think>' in c %}{{ c.split(\"<channel|>\") }}{% endif %}<|User|>";
        assert!(looks_for(template, "</think>") && looks_for(template, "<channel|>"));
        assert!(!looks_for(template, "<|User|>"));
    }
}
