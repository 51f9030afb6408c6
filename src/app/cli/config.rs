//! What the daemon would be told by its configuration.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::Failure;
use super::show::{self, out};
use crate::app::config::Place;
use crate::app::reload;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell whether the daemon would start with it
    Check(CheckArgs),
    /// Print every key with its value and the file that it comes from
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Configuration file, and FILE.d with more, as sottod takes it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    which: CheckArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads the files as the daemon does, and says what it found.
pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let read = |which: &CheckArgs| Place::new(which.config.as_deref()).read().map_err(Failure::usage);
    match &args.what {
        What::Check(args) => {
            let read = read(args)?;
            let settings = reload::settings(&read.config, None, false);
            let warnings = reload::warnings(&read.config, &settings);
            for warning in &warnings {
                show::note(&format!("warning: {warning}"));
            }
            let files: Vec<String> = read.files.iter().map(|path| path.display().to_string()).collect();
            out(&match files.is_empty() {
                true => "there is no file, the defaults hold\n".into(),
                false if warnings.is_empty() => format!("nothing is wrong with {}\n", files.join(", ")),
                false => format!("{} can be used; warnings: {}\n", files.join(", "), warnings.len()),
            })
        }
        What::Show(args) => {
            let read = read(&args.which)?;
            if args.json {
                let keys =
                    read.values().map(|(key, value, file)| (key, json!({ "value": value, "file": file })));
                return show::json(&Value::Object(keys.collect::<Map<_, _>>()));
            }
            let from = |file: Option<&Path>| file.map_or("default".into(), |path| path.display().to_string());
            let line =
                |(key, value, file)| show::escaped(&format!("{key} = {value}  # {}", from(file))) + "\n";
            out(&read.values().map(line).collect::<String>())
        }
    }
}
