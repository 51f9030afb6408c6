//! A text's tokens, and the text of tokens.

use clap::Args;
use serde_json::json;

use super::show::{self, bytes, out};
use super::{Failure, ask, backend};
use crate::base::Token;
use crate::format;
use crate::format::hf::onnx;
use crate::model::vocab;
use crate::text::Special;

#[derive(Debug, Args)]
pub(super) struct TokenizeArgs {
    /// The text, or with --decode the ids; `-` or nothing reads it from standard input
    text: Option<String>,
    /// A model file or the name of an installed model; without it the model in the box
    #[arg(long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// Print a token a line with its text
    #[arg(long)]
    pieces: bool,
    /// Print how many there are, and nothing else
    #[arg(long, conflicts_with = "pieces")]
    count: bool,
    /// Take control tokens that the text spells as such, and not as text; with --decode spell them
    #[arg(long)]
    special: bool,
    /// Print the text that the ids stand for; they are separated by spaces or commas
    #[arg(long, conflicts_with_all = ["pieces", "count"])]
    decode: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints tokens, or their text.
pub(super) fn run(args: TokenizeArgs) -> Result<(), Failure> {
    let text = ask::text(args.text, "text")?;
    let file = backend::model_file(args.model.as_deref())?;
    let tokenizer = match onnx::find(&file.path) {
        Some((dir, graph)) => vocab::of_graph(&onnx::open(&dir, &graph).map_err(Failure::usage)?),
        None => vocab::tokenizer(&format::open(&file.path).map_err(Failure::usage)?),
    };
    let tokenizer = tokenizer.map_err(Failure::usage)?;
    if args.decode {
        let tokens = ids(&text, tokenizer.n_vocab())?;
        let text = match args.special {
            true => tokenizer.decode_with_control(&tokens),
            false => tokenizer.decode(&tokens),
        };
        return match args.json {
            true => show::json(&json!({ "text": String::from_utf8_lossy(&text), "count": tokens.len() })),
            false => bytes(&text),
        };
    }
    let special = if args.special { Special::Parse } else { Special::AsText };
    let mut tokens = Vec::new();
    tokenizer.encode(&text, special, &mut tokens);
    // A control token has no text; it is shown by its name.
    let piece = |token: Token| {
        let mut piece = Vec::new();
        tokenizer.piece_into(token, &mut piece);
        match tokenizer.is_special(token) {
            true => tokenizer.decode_with_control(&[token]),
            false => piece,
        }
    };
    if args.json {
        let mut object = json!({ "count": tokens.len() });
        if !args.count {
            object["tokens"] = tokens.iter().map(|t| t.0).collect();
        }
        if args.pieces {
            object["pieces"] =
                tokens.iter().map(|t| String::from_utf8_lossy(&piece(*t)).into_owned()).collect();
        }
        return show::json(&object);
    }
    if args.count {
        return out(&format!("{}\n", tokens.len()));
    }
    let mut shown = String::new();
    for (i, token) in tokens.iter().enumerate() {
        match args.pieces {
            true => shown += &format!("{}\t{}\n", token.0, quoted(&piece(*token))),
            false if i == 0 => shown += &token.0.to_string(),
            false => shown += &format!(" {}", token.0),
        }
    }
    if !args.pieces {
        shown.push('\n');
    }
    out(&shown)
}

/// The ids that a text lists, as `1 2 3`, `1,2,3` or `[1, 2, 3]`.
fn ids(text: &str, n_vocab: usize) -> Result<Vec<Token>, Failure> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'));
    words
        .filter(|word| !word.is_empty())
        .map(|word| match word.parse::<u32>() {
            Ok(id) if (id as usize) < n_vocab => Ok(Token(id)),
            _ => Err(Failure::usage(format!("{word:?} is no token; ids are 0 to {}", n_vocab - 1))),
        })
        .collect()
}

/// A piece in quotes on one line; bytes that are no text as `\xNN`.
fn quoted(piece: &[u8]) -> String {
    match std::str::from_utf8(piece) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", piece.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_the_ways_that_people_write_them() {
        for text in ["1 2 30", "1,2,30", "[1, 2, 30]\n", " 1\n2\t30 "] {
            assert_eq!(ids(text, 31).unwrap(), [Token(1), Token(2), Token(30)], "{text}");
        }
        assert!(ids("", 31).unwrap().is_empty());
        for text in ["1 31", "-1", "x", "99999999999"] {
            assert!(ids(text, 31).unwrap_err().message.contains("0 to 30"), "{text}");
        }
        assert_eq!(quoted("é\u{1b}\"".as_bytes()), "\"é\\u{1b}\\\"\"");
        assert_eq!(quoted(&[0xc3]), "\"\\xc3\"");
    }
}
