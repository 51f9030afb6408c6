//! Both doors before hostile bytes. Whatever a caller sends, it is answered as the interface says or hung up on, and the
//! next one is answered. Behind the doors is a mock.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sotto::door::dbus::{Bus, DbusOptions};
use sotto::door::http::HttpOptions;
use sotto::engine::{Engine, Mock, Options, Settings};
use tokio::runtime::Handle;

/// No answer may take longer: the mock needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(8);
/// After so many inputs a sound request is made.
const SOUND_EVERY: usize = 64;

struct House {
    engine: Engine,
    runtime: Handle,
    /// In no folder, so that nothing stays behind.
    socket: SocketAddr,
}

/// Made once, and gone with the process.
fn house() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let mock = Some(Mock::default());
        let options = Options { threads: 1, n_ctx: 256, mock, ..Options::default() };
        // Those that say an error when asked for it are left out: an `internal` is never to be seen.
        let models = Mock::models().into_iter().take(2).collect();
        let settings = Settings { models, default_model: Some("mock".into()), ..Settings::default() };
        let kernels = sotto::kernel::select(None).expect("a tier");
        let engine = Engine::start(kernels, options, settings).expect("an engine");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let socket =
            SocketAddr::from_abstract_name(format!("sotto-fuzz-{}", std::process::id())).expect("a name");
        let listener = UnixListener::bind_addr(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("it can be");
        let door = engine.clone();
        let serve = move || {
            runtime.block_on(async {
                // A C program's main does not ignore it as Rust's does.
                let _pipe = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::pipe());
                let (_closing, closed) = tokio::sync::watch::channel(false);
                let (_told, options) = tokio::sync::watch::channel(HttpOptions::default());
                let listener = tokio::net::UnixListener::from_std(listener).expect("it listens");
                sotto::door::http::serve(door, listener, options, closed).await;
            });
        };
        sotto::os::thread::start("door", serve).expect("a thread");
        House { engine, runtime: handle, socket }
    })
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("it can be");
    stream.set_write_timeout(Some(PATIENCE)).expect("it can be");
    stream
}

/// Sends all there is and reads to the end, which has to come.
fn exchange(bytes: &[u8]) -> Vec<u8> {
    let mut stream = patient(UnixStream::connect_addr(&house().socket).expect("the door listens"));
    // Who is refused early may be hung up on.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("no end of an answer"),
        _ => answer,
    }
}

const ROUTES: [&str; 8] = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /sotto/v1/generate",
    "POST /v1/embeddings",
    "POST /sotto/v1/tokenize",
    "POST /sotto/v1/models/mock/unload",
    "GET /v1/models/mock",
    "DELETE /sotto/v1/generations/00000000000000000000000000",
];

/// The first byte chooses a route, whose body the others are; or they are all that is sent.
pub fn http(data: &[u8]) {
    static N: AtomicUsize = AtomicUsize::new(0);
    let Some((first, rest)) = data.split_first() else { return };
    let answer = match ROUTES.get(usize::from(*first)) {
        Some(route) => {
            let head = format!("{route} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", rest.len());
            exchange(&[head.as_bytes(), b"connection: close\r\n\r\n", rest].concat())
        }
        None => exchange(rest),
    };
    if !answer.is_empty() {
        let status = answer.get(..12).unwrap_or_default();
        assert!(status.starts_with(b"HTTP/1."), "no answer: {:?}", String::from_utf8_lossy(status));
        assert!(!status.ends_with(b" 500"), "{}", String::from_utf8_lossy(&answer));
    }
    if N.fetch_add(1, Ordering::Relaxed).is_multiple_of(SOUND_EVERY) {
        let answer = exchange(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    house().rests();
}

impl House {
    /// Nobody's request goes on once its caller is gone.
    fn rests(&self) {
        for _ in 0..PATIENCE.as_millis() {
            if self.engine.status() == sotto::engine::Status::default() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a request goes on without a caller");
    }
}

const ROOT: &str = "/org/sotto/Sotto1";
const MANAGER: &str = "org.sotto.Sotto1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The object that a call is for.
#[derive(Clone, Copy)]
enum At {
    Root,
    Model,
    Log,
    /// What another call makes first: its path, that method, and its arguments.
    Made(&'static str, &'static str, &'static str, &'static [u8]),
}

/// A text, then no options: `sa{sv}` of "mock".
const MOCK: &[u8] = b"\x04\0\0\0mock\0\0\0\0\0\0\0\0";
const SESSION: At = At::Made("session", "OpenSession", "a{sv}", &[0; 8]);
const GENERATION: At = At::Made("generation", "StartGeneration", "sa{sv}", MOCK);
const JOB: At = At::Made("job", "LoadModel", "sa{sv}", MOCK);

/// Methods and their signatures.
const METHODS: [(At, &str, &str, &str); 29] = [
    (At::Root, MANAGER, "Generate", "sa{sv}"),
    (At::Root, MANAGER, "StartGeneration", "sa{sv}"),
    (At::Root, MANAGER, "Embed", "asa{sv}"),
    (At::Root, MANAGER, "Tokenize", "sa{sv}"),
    (At::Root, MANAGER, "OpenSession", "a{sv}"),
    (At::Root, MANAGER, "LoadModel", "sa{sv}"),
    (At::Root, MANAGER, "UnloadModel", "sa{sv}"),
    (At::Root, MANAGER, "Cancel", "o"),
    (At::Root, PROPERTIES, "Get", "ss"),
    (At::Root, PROPERTIES, "GetAll", "s"),
    (At::Root, PROPERTIES, "Set", "ssv"),
    (At::Root, "org.freedesktop.DBus.Introspectable", "Introspect", ""),
    (At::Root, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", ""),
    (At::Root, MANAGER, "ListModels", ""),
    (At::Root, MANAGER, "Reload", ""),
    (SESSION, "org.sotto.Sotto1.Session", "Ask", "sa{sv}"),
    (SESSION, "org.sotto.Sotto1.Session", "Send", "sa{sv}"),
    (SESSION, "org.sotto.Sotto1.Session", "History", ""),
    (SESSION, "org.sotto.Sotto1.Session", "Reset", ""),
    (SESSION, "org.sotto.Sotto1.Session", "Close", ""),
    (SESSION, PROPERTIES, "Get", "ss"),
    (GENERATION, "org.sotto.Sotto1.Generation", "Result", ""),
    (GENERATION, "org.sotto.Sotto1.Generation", "Cancel", ""),
    (GENERATION, PROPERTIES, "Get", "ss"),
    (JOB, "org.sotto.Sotto1.Job", "Wait", ""),
    (JOB, "org.sotto.Sotto1.Job", "Cancel", ""),
    (JOB, PROPERTIES, "Get", "ss"),
    (At::Model, PROPERTIES, "Get", "ss"),
    (At::Log, PROPERTIES, "Set", "ssv"),
];

/// A call as the wire has it, low byte first, with `body` as it stands.
fn call(serial: u32, path: &str, interface: &str, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    for (code, kind, text) in [(1, "o", path), (2, "s", interface), (3, "s", member), (8, "g", signature)] {
        if text.is_empty() {
            continue;
        }
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind.as_bytes()[0], 0]);
        match kind {
            "g" => fields.push(text.len() as u8),
            _ => fields.extend((text.len() as u32).to_le_bytes()),
        }
        fields.extend(text.as_bytes());
        fields.push(0);
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend((fields.len() as u32).to_le_bytes());
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}

/// The first byte chooses a method, whose arguments the others are; or they are all that is sent after the greeting. Behind
/// them comes a sound call, which is answered unless the connection has ended.
pub fn bus(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let house = house();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut ours = patient(ours);
    let engine = house.engine.clone();
    let (ending, ended) = std::sync::mpsc::channel();
    house.runtime.spawn(async move {
        let door = sotto::door::dbus::serve(engine, Bus::Peer(theirs), DbusOptions::default()).await;
        door.expect("the greeting is right").closed().await;
        let _ = ending.send(());
    });
    let uid: String = sotto::os::process::uid().to_string().bytes().map(|b| format!("{b:02x}")).collect();
    let mut sent = format!("\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").into_bytes();
    let mut heard: Vec<u8> = Vec::new();
    match METHODS.get(usize::from(*first)) {
        Some(&(at, interface, member, signature)) => {
            let path = match at {
                At::Root => ROOT.to_owned(),
                At::Model => format!("{ROOT}/model/mock"),
                At::Log => "/org/freedesktop/LogControl1".to_owned(),
                At::Made(kind, method, signature, body) => {
                    sent.extend(call(1, ROOT, MANAGER, method, signature, body));
                    ours.write_all(&std::mem::take(&mut sent)).expect("a sound call");
                    made(&mut ours, &mut heard, &format!("{ROOT}/{kind}/"))
                }
            };
            sent.extend(call(2, &path, interface, member, signature, rest));
        }
        None => sent.extend(rest),
    }
    let last = 0x7fff_ffff;
    sent.extend(call(last, ROOT, "org.freedesktop.DBus.Peer", "Ping", "", &[]));
    let _ = ours.write_all(&sent);
    if usize::from(*first) >= METHODS.len() {
        // They may announce more than there is, which nobody is to wait for.
        let _ = ours.shutdown(std::net::Shutdown::Write);
    }
    let reply = last.to_le_bytes();
    while !heard.windows(4).any(|bytes| bytes == reply) {
        match hear(&mut ours, &mut heard) {
            Ok(0) => break,
            Ok(_) => {}
            // Bytes that announce a longer message swallow the sound call.
            Err(_) if usize::from(*first) >= METHODS.len() => break,
            Err(e) => panic!("no answer: {e}"),
        }
    }
    let internal = b"org.sotto.Error.Internal";
    let is_internal = heard.windows(internal.len()).any(|bytes| bytes == internal);
    assert!(!is_internal, "an internal error: {}", String::from_utf8_lossy(&heard).escape_debug());
    drop(ours);
    ended.recv_timeout(PATIENCE).expect("the door closes, and did not panic");
    house.rests();
}

fn hear(from: &mut UnixStream, heard: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut part = [0; 4096];
    loop {
        match from.read(&mut part) {
            // The fuzzer's alarm.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            n => return n.inspect(|n| heard.extend(&part[..*n])),
        }
    }
}

/// The path of the object that a sound call has made: `prefix` and an id.
fn made(from: &mut UnixStream, heard: &mut Vec<u8>, prefix: &str) -> String {
    loop {
        let at = heard.windows(prefix.len()).position(|bytes| bytes == prefix.as_bytes());
        if let Some(id) = at.and_then(|at| heard.get(at..at + prefix.len() + 26)) {
            return String::from_utf8(id.to_vec()).expect("letters and digits");
        }
        assert!(hear(from, heard).expect("an answer") > 0, "a sound call is not answered");
    }
}
