//! Every method, property, signal and error of the interface file, used by a client on libdbus.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Daemon, Folder, bus, have, stderr, stdout, stories};

#[test]
fn libdbus_uses_the_whole_interface() {
    let what = "the whole interface through libdbus";
    if !have("dbus-daemon", what) {
        return;
    }
    let python = "/usr/bin/python3";
    let module = Command::new(python).args(["-c", "import dbus"]).stderr(Stdio::null()).status();
    if !module.is_ok_and(|status| status.success()) {
        println!("skipped: {what}; python3-dbus is not installed");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mock_folder, folder) = (Folder::new(), Folder::new());
    let ((_one, mock_bus), (_other, real_bus)) = (bus(&mock_folder), bus(&folder));
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let context = "[model.mock]\ncontext = 4096\n";
    let _mock = Daemon::mock(&mock_folder, "load_ms=300,tokens_per_s=1000", context, Some(&mock_bus));
    let daemon =
        Daemon::start_on(&folder, None, &format!("[models]\ndirs = [{models:?}]\n"), Some(&real_bus));
    let mut client = Command::new(python);
    client.arg(root.join("tests/clients/whole_interface.py")).arg(root.join("proto/org.sotto.Sotto1.xml"));
    client.args([&mock_bus]).arg(mock_folder.join("sotto.toml"));
    client.args([&real_bus]).arg(models).arg(stories());
    let design = root.join("../shared/design/proto/org.sotto.Sotto1.xml");
    if !design.exists() {
        println!("skipped: the interface beside its design; ../shared/design is not there");
    }
    client.args(design.exists().then_some(design));
    let told = client.output().unwrap();
    assert!(told.status.success(), "{}\n{}", stderr(&told), daemon.log());
    assert!(stdout(&told).contains("whole: "), "{}", stdout(&told));
    print!("{}", stdout(&told));
}
