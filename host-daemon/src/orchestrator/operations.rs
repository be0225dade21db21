//! Operations that somebody works on now, so that they can be given up.

use std::collections::HashMap;
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
