//! A model that says what is known beforehand, in times that are asked for: for whoever tests a client. Admission,
//! templates, tokenizing, the scheduler, memory and doors are the true ones. The decoder runs a few kilobytes of zeros,
//! and what they foretell gives way to the mock's own word (`docs/decisions/0021-mock.md`).

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Code, Fault, ModelFile};
use crate::base::{SharedBytes, Token};
use crate::format::{Checkpoint, FormatError, gguf};
use crate::os::clock;
use crate::text::letter_of;

/// Longest sleep between two looks at what came in, microseconds.
const SLICE_US: u64 = 5_000;
/// When to come again, where a code tells that.
const RETRY_MS: u64 = 1_000;

/// The name of the models, alone for the plain one, and what the others begin with.
const NAME: &str = "mock";
const ENDLESS: &str = "endless";

/// What cannot be had of a sound daemon by a request alone: said before any text.
const REFUSALS: [Code; 10] = [
    Code::NotAuthorized,
    Code::ModelBusy,
    Code::SessionBusy,
    Code::QueueFull,
    Code::RateLimited,
    Code::InsufficientMemory,
    Code::ShuttingDown,
    Code::LoadFailed,
    Code::UnsupportedModel,
    Code::DeadlineExceeded,
];
/// The same, said within an answer.
const BREAKS: [Code; 4] = [Code::DamagedModel, Code::Cancelled, Code::Stalled, Code::Internal];

/// Those that a load may also end with.
const LOAD_FAULTS: [Code; 3] = [Code::InsufficientMemory, Code::LoadFailed, Code::UnsupportedModel];

/// Texts and tokens that frame a message; before them stand the 256 bytes.
const CONTROL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
const START: Token = Token(256);
const END: Token = Token(257);
const N_VOCAB: usize = 256 + CONTROL.len();
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
                        '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// Positions that it was made for.
const N_CTX: u32 = 32_768;
const WIDTH: usize = 32;

/// How a mock behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mock {
    /// Tokens of each answer in a second; 0: as many as the machine makes.
    pub tokens_per_s: u64,
    /// Tokens of prompts in a second, of all together; 0: likewise.
    pub prefill_tokens_per_s: u64,
    /// Milliseconds that a load takes.
    pub load_ms: u64,
    /// Tokens of an answer that come before a failure within it.
    pub fail_after: u64,
    /// Of the requests to `mock`, each that is a multiple of this number fails with this code.
    pub fail: Option<(Code, u64)>,
}

impl Default for Mock {
    fn default() -> Self {
        Self { tokens_per_s: 0, prefill_tokens_per_s: 0, load_ms: 0, fail_after: 5, fail: None }
    }
}

impl FromStr for Mock {
    type Err = Fault;

    /// Reads `KEY=VALUE,...`, such as `tokens_per_s=50,fail=internal@10`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = |what: String| Fault::new(Code::InvalidConfig, what);
        let mut mock = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let number = |max: u64| match value.parse::<u64>() {
                Ok(n) if n <= max => Ok(n),
                _ => Err(bad(format!("{key}: got {value:?}, 0 to {max} are taken"))),
            };
            match key {
                "tokens_per_s" => mock.tokens_per_s = number(1_000_000)?,
                "prefill_tokens_per_s" => mock.prefill_tokens_per_s = number(1_000_000)?,
                "load_ms" => mock.load_ms = number(3_600_000)?,
                "fail_after" => mock.fail_after = number(1_000_000)?,
                "fail" => {
                    let (name, every) = value.split_once('@').unwrap_or((value, "1"));
                    let code = codes().find(|code| code.as_str() == name);
                    let every = every.parse().ok().filter(|n| (1..=1_000_000).contains(n));
                    mock.fail = Some(code.zip(every).ok_or_else(|| {
                        let names: Vec<&str> = codes().map(Code::as_str).collect();
                        let names = names.join(", ");
                        bad(format!(
                            "fail: got {value:?}, CODE@N is taken: N from 1 to 1000000, CODE one of {names}"
                        ))
                    })?);
                }
                _ => {
                    let keys = "tokens_per_s, prefill_tokens_per_s, load_ms, fail_after, fail";
                    return Err(bad(format!("{key:?} is no key of a mock; there are {keys}")));
                }
            }
        }
        Ok(mock)
    }
}

fn codes() -> impl Iterator<Item = Code> {
    REFUSALS.into_iter().chain(BREAKS)
}

impl Mock {
    /// Its models: `mock` repeats what it is told, `mock-endless` does not stop repeating it, and one for each code
    /// fails with that.
    #[must_use]
    pub fn models() -> Vec<ModelFile> {
        let others = std::iter::once(ENDLESS).chain(codes().map(Code::as_str));
        let ids = std::iter::once(NAME.to_owned()).chain(others.map(|what| format!("{NAME}-{what}")));
        ids.map(|id| ModelFile { path: id.as_str().into(), id }).collect()
    }

    /// A file of zeros with the vocabulary of bytes.
    pub(super) fn checkpoint(id: &str) -> Result<Checkpoint, FormatError> {
        let bytes: SharedBytes = Arc::new(file());
        gguf::parse(id, bytes)
    }
}

/// One of its models.
pub(super) struct Play {
    mock: Mock,
    endless: bool,
    fails: Option<Code>,
    n_asked: AtomicU64,
}

impl Play {
    pub(super) fn new(id: &str, mock: Mock) -> Self {
        let what = id.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('-'));
        Self {
            mock,
            endless: what == Some(ENDLESS),
            fails: codes().find(|code| what == Some(code.as_str())),
            n_asked: AtomicU64::new(0),
        }
    }

    /// Why a load of it fails at its end.
    pub(super) fn load_fault(&self) -> Option<Fault> {
        self.fails.filter(|code| LOAD_FAULTS.contains(code)).map(fault)
    }

    /// What it has for one more request.
    pub(super) fn script(&self) -> Script {
        // Only counted: nothing else hangs on the order.
        let n = self.n_asked.fetch_add(1, Ordering::Relaxed) + 1;
        let by_turn = || self.mock.fail.filter(|(_, every)| n.is_multiple_of(*every)).map(|(code, _)| code);
        let fails = self.fails.or_else(by_turn);
        // What is to fail within its answer goes on until it does.
        let endless = self.endless || fails.is_some_and(|code| BREAKS.contains(&code));
        Script { endless, fails, fail_after: self.mock.fail_after }
    }

    /// Lets the time of a step pass that reads `n_prompt` tokens, and `writes` or not. False if `go_on` says that nobody
    /// wants it any more.
    pub(super) fn pace(&self, n_prompt: usize, writes: bool, go_on: &mut dyn FnMut() -> bool) -> bool {
        let us = |n: u64, per_s: u64| n.saturating_mul(1_000_000).checked_div(per_s).unwrap_or(0);
        let read = us(n_prompt as u64, self.mock.prefill_tokens_per_s);
        let until = clock::now_us() + read + us(u64::from(writes), self.mock.tokens_per_s);
        loop {
            let left = until.saturating_sub(clock::now_us());
            if left == 0 {
                return true;
            }
            std::thread::sleep(Duration::from_micros(left.min(SLICE_US)));
            if !go_on() {
                return false;
            }
        }
    }

    /// Sleeps for a slice of a load that began at `began_us`; the share of it that is over, of `total`.
    pub(super) fn load(&self, began_us: u64, total: u64) -> u64 {
        let all = self.mock.load_ms * 1_000;
        let left = all.saturating_sub(clock::now_us().saturating_sub(began_us));
        std::thread::sleep(Duration::from_micros(left.min(SLICE_US)));
        let left = left.saturating_sub(SLICE_US);
        // In steps that show: the file is small, the share of a long load need not be.
        total - (u128::from(total) * u128::from(left)).div_ceil(u128::from(all.max(1))) as u64
    }
}

/// What one request gets.
pub(super) struct Script {
    endless: bool,
    fails: Option<Code>,
    fail_after: u64,
}

impl Script {
    /// Why the request is refused.
    pub(super) fn refusal(&self) -> Option<Fault> {
        self.fails.filter(|code| REFUSALS.contains(code)).map(fault)
    }

    /// Why its answer ends here, behind `n_drawn` tokens.
    pub(super) fn breaks(&self, n_drawn: usize) -> Option<Fault> {
        self.fails.filter(|code| BREAKS.contains(code) && n_drawn as u64 >= self.fail_after).map(fault)
    }

    /// Logits, `[N_VOCAB]`, after `prompt` and so many tokens of the answer: the next byte of the last message of a
    /// user (of the whole prompt where there is none), the end behind it; second likeliest is the message once more.
    pub(super) fn logits(&self, prompt: &[Token], n_drawn: usize) -> Vec<f32> {
        let said = last_message(prompt);
        let again = if said.is_empty() { Token(u32::from(b'.')) } else { said[n_drawn % said.len()] };
        let next = match said.get(n_drawn) {
            Some(token) => *token,
            None if self.endless => again,
            None => END,
        };
        // So far apart that no temperature, penalty or bias of a request comes between.
        let mut logits = vec![-20_000.0; N_VOCAB];
        logits[again.index().min(N_VOCAB - 1)] = -10_000.0;
        logits[next.index().min(N_VOCAB - 1)] = 0.0;
        logits
    }
}

fn fault(code: Code) -> Fault {
    let fault = Fault::new(code, format!("the mock was asked to fail so; its model {NAME} answers"));
    match code.family() {
        super::Family::Busy => fault.retry_after(RETRY_MS),
        _ if matches!(code, Code::InsufficientMemory | Code::ShuttingDown) => fault.retry_after(RETRY_MS),
        _ => fault,
    }
}

/// The tokens of the last message of a user in a conversation, of anything else all.
fn last_message(prompt: &[Token]) -> &[Token] {
    let role: Vec<Token> = b"user\n".iter().map(|b| Token(u32::from(*b))).collect();
    let begins = |at: &usize| prompt[*at] == START && prompt[at + 1..].starts_with(&role);
    let Some(at) = (0..prompt.len()).rev().find(begins) else { return prompt };
    let said = &prompt[at + 1 + role.len()..];
    &said[..said.iter().position(|token| *token == END).unwrap_or(said.len())]
}

/// A GGUF file (version 3) of a llama of one layer whose weights are zeros but for the embedding and the last norm, so that
/// like texts have like vectors.
fn file() -> Vec<u8> {
    let pieces: Vec<String> = (0..=255_u8)
        .map(|byte| letter_of(byte).to_string())
        .chain(CONTROL.iter().map(|&text| text.to_owned()))
        .collect();
    let mut keys = Keys::default();
    keys.text("general.architecture", "llama");
    keys.text("general.name", "mock");
    let width = WIDTH as u32;
    for (key, n) in [
        ("block_count", 1),
        ("context_length", N_CTX),
        ("embedding_length", width),
        ("feed_forward_length", width),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
    ] {
        keys.number(&format!("llama.{key}"), n);
    }
    keys.put("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
    keys.text("tokenizer.ggml.model", "gpt2");
    keys.text("tokenizer.ggml.pre", "gpt-2");
    keys.text("tokenizer.chat_template", TEMPLATE);
    keys.list("tokenizer.ggml.tokens", 8, N_VOCAB, pieces.iter().flat_map(|piece| string(piece)));
    keys.list("tokenizer.ggml.merges", 8, 0, []);
    let kind = |token: usize| if token < 256 { 1_i32 } else { 3 };
    keys.list("tokenizer.ggml.token_type", 5, N_VOCAB, (0..N_VOCAB).flat_map(|t| kind(t).to_le_bytes()));
    keys.number("tokenizer.ggml.eos_token_id", END.0);
    let square = [WIDTH; 2];
    let of_layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut tensors: Vec<(String, &[usize])> =
        of_layer.iter().map(|name| (format!("blk.0.{name}.weight"), &square[..])).collect();
    let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
    tensors.extend(norms.map(|name| (name.to_owned(), &square[..1])));
    tensors.push(("token_embd.weight".to_owned(), &[WIDTH, N_VOCAB]));
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(keys.n.to_le_bytes());
    out.extend(keys.bytes);
    let mut at = 0_u64;
    for (name, shape) in &tensors {
        out.extend(string(name));
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(shape.iter().flat_map(|n| (*n as u64).to_le_bytes()));
        // Type F32; all lengths are multiples of the alignment.
        out.extend(0_u32.to_le_bytes());
        out.extend(at.to_le_bytes());
        at += 4 * shape.iter().product::<usize>() as u64;
    }
    let start = out.len().next_multiple_of(32);
    // The last two tensors. For the embedding any numbers do that differ from byte to byte.
    out.resize(start + at as usize - 4 * WIDTH * (1 + N_VOCAB), 0);
    out.extend((0..WIDTH).flat_map(|_| 1.0_f32.to_le_bytes()));
    let mut bits = 1_u32;
    out.extend((0..WIDTH * N_VOCAB).flat_map(|_| {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let sign = if bits >> 31 == 0 { 1.0_f32 } else { -1.0 };
        sign.to_le_bytes()
    }));
    out
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Metadata on their way into a file.
#[derive(Default)]
struct Keys {
    n: u64,
    bytes: Vec<u8>,
}

impl Keys {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.n += 1;
        self.bytes.extend(string(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn number(&mut self, key: &str, n: u32) {
        self.put(key, 4, &n.to_le_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.put(key, 8, &string(text));
    }

    fn list(&mut self, key: &str, kind: u32, n: usize, items: impl IntoIterator<Item = u8>) {
        let head = kind.to_le_bytes().into_iter().chain((n as u64).to_le_bytes());
        self.put(key, 9, &head.chain(items).collect::<Vec<u8>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|b| Token(u32::from(b))).collect()
    }

    #[test]
    fn behaviour_is_read_strictly() {
        assert_eq!("".parse(), Ok(Mock::default()));
        let asked = "tokens_per_s=50,prefill_tokens_per_s=1000,load_ms=200,fail_after=0,fail=internal@10";
        let mock = Mock {
            tokens_per_s: 50,
            prefill_tokens_per_s: 1_000,
            load_ms: 200,
            fail_after: 0,
            fail: Some((Code::Internal, 10)),
        };
        assert_eq!(asked.parse(), Ok(mock));
        assert_eq!("fail=queue_full".parse::<Mock>().unwrap().fail, Some((Code::QueueFull, 1)));
        for bad in ["speed=1", "load_ms", "load_ms=-1", "load_ms=9999999", "fail=oops", "fail=internal@0"] {
            let fault = bad.parse::<Mock>().unwrap_err();
            assert_eq!(fault.code, Code::InvalidConfig, "{bad}: {}", fault.message);
        }
    }

    #[test]
    fn the_last_message_of_a_user_is_repeated_and_then_the_end_comes() {
        let script = Play::new("mock", Mock::default()).script();
        let said = |prompt: &[Token]| {
            let likeliest = |i| {
                let logits = script.logits(prompt, i);
                Token(logits.iter().position(|x| *x == 0.0).unwrap() as u32)
            };
            (0..).map(likeliest).take_while(|token| *token != END).collect::<Vec<_>>()
        };
        assert_eq!(said(&tokens("abc")), tokens("abc"));
        let mut prompt = Vec::new();
        for text in ["user\none", "assistant\ntwo", "user\nthree\n"] {
            prompt.push(START);
            prompt.extend(tokens(text));
            prompt.push(END);
        }
        prompt.push(START);
        prompt.extend(tokens("assistant\n"));
        assert_eq!(said(&prompt), tokens("three\n"));
    }

    #[test]
    fn every_model_fails_as_its_name_says() {
        let mock = Mock { fail: Some((Code::Internal, 3)), ..Mock::default() };
        let plain = Play::new("mock", mock);
        let told: Vec<bool> = (0..6).map(|_| plain.script().breaks(5).is_some()).collect();
        assert_eq!(told, [false, false, true, false, false, true]);
        for model in Mock::models().iter().skip(2) {
            let script = Play::new(&model.id, Mock::default()).script();
            let fault = script.refusal().or_else(|| script.breaks(5)).unwrap();
            assert_eq!(format!("mock-{}", fault.code.as_str()), model.id);
            assert!(script.breaks(4).is_none(), "{}", model.id);
        }
    }
}
