//! `org.freedesktop.LogControl1` (systemd's documentation of that name): `systemctl service-log-level`.

use log::LevelFilter;
use zbus::{OwnedVariant, Variant};

use crate::engine::{Code, Fault};

use super::Door;
use super::call::{Call, Refusal};
use super::info::variant;
use super::polkit::Permit;

/// Syslog's names, and what of ours they let through.
const LEVELS: [(&str, LevelFilter); 8] = [
    ("emerg", LevelFilter::Off),
    ("alert", LevelFilter::Off),
    ("crit", LevelFilter::Error),
    ("err", LevelFilter::Error),
    ("warning", LevelFilter::Warn),
    ("notice", LevelFilter::Info),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
];

pub(super) fn property(door: &Door, name: &str) -> Option<OwnedVariant> {
    match name {
        "LogLevel" => variant(match log::max_level() {
            LevelFilter::Off => "emerg",
            LevelFilter::Error => "err",
            LevelFilter::Warn => "warning",
            LevelFilter::Info => "info",
            LevelFilter::Debug | LevelFilter::Trace => "debug",
        }),
        "LogTarget" => variant(door.options.log_target.map_or("console", |target| (target.get)())),
        "SyslogIdentifier" => variant("sottod"),
        _ => None,
    }
}

/// Sets a property, for root and whom polkit lets.
pub(super) async fn set(call: &Call, name: &str, value: &Variant<'_>) -> Result<(), Refusal> {
    call.may(Permit::Manage).await?;
    let refused = |allowed: &str| {
        Refusal::from(Fault::new(Code::InvalidValue, format!("{name}: allowed is {allowed}")).at(name))
    };
    let Variant::Str(word) = value else { return Err(refused("a string")) };
    if name == "LogLevel" {
        let level = LEVELS.iter().find(|(level, _)| *level == word.as_str()).map(|(_, filter)| *filter);
        log::set_max_level(level.ok_or_else(|| refused(&LEVELS.map(|(level, _)| level).join(", ")))?);
        return Ok(());
    }
    match call.door.options.log_target {
        Some(target) if (target.set)(word.as_str()) => Ok(()),
        _ => Err(refused("journal, console or null, and the journal only where there is one")),
    }
}
