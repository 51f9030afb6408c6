//! What there is to see of a request while it is under way: numbers that the engine thread leaves and anybody may read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::{Class, GenerationId};

/// What a request waits for, or does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Its prompt is to become tokens.
    #[default]
    Admission,
    /// It has no place yet.
    Queued,
    /// It has one, and its model is not ready.
    Loading,
    /// Its prompt is read.
    Prefill,
    /// Its answer is written.
    Decode,
    /// It was read or written, and rests: its output is full, or others have its place.
    Paused,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Admission, Self::Queued, Self::Loading, Self::Prefill, Self::Decode, Self::Paused];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Paused => "paused",
        }
    }
}

/// A request that is under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Its id.
    pub id: GenerationId,
    /// Whose it is.
    pub uid: u32,
    /// Its service class.
    pub class: Class,
    /// The model that answers; `None` before admission.
    pub model: Option<String>,
    /// What it waits for, or does.
    pub stage: Stage,
    /// Tokens of its prompt; 0 before admission.
    pub prompt_tokens: usize,
    /// Those that were read, or are kept of earlier requests.
    pub prompt_done: usize,
    /// Tokens of its answer so far.
    pub completion_tokens: usize,
    /// The most that it may come to have; 0 before admission.
    pub completion_max: usize,
    /// Since it was submitted, milliseconds.
    pub elapsed_ms: u64,
    /// Tokens a second, of its prompt or its answer, whichever is under way.
    pub tokens_per_s: Option<f64>,
    /// Until its prompt is read, if it goes on like this, milliseconds.
    pub prefill_left_ms: Option<u64>,
}

/// What the engine thread leaves of one request. Relaxed everywhere: numbers are told one by one, and order nothing.
#[derive(Debug)]
pub(super) struct Progress {
    id: GenerationId,
    uid: u32,
    class: Class,
    submitted_us: u64,
    model: OnceLock<String>,
    prompt: AtomicUsize,
    /// Most tokens of the answer.
    most: AtomicUsize,
    stage: AtomicUsize,
    rests: AtomicBool,
    /// Tokens of the prompt when its reading began, those that are read by now, and those of the answer.
    began_with: AtomicUsize,
    read: AtomicUsize,
    written: AtomicUsize,
    /// When the present stage began, and when its numbers changed last.
    since_us: AtomicU64,
    last_us: AtomicU64,
}

impl Progress {
    pub(super) fn new(id: GenerationId, uid: u32, class: Class, submitted_us: u64) -> Self {
        Self {
            id,
            uid,
            class,
            submitted_us,
            model: OnceLock::new(),
            prompt: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            stage: AtomicUsize::new(0),
            rests: AtomicBool::new(false),
            began_with: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            since_us: AtomicU64::new(submitted_us),
            last_us: AtomicU64::new(submitted_us),
        }
    }

    pub(super) fn id(&self) -> &GenerationId {
        &self.id
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// It passed admission, for `model`, with so many tokens of a prompt, and at most so many of an answer.
    pub(super) fn queued(&self, model: &str, n_prompt: usize, n_max: usize, now_us: u64) {
        self.model.get_or_init(|| model.to_owned());
        self.prompt.store(n_prompt, Ordering::Relaxed);
        self.most.store(n_max, Ordering::Relaxed);
        self.enter(Stage::Queued, now_us);
    }

    /// It has a place.
    pub(super) fn placed(&self, now_us: u64) {
        self.enter(Stage::Loading, now_us);
    }

    /// It begins, or begins anew, with `n` tokens.
    pub(super) fn begun(&self, n: usize, now_us: u64) {
        self.began_with.store(n, Ordering::Relaxed);
        self.read.store(n, Ordering::Relaxed);
        self.enter(Stage::Prefill, now_us);
    }

    /// It keeps `n` tokens, of its prompt or more.
    pub(super) fn keeps(&self, n: usize, now_us: u64) {
        let prompt = self.prompt.load(Ordering::Relaxed);
        self.read.store(n.min(prompt), Ordering::Relaxed);
        self.last_us.store(now_us, Ordering::Relaxed);
        if n >= prompt && self.stage.load(Ordering::Relaxed) == Stage::Prefill as usize {
            self.enter(Stage::Decode, now_us);
        }
    }

    /// Its answer has so many tokens.
    pub(super) fn wrote(&self, n: usize, now_us: u64) {
        self.written.store(n, Ordering::Relaxed);
        self.last_us.store(now_us, Ordering::Relaxed);
    }

    /// Whether it goes on in the next steps.
    pub(super) fn rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    fn enter(&self, stage: Stage, now_us: u64) {
        self.stage.store(stage as usize, Ordering::Relaxed);
        self.since_us.store(now_us, Ordering::Relaxed);
        self.last_us.store(now_us, Ordering::Relaxed);
    }

    /// How it stands.
    pub(super) fn look(&self, now_us: u64) -> Watched {
        let number = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        let stage = Stage::ALL.get(number(&self.stage)).copied().unwrap_or_default();
        let stage = match stage {
            Stage::Prefill | Stage::Decode if self.rests.load(Ordering::Relaxed) => Stage::Paused,
            stage => stage,
        };
        let (prompt, read, written) = (number(&self.prompt), number(&self.read), number(&self.written));
        let since = self.since_us.load(Ordering::Relaxed);
        let took = self.last_us.load(Ordering::Relaxed).saturating_sub(since);
        let done = match stage {
            Stage::Prefill => read.saturating_sub(number(&self.began_with)),
            // The first token is drawn where the prompt ends.
            Stage::Decode => written.saturating_sub(1),
            _ => 0,
        };
        let rate = (done > 0 && took > 0).then(|| done as f64 * 1e6 / took as f64);
        let left_ms = |rate: f64| {
            let ms = prompt.saturating_sub(read) as f64 * 1e3 / rate;
            (ms as u64).saturating_sub(now_us.saturating_sub(since + took) / 1_000)
        };
        Watched {
            id: self.id.clone(),
            uid: self.uid,
            class: self.class,
            model: self.model.get().cloned(),
            stage,
            prompt_tokens: prompt,
            prompt_done: read,
            completion_tokens: written,
            completion_max: number(&self.most),
            elapsed_ms: now_us.saturating_sub(self.submitted_us) / 1_000,
            tokens_per_s: rate,
            prefill_left_ms: rate.filter(|_| stage == Stage::Prefill).map(left_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_from_admission_to_its_last_token() {
        let p = Progress::new(GenerationId::from_bits(7), 1000, Class::Background, 1_000_000);
        let seen = p.look(1_500_000);
        assert_eq!((seen.stage, seen.model, seen.elapsed_ms), (Stage::Admission, None, 500));
        p.queued("m", 900, 50, 2_000_000);
        p.placed(3_000_000);
        assert_eq!(p.look(3_000_000).stage.as_str(), "loading");
        p.begun(100, 4_000_000);
        assert_eq!((p.look(4_500_000).tokens_per_s, p.look(4_500_000).prefill_left_ms), (None, None));
        // 200 of 800 in two seconds, and half a second went by since.
        p.keeps(300, 6_000_000);
        let seen = p.look(6_500_000);
        assert_eq!((seen.prompt_tokens, seen.prompt_done, seen.stage), (900, 300, Stage::Prefill));
        assert_eq!((seen.tokens_per_s, seen.prefill_left_ms), (Some(100.0), Some(5_500)));
        p.keeps(900, 10_000_000);
        p.wrote(1, 10_000_000);
        p.keeps(901, 11_000_000);
        p.wrote(5, 12_000_000);
        let seen = p.look(20_000_000);
        assert_eq!((seen.stage, seen.completion_tokens, seen.completion_max), (Stage::Decode, 5, 50));
        assert_eq!(seen.prefill_left_ms, None);
        assert_eq!((seen.tokens_per_s, seen.class, seen.uid), (Some(2.0), Class::Background, 1000));
    }
}
