//! The keys: every value with its range and its default. `docs/config.md` lists them.
//!
//! A new key is a field with its default, here, and its line on that page; what does not hold at once after a reload is
//! named in [`holds`].

#![cfg_attr(
    not(all(feature = "dbus", feature = "http")),
    allow(dead_code, reason = "keys of a door that is left out are still read and checked")
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::app::{catalog, cli};
use crate::base::limits::PACK_CACHE_GIB;
use crate::model::KvType;
use crate::os::thread;

/// When a key holds that is read at the start alone.
pub(super) const NEXT_START: &str = "the next start";

/// From when on a changed value of `key` holds; `None`: from the reload on.
pub(super) fn holds(key: &str) -> Option<&'static str> {
    const FIXED: [&str; 7] =
        ["dbus.", "api.enable", "api.socket", "api.mode", "api.group", "engine.", "models.lock"];
    match key {
        "engine.prefix_cache_mib" => None,
        _ if key.starts_with("model.") && !key.contains(".sampling.") => Some("the model's next load"),
        _ => FIXED.iter().any(|fixed| key.starts_with(fixed)).then_some(NEXT_START),
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::app) struct Int<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Int<MIN, MAX> {
    /// As a size; the ranges fit every machine's.
    pub(in crate::app) fn size(self) -> usize {
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

/// A number from `MIN` to `MAX` thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(in crate::app) struct Real<const MIN: u32, const MAX: u32>(pub f32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Real<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let found = f64::deserialize(d)?;
        let [min, max] = [MIN, MAX].map(|n| f64::from(n) / 1_000.0);
        match (min..=max).contains(&found) {
            true => Ok(Self(found as f32)),
            false => Err(de::Error::custom(format!("{found} is out of range, {min} to {max} are taken"))),
        }
    }
}

/// One of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
        pub(in crate::app) enum $name { $(#[serde(rename = $word)] $value,)* }
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

/// All of them.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(in crate::app) struct Config {
    pub version: Int<1, 1>,
    #[serde(default)]
    pub daemon: Daemon,
    #[serde(default)]
    pub dbus: Dbus,
    #[serde(default)]
    pub api: Api,
    #[serde(default)]
    pub models: Models,
    /// By the id of a model.
    #[serde(default)]
    pub model: BTreeMap<String, ModelKeys>,
    #[serde(default)]
    pub engine: EngineKeys,
    #[serde(default)]
    pub scheduler: Scheduler,
    #[serde(default)]
    pub session: SessionKeys,
    #[serde(default)]
    pub limits: Limits,
}

impl<const MIN: u64, const MAX: u64> Default for Int<MIN, MAX> {
    fn default() -> Self {
        Self(MIN)
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Daemon {
    pub log_level: LogLevel,
    pub idle_exit_s: IdleExit,
    pub admin_groups: Vec<String>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { log_level: LogLevel::Info, idle_exit_s: IdleExit(None), admin_groups: Vec::new() }
    }
}

/// After how many seconds without work the daemon ends. Quick ends and starts would stop the socket's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) struct IdleExit(pub Option<u64>);

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

impl Serialize for IdleExit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0.unwrap_or(0))
    }
}

/// How long something is kept, seconds: -1 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) struct Keep(pub Option<u64>);

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match i64::deserialize(d)? {
            -1 => Ok(Self(None)),
            s @ 0..=31_536_000 => Ok(Self(Some(s.cast_unsigned()))),
            s => Err(de::Error::custom(format!("{s} is out of range, -1 (for ever) to 31536000 are taken"))),
        }
    }
}

impl Serialize for Keep {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_i64(self.0.map_or(-1, u64::cast_signed))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Dbus {
    pub enable: Enable,
    pub bus: BusName,
}

impl Default for Dbus {
    fn default() -> Self {
        Self { enable: Enable::Auto, bus: BusName::System }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Api {
    pub enable: bool,
    #[serde(deserialize_with = "socket")]
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
    pub metrics: bool,
}

/// A path by which a socket can be called (unix(7)).
fn socket<'de, D: Deserializer<'de>>(reader: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(reader)?;
    match path.as_os_str().len() {
        1..=107 => Ok(path),
        n => Err(de::Error::custom(format_args!("got a path of {n} bytes, 1 to 107 are taken"))),
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            enable: true,
            socket: cli::SOCKET.into(),
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
            metrics: true,
        }
    }
}

/// Permissions of the socket, as octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) struct Mode(pub u32);

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

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{:04o}", self.0))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Models {
    pub dirs: Vec<PathBuf>,
    pub default: String,
    pub preload: Vec<String>,
    pub max_loaded: Int<1, 64>,
    pub keep_s: Keep,
    pub memory_max_mib: Int<0, 16_777_216>,
    pub lock: bool,
    /// Further names, each with the id that it stands for.
    pub aliases: BTreeMap<String, String>,
}

impl Default for Models {
    fn default() -> Self {
        Self {
            dirs: catalog::default_dirs(),
            default: String::new(),
            preload: Vec::new(),
            max_loaded: Int(1),
            keep_s: Keep(Some(300)),
            memory_max_mib: Int(0),
            lock: false,
            aliases: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct SessionKeys {
    pub max: Int<0, 1_024>,
    pub max_per_uid: Int<0, 1_024>,
    pub idle_s: Int<1, 86_400>,
}

impl Default for SessionKeys {
    fn default() -> Self {
        Self { max: Int(16), max_per_uid: Int(4), idle_s: Int(900) }
    }
}

/// What one model has of its own.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct ModelKeys {
    pub context: Option<Int<2, 16_777_216>>,
    pub kv_type: Option<KvTypeName>,
    pub max_sequences: Option<Int<1, 16>>,
    /// A file; none: the model's own.
    pub template: PathBuf,
    pub sampling: SamplingKeys,
}

/// What requests get that leave it out.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct SamplingKeys {
    pub temperature: Option<Real<0, 2_000>>,
    pub top_p: Option<Real<1, 1_000>>,
    pub top_k: Option<Int<0, 1_000>>,
    pub min_p: Option<Real<0, 1_000>>,
    pub repeat_penalty: Option<Real<500, 2_000>>,
}

/// Type of the KV cache, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) struct KvTypeName(pub KvType);

impl<'de> Deserialize<'de> for KvTypeName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        let names = KvType::ALL.map(KvType::name);
        KvType::from_name(&name).map(Self).ok_or_else(|| {
            de::Error::custom(format!("{name:?} is no type of cache, one of {names:?} is taken"))
        })
    }
}

impl Serialize for KvTypeName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.0.name())
    }
}

/// Processors, as the kernel writes a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::app) struct Cpus(String);

impl Cpus {
    /// Their numbers, in order.
    pub(in crate::app) fn list(&self) -> Vec<usize> {
        thread::cpu_list(&self.0).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match thread::cpu_list(&text) {
            Some(_) => Ok(Self(text)),
            None => Err(de::Error::custom(format!(
                "{text:?} is no list of processors, such as \"4-7\" or \"0,2,4\" is taken, with numbers below {}",
                thread::N_CPU_MAX
            ))),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct EngineKeys {
    pub threads: Int<0, 64>,
    pub threads_decode: Int<0, 64>,
    pub cpus: Cpus,
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
            cpus: Cpus::default(),
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

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Scheduler {
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

/// Most requests, or tokens, that may be allowed in a minute.
const RATE_MAX: u64 = 1_000_000_000;

/// What one uid may ask for in a minute; 0: as much as it likes.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct Limits {
    pub requests_per_minute: Int<0, RATE_MAX>,
    pub tokens_per_minute: Int<0, RATE_MAX>,
    /// Those for which it is otherwise.
    pub uid: BTreeMap<Uid, UidLimits>,
}

/// The same of one uid; absent: as for all.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::app) struct UidLimits {
    pub requests_per_minute: Option<Int<0, RATE_MAX>>,
    pub tokens_per_minute: Option<Int<0, RATE_MAX>>,
}

/// The number of a user, which TOML has as the name of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::app) struct Uid(pub u32);

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        // One way to write it, so that two files mean the same user by the same table.
        let uid = text.parse().ok().filter(|uid: &u32| uid.to_string() == text);
        uid.map(Self).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is no number of a user, such as \"1000\" is taken"))
        })
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl LogLevel {
    /// What is logged at this level; syslog's notice is the logger's info.
    pub(in crate::app) fn filter(&self) -> log::LevelFilter {
        match self {
            Self::Err => log::LevelFilter::Error,
            Self::Warning => log::LevelFilter::Warn,
            Self::Notice | Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
        }
    }
}
