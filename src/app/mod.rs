//! Layer 7: the programs. `sottod` is [`daemon`], `sotto` is [`cli`]; the binaries only map their exit codes.

#[cfg(feature = "http")]
mod api;
mod catalog;
pub mod cli;
#[cfg(any(feature = "dbus", feature = "http"))]
mod config;
#[cfg(any(feature = "dbus", feature = "http"))]
pub mod daemon;
#[cfg(feature = "http")]
mod idle;
#[cfg(any(feature = "dbus", feature = "http"))]
mod journal;
#[cfg(any(feature = "dbus", feature = "http"))]
mod reload;

use std::path::PathBuf;

use crate::engine::{Code, Family};
use crate::kernel::{self, Kernels, Tier, TierError};
use crate::model::Cache;
use crate::side::graph::{self, Helper};
use crate::side::render;

/// Usage or environment is wrong; systemd does not restart on it.
pub const EXIT_USAGE: u8 = 2;
/// Our fault.
pub const EXIT_INTERNAL: u8 = 70;

/// This program, as a child's path: it renders chat templates for its parent.
const RENDERER: &str = "/proc/self/exe";

/// The socket of the service that runs ONNX graphs.
const HELPER_SOCKET: &str = "/run/sotto/onnx.sock";
/// Where packages put programs that are not called by people.
const LIBEXEC: &str = "/usr/libexec/sotto";

/// Serves as the renderer of a parent if the only argument asks for it; the exit code then.
fn as_renderer() -> Option<u8> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == render::ARGUMENT && arguments.next().is_none())
        .then(|| render::serve().map_or(EXIT_INTERNAL, |()| 0))
}

/// The kernels that `SOTTO_CPU` asks for, or the best of this machine.
fn kernels() -> Result<&'static Kernels, TierError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads SOTTO_CPU (API text, section 6)")]
    let asked = match std::env::var("SOTTO_CPU") {
        Ok(name) if !name.is_empty() => Some(Tier::from_name(&name)?),
        _ => None,
    };
    kernel::select(asked)
}

/// An absolute path in the environment; systemd's may be a list, of which the first counts.
fn folder(name: &str) -> Option<PathBuf> {
    let list = std::env::var_os(name)?;
    std::env::split_paths(&list).next().filter(|path| path.is_absolute())
}

/// Where the program is that runs ONNX graphs: beside this one, or where packages put it. A `service` asks its own
/// service for one instead, which has neither its memory nor its rights.
fn helper(service: bool) -> Helper {
    let socket = service.then(|| PathBuf::from(HELPER_SOCKET));
    let beside =
        std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join(graph::PROGRAM)));
    let installed = PathBuf::from(LIBEXEC).join(graph::PROGRAM);
    let programs = beside.into_iter().chain([installed]).filter(|_| !service);
    Helper { socket, programs: programs.collect() }
}

/// The cache of packed models, of at most so many GiB: in the service's own directory, or in the user's (XDG Base
/// Directory Specification, 0.8).
fn cache(gib: u64) -> Option<Cache> {
    let user = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    let dir = folder("CACHE_DIRECTORY").or_else(|| Some(user()?.join("sotto")))?;
    Some(Cache { dir: dir.join("packed"), bytes_max: gib << 30 })
}

/// The exit code that belongs to a fault.
fn exit_code(code: Code) -> u8 {
    if code.family() == Family::Internal { EXIT_INTERNAL } else { EXIT_USAGE }
}
