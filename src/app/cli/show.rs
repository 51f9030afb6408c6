//! What a person sees: the answer on stdout, everything else on stderr and only where it helps.
#![expect(clippy::print_stderr, reason = "this file is the command line's way to its user")]

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;

/// Shows one answer as it comes.
pub(super) struct Show {
    /// End the output with a newline always, not only on a terminal.
    newline: bool,
    bar: Option<ProgressBar>,
    began: bool,
    told_no_template: bool,
    ends_line: bool,
}

impl Show {
    /// `newline`: the answer is for reading, so it ends with one; else it is bytes, and only a terminal gets one.
    pub(super) fn new(newline: bool) -> Self {
        Self { newline, bar: None, began: false, told_no_template: false, ends_line: true }
    }

    /// A step before the answer is at `done` of `total`. Only terminals see it, and not when it is over at once.
    pub(super) fn progress(&mut self, what: &'static str, done: u64, total: u64) {
        if self.began || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {percent}%") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        bar.set_message(what);
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Others are ahead in the queue.
    #[cfg(feature = "http")]
    pub(super) fn waiting(&mut self, position: u64) {
        if std::io::stderr().is_terminal() {
            eprintln!("sotto: waiting, {position} ahead");
        }
    }

    /// The model has no chat template; said once.
    pub(super) fn no_template(&mut self, model: &str) {
        if !std::mem::replace(&mut self.told_no_template, true) {
            eprintln!("sotto: model {model} has no chat template; the text is continued as it stands");
        }
    }

    /// A piece of the answer.
    ///
    /// # Errors
    /// When stdout cannot be written; a reader that went away is the end, not an error.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.clear();
        self.began = true;
        self.ends_line = text.ends_with('\n');
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure { code: 0, message: String::new() }),
            Err(e) => Err(Failure::usage(format!("standard output: {e}"))),
        }
    }

    /// The answer is complete.
    pub(super) fn finish(&mut self) {
        self.clear();
        let terminal = std::io::stdout().is_terminal();
        if self.began && (self.newline || terminal) && !(self.newline && self.ends_line) {
            // A reader that went away misses nothing.
            let _ = std::io::stdout().lock().write_all(b"\n");
        }
        self.began = false;
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Says why the command failed.
pub(super) fn error(message: &str) {
    if !message.is_empty() {
        eprintln!("sotto: {message}");
    }
}
