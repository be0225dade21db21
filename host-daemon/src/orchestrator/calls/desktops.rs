//! Whose desktop a caller may see and drive.

use futures_util::future::BoxFuture;

use super::leases::not_active;
use crate::display::Hub;
use crate::model::error::{Error, Reason, Result};
use crate::model::vm::VmState;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::actor::Handle;
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
    /// has done only for good to some.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`].
    pub async fn desktop_ended(
        &self,
        caller: &Caller,
        target: &Target,
        until: Until,
    ) -> Result<BoxFuture<'static, Error>> {
        let handle = self.target(caller, target).await?;
        let (this, target) = (self.clone(), target.clone());
        Ok(Box::pin(async move {
            let mut rows = handle.rows();
            let stopped = rows.wait_for(|row| {
                let left = match &target {
                    Target::Lease(lease) => row.lease.as_ref() != Some(lease) || row.suspended,
                    Target::Vm(_) => row.suspended,
                };
                let saved = row.state == VmState::Saved && until == Until::Stopped;
                left || saved || matches!(row.state, VmState::Off | VmState::Deleting | VmState::Error)
            });
            // The row's sender goes with the VM.
            let state = stopped.await.map_or(VmState::Deleting, |row| row.state);
            if let Target::Lease(lease) = &target
                && let Ok(lease) = this.lease(lease).await
                && (lease.ended.is_some() || lease.suspended.is_some())
            {
                return not_active(&lease);
            }
            not_running(&handle, state)
        }))
    }

    /// Refuses to drive a hot VM by name: it is kept clean for a lease. To look at it does no harm.
    ///
    /// # Errors
    /// [`Reason::VmReserved`].
    pub fn may_drive(&self, target: &Target) -> Result<()> {
        let Target::Vm(vm) = target else { return Ok(()) };
        let hot = self.0.registry.get(vm).is_ok_and(|handle| handle.look(|row| row.hot));
        if !hot {
            return Ok(());
        }
        let why =
            format!("vm {vm} is kept ready for a lease: acquire one from its pool, or save the vm first");
        Err(Error::new(Reason::VmReserved, why).with("vm", vm))
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

fn not_running(handle: &Handle, state: VmState) -> Error {
    Error::new(Reason::VmNotRunning, format!("vm {} is {state}", handle.id))
        .with("vm", &handle.id)
        .with("state", state)
}
