//! Admission: everything that is decided before a request may wait. Model known and readable, template rendered, text
//! tokenized, prompt within the context. A few threads read texts, those of each uid in turn ([`Waiting`]); others open
//! model files, and what needs a file waits aside for it, so that neither a long text nor a disk that does not answer
//! stops another's request.

mod decide;
mod item;
mod waiting;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use std::{io, mem};

use decide::{Prompt, admit, check, read};
use item::Item;
pub(super) use item::{Submission, ToAdmit, ToDescribe, ToLoad, ToTokenize};
pub use item::{Text, Tokenized};
use waiting::Waiting;

use super::handle::{Shared, engine_gone};
use super::loaded::{Loaded, Opening, load_fault};
use super::metrics::lock;
use super::models::Wish;
use super::run::{Command, Job};
use super::scheduler::{Micros, ModelKey};
use super::{Admitted, Code, Event, Fault, ModelFile};
use crate::os::{clock, thread};

/// Threads that read texts; one of them may be at a long one. Started when there is something for them.
const N_READERS: usize = 3;
/// Threads that open files: so many may hang on a disk before others wait for them.
const N_OPENERS: usize = 4;
/// Time after which a file that is not open is told of in the log.
const SLOW_US: Micros = 10_000_000;
/// Longest time at one text before its reader counts as stuck: the longest text takes seconds on a slow board.
const STUCK_US: Micros = 60_000_000;

/// The doors' end of admission. The last to go closes it.
#[derive(Debug)]
pub(super) struct Entrance(Arc<Admission>);

impl Entrance {
    /// Starts the first thread.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(super) fn open(shared: Arc<Shared>, engine: Sender<Command>) -> io::Result<Self> {
        let state = State { n_readers: 1, ..State::default() };
        let admission =
            Arc::new(Admission { shared, engine, state: Mutex::new(state), bell: Condvar::new() });
        let first = admission.clone();
        thread::start("admit", move || first.serve())?;
        Ok(Self(admission))
    }

    /// Takes what [`Shared::enter`] let in; admission lets it leave.
    pub(super) fn push(&self, what: ToAdmit) {
        let item = Item::new(what, clock::now_us(), &self.0.shared.settings());
        let mut state = self.0.state();
        state.waiting.push(item);
        self.0.call_reader(&mut state);
    }

    /// Asks for models, one after the other.
    pub(super) fn preload(&self, models: VecDeque<(String, bool)>) {
        self.0.preload(models);
    }

    /// The flag of something under way has changed: if it is here, it is looked at.
    pub(super) fn look(&self) {
        let state = self.0.state();
        if state.items().next().is_some() {
            self.0.bell.notify_one();
        }
    }

    /// Whether no text has been read for too long.
    pub(super) fn moves(&self, now: Micros) -> bool {
        self.0.state().waiting.reads_since().is_none_or(|since| now.saturating_sub(since) < STUCK_US)
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.bell.notify_all();
    }
}

/// What waits for the file of one model.
struct Parked {
    items: Vec<Item>,
    since: Micros,
    /// It is told of in the log.
    told: bool,
    /// Somebody who only looks at the models has waited for it in vain.
    looked: bool,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    /// By the model's id.
    parked: BTreeMap<String, Parked>,
    /// Those of them that no thread opens yet.
    to_open: VecDeque<String>,
    /// Opened models, of each id those with different contexts, the newest last; one whose last user is gone is opened anew.
    opened: HashMap<String, Vec<Weak<Loaded>>>,
    /// Models opened so far.
    n_opened: u32,
    n_openers: usize,
    n_readers: usize,
    n_idle: usize,
    closed: bool,
}

/// What is due at a moment.
struct Due {
    over: Vec<(Item, Fault)>,
    /// Models whose files take long to open.
    slow: Vec<String>,
}

impl State {
    fn items(&self) -> impl Iterator<Item = &Item> {
        self.waiting.items().chain(self.parked.values().flat_map(|p| &p.items))
    }

    /// Takes out what is over at `now`, and what is to be told.
    fn due(&mut self, now: Micros) -> Due {
        let mut due = Due { over: Vec::new(), slow: Vec::new() };
        let taken = self.waiting.take_if(|item| item.over(now, None).is_some());
        due.over.extend(taken.into_iter().filter_map(|item| {
            let fault = item.over(now, None)?;
            Some((item, fault))
        }));
        for (id, parked) in &mut self.parked {
            if !parked.told && now >= parked.since + SLOW_US {
                parked.told = true;
                due.slow.push(id.clone());
            }
            for item in mem::take(&mut parked.items) {
                match item.over(now, Some(id)) {
                    Some(fault) => {
                        parked.looked |= matches!(item.what, ToAdmit::Describe(_));
                        due.over.push((item, fault));
                    }
                    None => parked.items.push(item),
                }
            }
        }
        due
    }

    /// The newest of the opened models `id` that `fits`.
    fn opened(&self, id: &str, fits: impl Fn(&Loaded) -> bool) -> Option<Arc<Loaded>> {
        let all = self.opened.get(id)?.iter().rev();
        all.filter_map(Weak::upgrade).find(|model| fits(model) && !model.refused.load(Ordering::Acquire))
    }

    /// When the next is due.
    fn next_due(&self) -> Option<Micros> {
        let slow = self.parked.values().filter(|p| !p.told).map(|p| p.since + SLOW_US);
        self.items().map(Item::until).chain(slow).min()
    }
}

/// What the threads of admission share.
struct Admission {
    shared: Arc<Shared>,
    engine: Sender<Command>,
    state: Mutex<State>,
    /// There is something for a reader.
    bell: Condvar,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl Admission {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sees to it that somebody reads what is to be read next, if there is something.
    fn call_reader(self: &Arc<Self>, state: &mut State) {
        if !state.waiting.has_next() {
            return;
        }
        if state.n_idle > 0 {
            self.bell.notify_one();
        } else if state.n_readers < N_READERS {
            let reader = self.clone();
            match thread::start("admit", move || reader.serve()) {
                Ok(_) => state.n_readers += 1,
                // There is at least the first one.
                Err(e) => log::warn!("no thread to read a text beside others: {e}"),
            }
        }
    }

    /// A reader: serves until the entrance is closed and nothing is left. How much may wait, [`Shared::enter`] bounds.
    fn serve(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            let now = clock::now_us();
            let due = state.due(now);
            let next = state.waiting.pop(now);
            if next.is_some() {
                // A reader that was called may not be awake yet, and is not called twice.
                self.call_reader(&mut state);
            } else if due.over.is_empty() && due.slow.is_empty() {
                if state.closed {
                    return;
                }
                state = self.rest(state, now);
                continue;
            }
            drop(state);
            for id in due.slow {
                log::warn!(
                    "model {id}: its file is not open after {} s; the disk that it lies on is slow, or gone",
                    SLOW_US / 1_000_000
                );
            }
            due.over.into_iter().for_each(|(item, fault)| self.refuse(item, fault));
            let uid = next.map(|item| {
                let uid = item.uid();
                self.take(item);
                uid
            });
            state = self.state();
            if let Some(uid) = uid {
                state.waiting.done(uid);
            }
        }
    }

    /// Waits for the bell, or for what is due next.
    fn rest<'s>(&self, mut state: MutexGuard<'s, State>, now: Micros) -> MutexGuard<'s, State> {
        state.n_idle += 1;
        let mut state = match state.next_due() {
            None => self.bell.wait(state).unwrap_or_else(PoisonError::into_inner),
            // A little later than the moment itself, so that it has passed.
            Some(at) => {
                let us = at.saturating_sub(now) + 1_000;
                let woken = self.bell.wait_timeout(state, Duration::from_micros(us));
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.n_idle -= 1;
        state
    }

    /// Asks for the first of `models`; the others come when that is known.
    fn preload(self: &Arc<Self>, mut rest: VecDeque<(String, bool)>) {
        let Some((model, pin)) = rest.pop_front() else { return };
        // A stopped engine loads nothing.
        if self.shared.enter(0, true).is_ok() {
            let to = ToLoad { uid: 0, model, pin, n_ctx: None, asker: None, rest };
            let item = Item::new(ToAdmit::Load(Box::new(to)), clock::now_us(), &self.shared.settings());
            let mut state = self.state();
            state.waiting.push(item);
            self.call_reader(&mut state);
        }
    }

    fn refuse(self: &Arc<Self>, mut item: Item, fault: Fault) {
        let uid = item.uid();
        if let ToAdmit::Load(to) = &mut item.what {
            self.preload(mem::take(&mut to.rest));
        }
        item.refuse(fault);
        self.shared.leave(uid);
    }

    fn take(self: &Arc<Self>, item: Item) {
        if let Some(fault) = item.over(clock::now_us(), None) {
            return self.refuse(item, fault);
        }
        if let ToAdmit::Submit(s) = &item.what
            && let Err(fault) = check(&s.request)
        {
            return self.refuse(item, fault);
        }
        let what = match item.what {
            ToAdmit::Describe(to) if !self.shared.undescribed(&to.id) => {
                (to.tell)();
                return self.shared.leave(to.uid);
            }
            what => what,
        };
        let mut item = Item { what, ..item };
        let Some(id) = self.shared.resolve(item.model()) else {
            let fault = self.shared.unknown_model(item.model());
            return self.refuse(item, fault);
        };
        let opened = item.opened.take().filter(|model| model.id == id && item.fits(model));
        match opened.or_else(|| self.state().opened(&id, |model| item.fits(model))) {
            Some(model) => self.go_on(item, model),
            None => self.park(item, id),
        }
    }

    /// Sets `item` aside until the file of the model `id` is open.
    fn park(self: &Arc<Self>, item: Item, id: String) {
        let mut state = self.state();
        if let Some(parked) = state.parked.get_mut(&id) {
            // Whoever only looks has waited once for such a file.
            if parked.looked && matches!(item.what, ToAdmit::Describe(_)) {
                drop(state);
                return self.refuse(item, unprepared());
            }
            parked.items.push(item);
            return;
        }
        let parked = Parked { items: vec![item], since: clock::now_us(), told: false, looked: false };
        state.parked.insert(id.clone(), parked);
        if state.n_openers < N_OPENERS {
            let opener = self.clone();
            match thread::start("open", move || opener.open_files()) {
                Ok(_) => state.n_openers += 1,
                Err(e) if state.n_openers == 0 => {
                    let items = state.parked.remove(&id).map_or_else(Vec::new, |parked| parked.items);
                    drop(state);
                    let fault = Fault::new(Code::Internal, format!("no thread can be started: {e}"));
                    items.into_iter().for_each(|item| self.refuse(item, fault.clone()));
                    return;
                }
                Err(_) => {}
            }
        }
        state.to_open.push_back(id);
    }

    /// An opener: opens files until there are none to be opened.
    fn open_files(self: Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some(id) = state.to_open.pop_front() else {
                state.n_openers -= 1;
                return;
            };
            let Some(n_ctx) = state.parked.get(&id).and_then(|parked| parked.items.first()).map(Item::n_ctx)
            else {
                // Nobody waits any more.
                state.parked.remove(&id);
                continue;
            };
            state.n_opened = state.n_opened.wrapping_add(1);
            let key = ModelKey(state.n_opened);
            drop(state);
            let opened = catch_unwind(AssertUnwindSafe(|| self.open(&id, key, n_ctx)));
            let opened = opened.unwrap_or_else(|_| Err(unprepared()));
            let mut state = self.state();
            let items = state.parked.remove(&id).map_or_else(Vec::new, |parked| parked.items);
            match opened {
                Ok(model) => {
                    let all = state.opened.entry(id).or_default();
                    all.retain(|other| other.strong_count() > 0);
                    all.push(Arc::downgrade(&model));
                    for item in items.into_iter().rev() {
                        state.waiting.push_front(Item { opened: Some(model.clone()), ..item });
                    }
                    self.call_reader(&mut state);
                }
                Err(fault) => {
                    drop(state);
                    items.into_iter().for_each(|item| self.refuse(item, fault.clone()));
                }
            }
        }
    }

    /// Opens the model `id`, with `n_ctx` positions if they are given.
    fn open(&self, id: &str, key: ModelKey, n_ctx: Option<usize>) -> Result<Arc<Loaded>, Fault> {
        let path = self.shared.path(id).ok_or_else(|| self.shared.unknown_model(Some(id)))?;
        let file = ModelFile { id: id.to_owned(), path };
        let settings = self.shared.settings();
        let (own, options) = (settings.of_model.get(id), &self.shared.options);
        match Loaded::open(&Opening { key, file: &file, options, own, n_ctx }) {
            Ok(model) => {
                self.shared.set_header(id, &model);
                Ok(Arc::new(model))
            }
            Err(e) => {
                let mut fault = load_fault(id, &e);
                // The log has the whole path; callers are not told where files lie.
                if let Some(folder) = file.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                    fault.message = fault.message.replace(&format!("{}/", folder.display()), "");
                }
                self.shared.set_failed(id, fault.code);
                log::error!(
                    message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = id; "model {id}: {e}"
                );
                Err(fault)
            }
        }
    }

    /// Does with an item what it wants of its model. A panic (a template, a tokenizer) fails this item alone.
    fn go_on(self: &Arc<Self>, item: Item, model: Arc<Loaded>) {
        let (uid, renderer) = (item.uid(), self.shared.options.renderer.as_deref());
        match item.what {
            ToAdmit::Submit(s) => match caught(|| admit(&model, &s.request, renderer)) {
                Ok(prompt) => self.admitted(*s, model, prompt),
                Err(fault) => return self.refuse(Item { what: ToAdmit::Submit(s), ..item }, fault),
            },
            ToAdmit::Tokenize(t) => match caught(|| read(&model, &t.text, renderer)) {
                Ok(tokenized) => (t.tell)(Ok(tokenized)),
                Err(fault) => return self.refuse(Item { what: ToAdmit::Tokenize(t), ..item }, fault),
            },
            ToAdmit::Load(to) => {
                let ToLoad { pin, asker, rest, .. } = *to;
                self.shared.busy.store(true, Ordering::Release);
                // A stopped engine lets go of the sink, and who reads it is told.
                drop(self.engine.send(Command::Load(Box::new(Wish::new(model, pin, asker)))));
                self.preload(rest);
            }
            ToAdmit::Describe(to) => (to.tell)(),
        }
        self.shared.leave(uid);
    }

    fn admitted(&self, s: Submission, model: Arc<Loaded>, prompt: Prompt) {
        let Submission { request, mut sink, live, submitted_us, first } = s;
        let Prompt { tokens, n_common, no_template, truncated } = prompt;
        self.shared.spend(request.caller.uid, tokens.len());
        sink.offer(&Event::Admitted(Admitted {
            model: model.id.clone(),
            prompt_tokens: tokens.len(),
            no_template,
            truncated,
        }));
        let job = Job { request, sink, live, model, tokens, n_common, submitted_us, first };
        self.shared.busy.store(true, Ordering::Release);
        if let Err(e) = self.engine.send(Command::Run(Box::new(job)))
            && let Command::Run(mut job) = e.0
        {
            job.sink.offer(&Event::Failed(engine_gone()));
        }
    }
}

fn caught<T>(f: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(unprepared()))
}

fn unprepared() -> Fault {
    Fault::new(Code::Internal, "preparing the prompt failed; the log has the place")
}
