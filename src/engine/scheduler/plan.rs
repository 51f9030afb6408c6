//! Who has a place, and what the next step takes.

use std::collections::{BTreeMap, VecDeque};

use super::room::{Holder, pages, safe};
use super::{
    Action, Class, Cut, Micros, ModelKey, Part, Phase, Scheduler, Sequence, Slot, Step, Wanted, Why, class,
};
use crate::base::limits::{ATTN_BLOCK, N_FEED_MAX, PREFILL_CHUNK_MAX};

/// What a chunk of a prompt may take while others want something, in microseconds.
const SLICE: Micros = 50_000;
/// Tokens of the shortest chunk: fewer take as long, because weights are read once either way. From so many on it is
/// measured how long a token takes.
pub(super) const N_MEASURED: usize = 16;

impl Scheduler {
    /// The next step at time `now`. If [`Action::Begin`] is among the actions, they are to be carried out and this is to be
    /// asked again.
    pub(in crate::engine) fn plan(&mut self, now: Micros, actions: &mut Vec<Action>) -> Step {
        self.parts.clear();
        self.expire(now, actions);
        while self.is_over() && self.evict(Class::Background, Why::Bound, actions) {}
        self.choose_leavers();
        for class in [Class::Interactive, Class::Background] {
            self.place(class, actions);
        }
        self.load_wanted(actions);
        let unload = self.unload_idle(now, actions);
        // Whose first token is in the next step does not wait for it, unless many such came in a row.
        let patience = 100 * self.limits.quantum as i64;
        let due = self.background_due > if self.begins_to_answer() { patience } else { 0 };
        let order = match due {
            true => [Class::Background, Class::Interactive],
            false => [Class::Interactive, Class::Background],
        };
        let mut run = None;
        self.stepping = order.into_iter().find(|class| {
            run = self.fill(now, *class, actions);
            run.is_some()
        });
        match (self.loading, run) {
            (Some(model), None) => Step::Load(model),
            (Some(model), Some(_)) if !self.loaded_last => {
                self.loaded_last = true;
                self.parts.clear();
                Step::Load(model)
            }
            (_, Some(model)) => {
                self.loaded_last = false;
                Step::Run(model)
            }
            (None, None) => {
                Step::Idle(self.next_expiry().into_iter().chain(unload).min().map(|t| t.max(now)))
            }
        }
    }

    /// Whether a request that is waited for has its first token within a chunk.
    fn begins_to_answer(&self) -> bool {
        let chunk = self.limits.prefill_chunk;
        let begins = |s: &Sequence| matches!(s.phase, Phase::Prefill { left } if self.has_place(s) && !s.sent_text && left <= chunk);
        self.of(Class::Interactive).any(begins)
    }

    fn served(&self, s: &Sequence) -> Micros {
        self.accounts[class(s.ticket.class)].served(s.ticket.uid)
    }

    fn of(&self, class: Class) -> impl Iterator<Item = &Sequence> {
        self.sequences.values().filter(move |s| s.ticket.class == class)
    }

    /// Gives places to requests of a class, and begins those whose model is ready.
    fn place(&mut self, of: Class, actions: &mut Vec<Action>) {
        // Whose reader does not read needs none.
        for s in self.sequences.values_mut().filter(|s| s.full_since.is_some()) {
            s.active = false;
        }
        self.rotate(of);
        // Once one waits for room for its model, no others begin whose models are in its way. A pinned one is not.
        let pinned: Vec<_> = self.models.iter().filter(|(_, m)| m.pinned).map(|(key, _)| *key).collect();
        let goes_on = |s: &Sequence| s.begun() || pinned.contains(&s.ticket.model);
        let waits = |w: &&Wanted| w.evicts && !self.has_room() && !self.full_of_pinned();
        let leaving: Vec<_> = self.models.iter().filter(|(_, m)| m.leaves).map(|(key, _)| *key).collect();
        let mut blocked = self.wanted.first().filter(waits).map(|w| w.model);
        loop {
            let placed = || self.of(of).filter(|s| self.has_place(s));
            if placed().count() >= self.limits.max_sequences {
                break;
            }
            let n_active = |uid| placed().filter(|s| s.ticket.uid == uid).count();
            let n_of = |model| self.of(of).filter(|s| s.active && s.ticket.model == model).count();
            let waits = |s: &&Sequence| {
                !s.active
                    && s.full_since.is_none()
                    && n_of(s.ticket.model) < s.ticket.max_sequences.min(self.limits.max_sequences)
                    && (s.begun() || !leaving.contains(&s.ticket.model))
                    && blocked.is_none_or(|model| goes_on(s) && s.ticket.model != model)
            };
            let key = |s: &&Sequence| (n_active(s.ticket.uid), self.served(s), s.ticket.slot);
            let Some(next) = self.of(of).filter(waits).min_by_key(key).map(|s| s.ticket) else { break };
            if !self.make_room(next.model, of, actions) {
                if self.full_of_pinned() {
                    self.forget(next.slot);
                    actions.push(Action::Cut(next.slot, Cut::NoRoom));
                } else {
                    blocked = Some(next.model);
                }
                continue;
            }
            let Some(s) = self.sequences.get_mut(&next.slot) else { break };
            s.active = true;
            if !s.started {
                s.started = true;
                actions.push(Action::Place(next.slot));
            }
        }
        for s in self.sequences.values().filter(|s| s.active && !s.begun() && s.ticket.class == of) {
            if self.models.contains_key(&s.ticket.model) {
                actions.push(Action::Begin(s.ticket.slot));
            }
        }
    }

    /// Takes the places of uids that are furthest ahead, for those that are far behind and have none.
    fn rotate(&mut self, of: Class) {
        let active = || self.of(of).filter(|s| self.has_place(s));
        let placed = |uid| active().any(|s| s.ticket.uid == uid);
        let waits = |s: &&Sequence| {
            !s.active
                && s.full_since.is_none()
                && !self.aside.contains_key(&s.ticket.model)
                && !placed(s.ticket.uid)
        };
        // One of each uid that waits, the oldest.
        let mut behind = BTreeMap::new();
        for s in self.of(of).filter(waits) {
            let t = &s.ticket;
            behind.entry(t.uid).or_insert((self.served(s), t.slot, t.model, t.max_sequences));
        }
        let mut behind: Vec<_> = behind.into_values().collect();
        behind.sort_unstable();
        // Of the sequences of a uid the newest first.
        let mut ahead: Vec<_> = active().map(|s| (self.served(s), s.ticket.slot, s.ticket.model)).collect();
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        let (mut n, mut n_of) = (ahead.len(), BTreeMap::new());
        for (_, _, model) in &ahead {
            *n_of.entry(*model).or_insert(0) += 1;
        }
        let mut gives = Vec::new();
        for (had, _, model, max_sequences) in behind {
            let own = n_of.get(&model).copied().unwrap_or(0);
            if n < self.limits.max_sequences && own < max_sequences {
                // Whoever finds a free place takes that.
                n += 1;
            } else {
                let fits = |(_, _, other): &(Micros, Slot, ModelKey)| own < max_sequences || *other == model;
                let Some(i) = ahead.iter().position(fits) else { continue };
                if ahead.get(i).is_none_or(|(most, ..)| *most <= had + 2 * self.limits.quantum) {
                    continue;
                }
                let (_, slot, other) = ahead.remove(i);
                gives.push(slot);
                n_of.entry(other).and_modify(|n| *n -= 1);
            }
            *n_of.entry(model).or_insert(0) += 1;
        }
        for slot in gives {
            if let Some(s) = self.sequences.get_mut(&slot) {
                s.active = false;
            }
        }
    }

    /// Whether `model` is loaded or about to be; makes it so where that is possible.
    fn make_room(&mut self, model: ModelKey, by: Class, actions: &mut Vec<Action>) -> bool {
        if self.models.contains_key(&model) || self.is_coming(model) {
            return true;
        }
        if self.loading.is_some() {
            return false;
        }
        while !self.has_room() {
            // The last to go is looked at whether the new one fits in its place.
            let why = if self.is_over() { Why::Bound } else { Why::For(model) };
            if !self.evict(by, why, actions) {
                return false;
            }
        }
        self.loading = Some(model);
        true
    }

    /// Unloads the model that was used longest ago and that nobody uses; background work gives way to what is `by`
    /// somebody who waits. `false` if all are used or pinned.
    fn evict(&mut self, by: Class, why: Why, actions: &mut Vec<Action>) -> bool {
        let in_use = |s: &&Sequence| match by {
            Class::Interactive => s.ticket.class == Class::Interactive && (s.active || s.begun()),
            Class::Background => s.active || s.begun(),
        };
        let unused = |key: &ModelKey| !self.sequences.values().filter(in_use).any(|s| s.ticket.model == *key);
        let models = self.models.iter().filter(|(key, m)| !m.pinned && unused(key));
        let Some(old) = models.min_by_key(|(_, m)| m.used).map(|(key, _)| *key) else { return false };
        self.lose(old, actions);
        actions.push(Action::Unload(old, why));
        true
    }

    /// A model is gone, and its sequences begin anew with the next.
    pub(super) fn lose(&mut self, model: ModelKey, actions: &mut Vec<Action>) {
        for s in self.sequences.values_mut().filter(|s| s.ticket.model == model) {
            s.active = false;
            if s.begun() {
                actions.push(Action::Drop(s.ticket.slot));
                drop_kept(s);
            }
        }
        self.models.remove(&model);
        self.aside.remove(&model);
    }

    /// Chooses which models go as soon as nobody uses them, where there are too many: the same ones until they are gone.
    fn choose_leavers(&mut self) {
        let n = self.models.len().saturating_sub(self.limits.max_loaded);
        if self.models.values().filter(|m| m.leaves && !m.pinned).count() == n {
            return;
        }
        let mut all: Vec<_> = self.models.values_mut().collect();
        all.sort_unstable_by_key(|m| (m.pinned, m.used));
        all.into_iter().enumerate().for_each(|(i, m)| m.leaves = i < n && !m.pinned);
    }

    /// After the bound was lowered.
    fn is_over(&self) -> bool {
        self.models.len() > self.limits.max_loaded
    }

    /// Lets go of models that nobody has used for long; returns when the next one is due.
    fn unload_idle(&mut self, now: Micros, actions: &mut Vec<Action>) -> Option<Micros> {
        let keep = self.limits.keep?;
        for s in self.sequences.values() {
            if let Some(m) = self.models.get_mut(&s.ticket.model) {
                m.wanted = now;
            }
        }
        for model in self.unused() {
            if self.models.get(&model).is_some_and(|m| now >= m.wanted.saturating_add(keep)) {
                self.unload(model, Why::Unused, actions);
            }
        }
        self.unused().iter().filter_map(|key| Some(self.models.get(key)?.wanted.saturating_add(keep))).min()
    }

    /// Models that no request wants and that are not pinned, those first that were used longest ago.
    pub(in crate::engine) fn unused(&self) -> Vec<ModelKey> {
        let used = |key| self.sequences.values().any(|s| s.ticket.model == key);
        let models = self.models.iter().filter(|(key, m)| !m.pinned && !used(**key));
        let mut models: Vec<_> = models.map(|(key, m)| (m.used, *key)).collect();
        models.sort_unstable();
        models.into_iter().map(|(_, key)| key).collect()
    }

    fn unload(&mut self, model: ModelKey, why: Why, actions: &mut Vec<Action>) {
        self.models.remove(&model);
        self.aside.remove(&model);
        actions.push(Action::Unload(model, why));
    }

    /// Gives up what background requests keep that have no place and, if `models`, those that nobody uses.
    pub(super) fn give_way(&mut self, models: bool, actions: &mut Vec<Action>) {
        let aside = &self.aside;
        let rests = |s: &&mut Sequence| {
            let begun = s.ticket.class == Class::Background && s.begun();
            begun && !s.active && !aside.contains_key(&s.ticket.model)
        };
        for s in self.sequences.values_mut().filter(rests) {
            drop_kept(s);
            actions.push(Action::Drop(s.ticket.slot));
        }
        for model in if models { self.unused() } else { Vec::new() } {
            self.unload(model, Why::Memory, actions);
        }
    }

    fn has_room(&self) -> bool {
        self.models.len() < self.limits.max_loaded
    }

    /// No model can be loaded until one is unloaded by name.
    pub(in crate::engine) fn full_of_pinned(&self) -> bool {
        self.full_of_pinned_without(&[])
    }

    /// The same if `others` were not there.
    pub(in crate::engine) fn full_of_pinned_without(&self, others: &[ModelKey]) -> bool {
        let pinned = self.models.iter().filter(|(key, m)| m.pinned && !others.contains(key));
        pinned.count() >= self.limits.max_loaded
    }

    /// Begins to load what is wanted though nobody asks it.
    fn load_wanted(&mut self, actions: &mut Vec<Action>) {
        while self.loading.is_none()
            && let Some(&Wanted { model, evicts }) = self.wanted.first()
        {
            if !evicts && !self.has_room() {
                actions.push(Action::NoRoom(model));
            } else if !self.make_room(model, Class::Background, actions) {
                if !self.full_of_pinned() {
                    // Those in its way are in use.
                    return;
                }
                actions.push(Action::NoRoom(model));
            }
            self.wanted.remove(0);
        }
    }

    /// Chooses what the sequences of a class bring to a step; `None` if none can go on.
    fn fill(&mut self, now: Micros, of: Class, actions: &mut Vec<Action>) -> Option<ModelKey> {
        let runs = |s: &&Sequence| s.active && s.begun() && s.full_since.is_none();
        let used = |s: &Sequence| (self.models.get(&s.ticket.model).map(|m| m.used), s.ticket.model);
        let free = |s: &&Sequence| self.has_place(s);
        let mut models: Vec<_> = self.of(of).filter(runs).filter(free).map(used).collect();
        models.sort_unstable();
        models.dedup();
        let mut models: VecDeque<_> = models.into_iter().map(|(_, model)| model).collect();
        let mut tried = Vec::new();
        while let Some(model) = models.pop_front().or_else(|| self.lend(of, &tried)) {
            tried.push(model);
            loop {
                let of_model = self.of(of).filter(runs).filter(|s| s.ticket.model == model);
                let mut slots: Vec<_> = of_model.map(|s| (self.served(s), s.ticket.slot)).collect();
                slots.sort_unstable();
                self.decode_parts(model, &slots, actions);
                self.prefill_parts(model, &slots, actions);
                if !self.parts.is_empty() {
                    if let Some(m) = self.models.get_mut(&model) {
                        m.used = now;
                    }
                    return Some(model);
                }
                if !self.swap(of, model) {
                    break;
                }
            }
        }
        None
    }

    /// Where all who have a place wait for memory of the models `tried`: gives the place of who wants most to one of another
    /// model, which may have its own. `None` if there is nobody.
    fn lend(&mut self, of: Class, tried: &[ModelKey]) -> Option<ModelKey> {
        let free = |s: &&Sequence| !self.aside.contains_key(&s.ticket.model);
        let begun = || self.of(of).filter(|s| s.begun() && s.full_since.is_none()).filter(free);
        let n_of = |model| self.of(of).filter(|s| s.active && s.ticket.model == model).count();
        let fits = |s: &&Sequence| {
            !s.active && !tried.contains(&s.ticket.model) && n_of(s.ticket.model) < s.ticket.max_sequences
        };
        let rests = begun().filter(fits);
        let (_, slot, model) = rests.map(|s| (self.served(s), s.ticket.slot, s.ticket.model)).min()?;
        let blocked =
            begun().filter(|s| s.active).map(|s| (most(s).saturating_sub(s.n_pages), s.ticket.slot)).max();
        for (slot, active) in [(blocked?.1, false), (slot, true)] {
            if let Some(s) = self.sequences.get_mut(&slot) {
                s.active = active;
            }
        }
        Some(model)
    }

    /// Where all who have a place wait for memory: gives the place of who wants most to who wants less and may therefore
    /// go on. False if there is nobody.
    fn swap(&mut self, of: Class, model: ModelKey) -> bool {
        let missing = |s: &Sequence| most(s).saturating_sub(s.n_pages);
        let begun = || self.of(of).filter(|s| s.begun() && s.full_since.is_none() && s.ticket.model == model);
        let blocked = begun().filter(|s| s.active).map(|s| (missing(s), s.ticket.slot)).max();
        let rests = begun().filter(|s| !s.active).map(|s| (missing(s), s.ticket.slot)).min();
        match (blocked, rests) {
            (Some((more, blocked)), Some((less, rests))) if less < more => {
                for (slot, active) in [(blocked, false), (rests, true)] {
                    if let Some(s) = self.sequences.get_mut(&slot) {
                        s.active = active;
                    }
                }
                true
            }
            _ => false,
        }
    }

    fn decode_parts(&mut self, model: ModelKey, slots: &[(Micros, Slot)], actions: &mut Vec<Action>) {
        for (_, slot) in slots {
            if self.parts.len() < N_FEED_MAX
                && let Some(s) = self.sequences.get(slot)
                && s.phase == Phase::Decode
                && let n_tokens = s.n_tokens
                && self.grant(model, *slot, n_tokens, actions)
            {
                self.parts.push(Part { slot: *slot, n: 1, draws: true });
            }
        }
    }

    fn prefill_parts(&mut self, model: ModelKey, slots: &[(Micros, Slot)], actions: &mut Vec<Action>) {
        let capacity = self.models.get(&model).map(|m| m.capacity);
        let (at_pages, whole) = capacity.map_or((false, false), |c| (c.at_pages, c.whole));
        // Tokens that are decoded share the step.
        let mut left_of_chunk = self.limits.prefill_chunk.min(PREFILL_CHUNK_MAX - self.parts.len());
        if self.sequences.len() > 1 {
            let n = SLICE.checked_div(self.token_us).unwrap_or(Micros::MAX);
            left_of_chunk = left_of_chunk.min(usize::try_from(n).unwrap_or(usize::MAX).max(N_MEASURED));
        }
        for (_, slot) in slots {
            if self.parts.len() == N_FEED_MAX || left_of_chunk == 0 {
                return;
            }
            let Some(s) = self.sequences.get(slot) else { continue };
            let Phase::Prefill { left } = s.phase else { continue };
            let all = s.n_tokens.max(s.ticket.n_prompt);
            let done = all - left;
            let mut n = if whole { left } else { left.min(left_of_chunk) };
            if at_pages {
                let end = (done + n) / ATTN_BLOCK * ATTN_BLOCK;
                n = if end > done { end - done } else { n };
            }
            if self.grant(model, *slot, done + n, actions) {
                self.parts.push(Part { slot: *slot, n, draws: n == left });
                left_of_chunk = left_of_chunk.saturating_sub(n);
            }
        }
    }

    /// Whether a sequence may come to hold `n` tokens: then it has the pages for it.
    fn grant(&mut self, model: ModelKey, slot: Slot, n: usize, actions: &mut Vec<Action>) -> bool {
        loop {
            let Some(s) = self.sequences.get(&slot) else { return false };
            let Some(capacity) = self.models.get(&model).map(|m| m.capacity) else { return false };
            let wanted = pages(n).saturating_sub(s.n_shared);
            if wanted <= s.n_pages {
                return true;
            }
            let begun = self.sequences.values().filter(|s| s.begun() && s.ticket.model == model);
            let holder = |s: &Sequence| Holder {
                held: if s.ticket.slot == slot { wanted } else { s.n_pages },
                most: most(s),
            };
            let mut holders: Vec<_> = begun.map(holder).collect();
            if safe(&mut holders, capacity.n_pages) {
                if let Some(s) = self.sequences.get_mut(&slot) {
                    s.n_pages = wanted;
                }
                return true;
            }
            // Background work gives way to who is waited for, the newest first; where that does not help it keeps what it has,
            // or it would begin and be thrown out by turns.
            let gives = |s: &Sequence| {
                s.ticket.model == model && s.begun() && s.ticket.class == Class::Background && s.n_pages > 0
            };
            let begun = self.sequences.values().filter(|s| s.begun() && s.ticket.model == model);
            let mut others: Vec<_> = begun.filter(|s| !gives(s)).map(holder).collect();
            if s.ticket.class == Class::Background || !safe(&mut others, capacity.n_pages) {
                return false;
            }
            let Some(s) = self.sequences.values_mut().rev().find(|s| gives(s)) else { return false };
            s.active = false;
            drop_kept(s);
            actions.push(Action::Drop(s.ticket.slot));
        }
    }
}

/// Pages of its own that a sequence may come to want.
fn most(s: &Sequence) -> usize {
    pages(s.ticket.n_prompt + s.ticket.n_max).saturating_sub(s.n_shared)
}

/// What the sequence keeps is gone; it begins anew.
fn drop_kept(s: &mut Sequence) {
    s.phase = Phase::Waiting;
    (s.n_pages, s.n_shared) = (0, 0);
}
