//! VMs: looks, moves, checkpoints and forks.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{answered, check_etag, made_id, taken};
use crate::hypervisor::{Origin, Stop, VmDefinition};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{CLEAN, CheckpointId, LeaseId, VmId};
use crate::model::lease::EndedAs;
use crate::model::query::{Page, VmFilter};
use crate::model::record::{Availability, Pending};
use crate::model::vm::VmState;
use crate::orchestrator::actor::{Actor, Handle, preempted};
use crate::orchestrator::request::{Caller, Fork, TakeCheckpoint};
use crate::orchestrator::view::{CheckpointView, VmView};
use crate::orchestrator::{Orchestrator, leases, pools};

impl Orchestrator {
    /// One VM.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn vm(&self, id: &VmId) -> Result<VmView> {
        Ok(self.vm_view(&self.0.registry.get(id)?).await)
    }

    /// VMs by id.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn vms(&self, filter: &VmFilter, page: &Page) -> Result<Vec<VmView>> {
        let mut views = Vec::new();
        for row in self.0.store.vms(filter, page).await? {
            views.push(match self.0.registry.get(&row.id) {
                Ok(handle) => {
                    let view = self.vm_view(&handle).await;
                    // What the filter saw is what it shows.
                    let vm = crate::model::record::Vm { ip_address: view.vm.ip_address, ..row };
                    VmView { vm, ..view }
                }
                // Gone since the store was read, but a page must not be shorter than the store's.
                Err(_) => VmView::bare(row),
            });
        }
        Ok(views)
    }

    /// Boots a VM that is off.
    ///
    /// # Errors
    /// As every move: [`Reason::NotFound`], [`Reason::IllegalVmState`], [`Reason::VmBusy`], [`Reason::LeaseNotYours`],
    /// [`Reason::HypervisorFailed`].
    pub async fn start_vm(&self, caller: &Caller, id: &VmId) -> Result<VmView> {
        self.act(caller, id, |vm| Box::pin(vm.start("asked to", false))).await
    }

    /// Brings a saved or paused VM to running.
    ///
    /// # Errors
    /// As every move.
    pub async fn resume_vm(&self, caller: &Caller, id: &VmId) -> Result<VmView> {
        self.act(caller, id, |vm| Box::pin(vm.resume("asked to"))).await
    }

    /// Saves a VM, its state kept.
    ///
    /// # Errors
    /// As every move; [`Reason::NotSupported`].
    pub async fn save_vm(&self, caller: &Caller, id: &VmId) -> Result<VmView> {
        self.act(caller, id, |vm| Box::pin(vm.save("asked to"))).await
    }

    /// Stops a VM's CPUs.
    ///
    /// # Errors
    /// As every move; [`Reason::NotSupported`].
    pub async fn pause_vm(&self, caller: &Caller, id: &VmId) -> Result<VmView> {
        self.act(caller, id, |vm| Box::pin(vm.pause("asked to"))).await
    }

    /// Switches a VM off.
    ///
    /// # Errors
    /// As every move.
    pub async fn stop_vm(&self, caller: &Caller, id: &VmId, how: Stop) -> Result<VmView> {
        self.act(caller, id, move |vm| Box::pin(vm.stop(how, "asked to"))).await
    }

    /// Puts a VM back to clean.
    ///
    /// # Errors
    /// As every move.
    pub async fn reset_vm(&self, caller: &Caller, id: &VmId) -> Result<VmView> {
        self.act(caller, id, |vm| Box::pin(vm.reset("asked to"))).await
    }

    /// Deletes a VM.
    ///
    /// # Errors
    /// As every move; [`Reason::VmLeased`] without `force`, [`Reason::StaleEtag`].
    pub async fn delete_vm(&self, caller: &Caller, id: &VmId, force: bool, etag: Option<u64>) -> Result<()> {
        let shared = self.open()?;
        let handle = self.0.registry.get(id)?;
        check_etag("vm", id.as_str(), etag, handle.look(|row| row.version))?;
        if let Some(lease) = handle.look(|row| row.lease.clone()) {
            if !force {
                return Err(Error::new(Reason::VmLeased, format!("vm {id} is leased"))
                    .with("vm", id)
                    .with("lease", &lease));
            }
            if !caller.admin {
                self.own(caller, &lease).await?;
            }
            leases::end(shared, &lease, EndedAs::Revoked, "its vm was deleted", Some(Pending::Delete))
                .await?;
        }
        if handle.look(|row| row.state == VmState::Provisioning && row.forked_from.is_some()) {
            // Its files are being made by another VM's actor.
            return Err(busy(id, VmState::Provisioning));
        }
        let _under_way = shared.leases.under_way.token();
        match handle.call(|vm| Box::pin(vm.delete())).await {
            // What was pending has done it already.
            Err(error) if error.reason == Reason::NotFound => Ok(()),
            done => done,
        }
    }

    /// Makes another VM from the memory and disk of one.
    ///
    /// # Errors
    /// As every move; [`Reason::AlreadyExists`], [`Reason::NotSupported`]. Nothing is left of a fork that failed.
    pub async fn fork_vm(&self, caller: &Caller, fork: Fork) -> Result<VmView> {
        let this = self.clone();
        let caller = caller.clone();
        self.to_the_end(async move { this.fork_vm_now(&caller, fork).await }).await
    }

    async fn fork_vm_now(&self, caller: &Caller, fork: Fork) -> Result<VmView> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(fork.request.as_ref()).await;
        if let Some(vm) = answered(shared, fork.request.as_ref()).await? {
            let id = VmId::new(vm).map_err(|error| Error::field("vm_id", error.to_string()))?;
            return self.vm(&id).await;
        }
        let source = self.usable(caller, &fork.vm)?;
        let new = match fork.new {
            Some(id) => id,
            None => VmId::new(made_id("vm")).map_err(|error| Error::field("vm_id", error.to_string()))?,
        };
        let Some(_name) = shared.making.begin(&new) else {
            // Another fork of that name, or one that nobody knows is being removed.
            return Err(busy(&new, VmState::Provisioning));
        };
        let template = self.template(&source.look(|row| row.template.clone())).await?;
        let mut row = pools::new_row(new.clone(), &template, None);
        row.forked_from = Some(fork.vm.clone());
        row.clean = false;
        row.state_reason = format!("forked from {}", fork.vm);
        let definition =
            VmDefinition { id: new.clone(), uid: row.uid, origin: Origin::Template(template.id.clone()) };
        let event = Event::of_vm(EventKind::VmCreated, &row, &row.state_reason, &caller.name);
        shared.store.insert_vm(&row, fork.request.as_ref(), event).await.map_err(taken("vm", &new))?;
        let handle = Actor::spawn(shared, row);
        let forked = source.call(move |vm| Box::pin(vm.fork(definition))).await;
        match forked {
            Ok(()) => match handle.call(|vm| Box::pin(vm.forked())).await {
                Ok(()) => Ok(self.vm_view(&handle).await),
                Err(error) => {
                    // Nobody will own what was made.
                    shared.hv.delete(&new).await?;
                    Err(error)
                }
            },
            Err(error) => {
                if let Some(request) = &fork.request {
                    shared.store.forget_request(request.id).await?;
                }
                handle.call(|vm| Box::pin(vm.delete())).await?;
                Err(error)
            }
        }
    }

    /// Keeps memory and disk of a VM under a name.
    ///
    /// # Errors
    /// As every move; [`Reason::AlreadyExists`], [`Reason::InvalidField`] for `clean`.
    pub async fn create_checkpoint(&self, caller: &Caller, take: TakeCheckpoint) -> Result<CheckpointView> {
        let this = self.clone();
        let caller = caller.clone();
        self.to_the_end(async move { this.create_checkpoint_now(&caller, take).await }).await
    }

    async fn create_checkpoint_now(&self, caller: &Caller, take: TakeCheckpoint) -> Result<CheckpointView> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(take.request.as_ref()).await;
        if let Some(id) = answered(shared, take.request.as_ref()).await? {
            let all = self.checkpoints(caller, &take.vm).await?;
            return all
                .into_iter()
                .find(|one| one.id == id)
                .ok_or_else(|| Error::not_found("checkpoint", &id));
        }
        let handle = self.usable(caller, &take.vm)?;
        let id = match take.id {
            Some(id) if id.as_str() == CLEAN => {
                return Err(Error::field("checkpoint_id", "clean is the template's own checkpoint"));
            }
            Some(id) => id,
            None => CheckpointId::new(made_id("checkpoint"))
                .map_err(|error| Error::field("checkpoint_id", error.to_string()))?,
        };
        let wanted = id.clone();
        let facts = handle.call(move |vm| Box::pin(vm.create_checkpoint(wanted))).await?;
        let vm = take.vm.clone();
        let described =
            shared.store.insert_checkpoint(&vm, id.as_str(), &take.description, take.request.as_ref()).await;
        if let Err(error) = described {
            let (unowned, wanted) = (handle.handle.clone(), id.clone());
            unowned.call(move |vm| Box::pin(vm.delete_checkpoint(wanted))).await?;
            return Err(taken("checkpoint", &id)(error));
        }
        Ok(CheckpointView {
            id: id.to_string(),
            description: take.description,
            has_memory: facts.has_memory,
            size_bytes: facts.size_bytes,
            created: Timestamp::from_second(facts.created_unix).unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    /// A VM's checkpoints by id, `clean` among them where the VM has memory to go back to.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`].
    pub async fn checkpoints(&self, caller: &Caller, id: &VmId) -> Result<Vec<CheckpointView>> {
        let shared = &self.0;
        let handle = self.permitted(caller, id)?;
        let mut all = Vec::new();
        if shared.hv.capabilities().memory_checkpoints {
            let template = self.template(&handle.look(|row| row.template.clone())).await?;
            all.push(CheckpointView {
                id: CLEAN.into(),
                description: format!("the settled desktop of template {}", template.id),
                has_memory: true,
                size_bytes: 0,
                created: template.updated,
            });
            let descriptions = shared.store.checkpoint_descriptions(id).await?;
            for facts in shared.hv.checkpoints(id).await? {
                let known = descriptions.iter().find(|(of, _)| of == facts.id.as_str());
                all.push(CheckpointView {
                    id: facts.id.to_string(),
                    description: known.map(|(_, text)| text.clone()).unwrap_or_default(),
                    has_memory: facts.has_memory,
                    size_bytes: facts.size_bytes,
                    created: Timestamp::from_second(facts.created_unix).unwrap_or(Timestamp::UNIX_EPOCH),
                });
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Puts a VM back to a checkpoint.
    ///
    /// # Errors
    /// As every move; [`Reason::NotFound`] for the checkpoint.
    pub async fn restore_checkpoint(&self, caller: &Caller, id: &VmId, checkpoint: &str) -> Result<VmView> {
        let checkpoint = checkpoint.to_owned();
        self.act(caller, id, move |vm| Box::pin(async move { vm.restore_checkpoint(&checkpoint).await }))
            .await
    }

    /// Deletes a checkpoint.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::LeaseNotYours`], [`Reason::CheckpointReserved`] for `clean`.
    pub async fn delete_checkpoint(&self, caller: &Caller, id: &VmId, checkpoint: &str) -> Result<()> {
        let this = self.clone();
        let (caller, id, checkpoint) = (caller.clone(), id.clone(), checkpoint.to_owned());
        self.to_the_end(async move { this.delete_checkpoint_now(&caller, &id, &checkpoint).await }).await
    }

    async fn delete_checkpoint_now(&self, caller: &Caller, id: &VmId, checkpoint: &str) -> Result<()> {
        let shared = self.open()?;
        let handle = self.usable(caller, id)?;
        if checkpoint == CLEAN {
            return Err(Error::new(Reason::CheckpointReserved, "checkpoint clean is the template's own")
                .with("vm", id));
        }
        let unknown = |_| Error::not_found("checkpoint", checkpoint);
        let wanted = CheckpointId::new(checkpoint).map_err(unknown)?;
        handle.call(move |vm| Box::pin(vm.delete_checkpoint(wanted))).await?;
        Ok(shared.store.delete_checkpoint(id, checkpoint).await?)
    }

    /// Runs a move in the VM's actor and shows the VM afterwards.
    async fn act<F>(&self, caller: &Caller, id: &VmId, command: F) -> Result<VmView>
    where
        F: for<'a> FnOnce(&'a mut Actor) -> BoxFuture<'a, Result<()>> + Send + 'static,
    {
        let shared = self.open()?;
        let _under_way = shared.leases.under_way.token();
        let usable = self.usable(caller, id)?;
        usable.call(command).await?;
        let handle = usable.handle;
        arrived(&handle, shared.settings.boot_timeout, shared.settings.agent_timeout).await;
        Ok(self.vm_view(&handle).await)
    }

    /// A VM the caller may use, and that nobody else is moving.
    fn usable(&self, caller: &Caller, id: &VmId) -> Result<Usable> {
        let handle = self.permitted(caller, id)?;
        let (state, lease) = handle.look(|row| (row.state, row.lease.clone()));
        if state.is_transient() {
            return Err(busy(id, state));
        }
        Ok(Usable { handle, lease })
    }

    /// A VM that nobody else has leased. One that is being given back, or failed, may still hold what its last holder left,
    /// so that only the operator may use it.
    pub(super) fn permitted(&self, caller: &Caller, id: &VmId) -> Result<Handle> {
        let handle = self.0.registry.get(id)?;
        let (lease, state) = handle.look(|row| (row.lease.clone(), row.state));
        let (left_over, kept_out) =
            handle.look(|row| (row.pending.is_some(), row.availability == Availability::Quarantined));
        if lease.is_none() && !caller.admin {
            if kept_out {
                let why = format!("vm {id} is quarantined, only the admin token may use it");
                return Err(Error::new(Reason::AdminOnly, why).with("vm", id).with("caller", &caller.name));
            }
            if left_over {
                return Err(busy(id, state));
            }
        }
        if let Some(lease) = lease
            && !caller.admin
            && !self.0.leases.is_holder(&lease, &caller.name)
        {
            return Err(Error::new(Reason::LeaseNotYours, format!("vm {id} is leased by somebody else"))
                .with("vm", id));
        }
        let suspended = handle.look(|row| row.lease.clone().filter(|_| row.suspended));
        if let Some(lease) = suspended {
            return Err(preempted(&lease, &handle.look(|row| row.state_reason.clone())));
        }
        Ok(handle)
    }

    /// A VM as it is now.
    pub(in crate::orchestrator) async fn vm_view(&self, handle: &Handle) -> VmView {
        let mut vm = handle.row();
        let run = handle.run();
        let guest = handle.guest();
        // What the guest says is in the row soon after; a guest that has not spoken yet had the row's when it last did.
        if !guest.ip_address.is_empty() {
            vm.ip_address.clone_from(&guest.ip_address);
        }
        let resident_bytes = match run {
            // It may end at any moment; then it occupies nothing.
            Some(_) => self.0.hv.resident_bytes(&vm.id).await.unwrap_or_default(),
            None => 0,
        };
        let files = match vm.state {
            VmState::Provisioning | VmState::Deleting => None,
            _ => self.0.hv.files(&vm.id).await.ok(),
        };
        VmView {
            guest: (guest.epoch > 0).then_some(guest),
            pid: run.map(|run| run.pid),
            resident_bytes,
            files: files.unwrap_or_default(),
            agent: vm.lease.as_ref().and_then(|_| self.0.agents.on(&vm.id)),
            vm,
        }
    }
}

/// A VM that its caller may use as long as its lease is the same.
struct Usable {
    handle: Handle,
    lease: Option<LeaseId>,
}

impl Usable {
    fn look<T>(&self, f: impl FnOnce(&crate::model::record::Vm) -> T) -> T {
        self.handle.look(f)
    }

    /// Runs a command in the VM's actor, unless somebody leased the VM, or gave it back, before its turn came.
    async fn call<R, F>(&self, command: F) -> Result<R>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Actor) -> BoxFuture<'a, Result<R>> + Send + 'static,
    {
        let lease = self.lease.clone();
        let checked = self.handle.call(move |vm| {
            let same = vm.still_held_by(lease.as_ref());
            Box::pin(async move {
                same?;
                command(vm).await
            })
        });
        checked.await
    }
}

fn busy(id: &VmId, state: VmState) -> Error {
    Error::new(Reason::VmBusy, format!("vm {id} is {state}, another move is under way"))
        .with("vm", id)
        .with("state", state)
        .retry_after(Duration::from_millis(200))
}

/// A move that ends running is over when the guest's agent answers, so that the next call finds it. A guest whose agent
/// never does is shown as it is when its time is over.
async fn arrived(handle: &Handle, boot: Duration, resume: Duration) {
    let limit = match handle.look(|row| row.state) {
        VmState::Booting => boot,
        VmState::Running => resume,
        _ => return,
    };
    let (mut rows, mut sessions) = (handle.rows(), handle.link.session());
    let answered = async {
        // Either sender goes with the VM, and then there is nothing to wait for.
        let _ = sessions.wait_for(Option::is_some).await;
        let _ = rows.wait_for(|row| row.state != VmState::Booting).await;
    };
    let mut rows = handle.rows();
    let stopped = rows.wait_for(|row| !matches!(row.state, VmState::Booting | VmState::Running));
    let _ = tokio::time::timeout(limit, async {
        tokio::select! {
            () = answered => {}
            _ = stopped => {}
        }
    })
    .await;
}
