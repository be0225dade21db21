//! Work under way that has a name: operations that can be given up, templates that are being registered, VMs that are being
//! made.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Operations under way by id.
#[derive(Default)]
pub(super) struct Operations(Mutex<HashMap<String, CancellationToken>>);

impl Operations {
    fn all(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: &str, cancel: CancellationToken) {
        self.all().insert(id.to_owned(), cancel);
    }

    pub(super) fn remove(&self, id: &str) {
        self.all().remove(id);
    }

    /// Gives one up; it ends by itself soon after.
    pub(super) fn cancel(&self, id: &str) {
        if let Some(cancel) = self.all().get(id) {
            cancel.cancel();
        }
    }
}

/// Names that somebody is at work on: of templates whose disks are being read, of VMs that are being made or removed.
pub(super) struct Names<T>(Mutex<HashSet<T>>);

/// One of them; it is free again when this is dropped.
pub(super) struct Name<'a, T: Hash + Eq> {
    all: &'a Names<T>,
    id: T,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Hash + Eq + Clone> Names<T> {
    /// Takes the name; nothing when somebody else is at it.
    pub(super) fn begin(&self, id: &T) -> Option<Name<'_, T>> {
        self.all().insert(id.clone()).then(|| Name { all: self, id: id.clone() })
    }
}

impl<T> Names<T> {
    fn all(&self) -> MutexGuard<'_, HashSet<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Hash + Eq> Drop for Name<'_, T> {
    fn drop(&mut self) {
        self.all.all().remove(&self.id);
    }
}
