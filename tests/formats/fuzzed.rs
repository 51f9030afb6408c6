//! The fuzz targets over the fixtures: whatever the fuzzer begins with goes through, and they compile.

use std::path::{Path, PathBuf};

use crate::support::fixture;

#[path = "../../fuzz/targets.rs"]
#[allow(unreachable_pub, reason = "a library elsewhere")]
pub(crate) mod targets;

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn fuzz_targets_take_the_fixtures() {
    let mut n = [0; 5];
    for path in
        ["bad", "tokenizers", "chat-templates", "onnx"].iter().flat_map(|folder| files(&fixture(folder)))
    {
        let bytes = std::fs::read(&path).expect("a fixture");
        let behind = |text: &[u8]| [text, b"\0", &bytes[..]].concat();
        match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => {
                targets::gguf_file(&bytes);
                targets::tokenizer(&behind("Hello, 123 w\u{f6}rld's <s><|im_end|>\n".as_bytes()));
                n[0] += 1;
            }
            Some("safetensors") => {
                let config = std::fs::read(path.with_file_name("config.json")).unwrap_or_default();
                targets::safetensors(&behind(&config));
                n[1] += 1;
            }
            Some("onnx") => {
                let config = std::fs::read(path.with_file_name("config.json")).unwrap_or_default();
                targets::onnx_graph(&behind(&config));
                n[4] += 1;
            }
            Some("jinja") => {
                targets::template(&[&bytes[..], b"\0<|im_end|>"].concat());
                n[2] += 1;
            }
            _ if path
                .file_name()
                .is_some_and(|name| name == "tokenizer.json" || name == "tokenizer.model") =>
            {
                targets::tokenizer(&behind(b"Hello, <s> <|endoftext|>"));
                n[3] += 1;
            }
            _ => {}
        }
    }
    assert!(n.iter().all(|n| *n > 0), "{n:?} files of each kind");
}
