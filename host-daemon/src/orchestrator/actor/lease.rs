//! What leases do to a VM's row. A lease and its VM change in one transaction.

use jiff::Timestamp;

use super::Actor;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::LeaseId;
use crate::model::lease::EndedAs;
use crate::model::query::RequestId;
use crate::model::record::{Availability, Lease, Pending, Vm};
use crate::model::vm::VmState;
use crate::store::StoreError;

/// Whether a lease can have the VM at once.
pub(in crate::orchestrator) fn is_ready(row: &Vm, needs_memory: bool) -> bool {
    let at_rest = if needs_memory { row.state == VmState::Saved } else { row.state == VmState::Running };
    at_rest && row.clean && row.availability == Availability::Idle && row.pending.is_none()
}

impl Actor {
    /// Gives the VM to a lease; false when it is not ready after all.
    pub(in crate::orchestrator) async fn grant(
        &mut self,
        lease: Lease,
        request: Option<RequestId>,
    ) -> Result<bool> {
        if !is_ready(&self.row, self.shared.hv.capabilities().save) {
            return Ok(false);
        }
        let next = self.next(|row| {
            row.availability = Availability::Leased;
            row.lease = Some(lease.id.clone());
            row.clean = false;
        });
        match self.shared.store.grant(&next, &lease, request.as_ref()).await {
            Ok(()) => {
                self.shared.leases.granted(&lease);
                self.show(next);
                Ok(true)
            }
            Err(StoreError::Exists("request")) => {
                Err(Error::new(Reason::RequestIdReused, "request_id was used by another request meanwhile")
                    .violation("request_id", "used by another request meanwhile"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the VM from a lease and ends the lease; what is pending then is worked off by the actor.
    pub(in crate::orchestrator) async fn end_lease(
        &mut self,
        id: &LeaseId,
        ended: EndedAs,
        reason: &str,
        pending: Option<Pending>,
    ) -> Result<Lease> {
        if self.row.lease.as_ref() != Some(id) {
            return Err(Error::new(Reason::LeaseEnded, format!("lease {id} has ended")).with("lease", id));
        }
        let stored = self.shared.store.lease(id).await?;
        let Some(mut lease) = stored else { return Err(Error::not_found("lease", id)) };
        lease.ended = Some(ended);
        reason.clone_into(&mut lease.end_reason);
        lease.ended_at = Some(Timestamp::now());
        let next = self.next(|row| {
            row.availability = Availability::Idle;
            row.lease = None;
            row.pending = pending;
        });
        self.shared.store.end_lease(Some(&next), &lease).await?;
        tracing::info!(vm = %self.row.id, lease = %id, ?ended, reason, "lease ended");
        self.show(next);
        self.shared.leases.ended(id);
        Ok(lease)
    }

    /// Keeps the VM out of use; a lease that it failed goes on with another one.
    pub(in crate::orchestrator) async fn quarantine(&mut self, why: &str) -> Result<()> {
        tracing::warn!(vm = %self.row.id, why, "vm quarantined");
        let why = why.to_owned();
        self.write(|row| {
            row.availability = Availability::Quarantined;
            row.lease = None;
            row.pending = None;
            row.state_reason = why;
            row.state_since = Timestamp::now();
        })
        .await
    }

    /// Marks the VM for deletion; the actor does it right after this command.
    pub(in crate::orchestrator) async fn condemn(&mut self) -> Result<()> {
        if self.row.availability == Availability::Leased {
            return Err(Error::new(Reason::VmLeased, format!("vm {} is leased", self.row.id))
                .with("vm", &self.row.id));
        }
        self.write(|row| row.pending = Some(Pending::Delete)).await
    }
}
