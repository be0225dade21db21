//! Calls of `VmService`. Every move answers when the VM has arrived, and gives it as it then is.

use std::time::Duration;

use futures_util::stream::Stream;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::v1::{
    Checkpoint, CreateCheckpointRequest, DeleteCheckpointRequest, DeleteVmRequest, ForkVmRequest,
    GetVmRequest, ListCheckpointsRequest, ListVmsRequest, PauseVmRequest, ResetVmRequest,
    RestoreCheckpointRequest, ResumeVmRequest, SaveVmRequest, StartVmRequest, StopMode, StopVmRequest, Vm,
    VmState,
};

/// A move without settings of its own.
macro_rules! simple_move {
    ($(#[$doc:meta])* $name:ident, $request:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// `NOT_FOUND`; `FAILED_PRECONDITION` (`ILLEGAL_VM_STATE`, `NOT_SUPPORTED`); `ABORTED` (`VM_BUSY`);
        /// `PERMISSION_DENIED` (`LEASE_NOT_YOURS`).
        pub async fn $name(&self, name: &str) -> Result<Vm> {
            let request = $request { name: qualify("vms", name), request_id: fresh_id() };
            call!(self, Repeatable, self.moving(), vms.$name(request))
        }
    };
}

impl Client {
    /// Gets one VM by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_vm(&self, name: &str) -> Result<Vm> {
        call!(self, Repeatable, self.quick(), vms.get_vm(GetVmRequest { name: qualify("vms", name) }))
    }

    /// VMs by name: those of `pool` (all for `None`) in one of `states` (any for none).
    pub fn list_vms(&self, pool: Option<&str>, states: &[VmState]) -> impl Stream<Item = Result<Vm>> + use<> {
        let client = self.clone();
        let pool = pool.map(|pool| qualify("pools", pool)).unwrap_or_default();
        let states: Vec<i32> = states.iter().map(|state| i32::from(*state)).collect();
        pages(move |page_token| {
            let client = client.clone();
            let request =
                ListVmsRequest { page_size: 0, page_token, pool: pool.clone(), states: states.clone() };
            async move {
                let page = call!(client, Repeatable, client.quick(), vms.list_vms(request))?;
                Ok((page.vms, page.next_page_token))
            }
        })
    }

    simple_move! {
        /// Boots a VM that is off.
        start_vm, StartVmRequest
    }
    simple_move! {
        /// Brings a saved or paused VM to running.
        resume_vm, ResumeVmRequest
    }
    simple_move! {
        /// Saves memory and devices to disk; resuming goes on where it was.
        save_vm, SaveVmRequest
    }
    simple_move! {
        /// Stops the virtual CPUs; memory stays.
        pause_vm, PauseVmRequest
    }
    simple_move! {
        /// Puts a VM back to its clean checkpoint.
        reset_vm, ResetVmRequest
    }

    /// Shuts a VM down, or switches it off. `timeout` is how long the guest gets for a graceful stop; default 30 s.
    ///
    /// # Errors
    /// As the other moves.
    pub async fn stop_vm(&self, name: &str, mode: StopMode, timeout: Option<Duration>) -> Result<Vm> {
        let wait = timeout.unwrap_or(Duration::from_secs(30)).saturating_add(Duration::from_secs(60));
        let request = StopVmRequest {
            name: qualify("vms", name),
            mode: mode.into(),
            timeout: timeout.and_then(|timeout| timeout.try_into().ok()),
            request_id: fresh_id(),
        };
        call!(self, Repeatable, self.after(wait), vms.stop_vm(request))
    }

    /// Deletes a VM with its disks and checkpoints; `force` ends a lease on it too.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`VM_LEASED`).
    pub async fn delete_vm(&self, name: &str, force: bool) -> Result<()> {
        let request = DeleteVmRequest { name: qualify("vms", name), force, etag: String::new() };
        call!(self, Once, self.moving(), vms.delete_vm(request))?;
        Ok(())
    }

    /// Makes another VM that goes on from the same memory and disk. `new_id` may be empty: the daemon then makes one.
    ///
    /// # Errors
    /// As the moves; `ALREADY_EXISTS`.
    pub async fn fork_vm(&self, name: &str, new_id: &str) -> Result<Vm> {
        let request =
            ForkVmRequest { name: qualify("vms", name), vm_id: new_id.to_owned(), request_id: fresh_id() };
        call!(self, Repeatable, self.moving(), vms.fork_vm(request))
    }

    /// Keeps memory and disk of a VM under a name. `id` may be empty: the daemon then makes one.
    ///
    /// # Errors
    /// As the moves; `ALREADY_EXISTS`; `INVALID_ARGUMENT` for the reserved id `clean`.
    pub async fn create_checkpoint(&self, vm: &str, id: &str, description: &str) -> Result<Checkpoint> {
        let request = CreateCheckpointRequest {
            parent: qualify("vms", vm),
            checkpoint_id: id.to_owned(),
            checkpoint: Some(Checkpoint { description: description.to_owned(), ..Default::default() }),
            request_id: fresh_id(),
        };
        call!(self, Repeatable, self.moving(), vms.create_checkpoint(request))
    }

    /// A VM's checkpoints by name, `clean` included.
    pub fn list_checkpoints(&self, vm: &str) -> impl Stream<Item = Result<Checkpoint>> + use<> {
        let client = self.clone();
        let parent = qualify("vms", vm);
        pages(move |page_token| {
            let client = client.clone();
            let request = ListCheckpointsRequest { parent: parent.clone(), page_size: 0, page_token };
            async move {
                let page = call!(client, Repeatable, client.quick(), vms.list_checkpoints(request))?;
                Ok((page.checkpoints, page.next_page_token))
            }
        })
    }

    /// Puts a VM back to one of its checkpoints, by id or name.
    ///
    /// # Errors
    /// As the moves.
    pub async fn restore_checkpoint(&self, vm: &str, checkpoint: &str) -> Result<Vm> {
        let request =
            RestoreCheckpointRequest { name: checkpoint_name(vm, checkpoint), request_id: fresh_id() };
        call!(self, Repeatable, self.moving(), vms.restore_checkpoint(request))
    }

    /// Deletes one of a VM's checkpoints, by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`CHECKPOINT_RESERVED`) for `clean`.
    pub async fn delete_checkpoint(&self, vm: &str, checkpoint: &str) -> Result<()> {
        let request = DeleteCheckpointRequest { name: checkpoint_name(vm, checkpoint) };
        call!(self, Once, self.moving(), vms.delete_checkpoint(request))?;
        Ok(())
    }
}

fn checkpoint_name(vm: &str, checkpoint: &str) -> String {
    if checkpoint.contains('/') {
        checkpoint.to_owned()
    } else {
        format!("{}/checkpoints/{checkpoint}", qualify("vms", vm))
    }
}
