//! What the tests of the programs share: temporary folders, running `sotto` and `sottod`, a small HTTP client, model
//! files.
#![allow(dead_code, reason = "every test binary uses a part of it")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

pub(crate) mod gguf;
pub(crate) mod golden;
pub(crate) mod http;
pub(crate) mod pty;

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
#[cfg(feature = "http")]
use sotto::door::http::{HttpOptions, serve};
#[cfg(feature = "http")]
use sotto::engine::{Engine, ModelFile, Options, Settings, Status};
use sotto::os::clock;

/// How long anything may take before a test gives up on it: a busy machine is slow, a stuck one never ends.
const PATIENCE_US: u64 = 60_000_000;

/// No packed models are kept: tests leave nothing in the folders of whoever runs them.
pub(crate) const NO_CACHE: (&str, &str) = ("CACHE_DIRECTORY", "/dev/null");

/// What `look` gives as soon as it gives something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = clock::now_us() + PATIENCE_US;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now_us() < give_up, "waited {} s for {what}", PATIENCE_US / 1_000_000);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A temporary folder of this test alone, removed with everything in it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sotto-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The small trained model that the tests generate with; it has a context of 512 and no chat template.
pub(crate) fn stories() -> PathBuf {
    fixture("stories260k/stories260K-q8_0.gguf")
}

/// A file of the full set of fixtures beside the checkout, where there is one.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name)).filter(|path| path.exists())
}

/// The command line with its arguments, nothing on its input, and no setting of this process's.
pub(crate) fn sotto(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sotto"));
    command.args(args).env_remove("SOTTO_MODEL").stdin(Stdio::null());
    command.envs([NO_CACHE]);
    command
}

/// Runs the command line to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    sotto(args).output().expect("sotto starts")
}

/// What was written to stdout, as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

/// What was written to stderr, as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether `program` is there; says what is skipped where it is not.
pub(crate) fn have(program: &str, what: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: {what}; {program} is not installed");
    }
    found.is_ok()
}

/// A bus for this test alone, and its address. Its socket is in no folder: every user of the machine may connect.
pub(crate) fn bus(folder: &Folder) -> (Running, String) {
    let name = folder.0.file_name().and_then(OsStr::to_str).expect("a name of ours");
    let address = format!("unix:abstract={name}");
    let config = format!(
        "<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow send_destination=\"*\"/>\
         <allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>\n"
    );
    let config = folder.write("bus.conf", config);
    let child = Command::new("dbus-daemon")
        .arg("--nofork")
        .arg(format!("--config-file={}", config.display()))
        .stdin(Stdio::null())
        .spawn()
        .expect("dbus-daemon starts");
    let bus = Running(child);
    let socket = SocketAddr::from_abstract_name(name).expect("a short name");
    until("the bus", || UnixStream::connect_addr(&socket).ok());
    (bus, address)
}

/// A program that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the process is ours and not waited for");
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self, what: &str) -> ExitStatus {
        until(what, || self.0.try_wait().expect("the process is ours"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon of this test alone, on a socket in the test's folder.
pub(crate) struct Daemon {
    pub(crate) process: Running,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts `sottod` with `model`; `config` is what its configuration says besides version and
    /// folders, and threads where it names none.
    pub(crate) fn start(folder: &Folder, model: &Path, config: &str) -> Self {
        Self::start_on(folder, Some(model), config, None)
    }

    /// One without a model, that behaves as `behaviour` says, on the bus at `address` if there is one.
    pub(crate) fn mock(folder: &Folder, behaviour: &str, config: &str, address: Option<&str>) -> Self {
        Self::start_with(folder, &["--mock".as_ref(), behaviour.as_ref()], config, address)
    }

    /// The same on the bus at `address`, with a model or without.
    pub(crate) fn start_on(
        folder: &Folder,
        model: Option<&Path>,
        config: &str,
        address: Option<&str>,
    ) -> Self {
        let arguments = model.map(|model| ["--model".as_ref(), model.as_os_str()]);
        Self::start_with(folder, arguments.as_ref().map_or(&[], |arguments| arguments), config, address)
    }

    fn start_with(folder: &Folder, arguments: &[&OsStr], config: &str, address: Option<&str>) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_sottod"));
        Self::start_program(program, folder, arguments, config, address)
    }

    /// Starts a copy of `sottod`, which finds its helpers beside itself.
    pub(crate) fn start_program(
        program: &Path,
        folder: &Folder,
        arguments: &[&OsStr],
        config: &str,
        address: Option<&str>,
    ) -> Self {
        let folders = if config.contains("[models]") { "" } else { "[models]\ndirs = []\n" };
        let threads = if config.contains("threads = ") { "" } else { "threads = 1\n" };
        let file = folder.write(
            "sotto.toml",
            format!("version = 1\n{folders}[engine]\n{threads}nice = 0\ncontext = 16384\n{config}"),
        );
        let (socket, log) = (folder.join("api.sock"), folder.join("log"));
        let mut command = Command::new(program);
        command.arg("--config").arg(file).arg("--socket").arg(&socket);
        command.env("CACHE_DIRECTORY", folder.join("cache"));
        command.args(arguments);
        match address {
            Some(address) => command.args(["--bus", "session"]).env("DBUS_SESSION_BUS_ADDRESS", address),
            None => command.args(["--bus", "none"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).expect("the folder takes a log"));
        let mut daemon = Self { process: Running(command.spawn().expect("sottod starts")), socket, log };
        daemon.logged("ready, kernels");
        daemon
    }

    /// All it has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("the log is there")).into_owned()
    }

    /// The line of its log that holds `words`, once it is there.
    pub(crate) fn logged(&mut self, words: &str) -> String {
        until(&format!("{words:?} in the log"), || {
            let ended = self.process.0.try_wait().expect("the process is ours");
            let log = self.log();
            let found = log.split_inclusive('\n').find(|line| line.ends_with('\n') && line.contains(words));
            assert!(found.is_some() || ended.is_none(), "no {words:?}, sottod ended with {ended:?}:\n{log}");
            found.map(str::to_owned)
        })
    }

    /// The last line about the generation whose prompt has `n_prompt` tokens.
    pub(crate) fn ending(&mut self, n_prompt: usize) -> Ending {
        Ending::of(&self.logged(&format!(": {n_prompt} prompt tokens (")))
    }

    /// A number of `/proc/PID/status`, in KiB.
    pub(crate) fn memory_kib(&self, key: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel counts it");
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().expect("a number")
    }

    /// Counts its peak of memory from now on.
    pub(crate) fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.process.pid()), "5").expect("it is ours");
    }
}

/// A door of HTTP in this process, on a socket in a folder of its own; closed when dropped.
#[cfg(feature = "http")]
pub(crate) struct Inside {
    pub(crate) socket: PathBuf,
    pub(crate) engine: Engine,
    closing: tokio::sync::watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Removed after the door was closed.
    _folder: Folder,
}

#[cfg(feature = "http")]
impl Inside {
    pub(crate) fn start(engine: Engine, options: HttpOptions) -> Self {
        let folder = Folder::new();
        let socket = folder.join("inside.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("the folder takes a socket");
        listener.set_nonblocking(true).expect("a socket can be");
        let (closing, closed) = tokio::sync::watch::channel(false);
        let door = engine.clone();
        // Nobody changes them.
        let (_, options) = tokio::sync::watch::channel(options);
        let thread = sotto::os::thread::start("door", move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("it listens");
                serve(door, listener, options, closed).await;
            });
        });
        Self { socket, engine, closing, thread: Some(thread.expect("a thread")), _folder: folder }
    }

    /// Waits until the engine has nothing under way.
    pub(crate) fn rests(&self) {
        until("an engine at rest", || (self.engine.status() == Status::default()).then_some(()));
    }

    /// Hangs up and counts the layers that begin until the engine rests.
    pub(crate) fn layers_after_the_close(&self, call: http::Call) -> u64 {
        let before = self.engine.layers_begun();
        drop(call);
        self.rests();
        self.engine.layers_begun() - before
    }
}

#[cfg(feature = "http")]
impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.closing.send(true);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// An engine in this process with one model.
#[cfg(feature = "http")]
pub(crate) fn engine(path: PathBuf, threads: usize, n_ctx: usize) -> Engine {
    let models = vec![ModelFile { id: "inside".into(), path }];
    let options = Options { threads, n_ctx, ..Options::default() };
    let settings = Settings { models, ..Settings::default() };
    Engine::start(sotto::kernel::select(None).expect("a tier"), options, settings).expect("the engine starts")
}

/// How a generation ended, by the journal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Finish reason or code.
    pub(crate) word: String,
    pub(crate) n_read: usize,
    pub(crate) n_generated: usize,
}

impl Ending {
    /// Of a line `… failed, cancelled: 8 prompt tokens (8 read), 3 generated`.
    fn of(line: &str) -> Self {
        let (head, counts) = line.split_once(" prompt tokens (").expect("counts");
        let word = head.rsplit_once(':').and_then(|(head, _)| head.rsplit_once(", ")).expect("a word").1;
        let number = |text: &str| text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        let generated = counts.split_once("read), ").expect("two counts").1;
        Self { word: word.into(), n_read: number(counts), n_generated: number(generated) }
    }
}
