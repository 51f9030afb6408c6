//! Chat templates against what Python's jinja2 makes of them, to the last byte.
//!
//! `$SOTTO_CHAT_TEMPLATES` names a folder with `NAME.jinja`, `conversations.json` and `expected/NAME.json`; without it the
//! full set beside the checkout is taken where there is one. The small set in `tests/fixtures` is always run.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that stops and says what it skipped")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sotto::text::{Chat, Json, Moment, Template, TemplateInput, TextError};

/// The time that `strftime_now` was given, 2026-03-14T15:09:26.
const NOW: u64 = 1_773_500_966;

#[derive(Deserialize)]
struct Conversations {
    now: String,
    conversations: Vec<Conversation>,
}

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<Json>,
    tools: Json,
    documents: Json,
    add_generation_prompt: bool,
    extra: BTreeMap<String, Json>,
}

impl Conversation {
    /// The conversation as a template's input. Tools and documents that there are not are given as none, or left out
    /// as a server does.
    fn chat(&self, with_none: bool) -> Chat {
        let given = [("tools", &self.tools), ("documents", &self.documents)];
        let given = given.into_iter().filter(|(_, value)| with_none || !value.is_null());
        let given = given.chain(self.extra.iter().map(|(name, value)| (name.as_str(), value)));
        Chat {
            messages: self.messages.clone(),
            variables: given.map(|(name, value)| (name.to_owned(), value.clone())).collect(),
            must_read: Vec::new(),
            add_generation_prompt: self.add_generation_prompt,
            moment: Moment::from_unix(NOW),
        }
    }
}

#[derive(Deserialize)]
struct Expected {
    bos_token: String,
    eos_token: String,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Text { text: String },
    Error { error: String, kind: String, r#type: String },
}

/// Templates that loop over `tools` without asking whether there are any, by the README of the set: jinja2, given none,
/// refuses every conversation without tools. Here such tools are undefined, and the engine loops over none as over an
/// empty list.
const NEED_UNDEFINED: [&str; 4] = [
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "llama-cpp-microsoft-Phi-4-mini-instruct",
];

/// Templates of which some cases are known to differ, and why.
const KNOWN: [(&str, &str); 1] = [(
    "meetkai-functionary-medium-v3.1",
    "markupsafe turns quotes of tools into entities after `|safe +`, which the engine has no hook for",
)];

/// What became of a set of templates.
#[derive(Default)]
struct Outcome {
    n: usize,
    n_skipped: usize,
    /// Each case that differs, and how.
    wrong: Vec<String>,
    /// Those of [`NEED_UNDEFINED`] that are there.
    needs_undefined: Vec<String>,
    /// Cases without tools and documents, and those of them that come out otherwise when both are left undefined.
    n_bare: usize,
    n_bare_other: usize,
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Where two texts part.
fn difference(found: &str, wanted: &str) -> String {
    let at = found.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
    let shown = |text: &str| {
        let from = (0..=at.saturating_sub(20)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text[from..].chars().take(60).collect::<String>()
    };
    format!("at byte {at}: got {:?}, wanted {:?}", shown(found), shown(wanted))
}

/// Whether a result may be left out: what the README of the set says. Some engines have what these two errors miss, and
/// a server leaves `tools` undefined where jinja2 was given none.
fn may_skip(wanted: &Case, needs_undefined: bool) -> bool {
    let Case::Error { error, r#type, .. } = wanted else { return false };
    matches!(r#type.as_str(), "SecurityError" | "TemplateRuntimeError")
        || needs_undefined && is_loop_over_none(error)
}

fn is_loop_over_none(error: &str) -> bool {
    error == "'NoneType' object is not iterable"
}

/// Why the result is not the expected one.
fn compare(found: &Result<String, TextError>, wanted: &Case) -> Result<(), String> {
    match (found, wanted) {
        (Ok(found), Case::Text { text }) if found == text => Ok(()),
        (Ok(found), Case::Text { text }) => Err(difference(found, text)),
        (Err(e), Case::Text { .. }) => Err(e.to_string()),
        (Err(TextError::Raised { message }), Case::Error { error, kind, .. }) => {
            match kind == "raised_by_template" && message == error {
                true => Ok(()),
                false => Err(format!("raised {message:?}, wanted {kind} {error:?}")),
            }
        }
        (Err(e), Case::Error { error, kind, .. }) => match kind == "engine_error" {
            true => Ok(()),
            false => Err(format!("got {e}, wanted the template's own {error:?}")),
        },
        (Ok(_), Case::Error { error, kind, r#type }) => {
            Err(format!("rendered, wanted {kind} {type}: {error}"))
        }
    }
}

/// Renders every template of the folder with every conversation.
fn run(dir: &Path) -> Outcome {
    let all: Conversations = read(&dir.join("conversations.json"));
    assert_eq!(all.now, "2026-03-14T15:09:26", "{}: another time", dir.display());
    let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "jinja"));
    names.sort();
    assert!(!names.is_empty(), "{}: no templates", dir.display());
    let mut outcome = Outcome::default();
    for path in &names {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let expected: Expected = read(&dir.join("expected").join(format!("{name}.json")));
        let needs_undefined = NEED_UNDEFINED.contains(&name);
        let template = Template::new(&fs::read_to_string(path).unwrap());
        let render = |chat: Chat| {
            let input =
                TemplateInput { chat, bos: expected.bos_token.clone(), eos: expected.eos_token.clone() };
            template.as_ref().map_err(Clone::clone).and_then(|t| t.render(&input))
        };
        for conversation in &all.conversations {
            let case = &conversation.name;
            let wanted = expected.cases.get(case).unwrap_or_else(|| panic!("{name}: no case {case}"));
            let found = render(conversation.chat(true));
            outcome.n += 1;
            match compare(&found, wanted) {
                Ok(()) => {}
                Err(_)
                    if found.is_ok() && may_skip(wanted, needs_undefined && conversation.tools.is_null()) =>
                {
                    outcome.n_skipped += 1
                }
                Err(how) => {
                    let why = KNOWN.iter().find(|(known, _)| *known == name).map_or("", |(_, why)| *why);
                    outcome.wrong.push(format!("{name} / {case}: {how} {why}"));
                }
            }
            if conversation.tools.is_null() && conversation.documents.is_null() {
                let bare = render(conversation.chat(false));
                outcome.n_bare += 1;
                outcome.n_bare_other += usize::from(compare(&bare, wanted).is_err() && !needs_undefined);
                assert!(!(needs_undefined && case == "single_user") || bare.is_ok(), "{name}: {bare:?}");
            }
        }
        if needs_undefined {
            outcome.needs_undefined.push(name.to_owned());
        }
    }
    outcome
}

/// The folders to run, the small one last.
fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let full = match std::env::var_os("SOTTO_CHAT_TEMPLATES") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => Some(root.join("../shared/fixtures/chat-templates")).filter(|dir| dir.is_dir()),
    };
    if full.is_none() {
        println!("skipped: the full set of chat templates; set SOTTO_CHAT_TEMPLATES to its folder");
    }
    full.into_iter().chain([root.join("tests/fixtures/chat-templates")]).collect()
}

#[test]
fn templates_render_as_python_renders_them() {
    for dir in folders() {
        let Outcome { n, n_skipped, wrong, needs_undefined, n_bare, n_bare_other } = run(&dir);
        for line in &wrong {
            println!("differs: {line}");
        }
        println!(
            "{}: {} of {n} equal, {n_skipped} skipped as the set allows, {} differ",
            dir.display(),
            n - n_skipped - wrong.len(),
            wrong.len()
        );
        println!(
            "  without tools and documents, both undefined: {n_bare_other} of {n_bare} come out otherwise; {} templates \
             need it to render at all: {}",
            needs_undefined.len(),
            needs_undefined.join(", ")
        );
        assert!(wrong.len() * 100 <= n, "{} of {n} differ, at most 1 % may", wrong.len());
    }
}
