//! A step on the engine thread: what each sequence brings to it, what comes of it, and one that a helper takes long for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use super::{Command, PROGRESS_EVERY, Runner, Share};
use crate::base::Token;
use crate::engine::generation::Generation;
use crate::engine::loaded::load_fault;
use crate::engine::ready::{Drawn, Going, Kept, Ready, Stopped};
use crate::engine::scheduler::{Input, Micros, ModelKey, Slot};
use crate::kernel::Pool;
use crate::model::Part;
use crate::os::clock;

/// A helper is let go of that is at a step so long which nobody wants any more: another one is there sooner.
const FORLORN_US: Micros = 2_000_000;

/// A step under way.
pub(in crate::engine) struct Stepping {
    key: ModelKey,
    /// The tokens of all, one sequence after the other.
    tokens: Vec<Token>,
    of: Vec<(Share, Kept)>,
    /// Those who have left it since it was set aside; they may have begun anew.
    left: BTreeSet<Slot>,
    began: Micros,
    aside: bool,
}

impl Stepping {
    /// What comes of it is not for this one any more.
    pub(super) fn leave(&mut self, slot: Slot) {
        if self.of.iter().any(|(share, _)| share.slot == slot) {
            self.left.insert(slot);
        }
    }

    /// Those who are still there.
    fn slots(&self) -> Vec<Slot> {
        let all = self.of.iter().map(|(share, _)| share.slot);
        all.filter(|slot| !self.left.contains(slot)).collect()
    }
}

impl Runner {
    /// Takes the next tokens of some sequences through their model. That may take seconds, so others are looked at before
    /// each layer: who asks hears at once that the queue is full, and who left leaves it. A step ends early only where
    /// nobody wants it any more.
    pub(super) fn step(&mut self, inbox: &Receiver<Command>, key: ModelKey) {
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.clear();
        let mut of = Vec::new();
        for share in self.scheduler.parts().to_vec() {
            let (Some(job), Some(mut kept)) = (self.jobs.get(&share.slot), self.kept.remove(&share.slot))
            else {
                continue;
            };
            match kept.reserve(share.n) {
                Ok(()) => {
                    tokens.extend_from_slice(job.next(share.n));
                    of.push((share, kept));
                }
                Err(e) => {
                    let fault = load_fault(&job.model.id, &e);
                    self.kept.insert(share.slot, kept);
                    self.fail(share.slot, fault);
                }
            }
        }
        let began = clock::now_us();
        self.go_on_with(inbox, Stepping { key, tokens, of, left: BTreeSet::new(), began, aside: false });
    }

    /// Looks what helpers have come to whom nobody waits for.
    pub(super) fn look_at_helpers(&mut self, inbox: &Receiver<Command>) {
        self.look_at_opening(clock::now_us());
        let now = clock::now_us();
        for (key, stepping) in std::mem::take(&mut self.aside) {
            let forlorn = stepping.slots().is_empty() && now > stepping.began + FORLORN_US;
            self.go_on_with(inbox, stepping);
            if forlorn && self.aside.contains_key(&key) {
                self.let_go(key);
            }
        }
    }

    /// Does what is left of a step, or sets it aside.
    fn go_on_with(&mut self, inbox: &Receiver<Command>, mut stepping: Stepping) {
        let key = stepping.key;
        let (Some(mut ready), Some(pool)) = (self.ready.remove(&key), self.pool.take()) else {
            return self.fail_all(&stepping.slots(), "no model is loaded for a running request");
        };
        pool.set_active(self.shared.orders.threads());
        let mut rest = stepping.tokens.as_slice();
        let mut going = Vec::with_capacity(stepping.of.len());
        let mut shares = Vec::with_capacity(stepping.of.len());
        for (share, kept) in stepping.of.drain(..) {
            let (tokens, others) = rest.split_at(share.n);
            rest = others;
            let alone = self.jobs.get(&share.slot).is_some_and(|job| job.n_lost > 0);
            going.push(Going { slot: share.slot, kept, tokens, draws: share.draws, alone });
            shares.push(share);
        }
        let drawn = match going.is_empty() {
            true => Err(Stopped::Left),
            false => self.advance(inbox, &mut ready, &pool, &mut going, &stepping.left),
        };
        stepping.of = shares.into_iter().zip(going.into_iter().map(|g| g.kept)).collect();
        self.ready.insert(key, ready);
        self.pool = Some(pool);
        if !matches!(drawn, Err(Stopped::Aside)) {
            return self.stepped(stepping, drawn);
        }
        if !std::mem::replace(&mut stepping.aside, true) {
            self.input(Input::Aside(key));
        }
        self.aside.insert(key, stepping);
    }

    /// Works on a step, and draws.
    fn advance(
        &mut self,
        inbox: &Receiver<Command>,
        ready: &mut Ready,
        pool: &Pool,
        going: &mut [Going<'_>],
        left: &BTreeSet<Slot>,
    ) -> Result<Vec<Drawn>, Stopped> {
        let all: Vec<Slot> = going.iter().map(|g| g.slot).collect();
        let n_tokens: usize = going.iter().map(|g| g.tokens.len()).sum();
        let many = n_tokens > all.len() || ready.model.play.is_some();
        // Both are asked in turn, by the one that works.
        let this = RefCell::new(self);
        let mut go_on = |part| {
            let mut this = this.borrow_mut();
            if part == Part::Attention {
                this.shared.layers.fetch_add(1, Ordering::AcqRel);
                if many {
                    this.look_around(inbox);
                }
            }
            all.iter().any(|slot| this.jobs.get(slot).is_some_and(|job| !job.live.cancelled()))
        };
        let mut sample = |slot, logits: &[f32]| {
            let mut this = this.borrow_mut();
            let job = this.jobs.get_mut(&slot).filter(|_| !left.contains(&slot));
            job.map(|job: &mut Generation| job.sample(logits))
        };
        ready.step(pool, going, &mut sample, &mut go_on)
    }

    /// A step is through, as far as it is: where a helper was lost others may have had from it what they wanted.
    fn stepped(&mut self, stepping: Stepping, drawn: Result<Vec<Drawn>, Stopped>) {
        let now = clock::now_us();
        let us = now.saturating_sub(stepping.began);
        let Stepping { key, tokens, of, left, aside, .. } = stepping;
        let slots: Vec<Slot> = of.iter().map(|(share, _)| share.slot).collect();
        let (drawn, loss, n_through) = match drawn {
            Ok(drawn) => (drawn, None, slots.len()),
            Err(Stopped::Left | Stopped::Aside) => (Vec::new(), None, 0),
            Err(Stopped::Lost(mut loss)) => {
                let n = loss.through.min(slots.len());
                (std::mem::take(&mut loss.drawn), Some(loss), n)
            }
        };
        let rest = slots.get(n_through..).unwrap_or_default();
        for (i, (Share { slot, n, .. }, kept)) in of.into_iter().enumerate() {
            match self.jobs.get_mut(&slot).filter(|_| !left.contains(&slot)) {
                Some(job) => {
                    if i < n_through {
                        let share_us = us * n as u64 / tokens.len().max(1) as u64;
                        job.stepped(n, share_us, now, PROGRESS_EVERY);
                        if let Some(ready) = self.ready.get_mut(&key) {
                            ready.keep_beginning(job, &kept, n);
                        }
                    }
                    self.kept.insert(slot, kept);
                }
                // It ended meanwhile.
                None => self.give_back(kept),
            }
        }
        self.tokens = tokens;
        self.shared.metrics.busy_us.add(us);
        self.rest_until = now.saturating_add(self.shared.orders.rest_after(us));
        if let Some(ready) = self.ready.get(&key) {
            ready.tell();
        }
        self.settle();
        for slot in rest {
            self.input(Input::Undone(*slot));
        }
        match aside {
            true => self.input(Input::Returned(key, us)),
            false => self.input(Input::StepDone(us)),
        }
        for drawn in drawn {
            match drawn {
                Drawn::Token(slot, token) => self.emit(slot, token, now),
                Drawn::Vector(slot, _) | Drawn::Refused(slot, _) if left.contains(&slot) => {}
                Drawn::Vector(slot, vector) => self.embedded(slot, vector, now),
                Drawn::Refused(slot, e) => self.refused_by_helper(slot, &e),
            }
        }
        if let Some(loss) = loss {
            let asked: Vec<Slot> = rest.iter().take(loss.asked).copied().collect();
            self.lost_helper(key, &asked, &loss);
        }
    }
}
