//! Model files that are cut short, lie, or ask for more than there is; templates that never end.

use super::*;
use crate::support::NO_CACHE;
use crate::support::gguf::{F32, TINY, V};

/// A kind of damage with what must be said about it.
struct Damage {
    name: &'static str,
    bytes: Vec<u8>,
    words: Vec<String>,
}

/// A truncated, a lying and an oversized file of each sort.
fn damaged() -> Vec<Damage> {
    let whole = gguf::llama(TINY).bytes();
    let n = whole.len();
    let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let with = |change: &dyn Fn(&mut gguf::File)| {
        let mut file = gguf::llama(TINY);
        change(&mut file);
        file.bytes()
    };
    let row = |name, bytes, w: &[&str]| Damage { name, bytes, words: words(w) };
    vec![
        row("empty", Vec::new(), &["0 bytes long"]),
        row(
            "another kind",
            b"PK\x03\x04 and so on".to_vec(),
            &["begins with bytes [50, 4b, 03, 04]", "GGUF"],
        ),
        row("cut in the header", whole[..10].to_vec(), &["needs 8 bytes, 2 remain", "cut short"]),
        row("cut in the metadata", whole[..200].to_vec(), &["at most", "possible here"]),
        row(
            "cut in the weights",
            whole[..n - 100].to_vec(),
            &["output_norm.weight", "needs 128 bytes, 28 remain"],
        ),
        row("version", with(&|f| f.version = 9), &["GGUF version 9", "1 to 3"]),
        row(
            "tensors",
            with(&|f| f.n_tensors = Some(1 << 40)),
            &["tensor count says 1099511627776", "at most 1653 possible here"],
        ),
        row("keys", with(&|f| f.n_keys = Some(1 << 40)), &["metadata count says 1099511627776", "at most"]),
        row(
            "a string beyond the file",
            with(&|f| f.set("general.name", V::Raw(8, u64::MAX.to_le_bytes().to_vec()))),
            &["general.name", "needs 18446744073709551615 bytes"],
        ),
        row(
            "an array beyond the file",
            with(&|f| {
                f.set("x", V::Raw(9, [&10_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat()))
            }),
            &["key x", "says 1152921504606846976"],
        ),
        row(
            "a shape beyond the addresses",
            with(&|f| f.tensor("output.weight").dims = vec![1 << 40, 1 << 40]),
            &["output.weight", "1099511627776"],
        ),
        row(
            "no rows",
            with(&|f| f.tensor("output.weight").dims = vec![32, 0]),
            &["output.weight", "[32, 0]", "a dimension is 0"],
        ),
        row(
            "half a block",
            with(&|f| f.tensor("output.weight").dims = vec![33, 512]),
            &["output.weight", "multiple of 32"],
        ),
        row(
            "an offset beyond the file",
            with(&|f| f.tensor("output_norm.weight").offset = Some(1 << 50)),
            &["output_norm.weight", "1125899906", "needs 128 bytes, 0 remain"],
        ),
        row(
            "overlapping tensors",
            with(&|f| f.tensor("output_norm.weight").offset = Some(0)),
            &["begins inside tensor", "ends at byte"],
        ),
        row(
            "an offset beside the alignment",
            with(&|f| f.tensor("output_norm.weight").offset = Some(8)),
            &["output_norm.weight", "alignment 32"],
        ),
        row(
            "two of one name",
            with(&|f| f.tensor("output_norm.weight").name = "output.weight".into()),
            &["tensor output.weight", "occurs twice"],
        ),
        row(
            "an unknown type",
            with(&|f| f.tensor("output.weight").kind = 77),
            &["tensor output.weight", "type number 77", "Q4_K (12)"],
        ),
        row(
            "a norm in blocks",
            with(&|f| {
                let norm = f.tensor("output_norm.weight");
                (norm.kind, norm.data) = (gguf::Q8_0, vec![0; 34]);
            }),
            &["output_norm.weight", "Q8_0", "F32, F16 or BF16"],
        ),
        row(
            "no architecture",
            with(&|f| f.keys.retain(|(key, _)| key != "general.architecture")),
            &["general.architecture is absent"],
        ),
        row(
            "an architecture of the future",
            with(&|f| f.set("general.architecture", V::Str("mammoth".into()))),
            &["architecture mammoth is not supported", "llama"],
        ),
        row(
            "a missing tensor",
            with(&|f| f.tensors.retain(|t| t.name != "blk.0.ffn_up.weight")),
            &["blk.0.ffn_up.weight is absent"],
        ),
        row(
            "a tensor too many",
            with(&|f| f.tensor("output_norm.weight").name = "output_norm.waste".into()),
            &["output_norm.weight is absent"],
        ),
        row(
            "other sizes than the tensors",
            with(&|f| f.set("llama.feed_forward_length", V::U32(64))),
            &["blk.0.ffn_down.weight", "32 rows of 32", "32 rows of 64"],
        ),
        row(
            "four billion layers",
            with(&|f| f.set("llama.block_count", V::U32(u32::MAX))),
            &["llama.block_count is 4294967295", "1 to 1024"],
        ),
        row(
            "no heads",
            with(&|f| f.set("llama.attention.head_count", V::U32(0))),
            &["llama.attention.head_count is 0", "1 to"],
        ),
        row(
            "a norm that divides by nothing",
            with(&|f| f.set("llama.attention.layer_norm_rms_epsilon", V::F32(f32::NAN))),
            &["layer_norm_rms_epsilon", "NaN", "finite number"],
        ),
        row(
            "a vocabulary of another size",
            with(&|f| f.set("tokenizer.ggml.tokens", V::Strings(vec!["<unk>".into(), "<s>".into()]))),
            &["2", "512"],
        ),
        row(
            "a begin token outside the vocabulary",
            with(&|f| f.set("tokenizer.ggml.bos_token_id", V::U32(9999))),
            &["9999", "512"],
        ),
        row(
            "a vector of more floats",
            with(&|f| {
                let norm = f.tensor("output_norm.weight");
                (norm.kind, norm.dims, norm.data) = (F32, vec![64], vec![0; 256]);
            }),
            &["output_norm.weight", "1 rows of 64", "1 rows of 32"],
        ),
    ]
}

#[test]
fn damaged_files_are_refused_by_name_and_number() {
    let folder = Folder::new();
    for damage in damaged() {
        let file = folder.write("m.gguf", &damage.bytes);
        let words: Vec<&str> = damage.words.iter().map(String::as_str).collect();
        let model = file.display().to_string();
        // In a process that may have 1 GB of addresses: what a file claims is never allocated.
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sotto")])
            .args(["complete", "--model", &model, "--threads", "1", "--max-tokens", "1", "x"])
            .env_remove("SOTTO_MODEL")
            .envs([NO_CACHE])
            .output()
            .unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{}: {message}{}", damage.name, stdout(&output));
        assert!(output.stdout.is_empty() && message.starts_with("sotto: "), "{}: {message}", damage.name);
        assert!(message.contains("m.gguf"), "{}: {message}", damage.name);
        says(&message, &words);
    }
}

#[test]
fn a_daemon_with_a_damaged_file_says_so_and_lives() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let all = damaged();
    for (i, damage) in all.iter().enumerate() {
        std::fs::write(models.join(format!("m{i}.gguf")), &damage.bytes).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    let before = answers(&daemon);
    let idle = daemon.memory_kib("VmRSS");
    for (i, damage) in all.iter().enumerate() {
        let body = json!({"model": format!("m{i}"), "input": "x", "raw": true}).to_string();
        let answer = ask(&daemon.socket, &post(NATIVE, &body));
        let code =
            if damage.name == "an architecture of the future" { "unsupported_model" } else { "load_failed" };
        assert_eq!(
            (answer.status, answer.error("code").as_str()),
            (503, code),
            "{}: {answer:?}",
            damage.name
        );
        // A message on the wire is bounded; it keeps its beginning.
        says(&answer.error("message"), &[&format!("m{i}.gguf")]);
    }
    assert_eq!(answers(&daemon), before);
    let grown = daemon.memory_kib("VmRSS").saturating_sub(idle);
    assert!(grown < 4_096, "{} refused files cost {grown} KiB", all.len());
}

/// Weights are not looked at before they are used.
#[test]
fn a_model_whose_weights_are_not_finite_is_damaged_and_the_daemon_lives() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let mut file = gguf::llama(TINY);
    file.tensor("output_norm.weight").data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(models.join("nan.gguf"), file.bytes()).unwrap();
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let mut daemon = Daemon::start(&folder, &stories(), &config);
    let before = answers(&daemon);
    let body = json!({"model": "nan", "tokens": [300, 301, 302]}).to_string();
    let answer = ask(&daemon.socket, &post(NATIVE, &body));
    assert_eq!((answer.status, answer.error("code").as_str()), (503, "damaged_model"), "{answer:?}");
    assert_eq!(answer.error("type"), "server_error");
    says(
        &answer.error("message"),
        &["model nan", "not finite", "at position 2", "check its checksum and get it anew"],
    );
    says(&daemon.logged("not finite"), &["model nan", "position 2"]);
    assert_eq!(answers(&daemon), before);
    let output = run(&["complete", "x", "--model", "nan", "--socket", &daemon.socket.display().to_string()]);
    assert_eq!(output.status.code(), Some(2), "a file that is damaged is no fault of the program");
    says(&stderr(&output), &["damaged_model: model nan", "at position 4"]);
}

/// Templates are programs from strangers: what one does past every bound ends its own request.
#[test]
fn a_template_that_never_ends_costs_its_own_request() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let double =
        "{% set ns = namespace(s=[1,2]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    let nest =
        "{% set ns = namespace(s=1) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}";
    let itself = "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns|string|length }}";
    let hostile = [
        ("double", format!("{double}{{{{ ns.s|length }}}}")),
        ("nest", format!("{nest}{{{{ ns.s == ns.s }}}}{{{{ ns.s|string|length }}}}")),
        ("itself", itself.to_owned()),
        ("long", "x".repeat(3 << 20)),
    ];
    for (name, template) in &hostile {
        let mut file = gguf::llama(TINY);
        file.set("tokenizer.chat_template", V::Str(template.clone()));
        std::fs::write(models.join(format!("{name}.gguf")), file.bytes()).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    let before = answers(&daemon);
    daemon.forget_peak();
    let idle = daemon.memory_kib("VmHWM");
    for (name, _) in hostile {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "hi"}]}).to_string();
        let answer = ask(&daemon.socket, &post(CHAT, &body));
        assert_eq!(
            (answer.status, answer.error("code").as_str()),
            (400, "invalid_value"),
            "{name}: {answer:?}"
        );
        assert_eq!(answer.error("param"), "messages");
        says(&answer.error("message"), &[name, "chat template"]);
        assert_eq!(answers(&daemon), before, "{name}");
    }
    let grown = daemon.memory_kib("VmHWM").saturating_sub(idle);
    assert!(grown < 4_096, "hostile templates cost {grown} KiB");
}

/// Heads narrower than the two numbers that each of them has beside its values.
#[test]
fn recurrent_heads_of_one_value_run() {
    let folder = Folder::new();
    for dim_v in [1, 2, 3] {
        let model = folder.write("narrow.gguf", gguf::delta_net(dim_v).bytes()).display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_sotto"))
            .args(["complete", "--model", &model, "--threads", "2", "--max-tokens", "3", &"ab ".repeat(100)])
            .env_remove("SOTTO_MODEL")
            .envs([NO_CACHE])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{dim_v}: {}", stderr(&output));
    }
}

/// Roles that a file calls user-defined are text where somebody writes them into a message.
#[test]
fn nobody_writes_a_role_into_a_message() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    for (name, template) in [("with", Some("<|User|>{{ messages[0].content }}<a>")), ("without", None)] {
        let mut file = gguf::llama(TINY);
        file.define(300, "<|User|>");
        file.define(301, "<a>");
        if let Some(template) = template {
            file.set("tokenizer.chat_template", V::Str(template.into()));
        }
        std::fs::write(models.join(format!("{name}.gguf")), file.bytes()).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    let n_tokens = |body: Value| {
        let answer = ask(&daemon.socket, &post(NATIVE, body.to_string()));
        assert_eq!(answer.status, 200, "{answer:?}");
        let done: Value = answer.text().lines().last().expect("events").parse().expect("an event");
        done["usage"]["prompt_tokens"].as_u64().expect("a number")
    };
    for (model, own) in [("with", 2), ("without", 0)] {
        let said = |text: &str| n_tokens(json!({"model": model, "input": text, "max_tokens": 1}));
        // Bos, the 3 bytes of the space before, and a token for each byte.
        assert_eq!(said("<|User|>"), 4 + 8 + own, "{model}");
        assert_eq!(said("<|User"), 4 + 6 + own, "{model}");
        assert_eq!(said("|User|>"), 4 + 7 + own, "{model}");
        assert_eq!(
            said("<a>"),
            if own > 0 { 4 + 3 + own } else { 2 },
            "a tag is one where the template spells it"
        );
        let raw = json!({"model": model, "input": "<|User|>", "raw": true, "max_tokens": 1});
        assert_eq!(n_tokens(raw), 2, "{model}: text as it is");
    }
}

/// Off unless asked, and asked in vain where the template has no switch. The templates repeat what they are told in
/// their refusal.
#[test]
fn a_model_thinks_only_when_asked() {
    let folder = Folder::new();
    let models = folder.join("models");
    std::fs::create_dir(&models).unwrap();
    let switch = "{{ raise_exception('told ' ~ enable_thinking ~ ', ' ~ reasoning_effort|default('nothing') ~ ', ' ~ \
        thinking|default('nothing') ~ ', ' ~ (tools is defined)) }}";
    for (name, template) in [("switch", switch), ("none", "{{ raise_exception('no switch') }}")] {
        let mut file = gguf::llama(TINY);
        file.set("tokenizer.chat_template", V::Str(template.into()));
        std::fs::write(models.join(format!("{name}.gguf")), file.bytes()).unwrap();
    }
    let config = format!("[models]\ndirs = [{:?}]\n", models.display().to_string());
    let daemon = Daemon::start(&folder, &stories(), &config);
    for (model, effort, code, words) in [
        ("switch", None, "invalid_value", "told False, nothing, nothing, False"),
        ("switch", Some("none"), "invalid_value", "told False, nothing, nothing, False"),
        ("switch", Some("high"), "invalid_value", "told True, high, True, False"),
        ("none", None, "invalid_value", "no switch"),
        ("none", Some("low"), "unsupported_field", "reasoning_effort: the chat template of model none"),
    ] {
        let messages = json!([{"role": "user", "content": "hi"}]);
        for (route, body) in [
            (CHAT, json!({"model": model, "messages": messages, "reasoning_effort": effort})),
            (NATIVE, json!({"model": model, "input": "hi", "reasoning_effort": effort})),
        ] {
            let answer = ask(&daemon.socket, &post(route, body.to_string()));
            assert_eq!((answer.status, answer.error("code").as_str()), (400, code), "{body}: {answer:?}");
            says(&answer.error("message"), &[words]);
        }
    }
}

#[test]
fn a_cache_that_cannot_be_had_is_refused_with_its_size() {
    let folder = Folder::new();
    let mut file = gguf::llama(TINY);
    file.set("llama.context_length", V::U32(1 << 24));
    let model = folder.write("long.gguf", file.bytes()).display().to_string();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sotto")])
        .args(["complete", "--model", &model, "--threads", "1", "--context", "16777216", "x"])
        .env_remove("SOTTO_MODEL")
        .envs([NO_CACHE])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // One layer, one head of 16 numbers, keys and values, 2 bytes each.
    let need = (1_u64 << 24) * 16 * 2 * 2;
    says(&stderr(&output), &[&format!("{need} bytes"), "16777216 positions", "smaller context"]);
}
