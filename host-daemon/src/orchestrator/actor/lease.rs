//! What leases do to a VM's row. A lease and its VM change in one transaction.

use std::time::Duration;

use jiff::Timestamp;

use super::Actor;
use super::hot::readiness;
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{LeaseId, VmId};
use crate::model::lease::EndedAs;
use crate::model::query::RequestId;
use crate::model::record::{Availability, Lease, Pending};
use crate::model::vm::VmState;
use crate::orchestrator::pools::Ready;
use crate::store::StoreError;

/// Why a VM is reset after a lease.
pub(super) const GIVEN_BACK: &str = "given back";

/// Of a caller whose right to the VM was looked at before the VM was leased or given back.
pub(in crate::orchestrator) fn changed_hands(vm: &VmId) -> Error {
    Error::new(Reason::VmBusy, format!("vm {vm} was leased or given back meanwhile")).with("vm", vm)
}

impl Actor {
    /// Gives the VM to a lease; nothing when it is not ready after all. The lease as it is then: with its receipt when
    /// the VM is hot.
    pub(in crate::orchestrator) async fn grant(
        &mut self,
        mut lease: Lease,
        waited: Duration,
        replaced: u32,
        request: Option<RequestId>,
    ) -> Result<Option<Lease>> {
        let own = self.row.pool.as_ref() == Some(&lease.pool) && self.shared.pools.is_open(&lease.pool);
        let ready = readiness(&self.row, self.shared.hv.capabilities().save, self.proofs.any());
        if !own || ready.is_none() {
            return Ok(None);
        }
        lease.receipt = None;
        if ready == Some(Ready::Hot)
            && let Some(epoch) = self.link.epoch()
            && let Some(receipt) = self.proofs.receipt(epoch, waited, replaced)
        {
            lease.receipt = Some(receipt);
            lease.expires = Timestamp::now() + lease.ttl;
        }
        let next = self.next(|row| {
            row.availability = Availability::Leased;
            row.lease = Some(lease.id.clone());
            row.clean = false;
            row.hot = false;
            row.uses = row.uses.saturating_add(1);
        });
        let mut events = vec![Event::of_lease(EventKind::LeaseGranted, &lease, &lease.holder)];
        if lease.receipt.is_some() {
            events.push(Event::of_lease(EventKind::LeaseReady, &lease, &lease.holder));
        }
        match self.shared.store.grant(&next, &lease, request.as_ref(), events).await {
            Ok(()) => {
                self.shared.leases.granted(&lease);
                self.show(next);
                Ok(Some(lease))
            }
            Err(StoreError::Exists("request")) => {
                Err(Error::new(Reason::RequestIdReused, "request_id was used by another request meanwhile")
                    .violation("request_id", "used by another request meanwhile"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a lease and takes the VM from it; what is pending then is worked off by the actor. Gives the lease as it
    /// is when there is nothing to end: it has ended, moved to another VM, or was renewed just before it expired.
    pub(in crate::orchestrator) async fn end_lease(
        &mut self,
        id: &LeaseId,
        ended: EndedAs,
        reason: &str,
        pending: Option<Pending>,
    ) -> Result<Lease> {
        loop {
            let stored = self.shared.store.lease(id).await?;
            let Some(mut lease) = stored else { return Err(Error::not_found("lease", id)) };
            let renewed = ended == EndedAs::Expired && lease.expires > Timestamp::now();
            if lease.ended.is_some() || lease.vm != self.row.id || renewed {
                return Ok(lease);
            }
            lease.ended = Some(ended);
            reason.clone_into(&mut lease.end_reason);
            lease.ended_at = Some(Timestamp::now());
            let held = self.row.lease.as_ref() == Some(id);
            let resets = pending == Some(Pending::Reset)
                && !self.parked
                && self.row.state.may_become(VmState::Resetting);
            let next = held.then(|| {
                self.next(|row| {
                    row.availability = Availability::Idle;
                    row.lease = None;
                    row.suspended = false;
                    row.pending = pending;
                    if resets {
                        // It would be the next write anyway, since nothing comes between this command and what is pending.
                        row.state = VmState::Resetting;
                        GIVEN_BACK.clone_into(&mut row.state_reason);
                        row.state_since = Timestamp::now();
                    }
                    if ended == EndedAs::VmLost {
                        // In one step: nobody shall see it running and free.
                        row.state = VmState::Error;
                        reason.clone_into(&mut row.state_reason);
                        row.state_since = Timestamp::now();
                    }
                })
            });
            let mut events = vec![Event::of_lease(EventKind::LeaseEnded, &lease, &self.asker)];
            // The end of the lease tells the rest; a move is one of its own.
            let moved = next.as_ref().filter(|next| next.state != self.row.state);
            events.extend(moved.map(|next| Event::vm_changed(&self.row, next, &self.asker)));
            match self.shared.store.end_lease(next.as_ref(), &lease, events).await {
                Ok(()) => {}
                // Renewed or suspended since it was read: renewing does not come by the actor.
                Err(StoreError::Changed("lease")) => continue,
                Err(error) => return Err(error.into()),
            }
            tracing::info!(vm = %self.row.id, lease = %id, ?ended, reason, "lease ended");
            if let Some(next) = next {
                let (from, to) = (self.row.state, next.state);
                if from != to {
                    tracing::info!(vm = %self.row.id, %from, %to, cause = next.state_reason, "vm state");
                }
                let suspended = self.row.suspended;
                self.show(next);
                if suspended && let Some(pool) = &self.row.pool {
                    self.shared.pools.not_preempted(pool, &self.row.id);
                }
            }
            self.shared.leases.ended(id);
            return Ok(lease);
        }
    }

    /// Refuses a command whose caller's right to the VM was looked at before the VM was leased or given back.
    pub(in crate::orchestrator) fn still_held_by(&self, lease: Option<&LeaseId>) -> Result<()> {
        if self.row.lease.as_ref() == lease { Ok(()) } else { Err(changed_hands(&self.row.id)) }
    }

    /// The guest of this lease did not answer: back to its clean state and on from there, or a boot of its disk. The
    /// lease must still be there. Gives what the VM is then, and why.
    pub(in crate::orchestrator) async fn fall_back(
        &mut self,
        lease: &LeaseId,
        boot: bool,
        why: &str,
    ) -> Result<(VmState, String)> {
        if self.row.lease.as_ref() != Some(lease) || self.row.suspended {
            return Err(Error::new(Reason::LeaseEnded, format!("lease {lease} has left vm {}", self.row.id))
                .with("lease", lease));
        }
        if boot {
            self.clean_fails = true;
            self.boot_anew(why).await?;
        } else {
            self.reset(why).await?;
        }
        Ok((self.row.state, self.row.state_reason.clone()))
    }

    /// Ends whatever lease there is on the VM.
    pub(in crate::orchestrator) async fn revoke(&mut self, reason: &str) -> Result<()> {
        if let Some(lease) = self.row.lease.clone() {
            self.end_lease(&lease, EndedAs::Revoked, reason, None).await?;
        }
        Ok(())
    }

    /// Keeps the VM out of use because it failed this lease, which goes on with another one. A VM that the lease lost
    /// meanwhile is not touched: it may be somebody else's by now.
    pub(in crate::orchestrator) async fn failed_lease(&mut self, lease: &LeaseId, why: &str) -> Result<()> {
        if self.row.lease.as_ref() == Some(lease) { self.quarantine(why).await } else { Ok(()) }
    }

    /// Keeps the VM out of use.
    pub(super) async fn quarantine(&mut self, why: &str) -> Result<()> {
        tracing::warn!(vm = %self.row.id, why, "vm quarantined");
        let why = why.to_owned();
        self.write(|row| {
            row.availability = Availability::Quarantined;
            row.lease = None;
            row.hot = false;
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
