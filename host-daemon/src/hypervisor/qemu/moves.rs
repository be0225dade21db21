//! The moves of one VM. Each is called with the VM's turn held.
//!
//! What a crash may interrupt is on disk before it happens: the record names a process before there is one, and it names
//! the saved memory until the guest has run on from it. So a record that says running and still names a memory belongs
//! to a guest that has not run, and `recover` can go back; without a memory, only the process itself knows the guest.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::timeout;
use uuid::Uuid;

use super::backend::{Inner, Live, Vm, blocking, lock};
use super::error::Context;
use super::files::{self, Durability};
use super::machine::{self, Ram};
use super::qmp::commands::{Cont, Halt, PowerDown, QueryStatus, RunState, StateForm};
use super::records::{MemoryId, MemoryUse, Phase, VmRecord};
use crate::hypervisor::{Found, HvError, HvResult, Observed, Origin, Rest, Run, Stop, VmDefinition};
use crate::model::template::Boot;

impl Inner {
    /// What a VM is now.
    pub(crate) async fn observe(&self, vm: &Vm) -> HvResult<Observed> {
        if let Some(live) = vm.live() {
            match live.qmp.run(&QueryStatus {}).await {
                Ok(status) if status.status == RunState::Running => return Ok(Observed::Running(live.run())),
                Ok(_) => return Ok(Observed::Paused(live.run())),
                Err(_) if live.process.has_ended() => return Ok(Observed::Off),
                Err(error) => return Err(error.into()),
            }
        }
        let record = vm.record();
        for disk in record.chain.iter().chain([&record.head]) {
            let path = self.paths.disk(*disk);
            if !path.is_file() {
                return Ok(Observed::Broken(format!("disk {} is gone", path.display())));
            }
        }
        // A process that ended by itself took the memory along, though the record may not say so yet.
        let lost = lock(&vm.live).is_some();
        match record.memory.filter(|_| !lost) {
            None => Ok(Observed::Off),
            Some(memory) if self.paths.manifest(memory.id).is_file() => Ok(Observed::Saved),
            Some(memory) => Ok(Observed::Broken(format!("memory {} is gone", memory.id.0))),
        }
    }

    /// All VMs, and what they are.
    pub(crate) async fn survey(&self) -> HvResult<Vec<Found>> {
        let vms: Vec<_> = lock(&self.vms).values().cloned().collect();
        let mut all = Vec::with_capacity(vms.len());
        for vm in vms {
            let observed = match self.observe(&vm).await {
                Ok(observed) => observed,
                // Asked in the middle of a call, perhaps; what it is will be seen.
                Err(error) => Observed::Broken(error.to_string()),
            };
            all.push(Found { definition: vm.record().definition, observed });
        }
        Ok(all)
    }

    /// Makes a VM.
    pub(crate) async fn define(self: &Arc<Self>, definition: &VmDefinition) -> HvResult<Rest> {
        if let Ok(vm) = self.vm(&definition.id) {
            let record = vm.record();
            if record.definition == *definition {
                return Ok(rest_of(&record));
            }
            return Err(HvError::AlreadyExists { kind: "vm", id: definition.id.to_string() });
        }
        let template = self.template(definition.origin.template())?;
        self.check_image(&template).await?;
        let (chain, memory) = self.clean(&definition.origin)?;
        self.make(definition, chain, memory).await
    }

    /// Makes a VM on frozen overlays.
    pub(crate) async fn make(
        self: &Arc<Self>,
        definition: &VmDefinition,
        chain: Vec<super::records::DiskId>,
        memory: Option<MemoryId>,
    ) -> HvResult<Rest> {
        let template = definition.origin.template();
        let record = VmRecord {
            definition: definition.clone(),
            phase: Phase::Rest,
            run: 0,
            chain,
            head: self.blank_disk(template, durability_of(memory)).await?,
            memory: memory.map(|id| MemoryUse { id, own: false }),
            ram: None,
            generation: definition.uid,
            checkpoints: std::collections::BTreeMap::new(),
        };
        let rest = rest_of(&record);
        let vm = Arc::new(Vm::new(record.clone()));
        // Named before it is on disk, so that the disks it shares are not taken for garbage meanwhile.
        lock(&self.vms).insert(definition.id.clone(), Arc::clone(&vm));
        let made = self.make_files(&vm).await;
        if made.is_err() {
            lock(&self.vms).remove(&definition.id);
            files::remove(&self.paths.vm(&definition.id))?;
            self.collect(record.references());
        }
        made.map(|()| rest)
    }

    async fn make_files(&self, vm: &Vm) -> HvResult<()> {
        files::private_dir(&self.paths.vm(&vm.id))?;
        self.fresh_vars(vm)?;
        self.update(vm, Durability::Host, |_| {}).await?;
        let folder = self.paths.vm(&vm.id);
        blocking(move || files::sync_parent(&folder).context("sync", &folder)).await
    }

    /// Gives a VM the variables its firmware came with. A saved memory has its own copy of them.
    fn fresh_vars(&self, vm: &Vm) -> HvResult<()> {
        let template = self.template_of(&vm.record())?;
        if !matches!(template.spec.boot, Boot::Uefi) {
            return Ok(());
        }
        let (pristine, vars) = (self.paths.template(&template.id).join("vars.fd"), self.paths.vars(&vm.id));
        std::fs::copy(&pristine, &vars).context("copy firmware variables to", &vars).map(drop)
    }

    /// The clean state of VMs of this origin.
    pub(crate) fn clean(&self, origin: &Origin) -> HvResult<(Vec<super::records::DiskId>, Option<MemoryId>)> {
        match origin {
            Origin::Golden(_) => Ok((Vec::new(), None)),
            Origin::Template(id) => {
                let template = self.template(id)?;
                let record = lock(&template.record);
                let sealed = record.sealed.as_ref().ok_or_else(|| HvError::NotFound {
                    kind: "prepared state of template",
                    id: id.to_string(),
                })?;
                Ok((sealed.snapshot.chain.clone(), Some(sealed.snapshot.memory)))
            }
        }
    }

    /// Off to running.
    pub(crate) async fn start(self: &Arc<Self>, vm: &Arc<Vm>) -> HvResult<Run> {
        self.settle(vm).await?;
        if let Some(live) = vm.live() {
            return self.must_run(vm, &live, "start").await;
        }
        let before = vm.record();
        if before.memory.is_some() {
            return Err(vm.illegal("start"));
        }
        self.check_image(&*self.template(before.definition.origin.template())?).await?;
        let ram = self.fresh_ram(vm).await?;
        let run = self.next_run();
        self.update(vm, Durability::Daemon, |record| {
            record.phase = Phase::Running;
            record.run = run;
        })
        .await?;
        // Without a state to wait for, the CPUs run as soon as the machine is built.
        match self.launch(vm, ram, false).await {
            Ok(live) => {
                self.attach(vm, &live);
                self.collect(before.references());
                Ok(live.run())
            }
            Err(error) => {
                self.update(vm, Durability::Daemon, |record| record.phase = Phase::Rest).await?;
                Err(error)
            }
        }
    }

    /// Memory for a process that does not fork a template's: a file where a template is going to be sealed from it.
    async fn fresh_ram(&self, vm: &Vm) -> HvResult<Ram> {
        let record = vm.record();
        if !self.fork || !matches!(record.definition.origin, Origin::Golden(_)) {
            return Ok(Ram::Private);
        }
        let bytes = self.template_of(&record)?.spec.memory_mb << 20;
        let id = MemoryId::new();
        let file = self.paths.ram(id);
        files::private_dir(&self.paths.memory(id))?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        made.and_then(|made| made.set_len(bytes)).context("make", &file)?;
        self.update(vm, Durability::Daemon, |record| record.ram = Some(id)).await?;
        Ok(Ram::Shared(file))
    }

    async fn must_run(&self, vm: &Vm, live: &Live, action: &'static str) -> HvResult<Run> {
        if live.qmp.run(&QueryStatus {}).await?.status == RunState::Running {
            Ok(live.run())
        } else {
            Err(HvError::IllegalState { vm: vm.id.clone(), state: "paused".to_owned(), action })
        }
    }

    /// Saved or paused to running.
    pub(crate) async fn resume(self: &Arc<Self>, vm: &Arc<Vm>) -> HvResult<Run> {
        self.settle(vm).await?;
        if let Some(live) = vm.live() {
            live.qmp.run(&Cont {}).await?;
            return Ok(live.run());
        }
        let before = vm.record();
        let Some(memory) = before.memory else { return Err(vm.illegal("resume")) };
        self.check_image(&*self.template(before.definition.origin.template())?).await?;
        let (form, fork) = self.check_state(vm, memory.id)?;
        let ram = match fork {
            Some(fork) => fork,
            None => self.fresh_ram(vm).await?,
        };
        let run = self.next_run();
        let generation = Uuid::new_v4();
        {
            let mut record = lock(&vm.record);
            record.run = run;
            if !memory.own {
                record.generation = generation;
            }
        }
        // A memory that others share can always be begun from again, after a crash of the host too. Of its own there is
        // one: until the record on the disk says that the guest may run on from it, it has not.
        if !memory.own {
            self.update(vm, Durability::Daemon, |record| record.phase = Phase::Running).await?;
        }
        let resumed = self.bring_up(vm, ram, memory.id, form).await;
        let recorded = if memory.own && resumed.is_ok() {
            self.update(vm, Durability::Host, |record| record.phase = Phase::Running).await.map(drop)
        } else {
            Ok(())
        };
        let run_on = match (recorded, resumed) {
            (Ok(()), Ok(live)) => match live.qmp.run(&Cont {}).await {
                Ok(_) => Ok(live),
                Err(error) => Err((Some(live), error.into())),
            },
            (Err(error), Ok(live)) => Err((Some(live), error)),
            (_, Err(error)) => Err((None, error)),
        };
        match run_on {
            Ok(live) => {
                self.attach(vm, &live);
                self.update(vm, Durability::Daemon, |record| record.memory = None).await?;
                // Its own, or that of a checkpoint or fork that is gone.
                self.collect(before.references());
                Ok(live.run())
            }
            Err((live, error)) => {
                if let Some(live) = live {
                    live.end().await?;
                    files::remove(&live.process.dir)?;
                }
                self.update(vm, Durability::Daemon, |record| record.phase = Phase::Rest).await?;
                Err(error)
            }
        }
    }

    async fn bring_up(&self, vm: &Vm, ram: Ram, memory: MemoryId, form: StateForm) -> HvResult<Arc<Live>> {
        let live = self.launch(vm, ram, true).await?;
        match self.read_state(&live, memory, form).await {
            Ok(()) => Ok(live),
            Err(error) => {
                live.end().await?;
                files::remove(&live.process.dir)?;
                Err(error)
            }
        }
    }

    /// Running to paused.
    pub(crate) async fn pause(&self, vm: &Vm) -> HvResult<()> {
        self.settle(vm).await?;
        vm.running("pause")?.qmp.run(&Halt {}).await?;
        Ok(())
    }

    /// Running or paused to saved.
    pub(crate) async fn save(&self, vm: &Vm) -> HvResult<()> {
        self.settle(vm).await?;
        let Some(live) = vm.live() else {
            return if vm.record().memory.is_some() { Ok(()) } else { Err(vm.illegal("save")) };
        };
        let memory = MemoryId::new();
        let paused = self.begin_saving(vm, &live, memory, None).await?;
        if let Err(error) = self.write_state(vm, &live, memory, StateForm::Mapped).await {
            self.go_on(vm, &live, paused).await;
            return Err(error);
        }
        let head = self.paths.disk(vm.record().head);
        let synced = blocking(move || files::sync_new(&head)).await;
        if let Err(error) = synced {
            self.go_on(vm, &live, paused).await;
            return Err(error);
        }
        let before = vm.record().references();
        self.update(vm, Durability::Host, |record| {
            record.phase = Phase::Rest;
            record.memory = Some(MemoryUse { id: memory, own: true });
            record.ram = None;
        })
        .await?;
        self.detach(vm).await?;
        self.collect(before);
        Ok(())
    }

    /// Stops the CPUs to write the state out, and records that; says whether they stood still before.
    pub(crate) async fn begin_saving(
        &self,
        vm: &Vm,
        live: &Live,
        memory: MemoryId,
        next_head: Option<super::records::DiskId>,
    ) -> HvResult<bool> {
        let paused = live.qmp.run(&QueryStatus {}).await?.status != RunState::Running;
        self.update(vm, Durability::Daemon, |record| {
            record.phase = Phase::Saving { memory, paused, next_head };
        })
        .await?;
        live.qmp.run(&Halt {}).await?;
        Ok(paused)
    }

    /// Back to what a VM did before its state was written out.
    pub(crate) async fn go_on(&self, vm: &Vm, live: &Live, paused: bool) {
        let before = vm.record().references();
        let recorded = self.update(vm, Durability::Daemon, |record| record.phase = Phase::Running).await;
        self.collect(before);
        // A process that is gone is told by its supervisor.
        if let Err(error) = recorded.map(drop).and(Self::run_on(live, paused).await) {
            tracing::warn!(vm = %vm.id, %error, "a vm does not go on after its state was written");
        }
    }

    /// Ends the standstill of a written state. QEMU gives its disks back and allows another save only when the CPUs have
    /// run, so a VM that was paused runs for the moment between two commands.
    pub(crate) async fn run_on(live: &Live, paused: bool) -> HvResult<()> {
        let run = live.qmp.send(&Cont {});
        let halt = paused.then(|| live.qmp.send(&Halt {}));
        run.answer().await?;
        if let Some(halt) = halt {
            halt.answer().await?;
        }
        Ok(())
    }

    /// Any state to off.
    pub(crate) async fn stop(&self, vm: &Vm, how: Stop) -> HvResult<()> {
        self.settle(vm).await?;
        if let Some(live) = vm.live() {
            live.expected.store(true, Ordering::Release);
            if let Stop::Graceful(patience) = how {
                // A paused guest hears no button.
                let pressed = match live.qmp.run(&Cont {}).await {
                    Ok(_) => live.qmp.run(&PowerDown {}).await,
                    Err(error) => Err(error),
                };
                if pressed.is_ok() && timeout(patience, live.process.ended()).await.is_err() {
                    tracing::info!(vm = %vm.id, "guest did not shut down in time, switching it off");
                }
            }
            self.detach(vm).await?;
        }
        let before = vm.record();
        let head = self.paths.disk(before.head);
        blocking(move || files::sync_new(&head)).await?;
        self.update(vm, Durability::Host, |record| {
            record.phase = Phase::Rest;
            record.memory = None;
            record.ram = None;
        })
        .await?;
        self.collect(before.references());
        Ok(())
    }

    /// Any state to clean and at rest.
    pub(crate) async fn reset(&self, vm: &Vm) -> HvResult<Rest> {
        let (chain, memory) = self.clean(&vm.record().definition.origin)?;
        self.put_back(vm, chain, memory).await
    }

    /// Any state to this disk and memory, at rest.
    pub(crate) async fn put_back(
        &self,
        vm: &Vm,
        chain: Vec<super::records::DiskId>,
        memory: Option<MemoryId>,
    ) -> HvResult<Rest> {
        let before = vm.record();
        let template = before.definition.origin.template();
        let head = self.blank_disk(template, durability_of(memory)).await?;
        // The record first: one that rests ends its process, whoever finds it, and the process knows nothing of the new
        // disk. The other way round a crash in between would leave a VM with neither process nor memory.
        let record = self
            .update(vm, Durability::Host, |record| {
                record.phase = Phase::Rest;
                record.chain = chain;
                record.head = head;
                record.memory = memory.map(|id| MemoryUse { id, own: false });
                record.ram = None;
            })
            .await?;
        self.detach(vm).await?;
        self.fresh_vars(vm)?;
        self.collect(before.references());
        Ok(rest_of(&record))
    }

    /// Removes a VM.
    pub(crate) async fn delete(&self, vm: &Vm) -> HvResult<()> {
        self.detach(vm).await?;
        let references = vm.record().references();
        // The record first: without it the rest is garbage, whoever finds it.
        let record = self.paths.vm_record(&vm.id);
        blocking(move || {
            files::remove(&record)?;
            files::sync_parent(&record).context("sync the removal of", &record)
        })
        .await?;
        files::remove(&self.paths.vm(&vm.id))?;
        lock(&self.vms).remove(&vm.id);
        self.collect(references);
        Ok(())
    }

    /// Room for one more frozen overlay.
    pub(crate) fn check_chain(vm: &Vm) -> HvResult<()> {
        if vm.record().chain.len() < machine::MAX_CHAIN {
            return Ok(());
        }
        Err(HvError::Process(format!(
            "it stands on {} checkpoints and forks, no more are possible until it is reset",
            machine::MAX_CHAIN
        )))
    }
}

/// How an empty disk for this memory, one that others share or none, must be made.
fn durability_of(memory: Option<MemoryId>) -> Durability {
    if memory.is_some() { Durability::Daemon } else { Durability::Host }
}

/// Where a VM without a process is.
pub(crate) fn rest_of(record: &VmRecord) -> Rest {
    if record.memory.is_some() { Rest::Saved } else { Rest::Off }
}
