//! All VMs this daemon has an actor for.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::actor::Handle;
use crate::model::error::{Error, Result};
use crate::model::ids::{PoolId, VmId};
use crate::model::record::Vm;

/// Handles by id.
#[derive(Default)]
pub(super) struct Registry(RwLock<BTreeMap<VmId, Handle>>);

impl Registry {
    pub(super) fn insert(&self, handle: Handle) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(handle.id.clone(), handle);
    }

    pub(super) fn remove(&self, id: &VmId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(super) fn get(&self, id: &VmId) -> Result<Handle> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).cloned().ok_or_else(|| Error::not_found("vm", id))
    }

    pub(super) fn all(&self) -> Vec<Handle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Looks at every VM of a pool, and the way to it.
    pub(super) fn each_handle_of(&self, pool: &PoolId, mut f: impl FnMut(&Handle, &Vm)) {
        for handle in self.0.read().unwrap_or_else(PoisonError::into_inner).values() {
            handle.look(|row| {
                if row.pool.as_ref() == Some(pool) {
                    f(handle, row);
                }
            });
        }
    }

    /// Looks at every VM of a pool.
    pub(super) fn each_of(&self, pool: &PoolId, mut f: impl FnMut(&Vm)) {
        self.each_handle_of(pool, |_, row| f(row));
    }
}
