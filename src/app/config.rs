//! The configuration file: strict, every value with its range. `docs/config.md` lists the keys.

#![cfg_attr(
    not(all(feature = "dbus", feature = "http")),
    allow(dead_code, reason = "keys of a door that is left out are still read and checked")
)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

use super::catalog;
use crate::base::limits::{CONFIG_BYTES_MAX, PACK_CACHE_GIB};
use crate::engine::Options;
use crate::model::{KvType, Pack};

/// Where the configuration is when no flag names another.
pub(super) const PATH: &str = "/etc/sotto/sotto.toml";

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Int<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Int<MIN, MAX> {
    /// As a size; the ranges fit every machine's.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Int<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let found = i64::deserialize(d)?;
        match u64::try_from(found) {
            Ok(n) if (MIN..=MAX).contains(&n) => Ok(Self(n)),
            _ => Err(de::Error::custom(format!("{found} is out of range, {MIN} to {MAX} are taken"))),
        }
    }
}

/// One of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
        pub(super) enum $name { $(#[serde(rename = $word)] $value,)* }
    };
}

words! {
    /// Whether to be on a bus.
    Enable { Auto = "auto", Yes = "yes", No = "no", }
}
words! {
    /// Which bus.
    BusName { System = "system", Session = "session", }
}
words! {
    /// Whether weights are packed when a model is loaded.
    PackName { Off = "off", Memory = "memory", Cache = "cache", }
}
words! {
    /// The least severe messages that are logged.
    LogLevel { Err = "err", Warning = "warning", Notice = "notice", Info = "info", Debug = "debug", }
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    #[expect(dead_code, reason = "required, and checked while it is read")]
    version: Int<1, 1>,
    #[serde(default)]
    pub daemon: Daemon,
    #[serde(default)]
    pub dbus: Dbus,
    #[serde(default)]
    pub api: Api,
    #[serde(default)]
    pub models: Models,
    #[serde(default)]
    pub engine: EngineKeys,
    #[serde(default)]
    pub scheduler: Scheduler,
}

impl<const MIN: u64, const MAX: u64> Default for Int<MIN, MAX> {
    fn default() -> Self {
        Self(MIN)
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Daemon {
    pub log_level: LogLevel,
    pub idle_exit_s: IdleExit,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { log_level: LogLevel::Info, idle_exit_s: IdleExit(None) }
    }
}

/// After how many seconds without work the daemon ends. Quick ends and starts would stop the socket's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdleExit(pub Option<u64>);

impl<'de> Deserialize<'de> for IdleExit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match i64::deserialize(d)? {
            0 => Ok(Self(None)),
            s @ 60..=31_536_000 => Ok(Self(Some(s.cast_unsigned()))),
            s => {
                Err(de::Error::custom(format!("{s} is out of range, 0 (never) or 60 to 31536000 are taken")))
            }
        }
    }
}

/// How long something is kept, seconds: -1 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keep(pub Option<u64>);

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match i64::deserialize(d)? {
            -1 => Ok(Self(None)),
            s @ 0..=31_536_000 => Ok(Self(Some(s.cast_unsigned()))),
            s => Err(de::Error::custom(format!("{s} is out of range, -1 (for ever) to 31536000 are taken"))),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Dbus {
    pub enable: Enable,
    pub bus: BusName,
}

impl Default for Dbus {
    fn default() -> Self {
        Self { enable: Enable::Auto, bus: BusName::System }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Api {
    pub enable: bool,
    pub socket: PathBuf,
    pub mode: Mode,
    pub group: String,
    pub lenient: bool,
    pub max_body_kib: Int<1, 65_536>,
    pub max_header_kib: Int<8, 1_024>,
    pub max_connections: Int<1, 1_024>,
    pub max_connections_per_uid: Int<1, 1_024>,
    pub header_timeout_s: Int<1, 3_600>,
    pub idle_timeout_s: Int<1, 86_400>,
    pub keepalive_s: Int<1, 3_600>,
    pub stall_timeout_s: Int<1, 3_600>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            enable: true,
            socket: super::cli::SOCKET.into(),
            mode: Mode(0o660),
            group: "sotto".into(),
            lenient: false,
            max_body_kib: Int(4_096),
            max_header_kib: Int(16),
            max_connections: Int(64),
            max_connections_per_uid: Int(16),
            header_timeout_s: Int(10),
            idle_timeout_s: Int(60),
            keepalive_s: Int(10),
            stall_timeout_s: Int(30),
        }
    }
}

/// Permissions of the socket, as octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode(pub u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 && text.len() <= 4 => Ok(Self(mode)),
            _ => Err(de::Error::custom(format!(
                "{text:?} is no mode, octal digits from \"0000\" to \"0777\" are taken"
            ))),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Models {
    pub dirs: Vec<PathBuf>,
    pub default: String,
    pub preload: Vec<String>,
    pub keep_s: Keep,
    pub memory_max_mib: Int<0, 16_777_216>,
    pub lock: bool,
}

impl Default for Models {
    fn default() -> Self {
        Self {
            dirs: catalog::default_dirs(),
            default: String::new(),
            preload: Vec::new(),
            keep_s: Keep(Some(300)),
            memory_max_mib: Int(0),
            lock: false,
        }
    }
}

/// Type of the KV cache, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvTypeName(pub KvType);

impl<'de> Deserialize<'de> for KvTypeName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        let names = KvType::ALL.map(KvType::name);
        KvType::from_name(&name).map(Self).ok_or_else(|| {
            de::Error::custom(format!("{name:?} is no type of cache, one of {names:?} is taken"))
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EngineKeys {
    pub threads: Int<0, 64>,
    pub threads_decode: Int<0, 64>,
    pub nice: Int<0, 19>,
    pub context: Int<2, 16_777_216>,
    pub kv_type: KvTypeName,
    pub pack: PackName,
    pub pack_cache_gib: Int<1, 65_536>,
    pub prefill_chunk: Int<1, 128>,
    pub max_sequences: Int<1, 16>,
    pub prefix_cache_mib: Int<0, 65_536>,
}

impl Default for EngineKeys {
    fn default() -> Self {
        Self {
            threads: Int(0),
            threads_decode: Int(0),
            nice: Int(5),
            context: Int(4_096),
            kv_type: KvTypeName(KvType::F16),
            pack: PackName::Cache,
            pack_cache_gib: Int(PACK_CACHE_GIB),
            prefill_chunk: Int(128),
            max_sequences: Int(4),
            prefix_cache_mib: Int(128),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Scheduler {
    pub queue_max: Int<0, 4_096>,
    pub queue_max_per_uid: Int<0, 4_096>,
    pub quantum_ms: Int<1, 10_000>,
    pub background_share: Int<0, 50>,
    pub queue_timeout_s: Int<1, 86_400>,
    pub deadline_s: Int<1, 86_400>,
    pub max_tokens: Int<0, 16_777_216>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            queue_max: Int(32),
            queue_max_per_uid: Int(8),
            quantum_ms: Int(50),
            background_share: Int(5),
            queue_timeout_s: Int(120),
            deadline_s: Int(600),
            max_tokens: Int(0),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{path}:{line}:{column}: {message}; docs/config.md lists the keys and their values")]
    Wrong {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

/// The text of a regular file of at most `CONFIG_BYTES_MAX`: a device or a pipe might never end.
fn read(path: &Path) -> std::io::Result<String> {
    let wrong = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, what);
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(wrong("not a regular file".into()));
    }
    if meta.len() > CONFIG_BYTES_MAX {
        return Err(wrong(format!("{} bytes long, at most {CONFIG_BYTES_MAX} are read", meta.len())));
    }
    std::fs::read_to_string(path)
}

impl LogLevel {
    /// What is logged at this level; syslog's notice is the logger's info.
    pub(super) fn filter(&self) -> log::LevelFilter {
        match self {
            Self::Err => log::LevelFilter::Error,
            Self::Warning => log::LevelFilter::Warn,
            Self::Notice | Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
        }
    }
}

impl Config {
    /// Reads `path`; with `None` the usual place, where an absent file means the defaults.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let from = path.unwrap_or(Path::new(PATH));
        match read(from) {
            Ok(text) => Self::parse(&from.display().to_string(), &text),
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: from.display().to_string(), source }),
        }
    }

    fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start).min(text.len());
            let before = text.get(..at).unwrap_or_default();
            ConfigError::Wrong {
                path: path.into(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                message: e.message().trim().replace('\n', ", "),
            }
        })
    }

    /// The engine's options, with the models of `dirs`.
    pub(super) fn options(&self) -> Options {
        let some = |s: &String| (!s.is_empty()).then(|| s.clone());
        Options {
            models: catalog::scan(&self.models.dirs),
            default_model: some(&self.models.default),
            keep_s: self.models.keep_s.0,
            memory_max_bytes: self.models.memory_max_mib.0 << 20,
            lock: self.models.lock,
            threads: self.engine.threads.size(),
            threads_decode: self.engine.threads_decode.size(),
            n_ctx: self.engine.context.size(),
            kv: self.engine.kv_type.0,
            pack: match self.engine.pack {
                PackName::Off => Pack::Off,
                PackName::Memory => Pack::Memory,
                PackName::Cache => Pack::Cache,
            },
            cache: super::cache(self.engine.pack_cache_gib.0),
            prefill_chunk: self.engine.prefill_chunk.size(),
            max_sequences: self.engine.max_sequences.size(),
            prefix_cache_bytes: self.engine.prefix_cache_mib.0 << 20,
            quantum_ms: self.scheduler.quantum_ms.0,
            background_share: self.scheduler.background_share.0,
            queue_max: self.scheduler.queue_max.size(),
            queue_max_per_uid: self.scheduler.queue_max_per_uid.size(),
            queue_timeout_s: self.scheduler.queue_timeout_s.0,
            deadline_s: self.scheduler.deadline_s.0,
            max_tokens: u32::try_from(self.scheduler.max_tokens.0).unwrap_or(u32::MAX),
            stall_timeout_s: self.api.stall_timeout_s.0,
            ..Options::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_named() {
        let wrong = |text: &str| Config::parse("s.toml", text).expect_err(text).to_string();
        for (text, wanted) in [
            ("version = 1\n[api]\nsokcet = \"x\"\n", "s.toml:3:1: unknown field `sokcet`"),
            ("version = 1\n[engine]\nkv_type = \"q4\"\n", "s.toml:3:11: \"q4\" is no type of cache, one of"),
            ("version = 1\n[engine]\nprefill_chunk = 129\n", "s.toml:3:17: 129 is out of range, 1 to 128"),
            ("version = 1\n[engine]\nthreads = \"all\"\n", "s.toml:3:11: invalid type: string"),
            ("version = 2\n", "s.toml:1:11: 2 is out of range, 1 to 1"),
            ("", "missing field `version`"),
            ("version = 1\n[api]\nmode = \"0999\"\n", "s.toml:3:8: \"0999\" is no mode"),
            ("version = 1\n[daemon]\nidle_exit_s = 59\n", "s.toml:3:15: 59 is out of range, 0 (never) or 60"),
            ("version = 1\n[models]\nkeep_s = -2\n", "s.toml:3:10: -2 is out of range, -1 (for ever)"),
            ("version = 1\n[dbus]\nbus = \"moon\"\n", "s.toml:3:7: unknown variant `moon`"),
        ] {
            let message = wrong(text);
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn keys_reach_the_engine() {
        let text = "version = 1\n[engine]\ncontext = 100\n[scheduler]\nqueue_max = 3\n[models]\ndirs = []\ndefault = \"a\"\n";
        let options = Config::parse("s.toml", text).expect("valid").options();
        assert_eq!((options.n_ctx, options.queue_max, options.default_model.as_deref()), (100, 3, Some("a")));
        assert_eq!(options.deadline_s, Options::default().deadline_s);
    }
}
