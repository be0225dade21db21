//! Work under way that has a name: operations that can be given up, and templates that are being registered.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::model::ids::TemplateId;

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

/// Templates whose disks are being read.
#[derive(Default)]
pub(super) struct Imports(Mutex<HashSet<TemplateId>>);

/// One of them; the name is free again when this is dropped.
pub(super) struct Import<'a> {
    all: &'a Imports,
    id: TemplateId,
}

impl Imports {
    fn all(&self) -> MutexGuard<'_, HashSet<TemplateId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the name; nothing when somebody else is at it.
    pub(super) fn begin(&self, id: &TemplateId) -> Option<Import<'_>> {
        self.all().insert(id.clone()).then(|| Import { all: self, id: id.clone() })
    }
}

impl Drop for Import<'_> {
    fn drop(&mut self) {
        self.all.all().remove(&self.id);
    }
}
