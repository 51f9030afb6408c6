//! Reading the configuration again, without dropping a stream: by SIGHUP, or because an administrator asks at a door.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(feature = "http")]
use std::time::Duration;

#[cfg(any(feature = "dbus", feature = "http"))]
use tokio::sync::watch;

use super::catalog;
use super::config::{Config, Place, Read};
use super::daemon::tell;
#[cfg(feature = "dbus")]
use crate::door::dbus::SessionLimits;
#[cfg(feature = "http")]
use crate::door::http::HttpOptions;
use crate::engine::{Code, Engine, Fault, Mock, Settings};
use crate::os::{cpus, user};

/// What is told the new configuration.
#[derive(Debug)]
pub(super) struct Reloader {
    place: Place,
    /// What `--model` named.
    model: Option<PathBuf>,
    engine: Engine,
    #[cfg(feature = "http")]
    api: watch::Sender<HttpOptions>,
    #[cfg(feature = "dbus")]
    sessions: watch::Sender<SessionLimits>,
    /// That of the start, of which some holds as long as the process.
    start: Arc<Read>,
    /// The one that was read last.
    read: Mutex<Arc<Read>>,
}

impl Reloader {
    /// Of an engine that was started by `read`, from `place`.
    pub(super) fn new(place: Place, read: Arc<Read>, model: Option<PathBuf>, engine: Engine) -> Self {
        #[cfg(feature = "http")]
        let (api, _) = watch::channel(super::api::options(&read.config));
        #[cfg(feature = "dbus")]
        let (sessions, _) = watch::channel(session_limits(&read.config));
        Self {
            place,
            model,
            engine,
            #[cfg(feature = "http")]
            api,
            #[cfg(feature = "dbus")]
            sessions,
            start: read.clone(),
            read: Mutex::new(read),
        }
    }

    /// What the socket's door is to look at.
    #[cfg(feature = "http")]
    pub(super) fn api(&self) -> watch::Receiver<HttpOptions> {
        self.api.subscribe()
    }

    /// What the bus door is to look at.
    #[cfg(feature = "dbus")]
    pub(super) fn sessions(&self) -> watch::Receiver<SessionLimits> {
        self.sessions.subscribe()
    }

    /// After how long without work the daemon ends; `None`: it does not.
    #[cfg(feature = "http")]
    pub(super) fn idle_exit(&self) -> Option<Duration> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.config.daemon.idle_exit_s.0.map(Duration::from_secs)
    }

    /// Reads the files again. What runs goes on; what can only hold from the next start is named in the log.
    ///
    /// # Errors
    /// `invalid_config` with file, line and column: then everything stays as it is.
    pub(super) fn reload(&self) -> Result<(), Fault> {
        let mut states = vec![sd_notify::NotifyState::Reloading];
        states.extend(sd_notify::NotifyState::monotonic_usec_now().ok());
        tell(&states);
        let done = self.place.read();
        let done = done.map(|read| self.take(read)).map_err(|e| {
            log::error!(message_id = "9f6ca81cb633493e84b6df6b0310bc37"; "the old configuration stays: {e}");
            Fault::new(Code::InvalidConfig, e.to_string())
        });
        tell(&[sd_notify::NotifyState::Ready]);
        done
    }

    fn take(&self, new: Read) {
        // One at a time: two that came at once would mix.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        log::set_max_level(new.config.daemon.log_level.filter());
        let settings = settings(&new.config, self.model.as_ref(), self.engine.options().mock.is_some());
        warn_of(&new.config, &settings);
        self.engine.reload(settings);
        #[cfg(feature = "http")]
        self.api.send_replace(super::api::options(&new.config));
        #[cfg(feature = "dbus")]
        self.sessions.send_replace(session_limits(&new.config));
        for (key, when) in read.held_back(&self.start, &new) {
            log::warn!("{key}: the new value holds from {when} on");
        }
        let old = &read.config.models.preload;
        let others = new.config.models.preload.iter().filter(|id| !old.contains(id));
        self.engine.preload(others.map(|id| (id.clone(), true)));
        log::info!(
            message_id = "9f6ca81cb633493e84b6df6b0310bc37";
            "configuration read again from {} files, {} models", new.files.len(), self.engine.models().len()
        );
        *read = Arc::new(new);
    }
}

/// Bounds of sessions on the bus.
#[cfg(feature = "dbus")]
fn session_limits(config: &Config) -> SessionLimits {
    let keys = &config.session;
    SessionLimits { max: keys.max.size(), max_per_uid: keys.max_per_uid.size(), idle_s: keys.idle_s.0 }
}

/// What the engine is told of `config`; a `model` that was named by a flag is the default.
pub(super) fn settings(config: &Config, model: Option<&PathBuf>, mock: bool) -> Settings {
    let mut settings = config.settings();
    if mock {
        settings.models = Mock::models();
        settings.default_model = settings.models.first().map(|model| model.id.clone());
    }
    if let Some(path) = model {
        let model = catalog::file(path);
        settings.models.retain(|m| m.id != model.id);
        settings.default_model = Some(model.id.clone());
        settings.models.push(model);
    }
    settings
}

/// Says in the log what names nothing.
pub(super) fn warn_of(config: &Config, settings: &Settings) {
    warnings(config, settings).iter().for_each(|what| log::warn!("{what}"));
}

/// What names nothing: a start fails by none of it, for a disk may come later.
pub(super) fn warnings(config: &Config, settings: &Settings) -> Vec<String> {
    let models = &config.models;
    let mut all = Vec::new();
    for dir in models.dirs.iter().filter(|dir| !catalog::default_dirs().contains(dir) && !dir.is_dir()) {
        all.push(format!("models.dirs: {}: no such folder", dir.display()));
    }
    let unknown = |id: &&String| settings.models.iter().all(|m| m.id != **id);
    let no_name = |id: &&String| unknown(id) && !models.aliases.contains_key(*id);
    for id in models.preload.iter().filter(no_name) {
        all.push(format!("models.preload: {id:?}: no such model in models.dirs"));
    }
    if let Some(id) = settings.default_model.as_ref().filter(unknown) {
        all.push(format!("models.default = {id:?}: no such model in models.dirs"));
    }
    for (alias, id) in models.aliases.iter().filter(|(_, id)| unknown(id)) {
        let what = match models.aliases.contains_key(id) {
            true => "an alias stands for a model, not for another alias",
            false => "no such model in models.dirs",
        };
        all.push(format!("models.aliases: {alias:?} = {id:?}: {what}"));
    }
    let names_one = |name: &str| settings.models.iter().any(|m| m.id == name);
    for alias in models.aliases.keys().filter(|alias| names_one(alias)) {
        all.push(format!("models.aliases: {alias:?}: a model has that name, so the alias is never used"));
    }
    if names_one("default") && settings.default_model.as_ref().is_some_and(|id| id != "default") {
        all.push("models.default: a model is named \"default\", and answers who asks for that name".into());
    }
    for id in config.model.keys().filter(unknown) {
        let what = match models.aliases.contains_key(id) {
            true => "a table is a model's, by its own name, not by an alias",
            false => "no such model in models.dirs",
        };
        all.push(format!("model.{id:?}: {what}"));
    }
    for group in config.daemon.admin_groups.iter().filter(|group| user::group_id(group).is_none()) {
        all.push(format!("daemon.admin_groups: {group:?}: no such group"));
    }
    let cpus = config.engine.cpus.list();
    if !cpus.is_empty() && cpus::allowed(&cpus).iter().all(|cpu| !cpus.contains(cpu)) {
        all.push(format!("engine.cpus: none of {cpus:?} can be used, threads run where they may"));
    }
    all
}
