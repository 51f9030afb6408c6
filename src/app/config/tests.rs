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
        ("version = 1\n[models]\nkeep_s = 1\n", "s.toml:3:1: unknown field `keep_s`"),
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
    let aliases: Vec<(&str, &str)> = models.aliases.iter().map(|(a, id)| (a.as_str(), id.as_str())).collect();
    assert_eq!(aliases, [("x", "1"), ("y", "2")], "tables merge");
    let shown: BTreeMap<String, (Value, Option<PathBuf>)> =
        read.values().map(|(key, value, file)| (key, (value, file.map(Path::to_owned)))).collect();
    let from =
        |key: &str| shown[key].1.as_ref().map(|path| path.strip_prefix(&files.0).expect("ours").to_owned());
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
        old.held_back(&new),
        [("api.socket".into(), start), ("engine.context".into(), start), ("model.a.context".into(), load)]
    );
    assert!(new.held_back(&new).is_empty());
}
