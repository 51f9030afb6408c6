//! Texts as vectors: a line of standard input each.

use std::io::{BufRead, IsTerminal, Read};

use clap::Args;
use serde_json::Value;

use super::backend::Backend;
use super::show::{self, Show, Step};
use super::{Failure, HowArgs};
use crate::base::limits::INPUT_BYTES_MAX;

/// Lines of one call, and bytes from which on no more are added.
const N_LINES: usize = 256;
const N_BYTES: usize = 1 << 18;

#[derive(Debug, Args)]
pub(super) struct EmbedArgs {
    /// A text; without any each line of standard input is one
    text: Vec<String>,
    /// Directory of an encoder to run in this process, a model file, or the name of a model that the daemon has
    #[arg(long, value_name = "DIR|FILE|NAME")]
    model: Option<String>,
    /// Run the model in this process, without a daemon
    #[arg(long)]
    local: bool,
    /// Socket of the daemon [default: /run/sotto/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<std::path::PathBuf>,
    /// Threads, in this process [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: Option<u32>,
    /// Keep the first N numbers of each vector
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    dimensions: Option<u32>,
    /// Cut texts that are longer than the model reads, and say which
    #[arg(long)]
    truncate: bool,
    /// Print one JSON object; without it 32-bit floats are written, the low byte first
    #[arg(long)]
    json: bool,
}

/// How texts become vectors.
pub(super) struct How {
    pub dimensions: Option<u32>,
    pub truncate: bool,
}

/// Vectors of texts.
pub(super) struct Made {
    pub model: String,
    pub vectors: Vec<Vec<f32>>,
    /// Which texts were cut, from 0.
    pub truncated: Vec<usize>,
    pub n_tokens: u64,
}

/// Prints the vectors of texts.
pub(super) fn run(args: EmbedArgs) -> Result<(), Failure> {
    if !args.json && std::io::stdout().is_terminal() {
        return Err(Failure::usage(
            "numbers as bytes are nothing for a terminal; send them to a file, or use --json",
        ));
    }
    let how = HowArgs {
        model: Some(args.model.unwrap_or_else(|| "embed".to_owned()))
            .filter(|name| !args.local || name != "embed"),
        local: args.local,
        socket: args.socket,
        threads: args.threads,
        ..HowArgs::default()
    };
    let backend = Backend::open(&how)?;
    let mut show = Show::new(false);
    let asked = How { dimensions: args.dimensions, truncate: args.truncate };
    let mut texts =
        Texts { given: args.text.into_iter().peekable(), n_read: 0, from_input: false, n_lines: 0 };
    texts.from_input = texts.given.peek().is_none();
    let (mut n, mut n_tokens, mut model, mut cut) = (0, 0, String::new(), Vec::new());
    // As a whole, or not at all.
    let mut json = String::from("{\"embeddings\":[");
    loop {
        let batch = texts.next()?;
        if batch.is_empty() {
            break;
        }
        let (n_batch, first) = (batch.len(), n);
        let made = backend.embed(batch, &asked, &mut show).map_err(|failure| match texts.from_input {
            true => Failure {
                message: match n_batch {
                    1 => format!("line {}: {}", first + 1, failure.message),
                    _ => format!("lines {} to {}: {}", first + 1, first + n_batch, failure.message),
                },
                ..failure
            },
            false => failure,
        })?;
        for vector in &made.vectors {
            match args.json {
                true => {
                    json += if n > 0 { "," } else { "" };
                    json += &numbers(vector);
                }
                false => show::bytes(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?,
            }
            n += 1;
        }
        cut.extend(made.truncated.into_iter().map(|i| first + i));
        n_tokens += made.n_tokens;
        model = made.model;
        show.step(Step::Reading, texts.n_read, texts.n_read);
    }
    show.finish();
    if n == 0 {
        return Err(Failure::usage("there is no text; give one, or lines on standard input"));
    }
    for i in &cut {
        show::note(&format!("text {} was longer than the model reads, and was cut", i + 1));
    }
    if args.json {
        let rest = serde_json::json!({ "model": model, "tokens": n_tokens, "truncated": cut }).to_string();
        show::out(&format!("{json}],{}\n", rest.trim_start_matches('{')))?;
    }
    Ok(())
}

/// A vector as JSON.
fn numbers(vector: &[f32]) -> String {
    Value::from(vector.to_vec()).to_string()
}

/// Texts, some at a time.
struct Texts {
    given: std::iter::Peekable<std::vec::IntoIter<String>>,
    /// Bytes so far.
    n_read: u64,
    /// They are lines of standard input, so many so far.
    from_input: bool,
    n_lines: usize,
}

impl Texts {
    /// The next ones; none at the end.
    fn next(&mut self) -> Result<Vec<String>, Failure> {
        let (mut all, mut n_bytes) = (Vec::new(), 0);
        while all.len() < N_LINES && n_bytes < N_BYTES {
            let text = match self.from_input {
                false => self.given.next(),
                true => {
                    self.n_lines += 1;
                    line(self.n_lines)?
                }
            };
            let Some(text) = text else { break };
            n_bytes += text.len();
            all.push(text);
        }
        self.n_read += n_bytes as u64;
        Ok(all)
    }
}

/// The next line of standard input, which is line `n`; none at its end.
fn line(n: usize) -> Result<Option<String>, Failure> {
    let mut line = Vec::new();
    let input = std::io::stdin().lock();
    let read = input.take(INPUT_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line);
    if read.map_err(|e| Failure::usage(format!("standard input: {e}")))? == 0 {
        return Ok(None);
    }
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    if line.len() > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!(
            "line {n} has more than the {INPUT_BYTES_MAX} bytes that are taken"
        )));
    }
    let text = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line));
    text.map(|text| Some(text.to_owned())).map_err(|e| {
        Failure::usage(format!("standard input: no UTF-8 at byte {} of line {n}", e.valid_up_to()))
    })
}
