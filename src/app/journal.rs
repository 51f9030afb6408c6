//! Where log lines go: to the journal under systemd, to stderr otherwise. Never prompt or answer text.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Where lines go now: an index of `TARGETS`.
static TARGET: AtomicUsize = AtomicUsize::new(CONSOLE);

/// Names of systemd's LogControl1.
#[cfg(feature = "dbus")]
const TARGETS: [&str; 3] = ["journal", "console", "null"];
const JOURNAL: usize = 0;
const CONSOLE: usize = 1;

/// Installs the logger of the process: to the journal under systemd, to stderr otherwise.
pub(super) fn install(max: LevelFilter) {
    log::set_max_level(max);
    // Also where lines do not go there: an administrator may send them there later.
    let journal = JournalLog::new().ok().map(|j| j.with_syslog_identifier("sottod".into()));
    if journal.is_some() && connected_to_journal() {
        TARGET.store(JOURNAL, Ordering::Relaxed);
    }
    // A second logger is a mistake of a test; the first one stays.
    drop(log::set_boxed_logger(Box::new(Ours { journal })));
}

/// Where lines go now, by the names of LogControl1.
#[cfg(feature = "dbus")]
pub(super) fn target() -> &'static str {
    TARGETS[TARGET.load(Ordering::Relaxed).min(TARGETS.len() - 1)]
}

/// Sends lines elsewhere from now on; false for a name that is none, or where there is no journal.
#[cfg(feature = "dbus")]
pub(super) fn set_target(name: &str) -> bool {
    match TARGETS.iter().position(|target| *target == name) {
        Some(JOURNAL) if JournalLog::new().is_err() => false,
        Some(target) => {
            TARGET.store(target, Ordering::Relaxed);
            true
        }
        None => false,
    }
}

/// Passes on what this crate says, and warnings of others: zbus and hyper talk to developers, their lines are not for the
/// owner of a machine.
struct Ours {
    journal: Option<JournalLog>,
}

impl Log for Ours {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with("sotto") || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            match (TARGET.load(Ordering::Relaxed), &self.journal) {
                (JOURNAL, Some(journal)) => journal.log(record),
                (JOURNAL | CONSOLE, _) => Stderr.log(record),
                _ => {}
            }
        }
    }

    fn flush(&self) {}
}

/// Lines on stderr.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Nobody to tell if stderr is closed.
        let _ = writeln!(
            std::io::stderr().lock(),
            "sottod: {}: {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }

    fn flush(&self) {}
}
