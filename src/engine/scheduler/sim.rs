//! The scheduler under seeded traffic with a clock of its own: clients that come, leave, do not read, and want other models.
//! A failure prints its seed; `SOTTO_SIM_SEED` (when it is built) replays one.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::limits::{N_FEED_MAX, PREFILL_CHUNK_MAX};
use crate::base::rng::Rng;

/// What a helper runs: its loads and steps are set aside.
const HELPED: ModelKey = ModelKey(1);
/// Longest prompt.
const N_PROMPT_MAX: usize = 300;

/// What a simulated client knows of its request.
#[derive(Debug)]
struct Client {
    ticket: Ticket,
    since: Micros,
    /// Tokens it will have: the model ends there.
    n_answer: usize,
    n_drawn: usize,
    /// Tokens that are kept of it, of them those that it shares with others.
    n_kept: usize,
    n_shared: usize,
    begun: bool,
    full: bool,
    /// When its reader last read, or was last seen not to.
    read_us: Micros,
    sent: bool,
}

impl Client {
    fn new(ticket: Ticket, since: Micros, n_answer: usize) -> Self {
        let (n_drawn, n_kept, n_shared) = (0, 0, 0);
        let (begun, full, read_us, sent) = (false, false, 0, false);
        Self { ticket, since, n_answer, n_drawn, n_kept, n_shared, begun, full, read_us, sent }
    }

    /// Pages of its own for so many tokens.
    fn own_pages(&self, n: usize) -> usize {
        n.div_ceil(ATTN_BLOCK) - self.n_shared / ATTN_BLOCK
    }
}

struct World {
    seed: u64,
    rng: Rng,
    now: Micros,
    scheduler: Scheduler,
    clients: BTreeMap<Slot, Client>,
    next: u64,
    loaded: BTreeSet<ModelKey>,
    pinned: BTreeSet<ModelKey>,
    /// Steps that were set aside, and since when.
    aside: BTreeMap<ModelKey, (Vec<Part>, Micros)>,
    /// How long the last step took.
    stride: Micros,
    n_pages: usize,
    /// Sequences of a step, of each model.
    max_sequences: [usize; 2],
    /// Engine time of each uid and class.
    served: BTreeMap<(usize, u32), Micros>,
    /// All are of one class and model, with memory for all.
    equals: bool,
    /// Nobody's output is ever full.
    all_read: bool,
    trace: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let limits = Limits {
            queue_max: 1 + rng.below(20),
            queue_max_per_uid: 1 + rng.below(8),
            queue_timeout: 2_000_000,
            stall_timeout: 300_000,
            prefill_chunk: [1, 16, 100, 128][rng.below(4)],
            max_sequences: 1 + rng.below(6),
            quantum: 50_000,
            background_share: 5,
            max_loaded: 1 + rng.below(2),
            keep: [None, Some(30_000)][seed as usize % 2],
        };
        Self {
            seed,
            now: 0,
            scheduler: Scheduler::new(limits),
            clients: BTreeMap::new(),
            next: 0,
            loaded: BTreeSet::new(),
            pinned: BTreeSet::new(),
            aside: BTreeMap::new(),
            stride: 0,
            n_pages: 0,
            max_sequences: [1 + rng.below(6), 1 + rng.below(6)],
            served: BTreeMap::new(),
            equals: false,
            all_read: false,
            trace: 0,
            rng,
        }
    }

    fn input(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.scheduler.on(self.now, input, &mut actions);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.trace = self.trace.wrapping_mul(31).wrapping_add(match action {
                Action::Place(Slot(n)) => n,
                Action::Begin(Slot(n)) => n + 1_000_000,
                Action::Drop(Slot(n)) => n + 2_000_000,
                Action::Unload(ModelKey(n), _) => u64::from(n) + 3_000_000,
                Action::Cut(Slot(n), _) => n + 4_000_000,
                Action::NoRoom(ModelKey(n)) => u64::from(n) + 5_000_000,
            });
            match action {
                Action::Place(slot) => {
                    assert!(self.clients.contains_key(&slot), "seed {}: placed a stranger", self.seed)
                }
                Action::Begin(slot) => {
                    let c = self.clients.get_mut(&slot).expect("a client");
                    assert!(self.loaded.contains(&c.ticket.model) && !c.begun, "seed {}: {c:?}", self.seed);
                    c.begun = true;
                    let n_kept = (c.ticket.n_prompt - 1) / ATTN_BLOCK * ATTN_BLOCK;
                    let n = if self.rng.below(3) == 0 && c.n_drawn == 0 { n_kept } else { 0 };
                    (c.n_kept, c.n_shared) = (n, n);
                    self.input(Input::Begun(slot, n));
                }
                Action::Drop(slot) => {
                    let c = self.clients.get_mut(&slot).expect("a client");
                    assert!(
                        c.ticket.class == Class::Background,
                        "seed {}: who is waited for keeps all",
                        self.seed
                    );
                    (c.begun, c.n_kept, c.n_shared) = (false, 0, 0);
                    let model = c.ticket.model;
                    assert!(
                        !self.aside.contains_key(&model) || !self.scheduler.aside.contains_key(&model),
                        "seed {}: what a step uses is not touched",
                        self.seed
                    );
                }
                Action::Unload(model, _) => {
                    self.aside.remove(&model);
                    assert!(self.loaded.remove(&model), "seed {}: {model:?} was not loaded", self.seed);
                    assert!(!self.pinned.contains(&model), "seed {}: {model:?} is pinned", self.seed);
                    let holds = |c: &Client| c.begun && c.ticket.model == model;
                    assert!(!self.clients.values().any(holds), "seed {}: {model:?} is in use", self.seed);
                }
                Action::NoRoom(model) => {
                    let is_full = self.loaded.len() >= self.scheduler.limits.max_loaded;
                    assert!(!self.loaded.contains(&model) && is_full, "seed {}", self.seed);
                }
                Action::Cut(slot, cut) => {
                    let c = self.clients.remove(&slot).expect("one terminal event");
                    let (now, l) = (self.now, self.scheduler.limits);
                    let missed = now.saturating_sub(c.ticket.deadline);
                    assert!(missed <= self.stride, "seed {}: {missed} us too late", self.seed);
                    match cut {
                        Cut::Deadline => assert!(now >= c.ticket.deadline && !c.sent),
                        Cut::DeadlineWithText => assert!(now >= c.ticket.deadline && c.sent),
                        Cut::QueueTimeout => assert!(now >= c.since + l.queue_timeout && !c.begun),
                        Cut::Stalled => assert!(c.full && now >= c.read_us + l.stall_timeout),
                        Cut::NoRoom => {
                            assert!(
                                !self.loaded.contains(&c.ticket.model) && self.full_of_pinned() && !c.begun
                            );
                        }
                        Cut::Cancelled | Cut::QueueFull { .. } => {}
                    }
                }
            }
        }
    }

    fn arrive(&mut self) {
        let slot = Slot(self.next);
        self.next += 1;
        let class = if self.rng.below(4) == 0 { Class::Background } else { Class::Interactive };
        let n_max = 1 + self.rng.below(200);
        let model = u32::from(self.rng.below(10) == 0);
        let ticket = Ticket {
            slot,
            uid: self.rng.below(5) as u32,
            class,
            model: ModelKey(model),
            max_sequences: self.max_sequences[model as usize],
            n_prompt: 1 + self.rng.below(N_PROMPT_MAX),
            n_max,
            follows: self.rng.below(4) == 0,
            deadline: self.now + [500_000, 5_000_000, 60_000_000][self.rng.below(3)],
        };
        let n_answer = 1 + self.rng.below(n_max);
        self.clients.insert(slot, Client::new(ticket, self.now, n_answer));
        self.input(Input::Submit(ticket));
    }

    /// A request that ends only where it has all its tokens.
    fn submit_long(&mut self, uid: u32, class: Class, model: ModelKey) {
        let slot = Slot(self.next);
        self.next += 1;
        let (n_prompt, n_max) = (1 + self.rng.below(N_PROMPT_MAX), 1 + self.rng.below(300));
        let (deadline, max_sequences) = (Micros::MAX, usize::MAX);
        let follows = false;
        let ticket = Ticket { slot, uid, class, model, n_prompt, n_max, deadline, max_sequences, follows };
        self.clients.insert(slot, Client::new(ticket, self.now, n_max));
        self.input(Input::Submit(ticket));
    }

    fn full_of_pinned(&self) -> bool {
        self.pinned.len() >= self.scheduler.limits.max_loaded
    }

    /// Something that the owner does, or nothing.
    fn manage(&mut self) {
        let model = ModelKey(self.rng.below(3) as u32);
        match self.rng.below(400) {
            0 => self.input(Input::Want { model, evicts: self.seed.is_multiple_of(2) }),
            1 => self.input(Input::Unwant(model)),
            2 if self.loaded.contains(&model) && self.scheduler.may_pin(model) => {
                self.pinned.insert(model);
                self.input(Input::Pin(model, true));
            }
            3..=20 if self.pinned.remove(&model) => self.input(Input::Pin(model, false)),
            // A reload, but not within the loading of one that had room.
            21 if self.scheduler.loading.is_none() => {
                self.scheduler.limits.max_loaded = 1 + self.rng.below(3)
            }
            _ => {}
        }
    }

    fn pass(&mut self, us: Micros) {
        self.now += us;
        self.stride = us;
    }

    /// Whatever is said of a request that has ended changes nothing.
    fn disturb(&mut self, slot: Slot) {
        // Every input also tells the time.
        self.input(Input::Tick);
        let before = format!("{:?}", self.scheduler);
        let late = [
            Input::Cancel(slot),
            Input::Full(slot),
            Input::Drained(slot),
            Input::Sent(slot),
            Input::Ended(slot),
            Input::Begun(slot, 7),
        ];
        for input in late {
            let mut actions = Vec::new();
            let what = format!("{input:?}");
            self.scheduler.on(self.now, input, &mut actions);
            assert!(actions.is_empty(), "seed {}: {what} after the end: {actions:?}", self.seed);
        }
        assert_eq!(
            format!("{:?}", self.scheduler),
            before,
            "seed {}: inputs after the end of {slot:?}",
            self.seed
        );
    }

    /// Something that a client does, or nothing.
    fn meddle(&mut self) {
        let Some(slot) = self.clients.keys().nth(self.rng.below(self.clients.len().max(1))).copied() else {
            return;
        };
        let c = self.clients.get_mut(&slot).expect("chosen from them");
        match self.rng.below(60) {
            0 => {
                self.input(Input::Cancel(slot));
                assert!(!self.clients.contains_key(&slot), "seed {}: cancelled at once", self.seed);
            }
            1..=4 if c.sent && !c.full && !self.all_read => {
                (c.full, c.read_us) = (true, self.now);
                self.input(Input::Full(slot));
            }
            5..=18 if c.full => {
                c.full = false;
                self.input(Input::Drained(slot));
            }
            19..=20 if c.full => {
                c.read_us = self.now;
                self.input(Input::Read(slot));
            }
            _ => {}
        }
    }

    fn step(&mut self) {
        let mut n_tries = 0;
        self.helped();
        let step = loop {
            n_tries += 1;
            assert!(n_tries < 100, "seed {}: begins without an end: {:#?}", self.seed, self.scheduler);
            let mut actions = Vec::new();
            let step = self.scheduler.plan(self.now, &mut actions);
            let again = actions.iter().any(|action| matches!(action, Action::Begin(_)));
            self.carry_out(actions);
            if !again {
                break step;
            }
        };
        let asked = |model: &ModelKey| self.clients.values().any(|c| c.ticket.model == *model);
        let over = self.loaded.len() > self.scheduler.limits.max_loaded
            && !self.loaded.iter().all(|model| self.pinned.contains(model) || asked(model));
        assert!(!over, "seed {}: more are loaded than may be: {:#?}", self.seed, self.scheduler);
        match step {
            Step::Idle(until) => {
                let stuck = self.clients.values().find(|c| !c.full && !self.is_held_up(c));
                assert!(stuck.is_none(), "seed {}: work is left: {stuck:?} {:#?}", self.seed, self.scheduler);
                let next = until.unwrap_or(self.now + 10_000).min(self.now + 10_000).max(self.now + 1);
                self.pass(next - self.now);
                self.input(Input::Tick);
            }
            Step::Load(model) => {
                self.pass(20_000);
                let own = self.loaded.iter().filter(|model| **model != HELPED).count();
                assert!(own < self.scheduler.limits.max_loaded, "seed {}", self.seed);
                match self.rng.below(3) {
                    0 => self.load(model),
                    1 if model == HELPED => self.input(Input::Aside(model)),
                    _ => {}
                }
            }
            Step::Run(model) => self.run(model),
        }
    }

    fn load(&mut self, model: ModelKey) {
        self.loaded.insert(model);
        // At least the longest sequence.
        self.n_pages = 8 + self.rng.below(20);
        let capacity = Capacity { n_pages: self.n_pages, at_pages: self.rng.below(2) == 0, whole: false };
        self.input(Input::Loaded(model, capacity));
    }

    /// What a helper was left alone with is through, or not yet.
    fn helped(&mut self) {
        if self.scheduler.aside.is_empty() || self.rng.below(4) != 0 {
            return;
        }
        match self.aside.remove(&HELPED) {
            None => self.load(HELPED),
            Some((parts, began)) => {
                let us = self.now - began;
                // It may come to nothing for some.
                let n = if self.rng.below(8) == 0 { self.rng.below(parts.len()) } else { parts.len() };
                for part in &parts[n..] {
                    self.input(Input::Undone(part.slot));
                }
                self.input(Input::Returned(HELPED, us));
                self.stepped(&parts[..n], us);
            }
        }
    }

    /// Who has a place in a step is ahead of nobody who waits for one by more than two quanta. (Not where memory or models
    /// decide who has one.)
    fn check_places(&self) {
        let of = |active| self.scheduler.sequences.values().filter(move |s| s.active == active);
        let waits =
            |s: &&Sequence| s.full_since.is_none() && of(true).all(|other| other.ticket.uid != s.ticket.uid);
        let had = |s: &Sequence| self.scheduler.accounts[0].served(s.ticket.uid);
        let behind = of(false).filter(waits).map(had).min().unwrap_or(Micros::MAX);
        let ahead = of(true).map(had).max().unwrap_or(0);
        let most = behind.saturating_add(2 * self.scheduler.limits.quantum);
        assert!(ahead <= most, "seed {}: {ahead} us, and {behind} of who waits", self.seed);
    }

    /// What is held is what the live ones keep, and who is in a step has room for it.
    fn check_memory(&self, parts: &[Part]) {
        let seed = self.seed;
        assert!(
            self.scheduler.sequences.keys().eq(self.clients.keys()),
            "seed {seed}: who is gone holds nothing"
        );
        let mut held = BTreeMap::<ModelKey, usize>::new();
        for (slot, s) in &self.scheduler.sequences {
            let c = &self.clients[slot];
            let n = parts.iter().find(|part| part.slot == *slot).map_or(0, |part| part.n);
            let least = c.own_pages(c.n_kept + n);
            // Of a step that came to nothing more may be left.
            let most = if c.begun { c.own_pages(c.n_kept + PREFILL_CHUNK_MAX) } else { 0 };
            assert!((least..=most).contains(&s.n_pages), "seed {seed}: {} pages of {c:?}", s.n_pages);
            *held.entry(c.ticket.model).or_default() += s.n_pages;
        }
        for (model, held) in held.into_iter().filter(|(_, held)| *held > 0) {
            let most = self.scheduler.models[&model].capacity.n_pages;
            assert!(held <= most, "seed {seed}: {held} pages of {most}");
        }
    }

    /// Why somebody who reads has to wait though the engine rests: what is wanted is held, in the end by who does not read.
    /// Each who holds is looked at by the same rule.
    fn is_held_up(&self, c: &Client) -> bool {
        let s = &self.scheduler;
        // Of those who have a place none reads slowly, so that they are held up themselves.
        let active = |other: &&Sequence| other.active && other.ticket.class == c.ticket.class;
        let n_active = s.sequences.values().filter(active).filter(|other| s.has_place(other)).count();
        let of_model = |other: &&Sequence| active(other) && other.ticket.model == c.ticket.model;
        let n_of_model = s.sequences.values().filter(of_model).count();
        let no_place = n_active >= s.limits.max_sequences || n_of_model >= c.ticket.max_sequences;
        if !s.sequences[&c.ticket.slot].active && no_place {
            return true;
        }
        if s.aside.contains_key(&c.ticket.model) {
            return true;
        }
        let used = |model: ModelKey| self.clients.values().any(|c| c.begun && c.ticket.model == model);
        let all_in_use = self.loaded.len() >= s.limits.max_loaded
            && self.loaded.iter().all(|model| self.pinned.contains(model) || used(*model));
        let Some(loaded) = s.models.get(&c.ticket.model) else { return all_in_use };
        // Nobody begins whose model is in the way of one that is waited for.
        if !c.begun && all_in_use && !self.pinned.contains(&c.ticket.model) {
            return true;
        }
        // All that it may come to want is not there.
        let of_model = s.sequences.values().filter(|other| other.ticket.model == c.ticket.model);
        let held: usize = of_model.map(|other| other.n_pages).sum();
        let missing = c.own_pages(c.ticket.n_prompt + c.ticket.n_max) - s.sequences[&c.ticket.slot].n_pages;
        missing > loaded.capacity.n_pages - held
    }

    fn run(&mut self, model: ModelKey) {
        if self.equals {
            self.check_places();
        }
        let parts = self.scheduler.parts().to_vec();
        let l = self.scheduler.limits;
        let (seed, rows): (_, usize) = (self.seed, parts.iter().map(|part| part.n).sum());
        assert!(
            !parts.is_empty()
                && parts.len() <= N_FEED_MAX.min(l.max_sequences).min(self.max_sequences[model.0 as usize]),
            "seed {seed}: {parts:?}"
        );
        let mut seen = BTreeSet::new();
        let mut prompt = 0;
        for part in &parts {
            let c =
                self.clients.get(&part.slot).unwrap_or_else(|| panic!("seed {seed}: a step for who is gone"));
            assert!(
                seen.insert(part.slot) && c.begun && !c.full && c.ticket.model == model,
                "seed {seed}: {c:?}"
            );
            assert!(part.n > 0, "seed {seed}: {parts:?}");
            prompt += if part.n == 1 && part.draws { 0 } else { part.n };
        }
        assert!(prompt <= l.prefill_chunk, "seed {seed}: {parts:?}");
        let all: usize = parts.iter().map(|part| part.n).sum();
        assert!(all <= PREFILL_CHUNK_MAX, "seed {seed}: {all} tokens in a step: {parts:?}");
        self.check_memory(&parts);
        let us = 2_000 + 500 * rows as u64 + self.rng.below(500) as u64;
        // Some leave while it runs.
        for _ in 0..self.rng.below(3) {
            self.meddle();
        }
        self.pass(us);
        if model == HELPED && !self.equals && self.rng.below(4) == 0 {
            self.input(Input::Aside(model));
            self.aside.insert(model, (parts, self.now));
            return;
        }
        self.input(Input::StepDone(us));
        self.stepped(&parts, us);
    }

    /// What came of a step.
    fn stepped(&mut self, parts: &[Part], us: Micros) {
        let rows: usize = parts.iter().map(|part| part.n).sum();
        for part in parts {
            let Some(c) = self.clients.get_mut(&part.slot) else { continue };
            c.n_kept += part.n;
            *self.served.entry((class(c.ticket.class), c.ticket.uid)).or_default() +=
                us * part.n as u64 / rows as u64;
            if part.draws {
                c.n_drawn += 1;
                c.sent = true;
                if c.n_drawn == c.n_answer {
                    self.clients.remove(&part.slot);
                    self.input(Input::Ended(part.slot));
                } else {
                    self.input(Input::Sent(part.slot));
                }
            }
        }
    }
}

fn seeds(n: u64) -> Vec<u64> {
    match option_env!("SOTTO_SIM_SEED").and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..n).collect(),
    }
}

#[test]
fn whatever_comes_the_rules_hold() {
    let go = |seed: u64| {
        let mut world = World::new(seed);
        let busy = 1 + world.rng.below(12);
        for _ in 0..3_000 {
            if world.rng.below(12) < busy {
                world.arrive();
            }
            world.meddle();
            world.manage();
            if world.rng.below(50) == 0 {
                let ended = Slot(world.rng.below(world.next as usize + 1) as u64);
                if !world.clients.contains_key(&ended) {
                    world.disturb(ended);
                }
            }
            if world.rng.below(40) == 0 {
                let models = world.rng.below(2) == 0;
                world.input(Input::Pressure(models));
            }
            world.step();
        }
        for model in std::mem::take(&mut world.pinned) {
            world.input(Input::Pin(model, false));
        }
        // Nobody comes any more, everybody reads: all end, and nothing is left.
        for _ in 0..200_000 {
            for slot in world.clients.iter().filter(|(_, c)| c.full).map(|(s, _)| *s).collect::<Vec<_>>() {
                world.clients.get_mut(&slot).expect("one of them").full = false;
                world.input(Input::Drained(slot));
            }
            if world.clients.is_empty() {
                break;
            }
            world.step();
        }
        assert!(
            world.clients.is_empty() && world.scheduler.sequences.is_empty(),
            "seed {seed}: {:?}",
            world.clients
        );
        world.trace
    };
    for seed in seeds(60) {
        let trace = go(seed);
        if seed % 10 == 0 {
            assert_eq!(go(seed), trace, "seed {seed}: the same again");
        }
    }
}

/// Uids that always want something are served alike, however many requests each has.
#[test]
fn callers_are_served_alike() {
    for seed in seeds(40) {
        let mut world = World::new(seed);
        world.scheduler.limits = Limits {
            queue_max: 100,
            queue_max_per_uid: 20,
            max_sequences: 1 + seed as usize % 4,
            prefill_chunk: 64,
            queue_timeout: Micros::MAX,
            ..world.scheduler.limits
        };
        world.max_sequences = [usize::MAX; 2];
        let model = ModelKey(1);
        world.loaded.insert(model);
        world.input(Input::Loaded(model, Capacity { n_pages: 1_000, at_pages: false, whole: false }));
        let wanted = [8, 4, 3, 8, 5];
        (world.equals, world.all_read) = (true, true);
        let mut at_border = [0; 5];
        let mut longest = 0;
        while world.now < 60_000_000 {
            for (uid, n) in (0_u32..).zip(wanted) {
                while world.clients.values().filter(|c| c.ticket.uid == uid).count() < n {
                    world.submit_long(uid, Class::Interactive, model);
                }
            }
            let before = world.now;
            world.step();
            let served = [0, 1, 2, 3, 4].map(|uid| world.served.get(&(0, uid)).copied().unwrap_or(0));
            let spread = |of: [Micros; 5]| of.iter().max().unwrap() - of.iter().min().unwrap();
            // Nobody is ahead of anybody by more than decides of a place, the longest step, and the prompts that were begun
            // before that: they are read to their ends.
            longest = longest.max(world.stride);
            let limits = world.scheduler.limits;
            let prompts = (limits.max_sequences as Micros - 1) * N_PROMPT_MAX as Micros * 550;
            let most = 2 * limits.quantum + longest + prompts;
            assert!(spread(served) <= most, "seed {seed}: {served:?}, {most}");
            // In every ten seconds, within 25 percent.
            if before / 10_000_000 != world.now / 10_000_000 {
                let had: [Micros; 5] = std::array::from_fn(|uid| served[uid] - at_border[uid]);
                at_border = served;
                assert!(4 * spread(had) <= had.iter().sum::<Micros>() / 5, "seed {seed}: {had:?}");
            }
        }
    }
}

/// While interactive work never ends, background work has its share of every window.
#[test]
fn background_work_has_its_share_of_every_window() {
    for seed in seeds(40) {
        let mut world = World::new(seed);
        let share = [1, 5, 20, 50][seed as usize % 4];
        world.scheduler.limits = Limits {
            queue_max: 100,
            queue_max_per_uid: 20,
            prefill_chunk: 64,
            queue_timeout: Micros::MAX,
            background_share: share,
            ..world.scheduler.limits
        };
        world.max_sequences = [usize::MAX; 2];
        let model = ModelKey(0);
        world.loaded.insert(model);
        world.input(Input::Loaded(model, Capacity { n_pages: 1_000, at_pages: false, whole: false }));
        world.all_read = true;
        const WINDOW: Micros = 20_000_000;
        let (mut had, mut longest) = ([0, 0], 0);
        for window in 1..=4 {
            while world.now < window * WINDOW {
                for uid in [1, 2] {
                    while world.clients.values().filter(|c| c.ticket.uid == uid).count() < 3 {
                        let class = if uid == 1 { Class::Interactive } else { Class::Background };
                        world.submit_long(uid, class, model);
                    }
                }
                world.step();
                longest = longest.max(world.stride);
            }
            let has = [(0, 1), (1, 2)].map(|key| world.served.get(&key).copied().unwrap_or(0));
            let [interactive, background] = [0, 1].map(|i| has[i] - had[i]);
            had = has;
            // A step at the border of the window may count to the next one.
            let all = interactive + background;
            // At each border it may be ahead or behind by so much.
            let border = world.scheduler.limits.quantum + longest;
            let floor = (all * share / 100).saturating_sub(2 * border);
            assert!(
                floor > 0 && background >= floor,
                "seed {seed}: {background} of {all} us, {share} percent"
            );
        }
    }
}
