//! Preempted leases: their life stands still while their VM is saved.

use std::sync::Arc;

use rusqlite::params;

use super::{Sqlite, vm};
use crate::model::event::Event;
use crate::model::record::{Lease, Vm};
use crate::store::StoreResult;
use crate::store::changes::RowChange;
use crate::store::sqlite::row::micros;

impl Sqlite {
    /// Writes that a lease is preempted, or goes on, together with its VM.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Changed`] when the VM is not as the caller thought, or the lease has ended or moved.
    pub async fn suspend_lease(&self, vm: &Vm, lease: &Lease, events: Vec<Event>) -> StoreResult<()> {
        let (vm, lease) = (Arc::new(vm.clone()), Arc::new(lease.clone()));
        self.writer
            .write(move |tx| {
                vm::update_in(tx, &vm)?;
                tx.execute_one(
                    "lease",
                    "UPDATE leases SET suspended = ?, suspend_reason = ?, expires = ?
                     WHERE id = ? AND ended IS NULL AND vm = ?",
                    params![
                        lease.suspended.map(micros),
                        lease.suspend_reason,
                        micros(lease.expires),
                        lease.id.as_str(),
                        lease.vm.as_str(),
                    ],
                )?;
                tx.show(RowChange::Lease(lease));
                events.into_iter().try_for_each(|event| tx.event(event))
            })
            .await
    }
}
