//! `sottod`: reads the configuration, starts the engine, opens the doors, says READY, and waits for signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;
#[cfg(feature = "dbus")]
use tokio::time::timeout;

#[cfg(feature = "http")]
use super::api::{self, Api};
#[cfg(feature = "dbus")]
use super::config::{BusName, Enable};
use super::config::{Config, Place};
#[cfg(feature = "http")]
use super::idle::Idle;
use super::reload::{self, Reloader};
use super::{EXIT_INTERNAL, EXIT_USAGE, journal};
#[cfg(feature = "dbus")]
#[cfg(feature = "dbus")]
use crate::door::dbus::{self, Bus, DbusDoor, DbusOptions, LogTarget, Reload};
#[cfg(feature = "http")]
use crate::door::http;
#[cfg(feature = "http")]
use crate::engine::ModelState;
use crate::engine::{Engine, Fault};
use crate::os;

/// Longest wait for running generations after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Longest wait for their last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// Longest absence of a bus that this daemon was on.
#[cfg(feature = "dbus")]
const BUS_BACK: Duration = Duration::from_secs(5);
/// Pause between two tries to get back.
#[cfg(feature = "dbus")]
const BUS_PAUSE: Duration = Duration::from_millis(250);
/// How often the engine and the machine are looked at while there is work.
const LOOK: Duration = Duration::from_secs(1);
/// The same at rest, and the time between two signs of life to systemd: a daemon at rest wakes for nothing else.
const SIGN: Duration = Duration::from_secs(10);

/// Runs a language model as a system service: answers over D-Bus and a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "sottod", version)]
struct Args {
    /// Configuration file, and FILE.d with more; without it /etc/sotto/sotto.toml and its folders, or the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Model file to load after the start and to answer with by default
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Answer without a model, with what is known beforehand, to test clients: tokens_per_s=N, prefill_tokens_per_s=N,
    /// load_ms=N, fail=CODE@N, fail_after=N, separated by commas
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, default_missing_value = "", conflicts_with = "model")]
    mock: Option<String>,
    /// Socket to listen on, instead of the configured one
    #[cfg(feature = "http")]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Bus to serve on
    #[cfg(feature = "dbus")]
    #[arg(long, value_name = "BUS", value_parser = ["system", "session", "none"])]
    bus: Option<String>,
}

/// Why the daemon does not start or go on, with its exit code.
pub(super) struct Stop(u8, String);

impl Stop {
    pub(super) fn usage(message: impl std::fmt::Display) -> Self {
        Self(EXIT_USAGE, message.to_string())
    }

    fn internal(message: impl std::fmt::Display) -> Self {
        Self(EXIT_INTERNAL, message.to_string())
    }
}

/// The definition of all flags, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the daemon until a signal; returns the exit code.
#[must_use]
pub fn run() -> u8 {
    if let Some(code) = super::as_renderer() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are no errors; clap picks the stream.
            drop(e.print());
            return if e.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    journal::install(log::LevelFilter::Info);
    match start(&args) {
        Ok(()) => 0,
        Err(Stop(code, message)) => {
            log::error!("{message}");
            code
        }
    }
}

fn start(args: &Args) -> Result<(), Stop> {
    // What callers say is in memory.
    os::memory::keep_little();
    if let Err(e) = os::process::forbid_dumps() {
        log::warn!("an image of this process's memory may be written when it dies: {e}");
    }
    let place = Place::new(args.config.as_deref());
    let read = Arc::new(place.read().map_err(Stop::usage)?);
    let config = &read.config;
    log::set_max_level(config.daemon.log_level.filter());
    let kernels = super::kernels().map_err(Stop::usage)?;
    if config.engine.nice.0 > 0
        && let Err(e) = os::thread::set_nice(config.engine.nice.0 as i32)
    {
        log::warn!("engine.nice = {}: {e}", config.engine.nice.0);
    }
    let mut options = config.options();
    options.renderer = Some(super::RENDERER.into());
    // systemd tells each of its services what to call this run of it (systemd.exec(5)).
    options.helper = super::helper(std::env::var_os("INVOCATION_ID").is_some());
    if let Some(path) = args.model.as_ref().filter(|path| !path.exists()) {
        return Err(Stop::usage(format!("--model {}: no such file; name a .gguf file", path.display())));
    }
    let settings = reload::settings(config, args.model.as_ref(), args.mock.is_some());
    reload::warn_of(config, &settings);
    let pinned = config.models.preload.iter().map(|id| (id.clone(), true));
    let first = settings.default_model.clone().filter(|_| args.model.is_some());
    let first = first.map(|id| (id.clone(), config.models.preload.contains(&id)));
    let preload: Vec<(String, bool)> = first.into_iter().chain(pinned).collect();
    if let Some(behaviour) = &args.mock {
        let mock = behaviour.parse().map_err(|f: Fault| Stop::usage(format!("--mock: {}", f.message)))?;
        options.mock = Some(mock);
        log::warn!("--mock: there is no model, answers repeat what was asked");
    }
    let engine = Engine::start(kernels, options, settings)
        .map_err(|f| Stop::internal(format_args!("the engine does not start: {}", f.message)))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Stop::internal)?;
    let reloader = Arc::new(Reloader::new(place, read.clone(), args.model.clone(), engine.clone()));
    runtime.block_on(serve(args, config, engine, &reloader, preload))
}

async fn serve(
    args: &Args,
    config: &Config,
    engine: Engine,
    reloader: &Arc<Reloader>,
    preload: Vec<(String, bool)>,
) -> Result<(), Stop> {
    // Before anybody is told that there is somebody to signal.
    let signals =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hang_up)) = signals else {
        return Err(Stop::internal("signals cannot be watched"));
    };
    #[cfg(feature = "http")]
    let (closing, _) = tokio::sync::watch::channel(false);
    #[cfg(feature = "http")]
    let api = api::open(args.socket.as_deref(), config, &engine, reloader.api(), closing.subscribe())?;
    #[cfg(feature = "dbus")]
    let mut bus = connect_bus(args, config, &engine, reloader).await?;
    #[cfg(feature = "dbus")]
    engine.metrics().set_bus(bus.is_some());
    tell(&[sd_notify::NotifyState::Ready]);
    log::info!(
        message_id = "af0d7c654813478785adc4676c3c6cc9";
        "ready, kernels {}, {} threads, {} models", engine.tier(), engine.threads(), engine.models().len()
    );
    // The start is over, and may have been the last thing to do for long.
    os::process::let_go_of_code();
    engine.preload(preload);

    let stirs = Arc::new(Notify::new());
    let stirred = stirs.clone();
    engine.on_stir(move || {
        stirs.notify_one();
        true
    });
    let timer =
        os::timer::Timer::new().map_err(|e| Stop::internal(format_args!("no timer can be had: {e}")))?;
    let (mut next_look, mut next_sign) = (Instant::now() + LOOK, Instant::now() + SIGN);
    #[cfg(feature = "http")]
    let mut quiet = Idle::new(Instant::now());
    let verdict = loop {
        #[cfg(feature = "dbus")]
        let lost = async {
            match &bus {
                Some(door) => door.closed().await,
                None => std::future::pending().await,
            }
        };
        #[cfg(not(feature = "dbus"))]
        let lost = std::future::pending::<()>();
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            // Whoever sends the signal reads the log.
            _ = hang_up.recv() => drop(reloader.reload()),
            () = lost => {
                log::warn!(message_id = "8fc5b0b8da3f41adb70fdfedf73cc03d"; "the bus is lost");
                #[cfg(feature = "dbus")]
                {
                    drop(bus.take());
                    engine.metrics().set_bus(false);
                    // A machine that goes down stops the bus, too.
                    let back = tokio::select! {
                        _ = terminate.recv() => break Ok(()),
                        _ = interrupt.recv() => break Ok(()),
                        back = timeout(BUS_BACK, reconnect(args, config, &engine, reloader)) => back,
                    };
                    match back {
                        Ok(door) => bus = door,
                        Err(_) => break Err(Stop::internal("the bus did not come back within 5 s; restarting")),
                    }
                    engine.metrics().set_bus(true);
                    log::info!(message_id = "8fc5b0b8da3f41adb70fdfedf73cc03d"; "the bus is back");
                }
            }
            () = stirred.notified() => next_look = next_look.min(Instant::now() + LOOK),
            over = timer.wait(next_look.saturating_duration_since(Instant::now())) => {
                if let Err(e) = over {
                    break Err(Stop::internal(format_args!("the timer fails: {e}")));
                }
                if engine.died() {
                    break Err(Stop::internal("the engine stopped; restarting"));
                }
                engine.look_at_machine();
                // Each look counts: what has not moved is known by when it last had.
                let moves = engine.moves();
                #[cfg(all(feature = "dbus", feature = "http"))]
                let n_open = http::n_connections(&closing) + bus.as_ref().map_or(0, DbusDoor::n_open);
                #[cfg(all(not(feature = "dbus"), feature = "http"))]
                let n_open = http::n_connections(&closing);
                // Nothing is waited for between the look at the socket and the word to its door: who connects after it is the
                // next process's.
                #[cfg(feature = "http")]
                if quiet.is_due(
                    Instant::now(),
                    reloader.idle_exit(),
                    n_open == 0 && idle(&engine) && !stays(&engine),
                    engine.layers_begun(),
                ) && api.as_ref().is_some_and(Api::may_end)
                {
                    // Who calls on the bus from now on is the next process's, too; who did before is answered.
                    #[cfg(feature = "dbus")]
                    let nobody = match &bus {
                        Some(door) => door.let_go().await,
                        None => true,
                    };
                    #[cfg(not(feature = "dbus"))]
                    let nobody = true;
                    if nobody && http::n_connections(&closing) == 0 && idle(&engine) && api.as_ref().is_some_and(Api::may_end) {
                        let _ = closing.send(true);
                        log::info!("nobody asks any more");
                        break Ok(());
                    }
                    #[cfg(feature = "dbus")]
                    if let Some(door) = &bus
                        && let Err(e) = door.take_name().await
                    {
                        break Err(Stop::internal(format_args!("the name on the bus is lost: {e}")));
                    }
                }
                let now = Instant::now();
                if now >= next_sign {
                    tell_state(&engine, moves);
                    next_sign = now + SIGN;
                    if engine.rests() {
                        os::memory::trim();
                    }
                }
                next_look = if engine.rests() { next_sign } else { next_sign.min(now + LOOK) };
                #[cfg(feature = "http")]
                if let Some(due) = reloader.idle_exit().map(|after| quiet.due(after)) {
                    next_look = next_look.min(due.max(now + LOOK));
                }
            }
        }
    };
    log::info!(message_id = "438b59c4b17640a29d53505535681164"; "shutting down");
    tell(&[sd_notify::NotifyState::Stopping]);
    engine.shut_down();
    #[cfg(feature = "dbus")]
    if let Some(door) = &bus {
        door.drain().await;
    }
    // Running answers may end by themselves for a while, the rest is cancelled.
    let until = Instant::now() + GRACE;
    while verdict.is_ok() && !idle(&engine) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.cancel_all();
    #[cfg(feature = "http")]
    let _ = closing.send(true);
    let until = Instant::now() + LAST_EVENTS;
    while verdict.is_ok() && !idle(&engine) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    #[cfg(feature = "dbus")]
    if let Some(door) = bus {
        drop(timeout(LAST_EVENTS, door.finish()).await);
    }
    #[cfg(feature = "http")]
    if let Some(api) = api {
        api.finish(LAST_EVENTS).await;
    }
    verdict
}

fn idle(engine: &Engine) -> bool {
    let status = engine.status();
    status.queue_length == 0 && status.active_generations == 0
}

/// What is pinned is to stay in memory, and what is being loaded may come to be pinned.
#[cfg(feature = "http")]
fn stays(engine: &Engine) -> bool {
    engine.models().iter().any(|model| model.pinned || model.state == ModelState::Loading)
}

/// Tells systemd that there is progress; silence lets its watchdog act.
fn tell_state(engine: &Engine, moves: bool) {
    if moves {
        let s = engine.status();
        let mut status = format!("{} running, {} waiting", s.active_generations, s.queue_length);
        if s.rest > 0 {
            status += &format!(", hot: rests {} % of the time", s.rest.div_ceil(10));
        }
        if s.memory_short {
            status += ", memory is short";
        }
        tell(&[sd_notify::NotifyState::Watchdog, sd_notify::NotifyState::Status(&status)]);
    } else {
        log::error!(message_id = "1529647529a04856a2900a2d39097ba5"; "the engine has made no progress; systemd's watchdog is not fed");
    }
}

/// Without systemd there is nobody to tell.
pub(super) fn tell(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::warn!("systemd cannot be told: {e}");
    }
}

/// Tries to get back on the bus until it is there.
#[cfg(feature = "dbus")]
async fn reconnect(
    args: &Args,
    config: &Config,
    engine: &Engine,
    reloader: &Arc<Reloader>,
) -> Option<DbusDoor> {
    loop {
        tokio::time::sleep(BUS_PAUSE).await;
        if let Ok(Some(door)) = connect_bus(args, config, engine, reloader).await {
            return Some(door);
        }
    }
}

/// On the bus that was asked for; `None` where none was, or where there is none and that is allowed.
#[cfg(feature = "dbus")]
async fn connect_bus(
    args: &Args,
    config: &Config,
    engine: &Engine,
    reloader: &Arc<Reloader>,
) -> Result<Option<DbusDoor>, Stop> {
    let asked = args.bus.as_deref();
    let (bus, must) = match (asked, config.dbus.enable, config.dbus.bus) {
        (Some("none"), ..) | (None, Enable::No, _) => return Ok(None),
        (Some("session"), ..) => (Bus::Session, true),
        (Some(_), ..) => (Bus::System, true),
        (None, enable, BusName::Session) => (Bus::Session, enable == Enable::Yes),
        (None, enable, BusName::System) => (Bus::System, enable == Enable::Yes),
    };
    let reloads = reloader.clone();
    let options = DbusOptions {
        sessions: reloader.sessions(),
        reload: Some(Reload(Arc::new(move || reloads.reload()))),
        log_target: Some(LogTarget { get: journal::target, set: journal::set_target }),
        ..DbusOptions::default()
    };
    match dbus::serve(engine.clone(), bus, options).await {
        Ok(door) => Ok(Some(door)),
        Err(e) if must => Err(Stop::usage(e)),
        Err(e) => {
            log::warn!("{e}; going on without (dbus.enable = \"auto\")");
            Ok(None)
        }
    }
}
