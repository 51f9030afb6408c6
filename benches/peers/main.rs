//! sotto beside llama.cpp's and ik_llama.cpp's own benchmarks, in interleaved rounds on the same files:
//!
//! ```sh
//! cargo build --release
//! cargo bench --bench peers -- --sotto target/release/sotto \
//!   --peer llama.cpp=/path/to/llama-bench --peer ik=/path/to/llama-bench --args 'ik=-rtr 1 -fa 1' FILE.gguf ...
//! ```
//!
//! A round measures the machine's ceilings and each program once, so that what the machine does meanwhile hits all of them.
//! The best peer of a cell is the one with the highest median; a ratio is sotto's figure by that peer's of the same round.
//! What counts is the median of the ratios and its 90 % interval (bootstrap). How one gets the peers' programs is the
//! user's business.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people to read")]

mod picture;
mod stats;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::{Value, json};
use sotto::engine::median;
use stats::Ratio;

#[derive(Debug, Parser)]
#[command(about = "Measures sotto beside other programs, round by round")]
struct Args {
    /// The program `sotto`
    #[arg(long, value_name = "PATH", default_value = "target/release/sotto")]
    sotto: PathBuf,
    /// How sotto reads weights: cache, memory or off
    #[arg(long, value_name = "HOW", default_value = "memory")]
    pack: String,
    /// A peer's `llama-bench`; with --batch its `llama-batched-bench`
    #[arg(long = "peer", value_name = "NAME=PATH", required = true, value_parser = pair)]
    peers: Vec<(String, String)>,
    /// Further flags of a peer
    #[arg(long = "args", value_name = "NAME=FLAGS", value_parser = pair)]
    flags: Vec<(String, String)>,
    /// Numbers of threads
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,
    /// Tokens of a prompt; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens decoded
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Tokens in the cache before either
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Type of the cache: f16 or q8_0
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    kv: String,
    /// Sequences decoded at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Write a picture of the ratios
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write all figures, after each round
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Go on with the figures that --json has already: what is measured for hours may be measured in pieces
    #[arg(long, requires = "json")]
    resume: bool,
    /// Models
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is taken")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Figures of one program in one round, tokens a second by what was measured.
type Figures = BTreeMap<&'static str, f64>;

/// What a cell of the table is: model, threads, `prefill` or `decode`.
type Cell = (String, usize, String);

const SOTTO: &str = "sotto";

impl Args {
    /// The figures of `llama-bench`, or of `llama-batched-bench`.
    fn peer(&self, name: &str, program: &str, file: &str, threads: usize) -> Result<Figures, String> {
        let program = std::path::absolute(program).map_err(|e| format!("{program}: {e}"))?;
        let mut command = Command::new(&program);
        let n = threads.to_string();
        // Some of them write a log where they stand.
        command.current_dir(std::env::temp_dir());
        command.args(["-m", file, "-t", &n, "-ctk", &self.kv, "-ctv", &self.kv]);
        if self.batch > 1 {
            let (each, all) = (self.depth.max(1), self.batch * (self.depth.max(1) + self.generate));
            command.args(["-npp", &each.to_string(), "-ntg", &self.generate.to_string()]);
            command.args([
                "-npl",
                &self.batch.to_string(),
                "-c",
                &all.to_string(),
                "--output-format",
                "jsonl",
            ]);
        } else {
            let [prompt, generate, depth] = [self.prompt, self.generate, self.depth].map(|n| n.to_string());
            command.args(["-r", "1", "-o", "json"]);
            if self.depth == 0 {
                command.args(["-p", &prompt, "-n", &generate]);
            } else if output(Command::new(&program).arg("--help"))?.0.contains("--n-depth") {
                command.args(["-p", &prompt, "-n", &generate, "-d", &depth]);
            } else {
                // ik_llama.cpp's decodes behind a prompt; it reads none behind another.
                command.args(["-p", "0", "-n", "0", "-gp", &format!("{depth},{generate}")]);
            }
        }
        for (_, flags) in self.flags.iter().filter(|(of, _)| of == name) {
            command.args(flags.split_whitespace());
        }
        let (text, log) = output(&mut command)?;
        let mut found = Figures::new();
        if self.batch > 1 {
            // One of them writes its table where it logs.
            let text = text + "\n" + &log;
            found.insert("decode", batched(&text).ok_or_else(|| format!("{name}: no figures"))?);
            return Ok(found);
        }
        let start = text.find('[').ok_or_else(|| format!("{name}: no figures"))?;
        let all: Vec<Value> = serde_json::from_str(&text[start..]).map_err(|e| format!("{name}: {e}"))?;
        for test in &all {
            let rate = test["avg_ts"].as_f64().ok_or_else(|| format!("{name}: no avg_ts"))?;
            found.insert(if test["n_gen"] == 0 { "prefill" } else { "decode" }, rate);
        }
        Ok(found)
    }

    fn own(&self, file: &str, threads: usize) -> Result<Figures, String> {
        let mut command = Command::new(&self.sotto);
        command.args(["bench", file, "--json", "--repeat", "1", "--pack", &self.pack, "--kv", &self.kv]);
        // A prompt that is left out is read as one token.
        command.args(["--threads", &threads.to_string(), "--prompt", &self.prompt.max(1).to_string()]);
        command.args(["--generate", &self.generate.to_string(), "--batch", &self.batch.to_string()]);
        command.args(["--depth", &self.depth.to_string()]);
        let found: Value =
            serde_json::from_str(&output(&mut command)?.0).map_err(|e| format!("{SOTTO}: {e}"))?;
        let rate = |key: &str| found[key].as_f64().ok_or_else(|| format!("{SOTTO}: no {key}"));
        Ok([("prefill", rate("prefill_tok_s")?), ("decode", rate("decode_tok_s")?)].into())
    }

    /// The figures of all programs, each in another place of the order from round to round.
    fn round(&self, file: &str, threads: usize, round: usize) -> Result<Vec<(String, Figures)>, String> {
        let mut all = Vec::new();
        for i in 0..=self.peers.len() {
            all.push(match (i + round) % (self.peers.len() + 1) {
                0 => (SOTTO.to_owned(), self.own(file, threads)?),
                n => {
                    let (name, program) = &self.peers[n - 1];
                    (name.clone(), self.peer(name, program, file, threads)?)
                }
            });
        }
        Ok(all)
    }

    /// 8-bit multiplications and bytes a second, in 10^9.
    fn ceilings(&self, threads: usize) -> Result<[f64; 2], String> {
        let mut command = Command::new(&self.sotto);
        command.args(["bench", "--machine", "--json", "--threads", &threads.to_string()]);
        let found: Value =
            serde_json::from_str(&output(&mut command)?.0).map_err(|e| format!("{SOTTO}: {e}"))?;
        let rate = |key: &str| found["ceilings"][0][key].as_f64().ok_or_else(|| format!("{SOTTO}: no {key}"));
        Ok([rate("int8_gmac_s")?, rate("read_huge_gb_s")?])
    }
}

/// Tokens a second of all sequences: llama.cpp's program gives a line of JSON, ik_llama.cpp's a table.
fn batched(text: &str) -> Option<f64> {
    if let Some(line) = text.lines().rfind(|line| line.starts_with('{')) {
        return serde_json::from_str::<Value>(line).ok()?["speed_tg"].as_f64();
    }
    let mut rows =
        text.lines().filter(|line| line.starts_with('|')).map(|line| line.split('|').map(str::trim));
    let at = rows.next()?.position(|head| head == "S_TG t/s")?;
    rows.next_back()?.nth(at)?.parse().ok()
}

/// What a program that ended well wrote on its standard output and error.
fn output(command: &mut Command) -> Result<(String, String), String> {
    let done = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let [text, log] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if !done.status.success() {
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        return Err(format!("{}: {}: {last}", command.get_program().display(), done.status));
    }
    Ok((text, log))
}

/// Family and model of the processor as the system tells them.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
    };
    format!("{}, family {}, model {}", of("model name"), of("cpu family"), of("model"))
}

/// One line of the table.
struct Line {
    cell: Cell,
    own: f64,
    peers: Vec<(String, f64)>,
    best: String,
    ratio: Ratio,
}

/// Tokens a second of each program in each round of a cell.
type Rounds = BTreeMap<(Cell, String), Vec<f64>>;

fn run(args: &Args) -> Result<(), String> {
    let mut rounds = if args.resume { args.kept()? } else { Rounds::new() };
    let mut ceilings: BTreeMap<usize, Vec<[f64; 2]>> = BTreeMap::new();
    let names: Vec<&str> = args.peers.iter().map(|(name, _)| name.as_str()).collect();
    println!("{}; depth {}, cache {}, {} sequences", cpu(), args.depth, args.kv, args.batch);
    println!(
        "| model | threads | what | sotto | {} | best peer | ratio | 90 % interval |",
        names.join(" | ")
    );
    println!("|-|-|-|-|{}-|-|-|", "-|".repeat(names.len()));
    let mut lines = Vec::new();
    for file in &args.files {
        let file = file.canonicalize().map_err(|e| format!("{}: {e}", file.display()))?;
        let path = file.to_str().ok_or("a path that is not text")?;
        let model = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        for &threads in &args.threads {
            let of = |(cell, _): &(Cell, String)| cell.0 == model && cell.1 == threads;
            let done = rounds.iter().filter(|(key, _)| of(key)).map(|(_, rates)| rates.len()).max();
            for round in done.unwrap_or(0)..args.rounds {
                eprintln!("{model}, {threads} threads, round {} of {}", round + 1, args.rounds);
                ceilings.entry(threads).or_default().push(args.ceilings(threads)?);
                match args.round(path, threads, round) {
                    Ok(all) => {
                        for (name, figures) in all {
                            for (what, rate) in figures {
                                let cell = (model.clone(), threads, what.to_owned());
                                rounds.entry((cell, name.clone())).or_default().push(rate);
                            }
                        }
                        args.keep(&rounds)?;
                    }
                    // The other cells are worth their time.
                    Err(message) => {
                        eprintln!("peers: {model}, {threads} threads: {message}");
                        break;
                    }
                }
            }
            let own =
                rounds.iter().filter(|(key, _)| of(key)).map(|(key, rates)| (key.clone(), rates.clone()));
            let done = self::lines(args, &own.collect());
            done.iter().for_each(print);
            lines.extend(done);
        }
    }
    for (threads, all) in &ceilings {
        let of = |i: usize| median(&all.iter().map(|c| c[i]).collect::<Vec<_>>());
        println!("{threads} threads: at most {:.0} GMAC/s, {:.1} GB/s read", of(0), of(1));
    }
    for what in ["prefill", "decode"] {
        let logs: Vec<f64> = lines.iter().filter(|l| l.cell.2 == what).map(|l| l.ratio.median.ln()).collect();
        if !logs.is_empty() {
            let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
            println!("{what}: geometric mean {mean:.2} of {} cells", logs.len());
        }
    }
    if let Some(path) = &args.svg {
        let bars: Vec<_> = lines
            .iter()
            .map(|l| (format!("{}, {} threads, {}", l.cell.0, l.cell.1, l.cell.2), l.ratio))
            .collect();
        std::fs::write(path, picture::svg(&bars)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

impl Args {
    /// What figures of a file were measured with.
    fn setting(&self) -> Value {
        json!({
            "cpu": cpu(), "prompt": self.prompt, "generate": self.generate, "depth": self.depth, "kv": self.kv,
            "batch": self.batch, "pack": self.pack
        })
    }

    /// Writes all figures where `--json` says.
    fn keep(&self, rounds: &Rounds) -> Result<(), String> {
        let Some(path) = &self.json else { return Ok(()) };
        let cell = |(((model, threads, what), name), rates): (&(Cell, String), &Vec<f64>)| json!({ "model": model, "threads": threads, "what": what, "program": name, "tok_s": rates });
        let text =
            json!({ "setting": self.setting(), "rounds": rounds.iter().map(cell).collect::<Vec<_>>() });
        std::fs::write(path, text.to_string()).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The figures that are there.
    fn kept(&self) -> Result<Rounds, String> {
        let Some(path) = self.json.as_ref().filter(|path| path.exists()) else { return Ok(Rounds::new()) };
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
        let all: Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
        if all["setting"] != self.setting() {
            return Err(failed(&format!(
                "was measured with {}, not with {}",
                all["setting"],
                self.setting()
            )));
        }
        let cell = |of: &Value| {
            let text = |key: &str| of[key].as_str().map(str::to_owned);
            let rates = of["tok_s"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?;
            let threads = usize::try_from(of["threads"].as_u64()?).ok()?;
            Some((((text("model")?, threads, text("what")?), text("program")?), rates))
        };
        let cells = all["rounds"].as_array().ok_or_else(|| failed(&"no rounds"))?;
        cells.iter().map(cell).collect::<Option<Rounds>>().ok_or_else(|| failed(&"not what --json writes"))
    }
}

/// A line of the table.
fn print(line: &Line) {
    let (model, threads, what) = &line.cell;
    let peers: Vec<String> = line.peers.iter().map(|(_, rate)| format!("{rate:.1}")).collect();
    let Ratio { median, low, high } = line.ratio;
    println!(
        "| {model} | {threads} | {what} | {:.1} | {} | {} | {median:.2} | {low:.2} to {high:.2} |",
        line.own,
        peers.join(" | "),
        line.best
    );
}

/// The table, of all cells that sotto and a peer have.
fn lines(args: &Args, rounds: &Rounds) -> Vec<Line> {
    let own = rounds.iter().filter(|((_, name), _)| name == SOTTO);
    let lines = own.filter_map(|((cell, _), own)| {
        let of = |name: &String| rounds.get(&(cell.clone(), name.clone()));
        let peers: Vec<(String, f64)> =
            args.peers.iter().filter_map(|(name, _)| Some((name.clone(), median(of(name)?)))).collect();
        let (best, _) = peers.iter().max_by(|a, b| a.1.total_cmp(&b.1))?.clone();
        let ratios: Vec<f64> = own.iter().zip(of(&best)?).map(|(own, peer)| own / peer).collect();
        Some(Line { cell: cell.clone(), own: median(own), peers, best, ratio: Ratio::of(&ratios) })
    });
    lines.collect()
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("peers: {message}");
            ExitCode::FAILURE
        }
    }
}
