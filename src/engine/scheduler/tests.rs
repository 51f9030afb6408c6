use super::*;
use crate::base::limits::PREFILL_CHUNK_MAX;

const LIMITS: Limits = Limits {
    queue_max: 3,
    queue_max_per_uid: 2,
    queue_timeout: 100,
    stall_timeout: 30,
    prefill_chunk: 8,
    max_sequences: 1,
    quantum: 50,
    background_share: 5,
    max_loaded: 1,
    keep: None,
};

const MODEL: ModelKey = ModelKey(1);
const ROOMY: Capacity = Capacity { n_pages: 1_000, at_pages: false, whole: false };

fn ticket(n: u64, uid: u32, class: Class) -> Ticket {
    Ticket {
        slot: Slot(n),
        uid,
        class,
        model: MODEL,
        n_prompt: 20,
        n_max: 100,
        deadline: 1_000,
        max_sequences: usize::MAX,
        follows: false,
    }
}

fn on(s: &mut Scheduler, now: Micros, input: Input) -> Vec<Action> {
    let mut actions = Vec::new();
    s.on(now, input, &mut actions);
    actions
}

fn submit(s: &mut Scheduler, now: Micros, n: u64, uid: u32, class: Class) -> Vec<Action> {
    on(s, now, Input::Submit(ticket(n, uid, class)))
}

/// The next step, with everything done that is to be done before it.
fn plan(s: &mut Scheduler, now: Micros) -> (Step, Vec<Action>) {
    let mut all = Vec::new();
    loop {
        let mut actions = Vec::new();
        let step = s.plan(now, &mut actions);
        let begin: Vec<Slot> = actions
            .iter()
            .filter_map(|a| if let Action::Begin(slot) = a { Some(*slot) } else { None })
            .collect();
        all.append(&mut actions);
        if begin.is_empty() {
            return (step, all);
        }
        for slot in begin {
            on(s, now, Input::Begun(slot, 0));
        }
    }
}

/// Plans and does a step that takes `us`; what it took.
fn run(s: &mut Scheduler, now: Micros, us: Micros) -> Vec<(u64, usize)> {
    let (step, _) = plan(s, now);
    assert_eq!(step, Step::Run(MODEL));
    let parts = s.parts().iter().map(|part| (part.slot.0, part.n)).collect();
    on(s, now, Input::StepDone(us));
    parts
}

fn ready(limits: Limits) -> Scheduler {
    let mut s = Scheduler::new(limits);
    on(&mut s, 0, Input::Loaded(MODEL, ROOMY));
    s
}

fn positions(s: &Scheduler) -> Vec<(u64, usize)> {
    let mut all = Vec::new();
    s.positions(|slot, position| all.push((slot.0, position)));
    all
}

#[test]
fn a_request_runs_through_its_phases() {
    let mut s = Scheduler::new(LIMITS);
    assert_eq!(plan(&mut s, 0).0, Step::Idle(None));
    assert_eq!(submit(&mut s, 0, 1, 0, Class::Interactive), []);
    assert_eq!(plan(&mut s, 0), (Step::Load(MODEL), vec![Action::Place(Slot(1))]));
    assert_eq!(s.placed(MODEL).collect::<Vec<_>>(), [Slot(1)]);
    on(&mut s, 0, Input::Loaded(MODEL, ROOMY));
    assert_eq!(run(&mut s, 0, 1), [(1, 8)]);
    assert_eq!(run(&mut s, 0, 1), [(1, 8)]);
    let (step, _) = plan(&mut s, 0);
    assert_eq!((step, s.parts()), (Step::Run(MODEL), &[Part { slot: Slot(1), n: 4, draws: true }][..]));
    on(&mut s, 0, Input::StepDone(1));
    assert_eq!(run(&mut s, 0, 1), [(1, 1)]);
    on(&mut s, 1, Input::Full(Slot(1)));
    assert_eq!(plan(&mut s, 2).0, Step::Idle(Some(31)));
    on(&mut s, 3, Input::Drained(Slot(1)));
    assert_eq!(run(&mut s, 3, 1), [(1, 1)]);
    assert_eq!(on(&mut s, 4, Input::Ended(Slot(1))), []);
    assert_eq!(on(&mut s, 4, Input::Cancel(Slot(1))), [], "an input after the end changes nothing");
    assert_eq!(plan(&mut s, 5).0, Step::Idle(None));
}

#[test]
fn the_largest_chunk_leaves_room_for_those_who_decode() {
    let mut s = ready(Limits { prefill_chunk: PREFILL_CHUNK_MAX, max_sequences: 2, ..LIMITS });
    submit(&mut s, 0, 1, 0, Class::Interactive);
    assert_eq!(run(&mut s, 0, 1), [(1, 20)]);
    on(&mut s, 0, Input::Submit(Ticket { n_prompt: 300, ..ticket(2, 0, Class::Interactive) }));
    assert_eq!(run(&mut s, 0, 1), [(1, 1), (2, PREFILL_CHUNK_MAX - 1)]);
}

#[test]
fn a_cached_beginning_is_not_read() {
    let mut s = ready(LIMITS);
    on(&mut s, 0, Input::Submit(Ticket { n_prompt: 150, ..ticket(1, 0, Class::Interactive) }));
    let mut actions = Vec::new();
    s.plan(0, &mut actions);
    assert_eq!(actions, [Action::Place(Slot(1)), Action::Begin(Slot(1))]);
    on(&mut s, 0, Input::Begun(Slot(1), 128));
    assert_eq!([run(&mut s, 0, 1), run(&mut s, 0, 1), run(&mut s, 0, 1)].concat(), [(1, 8), (1, 8), (1, 6)]);
}

#[test]
fn the_queue_is_bounded_and_ordered() {
    let mut s = ready(LIMITS);
    submit(&mut s, 0, 1, 7, Class::Interactive);
    plan(&mut s, 0);
    submit(&mut s, 0, 2, 7, Class::Interactive);
    submit(&mut s, 0, 3, 7, Class::Interactive);
    let full = |n, waiting, max, per_uid| [Action::Cut(Slot(n), Cut::QueueFull { waiting, max, per_uid })];
    assert_eq!(submit(&mut s, 0, 4, 7, Class::Interactive), full(4, 2, 2, true));
    submit(&mut s, 0, 5, 8, Class::Interactive);
    assert_eq!(submit(&mut s, 0, 6, 9, Class::Interactive), full(6, 3, 3, false));
    assert_eq!(positions(&s), [(2, 1), (5, 2), (3, 3)], "uids in turn");
    assert_eq!(on(&mut s, 1, Input::Cancel(Slot(2))), [Action::Cut(Slot(2), Cut::Cancelled)]);
    on(&mut s, 1, Input::Ended(Slot(1)));
    submit(&mut s, 1, 7, 9, Class::Background);
    assert_eq!(
        plan(&mut s, 2).1,
        [Action::Place(Slot(3)), Action::Begin(Slot(3)), Action::Place(Slot(7)), Action::Begin(Slot(7))]
    );
    assert_eq!((s.queue_len(), s.n_active(), positions(&s)), ([1, 0], 2, vec![(5, 1)]));
}

#[test]
fn parts_of_a_request_take_nobodys_place_in_the_queue() {
    let mut s = ready(LIMITS);
    let part = |n| Input::Submit(Ticket { follows: true, ..ticket(n, 7, Class::Interactive) });
    let most = N_PART_WAIT_MAX as u64;
    for n in 1..=most {
        assert_eq!(on(&mut s, 0, part(n)), []);
    }
    let full = Cut::QueueFull { waiting: N_PART_WAIT_MAX, max: N_PART_WAIT_MAX, per_uid: false };
    assert_eq!(on(&mut s, 0, part(most + 1)), [Action::Cut(Slot(most + 1), full)]);
    for n in 2..5 {
        assert_eq!(submit(&mut s, 0, most + n, 7, Class::Interactive), []);
    }
    let full = Cut::QueueFull { waiting: 2, max: 2, per_uid: true };
    assert_eq!(submit(&mut s, 0, most + 5, 7, Class::Interactive), [Action::Cut(Slot(most + 5), full)]);
}

#[test]
fn a_load_that_is_set_aside_holds_up_no_other() {
    let mut s = Scheduler::new(LIMITS);
    submit(&mut s, 0, 1, 1, Class::Interactive);
    assert_eq!(plan(&mut s, 0).0, Step::Load(MODEL));
    on(&mut s, 0, Input::Aside(MODEL));
    assert_eq!(plan(&mut s, 0).0, Step::Idle(Some(1_000)));
    let other = ModelKey(2);
    on(&mut s, 1, Input::Submit(Ticket { model: other, ..ticket(2, 2, Class::Interactive) }));
    assert_eq!(
        plan(&mut s, 1).0,
        Step::Load(other),
        "though there is one place, for models and for sequences"
    );
    on(&mut s, 1, Input::Loaded(other, ROOMY));
    assert_eq!(plan(&mut s, 1).0, Step::Run(other));
    on(&mut s, 1, Input::StepDone(1));
    // It is through: there is one model too many, which goes once nobody uses it.
    on(&mut s, 2, Input::Loaded(MODEL, ROOMY));
    plan(&mut s, 2);
    on(&mut s, 2, Input::Ended(Slot(2)));
    let (step, actions) = plan(&mut s, 2);
    assert_eq!(step, Step::Run(MODEL));
    assert!(actions.contains(&Action::Unload(other, Why::Bound)), "{actions:?}");
    // One that nobody wants any more is none.
    on(&mut s, 3, Input::Submit(Ticket { model: other, ..ticket(3, 2, Class::Interactive) }));
    on(&mut s, 3, Input::Ended(Slot(1)));
    assert_eq!(plan(&mut s, 3).0, Step::Load(other));
    on(&mut s, 3, Input::Aside(other));
    on(&mut s, 3, Input::Unwant(other));
    assert!(s.uses(other), "somebody asks for it");
    on(&mut s, 3, Input::Cancel(Slot(3)));
    on(&mut s, 3, Input::Unwant(other));
    assert!(!s.uses(other));
}

#[test]
fn a_step_that_is_set_aside_holds_up_no_other_model() {
    let mut s = ready(Limits { max_loaded: 2, ..LIMITS });
    let other = ModelKey(2);
    on(&mut s, 0, Input::Loaded(other, ROOMY));
    submit(&mut s, 0, 1, 1, Class::Interactive);
    assert_eq!(plan(&mut s, 0).0, Step::Run(MODEL));
    on(&mut s, 0, Input::Aside(MODEL));
    assert_eq!(plan(&mut s, 0).0, Step::Idle(Some(1_000)), "it is at something");
    on(&mut s, 1, Input::Submit(Ticket { model: other, ..ticket(2, 2, Class::Interactive) }));
    assert_eq!(plan(&mut s, 1).0, Step::Run(other), "though there is one place");
    on(&mut s, 1, Input::StepDone(1));
    on(&mut s, 2, Input::Pressure(true));
    // What was read of it counts.
    on(&mut s, 2, Input::Returned(MODEL, 2));
    on(&mut s, 2, Input::Ended(Slot(2)));
    assert_eq!(run(&mut s, 2, 1), [(1, 8)]);
    assert_eq!(run(&mut s, 2, 1), [(1, 4)], "8 of 20 were read aside");
    // A helper that is gone takes its sequences with it.
    assert_eq!(plan(&mut s, 3).0, Step::Run(MODEL));
    on(&mut s, 3, Input::Aside(MODEL));
    on(&mut s, 3, Input::Undone(Slot(1)));
    on(&mut s, 3, Input::Returned(MODEL, 1));
    assert_eq!(on(&mut s, 3, Input::Lost(MODEL)), [Action::Drop(Slot(1))]);
    assert_eq!(plan(&mut s, 3).0, Step::Load(MODEL));
}

#[test]
fn time_ends_what_waits_or_stalls() {
    let mut s = ready(LIMITS);
    submit(&mut s, 0, 1, 0, Class::Interactive);
    plan(&mut s, 0);
    submit(&mut s, 0, 2, 0, Class::Interactive);
    assert_eq!(plan(&mut s, 0).0, Step::Run(MODEL));
    assert_eq!(on(&mut s, 100, Input::Tick), [Action::Cut(Slot(2), Cut::QueueTimeout)]);
    on(&mut s, 100, Input::Full(Slot(1)));
    assert_eq!(on(&mut s, 130, Input::Tick), [Action::Cut(Slot(1), Cut::Stalled)]);
    submit(&mut s, 200, 3, 0, Class::Interactive);
    on(&mut s, 201, Input::Sent(Slot(3)));
    assert_eq!(on(&mut s, 1_000, Input::Tick), [Action::Cut(Slot(3), Cut::DeadlineWithText)]);
    assert_eq!(submit(&mut s, 1_000, 4, 0, Class::Interactive), [Action::Cut(Slot(4), Cut::Deadline)]);
    assert!(s.sequences.is_empty());
}

#[test]
fn sequences_share_steps() {
    let mut s = ready(Limits { max_sequences: 3, prefill_chunk: 32, ..LIMITS });
    (1..=3).for_each(|n| drop(submit(&mut s, 0, n, n as u32, Class::Interactive)));
    assert_eq!(run(&mut s, 0, 32), [(1, 20), (2, 12)]);
    assert_eq!(
        run(&mut s, 0, 36),
        [(1, 1), (3, 20), (2, 8)],
        "who had least first, after tokens that are waited for"
    );
    assert_eq!(run(&mut s, 0, 3), [(1, 1), (2, 1), (3, 1)]);
}

/// One with many long answers does not keep another one waiting, and goes on where it was.
#[test]
fn a_uid_that_is_behind_gets_a_place() {
    let mut s = ready(Limits { max_sequences: 2, ..LIMITS });
    for n in 1..=2 {
        on(&mut s, 0, Input::Submit(Ticket { n_prompt: 1, ..ticket(n, 1, Class::Interactive) }));
    }
    assert_eq!(run(&mut s, 0, 1_000), [(1, 1), (2, 1)]);
    on(&mut s, 0, Input::Submit(Ticket { n_prompt: 1, ..ticket(3, 2, Class::Interactive) }));
    assert_eq!(run(&mut s, 0, 60), [(1, 1), (2, 1)], "what was before it came does not count");
    assert_eq!(run(&mut s, 0, 60), [(1, 1), (2, 1)]);
    assert_eq!(run(&mut s, 0, 60), [(1, 1), (3, 1)]);
    assert_eq!(s.sequences[&Slot(2)].phase, Phase::Decode, "it keeps what it has");
    on(&mut s, 0, Input::Ended(Slot(3)));
    assert_eq!(run(&mut s, 0, 60), [(1, 1), (2, 1)]);
}

#[test]
fn background_has_its_share_and_no_more() {
    let mut s = ready(Limits { max_sequences: 2, ..LIMITS });
    for (n, class) in [(1, Class::Background), (2, Class::Interactive)] {
        on(&mut s, 0, Input::Submit(Ticket { n_prompt: 1, n_max: 10_000, ..ticket(n, n as u32, class) }));
    }
    let (mut background, mut steps) = (0, Vec::new());
    for _ in 0..1_000 {
        let parts = run(&mut s, 0, 10);
        background += usize::from(parts == [(1, 1)]);
        steps.push(parts);
    }
    assert_eq!(steps[0], [(2, 1)]);
    assert!((45..=55).contains(&background), "{background} of 1,000");
    on(&mut s, 0, Input::Full(Slot(2)));
    assert_eq!(run(&mut s, 0, 10), [(1, 1)], "while nobody is waited for it has everything");
}

#[test]
fn models_give_way_to_one_another() {
    let other = |n, class| Ticket { model: ModelKey(2), ..ticket(n, 9, class) };
    let mut s = ready(Limits { max_sequences: 2, ..LIMITS });
    submit(&mut s, 0, 1, 1, Class::Interactive);
    run(&mut s, 0, 1);
    on(&mut s, 0, Input::Submit(other(2, Class::Interactive)));
    submit(&mut s, 0, 3, 1, Class::Interactive);
    assert_eq!(run(&mut s, 0, 1), [(1, 8)], "nobody else begins with the model that is in the way");
    on(&mut s, 0, Input::Ended(Slot(1)));
    assert_eq!(
        plan(&mut s, 0),
        (Step::Load(ModelKey(2)), vec![Action::Unload(MODEL, Why::For(ModelKey(2))), Action::Place(Slot(2))])
    );
    on(&mut s, 0, Input::Loaded(ModelKey(2), ROOMY));
    on(&mut s, 0, Input::Cancel(Slot(2)));
    // Background work loses what it keeps where an answer that is waited for needs another model.
    on(&mut s, 0, Input::Cancel(Slot(3)));
    on(&mut s, 0, Input::Submit(other(4, Class::Background)));
    assert_eq!(plan(&mut s, 0).0, Step::Run(ModelKey(2)));
    submit(&mut s, 0, 5, 1, Class::Interactive);
    let (step, actions) = plan(&mut s, 0);
    assert_eq!(
        (step, &actions[..2]),
        (Step::Load(MODEL), &[Action::Drop(Slot(4)), Action::Unload(ModelKey(2), Why::For(MODEL))][..])
    );
}

#[test]
fn a_model_that_nobody_asks_takes_no_place() {
    let mut s = Scheduler::new(LIMITS);
    on(&mut s, 0, Input::Want { model: MODEL, evicts: false });
    on(&mut s, 0, Input::Want { model: ModelKey(2), evicts: false });
    assert_eq!(plan(&mut s, 0), (Step::Load(MODEL), vec![]));
    on(&mut s, 0, Input::Loaded(MODEL, ROOMY));
    assert_eq!(plan(&mut s, 0), (Step::Idle(None), vec![Action::NoRoom(ModelKey(2))]));
    assert!(s.uses(MODEL) && !s.uses(ModelKey(2)));
}

#[test]
fn a_model_that_is_asked_for_by_name_takes_a_place_but_no_pinned_one() {
    let mut s = Scheduler::new(LIMITS);
    let wanted = |n, evicts| Input::Want { model: ModelKey(n), evicts };
    on(&mut s, 0, Input::Loaded(MODEL, ROOMY));
    submit(&mut s, 0, 1, 1, Class::Interactive);
    assert_eq!(run(&mut s, 0, 1), [(1, 8)]);
    on(&mut s, 0, wanted(2, true));
    submit(&mut s, 0, 2, 2, Class::Interactive);
    let slots: Vec<u64> = run(&mut s, 0, 1).iter().map(|part| part.0).collect();
    assert_eq!(slots, [1], "nobody else begins with the model that is in the way");
    on(&mut s, 0, Input::Cancel(Slot(2)));
    on(&mut s, 0, Input::Ended(Slot(1)));
    assert_eq!(
        plan(&mut s, 0),
        (Step::Load(ModelKey(2)), vec![Action::Unload(MODEL, Why::For(ModelKey(2)))])
    );
    on(&mut s, 0, Input::Unwant(ModelKey(2)));
    assert_eq!(plan(&mut s, 0), (Step::Idle(None), vec![]));
    on(&mut s, 0, wanted(2, true));
    assert_eq!(plan(&mut s, 0).0, Step::Load(ModelKey(2)));
    on(&mut s, 0, Input::Loaded(ModelKey(2), ROOMY));
    on(&mut s, 0, Input::Pin(ModelKey(2), true));
    on(&mut s, 0, wanted(3, true));
    submit(&mut s, 0, 3, 1, Class::Interactive);
    let (step, actions) = plan(&mut s, 0);
    assert_eq!(
        (step, actions),
        (Step::Idle(None), vec![Action::Cut(Slot(3), Cut::NoRoom), Action::NoRoom(ModelKey(3))])
    );
    on(&mut s, 0, Input::Pin(ModelKey(2), false));
    submit(&mut s, 0, 4, 1, Class::Interactive);
    let (step, actions) = plan(&mut s, 0);
    assert_eq!(
        (step, &actions[..1]),
        (Step::Load(MODEL), &[Action::Unload(ModelKey(2), Why::For(MODEL))][..])
    );
}

/// Pages are granted while all can end; background work gives its own back.
#[test]
fn memory_never_locks() {
    let mut s = Scheduler::new(Limits { max_sequences: 2, prefill_chunk: 64, ..LIMITS });
    on(&mut s, 0, Input::Loaded(MODEL, Capacity { n_pages: 4, at_pages: false, whole: false }));
    let long = |n, class| Ticket { n_prompt: 64, n_max: 128, ..ticket(n, n as u32, class) };
    on(&mut s, 0, Input::Submit(long(1, Class::Background)));
    assert_eq!(run(&mut s, 0, 1), [(1, 64)]);
    on(&mut s, 0, Input::Submit(long(2, Class::Interactive)));
    on(&mut s, 0, Input::Submit(long(3, Class::Interactive)));
    let mut dropped = false;
    for _ in 0..400 {
        let (step, actions) = plan(&mut s, 0);
        assert_eq!(step, Step::Run(MODEL), "{s:?}");
        dropped |= actions.contains(&Action::Drop(Slot(1)));
        on(&mut s, 0, Input::StepDone(1));
        let held: usize = s.sequences.values().map(|s| s.n_pages).sum();
        assert!(held <= 4, "{s:?}");
        for slot in [2, 3, 1].map(Slot) {
            if s.sequences.get(&slot).is_some_and(|s| s.n_tokens == 192) {
                on(&mut s, 0, Input::Ended(slot));
            }
        }
        if s.sequences.is_empty() {
            assert!(dropped, "background work gave way");
            return;
        }
    }
    panic!("{s:?}");
}

/// A bound that was lowered holds at once, but for what is in use and what is pinned; those keep one more from coming.
#[test]
fn models_go_when_fewer_may_stay() {
    let mut s = ready(Limits { max_loaded: 3, ..LIMITS });
    let (pinned, third, fourth) = (ModelKey(2), ModelKey(3), ModelKey(4));
    for model in [pinned, third] {
        on(&mut s, 0, Input::Want { model, evicts: false });
        assert_eq!(plan(&mut s, 0).0, Step::Load(model));
        on(&mut s, 0, Input::Loaded(model, ROOMY));
    }
    on(&mut s, 0, Input::Pin(pinned, true));
    submit(&mut s, 0, 1, 7, Class::Interactive);
    assert_eq!(run(&mut s, 0, 10), [(1, 8)]);
    s.set_limits(Limits { max_loaded: 1, ..LIMITS });
    let mut actions = Vec::new();
    s.plan(10, &mut actions);
    assert_eq!(actions, [Action::Unload(third, Why::Bound)], "nobody uses it");
    on(&mut s, 20, Input::Want { model: fourth, evicts: true });
    actions.clear();
    s.plan(20, &mut actions);
    assert_eq!(actions, [Action::NoRoom(fourth)], "the pinned one has the only place");
    on(&mut s, 30, Input::Ended(Slot(1)));
    assert_eq!(plan(&mut s, 30), (Step::Idle(None), vec![Action::Unload(MODEL, Why::Bound)]));
    assert!(s.uses(pinned) && !s.may_pin(MODEL));
}

/// Whoever looks sees that background work rests while others have the steps.
#[test]
fn background_rests_where_others_go_on() {
    let mut s = ready(LIMITS);
    let resting =
        |s: &Scheduler| s.resting().filter(|(_, rests)| *rests).map(|(slot, _)| slot.0).collect::<Vec<_>>();
    submit(&mut s, 0, 1, 7, Class::Background);
    assert_eq!(run(&mut s, 0, 10), [(1, 8)]);
    assert!(resting(&s).is_empty());
    submit(&mut s, 10, 2, 7, Class::Interactive);
    assert_eq!(run(&mut s, 10, 10), [(2, 8)]);
    assert_eq!(resting(&s), [1]);
    on(&mut s, 20, Input::Ended(Slot(2)));
    run(&mut s, 20, 10);
    assert!(resting(&s).is_empty());
}

/// Requests that keep coming do not keep a model that is one too many: those that wait let it go.
#[test]
fn models_go_though_somebody_always_asks_for_them() {
    let mut s = ready(Limits { max_loaded: 2, ..LIMITS });
    let other = ModelKey(2);
    on(&mut s, 0, Input::Want { model: other, evicts: false });
    assert_eq!(plan(&mut s, 0).0, Step::Load(other));
    on(&mut s, 0, Input::Loaded(other, ROOMY));
    let ask = |s: &mut Scheduler, now, slot: u64| {
        let model = if slot.is_multiple_of(2) { MODEL } else { other };
        let ticket = Ticket { model, ..ticket(slot, slot as u32 % 4, Class::Interactive) };
        on(s, now, Input::Submit(ticket));
    };
    (0..4).for_each(|slot| ask(&mut s, 0, slot));
    s.set_limits(Limits { max_loaded: 1, ..LIMITS });
    // Each that ends is followed by another one of its model.
    for now in 1..40 {
        let actions = plan(&mut s, now).1;
        if actions.iter().any(|action| matches!(action, Action::Unload(_, Why::Bound))) {
            return;
        }
        let oldest = *s.sequences.iter().find(|(_, s)| s.begun()).expect("somebody").0;
        on(&mut s, now, Input::Ended(oldest));
        ask(&mut s, now, oldest.0 + 4);
    }
    panic!("both stay: {s:?}");
}

/// A model that nobody uses goes when its time is over, one that was asked to stay does not.
#[test]
fn models_go_when_nobody_uses_them() {
    let limits = Limits { keep: Some(500), max_loaded: 2, ..LIMITS };
    let mut s = ready(limits);
    let pinned = ModelKey(2);
    on(&mut s, 0, Input::Want { model: pinned, evicts: false });
    assert_eq!(plan(&mut s, 0).0, Step::Load(pinned));
    on(&mut s, 0, Input::Loaded(pinned, ROOMY));
    on(&mut s, 0, Input::Pin(pinned, true));
    assert_eq!(plan(&mut s, 100), (Step::Idle(Some(500)), vec![]));
    submit(&mut s, 400, 1, 7, Class::Interactive);
    assert_eq!(run(&mut s, 400, 10), [(1, 8)]);
    assert_eq!(run(&mut s, 700, 10), [(1, 8)], "it is in use");
    on(&mut s, 710, Input::Ended(Slot(1)));
    assert_eq!(plan(&mut s, 710), (Step::Idle(Some(1_200)), vec![]));
    assert_eq!(plan(&mut s, 1_200), (Step::Idle(None), vec![Action::Unload(MODEL, Why::Unused)]));
    assert!(!s.uses(MODEL) && s.uses(pinned));
    let mut s = ready(Limits { keep: Some(0), ..LIMITS });
    submit(&mut s, 0, 1, 7, Class::Interactive);
    run(&mut s, 0, 10);
    on(&mut s, 10, Input::Ended(Slot(1)));
    assert_eq!(plan(&mut s, 10).1, [Action::Unload(MODEL, Why::Unused)], "at once");
    assert_eq!(plan(&mut ready(LIMITS), 1 << 60), (Step::Idle(None), vec![]), "never");
}

/// Want of memory takes from background work that rests, and models that nobody uses; never from who is answered.
#[test]
fn memory_is_given_back_under_pressure() {
    let mut s = ready(LIMITS);
    submit(&mut s, 0, 1, 7, Class::Background);
    run(&mut s, 0, 10);
    assert_eq!(on(&mut s, 10, Input::Pressure(true)), [], "it has a place");
    on(&mut s, 10, Input::Full(Slot(1)));
    plan(&mut s, 10);
    assert_eq!(on(&mut s, 10, Input::Pressure(false)), [Action::Drop(Slot(1))]);
    assert_eq!(on(&mut s, 10, Input::Pressure(true)), [], "its model is still wanted");
    on(&mut s, 10, Input::Cancel(Slot(1)));
    submit(&mut s, 10, 2, 7, Class::Interactive);
    run(&mut s, 10, 10);
    on(&mut s, 20, Input::Full(Slot(2)));
    plan(&mut s, 20);
    assert_eq!(on(&mut s, 20, Input::Pressure(true)), [], "somebody reads it");
    on(&mut s, 20, Input::Cancel(Slot(2)));
    assert_eq!(on(&mut s, 20, Input::Pressure(true)), [Action::Unload(MODEL, Why::Memory)]);
}
