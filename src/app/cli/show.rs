//! What a person sees: the answer on stdout, everything else on stderr and only where it helps.
#![expect(clippy::print_stderr, reason = "this file is the command line's way to its user")]

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::Failure;
use crate::os::interrupt::ClearLine;
use crate::os::thread;

/// Nobody needs to see a step that is over sooner; also how often a bar is drawn anew.
const PATIENCE: Duration = Duration::from_millis(250);

/// A step that may take a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// For the daemon or the model.
    Waiting,
    /// In the daemon's queue; `done` is how many are ahead.
    #[cfg(feature = "http")]
    Queued,
    /// The model's bytes.
    Loading,
    /// The same, into a packed file.
    Packing,
    /// The bytes of a new file.
    Writing,
    /// The same, against their checksums.
    Verifying,
    /// The prompt's tokens.
    Reading,
    /// Windows of a text.
    Windows,
    /// Tokens of a measurement.
    Measuring,
}

impl Step {
    /// How indicatif draws it.
    fn template(self) -> &'static str {
        match self {
            Self::Waiting => "waiting, {elapsed}",
            #[cfg(feature = "http")]
            Self::Queued => "waiting, {pos} ahead, {elapsed}",
            Self::Loading => "loading {bar:30} {percent:>3}%, {decimal_bytes} of {decimal_total_bytes}{left}",
            Self::Packing => "packing {bar:30} {percent:>3}%, {decimal_bytes} of {decimal_total_bytes}{left}",
            Self::Writing => "writing {bar:30} {percent:>3}%, {decimal_bytes} of {decimal_total_bytes}{left}",
            Self::Verifying => {
                "verifying {bar:30} {percent:>3}%, {decimal_bytes} of {decimal_total_bytes}{left}"
            }
            Self::Reading => "reading {bar:30} {percent:>3}%, {pos} of {len} tokens{left}",
            Self::Windows => "{msg} {bar:30} {percent:>3}%, {pos} of {len} windows{left}",
            Self::Measuring => "measuring {bar:30} {percent:>3}%{left}",
        }
    }
}

/// The time left, once there is something to guess it from.
fn left(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    if state.pos() > 0 {
        // A bar is no place to fail.
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}

/// A line on the terminal that appears once its step has taken [`PATIENCE`].
struct Bar {
    step: Step,
    bar: ProgressBar,
    /// Dropped when the step is over; then [`Self::thread`] ends, drawing nothing more.
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Where Ctrl-C ends the program, no half of a bar is left.
    _interrupted: Option<ClearLine>,
}

impl Bar {
    fn new(step: Step, total: u64, stoppable: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(step.template()) {
            bar.set_style(style.with_key("left", left));
        }
        let (over, wait) = mpsc::channel::<()>();
        let late = bar.clone();
        let appear = move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                late.set_draw_target(ProgressDrawTarget::stderr());
                late.enable_steady_tick(PATIENCE);
            }
        };
        // Without a thread there is no bar, and nothing else is amiss.
        let thread = thread::start("progress", appear).ok();
        let interrupted = (!stoppable).then(ClearLine::new);
        Self { step, bar, over: Some(over), thread, _interrupted: interrupted }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        drop(self.over.take());
        drop(self.thread.take().map(JoinHandle::join));
        self.bar.finish_and_clear();
    }
}

/// Shows one answer or measurement as it comes.
pub(super) struct Show {
    /// End the output with a newline always, not only on a terminal.
    newline: bool,
    /// The text is printed by somebody else, in another form.
    silent: bool,
    /// stdout is a terminal.
    terminal: bool,
    /// Ctrl-C ends the answer under way and not the program.
    pub stoppable: bool,
    bar: Option<Bar>,
    began: bool,
    told_no_template: bool,
    ends_line: bool,
}

impl Show {
    /// `newline`: the answer is for reading, so it ends with one; else it is bytes, and only a terminal gets one.
    pub(super) fn new(newline: bool) -> Self {
        Self {
            newline,
            silent: false,
            terminal: std::io::stdout().is_terminal(),
            stoppable: false,
            bar: None,
            began: false,
            told_no_template: false,
            ends_line: true,
        }
    }

    /// Shows progress only.
    pub(super) fn silent() -> Self {
        Self { silent: true, ..Self::new(false) }
    }

    /// `step` is at `done` of `total`. Only terminals see it, and not when it is over at once.
    pub(super) fn step(&mut self, step: Step, done: u64, total: u64) {
        self.step_with(step, done, total, String::new);
    }

    /// The same, with a word on it.
    pub(super) fn step_with(&mut self, step: Step, done: u64, total: u64, word: impl FnOnce() -> String) {
        if self.began || !std::io::stderr().is_terminal() {
            return;
        }
        if self.bar.as_ref().is_none_or(|b| b.step != step || b.bar.length() != Some(total)) {
            // The old line goes before the new one comes.
            self.bar = None;
            self.bar = Some(Bar::new(step, total, self.stoppable));
        }
        if let Some(Bar { bar, .. }) = &self.bar {
            bar.set_position(done);
            if step == Step::Windows {
                bar.set_message(word());
            }
        }
    }

    /// The model has no chat template; said once.
    pub(super) fn no_template(&mut self, model: &str) {
        if !std::mem::replace(&mut self.told_no_template, true) {
            self.bar = None;
            note(&format!("model {model} has no chat template; the text is continued as it stands"));
        }
    }

    /// A piece of the answer. A terminal gets no control character but newline and tab: what a model writes shall not
    /// steer it.
    ///
    /// # Errors
    /// When stdout cannot be written; a reader that went away is the end, not an error.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.bar = None;
        if self.silent {
            return Ok(());
        }
        self.began = true;
        self.ends_line = text.ends_with('\n');
        match self.terminal {
            true => out(&plain(text)),
            false => out(text),
        }
    }

    /// The answer is complete.
    pub(super) fn finish(&mut self) {
        self.bar = None;
        if self.began && (self.newline || self.terminal) && !(self.newline && self.ends_line) {
            // A reader that went away misses nothing.
            let _ = out("\n");
        }
        self.began = false;
    }
}

/// `text` with a mark for each control character that is no newline or tab.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Writes to stdout.
///
/// # Errors
/// When it cannot be written; a reader that went away is the end, not an error.
pub(super) fn out(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// The same for what need not be text.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::new(0, "")),
        Err(e) => Err(Failure::usage(format!("standard output: {e}"))),
    }
}

/// Prints one object on a line of stdout. Control characters that JSON lets stand are escaped: it may be a terminal.
pub(super) fn json(value: &serde_json::Value) -> Result<(), Failure> {
    out(&(escaped(&value.to_string()) + "\n"))
}

/// Text of JSON with its control characters escaped, so that a terminal may have it.
pub(super) fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_control() {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// A time for a person.
#[cfg(feature = "http")]
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{:.1} s", ms as f64 / 1e3),
        10_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// Draws `text` over what was drawn before, from the corner of the terminal on.
///
/// # Errors
/// When stdout cannot be written.
#[cfg(feature = "http")]
pub(super) fn screen(text: &str) -> Result<(), Failure> {
    // To the corner; each line to its end anew; what is below goes.
    out(&format!("\x1b[H{}\x1b[J", plain(text).replace('\n', "\x1b[K\n")))
}

/// Says something beside the answer.
pub(super) fn note(message: &str) {
    eprintln!("sotto: {}", plain(message));
}

/// Says why the command failed.
pub(super) fn error(message: &str) {
    if !message.is_empty() {
        note(message);
    }
}

/// Bytes for a person, in powers of 1000.
pub(super) fn size(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// A count for a person.
pub(super) fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n}"),
        1_000_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

/// Four digits of a speed.
pub(super) fn speed(x: f64) -> String {
    match x {
        100.0.. => format!("{x:.0}"),
        10.0.. => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}

/// Lines of a key and its value; an empty key goes on with the one above.
#[derive(Default)]
pub(super) struct Table(String);

impl Table {
    /// Adds a line. Values come from outside: no control character reaches the terminal.
    pub(super) fn line(&mut self, key: &str, value: &str) {
        let clean: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.0.push_str(&format!("{key:<14}{clean}\n"));
    }

    /// Its lines.
    #[cfg(feature = "http")]
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Prints it.
    pub(super) fn print(&self) -> Result<(), Failure> {
        out(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_template_that_can_be_drawn() {
        use Step::{Loading, Measuring, Packing, Reading, Verifying, Waiting, Windows, Writing};
        let steps = [Waiting, Loading, Packing, Writing, Verifying, Reading, Windows, Measuring];
        #[cfg(feature = "http")]
        let steps = [&steps[..], &[Step::Queued]].concat();
        for step in steps {
            let style = ProgressStyle::with_template(step.template());
            assert!(style.is_ok(), "{step:?}");
        }
    }

    #[test]
    fn what_a_model_writes_does_not_steer_a_terminal() {
        assert_eq!(escaped("{\"é\":\"\u{9b}2J\u{7f}\"}"), "{\"é\":\"\\u009b2J\\u007f\"}");
        assert_eq!(plain("a\tb\n\u{1b}[2Jé\u{9b}\r"), "a\tb\n\u{fffd}[2Jé\u{fffd}\u{fffd}");
    }
}
