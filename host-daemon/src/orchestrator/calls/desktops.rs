//! Whose desktop a caller may see and drive.

use futures_util::future::BoxFuture;

use super::leases::not_active;
use crate::display::Hub;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::{LeaseId, VmId};
use crate::model::vm::VmState;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::actor::{Handle, changed_hands};
use crate::orchestrator::request::{Caller, Target, Until};

impl Orchestrator {
    /// The screen and input of a running VM that the caller may use.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`], [`Reason::LeaseEnded`], [`Reason::VmNotRunning`].
    pub async fn desktop(&self, caller: &Caller, target: &Target) -> Result<Hub> {
        let handle = self.target(caller, target).await?;
        let state = handle.look(|row| row.state);
        // A guest that boots has a screen already.
        if !matches!(state, VmState::Running | VmState::Booting) {
            return Err(not_running(&handle, state));
        }
        Ok(handle.hub.clone())
    }

    /// Completes when the caller has to leave the desktop: the lease ended, or the VM stopped running, which a saved one
    /// has done only for good to some. By the VM's name it ends with the lease that was seen at the start, or with there
    /// being none: what comes next is somebody else's, except to the operator. Who `drives` has to leave a VM that is
    /// kept ready for a lease, too.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`]; [`Reason::VmReserved`] for who drives.
    pub async fn desktop_ended(
        &self,
        caller: &Caller,
        target: &Target,
        until: Until,
        drives: bool,
    ) -> Result<BoxFuture<'static, Error>> {
        // Before the right is looked at: a lease that comes or goes in between is found to be another one.
        let began = self.held_under(target);
        let handle = self.target(caller, target).await?;
        if drives {
            self.may_drive(target)?;
        }
        let (this, target, admin) = (self.clone(), target.clone(), caller.admin);
        Ok(Box::pin(async move {
            let mut rows = handle.rows();
            let stopped = rows.wait_for(|row| {
                let left = match &target {
                    Target::Lease(lease) => row.lease.as_ref() != Some(lease) || row.suspended,
                    Target::Vm(_) => row.suspended || (!admin && row.lease != began) || (drives && row.hot),
                };
                let saved = row.state == VmState::Saved && until == Until::Stopped;
                left || saved || matches!(row.state, VmState::Off | VmState::Deleting | VmState::Error)
            });
            // The row's sender goes with the VM.
            let gone = (VmState::Deleting, false, began.clone());
            let (state, hot, now) = stopped.await.map_or(gone, |row| (row.state, row.hot, row.lease.clone()));
            let lease = match &target {
                Target::Lease(lease) => Some(lease),
                Target::Vm(_) => began.as_ref(),
            };
            if let Some(lease) = lease
                && let Ok(lease) = this.lease(lease).await
                && (lease.ended.is_some() || lease.suspended.is_some())
            {
                return not_active(&lease);
            }
            match target {
                Target::Vm(vm) if now != began => changed_hands(&vm),
                Target::Vm(vm) if drives && hot => reserved(&vm),
                _ => not_running(&handle, state),
            }
        }))
    }

    /// Refuses to drive a hot VM by name: it is kept clean for a lease. To look at it does no harm.
    ///
    /// # Errors
    /// [`Reason::VmReserved`].
    pub fn may_drive(&self, target: &Target) -> Result<()> {
        let Target::Vm(vm) = target else { return Ok(()) };
        let hot = self.0.registry.get(vm).is_ok_and(|handle| handle.look(|row| row.hot));
        if hot { Err(reserved(vm)) } else { Ok(()) }
    }

    /// The lease that a target is looked at under: a VM's is the one that it has now.
    pub(super) fn held_under(&self, target: &Target) -> Option<LeaseId> {
        match target {
            Target::Lease(lease) => Some(lease.clone()),
            Target::Vm(vm) => {
                self.0.registry.get(vm).ok().and_then(|handle| handle.look(|row| row.lease.clone()))
            }
        }
    }

    pub(super) async fn target(&self, caller: &Caller, target: &Target) -> Result<Handle> {
        match target {
            Target::Vm(vm) => self.permitted(caller, vm),
            Target::Lease(lease) => {
                let lease = self.own(caller, lease).await?;
                self.0.registry.get(&lease.vm)
            }
        }
    }
}

fn reserved(vm: &VmId) -> Error {
    let why = format!("vm {vm} is kept ready for a lease: acquire one from its pool, or save the vm first");
    Error::new(Reason::VmReserved, why).with("vm", vm)
}

fn not_running(handle: &Handle, state: VmState) -> Error {
    Error::new(Reason::VmNotRunning, format!("vm {} is {state}", handle.id))
        .with("vm", &handle.id)
        .with("state", state)
}
