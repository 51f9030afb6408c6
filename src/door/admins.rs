//! Who may do more than generate where nobody else decides: load and unload models, read the configuration again, end what
//! others asked for.

use crate::engine::{Code, Engine, Fault};
use crate::os::{process, user};

/// Whether `uid` is root, runs the daemon, or is a member of a group of `daemon.admin_groups`. Whoever cannot be looked up
/// is none.
fn is_admin(uid: u32, engine: &Engine) -> bool {
    uid == process::uid() || user::is_admin(uid, &engine.settings().admin_groups).unwrap_or(false)
}

/// Refuses whoever may not.
///
/// # Errors
/// `not_authorized`, saying `what` is refused.
pub(super) fn check(uid: u32, engine: &Engine, what: &str) -> Result<(), Fault> {
    if is_admin(uid, engine) {
        return Ok(());
    }
    let message = format!("user {uid} may not {what}; ask root, or join a group of daemon.admin_groups");
    Err(Fault::new(Code::NotAuthorized, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Options, Settings};
    use crate::kernel::select;

    #[test]
    fn others_are_told_what_they_may_not() {
        let settings = Settings { admin_groups: vec!["daemon".to_owned()], ..Settings::default() };
        let engine = Engine::start(select(None).unwrap(), Options::default(), settings).unwrap();
        // User 1 of every Debian has the group daemon as its first.
        let may = |uid| check(uid, &engine, "load models");
        for uid in [0, process::uid(), 1] {
            assert!(may(uid).is_ok(), "{uid}");
        }
        let fault = may(process::uid().wrapping_add(11).max(100)).expect_err("a stranger");
        assert_eq!(fault.code, Code::NotAuthorized);
        assert!(fault.message.contains("may not load models"), "{}", fault.message);
    }
}
