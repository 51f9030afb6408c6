//! Who may do more than generate where nobody else decides: load and unload models, read the configuration again, end what
//! others asked for.

use std::fmt;
use std::sync::Arc;

use crate::engine::{Code, Fault};
use crate::os::process;

/// Says of a uid whether it may.
#[derive(Clone)]
pub struct Admins(Arc<dyn Fn(u32) -> bool + Send + Sync>);

impl Admins {
    /// Root, whoever runs the daemon, and those of whom `also` says so.
    pub fn new(also: impl Fn(u32) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |uid| uid == 0 || uid == process::uid() || also(uid)))
    }

    /// Whether `uid` may.
    #[must_use]
    pub fn has(&self, uid: u32) -> bool {
        (self.0)(uid)
    }

    /// Refuses whoever may not.
    ///
    /// # Errors
    /// `not_authorized`, saying what is refused.
    pub(super) fn check(&self, uid: u32, what: &str) -> Result<(), Fault> {
        if self.has(uid) {
            return Ok(());
        }
        let message = format!("user {uid} may not {what}; ask root, or join a group of daemon.admin_groups");
        Err(Fault::new(Code::NotAuthorized, message))
    }
}

impl Default for Admins {
    fn default() -> Self {
        Self::new(|_| false)
    }
}

impl fmt::Debug for Admins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admins")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_what_they_may_not() {
        let admins = Admins::new(|uid| uid == 7);
        assert!(admins.has(0) && admins.has(7) && admins.has(process::uid()));
        let stranger = process::uid().wrapping_add(11).max(100);
        let fault = admins.check(stranger, "load models").expect_err("a stranger");
        assert_eq!(fault.code, Code::NotAuthorized);
        assert!(fault.message.contains("may not load models"), "{}", fault.message);
        assert!(!Admins::default().has(stranger));
    }
}
