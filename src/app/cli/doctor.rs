//! What is amiss on this machine, with a remedy for each thing. It looks and changes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::show::{self, size};
use super::{Failure, SocketArgs};
use crate::app::HELPER_SOCKET;
use crate::app::catalog;
use crate::app::config::{Config, Enable, PackName, Place};
use crate::door::client::ClientError;
use crate::format::hf::onnx;
use crate::model::summary::Summary;
use crate::os::memory::Memory;
use crate::os::tree::Tree;
use crate::os::{thermal, thread};

/// Where processors begin to slow down.
const WARM_C: f64 = 80.0;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Configuration file of the daemon; without it /etc/sotto/sotto.toml, or the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Fine,
    /// It works, and there is something to know.
    Note,
    Wrong,
}

impl How {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// What was looked at, how it is, and what helps.
#[derive(Debug, PartialEq)]
struct Found {
    what: &'static str,
    how: How,
    said: String,
    remedy: Option<String>,
}

fn found(what: &'static str, how: How, said: impl Into<String>) -> Found {
    Found { what, how, said: said.into(), remedy: None }
}

impl Found {
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Looks at everything and prints it; a failure with exit code 1 where something is wrong.
pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let machine = Machine { root: "/".into() };
    let mut all = vec![processor()];
    let config = match Place::new(args.config.as_deref()).read() {
        Ok(read) => {
            all.push(found("configuration", How::Fine, "is read without an error"));
            read.config
        }
        Err(e) => {
            let remedy = "mend that line; until then what follows is about the defaults";
            all.push(found("configuration", How::Wrong, e.to_string()).remedy(remedy));
            Config::default()
        }
    };
    all.extend(daemon(args)?);
    all.extend(models(&config));
    all.extend([
        machine.cache(&config),
        machine.bus(config.dbus.enable),
        machine.unit(),
        machine.graphs(),
        machine.swap(),
        machine.governor(),
        heat(thermal::temperature_c(&Tree::default())),
    ]);
    print(&all, args.json)?;
    match all.iter().filter(|f| f.how == How::Wrong).count() {
        0 => Ok(()),
        n => Err(Failure::new(1, format!("{n} of {} things are wrong", all.len()))),
    }
}

fn print(all: &[Found], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let one =
            |f: &Found| json!({ "what": f.what, "how": f.how.as_str(), "said": f.said, "remedy": f.remedy });
        return show::json(&json!({ "found": all.iter().map(one).collect::<Vec<_>>() }));
    }
    let mut text = String::new();
    for f in all {
        text += &format!("{:<7}{:<14}{}\n", f.how.as_str(), f.what, f.said.replace('\n', " "));
        if let Some(remedy) = &f.remedy {
            text += &format!("{:21}{}\n", "", remedy.replace('\n', " "));
        }
    }
    show::out(&show::plain(&text))
}

fn processor() -> Found {
    let kernels = match crate::app::kernels() {
        Ok(kernels) => kernels,
        Err(e) => return found("processor", How::Wrong, e.to_string()).remedy("unset SOTTO_CPU"),
    };
    let tier = kernels.tier().name();
    match tier {
        "scalar" => found("processor", How::Note, "kernels scalar: no vector instructions that sotto knows")
            .remedy("expect a tenth of the speed; x86-64 wants AVX2, FMA and F16C, Arm NEON"),
        "neon" | "dotprod" | "i8mm" => {
            found("processor", How::Note, format!("kernels {tier}; they have run in emulation alone"))
                .remedy("should answers look odd, compare with SOTTO_CPU=scalar, and report what differs")
        }
        _ => found("processor", How::Fine, format!("kernels {tier}")),
    }
}

/// The socket, and who answers on it.
fn daemon(args: &DoctorArgs) -> Result<Vec<Found>, Failure> {
    let path = args.socket.path();
    let (client, runtime) = args.socket.client()?;
    let status = match runtime.block_on(client.get("/sotto/v1/status")) {
        Ok(status) => status,
        Err(ClientError::Connect { source, .. }) => return Ok(vec![unreachable(path, &source)]),
        Err(e) => {
            return Ok(vec![
                found("socket", How::Fine, path.display().to_string()),
                found("daemon", How::Wrong, e.to_string()).remedy("read journalctl -u sottod"),
            ]);
        }
    };
    Ok(vec![found("socket", How::Fine, path.display().to_string()), health(&status)])
}

fn unreachable(path: &Path, e: &std::io::Error) -> Found {
    let shown = path.display();
    let wrong = found("socket", How::Wrong, format!("{shown}: {e}"));
    match e.kind() {
        std::io::ErrorKind::NotFound => wrong.remedy(
            "nobody made it: systemctl enable --now sottod.socket, or start sottod, or name it by --socket",
        ),
        std::io::ErrorKind::PermissionDenied => {
            wrong.remedy("only root and group sotto may: sudo usermod -aG sotto YOU, then log in again")
        }
        std::io::ErrorKind::ConnectionRefused => {
            wrong.remedy("nobody listens any more: systemctl restart sottod.socket sottod")
        }
        _ => wrong.remedy("give the path of sottod's socket by --socket"),
    }
}

fn health(status: &Value) -> Found {
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
    let said = format!("sottod {}, {} {}", text("version"), text("state"), text("state_reason"));
    let said = said.trim_end().to_owned();
    match (text("state"), text("version")) {
        ("ready", env!("CARGO_PKG_VERSION")) => found("daemon", How::Fine, said),
        ("ready", _) => {
            let remedy = format!("sotto is {}: restart sottod after an update", env!("CARGO_PKG_VERSION"));
            found("daemon", How::Note, said).remedy(remedy)
        }
        _ => found("daemon", How::Wrong, said)
            .remedy("read journalctl -u sottod, then systemctl restart sottod"),
    }
}

/// Longest wait for a model's file.
const PATIENCE: Duration = Duration::from_secs(3);

/// The models of the configured folders.
fn models(config: &Config) -> Vec<Found> {
    let dirs = config.models.dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
    let files = catalog::scan(&config.models.dirs);
    if files.is_empty() {
        let said = format!("none in {dirs}");
        let remedy = "put a .gguf file there, or start sottod with --model FILE";
        return vec![found("models", How::Wrong, said).remedy(remedy)];
    }
    let options = config.options();
    let needs = |path: &Path| -> Result<u64, Found> {
        let opened = opened(path)?.map_err(|e| {
            found("model", How::Wrong, e).remedy("fetch it again, or let the daemon's user read it")
        })?;
        let summary = match opened {
            Opened::Own(summary) => summary,
            Opened::Graph(bytes) => return Ok(bytes),
        };
        if let Err(why) = &summary.runs {
            let said = format!("{}: {why}", path.display());
            return Err(found("model", How::Note, said).remedy("it is listed, and refused when it is asked"));
        }
        let n_ctx = summary.hyper.as_ref().map_or(options.n_ctx, |h| options.n_ctx.min(h.n_ctx_train));
        Ok(summary.memory(n_ctx, options.kv).map_or(summary.file_bytes, |m| m.weights + m.kv + m.scratch))
    };
    let memory = Memory::read(&Tree::default());
    let one = |file: &crate::engine::ModelFile| match needs(&file.path) {
        Ok(bytes) => fits(&file.id, bytes, memory.as_ref()),
        Err(found) => found,
    };
    files.iter().map(one).collect()
}

/// What a model is.
enum Opened {
    Own(Box<Summary>),
    /// An ONNX graph, which takes so many bytes.
    Graph(u64),
}

/// A model's file, opened by a thread that nobody waits for where the disk does not answer; or why it is none.
fn opened(path: &Path) -> Result<Result<Opened, String>, Found> {
    let (tell, told) = std::sync::mpsc::channel();
    let own = path.to_owned();
    let open = move || {
        let opened = match onnx::find(&own) {
            Some((dir, graph)) => onnx::open(&dir, &graph)
                .map(|dir| Opened::Graph(dir.weights_bytes()))
                .map_err(|e| e.to_string()),
            None => Summary::open(&own).map(|s| Opened::Own(Box::new(s))).map_err(|e| e.to_string()),
        };
        drop(tell.send(opened));
    };
    let said = |what: String| found("model", How::Wrong, format!("{}: {what}", path.display()));
    thread::start("open", open).map_err(|e| said(e.to_string()))?;
    told.recv_timeout(PATIENCE).map_err(|_| {
        said(format!("not open after {} s", PATIENCE.as_secs())).remedy(
            "the disk that it lies on is slow, or does not answer: look at it, or take it out of models.dirs",
        )
    })
}

/// Whether a model that takes `bytes` fits the memory of the machine, and what of it is free.
fn fits(id: &str, bytes: u64, memory: Option<&Memory>) -> Found {
    let said = format!("{id} takes {}", size(bytes));
    match memory {
        Some(m) if bytes > m.total => {
            found("model", How::Wrong, format!("{said}, the machine has {}", size(m.total)))
                .remedy("take one with fewer weights or fewer bits a weight, or a smaller engine.context")
        }
        Some(m) if bytes > m.available => {
            found("model", How::Note, format!("{said}, {} is to be had now", size(m.available)))
                .remedy("it fits once others give memory back (a loaded model counts as taken)")
        }
        _ => found("model", How::Fine, said),
    }
}

fn heat(celsius: Option<f64>) -> Found {
    match celsius {
        Some(c) if c >= WARM_C => found("temperature", How::Note, format!("{c:.1} °C"))
            .remedy("processors slow down from here on: give it air, or fewer engine.threads"),
        Some(c) => found("temperature", How::Fine, format!("{c:.1} °C")),
        None => found("temperature", How::Fine, "no sensor"),
    }
}

/// The files of a system, below `root`.
struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The first of `paths` that is there, as the system names it.
    fn first<'p>(&self, paths: &[&'p str]) -> Option<&'p str> {
        paths.iter().copied().find(|path| self.root.join(path.trim_start_matches('/')).exists())
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()
    }

    /// The service's packed models.
    fn cache(&self, config: &Config) -> Found {
        const DIR: &str = "/var/cache/sotto/packed";
        if config.engine.pack != PackName::Cache {
            return found("cache", How::Fine, "no packed files are kept (engine.pack)");
        }
        match std::fs::read_dir(self.root.join(DIR.trim_start_matches('/'))) {
            Ok(entries) => {
                let sizes = entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len()));
                let (most, bytes) = (config.engine.pack_cache_gib.0 << 30, sizes.sum::<u64>());
                found("cache", How::Fine, format!("{DIR}: {} of at most {}", size(bytes), size(most)))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                found("cache", How::Fine, format!("{DIR}: nothing yet; the first load of a model fills it"))
            }
            Err(e) => {
                found("cache", How::Note, format!("{DIR}: {e}")).remedy("only the service may look there")
            }
        }
    }

    fn bus(&self, enable: Enable) -> Found {
        let paths = [
            "/usr/share/dbus-1/system.d/org.sotto.Sotto1.conf",
            "/etc/dbus-1/system.d/org.sotto.Sotto1.conf",
            "/usr/local/share/dbus-1/system.d/org.sotto.Sotto1.conf",
        ];
        match (self.first(&paths), enable) {
            (Some(path), _) => found("bus", How::Fine, path),
            (None, Enable::No) => found("bus", How::Fine, "is not used (dbus.enable)"),
            (None, enable) => {
                let how = if enable == Enable::Yes { How::Wrong } else { How::Note };
                let said = "no policy lets sottod have its name on the system bus";
                let remedy = format!("install systemd/dbus/org.sotto.Sotto1.conf as {}", paths[0]);
                found("bus", how, said).remedy(remedy)
            }
        }
    }

    fn unit(&self) -> Found {
        let paths = [
            "/etc/systemd/system/sottod.service",
            "/usr/local/lib/systemd/system/sottod.service",
            "/usr/lib/systemd/system/sottod.service",
            "/lib/systemd/system/sottod.service",
        ];
        match self.first(&paths) {
            Some(path) => found("service", How::Fine, path),
            None => found("service", How::Note, "sottod is no service of systemd here")
                .remedy("install the units of systemd/, or start sottod by hand"),
        }
    }

    /// Who runs ONNX graphs for the service.
    fn graphs(&self) -> Found {
        let listens = [HELPER_SOCKET, "/etc/systemd/system/sockets.target.wants/sotto-onnx.socket"];
        let units = ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];
        let units = units.map(|folder| format!("{folder}/sotto-onnx.socket"));
        match (self.first(&listens), self.first(&units.each_ref().map(String::as_str))) {
            (Some(path), _) => found("ONNX graphs", How::Fine, path),
            (None, Some(path)) => found("ONNX graphs", How::Note, format!("nothing listens of {path}"))
                .remedy("systemctl enable --now sotto-onnx.socket"),
            (None, None) => found("ONNX graphs", How::Note, "no service runs them here")
                .remedy("for such models install sotto-onnx and its units of systemd/; started by hand, sottod finds it beside itself"),
        }
    }

    fn swap(&self) -> Found {
        let swaps = self.read("/proc/swaps").unwrap_or_default();
        let names: Vec<&str> =
            swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
        if names.is_empty() {
            return found("swap", How::Note, "none")
                .remedy("weights are given back without any; zram helps where other programs are large");
        }
        let compressed = names.iter().all(|name| name.contains("zram"));
        match compressed {
            true => found("swap", How::Fine, names.join(", ")),
            false => found("swap", How::Note, names.join(", "))
                .remedy("on a disk or card it is slow: an answer that swaps all but stands; zram is quicker"),
        }
    }

    fn governor(&self) -> Found {
        let cpu = "/sys/devices/system/cpu/cpu0/cpufreq";
        let Some(governor) = self.read(&format!("{cpu}/scaling_governor")) else {
            return found("clock", How::Fine, "the system does not steer it");
        };
        let governor = governor.trim().to_owned();
        let driver = self.read(&format!("{cpu}/scaling_driver")).unwrap_or_default();
        // Drivers of the second kind have their own idea of powersave, which goes up under load.
        let own_idea = ["intel_pstate", "amd-pstate-epp", "amd_pstate_epp"].contains(&driver.trim());
        match governor.as_str() {
            "powersave" if !own_idea => found("clock", How::Note, "governor powersave: always the lowest")
                .remedy("echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"),
            _ => found("clock", How::Fine, format!("governor {governor}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str, files: &[(&str, &str)]) -> Machine {
        let root = std::env::temp_dir().join(format!("sotto-doctor-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Machine { root }
    }

    #[test]
    fn a_bare_machine_has_notes_and_remedies() {
        let m = machine("bare", &[]);
        let config = Config::default();
        let hows = [m.cache(&config), m.bus(Enable::Auto), m.unit(), m.graphs(), m.swap(), m.governor()];
        let hows: Vec<(How, bool)> = hows.iter().map(|f| (f.how, f.remedy.is_some())).collect();
        assert_eq!(
            hows,
            [
                (How::Fine, false),
                (How::Note, true),
                (How::Note, true),
                (How::Note, true),
                (How::Note, true),
                (How::Fine, false)
            ]
        );
        assert_eq!(m.bus(Enable::Yes).how, How::Wrong);
        assert_eq!(m.bus(Enable::No).how, How::Fine);
    }

    #[test]
    fn an_installed_one_is_fine_and_slow_things_are_told() {
        let cpu = "sys/devices/system/cpu/cpu0/cpufreq";
        let m = machine(
            "full",
            &[
                ("etc/dbus-1/system.d/org.sotto.Sotto1.conf", ""),
                ("usr/lib/systemd/system/sottod.service", ""),
                ("usr/lib/systemd/system/sotto-onnx.socket", ""),
                ("var/cache/sotto/packed/a.gguf", "12345"),
                ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 9 0 100\n"),
                (&format!("{cpu}/scaling_governor"), "powersave\n"),
            ],
        );
        let config = Config::default();
        assert!(m.cache(&config).said.contains(": 5 B of at most 17.2 GB"), "{:?}", m.cache(&config));
        let hows = [m.bus(Enable::Auto), m.unit(), m.swap(), m.governor()].map(|f| f.how);
        std::fs::write(m.root.join(format!("{cpu}/scaling_driver")), "intel_pstate\n").unwrap();
        std::fs::write(m.root.join("proc/swaps"), "head\n/dev/mmcblk0p2 partition 9 0 -2\n").unwrap();
        let others = [m.governor(), m.swap()].map(|f| f.how);
        let asleep = m.graphs();
        std::fs::create_dir_all(m.root.join("run/sotto")).unwrap();
        std::fs::write(m.root.join("run/sotto/onnx.sock"), "").unwrap();
        let graphs = m.graphs().how;
        std::fs::remove_dir_all(&m.root).unwrap();
        assert_eq!(hows, [How::Fine, How::Fine, How::Fine, How::Note]);
        assert_eq!(others, [How::Fine, How::Note]);
        assert_eq!((asleep.how, graphs), (How::Note, How::Fine));
        assert!(asleep.remedy.is_some_and(|remedy| remedy.contains("enable --now sotto-onnx.socket")));
    }

    #[test]
    fn what_does_not_fit_or_answer_is_told_with_a_remedy() {
        let memory = Memory { total: 4_000, available: 1_000, from: String::new() };
        let how = |bytes| fits("m", bytes, Some(&memory)).how;
        assert_eq!([how(900), how(2_000), how(5_000)], [How::Fine, How::Note, How::Wrong]);
        assert_eq!(
            [heat(Some(81.0)).how, heat(Some(40.0)).how, heat(None).how],
            [How::Note, How::Fine, How::Fine]
        );
        for kind in [std::io::ErrorKind::NotFound, std::io::ErrorKind::PermissionDenied] {
            let f = unreachable(Path::new("/x"), &kind.into());
            assert!(f.how == How::Wrong && f.remedy.is_some());
        }
        let ready = json!({ "state": "ready", "version": env!("CARGO_PKG_VERSION"), "state_reason": "" });
        assert_eq!(health(&ready).how, How::Fine);
        assert_eq!(health(&json!({ "state": "ready", "version": "0.0.1" })).how, How::Note);
        assert_eq!(health(&json!({ "state": "degraded" })).how, How::Wrong);
    }
}
