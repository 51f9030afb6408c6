//! Every file of `examples/` is run against a mock, where its runtime is installed.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::http::{ask, get};
use crate::support::{Daemon, Folder, Running, bus, have, stderr, stdout, until};

const QUESTION: &str = "Does \"this\" come back?";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn says(output: &Output) {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    assert_eq!(stdout(output).trim_end(), QUESTION, "{}", stderr(output));
}

/// Runs it until its answer is under way, and kills the daemon: no answer is taken for a whole one.
fn hears_of_a_death(mut example: Command, daemon: Daemon) {
    let mut example = Running(example.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    until("an answer under way", || {
        let status = ask(&daemon.socket, &get("/sotto/v1/status")).json();
        (status["generations"][0]["completion_tokens"].as_u64() > Some(2)).then_some(())
    });
    drop(daemon);
    let mut told = String::new();
    example.0.stderr.as_mut().unwrap().read_to_string(&mut told).unwrap();
    assert!(!example.ended("the example").success() && !told.is_empty(), "{told}");
}

/// Runs an example of the socket with its interpreter: it answers, and a refusal is told with a failure.
fn over_the_socket(program: &[&str], needs: &[&str], name: &str) {
    let folder = Folder::new();
    let what = format!("examples/{name}");
    if !needs.iter().chain(&program[..1]).all(|needed| have(needed, &what)) {
        return;
    }
    let daemon = Daemon::mock(&folder, "", "", None);
    let command = |socket: &Path| {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(example(name)).arg(QUESTION).env("SOTTO_SOCKET", socket);
        // Go keeps what it builds.
        command.env("GOCACHE", folder.join("go"));
        command
    };
    let ask = |socket: &Path| command(socket).output().unwrap();
    says(&ask(&daemon.socket));
    // One that is asked again after a death has a test of its own.
    if !name.contains("again") {
        let slow = Folder::new();
        let daemon = Daemon::mock(&slow, "tokens_per_s=10", "", None);
        hears_of_a_death(command(&daemon.socket), daemon);
    }
    let other = Folder::new();
    let full = Daemon::mock(&other, "fail=unsupported_model", "", None);
    let refused = ask(&full.socket);
    assert!(!refused.status.success(), "{}", stdout(&refused));
    assert!(stderr(&refused).contains("the mock was asked to fail"), "{}", stderr(&refused));
}

#[test]
fn a_shell_asks_over_the_socket() {
    over_the_socket(&["bash"], &["curl", "jq"], "http/ask.sh");
}

#[test]
fn python_asks_over_the_socket() {
    for name in ["http/ask.py", "http/stream.py", "http/stream_again.py"] {
        over_the_socket(&["python3"], &[], name);
    }
}

#[test]
fn node_asks_over_the_socket() {
    over_the_socket(&["node"], &[], "http/ask.js");
}

#[test]
fn go_asks_over_the_socket() {
    // `go --version` is no command of it, and says so without a failure of the start.
    over_the_socket(&["go", "run"], &[], "http/ask.go");
}

#[test]
fn an_answer_survives_a_restart_of_the_daemon() {
    if !have("python3", "examples/http/stream_again.py") {
        return;
    }
    let folder = Folder::new();
    let daemon = Daemon::mock(&folder, "tokens_per_s=20", "", None);
    let mut asking = Command::new("python3");
    asking.arg(example("http/stream_again.py")).arg(QUESTION).env("SOTTO_SOCKET", &daemon.socket);
    let mut asking = Running(asking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut answer = [0; 5];
    asking.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    // Killed: it has no time to end its answers.
    drop(daemon);
    let _again = Daemon::mock(&folder, "", "", None);
    let (mut rest, mut told) = (String::new(), String::new());
    asking.0.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    asking.0.stderr.as_mut().unwrap().read_to_string(&mut told).unwrap();
    assert!(asking.ended("the example").success(), "{told}");
    assert_eq!(String::from_utf8_lossy(&answer).into_owned() + &rest, format!("{QUESTION}\n"), "{told}");
    assert!(told.contains("asking again in"), "{told}");
}

#[test]
fn examples_ask_over_the_bus() {
    if !have("dbus-daemon", "examples/dbus") {
        return;
    }
    let folder = Folder::new();
    let (_bus, address) = bus(&folder);
    let _daemon = Daemon::mock(&folder, "", "", Some(&address));
    let ask = |command: &mut Command, user: &str| {
        command.arg(QUESTION).env("SOTTO_BUS", user).env("DBUS_SESSION_BUS_ADDRESS", &address);
        says(&command.output().unwrap());
    };
    if have("busctl", "examples/dbus/ask.sh") && have("jq", "examples/dbus/ask.sh") {
        ask(Command::new("bash").arg(example("dbus/ask.sh")), "--user");
    }
    let python = "/usr/bin/python3";
    let module = Command::new(python).args(["-c", "import dbus"]).stderr(Stdio::null()).status();
    match module.is_ok_and(|status| status.success()) {
        true => ask(Command::new(python).arg(example("dbus/ask.py")), "user"),
        false => println!("skipped: examples/dbus/ask.py; python3-dbus is not installed"),
    }
    for name in ["ask", "stream"] {
        if !Path::new("/usr/include/systemd/sd-bus.h").exists() || !have("cc", "examples/dbus in C") {
            println!("skipped: examples/dbus/{name}.c; libsystemd-dev is not installed");
            continue;
        }
        let built = folder.join(name);
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror"]).arg(example(&format!("dbus/{name}.c"))).arg("-lsystemd").arg("-o");
        let compiled = cc.arg(&built).output().unwrap();
        assert!(compiled.status.success(), "{name}.c: {}", stderr(&compiled));
        ask(&mut Command::new(&built), "user");
        let (folder, mut command) = (Folder::new(), Command::new(&built));
        let (_bus, address) = bus(&folder);
        command.arg(QUESTION).env("SOTTO_BUS", "user").env("DBUS_SESSION_BUS_ADDRESS", &address);
        hears_of_a_death(command, Daemon::mock(&folder, "tokens_per_s=10", "", Some(&address)));
    }
}
