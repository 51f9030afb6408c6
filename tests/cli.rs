//! The command line as it is run: what goes to stdout and stderr, exit codes, pipes, and a terminal.
#![cfg(feature = "http")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops, and says what it skips"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::gguf::{SLOW, TINY, V, llama};
use support::pty::Terminal;
use support::{Daemon, Folder, NO_CACHE, Running, have, run, shared, sotto, stderr, stdout, stories, until};

fn model() -> String {
    stories().display().to_string()
}

/// Runs the command line with `input` on a pipe.
fn feed(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut command = sotto(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

/// What it printed, and nothing went wrong.
fn fine(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    stdout(output)
}

fn object(output: &Output) -> Value {
    let text = fine(output);
    assert!(text.ends_with("}\n") && text.lines().count() == 1, "one line: {text:?}");
    serde_json::from_str(&text).unwrap()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// It failed with this code and these words, and printed nothing.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(stdout(output), "", "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} in: {said}");
    assert!(said.starts_with("sotto: ") && said.lines().count() == 1, "one line: {said:?}");
}

/// Tokens of `text`, and one for the begin of the text.
fn prompt_tokens(text: &str) -> u64 {
    let counted = fine(&feed(&["tokenize", "--model", &model(), "--count"], format!("{text}\n")));
    counted.trim().parse::<u64>().unwrap() + 1
}

#[test]
fn ask_takes_words_and_standard_input() {
    let model = model();
    let flags = ["ask", "--json", "--model", &model, "--seed", "1", "--max-tokens", "8"];
    for (words, input, text) in [
        (&["Once", "upon", "a time"][..], "", "Once upon a time"),
        (&[], "Once upon\na time\n", "Once upon\na time"),
        (&["-"], "Once\n\n", "Once\n"),
        (&["Go on:"], "Once upon\n", "Go on:\n\nOnce upon"),
        (&["Go on:"], "\n", "Go on:"),
    ] {
        let answer = object(&feed(&[&flags[..], words].concat(), input));
        let same = object(&feed(
            &["complete", "--json", "--model", &model, "--seed", "1", "--max-tokens", "8"],
            format!("{text}\n"),
        ));
        assert_eq!(answer["text"], same["text"], "{words:?} {input:?}");
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens(text), "{words:?} {input:?}");
    }
    let told = feed(&[&flags[..], &["--system", "Be brief.", "Hi"]].concat(), "");
    assert_eq!(object(&told)["usage"]["prompt_tokens"], prompt_tokens("Be brief.\n\nHi"));
    assert!(stderr(&told).contains("has no chat template"), "{}", stderr(&told));
    fails(&feed(&flags, "\n"), 2, &["0 bytes", "argument"]);
    fails(&feed(&flags, b"ab\xff"), 2, &["no UTF-8 at byte 2"]);
}

#[test]
fn one_object_has_the_same_fields_from_daemon_and_process() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let (model, socket) = (model(), daemon.socket.display().to_string());
    let flags = ["complete", "--json", "--seed", "7", "--max-tokens", "12", "Once upon"];
    let here = object(&run(&[&flags[..], &["--model", &model]].concat()));
    let there = object(&run(&[&flags[..], &["--socket", &socket]].concat()));
    for answer in [&here, &there] {
        let all = ["finish_reason", "id", "model", "seed", "stop_detail", "text", "timings", "usage"];
        assert_eq!(keys(answer), all);
        assert_eq!(
            keys(&answer["timings"]),
            ["decode_ms", "engine_ms", "load_ms", "prefill_ms", "queue_ms", "ttft_ms"]
        );
        let ms = |key: &str| answer["timings"][key].as_f64().unwrap();
        // It was alone: what it had of the engine is what it took.
        assert!(ms("engine_ms") > 0.0 && ms("engine_ms") <= ms("prefill_ms") + ms("decode_ms"), "{answer}");
        assert_eq!(
            (&answer["finish_reason"], &answer["stop_detail"]),
            (&"length".into(), &"max_tokens".into())
        );
        assert_eq!(answer["model"], "stories260K-q8_0");
        assert_eq!((&answer["seed"], &answer["usage"]["completion_tokens"]), (&7.into(), &12.into()));
    }
    assert_eq!((&here["text"], &here["usage"]), (&there["text"], &there["usage"]));
    let plain = run(&["complete", "--seed", "7", "--max-tokens", "12", "Once upon", "--model", &model]);
    assert_eq!(fine(&plain), here["text"].as_str().unwrap(), "the answer's bytes and no more");
    assert_eq!(stderr(&plain), "", "nothing beside it in a pipe");
    fails(&run(&["complete", "--socket", &socket, "--model", "gone", "x"]), 2, &["unknown_model", "gone"]);
    // What is refused is an object too, the same from both, its numbers beside the sentence.
    let long = "a b c d ".repeat(400);
    let refused = [["--model", &model], ["--socket", &socket]].map(|who| {
        let output = run(&[&["complete", "--json", &long], &who[..]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with("sotto: context_too_long: "), "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    });
    assert_eq!(refused[0], refused[1]);
    let error = &refused[0]["error"];
    assert_eq!(keys(error), ["code", "have", "message", "need", "param"]);
    assert_eq!((&error["need"], &error["have"]), (&1603.into(), &512.into()));
}

/// Who names a file where the daemon's models go by name hears of both ways.
#[test]
fn a_file_is_no_model_of_the_daemon() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let (model, socket) = (model(), daemon.socket.display().to_string());
    let ways = ["no such file", "--model v1 asks the daemon", "--local --model v1 runs it in this process"];
    fails(&run(&["ask", "hi", "--model", "v1.gguf"]), 2, &ways);
    let both = ["ask", "hi", "--socket", &socket];
    for (more, words) in [
        (&["--model", "v1.gguf"][..], &["v1.gguf is a file", "--model v1", "leave --socket out"][..]),
        (&["--model", &model], &["is a file", "--model stories260K-q8_0", "leave --socket out"]),
        (&["--local"], &["--socket asks a daemon, --local runs the model in this process"]),
        (&["--model", "v1"], &["unknown_model", "stories260K-q8_0", "--local"]),
    ] {
        fails(&run(&[&both[..], more].concat()), 2, words);
    }
}

#[test]
fn the_end_of_a_context_is_told() {
    let cut =
        run(&["complete", "--model", &model(), "--context", "24", "--temperature", "0", "Once upon a time"]);
    assert!(!fine(&cut).is_empty());
    assert_eq!(stderr(&cut), "sotto: the context is full at 24 tokens, the answer is cut\n");
}

/// A program that writes a text without an end, once it has begun. It heeds Ctrl-C also where the test's own parent
/// does not.
fn writing(folder: &Folder) -> Running {
    let slow = folder.write("slow.gguf", llama(SLOW).bytes());
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_sotto"), "complete", "--temperature", "0"]);
    command.args(["--threads", "1", "w300", "--model"]).arg(slow);
    command.envs([NO_CACHE]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut writing = Running(command.spawn().unwrap());
    writing.0.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    writing
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = Folder::new();
    let mut writing = writing(&folder);
    drop(writing.0.stdout.take());
    assert_eq!(writing.ended("a program without a reader").code(), Some(0));
    let mut said = String::new();
    writing.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

/// As shells and loops expect it: ended by the signal, which they count as 130.
#[test]
fn an_interrupt_ends_the_program() {
    let folder = Folder::new();
    let mut writing = writing(&folder);
    writing.signal(Signal::INT);
    assert_eq!(writing.ended("an interrupted program").signal(), Some(Signal::INT.as_raw()));
}

/// Ctrl-C while a bar is shown ends the program, and the bar with it.
#[test]
fn an_interrupt_leaves_no_bar() {
    if !have("script", "an interrupt in a terminal") {
        return;
    }
    let folder = Folder::new();
    let slow = folder.write("slow.gguf", llama(SLOW).bytes()).display().to_string();
    let text = folder.write("text", "w300 ".repeat(9_000)).display().to_string();
    let long = "w300 ".repeat(1_500);
    for (args, bar) in [
        (vec!["perplexity", &slow, &text, "--threads", "1"], "windows"),
        (vec!["bench", &slow, "--threads", "1", "--prompt", "9000"], "measuring"),
        (vec!["complete", &long, "--threads", "1", "--context", "16384", "--model", &slow], "reading"),
    ] {
        let mut terminal = Terminal::start(&args, |_| {});
        terminal.shows(bar);
        terminal.types("\u{3}");
        assert_eq!(terminal.ended().code(), Some(130), "{args:?}: {:?}", terminal.all());
        until("the last of the terminal", || terminal.all().ends_with("\r\u{1b}[K").then_some(()));
    }
}

#[test]
fn inspect_tells_what_is_in_a_file() {
    let text = fine(&run(&["inspect", &model(), "--context", "256"]));
    let bytes = std::fs::metadata(stories()).unwrap().len();
    let line =
        |key: &str| text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key}:\n{text}"));
    assert!(line("architecture").ends_with(" llama"));
    assert!(line("layers").ends_with(" 5 of width 64, feed-forward 172"));
    assert!(line("heads").ends_with(" 8 of width 8, 4 for keys and values"));
    assert!(line("context").ends_with(" 512 tokens"));
    assert!(line("memory").contains(" at 256 positions: weights 344.6 kB, f16 cache 245.8 kB, "));
    for kind in ["Q8_0", "F16", "F32"] {
        assert!(text.contains(&format!("              {kind} ")), "{kind}:\n{text}");
    }
    let all = object(&run(&["inspect", &model(), "--context", "256", "--json"]));
    assert_eq!(
        (&all["file_bytes"], &all["runs"], &all["why_not"]),
        (&bytes.into(), &true.into(), &Value::Null)
    );
    assert_eq!((&all["n_vocab"], &all["sizes"]["n_head_kv"]), (&512.into(), &4.into()));
    let types = all["types"].as_array().unwrap();
    let sum = |key: &str| types.iter().map(|t| t[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(Value::from(sum("parameters")), all["parameters"]);
    assert!(sum("bytes") < bytes && sum("bytes") > bytes * 9 / 10);
    let f16 = &all["memory"][0];
    // Keys and values of 5 layers, 256 positions, 4 heads of 8, 2 bytes each; values fill panels of 16.
    assert_eq!((&f16["kv_type"], &f16["kv_bytes"]), (&"f16".into(), &(5 * 256 * 4 * (8 + 16) * 2).into()));
    let f32 = all["memory"].as_array().unwrap().iter().find(|m| m["kv_type"] == "f32").unwrap();
    assert_eq!(f32["kv_bytes"], 2 * f16["kv_bytes"].as_u64().unwrap());
    let number = |key: &str| f16[key].as_u64().unwrap();
    assert_eq!(number("total_bytes"), number("weights_bytes") + number("kv_bytes") + number("scratch_bytes"));
}

#[test]
fn inspect_reads_directories() {
    let Some(folder) = shared("models/stories260k/hf") else {
        println!("skipped: inspect of a directory; the full set of fixtures is not beside the checkout");
        return;
    };
    let all = object(&run(&["inspect", &folder.display().to_string(), "--json"]));
    assert_eq!((&all["n_vocab"], &all["architecture"]), (&512.into(), &"llama".into()));
    assert_eq!((&all["tokenizer"]["model"], &all["sizes"]["n_layer"]), (&"tokenizer.json".into(), &5.into()));
}

/// A file may hold any text: none of it fills or steers a terminal.
#[test]
fn what_a_file_says_is_shown_in_bounds() {
    let folder = Folder::new();
    let long = "\u{1b}[2J\u{9b}x".repeat(2 << 20);
    let keys = ["architecture", "name", "license"].map(|key| format!("general.{key}"));
    let mut all: Vec<String> = keys.into();
    all.extend(["model", "pre"].map(|key| format!("tokenizer.ggml.{key}")));
    all.push("a tensor".into());
    for key in all {
        let mut file = llama(TINY);
        match key.as_str() {
            "a tensor" => file.tensor("output_norm.weight").name = "\u{1b}[2J".repeat(16_000),
            "tokenizer.ggml.pre" => {
                file.set("tokenizer.ggml.model", V::Str("gpt2".into()));
                file.set(&key, V::Str(long.clone()));
            }
            _ => file.set(&key, V::Str(long.clone())),
        }
        let path = folder.write("long.gguf", file.bytes()).display().to_string();
        for flags in [&[][..], &["--json"]] {
            let output = run(&[&["inspect", &path], flags].concat());
            for said in [stdout(&output), stderr(&output)] {
                assert!(said.len() < 3_000, "{key}: {} bytes", said.len());
                assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{key}: {said:?}");
            }
        }
        let output = run(&["complete", "--threads", "1", "--max-tokens", "1", "--model", &path, "x"]);
        let said = stderr(&output);
        assert!(said.len() < 1_024 && !said.contains('\u{1b}'), "{key}: {} bytes, {said}", said.len());
    }
}

#[test]
fn inspect_says_why_a_model_does_not_run() {
    let folder = Folder::new();
    let mut file = llama(TINY);
    file.set("general.architecture", V::Str("mamba\u{1b}[2J".into()));
    let path = folder.write("other.gguf", file.bytes()).display().to_string();
    let output = run(&["inspect", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("mamba") && stderr(&output).contains("llama"), "{}", stderr(&output));
    assert!(!stdout(&output).contains('\u{1b}') && !stderr(&output).contains('\u{1b}'));
    let output = run(&["inspect", &path, "--json"]);
    let all: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((output.status.code(), &all["runs"]), (Some(1), &false.into()));
    assert!(all["why_not"].as_str().unwrap().contains("mamba") && all["sizes"].is_null());
    let mut file = llama(TINY);
    file.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    let path = folder.write("mute.gguf", file.bytes()).display().to_string();
    let output = run(&["inspect", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains(" no tokenizer") && stderr(&output).contains("tokenizer"));
    fails(&run(&["inspect", "gone"]), 2, &["no model gone", "/usr/share/sotto/models"]);
    fails(&run(&["inspect", "./gone"]), 2, &["./gone: no such file"]);
    let link = folder.join("loop");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    fails(
        &run(&["inspect", &link.display().to_string()]),
        2,
        &["symbolic links", "the link leads to itself"],
    );
    let directory = folder.join("models").display().to_string();
    std::fs::create_dir(&directory).unwrap();
    fails(&run(&["inspect", &directory]), 2, &["holds no config.json"]);
    folder.write("models/a.gguf", b"x");
    fails(&run(&["inspect", &directory]), 2, &["no config.json, but", "models/a.gguf; give the path"]);
    folder.write("models/b.gguf", b"x");
    fails(&run(&["inspect", &directory]), 2, &["no config.json, but several GGUF files; give the path"]);
}

#[test]
fn tokenize_goes_both_ways() {
    let model = model();
    let tokens = |args: &[&str], input: &str| feed(&[&["tokenize", "--model", &model], args].concat(), input);
    assert_eq!(fine(&tokens(&["Once upon a time"], "")), "403 407 261 378\n");
    assert_eq!(fine(&tokens(&[], "Once upon a time\n")), "403 407 261 378\n");
    assert_eq!(fine(&tokens(&["--count"], "Once upon a time\n")), "4\n");
    assert_eq!(
        fine(&tokens(&["--pieces", "--special", "<s>Once\n"], "")),
        "1\t\"<s>\"\n403\t\" Once\"\n13\t\"\\n\"\n"
    );
    let plain = fine(&tokens(&["<s>"], ""));
    assert!(plain.split_whitespace().count() > 1, "text does not become a control token: {plain}");
    let all = object(&tokens(&["--json", "--pieces", "Once upon"], ""));
    assert_eq!(all, serde_json::json!({"count": 2, "pieces": [" Once", " upon"], "tokens": [403, 407]}));
    assert_eq!(fine(&tokens(&["--decode", "403 407 261 378"], "")), "Once upon a time");
    assert_eq!(object(&tokens(&["--decode", "--json"], "[403, 407]\n"))["text"], "Once upon");
    assert_eq!(fine(&tokens(&["--decode", "--special", "1 403 2"], "")), "<s> Once</s>");
    for text in ["é 漢字 🙂", " two  spaces ", "tab\tand\nline"] {
        let ids = fine(&tokens(&[text], ""));
        assert_eq!(fine(&tokens(&["--decode"], &ids)), text);
    }
    assert_eq!(fine(&tokens(&[], "")), "\n");
    fails(&tokens(&["--decode", "512"], ""), 2, &["\"512\" is no token", "0 to 511"]);
    let folder = Folder::new();
    let text = folder.write("text.gguf", "no model at all").display().to_string();
    fails(&run(&["tokenize", "--model", &text, "x"]), 2, &["text.gguf", "GGUF"]);
}

#[test]
fn perplexity_says_what_it_measured() {
    let (model, folder) = (model(), Folder::new());
    let text = "Once upon a time, there was a small boy named Ben. ".repeat(20);
    let file = folder.write("text", &text).display().to_string();
    let all = object(&run(&["perplexity", &model, &file, "--json", "--context", "64", "--threads", "1"]));
    let n = prompt_tokens(&text) / 64;
    assert_eq!((&all["windows"], &all["n_ctx"], &all["threads"]), (&n.into(), &64.into(), &1.into()));
    assert_eq!(all["tokens_scored"], n * 31);
    let value = all["perplexity"].as_f64().unwrap();
    assert!(value > 1.0 && value < 50.0 && all["tok_s"].as_f64().unwrap() > 0.0, "{all}");
    let output = run(&["perplexity", &model, &file, "--context", "64", "--windows", "2"]);
    let said = fine(&output);
    assert!(
        said.starts_with("perplexity    ")
            && said.contains("\nwindows       2 of 64 tokens, 62 tokens scored\n")
    );
    assert_eq!(stderr(&output), "", "no bar in a pipe");
    let bytes = folder.write("bytes", b"a\xff\xfe").display().to_string();
    for (args, words) in [
        (vec!["perplexity", &model, &file, "--context", "513"], vec!["513 positions", "512"]),
        (vec!["perplexity", &model, "/nowhere/text"], vec!["/nowhere/text", "name a text file"]),
        (vec!["perplexity", &model, "/"], vec!["/: Is a directory", "name a text file"]),
        (vec!["perplexity", &model, "/dev/zero"], vec!["/dev/zero: more than the 67108864 bytes"]),
        (vec!["perplexity", &model, &bytes], vec!["bytes: not UTF-8 at byte 1", "name a text file"]),
        (vec!["perplexity", &model, "/dev/null"], vec!["1 tokens", "512"]),
        (vec!["perplexity", "gone.gguf", &file], vec!["gone.gguf: no such file"]),
    ] {
        fails(&run(&args), 2, &words);
    }
}

#[test]
fn bench_measures_what_it_says() {
    let model = model();
    // Panels have more bytes than rows where rows do not fill them.
    let flags = ["--threads", "1", "--prompt", "150", "--generate", "20", "--repeat", "3", "--pack", "off"];
    let mut command = sotto(&[&["bench", &model, "--json"], &flags[..]].concat());
    let output = command.env("SOTTO_CPU", "scalar").output().unwrap();
    let all = object(&output);
    assert_eq!(stderr(&output), "", "no bar in a pipe");
    let number = |key: &str| all[key].as_f64().unwrap_or_else(|| panic!("{key}: {all}"));
    assert_eq!(
        (&all["tier"], &all["threads"], &all["model"]),
        (&"scalar".into(), &1.into(), &"stories260K-q8_0".into())
    );
    assert_eq!((&all["prompt"], &all["generate"], &all["repeat"]), (&150.into(), &20.into(), &3.into()));
    for kind in ["prefill", "decode"] {
        let mut runs: Vec<f64> = all[format!("{kind}_runs_tok_s").as_str()]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect();
        runs.sort_by(f64::total_cmp);
        assert!(runs.len() == 3 && runs[0] > 0.0, "{all}");
        assert_eq!(number(&format!("{kind}_tok_s")), runs[1], "the median: {all}");
    }
    let gb_s = number("decode_tok_s") * number("step_bytes") / 1e9;
    assert!((number("weights_gb_s") / gb_s - 1.0).abs() < 1e-9);
    // The embedding is the output matrix too, so a token reads every weight.
    let inspected = object(&run(&["inspect", &model, "--json"]));
    let types = inspected["types"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap());
    assert_eq!(all["step_bytes"], types.sum::<u64>());
    assert!(number("peak_rss_bytes") > number("file_bytes") && number("load_ms") > 0.0);
    let text = fine(&run(&[&["bench", &model], &flags[..]].concat()));
    for key in ["model", "kernels", "load", "prefill", "decode", "weights", "peak memory"] {
        assert!(text.lines().any(|line| line.starts_with(key)), "{key}:\n{text}");
    }
    fails(&run(&["bench", &model, "--prompt", "500", "--depth", "20"]), 2, &["520 positions", "512"]);
}

/// The numbers of prompt tokens that a daemon was asked to read, in order.
fn prompts(daemon: &Daemon) -> Vec<u64> {
    let log = daemon.log();
    let counts = log.lines().filter_map(|line| line.split_once(" prompt tokens (")?.0.rsplit(' ').next());
    counts.map(|n| n.parse().unwrap()).collect()
}

#[test]
fn a_conversation_over_a_pipe() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let socket = daemon.socket.display().to_string();
    let chat = ["chat", "--socket", &socket, "--max-tokens", "4", "--temperature", "0", "--system", "S"];
    let output = feed(
        &chat,
        "Once upon\n\n/system\n\"\"\"\n/a\\\nb\n\"\"\"\n/reset\nOnce upon\n/system T\nOnce \\\nupon\n/help\n/exit\nnever said\n",
    );
    let answers = fine(&output);
    let said = stderr(&output);
    assert!(!said.contains('>') && said.contains("\nS\n"), "no prompt in a pipe: {said}");
    assert!(said.contains("/reset") && said.contains("/exit"), "help: {said}");
    let first = answers.lines().next().unwrap().to_owned();
    let counts = prompts(&daemon);
    let of = |parts: &[&str]| prompt_tokens(&parts.join("\n\n"));
    assert_eq!(
        counts,
        [
            of(&["S", "Once upon"]),
            of(&["S", "Once upon", &first, "/a\\\nb"]),
            of(&["S", "Once upon"]),
            of(&["T", "Once \nupon"])
        ],
        "answers:\n{answers}"
    );
    // A script is told by the exit code, and nothing more is asked.
    fails(&feed(&chat, "/nonsense\nOnce\n"), 2, &["/nonsense", "/help"]);
    assert_eq!(prompts(&daemon).len(), 4);
    let output = feed(&chat, format!("{}\nOnce\n", "a b c d ".repeat(300)));
    let said = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output)), (Some(2), String::new()), "{said}");
    for word in ["context_too_long", "1205 tokens", "room for 512", "/reset"] {
        assert!(said.contains(word), "{word} in: {said}");
    }
}

/// A daemon closes connections that rest; a person may think for longer than that.
#[test]
fn a_conversation_outlives_its_connections() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &stories(), "");
    let socket = daemon.socket.display().to_string();
    let mut command = sotto(&["chat", "--socket", &socket, "--max-tokens", "4", "--temperature", "0"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut chat = Running(command.spawn().unwrap());
    let mut keys = chat.0.stdin.take().unwrap();
    keys.write_all(b"Once\n").unwrap();
    // The newline comes when the answer is complete.
    let mut answer = String::new();
    BufReader::new(chat.0.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.ends_with('\n') && answer.len() > 1, "{answer:?}");
    drop(daemon);
    let mut daemon = Daemon::start(&folder, &stories(), "");
    keys.write_all(b"upon\n").unwrap();
    daemon.logged("finished");
    drop(keys);
    assert!(chat.ended("the end of the conversation").success());
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    if !have("script", "chat in a terminal") {
        return;
    }
    let folder = Folder::new();
    let slow = folder.write("slow.gguf", llama(SLOW).bytes());
    let mut daemon = Daemon::start(&folder, &slow, "");
    let (slow, socket) = (slow.display().to_string(), daemon.socket.display().to_string());
    for (n, who) in [["--model", slow.as_str()], ["--socket", socket.as_str()]].iter().enumerate() {
        let state = folder.join(&format!("state{n}"));
        let args = [&["chat", "--temperature", "0"], &who[..]].concat();
        let mut terminal = Terminal::start(&args, |c| {
            c.env("XDG_STATE_HOME", &state);
        });
        terminal.shows("Ctrl-D leaves.");
        terminal.shows("> ");
        terminal.types("hello you\r");
        // The answer's words, and nothing else, have a w.
        terminal.shows("w");
        terminal.types("\u{3}");
        terminal.shows("sotto: stopped");
        terminal.shows("> ");
        terminal.types("\u{3}");
        terminal.shows("/exit or Ctrl-D leaves");
        terminal.shows("> ");
        terminal.types(" not kept\r");
        terminal.shows("w");
        terminal.types("\u{3}");
        terminal.shows("sotto: stopped");
        terminal.shows("> ");
        terminal.types("/exit\r");
        assert_eq!(terminal.ended().code(), Some(0), "{}", terminal.all());
        let history = state.join("sotto/chat-history");
        assert_eq!(std::fs::read_to_string(&history).unwrap(), "#V2\nhello you\n/exit\n");
        assert_eq!((mode(&history), mode(&state.join("sotto"))), (0o600, 0o700));
    }
    daemon.logged("failed, cancelled");
    // What is typed ahead is not lost, and bytes that are no text end nothing.
    let args = ["chat", "--no-history", "--temperature", "0", "--max-tokens", "2", "--model", &slow];
    let mut terminal = Terminal::start(&args, |_| {});
    terminal.shows("> ");
    terminal.sends(b"\xff\xfe\r");
    terminal.shows("no UTF-8");
    terminal.shows("> ");
    terminal.types("one\rtwo\r/system three\r/exit\r");
    assert_eq!(terminal.ended().code(), Some(0), "{}", terminal.all());
    for word in ["one", "two", "/system three", "/exit"] {
        assert!(terminal.all().contains(word), "{word}: {}", terminal.all());
    }
    let state = folder.join("state2");
    let args = ["chat", "--no-history", "--temperature", "0", "--max-tokens", "2", "--model", &slow];
    let mut terminal = Terminal::start(&args, |c| {
        c.env("XDG_STATE_HOME", &state);
    });
    terminal.shows("> ");
    terminal.types("hello\\\r");
    terminal.shows(". ");
    terminal.types("you\r");
    terminal.shows("w");
    terminal.shows("> ");
    terminal.types("\u{4}");
    assert_eq!(terminal.ended().code(), Some(0), "{}", terminal.all());
    assert!(!state.exists(), "nothing is kept");
}

#[test]
fn a_bar_is_for_terminals_and_long_steps_only() {
    if !have("script", "bars in a terminal") {
        return;
    }
    let folder = Folder::new();
    let slow = folder.write("slow.gguf", llama(SLOW).bytes()).display().to_string();
    let long = "w300 ".repeat(150);
    let flags = ["complete", "--temperature", "0", "--max-tokens", "2", "--threads", "1", "--model"];
    let output = run(&[&flags[..], &[&slow, &long]].concat());
    assert!(!fine(&output).is_empty());
    assert_eq!(stderr(&output), "", "no bar in a pipe");
    let mut terminal = Terminal::start(&[&flags[..], &[&slow, &long]].concat(), |_| {});
    terminal.shows("reading ");
    terminal.shows(" tokens, ");
    terminal.shows(" left");
    assert_eq!(terminal.ended().code(), Some(0));
    let quick = stories().display().to_string();
    let mut terminal = Terminal::start(&[&flags[..], &[&quick, "Once"]].concat(), |_| {});
    assert_eq!(terminal.ended().code(), Some(0));
    let all = terminal.all();
    assert!(!all.contains("reading") && !all.contains("waiting"), "{all:?}");
}

#[test]
fn the_configuration_is_checked_and_shown() {
    let folder = Folder::new();
    let file =
        folder.write("s.toml", "version = 1\n[api]\nlenient = true\n[models.aliases]\n\"gpt 4\" = \"a\"\n");
    let (file, dir) = (file.display().to_string(), folder.join("s.toml.d"));
    std::fs::create_dir(&dir).unwrap();
    let more = dir.join("a.toml");
    std::fs::write(&more, "version = 1\n[engine]\ncontext = 100\n").unwrap();
    let more = more.display().to_string();
    let checked = fine(&run(&["config", "check", "--config", &file]));
    assert_eq!(checked, format!("{file}, {more} can be used; warnings: 1\n"));
    let shown = fine(&run(&["config", "show", "--config", &file]));
    for line in [
        format!("api.lenient = true  # {file}"),
        format!("engine.context = 100  # {more}"),
        format!("models.aliases.\"gpt 4\" = \"a\"  # {file}"),
        "api.mode = \"0660\"  # default".into(),
        "engine.kv_type = \"f16\"  # default".into(),
        "daemon.admin_groups = []  # default".into(),
    ] {
        assert!(shown.lines().any(|found| found == line), "{line} in\n{shown}");
    }
    let keys = object(&run(&["config", "show", "--config", &file, "--json"]));
    assert_eq!(keys["engine.context"], serde_json::json!({ "value": 100, "file": more }));
    assert_eq!(keys["engine.kv_type"], serde_json::json!({ "value": "f16", "file": null }));
    std::fs::write(&more, "version = 1\n[engine]\ncontxt = 100\n").unwrap();
    for what in ["check", "show"] {
        fails(
            &run(&["config", what, "--config", &file]),
            2,
            &[&format!("{more}:3:1: unknown field `contxt`")],
        );
    }
    std::fs::write(&more, "version = 1\n[models]\ndefault = \"none such\"\n[engine]\ncpus = \"900\"\n")
        .unwrap();
    let checked = run(&["config", "check", "--config", &file]);
    fine(&checked);
    for said in [
        "models.default = \"none such\": no such model",
        "engine.cpus: none of [900]",
        "models.aliases: \"gpt 4\"",
    ] {
        assert!(stderr(&checked).contains(said), "{said} in\n{}", stderr(&checked));
    }
    std::fs::write(&more, "version = 1\n[api]\nsocket = \"\"\n").unwrap();
    fails(&run(&["config", "check", "--config", &file]), 2, &[&more, "a path of 0 bytes"]);
    fails(&run(&["config", "check", "--config", "/nowhere.toml"]), 2, &["/nowhere.toml: cannot be read"]);
}
