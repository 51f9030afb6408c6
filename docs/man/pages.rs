//! Manual pages and completions: of the programs' own definitions of their flags, and of `docs/`.

use std::fs::{create_dir_all, write as put};
use std::io::Result;
use std::path::Path;

use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;
use sotto::app::{cli, daemon};

const CLI: &str = include_str!("../cli.md");
const CONFIG: &str = include_str!("../config.md");
/// Sections of `docs/cli.md` that belong to both programs.
const SHARED: [&str; 2] = ["Exit codes", "Environment"];

/// Writes `sotto.1` with a page for each command, `sottod.8`, `sotto.toml.5`, and completions for three shells.
pub(crate) fn write(dir: &Path) -> Result<()> {
    create_dir_all(dir)?;
    let sotto = cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(sotto.clone(), dir)?;
    put(dir.join("sotto.1"), with_shared(&Man::new(sotto.clone()))?)?;
    let sottod = daemon::command();
    put(dir.join("sottod.8"), with_shared(&Man::new(sottod.clone()).section("8"))?)?;
    let head = concat!(".TH sotto.toml 5 \"\" \"sotto ", env!("CARGO_PKG_VERSION"), "\"\n.SH NAME\n");
    let name = "sotto.toml \\- configuration of sottod\n.SH DESCRIPTION\n";
    put(dir.join("sotto.toml.5"), [head, name, &roff(CONFIG)].concat())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        for command in [&sotto, &sottod] {
            generate_to(shell, &mut command.clone(), command.get_name(), dir)?;
        }
    }
    Ok(())
}

/// A page with the sections that both programs have.
fn with_shared(page: &Man) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    page.render(&mut out)?;
    for section in CLI.split("\n## ").filter(|s| SHARED.contains(&s.lines().next().unwrap_or_default())) {
        out.extend(roff(&format!("## {section}")).into_bytes());
    }
    Ok(out)
}

/// The Markdown of `docs/` for man(7): headings, paragraphs, lists, tables of terms, code.
fn roff(markdown: &str) -> String {
    let mut out = String::new();
    let (mut code, mut paragraph, mut columns) = (false, true, Vec::<String>::new());
    for line in markdown.lines() {
        if line.starts_with("```") {
            code = !code;
            out += if code { ".PP\n.RS 4\n.nf\n" } else { ".fi\n.RE\n" };
            paragraph = true;
            columns.clear();
        } else if code {
            out += &format!("{}\n", guarded(escaped(line)));
        } else if let Some(title) = line.strip_prefix("### ") {
            out += &format!(".SS {}\n", inline(title));
            paragraph = false;
        } else if let Some(title) = line.strip_prefix("## ") {
            out += &format!(
                ".SH {}\n",
                inline(title).to_uppercase().replace("\\FB", "\\fB").replace("\\FR", "\\fR")
            );
            paragraph = false;
        } else if let Some(row) = line.strip_prefix('|') {
            if row.starts_with('-') {
                continue;
            }
            let row = row.trim_end().trim_end_matches('|').replace("\\|", "\u{1}");
            let mut cells = row.split('|').map(|cell| inline(cell.trim()).replace('\u{1}', "|"));
            // The first row names the columns; what is not a meaning is told with its name.
            if columns.is_empty() {
                columns = cells.collect();
                continue;
            }
            out += &format!(".TP\n{}\n", guarded(cells.next().unwrap_or_default()));
            let named = |(cell, column): (String, &String)| match column.as_str() {
                "Meaning" | "Does" => guarded(cell),
                _ => guarded(format!("{column}: {cell}")),
            };
            let told = cells.zip(columns.iter().skip(1)).filter(|(cell, _)| !cell.is_empty());
            out += &format!("{}\n", told.map(named).collect::<Vec<_>>().join("\n.br\n"));
            paragraph = true;
        } else if line.is_empty() {
            paragraph = true;
            columns.clear();
        } else if let Some(item) = line.strip_prefix("- ") {
            out += &format!(".IP \\(bu 2\n{}\n", guarded(inline(item)));
            paragraph = false;
        } else if !line.starts_with("# ") {
            if std::mem::take(&mut paragraph) {
                out += ".PP\n";
            }
            out += &format!("{}\n", guarded(inline(line.trim())));
        }
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// A line that begins like a request of roff's is text.
fn guarded(line: String) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

/// Code in bold, links by their text.
fn inline(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        plain += before;
        match after.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?.1))) {
            Some((name, after)) if !name.contains(']') => {
                plain += name;
                rest = after;
            }
            _ => {
                plain += "[";
                rest = after;
            }
        }
    }
    plain += rest;
    let spans = plain.replace("**", "").split('`').map(escaped).collect::<Vec<_>>();
    let bold = |(i, span): (usize, String)| if i % 2 == 1 { format!("\\fB{span}\\fR") } else { span };
    spans.into_iter().enumerate().map(bold).collect()
}
