//! Where log lines go: to the journal under systemd, to stderr otherwise. Never prompt or answer text.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Installs the logger of the process.
pub(super) fn install(max: LevelFilter) {
    // zbus and hyper talk to developers; their lines are not for the owner of a machine.
    log::set_max_level(max);
    let journal = || JournalLog::new().ok().map(|j| j.with_syslog_identifier("sottod".into()));
    let installed = match connected_to_journal().then(journal).flatten() {
        Some(journal) => log::set_boxed_logger(Box::new(Ours(journal))),
        None => log::set_boxed_logger(Box::new(Ours(Stderr))),
    };
    // A second logger is a mistake of a test; the first one stays.
    drop(installed);
}

/// Passes on what this crate says, and warnings of others.
struct Ours<L>(L);

impl<L: Log> Log for Ours<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with("sotto") || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
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
