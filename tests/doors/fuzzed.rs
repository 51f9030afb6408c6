//! What the fuzzer sends to the doors, over what it begins with.

use std::process::Command;

use crate::support::{Folder, have};

#[path = "../../fuzz/doors.rs"]
#[allow(unreachable_pub, reason = "a library elsewhere")]
mod doors;

#[test]
fn doors_take_what_the_fuzzer_begins_with() {
    if !have("/usr/bin/python3", "what the fuzzer begins with") {
        return;
    }
    for (target, take, n_least) in [("http", doors::http as fn(&[u8]), 14), ("bus", doors::bus, 29)] {
        let folder = Folder::new();
        let seeds = folder.join(target);
        std::fs::create_dir(&seeds).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds.py");
        assert!(
            Command::new("/usr/bin/python3").arg(script).arg(target).arg(&seeds).status().unwrap().success()
        );
        let files: Vec<_> = std::fs::read_dir(&seeds).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= n_least, "{target}: {}", files.len());
        for file in files {
            let mut bytes = std::fs::read(file).unwrap();
            take(&bytes);
            // Damaged, and cut off.
            if let Some(byte) = bytes.get_mut(9) {
                *byte ^= 0x55;
            }
            take(&bytes);
            take(&bytes[..bytes.len() / 2]);
        }
        take(&[255, 0, 1, 2, 3]);
        take(&[0]);
        take(&[]);
    }
}
