//! Rule 12: the pages name what the program has, and nothing else.

use std::collections::BTreeSet;

use super::rust::{Rust, is_word, words};
use super::{Finding, Tree, finding};

/// What a caller sees, in the code and in the page that describes it: each name of one must stand in the other.
///
/// The pages' side is read from code spans: a route is a path that stands alone, a method is written `Name(…)`, a key
/// is dotted, a flag opens its span. Prose and examples may therefore mention other programs freely.
pub(crate) fn docs(tree: &Tree) -> Vec<Finding> {
    let surfaces: [(&str, &str, &str, Names, Names); 4] = [
        ("src/door/http", ".rs", "docs/http.md", routes_in_code, routes_in_page),
        ("proto/", ".xml", "docs/dbus.md", methods_in_file, methods_in_page),
        ("src/app/config", ".rs", "docs/config.md", keys_in_code, keys_in_page),
        ("src/app/", ".rs", "docs/cli.md", flags_in_code, flags_in_page),
    ];
    let mut found = Vec::new();
    for (source, extension, page, in_code, in_page) in surfaces {
        let mut code = BTreeSet::new();
        for (path, text) in tree.texts(source, extension) {
            code.extend(in_code(text).into_iter().map(|name| (name, path)));
        }
        if code.is_empty() {
            continue;
        }
        let documented =
            tree.get(page).and_then(|file| file.text.as_deref()).map(in_page).unwrap_or_default();
        for (name, path) in &code {
            if !documented.contains(name) {
                found.push(finding(path, 1, format!("`{name}` is not in {page}; describe it there")));
            }
        }
        for name in documented {
            if !code.iter().any(|(known, _)| *known == name) {
                found.push(finding(
                    page,
                    1,
                    format!("`{name}` is not in {source}*; remove it, or write it as an example"),
                ));
            }
        }
    }
    found
}

type Names = fn(&str) -> BTreeSet<String>;

/// Spans between backticks on one line.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// `GET /v1/models/{id}` and the literal `/v1/models/` are both `/v1/models`; a bare prefix is no route.
fn route(text: &str) -> Option<String> {
    let path =
        text.split([' ', '?']).find(|word| word.starts_with('/')).filter(|_| text.split(' ').count() <= 2)?;
    let path = path.split(['{', ':', '<']).next()?.trim_end_matches('/');
    let known = ["/v1/", "/sotto/v1/", "/healthz", "/readyz", "/metrics"];
    known.iter().any(|start| path.starts_with(start)).then(|| path.into())
}

fn routes_in_code(text: &str) -> BTreeSet<String> {
    let rust = Rust::lex(text);
    rust.strings.iter().filter(|(at, _)| *at < rust.tests).filter_map(|(_, text)| route(text)).collect()
}

fn routes_in_page(text: &str) -> BTreeSet<String> {
    code_spans(text).filter_map(route).collect()
}

fn is_camel(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().any(|c| c.is_ascii_lowercase())
}

/// Methods of the interface file; what stands there under "since: later" is not served.
fn methods_in_file(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut later = false;
    for part in text.split('<') {
        if part.starts_with("!--") {
            later |= part.trim_start_matches("!--").trim_start().starts_with("since: later");
        } else if let Some(name) = part.strip_prefix("method name=\"").and_then(|rest| rest.split('"').next())
            && !std::mem::take(&mut later)
        {
            names.insert(name.to_owned());
        }
    }
    names
}

fn methods_in_page(text: &str) -> BTreeSet<String> {
    let call = |span: &str| span.split_once('(').map(|(name, _)| name.to_string());
    code_spans(text).filter_map(call).filter(|name| is_camel(name) && name.chars().all(is_word)).collect()
}

/// Sections of the configuration: a dotted name that starts with another word is no key.
const SECTIONS: &[&str] =
    &["daemon", "dbus", "api", "models", "model", "engine", "scheduler", "session", "limits"];

/// Parts of dotted keys in literals, and the fields of structures that are read from the file.
fn keys_in_code(text: &str) -> BTreeSet<String> {
    let rust = Rust::lex(text);
    let mut names: BTreeSet<String> =
        rust.strings.iter().filter(|(at, _)| *at < rust.tests).flat_map(|(_, text)| key(text)).collect();
    for (at, _) in rust.code[..rust.tests].match_indices("Deserialize") {
        let rest = &rust.code[at..rust.tests];
        let Some((head, body)) = rest.split_once('{') else { continue };
        if !head.starts_with("Deserialize")
            || !words(head).any(|(_, word)| word == "struct")
            || head.contains(';')
        {
            continue;
        }
        let body = &body[..body.find("\n}").unwrap_or(body.len())];
        let fields = body.lines().filter_map(|line| line.trim().trim_start_matches("pub ").split_once(": "));
        let fields = fields.map(|(name, _)| name).filter(|name| name.chars().all(is_word));
        names.extend(fields.filter(|name| !SECTIONS.contains(name)).map(String::from));
    }
    names.remove("version");
    names
}

fn keys_in_page(text: &str) -> BTreeSet<String> {
    code_spans(text).flat_map(key).collect()
}

/// The parts of a dotted key behind its section, without placeholders such as `ID`.
fn key(dotted: &str) -> Vec<String> {
    let parts: Vec<&str> = dotted.split('.').collect();
    let plain = parts.iter().all(|part| !part.is_empty() && part.chars().all(is_word));
    let known = plain && SECTIONS.contains(&parts[0]);
    let names = parts.into_iter().skip(1).filter(|part| !part.starts_with(|c: char| c.is_ascii_uppercase()));
    if known { names.map(String::from).collect() } else { Vec::new() }
}

/// Long flags of `#[arg(… long …)]`: the name given there, else the field's.
fn flags_in_code(text: &str) -> BTreeSet<String> {
    let rust = Rust::lex(text);
    let mut names = BTreeSet::new();
    for (at, mark) in rust.code[..rust.tests].match_indices("#[arg(") {
        let Some(end) = rust.code[at..].find(")]").map(|n| at + n) else { continue };
        let inside = at + mark.len()..end;
        let Some((long, _)) = words(&rust.code[inside.clone()]).find(|(_, word)| *word == "long") else {
            continue;
        };
        let after = rust.code[inside.start + long + "long".len()..end].trim_start();
        let given = after.starts_with('=').then(|| {
            let named = rust.strings.iter().find(|(quote, _)| (inside.start + long..end).contains(quote));
            named.map(|(_, text)| text.clone())
        });
        let field = || {
            let mut rest = rust.code[end + 2..].trim_start();
            while let Some(next) = rest.strip_prefix("#[").and_then(|attribute| attribute.split_once("]\n")) {
                rest = next.1.trim_start();
            }
            let name = rest.trim_start_matches("pub ").split(':').next().unwrap_or("");
            name.trim().trim_start_matches("r#").replace('_', "-")
        };
        names.insert(format!("--{}", given.flatten().unwrap_or_else(field)));
    }
    names
}

fn flags_in_page(text: &str) -> BTreeSet<String> {
    let flags =
        code_spans(text).filter(|span| span.starts_with('-')).flat_map(|span| span.split([' ', ',', '=']));
    let flags = flags.filter(|word| word.len() > 2 && word.starts_with("--")).map(String::from);
    flags.filter(|flag| !["--help", "--version"].contains(&flag.as_str())).collect()
}
