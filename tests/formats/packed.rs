//! Packed files: the same bits as the model they were made of, and whatever is damaged is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sotto::format::pack::{self, identity};
use sotto::format::{self, Checkpoint, FormatError, gguf};
use sotto::kernel::{Pool, Tier, available, select};
use sotto::model::{Cache, KvType, Model, PackError, Packer, Precision, vocab};
use sotto::text::Special;

use crate::fuzzed::targets;
use crate::support::gguf as made;
use crate::support::golden::{Run, packed};
use crate::support::{Folder, fixture, run, stderr, stdout};

/// Every model of the fixtures with formats that are packed.
fn models() -> Vec<PathBuf> {
    let folders = ["quants", "stories260k"].map(fixture);
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    files
}

fn pool(tier: Tier) -> Pool {
    Pool::new(select(Some(tier)).unwrap(), 2).unwrap()
}

/// The packed file `path` of the model.
fn write(model: &Model, path: &Path, n_bytes: usize) -> Checkpoint {
    let image = Packer::image(model, "of a test", None).unwrap();
    let mut packer = Packer::file(model, image, path, 0).unwrap();
    let pool = pool(Tier::Scalar);
    while packer.work(&pool, n_bytes).unwrap() {}
    packer.finish().unwrap()
}

fn logits(model: &Model, pool: &Pool, precision: Precision) -> Vec<f32> {
    let tokens: Vec<_> = (1..9).map(sotto::base::Token).collect();
    Run::new(model, pool, precision, 64).feed(&tokens, 8)
}

#[test]
fn packed_files_give_the_bits_of_their_models() {
    let folder = Folder::new();
    let made = [("made-up", made::llama(made::TINY).bytes())].map(|(name, bytes)| folder.write(name, bytes));
    for path in models().into_iter().chain(made) {
        let model = Model::open(&path).unwrap();
        let name = path.file_name().unwrap().display().to_string();
        let checkpoint = write(&model, &folder.join("packed.gguf"), 50_000);
        checkpoint.verify(&mut |_, _| {}).unwrap();
        let again = write(&model, &folder.join("again.gguf"), usize::MAX);
        assert!(again.is_packed() && model.checkpoint().metadata().count() <= again.metadata().count());
        let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
        assert!(bytes("packed.gguf") == bytes("again.gguf"), "{name}: slices change bytes");
        let tokens = [model.checkpoint(), &checkpoint].map(|file| {
            let (tokenizer, mut tokens) = (vocab::tokenizer(file).unwrap(), Vec::new());
            tokenizer.encode(
                "Once upon a time,\n\tthere w\u{e4}re 12 <s> dragons.",
                Special::AsText,
                &mut tokens,
            );
            tokens
        });
        assert_eq!(tokens[0], tokens[1], "{name}");
        let file = Model::new(Arc::new(checkpoint)).unwrap();
        assert!(matches!(Packer::memory(&file), Err(PackError::Already { .. })), "{name}");
        for tier in available() {
            let pool = pool(tier);
            let precision = Precision { kv: KvType::F32, ..Precision::default() };
            let found = logits(&file, &pool, precision);
            if tier == Tier::Scalar {
                assert!(found == logits(&model, &pool, precision), "{name}: other bits than of rows");
            }
            if let Some(memory) = packed(&model, &pool) {
                assert!(found == logits(&memory, &pool, precision), "{name}: other bits than in memory");
            }
            let exact = [&file, &model].map(|model| logits(model, &pool, Precision::F32));
            assert!(exact[0] == exact[1], "{name}: other bits with float activations, {}", tier.name());
        }
    }
}

/// What a directory has beside its weights would be lost in a file; in memory it is packed, with the same bits.
#[test]
fn directories_are_packed_in_memory_alone() {
    let path = fixture("bad/hf/good");
    let (model, pool) = (Model::open(&path).unwrap(), pool(Tier::Scalar));
    let said = Packer::image(&model, "", None).unwrap_err().to_string();
    assert!(said.contains("packed in memory alone"), "{said}");
    let memory = packed(&model, &pool).expect("floats are packed");
    for precision in [Precision::default(), Precision::F32] {
        let [found, wanted] =
            [&memory, &model].map(|m| Run::new(m, &pool, precision, 64).feed(&[sotto::base::Token(1)], 1));
        assert!(found == wanted, "other bits");
    }
    let folder = Folder::new();
    let to = folder.join("x.gguf");
    let output = run(&["pack", path.to_str().unwrap(), "-o", to.to_str().unwrap()]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("in memory alone") && !to.exists());
}

/// A file with its checksum made right again, as far as it can be read.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let key = b"sotto.pack.header_checksum";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    if let Err(FormatError::Checksum { found, .. }) = gguf::parse("f", Arc::new(bytes.clone())) {
        bytes[at..at + 8].copy_from_slice(&found.to_le_bytes());
    }
    bytes
}

#[test]
fn damaged_packed_files_are_refused() {
    let folder = Folder::new();
    let model = Model::open(&crate::support::stories()).unwrap();
    let path = folder.join("packed.gguf");
    let checkpoint = write(&model, &path, usize::MAX);
    let start = checkpoint.tensors().map(|(_, t)| t.range.start).min().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| -> Result<(), String> {
        let checkpoint = gguf::parse("f", Arc::new(bytes.to_vec())).map_err(|e| e.to_string())?;
        let model = Model::new(Arc::new(checkpoint)).map_err(|e| e.to_string())?;
        // Whatever was accepted runs.
        drop(logits(&model, &pool(Tier::Scalar), Precision::default()));
        Ok(())
    };
    open(&whole).unwrap();
    // A byte of the header, anywhere.
    for at in (0..start).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert!(open(&bytes).is_err(), "byte {at} changed");
        // Whoever writes such a file can write its checksum too: then it is refused for another reason, or runs.
        let _ = open(&sealed(bytes));
    }
    for n in [0, 3, 30, 100, start - 1, start, whole.len() - 1] {
        assert!(open(&whole[..n]).is_err(), "cut to {n} bytes");
    }
    let find =
        |text: &str| whole.windows(text.len()).position(|w| w == text.as_bytes()).unwrap() + text.len();
    let with = |at: usize, with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        open(&sealed(bytes)).unwrap_err()
    };
    let said = with(find("sotto.pack.version") + 4, &2_u64.to_le_bytes());
    assert!(said.contains("layout 2") && said.contains("pack the model anew"), "{said}");
    // A tensor info: dimensions, type, offset.
    let info = find("blk.0.attn_q.weight");
    let said = with(info + 20, &0x5350_00ff_u32.to_le_bytes());
    assert!(said.contains("type number 1397752063"), "packed, of an unknown type: {said}");
    let said = with(info + 24, &(u64::MAX - 63).to_le_bytes());
    assert!(said.contains("beyond any file"), "{said}");
    let said = with(info + 12, &(1_u64 << 40).to_le_bytes());
    assert!(said.contains("blk.0.attn_q.weight"), "{said}");
    let mut bytes = whole.clone();
    bytes[find("sotto.pack.version") - 1] = b'x';
    assert!(open(&sealed(bytes)).unwrap_err().contains("sotto.pack.version"), "no version");

    // Strings whose places are no places; a table to find them by that is all lies changes what is found, and no more.
    let of_tokens = |ending: &str| find(&format!("sotto.pack.strings.tokenizer.ggml.tokens.{ending}")) + 16;
    let said = with(of_tokens("starts"), &u32::MAX.to_le_bytes());
    assert!(said.contains("tokenizer.ggml.tokens.starts is something else"), "{said}");
    let mut bytes = whole.clone();
    bytes[of_tokens("slots")..][..512 * 4].fill(0);
    let lying = gguf::parse("f", Arc::new(sealed(bytes))).unwrap();
    let tokenizer = vocab::tokenizer(&lying).unwrap();
    let mut tokens = Vec::new();
    tokenizer.encode("Once upon a time", Special::AsText, &mut tokens);

    // A byte of a tensor: it is found when it is looked for.
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = folder.write("damaged.gguf", &bytes);
    let said = format::open(&damaged).unwrap().verify(&mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains("the checksum of tensor") && said.contains("damaged.gguf"), "{said}");
    let inspect = |path: &Path| run(&["inspect", path.to_str().unwrap(), "--verify"]);
    let output = inspect(&damaged);
    assert!(output.status.code() == Some(1) && stderr(&output).contains("checksum"), "{}", stderr(&output));
    let output = inspect(&path);
    assert!(output.status.success() && stdout(&output).contains("packed"), "{}", stderr(&output));
    let output = inspect(&crate::support::stories());
    assert!(stderr(&output).contains("has no checksums"), "{}", stderr(&output));
}

/// What the fuzzer does, in small: bytes anywhere in the header, with the checksum made right again.
#[test]
fn packed_files_changed_anywhere_are_read_or_refused() {
    let folder = Folder::new();
    let source = folder.write("tiny.gguf", made::llama(made::TINY).bytes());
    let checkpoint = write(&Model::open(&source).unwrap(), &folder.join("packed.gguf"), usize::MAX);
    let start = checkpoint.tensors().map(|(_, t)| t.range.start).min().unwrap();
    let whole = std::fs::read(folder.join("packed.gguf")).unwrap();
    targets::packed_file(&whole);
    arbtest::arbtest(|u| {
        let mut bytes = whole.clone();
        for _ in 0..u.int_in_range(1..=4)? {
            bytes[u.int_in_range(0..=start - 1)?] = *u.choose(&[0, 1, 0x20, 0x7f, 0x80, 0xff])?;
        }
        bytes.truncate(u.int_in_range(start - 100..=whole.len())?);
        targets::packed_file(&bytes);
        Ok(())
    });
}

#[test]
fn a_packed_file_is_there_only_as_a_whole() {
    let folder = Folder::new();
    let (model, path) = (Model::open(&crate::support::stories()).unwrap(), folder.join("packed.gguf"));
    let names = || std::fs::read_dir(folder.join("")).unwrap().count();
    let mut packer = Packer::file(&model, Packer::image(&model, "", None).unwrap(), &path, 0).unwrap();
    for _ in 0..3 {
        assert!(packer.work(&pool(Tier::Scalar), 10_000).unwrap());
        assert!(!path.exists() && names() == 1);
    }
    drop(packer);
    assert_eq!(names(), 0, "an unfinished file is left");
    let image = Packer::image(&model, "", None).unwrap();
    let said = Packer::file(&model, image, &path, u64::MAX).unwrap_err().to_string();
    assert!(said.contains("bytes of room are needed") && names() == 0, "{said}");
}

#[test]
fn the_command_packs_and_the_file_runs() {
    let folder = Folder::new();
    let (from, to) = (crate::support::stories(), folder.join("packed.gguf"));
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let output = run(&["pack", from, "-o", to, "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("\"packed_tensors\""), "{}", stdout(&output));
    assert!(stderr(&run(&["pack", from, "-o", to])).contains("--force"));
    assert!(run(&["pack", from, "-o", to, "--force"]).status.success());
    assert!(stderr(&run(&["pack", to])).contains("packed already"));
    let said = |model: &str| {
        let prompt = "Once upon a time";
        let args = ["complete", "--local", "--model", model, "--max-tokens", "20", "--temperature", "0"];
        let mut command = crate::support::sotto(&args);
        command.arg(prompt).env("SOTTO_CPU", "scalar");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(said(from), said(to));
}

#[test]
fn a_narrow_head_says_what_it_costs() {
    let folder = Folder::new();
    // An output matrix of its own, and one that is the embedding.
    let own = folder.write("own.gguf", made::llama(made::SLOW).bytes());
    let tied = fixture("models/llama-tied/model.gguf");
    for (from, n_more) in [(own, 0), (tied, 1)] {
        let to = folder.join("narrow.gguf");
        let args = ["pack", from.to_str().unwrap(), "-o", to.to_str().unwrap(), "--force", "--json"];
        let output = run(&[&args[..], &["--head", "q4_0"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let told: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        let divergence = told["divergence"].as_f64().unwrap();
        assert!(divergence > 0.0 && divergence < 0.2, "{told}");
        let [wide, narrow] = [&from, &to].map(|path| format::open(path).unwrap());
        assert_eq!(narrow.tensors().count(), wide.tensors().count() + n_more);
        let head = narrow.tensor("output.weight").unwrap();
        assert!(head.packed && head.quant == sotto::quant::Quant::Q4_0);
        let embedding = |file: &Checkpoint| file.bytes(file.tensor("token_embd.weight").unwrap()).to_vec();
        assert!(embedding(&wide) == embedding(&narrow), "the embedding is as it was");
        narrow.verify(&mut |_, _| {}).unwrap();
    }
    let output = run(&["pack", "x.gguf", "--head", "q8_0"]);
    assert!(stderr(&output).contains("q4_0 is taken"), "{}", stderr(&output));
}

fn packed_by(cache: &Cache, source: &Path) -> Result<Checkpoint, PackError> {
    let mut packer = cache.packer(&Model::open(source)?, source)?;
    while packer.work(&pool(Tier::Scalar), usize::MAX)? {}
    packer.finish()
}

#[test]
fn a_cache_knows_what_its_files_were_made_of() {
    let folder = Folder::new();
    let dir = folder.join("a/cache");
    let cache = Cache { dir: dir.clone(), bytes_max: 1 << 20 };
    let names = || std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let source = folder.join("one.gguf");
    std::fs::copy(crate::support::stories(), &source).unwrap();
    assert!(cache.find(&source).unwrap().is_none(), "nothing is there");
    packed_by(&cache, &source).unwrap();
    assert!(cache.find(&source).unwrap().is_some_and(|found| found.is_packed()));
    assert!(cache.find(&folder.join("none.gguf")).unwrap().is_none());

    // Another file under the name.
    let before = identity(&source).unwrap();
    std::fs::remove_file(&source).unwrap();
    std::fs::write(&source, std::fs::read(crate::support::stories()).unwrap()).unwrap();
    assert_ne!(before, identity(&source).unwrap());
    assert!(cache.find(&source).unwrap().is_none(), "made of another");
    packed_by(&cache, &source).unwrap();
    assert!(cache.find(&source).unwrap().is_some() && names().len() == 1, "the old one is replaced");

    // Damage is told, and written over.
    let mut bytes = std::fs::read(&names()[0]).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&names()[0], &bytes).unwrap();
    assert!(cache.find(&source).is_err());
    packed_by(&cache, &source).unwrap();
    assert!(cache.find(&source).unwrap().is_some());

    // The oldest goes where there would be too much; what was left unfinished goes when it is old.
    let other = folder.join("two.gguf");
    std::fs::copy(crate::support::stories(), &other).unwrap();
    let left = [("x.packed.gguf.1-1.tmp", 7_200), ("y.packed.gguf.1-2.tmp", 60)].map(|(name, age)| {
        let path = dir.join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        path
    });
    let small = Cache { bytes_max: bytes.len() as u64 + 1_000, ..cache.clone() };
    packed_by(&small, &other).unwrap();
    assert!(cache.find(&source).unwrap().is_none() && cache.find(&other).unwrap().is_some());
    assert!(!left[0].exists() && left[1].exists());
    let smaller = Cache { bytes_max: 1_000, ..cache.clone() };
    assert!(matches!(packed_by(&smaller, &source), Err(PackError::Bound { .. })));
    // A place that is none.
    let nowhere = Cache { dir: source.join("x"), ..cache };
    assert!(matches!(packed_by(&nowhere, &source), Err(PackError::Write { .. })));
    assert!(nowhere.find(&source).unwrap().is_none());
    assert_eq!(pack::LAYOUT, 1, "a new layout needs a file of the old one here");
}

/// What a loaded packed file takes of memory for itself: nothing of its weights.
#[test]
fn weights_of_a_packed_file_are_nobodys_own() {
    let folder = Folder::new();
    let source = folder.write("slow.gguf", made::llama(made::SLOW).bytes());
    let path = folder.join("packed.gguf");
    drop(write(&Model::open(&source).unwrap(), &path, usize::MAX));
    let (run, most) = crate::peak::of(|| {
        let model = Model::open(&path).unwrap();
        let pool = pool(Tier::Scalar);
        let n = logits(&model, &pool, Precision::default()).len();
        (model.file_bytes(), n)
    });
    assert!(run.0 > 15_000_000 && run.1 > 0);
    // The cache of 64 positions, the buffers of a step of 128 tokens, and the vocabulary.
    assert!(most < 8_000_000, "{most} bytes");
}
