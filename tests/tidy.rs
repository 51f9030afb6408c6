//! The rules of the house that a compiler does not know, checked over every file of the project.
//!
//! Each rule is a function from a [`Tree`] to findings, so that the same rule runs over the project and, in
//! `must_fail`, over small trees that break it. Rules: 1 layers, 2 length, 3 open ends, 4 printing, 5 unsafe,
//! 6 paths of one machine, 7 blanks, 8 orphans, 9 dependencies, 10 clocks and environment, 11 size, 12 docs.
//! Exceptions stand in the tables below, each with its reason.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use docs::docs;
use rust::{Rust, is_word, words};

#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/must_fail.rs"]
mod must_fail;
#[path = "tidy/rust.rs"]
mod rust;

/// Folders of `src/` and their layer: a file imports from its own folder and from lower numbers, never from a peer.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("os", 1),
    ("quant", 1),
    ("kernel", 2),
    ("format", 2),
    ("text", 2),
    ("model", 3),
    ("sample", 3),
    ("side", 3),
    ("engine", 4),
    ("onnx", 4),
    ("train", 4),
    ("answer", 5),
    ("door", 6),
    ("door/http", 6),
    ("door/dbus", 6),
    ("app", 7),
];

/// Direct dependencies with the licence that their own manifest states. A new one also needs a decision.
const DEPENDENCIES: &[(&str, &str)] = &[
    ("arbtest", "MIT OR Apache-2.0"),
    ("base64", "MIT OR Apache-2.0"),
    ("clap", "MIT OR Apache-2.0"),
    ("clap_complete", "MIT OR Apache-2.0"),
    ("clap_mangen", "MIT OR Apache-2.0"),
    ("half", "MIT OR Apache-2.0"),
    ("http-body-util", "MIT"),
    ("hyper", "MIT"),
    ("hyper-util", "MIT"),
    ("indicatif", "MIT"),
    ("log", "MIT OR Apache-2.0"),
    ("memmap2", "MIT OR Apache-2.0"),
    ("minijinja", "Apache-2.0"),
    ("minijinja-contrib", "Apache-2.0"),
    ("prost", "Apache-2.0"),
    ("rustix", "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT"),
    ("rustyline", "MIT"),
    ("sd-notify", "MIT OR Apache-2.0"),
    ("serde", "MIT OR Apache-2.0"),
    ("serde_json", "MIT OR Apache-2.0"),
    ("systemd-journal-logger", "MIT OR Apache-2.0"),
    ("thiserror", "MIT OR Apache-2.0"),
    ("tokio", "MIT"),
    ("toml", "MIT OR Apache-2.0"),
    ("tract-onnx", "MIT OR Apache-2.0"),
    ("unicode-normalization", "(MIT OR Apache-2.0) AND Unicode-3.0"),
    ("xxhash-rust", "BSL-1.0"),
    ("zbus", "MIT"),
    ("zerocopy", "BSD-2-Clause OR Apache-2.0 OR MIT"),
];

/// Where `unsafe` may stand, and why.
const UNSAFE_ALLOWED: &[(&str, &str)] = &[
    ("src/kernel/", "vector loads and calls into a tier whose features were detected"),
    ("src/os/", "maps, affinity, descriptors"),
    ("tests/no_alloc.rs", "a counting allocator implements an unsafe trait"),
    ("tests/formats/peak.rs", "a counting allocator implements an unsafe trait"),
];

/// Calls that only the edges may make, and where the edges are.
const EDGE_CALLS: &[(&str, &[&str], &str)] = &[
    ("env::var", &["src/app/", "src/bin/"], "configuration comes from files and flags; take a parameter"),
    (
        "env::var_os",
        &["src/app/", "src/bin/", "src/onnx/main.rs"],
        "configuration comes from files and flags; take a parameter",
    ),
    (
        "Instant::now",
        &["src/app/", "src/door/", "src/os/", "src/engine/"],
        "time is passed in; take `now` as a parameter",
    ),
    ("SystemTime::now", &["src/app/", "src/os/"], "time is passed in; take `now` as a parameter"),
    ("thread::spawn", &["src/os/"], "threads have names and owners; use os::thread::start"),
];

/// Pure inside a folder that otherwise reads clocks: the simulation replays it.
const PURE: &str = "src/engine/scheduler";

/// Files over the size limit, by the start of their path.
const LARGE_ALLOWED: &[(&str, &str)] = &[("models/story-2.8m-q8_0.gguf", "the model in the box")];

const LINES_MAX: usize = 700;
const FILE_BYTES_MAX: u64 = 2_000_000;
const DECISION_LINES_MAX: usize = 40;

/// A file of the project. `text` is absent where the bytes are not text.
struct File {
    path: String,
    len: u64,
    text: Option<String>,
}

/// Every file that git tracks or would track.
struct Tree(Vec<File>);

#[derive(Debug)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

type Rule = fn(&Tree) -> Vec<Finding>;
const RULES: &[(&str, Rule)] = &[
    ("1 layers", layers),
    ("2 length", length),
    ("3 open ends", open_ends),
    ("4 printing", printing),
    ("5 unsafe", unsafe_code),
    ("6 paths of one machine", machine_paths),
    ("7 blanks", blanks),
    ("8 orphans", orphans),
    ("9 dependencies", dependencies),
    ("10 edges", edges),
    ("11 size", size),
    ("12 docs", docs),
];

#[test]
fn the_project_is_tidy() {
    let tree = Tree::of_project(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(tree.get("Cargo.toml").is_some(), "the list of files is empty");
    let findings: Vec<Finding> = RULES.iter().flat_map(|(_, rule)| rule(&tree)).collect();
    let lines: Vec<String> =
        findings.iter().map(|f| format!("{}:{}: error: {}", f.path, f.line, f.what)).collect();
    assert!(lines.is_empty(), "{} findings\n{}", lines.len(), lines.join("\n"));
}

impl Tree {
    fn of_project(root: &Path) -> Self {
        let git = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output();
        let mut paths: Vec<String> = match git {
            Ok(out) if out.status.success() && !out.stdout.is_empty() => String::from_utf8_lossy(&out.stdout)
                .split('\0')
                .filter(|path| !path.is_empty())
                .map(String::from)
                .collect(),
            _ => walk(root, ""), // an unpacked archive has no git
        };
        paths.sort();
        paths.dedup();
        Self(paths.into_iter().filter_map(|path| File::read(root, path)).collect())
    }

    fn get(&self, path: &str) -> Option<&File> {
        self.0.iter().find(|file| file.path == path)
    }

    /// Text files whose path starts with `start` and ends with `end`.
    fn texts<'a>(&'a self, start: &'a str, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |file| {
            let wanted = file.path.starts_with(start) && file.path.ends_with(end);
            wanted.then_some((file.path.as_str(), file.text.as_deref()?))
        })
    }

    fn rust<'a>(&'a self, start: &'a str) -> impl Iterator<Item = (&'a str, Rust)> {
        self.texts(start, ".rs").map(|(path, text)| (path, Rust::lex(text)))
    }
}

impl File {
    /// `None` for what is listed but deleted, and for links (what they point at is listed itself).
    fn read(root: &Path, path: String) -> Option<Self> {
        let full = root.join(&path);
        let meta = full.symlink_metadata().ok().filter(|meta| meta.is_file())?;
        let text = if meta.len() > FILE_BYTES_MAX { None } else { std::fs::read(&full).ok() };
        let text = text.filter(|bytes| !bytes.contains(&0)).and_then(|bytes| String::from_utf8(bytes).ok());
        Some(Self { path, len: meta.len(), text })
    }
}

fn walk(root: &Path, under: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(root.join(under)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if under.is_empty() { name.clone() } else { format!("{under}/{name}") };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && ![".git", "target"].contains(&name.as_str()) => {
                paths.extend(walk(root, &path));
            }
            Ok(kind) if kind.is_file() => paths.push(path),
            _ => {}
        }
    }
    paths
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.into(), line, what: what.into() }
}

// ---- 1 to 7: a file at a time

fn layers(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, rust) in tree.rust("src/") {
        let module = module_of(path);
        let Some(folder) = module.first().filter(|first| *first != "bin") else { continue };
        let Some((own, layer)) = layer_of(&module) else {
            found.push(finding(
                path,
                1,
                format!("folder `{folder}` has no layer; add it to LAYERS in tests/tidy.rs"),
            ));
            continue;
        };
        for (at, imported) in imports(&rust, &module) {
            let Some((other, other_layer)) = layer_of(&imported) else { continue };
            let family = format!("{own}/").starts_with(&format!("{other}/"))
                || format!("{other}/").starts_with(&format!("{own}/"));
            if !family && other_layer >= layer {
                let what = format!(
                    "`{own}` (layer {layer}) imports from `{other}` (layer {other_layer}); import downward only, or move the item down"
                );
                found.push(finding(path, rust.line(at), what));
            }
        }
    }
    found
}

/// `src/kernel/x86/avx2.rs` is `kernel x86 avx2`, `src/kernel/mod.rs` is `kernel`, `src/lib.rs` is nothing.
fn module_of(path: &str) -> Vec<String> {
    let stem = path.trim_start_matches("src/").trim_end_matches(".rs");
    let stem = stem.trim_end_matches("/mod");
    if ["lib", "main"].contains(&stem) { Vec::new() } else { stem.split('/').map(String::from).collect() }
}

fn layer_of(module: &[String]) -> Option<(&'static str, u8)> {
    let path = format!("{}/", module.join("/"));
    LAYERS.iter().rev().find(|(folder, _)| path.starts_with(&format!("{folder}/"))).copied()
}

/// Every module path that starts at the crate's root, by `crate::` or by enough `super::`.
fn imports(rust: &Rust, module: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (at, word) in rust.words() {
        let mut rest = &rust.code[at + word.len()..];
        match word {
            "crate" => {}
            "super" if !rust.code[..at].trim_end().ends_with("::") => {
                let mut up = 1;
                while let Some(next) = rest.strip_prefix("::super") {
                    (rest, up) = (next, up + 1);
                }
                if up != module.len() + usize::from(at >= rust.tests) {
                    continue;
                }
            }
            _ => continue,
        }
        let Some(rest) = rest.strip_prefix("::") else { continue };
        let mut paths = Vec::new();
        expand(rest, &mut Vec::new(), &mut paths);
        found.extend(paths.into_iter().map(|path| (at, path)));
    }
    found
}

/// The paths that `a::{b, c::{d}}` stands for. Returns what follows them.
fn expand<'a>(mut text: &'a str, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> &'a str {
    let depth = prefix.len();
    loop {
        text = text.trim_start();
        if let Some(mut group) = text.strip_prefix('{') {
            loop {
                text = expand(group, prefix, out);
                match text.strip_prefix(',') {
                    Some(next) => group = next,
                    None => break,
                }
            }
            text = text.strip_prefix('}').unwrap_or(text);
            break;
        }
        let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
        prefix.extend((end > 0).then(|| text[..end].into()));
        text = &text[end..];
        if let Some(next) = text.strip_prefix("::") {
            text = next;
        } else {
            out.push(prefix.clone());
            text = text.find([',', '}']).map_or("", |end| &text[end..]); // past `*` and `as name`
            break;
        }
    }
    prefix.truncate(depth);
    text
}

fn length(tree: &Tree) -> Vec<Finding> {
    let reason = concat!("// tidy", ": long because ");
    tree.texts("", ".rs")
        .filter(|(_, text)| text.lines().count() > LINES_MAX && !text.contains(reason))
        .map(|(path, text)| {
            let n = text.lines().count();
            finding(
                path,
                LINES_MAX,
                format!("{n} lines, at most {LINES_MAX}; cut it along a seam, or write `{reason}…`"),
            )
        })
        .collect()
}

fn open_ends(tree: &Tree) -> Vec<Finding> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut found = Vec::new();
    for (path, text) in tree.texts("", "").filter(|(path, _)| !is_data(path)) {
        for (n, line) in text.lines().enumerate() {
            for (at, mark) in words(line).filter(|(_, word)| marks.contains(word)) {
                let issue = line[at + mark.len()..].strip_prefix("(#").and_then(|rest| rest.split_once(')'));
                if issue.is_none_or(|(number, _)| number.parse::<u32>().is_err()) {
                    found.push(finding(
                        path,
                        n + 1,
                        format!("{mark} without an issue; finish it, or write {mark}(#number)"),
                    ));
                }
            }
        }
    }
    found
}

/// Files that are input of tests or output of tools: their bytes are not ours to tidy.
fn is_data(path: &str) -> bool {
    path.contains("/fixtures/")
        || path.starts_with("models/") && path.ends_with(".gguf")
        || path.ends_with(".lock")
        || path.ends_with(".tsv")
}

fn printing(tree: &Tree) -> Vec<Finding> {
    let macros = ["print", "println", "eprint", "eprintln", "dbg"];
    let library =
        |path: &str| ["src/app/cli", "src/bin/", "src/onnx/"].iter().all(|folder| !path.starts_with(folder));
    let mut found = Vec::new();
    for (path, rust) in tree.rust("src/").filter(|(path, _)| library(path)) {
        for (at, word) in rust.words().filter(|(at, word)| *at < rust.tests && macros.contains(word)) {
            if rust.code[at + word.len()..].starts_with('!') {
                found.push(finding(
                    path,
                    rust.line(at),
                    format!("`{word}!` in the library; return the text, or log it"),
                ));
            }
        }
    }
    found
}

fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let allowed = |path: &str| UNSAFE_ALLOWED.iter().any(|(start, _)| path.starts_with(start));
    let mut found = Vec::new();
    for (path, rust) in tree.rust("").filter(|(path, _)| !allowed(path)) {
        for (at, _) in rust.words().filter(|(_, word)| *word == "unsafe") {
            found.push(finding(
                path,
                rust.line(at),
                "`unsafe` outside kernel/ and os/; ask those layers for a safe function",
            ));
        }
    }
    found
}

fn machine_paths(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts("", "").filter(|(path, _)| !is_data(path)) {
        for (n, line) in text.lines().enumerate() {
            for name in ["home", "root", "Users", "work", "workspace", "farm"] {
                let pattern = format!("/{name}/");
                let hit = line.match_indices(&pattern).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before
                        .is_some_and(|c| is_word(c) || matches!(c, '.' | '}' | ')' | '~' | '*' | '-' | '$'))
                });
                if hit {
                    found.push(finding(
                        path,
                        n + 1,
                        format!("`{pattern}…` is a path of one machine; write a relative one or a variable"),
                    ));
                }
            }
        }
    }
    found
}

fn blanks(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts("", "").filter(|(path, text)| !is_data(path) && !text.is_empty()) {
        for (n, line) in text.split('\n').enumerate() {
            // Go's own formatter wants them.
            if line.contains('\t') && !path.ends_with(".go") {
                found.push(finding(path, n + 1, "tab; use blanks"));
            }
            if line.contains('\r') {
                found.push(finding(path, n + 1, "carriage return; end lines with a newline alone"));
            } else if line.ends_with([' ', '\t']) {
                found.push(finding(path, n + 1, "blank at the end of the line; remove it"));
            }
        }
        if !text.ends_with('\n') {
            found.push(finding(path, text.lines().count(), "no newline at the end of the file; add it"));
        }
    }
    found
}

// ---- 8 to 12: files against each other

fn orphans(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();

    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = ["src/lib.rs", "src/main.rs", "src/onnx/main.rs"].map(String::from).to_vec();
    open.extend(tree.texts("src/bin/", ".rs").map(|(path, _)| path.to_string()));
    while let Some(path) = open.pop() {
        let Some(text) = tree.get(&path).and_then(|file| file.text.as_deref()) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let code = Rust::lex(text).code;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let folder = match name.trim_end_matches(".rs") {
            "mod" | "lib" | "main" => folder.to_string(),
            _ if folder == "src/bin" => folder.to_string(),
            stem => format!("{folder}/{stem}"),
        };
        let mut list = words(&code).map(|(_, word)| word).peekable();
        while let Some(word) = list.next() {
            if let (true, Some(child)) = (word == "mod", list.peek()) {
                open.extend([format!("{folder}/{child}.rs"), format!("{folder}/{child}/mod.rs")]);
            }
        }
    }
    for (path, _) in tree.texts("src/", ".rs").filter(|(path, _)| !reached.contains(*path)) {
        found.push(finding(path, 1, "no `mod` leads here; declare it in its parent, or delete it"));
    }

    let sources = tree.get("tests/fixtures/SOURCES.md").and_then(|file| file.text.as_deref()).unwrap_or("");
    for file in &tree.0 {
        let Some(name) = file.path.strip_prefix("tests/fixtures/").filter(|name| *name != "SOURCES.md")
        else {
            continue;
        };
        let folders = name.match_indices('/').map(|(at, _)| &name[..=at]);
        if !folders.chain([name]).any(|name| sources.contains(&format!("`{name}`"))) {
            let what =
                "not in tests/fixtures/SOURCES.md; name it or its folder there, with where it comes from";
            found.push(finding(&file.path, 1, what));
        }
    }

    let index_path = "docs/decisions/README.md";
    let index = tree.get(index_path).and_then(|file| file.text.as_deref()).unwrap_or("");
    for (path, text) in tree.texts("docs/decisions/", ".md").filter(|(path, _)| *path != index_path) {
        if !index.contains(&format!("({})", path.trim_start_matches("docs/decisions/"))) {
            found.push(finding(path, 1, format!("not linked in {index_path}; add its line")));
        }
        if text.lines().count() > DECISION_LINES_MAX {
            let n = text.lines().count();
            found.push(finding(
                path,
                n,
                format!("{n} lines, at most {DECISION_LINES_MAX}; keep the figures, cut the prose"),
            ));
        }
    }
    for (n, line) in index.lines().enumerate() {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if tree.get(&format!("docs/decisions/{link}")).is_none() {
                found.push(finding(
                    index_path,
                    n + 1,
                    format!("links to {link}, which is absent; remove the line"),
                ));
            }
        }
    }
    found
}

/// Whether `deny` lists one licence of each choice that the expression has.
fn allowed(expression: &str, deny: &str) -> bool {
    expression.split(" AND ").all(|choice| {
        let choice = choice.trim_matches(['(', ')']);
        choice.split(" OR ").any(|one| deny.contains(&format!("\"{one}\"")))
    })
}

fn dependencies(tree: &Tree) -> Vec<Finding> {
    let path = "Cargo.toml";
    let Some(text) = tree.get(path).and_then(|file| file.text.as_deref()) else { return Vec::new() };
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut listing = false;
    for (n, line) in text.lines().enumerate() {
        if let Some(section) = line.strip_prefix('[') {
            listing = section.trim_end_matches(']').ends_with("dependencies");
            if section.contains("dependencies.") {
                found.push(finding(path, n + 1, "a dependency as a table; write it on one line"));
            }
        } else if let (true, Some((name, value))) = (listing, line.split_once('=')) {
            let name = name.trim();
            seen.insert(name.to_string());
            if !DEPENDENCIES.iter().any(|(listed, _)| *listed == name) {
                let what = format!(
                    "dependency `{name}` is not in the list of tests/tidy.rs; add it with its licence and write a decision"
                );
                found.push(finding(path, n + 1, what));
            }
            if !value.replace(' ', "").contains("default-features=false") {
                found.push(finding(path, n + 1, format!("`{name}` takes its default features; write default-features = false and list what is used")));
            }
        }
    }
    for (name, licence) in DEPENDENCIES {
        if !seen.contains(*name) {
            found.push(finding(
                path,
                1,
                format!("`{name}` is in the list of tests/tidy.rs only; remove it there"),
            ));
        }
        let deny = tree.get("deny.toml").and_then(|file| file.text.as_deref());
        if deny.is_some_and(|deny| !allowed(licence, deny)) {
            let what =
                format!("`{name}` is {licence}, not all of it is allowed; allow it, or drop the crate");
            found.push(finding("deny.toml", 1, what));
        }
    }
    found
}

fn edges(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, rust) in tree.rust("src/") {
        for (call, allowed, remedy) in EDGE_CALLS {
            if !path.starts_with(PURE) && allowed.iter().any(|start| path.starts_with(start)) {
                continue;
            }
            for (at, _) in rust.code[..rust.tests].match_indices(call) {
                let whole = |c: Option<char>| !c.is_some_and(is_word);
                let code = &rust.code;
                if whole(code[..at].chars().next_back()) && whole(code[at + call.len()..].chars().next()) {
                    found.push(finding(
                        path,
                        rust.line(at),
                        format!("`{call}` in the middle of the program: {remedy}"),
                    ));
                }
            }
        }
    }
    found
}

fn size(tree: &Tree) -> Vec<Finding> {
    let allowed = |path: &str| LARGE_ALLOWED.iter().any(|(start, _)| path.starts_with(start));
    let large = tree.0.iter().filter(|file| file.len > FILE_BYTES_MAX && !allowed(&file.path));
    large
        .map(|file| {
            let what = format!("{} bytes, at most {FILE_BYTES_MAX}; make it smaller, or list it in tests/tidy.rs with a reason", file.len);
            finding(&file.path, 1, what)
        })
        .collect()
}
