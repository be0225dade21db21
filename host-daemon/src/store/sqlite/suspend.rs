//! Preempted leases: their life stands still while their VM is saved.

use super::{Sqlite, database, vm};
use crate::model::record::{Lease, Vm};
use crate::store::sqlite::row::micros;
use crate::store::{StoreError, StoreResult};

impl Sqlite {
    /// Writes that a lease is preempted, or goes on, together with its VM.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the VM is not as the caller thought, or the lease has ended or moved.
    pub async fn suspend_lease(&self, vm: &Vm, lease: &Lease) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        vm::update_in(&mut tx, vm).await?;
        let done = sqlx::query(
            "UPDATE leases SET suspended = ?, suspend_reason = ?, expires = ?
             WHERE id = ? AND ended IS NULL AND vm = ?",
        )
        .bind(lease.suspended.map(micros))
        .bind(&lease.suspend_reason)
        .bind(micros(lease.expires))
        .bind(lease.id.as_str())
        .bind(lease.vm.as_str())
        .execute(&mut *tx)
        .await
        .map_err(database("suspend a lease"))?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Changed("lease"));
        }
        tx.commit().await.map_err(database("commit"))
    }
}
