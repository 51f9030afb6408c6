//! Manual pages and completions are whole, and can be read by who reads them.

use std::collections::BTreeSet;
use std::process::Command;

use crate::pages;
use crate::support::{Folder, have, stderr};

#[test]
fn pages_and_completions_name_everything_and_can_be_read() {
    let folder = Folder::new();
    let dir = folder.join("pages");
    pages::write(&dir).unwrap();
    let names: BTreeSet<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let command = sotto::app::cli::command();
    let commands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert!(commands.contains(&"status") && commands.len() > 10, "{commands:?}");
    for name in &commands {
        assert!(names.contains(&format!("sotto-{name}.1")), "{name} in {names:?}");
        for completion in ["sotto.bash", "_sotto", "sotto.fish"] {
            assert!(text(completion).contains(name), "{name} in {completion}");
        }
    }
    for (name, words) in [
        ("sotto.1", &["SOTTO_CPU", "EXIT CODES", "sotto\\-ask(1)", "\nOf sotto: the answer is complete"][..]),
        ("sottod.8", &["\\-\\-mock", "EXIT CODES", "NOTIFY_SOCKET"]),
        (
            "sotto.toml.5",
            &[".TP\n\\fBengine.kv_type\\fR\nValues, default: ", "version = 1\n", ".SH SCHEDULER"],
        ),
        ("sottod.bash", &["--mock"]),
    ] {
        let page = text(name);
        assert!(words.iter().all(|word| page.contains(word)), "{words:?} in {name}:\n{page}");
        assert!(!page.contains("](") && !page.contains('`'), "Markdown is left in {name}");
    }
    if have("man", "do manual pages render") {
        for name in names.iter().filter(|name| name.ends_with(['1', '5', '8'])) {
            let mut man = Command::new("man");
            man.args(["-l", "--warnings", "-E", "UTF-8", "-P", "cat"]).arg(dir.join(name));
            let shown = man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "200").output().unwrap();
            assert!(shown.status.success() && shown.stdout.len() > 300, "{name}: {}", stderr(&shown));
            assert_eq!(stderr(&shown), "", "{name}");
        }
    }
    if have("bash", "is the completion of bash one") {
        let script = format!(
            "source {}/sotto.bash; COMP_WORDS=(sotto sta); COMP_CWORD=1; _sotto sotto sta sotto; echo \"${{COMPREPLY[@]}}\"",
            dir.display()
        );
        let completed = Command::new("bash").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "status", "{}", stderr(&completed));
    }
}
