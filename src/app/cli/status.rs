//! What a daemon does now, on one screen; its caller's generations, and their end.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::show::{self, Table, duration, size, speed};
use super::{Failure, SocketArgs, backend};
use crate::door::client::Client;

const STATUS: &str = "/sotto/v1/status";
/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Go on every second: on a terminal drawn anew, elsewhere a line each time
    #[arg(long)]
    watch: bool,
    /// Print the daemon's JSON object, with --watch one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Id of a generation, as `sotto ps` lists them
    id: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Shows the state of the daemon once, or again and again until Ctrl-C or its end.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let (client, runtime) = args.socket.client()?;
    let look = || runtime.block_on(client.get(STATUS)).map_err(backend::refused);
    let terminal = std::io::stdout().is_terminal();
    if args.watch && terminal && !args.json {
        show::out("\x1b[2J")?;
    }
    loop {
        let status = look()?;
        match (args.json, args.watch) {
            (true, _) => show::json(&status)?,
            (false, true) if terminal => show::screen(&screen(&status))?,
            (false, true) => show::out(&(line(&status) + "\n"))?,
            (false, false) => show::out(&show::plain(&screen(&status)))?,
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

/// Lists the caller's generations.
pub(super) fn ps(args: &PsArgs) -> Result<(), Failure> {
    let (client, runtime) = args.socket.client()?;
    let status = runtime.block_on(client.get(STATUS)).map_err(backend::refused)?;
    match args.json {
        true => show::json(status.get("generations").unwrap_or(&Value::Null)),
        false => show::out(&show::plain(&list(&status))),
    }
}

/// Cancels a generation.
pub(super) fn cancel(args: &CancelArgs) -> Result<(), Failure> {
    let (client, runtime) = args.socket.client()?;
    let cancelled = async |client: &Client| {
        let status = client.get(STATUS).await?;
        client.cancel(&args.id).await?;
        Ok(list_of(&status, "generations").iter().any(|of| text(of, "id") == args.id))
    };
    if !runtime.block_on(cancelled(&client)).map_err(backend::refused)? {
        show::note(&format!("{} was not under way", args.id));
    }
    Ok(())
}

fn text<'v>(of: &'v Value, key: &str) -> &'v str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(of: &Value, key: &str) -> u64 {
    of.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn list_of<'v>(of: &'v Value, key: &str) -> &'v [Value] {
    of.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Its state in a word, with the reason where it has one.
fn state(status: &Value) -> String {
    match text(status, "state_reason") {
        "" => text(status, "state").to_owned(),
        reason => format!("{} ({reason})", text(status, "state")),
    }
}

fn memory(status: &Value) -> String {
    let known = |key: &str| status.pointer(key).and_then(Value::as_u64).map(size);
    let own = known("/memory/resident_bytes").unwrap_or_else(|| "unknown".into());
    match known("/memory/available_bytes") {
        Some(left) => format!("{own} of the daemon, {left} to be had"),
        None => own,
    }
}

fn temperature(status: &Value) -> Option<String> {
    status.get("temperature_c").and_then(Value::as_f64).map(|c| format!("{c:.1} °C"))
}

/// What a generation does, and how fast.
fn doing(generation: &Value) -> String {
    let mut said = match text(generation, "state") {
        "prefill" => format!(
            "reads, {} of {} tokens",
            number(generation, "prompt_done"),
            number(generation, "prompt_tokens")
        ),
        "paused" => format!(
            "rests, {} of {} tokens read, {} written",
            number(generation, "prompt_done"),
            number(generation, "prompt_tokens"),
            number(generation, "completion_tokens")
        ),
        "decode" => format!(
            "writes, {} tokens after {}",
            number(generation, "completion_tokens"),
            number(generation, "prompt_tokens")
        ),
        other => other.to_owned(),
    };
    if let Some(rate) = generation.get("tokens_per_s").and_then(Value::as_f64) {
        said += &format!(", {} tokens/s", speed(rate));
    }
    if let Some(ms) = generation.get("prefill_left_ms").and_then(Value::as_u64) {
        said += &format!(", {} left", duration(ms));
    }
    said
}

/// All of it.
fn screen(status: &Value) -> String {
    let mut table = Table::default();
    table.line(
        "sottod",
        &format!(
            "{}, {}, kernels {}, {} threads",
            text(status, "version"),
            state(status),
            text(status, "tier"),
            number(status, "threads")
        ),
    );
    let mut key = "models";
    for model in list_of(status, "models") {
        let id = text(model, "id");
        let mut said = format!("{id}: {}", text(model, "state"));
        let error = text(model, "error");
        if !error.is_empty() {
            said += &format!(" ({error})");
        }
        if model["pinned"] == true {
            said += ", pinned";
        }
        if number(model, "weights_bytes") > 0 {
            let (weights, kv) = (number(model, "weights_bytes"), number(model, "kv_bytes"));
            said += &format!(", weights {}, cache {}", size(weights), size(kv));
        }
        if id == text(status, "default_model") {
            said += " (default)";
        }
        table.line(key, &said);
        key = "";
    }
    if key == "models" {
        table.line(key, "none");
    }
    let queue = |class: &str| status.pointer(&format!("/queue/{class}")).and_then(Value::as_u64).unwrap_or(0);
    table.line(
        "queue",
        &format!(
            "{} running, {} waiting: {} interactive, {} background; callers: {}",
            number(status, "active_generations"),
            number(status, "queue_length"),
            queue("interactive"),
            queue("background"),
            number(status, "callers")
        ),
    );
    table.line("memory", &memory(status));
    table.line("temperature", temperature(status).as_deref().unwrap_or("no sensor"));
    let mut key = "generations";
    for generation in list_of(status, "generations") {
        let (id, model) = (text(generation, "id"), text(generation, "model"));
        table.line(key, &format!("{id} {model}: {}", doing(generation)));
        key = "";
    }
    table.text().to_owned()
}

/// The most of it on one line.
fn line(status: &Value) -> String {
    let mut said = format!(
        "{}, {} running, {} waiting, memory {}",
        state(status),
        number(status, "active_generations"),
        number(status, "queue_length"),
        memory(status)
    );
    if let Some(temperature) = temperature(status) {
        said += &format!(", {temperature}");
    }
    for generation in list_of(status, "generations") {
        said += &format!("; {} {}", text(generation, "model"), doing(generation));
    }
    show::plain(&said).replace('\n', " ")
}

/// A line for each generation below a head.
fn list(status: &Value) -> String {
    let mut out = format!(
        "{:<26}  {:>6}  {:<11}  {:<9}  {:>13}  {:>6}  {:>8}  {:>7}  {}\n",
        "ID", "UID", "CLASS", "STATE", "PROMPT", "TOKENS", "TOKENS/S", "TIME", "MODEL"
    );
    for generation in list_of(status, "generations") {
        let prompt = format!("{}/{}", number(generation, "prompt_done"), number(generation, "prompt_tokens"));
        let rate = generation.get("tokens_per_s").and_then(Value::as_f64).map(speed);
        out += &format!(
            "{:<26}  {:>6}  {:<11}  {:<9}  {:>13}  {:>6}  {:>8}  {:>7}  {}\n",
            text(generation, "id"),
            number(generation, "uid"),
            text(generation, "class"),
            text(generation, "state"),
            prompt,
            number(generation, "completion_tokens"),
            rate.as_deref().unwrap_or("-"),
            duration(number(generation, "elapsed_ms")),
            text(generation, "model"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_screen_tells_everything_and_steers_no_terminal() {
        let status = json!({
            "version": "1", "state": "degraded", "state_reason": "not_ready", "tier": "avx2", "threads": 4,
            "default_model": "b\u{1b}[2J", "queue_length": 3, "queue": { "interactive": 2, "background": 1 },
            "active_generations": 1, "callers": 2,
            "models": [
                { "id": "a", "state": "failed", "error": "load_failed" },
                { "id": "b\u{1b}[2J", "state": "loaded", "pinned": true, "weights_bytes": 20_000_000, "kv_bytes": 30_000 },
            ],
            "generations": [
                { "id": "i", "model": "a", "state": "prefill", "prompt_tokens": 900, "prompt_done": 300,
                  "tokens_per_s": 120.0, "prefill_left_ms": 4_980 },
                { "id": "j", "model": "a", "state": "decode", "prompt_tokens": 9, "completion_tokens": 5,
                  "tokens_per_s": 2.0 },
            ],
            "memory": { "resident_bytes": 612_000_000_u64, "available_bytes": null }, "temperature_c": 63.5,
        });
        let screen = screen(&status);
        assert!(!screen.contains('\u{1b}'), "{screen:?}");
        for words in [
            "sottod        1, degraded (not_ready), kernels avx2, 4 threads\n",
            "models        a: failed (load_failed)\n              b",
            ": loaded, pinned, weights 20.0 MB, cache 30.0 kB (default)\n",
            "1 running, 3 waiting: 2 interactive, 1 background; callers: 2\n",
            "memory        612.0 MB\n",
            "63.5 °C\n",
            "generations   i a: reads, 300 of 900 tokens, 120 tokens/s, 5.0 s left\n",
            "              j a: writes, 5 tokens after 9, 2.00 tokens/s\n",
        ] {
            assert!(screen.contains(words), "{words:?} in {screen}");
        }
        assert_eq!(line(&status).lines().count(), 1);
        // Of a daemon that tells less.
        assert!(super::screen(&json!({})).contains("models        none\n"));
        assert_eq!(list(&json!({})).lines().count(), 1);
    }
}
