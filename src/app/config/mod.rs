//! The configuration: files in layers, each read strictly, later ones over earlier ones. Which keys there are stands in
//! [`keys`].

mod keys;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

#[cfg(feature = "dbus")]
pub(super) use self::keys::BusName;
#[cfg(any(feature = "dbus", feature = "http"))]
pub(super) use self::keys::Enable;
pub(super) use self::keys::{Config, PackName};
use self::keys::{NEXT_START, SamplingKeys, holds};
use super::catalog;
use crate::base::limits::{CONFIG_BYTES_MAX, N_CONFIG_FILE_MAX};
use crate::engine::{ModelSettings, Options, Rate, Sampling, Settings};
use crate::model::Pack;
use crate::os::file::read_text;

/// Where the configuration is when no flag names another.
const PATH: &str = "/etc/sotto/sotto.toml";
/// Folders whose `*.toml` files come after it: the package's, the administrator's, and what holds until the next boot.
const DIRS: [&str; 3] = ["/usr/lib/sotto/sotto.toml.d", "/etc/sotto/sotto.toml.d", "/run/sotto-conf.d"];

/// Where the files are.
#[derive(Debug)]
pub(super) struct Place {
    file: PathBuf,
    /// Without the file there are the defaults.
    may_lack: bool,
    dirs: Vec<PathBuf>,
}

impl Place {
    /// The usual place; with `file` that file, and the folder beside it with `.d` behind its name.
    pub(super) fn new(file: Option<&Path>) -> Self {
        match file {
            None => Self { file: PATH.into(), may_lack: true, dirs: DIRS.map(PathBuf::from).into() },
            Some(file) => {
                let mut dir = file.as_os_str().to_owned();
                dir.push(".d");
                Self { file: file.into(), may_lack: false, dirs: vec![dir.into()] }
            }
        }
    }

    /// The files, in the order in which they are read: of two with one name the later folder's counts, and an empty one
    /// stands for none.
    fn files(&self) -> Result<Vec<PathBuf>, ConfigError> {
        let mut named: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for dir in &self.dirs {
            let unread = |source| ConfigError::Read { path: dir.display().to_string(), source };
            let entries = match std::fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(unread(e)),
            };
            for entry in entries {
                let path = entry.map_err(unread)?.path();
                if path.extension().is_some_and(|e| e == "toml")
                    && let Some(name) = path.file_name()
                {
                    named.insert(name.to_owned(), path);
                }
            }
        }
        if named.len() > N_CONFIG_FILE_MAX {
            return Err(ConfigError::Many { n: named.len(), dirs: format!("{:?}", self.dirs) });
        }
        let masks = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0);
        let main = (!self.may_lack || self.file.exists()).then(|| self.file.clone());
        Ok(main.into_iter().chain(named.into_values().filter(|path| !masks(path))).collect())
    }

    /// Reads them.
    ///
    /// # Errors
    /// At the first line that is wrong.
    pub(super) fn read(&self) -> Result<Read, ConfigError> {
        let mut all = Value::Object(serde_json::Map::new());
        let mut origins = BTreeMap::new();
        let files = self.files()?;
        for path in &files {
            let shown = path.display().to_string();
            let text = read_text(path, CONFIG_BYTES_MAX)
                .map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
            parse::<Config>(&shown, &text)?;
            let layer = parse(&shown, &text)?;
            origins.extend(leaves(&layer).into_keys().map(|key| (key, path.clone())));
            merge(&mut all, layer);
        }
        if files.is_empty() {
            return Ok(Read { config: Config::default(), origins, files });
        }
        let config =
            serde_json::from_value(all).map_err(|e| ConfigError::Together { message: e.to_string() })?;
        Ok(Read { config, origins, files })
    }
}

/// A configuration that can be used.
#[derive(Debug)]
pub(super) struct Read {
    pub config: Config,
    /// The file that gives each key, as far as one does.
    origins: BTreeMap<String, PathBuf>,
    /// Those that were read.
    pub files: Vec<PathBuf>,
}

impl Read {
    /// Every key with its value and the file that it comes from, if it is not the default.
    pub(super) fn values(&self) -> impl Iterator<Item = (String, Value, Option<&Path>)> {
        // A configuration is made of words and numbers, all of which JSON has.
        let values = serde_json::to_value(&self.config).map(|all| leaves(&all)).unwrap_or_default();
        values.into_iter().map(|(key, value)| {
            let origin = self.origins.get(&key).map(PathBuf::as_path);
            (key, value, origin)
        })
    }

    /// The keys whose values in `new` do not hold from now on, each with from when on: those of the next start that are
    /// others than they were at the `start`, and others that were changed.
    pub(super) fn held_back(&self, start: &Self, new: &Self) -> Vec<(String, &'static str)> {
        let values = |of: &Self| -> BTreeMap<String, Value> {
            of.values().map(|(key, value, _)| (key, value)).collect()
        };
        let (start, old, new) = (values(start), values(self), values(new));
        let keys: std::collections::BTreeSet<&String> =
            [&start, &old, &new].map(BTreeMap::keys).into_iter().flatten().collect();
        let held = keys.into_iter().filter_map(|key| {
            let when = holds(key)?;
            let before = if when == NEXT_START { &start } else { &old };
            // A text that is not there and one without letters say the same.
            let text = Value::from("");
            let value = |of: &BTreeMap<String, Value>| of.get(key).unwrap_or(&text).clone();
            (value(before) != value(&new)).then(|| (key.clone(), when))
        });
        held.collect()
    }
}

/// The values of a tree by their dotted keys; what is null, or a table without keys, has none.
fn leaves(tree: &Value) -> BTreeMap<String, Value> {
    fn walk(at: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(table) => {
                for (name, value) in table {
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    let name = match !name.is_empty() && name.chars().all(plain) {
                        true => name.clone(),
                        false => Value::from(name.as_str()).to_string(),
                    };
                    walk(&if at.is_empty() { name } else { format!("{at}.{name}") }, value, found);
                }
            }
            Value::Null => {}
            _ => drop(found.insert(at.to_owned(), value.clone())),
        }
    }
    let mut found = BTreeMap::new();
    walk("", tree, &mut found);
    found
}

/// Puts `over` over `under`: tables merge, everything else replaces.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                merge(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
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
    /// More files than anybody keeps.
    #[error("{n} .toml files in {dirs}, at most {N_CONFIG_FILE_MAX} are read; put several into one")]
    Many {
        /// Files there are.
        n: usize,
        /// Where.
        dirs: String,
    },
    /// Each file is right, all together are not.
    #[error("the files together: {message}")]
    Together {
        /// What is wrong.
        message: String,
    },
}

fn parse<T: serde::de::DeserializeOwned>(path: &str, text: &str) -> Result<T, ConfigError> {
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

impl Config {
    /// What the engine keeps to its end.
    pub(super) fn options(&self) -> Options {
        Options {
            threads: self.engine.threads.size(),
            threads_decode: self.engine.threads_decode.size(),
            cpus: self.engine.cpus.list(),
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
            lock: self.models.lock,
            ..Options::default()
        }
    }

    /// What a reload may change of the engine, with the models of `models.dirs` as they are now.
    pub(super) fn settings(&self) -> Settings {
        let some = |s: &String| (!s.is_empty()).then(|| s.clone());
        Settings {
            models: catalog::scan(&self.models.dirs),
            default_model: some(&self.models.default),
            aliases: self.models.aliases.clone(),
            of_model: self.of_model(),
            max_loaded: self.models.max_loaded.size(),
            keep_s: self.models.keep_s.0,
            memory_max_bytes: self.models.memory_max_mib.0 << 20,
            prefix_cache_bytes: self.engine.prefix_cache_mib.0 << 20,
            quantum_ms: self.scheduler.quantum_ms.0,
            background_share: self.scheduler.background_share.0,
            queue_max: self.scheduler.queue_max.size(),
            queue_max_per_uid: self.scheduler.queue_max_per_uid.size(),
            queue_timeout_s: self.scheduler.queue_timeout_s.0,
            deadline_s: self.scheduler.deadline_s.0,
            max_tokens: u32::try_from(self.scheduler.max_tokens.0).unwrap_or(u32::MAX),
            stall_timeout_s: self.api.stall_timeout_s.0,
            rate: self.rate(),
            rate_of_uid: self.rate_of_uid(),
            admin_groups: self.daemon.admin_groups.clone(),
        }
    }

    fn of_model(&self) -> BTreeMap<String, ModelSettings> {
        let sampling = |s: &SamplingKeys| Sampling {
            temperature: s.temperature.map(|x| x.0),
            top_p: s.top_p.map(|x| x.0),
            top_k: s.top_k.and_then(|n| u32::try_from(n.0).ok()),
            min_p: s.min_p.map(|x| x.0),
            repeat_penalty: s.repeat_penalty.map(|x| x.0),
            ..Sampling::default()
        };
        let of_model = self.model.iter().map(|(id, keys)| {
            let settings = ModelSettings {
                n_ctx: keys.context.map(|n| n.size()),
                kv: keys.kv_type.map(|name| name.0),
                max_sequences: keys.max_sequences.map(|n| n.size()),
                template: (!keys.template.as_os_str().is_empty()).then(|| keys.template.clone()),
                sampling: sampling(&keys.sampling),
            };
            (id.clone(), settings)
        });
        of_model.collect()
    }

    fn rate(&self) -> Rate {
        Rate { requests: self.limits.requests_per_minute.0, tokens: self.limits.tokens_per_minute.0 }
    }

    fn rate_of_uid(&self) -> BTreeMap<u32, Rate> {
        let all = self.rate();
        let of_uid = self.limits.uid.iter().map(|(uid, own)| {
            let requests = own.requests_per_minute.map_or(all.requests, |n| n.0);
            (uid.0, Rate { requests, tokens: own.tokens_per_minute.map_or(all.tokens, |n| n.0) })
        });
        of_uid.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        parse("s.toml", text).expect("valid")
    }

    #[test]
    fn a_wrong_line_is_named() {
        let wrong = |text: &str| parse::<Config>("s.toml", text).expect_err(text).to_string();
        for (text, wanted) in [
            ("version = 1\n[api]\nsokcet = \"x\"\n", "s.toml:3:1: unknown field `sokcet`"),
            ("version = 1\n[engine]\nkv_type = \"q4\"\n", "s.toml:3:11: \"q4\" is no type of cache, one of"),
            ("version = 1\n[engine]\nprefill_chunk = 129\n", "s.toml:3:17: 129 is out of range, 1 to 128"),
            ("version = 1\n[engine]\nthreads = \"all\"\n", "s.toml:3:11: invalid type: string"),
            ("version = 1\n[engine]\ncpus = \"4-\"\n", "s.toml:3:8: \"4-\" is no list of processors"),
            ("version = 2\n", "s.toml:1:11: 2 is out of range, 1 to 1"),
            ("", "s.toml:1:1: missing field `version`"),
            ("version = 1\n[api]\nmode = \"0999\"\n", "s.toml:3:8: \"0999\" is no mode"),
            ("version = 1\n[dbus]\nbus = \"moon\"\n", "s.toml:3:7: unknown variant `moon`"),
            ("version = 1\n[model.a]\nlayers = 3\n", "s.toml:3:1: unknown field `layers`"),
            ("version = 1\n[model.a.sampling]\ntop_p = 0\n", "s.toml:3:9: 0 is out of range, 0.001 to 1"),
            ("version = 1\n[model.a.sampling]\nmin_p = nan\n", "s.toml:3:9: NaN is out of range"),
            ("version = 1\n[limits.uid.root]\n", "\"root\" is no number of a user"),
            ("version = 1\n[limits.uid.01]\n", "\"01\" is no number of a user"),
            ("version = 1\n[models.aliases]\na = 1\n", "s.toml:3:5: invalid type: integer `1`"),
            ("version = 1\n[daemon]\nidle_exit_s = 59\n", "s.toml:3:15: 59 is out of range, 0 (never) or 60"),
            ("version = 1\n[models]\nkeep_s = -2\n", "s.toml:3:10: -2 is out of range, -1 (for ever)"),
            ("version = 1\n[models]\nembed = 1\n", "s.toml:3:1: unknown field `embed`"),
        ] {
            let message = wrong(text);
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn keys_reach_the_engine() {
        let config = config(
            "version = 1\n[engine]\ncontext = 100\ncpus = \"2,0-1\"\n[scheduler]\nqueue_max = 3\n[models]\ndirs = []\n\
             default = \"a\"\n[models.aliases]\nb = \"a\"\n[model.\"a.b\"]\ncontext = 50\nkv_type = \"q8_0\"\n\
             template = \"/t\"\nsampling.top_k = 7\nsampling.temperature = 0\n[daemon]\nadmin_groups = [\"wheel\"]\n\
             [limits]\nrequests_per_minute = 5\nuid.\"0\".tokens_per_minute = 9\n",
        );
        let (options, settings) = (config.options(), config.settings());
        assert_eq!((options.n_ctx, options.cpus), (100, vec![0, 1, 2]));
        assert_eq!((settings.queue_max, settings.default_model.as_deref()), (3, Some("a")));
        assert_eq!(settings.deadline_s, Settings::default().deadline_s);
        assert_eq!(
            (settings.aliases["b"].as_str(), settings.admin_groups.as_slice()),
            ("a", &["wheel".to_owned()][..])
        );
        let own = &settings.of_model["a.b"];
        assert_eq!(
            (own.n_ctx, own.kv, own.max_sequences),
            (Some(50), crate::model::KvType::from_name("q8_0"), None)
        );
        assert_eq!(
            (own.sampling.top_k, own.sampling.temperature, own.sampling.top_p),
            (Some(7), Some(0.0), None)
        );
        assert_eq!(own.template.as_deref(), Some(Path::new("/t")));
        assert_eq!(settings.rate_of(0), Rate { requests: 5, tokens: 9 });
        assert_eq!(settings.rate_of(1), Rate { requests: 5, tokens: 0 });
    }

    /// A folder of this test alone with these files.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let dir = std::env::temp_dir().join(format!("sotto-config-{name}-{}", std::process::id()));
            let files_of = Self(dir);
            files.iter().for_each(|(path, text)| files_of.write(path, text));
            files_of
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }

        fn place(&self, dirs: &[&str]) -> Place {
            let dirs = dirs.iter().map(|dir| self.0.join(dir)).collect();
            Place { file: self.0.join("sotto.toml"), may_lack: true, dirs }
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn later_files_go_over_earlier_ones() {
        let files = Files::new(
            "layers",
            &[
                (
                    "sotto.toml",
                    "version = 1\n[api]\nlenient = true\nkeepalive_s = 3\n[models]\ndirs = [\"/a\", \"/b\"]\n",
                ),
                (
                    "usr/10-a.toml",
                    "version = 1\n[api]\nkeepalive_s = 4\n[models.aliases]\nx = \"1\"\ny = \"1\"\n",
                ),
                ("usr/20-b.toml", "version = 1\n[api]\nkeepalive_s = 5\nidle_timeout_s = 5\n"),
                ("usr/30-c.toml", "version = 1\n[api]\nlenient = false\n"),
                ("etc/20-b.toml", "version = 1\n[models]\ndirs = [\"/c\"]\n[models.aliases]\ny = \"2\"\n"),
                ("etc/25-no.conf", "not read"),
                ("run/30-c.toml", ""),
            ],
        );
        let read = files.place(&["usr", "etc", "absent", "run"]).read().expect("all are right");
        let (api, models) = (&read.config.api, &read.config.models);
        assert_eq!(
            (api.lenient, api.keepalive_s.0, api.idle_timeout_s.0),
            (true, 4, 60),
            "30-c is masked, 20-b etc's"
        );
        assert_eq!(models.dirs, [PathBuf::from("/c")], "lists replace");
        let aliases: Vec<(&str, &str)> =
            models.aliases.iter().map(|(a, id)| (a.as_str(), id.as_str())).collect();
        assert_eq!(aliases, [("x", "1"), ("y", "2")], "tables merge");
        let shown: BTreeMap<String, (Value, Option<PathBuf>)> =
            read.values().map(|(key, value, file)| (key, (value, file.map(Path::to_owned)))).collect();
        let from = |key: &str| {
            shown[key].1.as_ref().map(|path| path.strip_prefix(&files.0).expect("ours").to_owned())
        };
        assert_eq!(from("api.lenient"), Some("sotto.toml".into()));
        assert_eq!(from("api.keepalive_s"), Some("usr/10-a.toml".into()));
        assert_eq!(from("models.aliases.y"), Some("etc/20-b.toml".into()));
        assert_eq!((from("api.idle_timeout_s"), &shown["api.idle_timeout_s"].0), (None, &Value::from(60)));
        assert_eq!(shown["api.mode"].0, "0660");
        files.write("usr/10-a.toml", "version = 1\n[api]\nkeepalive_s = 0\n");
        let wrong = files.place(&["usr"]).read().expect_err("a wrong line").to_string();
        assert!(wrong.contains("usr/10-a.toml:3:15: 0 is out of range, 1 to 3600"), "{wrong}");
        for i in 0..=N_CONFIG_FILE_MAX {
            files.write(&format!("many/{i}.toml"), "");
        }
        assert!(matches!(files.place(&["many"]).read(), Err(ConfigError::Many { .. })));
    }

    #[test]
    fn without_files_the_defaults_hold() {
        let files = Files::new("none", &[]);
        let read = files.place(&["usr"]).read().expect("nothing is wrong");
        assert_eq!((read.config.engine.context.0, read.files.len()), (4_096, 0));
        assert!(read.values().all(|(_, _, file)| file.is_none()));
        let named = Place::new(Some(&files.0.join("sotto.toml")));
        assert_eq!(named.dirs, [files.0.join("sotto.toml.d")]);
        assert!(matches!(named.read(), Err(ConfigError::Read { .. })), "a file that was named must be there");
    }

    #[test]
    fn what_a_reload_cannot_change_is_known() {
        let files = Files::new("reload", &[("sotto.toml", "version = 1\n[model.a]\ncontext = 3\n")]);
        let old = files.place(&[]).read().expect("right");
        files.write(
            "sotto.toml",
            "version = 1\n[engine]\ncontext = 9\nprefix_cache_mib = 1\n[api]\nsocket = \"/s\"\nlenient = true\n\
             [model.a]\nsampling.top_k = 1\n",
        );
        let new = files.place(&[]).read().expect("right");
        let (start, load) = ("the next start", "the model's next load");
        assert_eq!(
            old.held_back(&old, &new),
            [
                ("api.socket".into(), start),
                ("engine.context".into(), start),
                ("model.a.context".into(), load)
            ]
        );
        assert_eq!(
            new.held_back(&old, &new)[..],
            [("api.socket".into(), start), ("engine.context".into(), start)]
        );
        assert!(
            new.held_back(&old, &old).iter().all(|(_, when)| *when == load),
            "what was there at the start holds"
        );
        assert!(new.held_back(&new, &new).is_empty());
    }
}
