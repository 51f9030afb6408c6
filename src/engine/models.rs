//! Models come and go: what the engine thread does for a model that is wanted, by requests or by name, a slice at a time, and
//! for one that has to go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::handle::Live;
use super::load::Load;
use super::loaded::{Loaded, graph_fault, load_fault, short_fault};
use super::manners::{Given, Level};
use super::mock::Play;
use super::ready::Ready;
use super::run::{PROGRESS_EVERY, Runner, start_pool};
use super::scheduler::{Input, Micros, ModelKey, Slot, Why};
use super::{Code, Event, Fault, ModelState, Offer, Sink};
use crate::os::clock;

/// A model being read in.
pub(super) struct Loading {
    pub model: Arc<Loaded>,
    load: Load,
    given: Given,
    /// Bytes that it takes at the least.
    pub least: u64,
    since: Micros,
    /// When those who asked for it last heard of it.
    told_us: Micros,
    /// A helper was lost at it.
    lost: bool,
}

/// Somebody wants a model to be loaded though no request needs it.
pub(super) struct Wish {
    pub model: Arc<Loaded>,
    /// It stays until it is unloaded by name.
    pub pin: bool,
    /// Who hears of it, and may leave; `None`: the daemon's own wish, for which no other model has to go.
    pub asker: Option<Asker>,
    /// The same model with another context, which is pinned no more: it is again if this one is not to be.
    pub unpinned: Vec<ModelKey>,
}

impl Wish {
    pub(super) fn new(model: Arc<Loaded>, pin: bool, asker: Option<Asker>) -> Self {
        Self { model, pin, asker, unpinned: Vec::new() }
    }
}

/// Who asked for a load.
pub(super) struct Asker {
    pub sink: Box<dyn Sink>,
    pub live: Arc<Live>,
}

/// A model is to go.
pub(super) struct ToUnload {
    /// Its id.
    pub id: String,
    /// Requests that use it end.
    pub force: bool,
    /// Hears how it went.
    pub tell: Box<dyn FnOnce(Result<(), Fault>) + Send>,
}

impl Runner {
    /// Takes a wish for a model.
    pub(super) fn want(&mut self, mut wish: Wish) {
        let key = wish.model.key;
        let others = self.ready.iter().filter(|(k, ready)| **k != key && ready.model.id == wish.model.id);
        let others: Vec<ModelKey> = others.map(|(k, _)| *k).collect();
        // What cannot be had costs nobody what there is.
        if !others.is_empty()
            && let Err(fault) = self.can_replace(&wish.model, &others)
        {
            return self.refuse(&mut wish, &fault);
        }
        // One with another context goes where nobody uses it any more.
        for other in others {
            if self.scheduler.is_pinned(other) {
                wish.unpinned.push(other);
            }
            self.input(Input::Pin(other, false));
            if self.jobs.values().all(|job| job.model.key != other) {
                self.input(Input::Unloaded(other));
                self.forget_ready(other, "loaded anew with another context");
            }
        }
        // So does one that is still wished for: what was said last holds.
        for other in self.wishes.iter_mut().filter(|w| w.model.key != key && w.model.id == wish.model.id) {
            other.pin = false;
        }
        self.models.entry(key).or_insert_with(|| wish.model.clone());
        self.input(Input::Want { model: key, evicts: wish.asker.is_some() });
        if self.ready.contains_key(&key) {
            return self.grant(&mut wish);
        }
        self.wishes.push(wish);
    }

    /// Whether `model` could be loaded if `others`, which are the same with another context, were gone.
    fn can_replace(&self, model: &Loaded, others: &[ModelKey]) -> Result<(), Fault> {
        if self.scheduler.full_of_pinned_without(others) {
            return Err(self.pinned_fault(others));
        }
        self.fit(model, others.to_vec()).map(drop).map_err(|short| short_fault(&model.id, &short))
    }

    /// A model that was wished for is ready.
    fn grant(&mut self, wish: &mut Wish) {
        if wish.pin && !self.scheduler.may_pin(wish.model.key) {
            let fault = self.pinned_fault(&[]);
            return self.refuse(wish, &fault);
        }
        if wish.pin {
            self.input(Input::Pin(wish.model.key, true));
            self.shared.set_pinned(&wish.model.id, true);
        }
        if let Some(asker) = &mut wish.asker {
            asker.sink.offer(&Event::Loaded { model: wish.model.id.clone() });
        }
    }

    /// Takes the wishes for a model out.
    fn wishes_for(&mut self, key: ModelKey) -> Vec<Wish> {
        self.wishes.extract_if(.., |wish| wish.model.key == key).collect()
    }

    fn refuse_wishes(&mut self, key: ModelKey, fault: &Fault) {
        for mut wish in self.wishes_for(key) {
            self.refuse(&mut wish, fault);
        }
    }

    /// Tells who wished for a model that it is not to be; the daemon's own wishes end in the log.
    fn refuse(&mut self, wish: &mut Wish, fault: &Fault) {
        for other in
            wish.unpinned.drain(..).filter(|other| self.ready.contains_key(other)).collect::<Vec<_>>()
        {
            self.input(Input::Pin(other, true));
        }
        // The one that stays is what is told of.
        let (wished, id) = (wish.model.key, &wish.model.id);
        if let Some((key, ready)) = self.ready.iter().find(|(k, r)| **k != wished && r.model.id == *id) {
            wish.model.refused.store(true, Ordering::Release);
            self.shared.set_header(&ready.model.id, &ready.model);
            self.shared.set_pinned(&ready.model.id, self.scheduler.is_pinned(*key));
        }
        if self.ready.values().all(|ready| ready.model.id != *id) {
            // What was asked for is not what the next one gets.
            let own = self.shared.settings().of_model.get(id).and_then(|own| own.n_ctx);
            let n_ctx = own.unwrap_or(self.shared.options.n_ctx).min(wish.model.n_ctx_train());
            self.shared.set_context(id, n_ctx);
        }
        match &mut wish.asker {
            Some(asker) => drop(asker.sink.offer(&Event::Failed(fault.clone()))),
            None => log::warn!(
                "model {} is not kept loaded as models.preload has it: {}",
                wish.model.id,
                fault.message
            ),
        }
    }

    /// Looks who of those that asked for a load has left, and which of the daemon's own wishes found no room.
    pub(super) fn look_at_wishes(&mut self) {
        let left = |wish: &mut Wish| wish.asker.as_ref().is_some_and(|asker| asker.live.cancelled());
        let left: Vec<Wish> = self.wishes.extract_if(.., left).collect();
        for mut wish in left {
            let why = match self.shared.goes_down() {
                true => "the daemon is going down; ask again in a few seconds",
                false => "the load was cancelled",
            };
            let key = wish.model.key;
            if self.wishes.iter().all(|wish| wish.model.key != key) {
                self.input(Input::Unwant(key));
                self.stop_loading();
            }
            self.refuse(&mut wish, &Fault::new(Code::Cancelled, why));
        }
        let scheduler = &self.scheduler;
        self.wishes.retain(|wish| scheduler.uses(wish.model.key));
        self.forget_models();
    }

    /// Lets go of models that were being loaded, where nobody wants them any more.
    fn stop_loading(&mut self) {
        let gone = |l: &mut Loading| !self.scheduler.uses(l.model.key);
        let mut all: Vec<Loading> = self.opening.extract_if(.., gone).collect();
        all.extend(self.loading.take_if(gone));
        for l in all {
            self.shared.set_state(&l.model.id, self.state_of(&l.model.id));
        }
    }

    /// Looks how far helpers are with the graphs that they are opening. One that nobody waits for any more is let go of.
    pub(super) fn look_at_opening(&mut self, now: Micros) {
        for mut l in std::mem::take(&mut self.opening) {
            let key = l.model.key;
            let waited_for = self.jobs.values().any(|job| job.model.key == key)
                || self.wishes.iter().any(|wish| wish.model.key == key);
            if !waited_for {
                self.input(Input::Unwant(key));
            }
            self.tell_loading(&mut l, now);
            if waited_for {
                self.load_on(l, now);
            } else {
                self.opening.push(l);
            }
        }
        self.stop_loading();
    }

    /// The state of a model that is not being loaded: with another context it may be there still.
    fn state_of(&self, id: &str) -> ModelState {
        match self.ready.values().any(|ready| ready.model.id == id) {
            true => ModelState::Loaded,
            false => ModelState::Available,
        }
    }

    /// A wanted model cannot be loaded.
    pub(super) fn no_room(&mut self, key: ModelKey) {
        let fault = if self.scheduler.full_of_pinned() {
            self.pinned_fault(&[])
        } else {
            let n = self.shared.settings().max_loaded;
            Fault::new(
                Code::ModelBusy,
                format!("at most {n} models are loaded at a time (models.max_loaded)"),
            )
        };
        self.refuse_wishes(key, &fault);
    }

    /// What is said where pinned models have all places, `but` for some.
    pub(super) fn pinned_fault(&self, but: &[ModelKey]) -> Fault {
        let pinned =
            self.ready.iter().filter(|(key, _)| self.scheduler.is_pinned(**key) && !but.contains(key));
        let ids: Vec<&str> = pinned.map(|(_, ready)| ready.model.id.as_str()).collect();
        let n = self.shared.settings().max_loaded;
        let message = format!(
            "at most {n} models are loaded at a time (models.max_loaded), and pinned ones have all places: {}; unload one",
            ids.join(", ")
        );
        Fault::new(Code::ModelBusy, message).at("model")
    }

    /// The requests that use model `id`.
    fn users(&self, id: &str) -> Vec<Slot> {
        self.jobs.iter().filter(|(_, job)| job.model.id == id).map(|(slot, _)| *slot).collect()
    }

    /// Ends them, for a model that is unloaded by force.
    pub(super) fn end_users(&mut self, id: &str) {
        for slot in self.users(id) {
            self.fail(slot, Fault::new(Code::Cancelled, "the model was unloaded by force; ask again"));
        }
    }

    /// Unloads a model by name.
    pub(super) fn unload_by_name(&mut self, to: ToUnload) {
        let ToUnload { id, force, tell } = to;
        if force {
            self.end_users(&id);
        }
        let n = self.users(&id).len();
        if n > 0 {
            let message = format!("model {id} is used by {n} requests; wait, or unload it by force");
            return tell(Err(Fault::new(Code::ModelBusy, message).at("model")));
        }
        let keys: Vec<_> = self.models.iter().filter(|(_, model)| model.id == id).map(|(k, _)| *k).collect();
        for key in keys {
            self.input(Input::Unloaded(key));
            self.refuse_wishes(key, &Fault::new(Code::Cancelled, "the model was unloaded"));
            self.stop_loading();
            self.forget_ready(key, "as asked");
        }
        self.forget_models();
        self.shared.unloaded(&id);
        tell(Ok(()));
    }

    /// Forgets a model that no request uses; but not for one that would not fit without it either.
    pub(super) fn unload(&mut self, key: ModelKey, why: Why) {
        // Whose helper takes long goes in any case: what it was at cannot be taken up again.
        if let Why::For(next) = why
            && !self.aside.contains_key(&key)
            && let Some(next) = self.models.get(&next).cloned()
            && let Err(short) = self.fit(&next, vec![key])
        {
            self.not_loaded(&next, &short_fault(&next.id, &short));
            if let Some(capacity) = self.ready.get(&key).map(|ready| ready.capacity) {
                self.input(Input::Loaded(key, capacity));
            }
            return;
        }
        self.forget_ready(
            key,
            match why {
                Why::Unused => "nobody uses it",
                Why::Memory => "memory is short",
                Why::Bound => "models.max_loaded is lower now",
                Why::For(_) => "another one is wanted",
            },
        );
        self.forget_models();
    }

    fn forget_ready(&mut self, key: ModelKey, why: &str) {
        self.aside.remove(&key);
        let Some(old) = self.ready.remove(&key) else { return };
        let (id, metrics) = (old.model.id.clone(), old.metrics.clone());
        let n = metrics.weight_bytes.get();
        drop(old);
        // One of another context goes by the same name.
        if let Some((other, _)) = self.ready.iter().find(|(_, ready)| ready.model.id == id) {
            self.shared.set_pinned(&id, self.scheduler.is_pinned(*other));
            metrics.weight_bytes.set(n);
        } else {
            self.shared.set_pinned(&id, false);
            if self.loading.iter().chain(&self.opening).all(|l| l.model.id != id) {
                self.shared.set_state(&id, ModelState::Available);
            }
        }
        log::info!(
            message_id = "3eb6c4a9f7fe4b60977e32c5e2f2388a", sotto_model = id.as_str(); "model {id} unloaded, {why}"
        );
    }

    /// A loaded model is gone without anybody's word. One that was pinned comes again.
    pub(super) fn lose(&mut self, key: ModelKey, model: Arc<Loaded>) {
        let pinned = self.scheduler.is_pinned(key);
        self.input(Input::Lost(key));
        self.forget_ready(key, "its helper is gone");
        if pinned {
            self.want(Wish::new(model, true, None));
        }
        self.forget_models();
    }

    /// Models stay open while they are loaded or somebody asks for them.
    pub(super) fn forget_models(&mut self) {
        let (scheduler, jobs) = (&self.scheduler, &self.jobs);
        self.models.retain(|key, _| scheduler.uses(*key) || jobs.values().any(|job| job.model.key == *key));
    }

    /// Makes a model ready, a slice at a time.
    pub(super) fn load(&mut self, key: ModelKey, now: Micros) {
        let mut l = match self.loading.take_if(|l| l.model.key == key) {
            Some(l) => l,
            None => {
                let Some(model) = self.models.get(&key).cloned() else {
                    return self.input(Input::Unloaded(key));
                };
                let (given, going) = match self.fit(&model, Vec::new()) {
                    Ok(fits) => fits,
                    Err(short) => return self.not_loaded(&model, &short_fault(&model.id, &short)),
                };
                for other in going {
                    self.input(Input::Unloaded(other));
                    self.forget_ready(other, "another one is wanted");
                }
                self.forget_models();
                self.shared.set_state(&model.id, ModelState::Loading);
                let load = Load::new(&model, &self.shared.options, self.shared.orders.threads());
                Loading { least: self.least(&model), model, load, given, since: now, told_us: 0, lost: false }
            }
        };
        self.tell_loading(&mut l, now);
        self.load_on(l, now);
        if self.opening.iter().any(|l| l.model.key == key) {
            self.input(Input::Aside(key));
        }
    }

    /// Tells those who wait for a model how much of it is read.
    fn tell_loading(&mut self, l: &mut Loading, now: Micros) {
        let (done, total) = l.load.progress();
        let event = Event::Loading { model: l.model.id.clone(), done, total };
        for slot in self.scheduler.placed(l.model.key) {
            if let Some(job) = self.jobs.get_mut(&slot)
                && (now >= job.told_us + PROGRESS_EVERY || done == total)
            {
                job.told_us = now;
                job.progress(&event);
            }
        }
        if now >= l.told_us + PROGRESS_EVERY || done == total {
            l.told_us = now;
            for wish in self.wishes.iter_mut().filter(|wish| wish.model.key == l.model.key) {
                if let Some(Asker { sink, live }) = &mut wish.asker
                    && sink.offer(&event) == Offer::Gone
                {
                    live.cancel();
                }
            }
        }
    }

    /// Reads the next slice, and makes the buffers after the last.
    fn load_on(&mut self, mut l: Loading, now: Micros) {
        let (model, given, since) = (l.model.clone(), l.given, l.since);
        let started = start_pool(&mut self.pool, &self.shared);
        if let Ok(pool) = started
            && l.load.work(&model, pool)
        {
            return match l.load.is_elsewhere() {
                true => self.opening.push(l),
                false => self.loading = Some(l),
            };
        }
        // It may have been ended for no fault of the file's.
        if let Some(e) = l.load.lost().filter(|_| !l.lost) {
            log::warn!("model {}: {e}; another is started", model.id);
            l.load = Load::new(&model, &self.shared.options, self.shared.orders.threads());
            l.lost = true;
            return self.opening.push(l);
        }
        if let Some(fault) = model.play.as_ref().and_then(Play::load_fault) {
            return self.not_loaded(&model, &fault);
        }
        let total = l.load.progress().1;
        let (o, metrics) = (&self.shared.options, self.shared.metrics.model(&model.id));
        let ready = started.map_err(|e| load_fault(&model.id, &e)).and_then(|pool| {
            let weights = l.load.finish(&model).map_err(|e| graph_fault(&model.id, &e))?;
            Ready::new(model.clone(), weights, pool, o, (given, metrics))
        });
        match ready {
            Ok(mut ready) => {
                let how = ready.how();
                self.shared.set_state(&model.id, ModelState::Loaded);
                ready.metrics.weight_bytes.set(ready.weight_bytes().unwrap_or(total));
                ready.metrics.load.observe(clock::now_us().saturating_sub(since));
                ready.keep_beginnings(self.shed < Level::Prefixes);
                if o.lock {
                    ready.lock();
                }
                let capacity = ready.capacity;
                self.ready.insert(model.key, ready);
                log::info!(
                    message_id = "fb1c1a134f244a77b6cbe37d0d2289a0", sotto_model = model.id.as_str(),
                    sotto_bytes = total, sotto_load_ms = (now.saturating_sub(since)) / 1_000;
                    "model {} loaded, kernels {}, weights {}", model.id, self.shared.kernels.tier().name(), how
                );
                self.input(Input::Loaded(model.key, capacity));
                for mut wish in self.wishes_for(model.key) {
                    self.grant(&mut wish);
                }
            }
            Err(fault) => self.not_loaded(&model, &fault),
        }
    }

    /// A model cannot be had: whoever waits for it hears why.
    fn not_loaded(&mut self, model: &Loaded, fault: &Fault) {
        match self.state_of(&model.id) {
            ModelState::Loaded => self.shared.set_state(&model.id, ModelState::Loaded),
            _ => self.shared.set_failed(&model.id, fault.code),
        }
        log::error!(
            message_id = "a630021c2aa646e5bb091367fd57fdb2", sotto_model = model.id.as_str(); "{}", fault.message
        );
        let of_model = self.jobs.iter().filter(|(_, job)| job.model.key == model.key);
        for slot in of_model.map(|(slot, _)| *slot).collect::<Vec<_>>() {
            self.fail(slot, fault.clone());
        }
        self.refuse_wishes(model.key, fault);
        self.input(Input::Unloaded(model.key));
        self.forget_models();
    }
}
