//! Objects that belong to a user. Others do not find them, nor see that they are there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::Record;

/// What belongs to a user.
pub(super) trait Owned {
    fn uid(&self) -> u32;
}

impl Owned for Record {
    fn uid(&self) -> u32 {
        self.uid
    }
}

/// Objects of a kind, by their ids.
#[derive(Debug)]
pub(super) struct Shelf<T>(Mutex<BTreeMap<String, Arc<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Owned> Shelf<T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, id: &str, object: Arc<T>) {
        self.lock().insert(id.to_owned(), object);
    }

    /// Puts an object there if `fits` says so of all of them.
    pub(super) fn put_if<E>(
        &self,
        id: &str,
        object: Arc<T>,
        fits: impl FnOnce(&mut dyn Iterator<Item = &Arc<T>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut all = self.lock();
        fits(&mut all.values())?;
        all.insert(id.to_owned(), object);
        Ok(())
    }

    pub(super) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// The object `id`, if it is `uid`'s.
    pub(super) fn get(&self, id: &str, uid: u32) -> Option<Arc<T>> {
        self.lock().get(id).filter(|object| object.uid() == uid).cloned()
    }

    /// Ids of the objects of `uid`, in their order.
    pub(super) fn ids(&self, uid: u32) -> Vec<String> {
        self.lock().iter().filter(|(_, object)| object.uid() == uid).map(|(id, _)| id.clone()).collect()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().cloned().collect()
    }
}
