//! Preempted leases: the VM is saved as it is, the lease's life stands still, and both go on when there is room again.
//!
//! The intent is one transaction for lease and VM. A crash while the VM is being saved leaves it running or saved: the
//! next start takes the intent back, or leaves it as it is.

use jiff::Timestamp;

use super::{Actor, illegal};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::LeaseId;
use crate::model::record::Lease;
use crate::model::vm::VmState;
use crate::orchestrator::pools;

/// A call on a lease that is preempted.
pub(in crate::orchestrator) fn preempted(lease: &LeaseId, why: &str) -> Error {
    Error::new(Reason::LeasePreempted, format!("lease {lease} is suspended until there is room: {why}"))
        .with("lease", lease)
        .with("suspend_reason", why)
}

impl Actor {
    /// Saves the VM of a lease for a more important one. A lease that is no longer there is left alone.
    pub(in crate::orchestrator) async fn suspend(&mut self, id: &LeaseId, why: &str) -> Result<()> {
        if self.row.lease.as_ref() != Some(id) || self.row.suspended || self.row.state != VmState::Running {
            return Ok(());
        }
        self.supports(self.shared.hv.capabilities().save, "save")?;
        let mut lease = self.held().await?;
        lease.suspended = Some(Timestamp::now());
        why.clone_into(&mut lease.suspend_reason);
        let next = self.next(|row| {
            row.suspended = true;
            row.state = VmState::Saving;
            why.clone_into(&mut row.state_reason);
            row.state_since = Timestamp::now();
        });
        if !self.row.state.may_become(VmState::Saving) {
            return Err(illegal(&self.row.id, self.row.state, VmState::Saving));
        }
        let events = vec![
            Event::of_lease(EventKind::LeaseSuspended, &lease, &self.asker),
            Event::vm_changed(&self.row, &next, &self.asker),
        ];
        self.shared.store.suspend_lease(&next, &lease, events).await?;
        tracing::info!(vm = %self.row.id, lease = %id, why, "lease suspended");
        self.show(next);
        self.shared.leases.moved();
        self.link.close().await;
        match self.shared.hv.save(&self.row.id).await {
            Ok(()) => {
                self.set_run(None);
                self.enter(VmState::Saved, why).await?;
                if let Some(pool) = &self.row.pool {
                    self.shared.pools.preempted(pool, &self.row.id, pools::wish(&lease));
                }
                Ok(())
            }
            Err(error) => {
                let error = self.went_on("save", error.into()).await;
                if self.row.state == VmState::Running {
                    self.take_back_suspension().await?;
                } else if let (Some(pool), Some(_)) = (&self.row.pool, &self.row.lease) {
                    // Saved after all, or paused: whoever resumes it finds out.
                    self.shared.pools.preempted(pool, &self.row.id, pools::wish(&lease));
                }
                Err(error)
            }
        }
    }

    /// Goes on with a preempted lease. `last`: a VM that can't be resumed is lost.
    pub(in crate::orchestrator) async fn unsuspend(&mut self, last: bool) -> Result<()> {
        if !self.row.suspended || self.row.lease.is_none() {
            return Ok(());
        }
        match self.resume_or_boot("there is room again").await {
            Ok(()) => self.take_back_suspension().await,
            Err(error) => {
                if last && self.row.lease.is_some() {
                    self.lost(&format!("it could not be resumed after a preemption: {error}")).await?;
                }
                Err(error)
            }
        }
    }

    /// The VM runs: the lease's life goes on from where it stood.
    pub(super) async fn take_back_suspension(&mut self) -> Result<()> {
        let mut lease = self.held().await?;
        let mut event = Event::of_lease(EventKind::LeaseResumed, &lease, &self.asker);
        if let Some(since) = lease.suspended.take() {
            lease.expires = event.at + lease.expires.duration_since(since);
            event.duration = Some(event.at.duration_since(since).unsigned_abs());
        }
        lease.suspend_reason.clone_into(&mut event.cause);
        let next = self.next(|row| row.suspended = false);
        self.shared.store.suspend_lease(&next, &lease, vec![event]).await?;
        self.show(next);
        self.shared.leases.resumed(&lease.id);
        Ok(())
    }

    async fn held(&self) -> Result<Lease> {
        let id = self.row.lease.as_ref().ok_or_else(|| Error::not_found("lease of vm", &self.row.id))?;
        self.shared.store.lease(id).await?.ok_or_else(|| Error::not_found("lease", id))
    }
}
