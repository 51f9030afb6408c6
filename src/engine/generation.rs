//! One request as the engine thread sees it: what is left of the prompt, what was drawn, what waits to be sent.

use std::collections::VecDeque;
use std::sync::Arc;

use super::handle::Live;
use super::loaded::Loaded;
use super::mock::{Play, Script};
use super::prefix::Scope;
use super::run::Job;
use super::scheduler::Micros;
use super::{
    Caching, Done, Embedded, Event, Family, Fault, FinishReason, Likely, Logprob, ModelMetrics, Offer,
    Request, Sampling, Sink, StopDetail, Task, Timings, Usage,
};
use crate::base::Token;
use crate::os::clock;
use crate::sample::{Chain, Dry, Mirostat, Settings, StopFilter, logprobs};
use crate::text::Utf8Stream;

/// Where repetitions end unless the request says otherwise (llama.cpp's).
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// What a request came to that did not fail.
pub(super) enum Whole {
    /// A text, and what ended it.
    Text(StopDetail),
    /// A vector.
    Vector(Vec<f32>),
}

/// A seed for a request that names none: 53 bits, which every reader of JSON keeps exact.
#[must_use]
pub fn random_seed() -> u64 {
    // Any number will do where the kernel gives none: it is told in `done.seed`.
    clock::random_bits().map_or(1, |b| (b as u64) >> 11)
}

/// A request between admission and its terminal event.
pub(super) struct Generation {
    pub live: Arc<Live>,
    pub model: Arc<Loaded>,
    pub sink: Box<dyn Sink>,
    metrics: Arc<ModelMetrics>,
    /// Since when its reader takes nothing.
    pub full_since: Option<Micros>,
    /// A change of the place in the queue that was not told yet.
    pub position: Option<usize>,
    /// When the last position or progress was told.
    pub told_us: Micros,
    request: Request,
    /// Those of the prompt, then those drawn.
    tokens: Vec<Token>,
    n_prompt: usize,
    /// Those of them that any prompt in its model's template begins with.
    n_common: usize,
    /// Its uid's, and everybody's.
    scopes: [Scope; 2],
    /// Tokens that its sequence keeps.
    n_kept: usize,
    /// What it had of the engine's time.
    engine_us: Micros,
    /// Tokens of the prompt that were read or taken from the prefix cache, and those of them that were taken.
    n_prefilled: usize,
    n_cached: usize,
    /// Tokens that may be generated, by the request or by the context.
    n_max: usize,
    /// What reaching `n_max` means.
    max_detail: StopDetail,
    n_drawn: usize,
    /// Made when the engine is its own: it has buffers as long as the vocabulary.
    chain: Option<Chain>,
    seed: u64,
    /// The likeliest tokens at the last draw, and how likely the drawn one was.
    top: Vec<(Token, f32)>,
    logprob: f32,
    bytes: Vec<u8>,
    utf8: Utf8Stream,
    stops: StopFilter,
    /// What is said in place of the model's own word.
    script: Option<Script>,
    /// Helpers that were lost at it.
    pub(super) n_lost: usize,
    /// Events that the sink had no room for.
    pending: VecDeque<Event>,
    sent: bool,
    submitted: Micros,
    start: Option<Micros>,
    loaded: Option<Micros>,
    prefilled: Option<Micros>,
    first_text: Option<Micros>,
    last_token: Option<Micros>,
}

impl Generation {
    /// A request with a context of `n_ctx` positions and at most `max_tokens` to generate (0: no such bound); what it
    /// leaves out of how to draw is `otherwise`.
    pub(super) fn new(
        job: Job,
        n_ctx: usize,
        max_tokens: u32,
        otherwise: Option<&Sampling>,
        metrics: Arc<ModelMetrics>,
    ) -> Self {
        let Job { mut request, sink, live, model, tokens, n_common, submitted_us, .. } = job;
        if let Some(otherwise) = otherwise {
            fill(&mut request.sampling, otherwise);
        }
        let room = n_ctx - tokens.len();
        let asked = [request.max_tokens.unwrap_or(0), max_tokens].into_iter().filter(|n| *n > 0).min();
        let (n_max, max_detail) = match asked {
            _ if request.task != Task::Generate => (0, StopDetail::MaxTokens),
            Some(n) if n as usize <= room => (n as usize, StopDetail::MaxTokens),
            _ => (room, StopDetail::Context),
        };
        let seed = request.sampling.seed.unwrap_or_else(random_seed);
        live.progress.queued(&model.id, tokens.len(), n_max, clock::now_us());
        let script = model.play.as_ref().map(Play::script);
        let scopes = [Scope::Uid(request.caller.uid), Scope::Public];
        Self {
            live,
            model,
            sink,
            metrics,
            full_since: None,
            n_lost: 0,
            position: None,
            told_us: 0,
            stops: StopFilter::new(request.stop.clone()),
            request,
            n_prompt: tokens.len(),
            n_common,
            scopes,
            tokens,
            n_kept: 0,
            engine_us: 0,
            n_prefilled: 0,
            n_cached: 0,
            n_max,
            max_detail,
            n_drawn: 0,
            chain: None,
            seed,
            top: Vec::new(),
            logprob: 0.0,
            bytes: Vec::with_capacity(64),
            utf8: Utf8Stream::default(),
            script,
            pending: VecDeque::new(),
            sent: false,
            submitted: submitted_us,
            start: None,
            loaded: None,
            prefilled: None,
            first_text: None,
            last_token: None,
        }
    }

    /// Whether it goes on in the next steps, for those who look.
    pub(super) fn rests(&self, rests: bool) {
        self.live.progress.rests(rests);
    }

    /// It has a place now.
    pub(super) fn started(&mut self, now: Micros) {
        self.start = Some(now);
        self.live.progress.placed(now);
        self.metrics.queue_wait.observe(now.saturating_sub(self.submitted));
        self.position = None;
        if !self.embeds() {
            self.make_chain();
        }
    }

    fn make_chain(&mut self) {
        let ends = if self.request.sampling.min_tokens > 0 { self.model.tokenizer.ends() } else { &[] };
        let n_vocab = self.model.tokenizer.n_vocab();
        let mut chain = Chain::new(settings(&self.request.sampling), ends, self.seed, n_vocab);
        for i in self.n_prompt.saturating_sub(chain.n_past())..self.n_prompt {
            chain.accept(self.tokens[i], self.breaks(self.tokens[i]));
        }
        self.chain = Some(chain);
        self.top.reserve(self.request.sampling.logprobs.unwrap_or(0) as usize);
    }

    /// Whether no repetition reaches over `token`.
    fn breaks(&mut self, token: Token) -> bool {
        let sampling = &self.request.sampling;
        if sampling.dry_multiplier.unwrap_or(0.0) <= 0.0 {
            return false;
        }
        self.bytes.clear();
        self.model.tokenizer.piece_into(token, &mut self.bytes);
        let holds = |breaker: &str| self.bytes.windows(breaker.len()).any(|part| part == breaker.as_bytes());
        match &sampling.dry_breakers {
            Some(breakers) => breakers.iter().any(|breaker| holds(breaker)),
            None => BREAKERS.iter().any(|breaker| holds(breaker)),
        }
    }

    /// Tokens of the answer so far.
    pub(super) fn n_drawn(&self) -> usize {
        self.n_drawn
    }

    /// Why it is refused, or ends where it is, for a reason of a mock.
    pub(super) fn played_fault(&self, begun: bool) -> Option<Fault> {
        let script = self.script.as_ref()?;
        if begun { script.breaks(self.n_drawn) } else { script.refusal() }
    }

    pub(super) fn uid(&self) -> u32 {
        self.request.caller.uid
    }

    pub(super) fn start_us(&self) -> Micros {
        self.start.unwrap_or(self.submitted)
    }

    /// Tokens of the prompt, and most that are drawn.
    pub(super) fn bounds(&self) -> (usize, usize) {
        (self.n_prompt, self.n_max)
    }

    /// What it is to read, whether it keeps it already or not.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Whether its input becomes a vector.
    pub(super) fn embeds(&self) -> bool {
        self.request.task != Task::Generate
    }

    /// Whose beginnings it may go on from. What is published is read anew, so that all of it can be left; and a vector
    /// takes the states of all tokens, which are not kept.
    pub(super) fn begins_from(&self) -> &[Scope] {
        match self.request.cache {
            _ if self.embeds() => &[],
            Caching::Off => &[],
            Caching::Own => &self.scopes,
            Caching::Public => &self.scopes[1..],
        }
    }

    /// For whom it leaves how many of its first tokens, if it has read so many: for its uid all, for everybody those that
    /// its model's template begins with, or its prompt if it is published.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (Scope, usize)> {
        let public = if self.request.cache == Caching::Public { self.n_prompt } else { self.n_common };
        let leaves = self.request.cache != Caching::Off && !self.embeds();
        self.scopes.into_iter().zip([usize::MAX, public]).filter(move |_| leaves)
    }

    /// Its model is ready, and it begins with `n` tokens from the prefix cache.
    pub(super) fn begun(&mut self, n: usize, now: Micros) {
        self.n_kept = n;
        self.live.progress.begun(n, now);
        if self.loaded.is_none() {
            self.loaded = Some(now);
            self.told_us = 0;
            (self.n_cached, self.n_prefilled) = (n, n);
            self.metrics.prompt_cached.add(n as u64);
        }
    }

    /// Its next `n` tokens.
    pub(super) fn next(&self, n: usize) -> &[Token] {
        &self.tokens[self.n_kept..self.n_kept + n]
    }

    /// It keeps `n` tokens more, which took `us` of the engine's time; tells the caller of the prompt, at the end of it
    /// and `every` so often.
    pub(super) fn stepped(&mut self, n: usize, us: Micros, now: Micros, every: Micros) {
        self.n_kept += n;
        self.engine_us += us;
        self.live.progress.keeps(self.n_kept, now);
        let read = self.n_kept.min(self.n_prompt);
        if self.n_prefilled >= read {
            return;
        }
        self.metrics.prompt_computed.add((read - self.n_prefilled) as u64);
        self.n_prefilled = read;
        let last = read == self.n_prompt;
        if last {
            self.prefilled = Some(now);
        }
        if last || now >= self.told_us + every {
            self.told_us = now;
            self.progress(&Event::Prefill { done: read, total: self.n_prompt, cached: self.n_cached });
        }
    }

    /// Position of the token whose logits were computed last.
    pub(super) fn pos(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Draws the next token; `None` if no logit is finite. Rows behind the vocabulary, to which some models are
    /// padded, are no tokens.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Option<Token> {
        let played = self.script.as_ref().map(|s| s.logits(&self.tokens[..self.n_prompt], self.n_drawn));
        let logits = &played.as_deref().unwrap_or(logits)[..self.model.tokenizer.n_vocab()];
        let may_end = self.n_drawn >= self.request.sampling.min_tokens as usize;
        let token = self.chain.as_mut()?.sample(logits, may_end)?;
        if let Some(n) = self.request.sampling.logprobs {
            self.logprob = logprobs(logits, token, n as usize, &mut self.top);
        }
        Some(token)
    }

    /// Takes a drawn token: its text goes to the pending events. Says what ended the answer, if something did.
    pub(super) fn push(&mut self, token: Token, now: Micros) -> Option<StopDetail> {
        if self.model.tokenizer.is_end(token) {
            return Some(StopDetail::Eos);
        }
        self.n_drawn += 1;
        self.live.progress.wrote(self.n_drawn, now);
        self.tokens.push(token);
        self.metrics.completion.add(1);
        if let Some(last) = self.last_token.replace(now) {
            self.metrics.inter_token.observe(now.saturating_sub(last));
        }
        let breaks = self.breaks(token);
        if let Some(chain) = &mut self.chain {
            chain.accept(token, breaks);
        }
        self.bytes.clear();
        self.model.tokenizer.piece_into(token, &mut self.bytes);
        let (mut whole, mut text) = (String::new(), String::new());
        self.utf8.push(&self.bytes, &mut whole);
        let stopped = self.stops.push(&whole, &mut text);
        self.text(text, self.told(token), now);
        match stopped {
            true => Some(StopDetail::StopString),
            false => (self.n_drawn >= self.n_max).then_some(self.max_detail),
        }
    }

    /// How likely the drawn token was, where the request asks.
    fn told(&self, token: Token) -> Option<Box<Logprob>> {
        self.request.sampling.logprobs?;
        let likely = |token, logprob| {
            let mut bytes = Vec::new();
            self.model.tokenizer.piece_into(token, &mut bytes);
            Likely { token, logprob, bytes }
        };
        let top = self.top.iter().map(|&(token, logprob)| likely(token, logprob)).collect();
        Some(Box::new(Logprob { drawn: likely(token, self.logprob), top }))
    }

    fn text(&mut self, text: String, logprob: Option<Box<Logprob>>, now: Micros) {
        if !text.is_empty() {
            if self.first_text.replace(self.first_text.unwrap_or(now)).is_none() {
                self.metrics.first_token.observe(now.saturating_sub(self.submitted));
            }
            self.sent = true;
        }
        if !text.is_empty() || logprob.is_some() {
            self.pending.push_back(Event::Text { text, logprob });
        }
    }

    /// Whether any text of the answer was made.
    pub(super) fn has_sent(&self) -> bool {
        self.sent
    }

    /// Offers a report of progress; one that finds no room is dropped, the next one tells more.
    pub(super) fn progress(&mut self, event: &Event) {
        if self.pending.is_empty() {
            self.sink.offer(event);
        }
    }

    /// Offers what waits, in order.
    pub(super) fn flush(&mut self) -> Offer {
        while let Some(event) = self.pending.front() {
            match self.sink.offer(event) {
                Offer::Taken => drop(self.pending.pop_front()),
                other => return other,
            }
        }
        Offer::Taken
    }

    /// Adds the terminal event after everything that still waits, and logs it.
    pub(super) fn end(&mut self, how: Result<Whole, Fault>, now: Micros) {
        let event = match how {
            Ok(Whole::Text(detail)) => {
                if detail != StopDetail::StopString {
                    // Bytes and text that were held back are part of the answer.
                    let (mut rest, mut text) = (String::new(), String::new());
                    self.utf8.finish(&mut rest);
                    if !self.stops.push(&rest, &mut text) {
                        self.stops.finish(&mut text);
                    }
                    self.text(text, None, now);
                }
                Event::Done(self.done(detail, now))
            }
            Ok(Whole::Vector(vector)) => {
                let model = self.model.id.clone();
                Event::Embedded(Embedded { model, vector, prompt_tokens: self.n_prompt })
            }
            Err(fault) => Event::Failed(fault),
        };
        let finished = match &event {
            Event::Done(done) if done.stop_detail.reason() == FinishReason::Stop => Some(0),
            Event::Done(_) => Some(1),
            // Nothing was to be generated.
            _ if self.embeds() => None,
            _ => Some(2),
        };
        finished.inspect(|i| self.metrics.finished[*i].add(1));
        self.log(&event, now);
        self.pending.push_back(event);
    }

    fn timings(&self, now: Micros) -> Timings {
        let ms = |from: Option<Micros>, to: Option<Micros>| match (from, to) {
            (Some(from), to) => to.unwrap_or(now).saturating_sub(from) as f64 / 1e3,
            (None, _) => 0.0,
        };
        Timings {
            queue_ms: ms(Some(self.submitted), self.start),
            load_ms: ms(self.start, self.loaded),
            prefill_ms: ms(self.loaded, self.prefilled),
            decode_ms: ms(self.prefilled, None),
            ttft_ms: ms(self.first_text.map(|_| self.submitted), self.first_text),
            engine_ms: self.engine_us as f64 / 1e3,
        }
    }

    fn done(&self, stop_detail: StopDetail, now: Micros) -> Done {
        Done {
            id: self.request.id.clone(),
            model: self.model.id.clone(),
            stop_detail,
            seed: self.seed,
            usage: Usage {
                prompt_tokens: self.n_prompt,
                cached_tokens: self.n_cached,
                completion_tokens: self.n_drawn,
            },
            timings: self.timings(now),
        }
    }

    /// One line a generation (API text, section 8); never its text.
    fn log(&self, event: &Event, now: Micros) {
        if self.embeds() {
            let (id, n) = (&self.request.id, self.n_prompt);
            return match event {
                Event::Failed(f) if f.code.family() == Family::Internal => {
                    log::error!("text {id} of {n} tokens failed, {}", f.code.as_str());
                }
                Event::Failed(f) => log::debug!("text {id} of {n} tokens failed, {}", f.code.as_str()),
                _ => log::debug!("text {id} of {n} tokens is a vector"),
            };
        }
        let t = self.timings(now);
        let (message_id, level, code, finish) = match event {
            Event::Done(d) => {
                ("69dab35f7a0a4dc99718c0111bdd6d6e", log::Level::Info, "", d.stop_detail.reason().as_str())
            }
            Event::Failed(f) => {
                let level =
                    if f.code.family() == Family::Internal { log::Level::Error } else { log::Level::Info };
                ("2423765421ac41b08cada7a89a62f13d", level, f.code.as_str(), "")
            }
            _ => return,
        };
        let caller = &self.request.caller;
        log::log!(
            level,
            message_id = message_id,
            sotto_generation = self.request.id.as_str(),
            sotto_model = self.model.id.as_str(),
            sotto_door = caller.door.as_str(),
            sotto_uid = caller.uid,
            sotto_class = self.request.class.as_str(),
            sotto_code = code,
            sotto_finish = finish,
            sotto_prompt_tokens = self.n_prompt,
            sotto_cached_tokens = self.n_cached,
            sotto_completion_tokens = self.n_drawn,
            sotto_queue_ms = t.queue_ms as u64,
            sotto_load_ms = t.load_ms as u64,
            sotto_prefill_ms = t.prefill_ms as u64,
            sotto_decode_ms = t.decode_ms as u64,
            sotto_ttft_ms = t.ttft_ms as u64;
            "generation {} {}{}: {} prompt tokens ({} read), {} generated",
            self.request.id,
            if code.is_empty() { "finished, " } else { "failed, " },
            if code.is_empty() { finish } else { code },
            self.n_prompt,
            self.n_prefilled,
            self.n_drawn,
        );
    }

    /// What is still to be sent after the end.
    pub(super) fn into_rest(self) -> (Box<dyn Sink>, Arc<Live>, VecDeque<Event>) {
        (self.sink, self.live, self.pending)
    }
}

/// Gives a request that leaves them out its model's defaults.
fn fill(s: &mut Sampling, otherwise: &Sampling) {
    s.temperature = s.temperature.or(otherwise.temperature);
    s.top_k = s.top_k.or(otherwise.top_k);
    s.top_p = s.top_p.or(otherwise.top_p);
    s.min_p = s.min_p.or(otherwise.min_p);
    s.repeat_penalty = s.repeat_penalty.or(otherwise.repeat_penalty);
}

/// What a request asks for, with the defaults.
fn settings(s: &Sampling) -> Settings {
    let (d, dry, mirostat) = (Settings::default(), Dry::default(), Mirostat::default());
    Settings {
        temperature: s.temperature.unwrap_or(d.temperature),
        top_k: s.top_k.unwrap_or(d.top_k),
        top_p: s.top_p.unwrap_or(d.top_p),
        min_p: s.min_p.unwrap_or(d.min_p),
        typical_p: s.typical_p.unwrap_or(d.typical_p),
        repeat_penalty: s.repeat_penalty.unwrap_or(d.repeat_penalty),
        frequency_penalty: s.frequency_penalty.unwrap_or(d.frequency_penalty),
        presence_penalty: s.presence_penalty.unwrap_or(d.presence_penalty),
        repeat_last_n: s.repeat_last_n.unwrap_or(d.repeat_last_n),
        dry: Dry {
            multiplier: s.dry_multiplier.unwrap_or(dry.multiplier),
            base: s.dry_base.unwrap_or(dry.base),
            allowed_length: s.dry_allowed_length.unwrap_or(dry.allowed_length),
            last_n: s.dry_last_n.unwrap_or(dry.last_n),
        },
        mirostat: s.mirostat.then(|| Mirostat {
            tau: s.mirostat_tau.unwrap_or(mirostat.tau),
            eta: s.mirostat_eta.unwrap_or(mirostat.eta),
        }),
        logit_bias: s.logit_bias.clone(),
    }
}
