//! Who is read next. Pure: the threads that read are [`super`]'s.

use std::collections::{BTreeMap, VecDeque};

use super::item::Item;
use crate::engine::scheduler::Micros;

/// What is read now, of one uid.
struct Reading {
    since: Micros,
    long: bool,
}

/// What waits to be read, of each uid by itself, and read in turn: one of a uid at a time, and one long text of all of them
/// at a time, so that whoever has a short one waits for short ones alone.
#[derive(Default)]
pub(super) struct Waiting {
    of_uid: BTreeMap<u32, VecDeque<Item>>,
    /// Whose turn it is: those that have something here, and nothing that is read.
    turn: VecDeque<u32>,
    reading: BTreeMap<u32, Reading>,
}

impl Waiting {
    pub(super) fn push(&mut self, item: Item) {
        let uid = item.uid();
        self.of_uid.entry(uid).or_default().push_back(item);
        self.take_turn(uid);
    }

    /// The same, before what else its uid has.
    pub(super) fn push_front(&mut self, item: Item) {
        let uid = item.uid();
        self.of_uid.entry(uid).or_default().push_front(item);
        self.take_turn(uid);
    }

    fn take_turn(&mut self, uid: u32) {
        let waits = self.of_uid.contains_key(&uid) && !self.reading.contains_key(&uid);
        if waits && !self.turn.contains(&uid) {
            self.turn.push_back(uid);
        }
    }

    /// Whose turn it is now.
    fn next(&self) -> Option<usize> {
        let long = self.reading.values().any(|r| r.long);
        let first = |uid| self.of_uid.get(uid).and_then(VecDeque::front);
        self.turn.iter().position(|uid| first(uid).is_some_and(|item| !(long && item.is_long())))
    }

    /// Whether [`Self::pop`] would give something.
    pub(super) fn has_next(&self) -> bool {
        self.next().is_some()
    }

    /// What is to be read now, until [`Self::done`].
    pub(super) fn pop(&mut self, now: Micros) -> Option<Item> {
        let uid = self.turn.remove(self.next()?)?;
        let own = self.of_uid.get_mut(&uid)?;
        let item = own.pop_front()?;
        if own.is_empty() {
            self.of_uid.remove(&uid);
        }
        self.reading.insert(uid, Reading { since: now, long: item.is_long() });
        Some(item)
    }

    /// What was read of `uid` is done with.
    pub(super) fn done(&mut self, uid: u32) {
        self.reading.remove(&uid);
        self.take_turn(uid);
    }

    /// Since when the slowest reader reads.
    pub(super) fn reads_since(&self) -> Option<Micros> {
        self.reading.values().map(|r| r.since).min()
    }

    /// What waits, in no order.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.of_uid.values().flatten()
    }

    /// Takes out what `yes` says.
    pub(super) fn take_if(&mut self, yes: impl Fn(&Item) -> bool) -> Vec<Item> {
        let mut taken = Vec::new();
        for own in self.of_uid.values_mut().filter(|own| own.iter().any(&yes)) {
            let (out, kept): (VecDeque<Item>, VecDeque<Item>) =
                std::mem::take(own).into_iter().partition(&yes);
            taken.extend(out);
            *own = kept;
        }
        self.of_uid.retain(|_, own| !own.is_empty());
        self.turn.retain(|uid| self.of_uid.contains_key(uid));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::LONG_TEXT_BYTES;
    use crate::engine::Settings;
    use crate::engine::admit::item::{Text, ToAdmit, ToTokenize};

    fn item(uid: u32, name: &str, bytes: usize) -> Item {
        let text = Text::Plain { text: "x".repeat(bytes), add_special: false, parse_special: false };
        let of = ToTokenize { uid, model: Some(name.into()), text, tell: Box::new(|_| {}) };
        Item::new(ToAdmit::Tokenize(Box::new(of)), 0, &Settings::default())
    }

    fn waiting(items: &[(u32, &str, usize)]) -> Waiting {
        let mut waiting = Waiting::default();
        items.iter().for_each(|(uid, name, bytes)| waiting.push(item(*uid, name, *bytes)));
        waiting
    }

    fn name(item: Option<Item>) -> Option<String> {
        item.and_then(|item| item.model().map(str::to_owned))
    }

    #[test]
    fn uids_are_read_in_turn() {
        let mut w = waiting(&[(1, "a", 1), (1, "b", 1), (1, "c", 1), (2, "d", 1), (3, "e", 1), (2, "f", 1)]);
        let mut order = String::new();
        while let Some(item) = w.pop(0) {
            order += item.model().unwrap_or_default();
            w.done(item.uid());
        }
        assert_eq!((order.as_str(), w.of_uid.len(), w.turn.len(), w.reading.len()), ("adebfc", 0, 0, 0));
    }

    #[test]
    fn one_of_a_uid_and_one_long_text_at_a_time() {
        let long = LONG_TEXT_BYTES + 1;
        let mut w = waiting(&[(1, "a", long), (1, "b", 1), (2, "c", long), (3, "d", LONG_TEXT_BYTES)]);
        assert_eq!(name(w.pop(7)).as_deref(), Some("a"));
        // The other long one waits, and so does the short one behind its own.
        assert_eq!((name(w.pop(8)).as_deref(), w.has_next()), (Some("d"), false));
        assert_eq!((name(w.pop(9)), w.reads_since()), (None, Some(7)));
        w.done(1);
        assert_eq!((name(w.pop(9)).as_deref(), w.reads_since()), (Some("c"), Some(8)));
        assert_eq!((name(w.pop(9)).as_deref(), name(w.pop(9))), (Some("b"), None));
    }

    #[test]
    fn what_comes_back_is_first() {
        let mut w = waiting(&[(1, "a", 1), (1, "b", 1)]);
        let first = w.pop(0).unwrap();
        w.done(1);
        w.push_front(first);
        assert_eq!(name(w.pop(0)).as_deref(), Some("a"));
        // Nothing of a uid that is read is read twice.
        w.push_front(item(1, "c", 1));
        assert_eq!((name(w.pop(0)), w.turn.len()), (None, 0));
        w.done(1);
        assert_eq!(name(w.pop(0)).as_deref(), Some("c"));
    }

    #[test]
    fn what_is_taken_out_has_no_turn() {
        let mut w = waiting(&[(1, "a", 1), (2, "b", 1), (2, "a", 1)]);
        assert_eq!(w.take_if(|item| item.model() == Some("a")).len(), 2);
        assert_eq!((w.items().count(), w.turn.len()), (1, 1));
        assert_eq!((name(w.pop(0)).as_deref(), w.has_next()), (Some("b"), false));
    }
}
