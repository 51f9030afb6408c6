//! The rules themselves, held to small trees: each has one that it must refuse and one that it must let pass.

use super::*;

impl Tree {
    fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File {
            path: path.into(),
            len: text.len() as u64,
            text: Some(text.into()),
        };
        Self(files.iter().map(file).collect())
    }
}

/// What `rule` says about `files`, as `path:line what`.
fn said(rule: Rule, files: &[(&str, &str)]) -> Vec<String> {
    rule(&Tree::of(files)).into_iter().map(|f| format!("{}:{} {}", f.path, f.line, f.what)).collect()
}

#[track_caller]
fn refuses(rule: Rule, files: &[(&str, &str)], start: &str) {
    let said = said(rule, files);
    assert!(said.len() == 1 && said[0].starts_with(start), "expected one finding `{start}…`, got {said:?}");
}

#[track_caller]
fn passes(rule: Rule, files: &[(&str, &str)]) {
    assert_eq!(said(rule, files), Vec::<String>::new());
}

#[test]
fn layers_point_down() {
    refuses(
        layers,
        &[("src/base/a.rs", "\nuse crate::os::map;\n")],
        "src/base/a.rs:2 `base` (layer 0) imports from `os`",
    );
    refuses(
        layers,
        &[("src/quant/a.rs", "use crate::{base::Token, os};")],
        "src/quant/a.rs:1 `quant` (layer 1)",
    );
    refuses(
        layers,
        &[("src/model/a.rs", "use crate::{base::{self, b::*,}, door::{x as y}};")],
        "src/model/a.rs:1 `model`",
    );
    refuses(
        layers,
        &[("src/format/a.rs", "fn f() { crate::kernel::select(None) }")],
        "src/format/a.rs:1 `format`",
    );
    refuses(
        layers,
        &[("src/door/http/mod.rs", "use crate::door::dbus::Bus;")],
        "src/door/http/mod.rs:1 `door/http`",
    );
    refuses(
        layers,
        &[("src/base/a.rs", "use super::super::app;")],
        "src/base/a.rs:1 `base` (layer 0) imports from `app`",
    );
    refuses(
        layers,
        &[("src/base/mod.rs", "use super::app;")],
        "src/base/mod.rs:1 `base` (layer 0) imports from `app`",
    );
    refuses(layers, &[("src/misc/a.rs", "")], "src/misc/a.rs:1 folder `misc` has no layer");
    passes(
        layers,
        &[
            ("src/lib.rs", "use crate::app;"),
            ("src/bin/sotto.rs", "use sotto::app;"),
            ("src/app/mod.rs", "use crate::{base, door::http, engine::{self, Request}};"),
            ("src/door/http/mod.rs", "use crate::door::Limits; use super::super::engine::Event;"),
            ("src/door/mod.rs", "use crate::door::http;"),
            (
                "src/kernel/a.rs",
                "// crate::app\n/* crate::door /* x */ */ const A: &str = \"crate::app\"; use super::app;",
            ),
            ("src/kernel/mod.rs", "#[cfg(test)]\nmod tests { use super::app; }"),
            (
                "src/kernel/b.rs",
                "const Q: char = '\"'; const R: &str = r#\"\"crate::app\"#; fn f<'a>(x: &'a u8) {}",
            ),
        ],
    );
}

#[test]
fn long_files_say_why() {
    let long = "//\n".repeat(LINES_MAX + 1);
    refuses(length, &[("src/a.rs", &long)], "src/a.rs:700 701 lines");
    passes(length, &[("src/a.rs", &format!("// {}: long because it is a table\n{long}", "tidy"))]);
    passes(length, &[("src/a.rs", &"//\n".repeat(LINES_MAX)), ("notes.txt", &long)]);
}

#[test]
fn open_ends_name_an_issue() {
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
        refuses(open_ends, &[("src/a.rs", &format!("\n// {mark}: later\n"))], "src/a.rs:2 ");
        refuses(open_ends, &[("a.sh", &format!("# {mark}(#x)\n"))], "a.sh:1 ");
        passes(open_ends, &[("src/a.rs", &format!("// {mark}(#12): later\n// {mark}X\n"))]);
        passes(open_ends, &[("tests/fixtures/a.txt", mark)]);
    }
}

#[test]
fn the_library_prints_nothing() {
    for name in ["print", "println", "eprint", "eprintln", "dbg"] {
        let text = format!("fn f() {{ {name}!(\"x\"); }}\n");
        refuses(printing, &[("src/app/daemon.rs", &text)], &format!("src/app/daemon.rs:1 `{name}!`"));
        passes(
            printing,
            &[("src/app/cli/run.rs", &text), ("src/bin/sotto.rs", &text), ("tests/a.rs", &text)],
        );
        passes(printing, &[("src/base/a.rs", &format!("#[cfg(test)]\nmod tests {{ {text} }}"))]);
        passes(printing, &[("src/base/a.rs", &format!("// {text}const {name}: u8 = b'!';"))]);
    }
}

#[test]
fn unsafe_stays_where_it_lives() {
    let text = "fn f() { unsafe { g() } }";
    refuses(unsafe_code, &[("src/engine/a.rs", text)], "src/engine/a.rs:1 `unsafe` outside");
    refuses(unsafe_code, &[("tests/doors.rs", text)], "tests/doors.rs:1 `unsafe` outside");
    passes(unsafe_code, &[("src/kernel/a.rs", text), ("src/os/a.rs", text), ("tests/no_alloc.rs", text)]);
    passes(unsafe_code, &[("src/base/a.rs", "#![forbid(unsafe_code)] // unsafe")]);
}

#[test]
fn no_path_belongs_to_one_machine() {
    for name in ["home", "root", "Users", "work"] {
        refuses(machine_paths, &[("README.md", &format!("x\ncd /{name}/me\n"))], "README.md:2 ");
        refuses(machine_paths, &[("a.sh", &format!("X=\"/{name}/me\"\n"))], "a.sh:1 ");
        passes(
            machine_paths,
            &[("a.sh", &format!("hidden in /{name}\n$x/{name}/y ${{x}}/{name}/y a/{name}/b ../{name}/\n"))],
        );
    }
}

#[test]
fn blanks_are_plain() {
    refuses(blanks, &[("a.rs", "x\n\ty\n")], "a.rs:2 tab");
    refuses(blanks, &[("a.md", "x \n")], "a.md:1 blank");
    refuses(blanks, &[("a.md", "x\r\n")], "a.md:1 carriage return");
    refuses(blanks, &[("a.md", "x\ny")], "a.md:2 no newline");
    passes(blanks, &[("a.md", "x\n\ny\n"), ("empty", ""), ("tests/fixtures/a", "\t\r \n")]);
}

#[test]
fn no_file_is_an_orphan() {
    let lib = ("src/lib.rs", "pub mod a;\nmod b;\n");
    refuses(
        orphans,
        &[lib, ("src/a.rs", "// mod c;"), ("src/a/c.rs", ""), ("src/b/mod.rs", "")],
        "src/a/c.rs:1 no `mod`",
    );
    passes(
        orphans,
        &[lib, ("src/a.rs", "mod c;"), ("src/a/c.rs", ""), ("src/b/mod.rs", "mod d;"), ("src/b/d.rs", "")],
    );
    passes(orphans, &[("src/bin/sotto.rs", "fn main() {}")]);

    let sources = ("tests/fixtures/SOURCES.md", "`a.bin` by hand, `many/` from elsewhere, bad.bin\n");
    refuses(orphans, &[sources, ("tests/fixtures/bad.bin", "")], "tests/fixtures/bad.bin:1 not in");
    passes(orphans, &[sources, ("tests/fixtures/a.bin", ""), ("tests/fixtures/many/deep/b", "")]);

    let index = ("docs/decisions/README.md", "- [one](0001-one.md)\n");
    let one = ("docs/decisions/0001-one.md", "x\n");
    refuses(orphans, &[index], "docs/decisions/README.md:1 links to 0001-one.md");
    refuses(
        orphans,
        &[index, one, ("docs/decisions/0002-two.md", "")],
        "docs/decisions/0002-two.md:1 not linked",
    );
    let long = "x\n".repeat(DECISION_LINES_MAX + 1);
    refuses(
        orphans,
        &[index, ("docs/decisions/0001-one.md", &long)],
        "docs/decisions/0001-one.md:41 41 lines",
    );
    passes(orphans, &[index, one]);
}

#[test]
fn dependencies_are_listed_and_lean() {
    let manifest = |change: &dyn Fn(&mut Vec<String>)| {
        let line =
            |(name, _): &(&str, &str)| format!("{name} = {{ version = \"1\", default-features = false }}");
        let mut lines: Vec<String> = DEPENDENCIES.iter().map(line).collect();
        change(&mut lines);
        format!("[package]\nname = \"x\"\n[dependencies]\n{}\n[features]\ny = []\n", lines.join("\n"))
    };
    passes(dependencies, &[("Cargo.toml", &manifest(&|_| ()))]);
    let extra = manifest(&|lines| lines.push("rayon = { version = \"1\", default-features = false }".into()));
    let line = DEPENDENCIES.len() + 4;
    let wanted = format!("Cargo.toml:{line} dependency `rayon` is not in the list");
    refuses(dependencies, &[("Cargo.toml", &extra)], &wanted);
    let fewer = manifest(&|lines| drop(lines.remove(0)));
    refuses(dependencies, &[("Cargo.toml", &fewer)], "Cargo.toml:1 `arbtest` is in the list");
    let fat = manifest(&|lines| lines[2] = "clap = \"4\"".into());
    refuses(dependencies, &[("Cargo.toml", &fat)], "Cargo.toml:6 `clap` takes its default features");
    let deny = "allow = [\"Apache-2.0\", \"BSL-1.0\", \"Unicode-3.0\"]\n";
    let said = said(dependencies, &[("Cargo.toml", &manifest(&|_| ())), ("deny.toml", deny)]);
    assert!(
        said.iter().all(|line| line.contains("is MIT, not all of it is allowed")) && !said.is_empty(),
        "{said:?}"
    );
    assert!(allowed("(MIT OR Zlib) AND Unicode-3.0", "\"MIT\", \"Unicode-3.0\""));
    assert!(!allowed("(MIT OR Zlib) AND Unicode-3.0", "\"MIT\", \"Zlib\""));
}

#[test]
fn edges_alone_ask_the_system() {
    let clock = "fn f() { let t = std::time::Instant::now(); }";
    refuses(edges, &[("src/sample/a.rs", clock)], "src/sample/a.rs:1 `Instant::now`");
    refuses(edges, &[("src/engine/scheduler.rs", clock)], "src/engine/scheduler.rs:1 `Instant::now`");
    refuses(
        edges,
        &[("src/engine/a.rs", "fn f() { std::env::var(\"X\"); }")],
        "src/engine/a.rs:1 `env::var`",
    );
    refuses(
        edges,
        &[("src/app/a.rs", "use std::thread; fn f() { thread::spawn(g); }")],
        "src/app/a.rs:1 `thread::spawn`",
    );
    passes(edges, &[("src/app/a.rs", clock), ("src/os/a.rs", clock), ("src/base/a.rs", "// Instant::now")]);
    passes(edges, &[("src/base/a.rs", "#[cfg(test)]\nmod tests { fn f() { std::env::var(\"X\"); } }")]);
}

#[test]
fn large_files_have_a_reason() {
    let file = |path: &str, len| Tree(vec![File { path: path.into(), len, text: None }]);
    assert_eq!(size(&file("docs/film.bin", FILE_BYTES_MAX + 1)).len(), 1);
    assert!(size(&file("docs/film.bin", FILE_BYTES_MAX)).is_empty());
    assert!(size(&file("models/story-2.8m-q8_0.gguf", FILE_BYTES_MAX + 1)).is_empty());
}

#[test]
fn routes_stand_in_their_page() {
    let code = (
        "src/door/http/mod.rs",
        "const A: &[&str] = &[\"/v1/models/\", \"/healthz\", \"/v1/\", \"no /v1/x here\"];",
    );
    refuses(
        docs,
        &[code, ("docs/http.md", "| `GET /healthz` |\n")],
        "src/door/http/mod.rs:1 `/v1/models` is not in docs/http.md",
    );
    refuses(
        docs,
        &[code, ("docs/http.md", "`/healthz`, `GET /v1/models/{id}`, `/readyz`\n")],
        "docs/http.md:1 `/readyz` is not in src",
    );
    passes(
        docs,
        &[
            code,
            ("docs/http.md", "`GET /healthz` `/v1/models/{id}` `curl --unix-socket x http://sotto/v1/y`\n"),
        ],
    );
    passes(docs, &[("docs/http.md", "`/v1/models`\n")]);
    assert_eq!(said(docs, &[code]).len(), 2, "a page that is absent names nothing");
}

#[test]
fn methods_stand_in_their_page() {
    let code = (
        "proto/x.xml",
        "<node><interface name=\"a\"><!-- since: 1 --><method name=\"StartGeneration\"><arg type=\"s\"/></method>\
         <method name=\"SetURL\"/><!-- since: later --><method name=\"Gone\"/><property name=\"Version\"/>\
         <method name=\"Last\"/></interface></node>",
    );
    refuses(
        docs,
        &[code, ("docs/dbus.md", "`SetURL()` `StartGeneration(s input)`\n")],
        "proto/x.xml:1 `Last`",
    );
    let page = "`SetURL()` `StartGeneration(s)` `Last()`";
    refuses(
        docs,
        &[code, ("docs/dbus.md", &format!("{page} `Gone()`\n"))],
        "docs/dbus.md:1 `Gone` is not in",
    );
    passes(docs, &[code, ("docs/dbus.md", &format!("{page} `InvalidArgs` `f(x)`\n"))]);
}

#[test]
fn keys_stand_in_their_page() {
    let code = (
        "src/app/config.rs",
        "use serde::Deserialize;\n#[derive(Deserialize)]\n#[serde(deny_unknown_fields)]\npub struct Config {\n    pub version: u32,\n    \
         pub daemon: Daemon,\n}\n#[derive(Debug, Deserialize)]\npub(crate) struct Daemon {\n    /// Level.\n    pub log_level: String,\n    \
         nice: u8,\n}\nconst K: &str = \"api.max_body_kib\";\n",
    );
    let page = "`version` `daemon.log_level` `daemon.nice` `api.max_body_kib`";
    refuses(
        docs,
        &[code, ("docs/config.md", "`daemon.nice` `api.max_body_kib`\n")],
        "src/app/config.rs:1 `log_level`",
    );
    refuses(docs, &[code, ("docs/config.md", &format!("{page} `engine.nope`\n"))], "docs/config.md:1 `nope`");
    passes(
        docs,
        &[code, ("docs/config.md", &format!("{page} `model.ID.nice` `sotto.toml` `/etc/sotto.d`\n"))],
    );
}

#[test]
fn flags_stand_in_their_page() {
    let code = (
        "src/app/cli/mod.rs",
        "struct Args {\n    /// File.\n    #[arg(short, long, value_name = \"long\")]\n    model_file: String,\n    \
         #[arg(long = \"top-k\")]\n    #[serde(x)]\n    pub k: u32,\n    #[arg(value_name = \"TEXT\")]\n    text: String,\n}\n",
    );
    refuses(
        docs,
        &[code, ("docs/cli.md", "`--top-k N`\n")],
        "src/app/cli/mod.rs:1 `--model-file` is not in docs/cli.md",
    );
    refuses(
        docs,
        &[code, ("docs/cli.md", "`-m, --model-file=FILE` `--top-k` `--gone`\n")],
        "docs/cli.md:1 `--gone`",
    );
    passes(docs, &[code, ("docs/cli.md", "`-m, --model-file FILE` `--top-k` `--help` `curl --fail` --no\n")]);
}
