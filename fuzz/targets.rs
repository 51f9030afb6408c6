//! What the fuzz targets do with their input. Nothing here knows the fuzzer, so that a test runs the same over the
//! fixtures (`tests/formats/fuzzed.rs`).

use std::sync::Arc;

use sotto::format::hf::{Shard, Texts, index_files, onnx, template_in, translate};
use sotto::format::{Checkpoint, FormatError, gguf, join};
use sotto::model::{Plan, vocab};
use sotto::quant::{Quant, packed};
use sotto::text::{
    Chat, Json, Moment, Source, Special, Template, TemplateInput, TextError, Tokenizer, TokenizerConfig,
};

/// One GGUF file, and the same bytes as one of two of a set.
pub fn gguf_file(data: &[u8]) {
    if let Ok(checkpoint) = gguf::parse("f", Arc::new(data.to_vec())) {
        use_all(&checkpoint);
    }
    // A second file begins where the second magic stands.
    let second = data.windows(4).skip(4).position(|w| w == b"GGUF").map_or(data.len(), |at| at + 4);
    let parse = |bytes: &[u8]| gguf::parse("f", Arc::new(bytes.to_vec()));
    if let (Ok(a), Ok(b)) = (parse(&data[..second]), parse(&data[second..]))
        && let Ok(checkpoint) = join(vec![a, b])
    {
        use_all(&checkpoint);
    }
}

/// A packed file, whose checksum is made right first: who lies can count.
pub fn packed_file(data: &[u8]) {
    let key = b"sotto.pack.header_checksum";
    let at = data.windows(key.len()).position(|w| w == key).map(|at| at + key.len() + 4);
    let parsed = gguf::parse("f", Arc::new(data.to_vec()));
    let (Some(at), Err(FormatError::Checksum { found, .. })) = (at, parsed) else { return gguf_file(data) };
    let mut data = data.to_vec();
    if let Some(place) = data.get_mut(at..at + 8) {
        place.copy_from_slice(&found.to_le_bytes());
    }
    if let Ok(checkpoint) = gguf::parse("f", Arc::new(data)) {
        use_all(&checkpoint);
        let _ = checkpoint.verify(&mut |_, _| {});
    }
}

/// `config.json`, a NUL, and a file of safetensors: header and translation. The first piece is read as the other
/// small files of a directory too.
pub fn safetensors(data: &[u8]) {
    let (config, weights) = pieces(data);
    let _ = index_files("i", config);
    let template = template_in("t", config).ok().flatten();
    let texts =
        Texts { config: config.to_vec(), generation_config: Some(config.to_vec()), chat_template: template };
    let shard = Shard { file: "w".into(), bytes: Arc::new(weights.to_vec()), map: None };
    if let Ok(checkpoint) = translate("d", &texts, vec![shard]) {
        use_all(&checkpoint);
    }
}

/// `config.json`, a NUL, and an ONNX graph, which is the file beside it too: its weights, as they are to be written anew.
pub fn onnx_graph(data: &[u8]) {
    let (config, graph) = pieces(data);
    let texts = Texts { config: config.to_vec(), ..Texts::default() };
    let shard = |file: &str| Shard { file: file.into(), bytes: Arc::new(graph.to_vec()), map: None };
    if let Ok(checkpoint) = onnx::translate("d", &texts, shard("g"), &|name| Ok(shard(name))) {
        use_all(&checkpoint);
        // Of the vocabulary there is none: it ends there at the latest.
        assert!(Plan::new(Arc::new(checkpoint), Quant::Q8_0).is_err());
    }
}

/// A text, a NUL, and a vocabulary, which encodes the text and decodes it: a GGUF file, a `tokenizer.json` (with a NUL
/// and a `tokenizer_config.json` behind it), or a `tokenizer.model`.
pub fn tokenizer(data: &[u8]) {
    let (text, file) = pieces(data);
    let Some(Ok(tokenizer)) = source(file).map(Tokenizer::new) else { return };
    let text = String::from_utf8_lossy(text);
    for special in [Special::AsText, Special::Parse] {
        let mut tokens = Vec::new();
        tokenizer.encode(&text, special, &mut tokens);
        let n = tokenizer.n_vocab();
        for token in &tokens {
            assert!((token.0 as usize) < n, "token {} of {n}", token.0);
            let _ = (tokenizer.is_end(*token), tokenizer.is_special(*token));
        }
        let _ = (tokenizer.decode(&tokens), tokenizer.decode_with_control(&tokens));
    }
    // The same as a message of a conversation.
    let chat = Chat {
        messages: vec![Json::message("user", &text)],
        variables: Vec::new(),
        must_read: Vec::new(),
        add_generation_prompt: false,
        moment: Moment::from_unix(0),
    };
    let render = |input: &TemplateInput| Ok::<_, TextError>(input.chat.contents().concat());
    let tokens = tokenizer.encode_chat(render, &chat).expect("a plain role");
    assert!(tokens.iter().all(|token| token.index() < tokenizer.n_vocab()));
}

fn source(file: &[u8]) -> Option<Source> {
    if file.starts_with(b"GGUF") {
        let checkpoint = gguf::parse("f", Arc::new(file.to_vec())).ok()?;
        return vocab::source(&checkpoint).ok()?;
    }
    if !file.starts_with(b"{") {
        return Source::from_sentencepiece(file, None).ok();
    }
    let (json, config) = pieces(file);
    let config = TokenizerConfig::parse(config).ok();
    Source::from_tokenizer_json(json, config.as_ref()).ok()
}

/// Values that grow from step to step, or are repeated.
const UNBOUNDED: &[&str] = &["namespace", "*", "+", "~", "macro", "recursive", "import", "include"];

/// A chat template, a NUL, and the text of a message. Any source is parsed; it is rendered here, in this process,
/// only where it has none of the means by which one instruction may take unbounded work. Those are why the daemon
/// renders in a child under the kernel's limits (`side/render.rs`); what they cost is no finding.
pub fn template(data: &[u8]) {
    let (source, text) = pieces(data);
    let (Ok(source), text) = (std::str::from_utf8(source), String::from_utf8_lossy(text)) else { return };
    let Ok(template) = Template::new(source) else { return };
    if UNBOUNDED.iter().any(|word| source.contains(word)) {
        return;
    }
    let messages = [("system", "Be brief."), ("user", &*text), ("assistant", "")];
    for add_generation_prompt in [false, true] {
        let chat = Chat {
            messages: messages.iter().map(|(role, content)| Json::message(role, content)).collect(),
            variables: vec![("tools".into(), Json::null())],
            must_read: Vec::new(),
            add_generation_prompt,
            moment: Moment::from_unix(1_700_000_000),
        };
        let _ = template.render(&TemplateInput { chat, bos: "<s>".into(), eos: "</s>".into() });
    }
}

/// Input in two pieces: what is before the first NUL, and what is after it.
fn pieces(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// Asks for every value in every way and for the bytes of every tensor.
///
/// # Panics
/// When a tensor that was read has other bytes than its type and shape need.
fn use_all(checkpoint: &Checkpoint) {
    for (key, value) in checkpoint.metadata() {
        let _ = value.describe();
        let _ = (checkpoint.uint(key), checkpoint.float(key), checkpoint.bool(key), checkpoint.str(key));
        let _ =
            (checkpoint.floats(key), checkpoint.small_ints(key), checkpoint.ints(key), checkpoint.bools(key));
        let _ = checkpoint.uint_per_layer(key, 4);
        if let Ok(Some(strings)) = checkpoint.strings(key) {
            (0..=strings.len()).for_each(|i| assert_eq!(strings.get(i).is_some(), i < strings.len()));
        }
    }
    for (name, info) in checkpoint.tensors() {
        let bytes = checkpoint.bytes(info).len();
        let row = info.quant.row_bytes(info.n_cols).expect("the reader checked the width");
        let panels = || packed::bytes(info.quant, info.n_rows, info.n_cols);
        let wanted = if info.packed { panels() } else { row.checked_mul(info.n_rows) };
        assert_eq!(Some(bytes), wanted, "{name}");
        assert_eq!(info.shape.iter().product::<usize>(), info.n_cols * info.n_rows, "{name}");
    }
}
