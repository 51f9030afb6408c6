//! A terminal with a program in it, by util-linux's `script`.

use std::io::{Read, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::{Running, until};

pub(crate) struct Terminal {
    process: Running,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
    /// How much of what was shown has been looked at.
    seen: usize,
}

impl Terminal {
    /// Runs the command line in a terminal of 100 columns; `command` adds what it needs.
    pub(crate) fn start(args: &[&str], command: impl FnOnce(&mut Command)) -> Self {
        let quoted: Vec<String> =
            args.iter().map(|arg| format!("'{}'", arg.replace('\'', r"'\''"))).collect();
        let line =
            format!("stty cols 100 rows 30; exec {} {}", env!("CARGO_BIN_EXE_sotto"), quoted.join(" "));
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script.env("SHELL", "/bin/sh").env("TERM", "xterm").env_remove("SOTTO_MODEL");
        script.envs([super::NO_CACHE]);
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command(&mut script);
        let mut child = script.spawn().expect("script starts");
        let keys = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        let shown = Arc::new(Mutex::new(String::new()));
        let into = shown.clone();
        let read = move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                into.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        };
        sotto::os::thread::start("terminal", read).expect("a thread");
        Self { process: Running(child), keys, shown, seen: 0 }
    }

    /// Presses keys.
    pub(crate) fn types(&mut self, keys: &str) {
        self.sends(keys.as_bytes());
    }

    /// Sends bytes, which need be no keys.
    pub(crate) fn sends(&mut self, bytes: &[u8]) {
        self.keys.write_all(bytes).expect("the terminal is there");
    }

    /// Waits until `words` are shown after what was waited for before.
    pub(crate) fn shows(&mut self, words: &str) {
        let (shown, seen) = (&self.shown, self.seen);
        let found = || {
            let shown = shown.lock().expect("nobody panics with it");
            shown[seen..].find(words).map(|at| seen + at + words.len())
        };
        self.seen = until(&format!("{words:?} on the terminal"), found);
    }

    /// All that was shown so far.
    pub(crate) fn all(&self) -> String {
        self.shown.lock().expect("nobody panics with it").clone()
    }

    /// Waits for the program's end; its exit code is that of `script`.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.process.ended("the end of the program in the terminal")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("on the terminal: {:?}", self.all());
        }
    }
}
