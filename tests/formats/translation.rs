//! A directory in the layout of Hugging Face against the GGUF file that its converter made of it: the same keys, the
//! same tensors, the same numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sotto::format::{self, Array, Checkpoint, Origin, Value};
use sotto::quant;

/// The folder of models where directories stand beside their GGUF files; `SOTTO_FIXTURES` names another one.
pub(crate) fn fixtures() -> Option<PathBuf> {
    let named = std::env::var_os("SOTTO_FIXTURES").map(PathBuf::from);
    let dir =
        named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/models"));
    if dir.join("llama/hf").is_dir() {
        return Some(dir);
    }
    println!("skipped: directories against their GGUF; {} has none", dir.display());
    None
}

/// A value that can be compared.
pub(crate) fn plain(c: &Checkpoint, key: &str, value: &Value) -> String {
    match value {
        Value::Int(n) => format!("{n}"),
        Value::Float(x) => format!("{x:?}"),
        Value::Bool(b) => format!("{b}"),
        Value::Str(_) => c.str(key).expect("a string").expect("it is there").to_owned(),
        Value::Array(Array::Strings(s)) => format!("{} strings", s.len()),
        Value::Array(_) => match (c.ints(key), c.bools(key), c.floats(key)) {
            (Ok(Some(v)), ..) => format!("{v:?}"),
            (_, Ok(Some(v)), _) => format!("{v:?}"),
            (.., Ok(Some(v))) => format!("{v:?}"),
            _ => panic!("{key}: an array of another kind"),
        },
    }
}

/// The weights of a tensor as floats, row by row.
fn rows(c: &Checkpoint, name: &str) -> Vec<Vec<f32>> {
    let info = c.tensor(name).unwrap_or_else(|| panic!("{}: {name} is absent", c.file()));
    let bytes = c.bytes(info);
    assert_eq!(bytes.len(), info.range.len(), "{name}");
    let n = bytes.len() / info.n_rows;
    let unpacked = bytes.chunks_exact(n).map(|row| {
        let mut out = vec![0.0; info.n_cols];
        quant::unpack_row(info.quant, row, &mut out);
        out
    });
    unpacked.collect()
}

/// What GGUF's converter does to the order of rows and columns, which stay as they are here.
struct Order {
    arch: String,
    n_head: usize,
    n_head_kv: usize,
    n_key: usize,
    n_value: usize,
}

impl Order {
    fn of(c: &Checkpoint) -> Self {
        let arch = c.str("general.architecture").expect("a string").expect("it is there").to_owned();
        let size = |k: &str| c.uint(&format!("{arch}.{k}")).ok().flatten().unwrap_or(0) as usize;
        let (n_head, n_head_kv) = (size("attention.head_count"), size("attention.head_count_kv"));
        let (n_key, n_value) = (size("ssm.group_count"), size("ssm.time_step_rank"));
        Self { arch, n_head, n_head_kv, n_key, n_value }
    }

    /// Rows of the directory in the converter's order.
    fn converted(&self, name: &str, rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let paired = ["llama", "granite", "smollm3", "mistral3"].contains(&self.arch.as_str());
        if paired && name.ends_with("attn_q.weight") {
            return pairs(rows, self.n_head);
        }
        if paired && name.ends_with("attn_k.weight") {
            return pairs(rows, self.n_head_kv);
        }
        if self.arch != "qwen35" {
            return rows;
        }
        let part = name.splitn(3, '.').nth(2).unwrap_or_default();
        match part {
            "attn_gate.weight" | "ssm_alpha.weight" | "ssm_beta.weight" => self.tiled(rows),
            // Queries and keys stay, values follow.
            "attn_qkv.weight" | "ssm_conv1d.weight" => {
                let mut rows = rows;
                let values = rows.split_off(rows.len() / 2);
                rows.extend(self.tiled(values));
                rows
            }
            "ssm_a" | "ssm_dt.bias" | "ssm_out.weight" => {
                rows.into_iter().map(|row| self.tiled(row)).collect()
            }
            _ => rows,
        }
    }

    /// Value heads grouped by key head become value heads dealt out to key heads in turn.
    fn tiled<T: Clone>(&self, all: Vec<T>) -> Vec<T> {
        let (each, per_key) = (all.len() / self.n_value, self.n_value / self.n_key);
        let head = |v: usize, k: usize| all[(k * per_key + v) * each..][..each].to_vec();
        (0..per_key).flat_map(|v| (0..self.n_key).flat_map(move |k| head(v, k))).collect()
    }
}

/// Halves of a head become neighbours.
fn pairs(rows: Vec<Vec<f32>>, n_head: usize) -> Vec<Vec<f32>> {
    let n = rows.len() / n_head;
    let source = |i: usize| i / n * n + i % n / 2 + i % 2 * (n / 2);
    (0..rows.len()).map(|i| rows[source(i)].clone()).collect()
}

/// Names that the stacked tensor `name` of the converter has here, one for each expert.
fn experts(name: &str, n: usize) -> Vec<String> {
    match name.strip_suffix("_exps.weight") {
        Some(stem) => (0..n).map(|e| format!("{stem}.{e}.weight")).collect(),
        None => vec![name.to_owned()],
    }
}

fn compare(name: &str, gguf: &Checkpoint, hf: &Checkpoint) {
    assert_eq!(hf.origin(), Origin::HuggingFace);
    let order = Order::of(gguf);
    let prefix = format!("{}.", order.arch);

    let mut n_keys = 0;
    let keys: BTreeMap<&str, &Value> = gguf.metadata().filter(|(k, _)| k.starts_with(&prefix)).collect();
    let ours: BTreeMap<&str, &Value> = hf.metadata().collect();
    for (key, value) in
        keys.into_iter().chain([("general.architecture", gguf_value(gguf, "general.architecture"))])
    {
        let found = ours.get(key).unwrap_or_else(|| panic!("{name}: {key} is not translated"));
        assert_eq!(plain(hf, key, found), plain(gguf, key, value), "{name}: {key}");
        n_keys += 1;
    }

    // What a layer does with a window is a key of its own here; GGUF leaves it to the architecture.
    let n_expert = hf.uint(&format!("{prefix}expert_count")).expect("a number").unwrap_or(0) as usize;
    let wanted: BTreeSet<String> = gguf.tensors().flat_map(|(n, _)| experts(n, n_expert)).collect();
    let found: BTreeSet<String> = hf.tensors().map(|(n, _)| n.to_owned()).collect();
    assert_eq!(found, wanted, "{name}: names of tensors");

    for (tensor, info) in gguf.tensors() {
        let theirs = rows(gguf, tensor);
        let names = experts(tensor, n_expert);
        let each = names.iter().flat_map(|n| order.converted(n, rows(hf, n)));
        let here: Vec<Vec<f32>> = each.collect();
        assert_eq!((here.len(), here[0].len()), (info.n_rows, info.n_cols), "{name}: {tensor}");
        if names.len() == 1 {
            assert_eq!(hf.tensor(tensor).expect("compared above").shape, info.shape, "{name}: {tensor}");
        }
        for (a, b) in here.iter().flatten().zip(theirs.iter().flatten()) {
            // An exponential and a power are right to the last bit but one.
            let near = tensor.ends_with("ssm_a") || tensor == "rope_freqs.weight";
            let close = if near { (a - b).abs() <= 2.5e-7 * b.abs() } else { a.to_bits() == b.to_bits() };
            assert!(close, "{name}: {tensor}: {a} here, {b} in the GGUF file");
        }
    }
    println!("{name}: {n_keys} keys, {} tensors equal", found.len());
}

fn gguf_value<'a>(c: &'a Checkpoint, key: &str) -> &'a Value {
    c.metadata().find(|(k, _)| *k == key).expect("the file has it").1
}

#[test]
fn directories_become_what_the_converter_makes_of_them() {
    let Some(dir) = fixtures() else { return };
    let mut n = 0;
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names {
        let (hf, gguf) = (path.join("hf"), path.join("model.gguf"));
        if !hf.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let translated = format::open(&hf).unwrap_or_else(|e| panic!("{name}: {e}"));
        if gguf.is_file() {
            compare(&name, &format::open(&gguf).unwrap(), &translated);
        } else {
            // GGUF cannot say that a llama has a window.
            assert_eq!(translated.uint("llama.attention.sliding_window").unwrap(), Some(12), "{name}");
            let pattern = translated.bools("llama.attention.sliding_window_pattern").unwrap();
            assert_eq!(pattern, Some(vec![true; 2]), "{name}");
        }
        n += 1;
    }
    assert!(n >= 19, "{n} directories in {}", dir.display());
}
