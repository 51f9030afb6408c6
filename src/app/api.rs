//! The socket of the daemon: passed by systemd or bound here, served until the daemon goes down.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::config::Config;
use super::daemon::Stop;
use crate::door::http::{self, HttpOptions};
use crate::engine::Engine;
use crate::os;

/// The door being served.
pub(super) struct Api {
    task: JoinHandle<()>,
    /// Where the socket is ours to remove.
    _own: Option<Own>,
    /// The socket, where systemd passed it: it outlives this process.
    passed: Passed,
}

/// Opens the door unless the configuration leaves it out.
///
/// # Errors
/// When the socket cannot be had.
pub(super) fn open(
    socket: Option<&Path>,
    config: &Config,
    engine: &Engine,
    options: watch::Receiver<HttpOptions>,
    closed: watch::Receiver<bool>,
) -> Result<Option<Api>, Stop> {
    if !config.api.enable {
        return Ok(None);
    }
    let (listener, own, passed) = listen(socket, config)?;
    let own = own.map(|path| Own { bound: os::socket::named(&path), path });
    let task = tokio::spawn(http::serve(engine.clone(), listener, options, closed));
    Ok(Some(Api { task, _own: own, passed }))
}

impl Api {
    /// Whether this process may end without anybody's notice: systemd holds the socket, and nobody has connected to it who
    /// was not taken yet.
    pub(super) fn may_end(&self) -> bool {
        self.passed.as_ref().is_some_and(|listener| !os::socket::is_waited_for(listener))
    }

    /// Waits for the last events of a door that was told to close, at most `longest`.
    pub(super) async fn finish(self, longest: Duration) {
        drop(timeout(longest, self.task).await);
    }
}

/// A socket that this process bound. It goes with this, also where the daemon does not come to serve it.
struct Own {
    path: PathBuf,
    /// The file that the path named then.
    bound: Option<(u64, u64)>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // Another process may have it by now.
        if os::socket::named(&self.path) == self.bound {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// What the door keeps to.
pub(super) fn options(config: &Config) -> HttpOptions {
    let api = &config.api;
    HttpOptions {
        max_body_kib: api.max_body_kib.size(),
        max_header_kib: api.max_header_kib.size(),
        max_connections: api.max_connections.size(),
        max_connections_per_uid: api.max_connections_per_uid.size(),
        header_timeout_s: api.header_timeout_s.0,
        idle_timeout_s: api.idle_timeout_s.0,
        keepalive_s: api.keepalive_s.0,
        lenient: api.lenient,
        metrics: api.metrics,
    }
}

type Passed = Option<std::os::unix::net::UnixListener>;

/// The socket that systemd passed, once more by itself, or one of our own; with its path where it is ours to remove.
fn listen(socket: Option<&Path>, config: &Config) -> Result<(UnixListener, Option<PathBuf>, Passed), Stop> {
    let passed = is_passed().then(|| os::socket::passed_listener("api"));
    let passed = passed
        .transpose()
        .map_err(|e| Stop::usage(format!("the socket that systemd passed cannot be used: {e}")))?
        .flatten();
    if let Some(listener) = passed {
        if let Some(path) = socket {
            log::warn!("--socket {} has no effect: systemd passed a socket", path.display());
        }
        let passed = listener.try_clone().map_err(Stop::usage)?;
        return Ok((UnixListener::from_std(listener).map_err(Stop::usage)?, None, Some(passed)));
    }
    let path = socket.unwrap_or(&config.api.socket);
    let listener = bind(path, config)?;
    Ok((UnixListener::from_std(listener).map_err(Stop::usage)?, Some(path.to_owned()), None))
}

/// Whether sockets were passed to this process, and not to one that started it (sd_listen_fds(3)).
#[expect(clippy::disallowed_methods, reason = "it is said in the environment")]
fn is_passed() -> bool {
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

fn bind(path: &Path, config: &Config) -> Result<std::os::unix::net::UnixListener, Stop> {
    let (listener, group) = os::socket::bind(path, config.api.mode.0, &config.api.group)
        .map_err(|e| Stop::usage(format!("socket {}: {e}; name another by --socket", path.display())))?;
    if !group {
        log::warn!(
            "socket {}: group {} is absent or not ours, it belongs to the starter's group",
            path.display(),
            config.api.group
        );
    }
    Ok(listener)
}
