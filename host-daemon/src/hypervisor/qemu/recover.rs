//! Finding everything again after a start.
//!
//! The records say what was meant, the processes say what is. A process that bears our marker and whose VM has a record
//! is taken on; any other of ours is ended. A VM in the middle of a save goes on running. One in the middle of a resume
//! runs if its CPUs do, and is saved otherwise.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::backend::{Inner, Live, Template, Vm, lock};
use super::error::Context;
use super::files::{self, Durability};
use super::machine::marker;
use super::process::{self, Process};
use super::qmp::commands::{MigrateCancel, QueryBlock, QueryMigrate, QueryStatus, RunState};
use super::records::{DiskId, Phase, TemplateRecord, VmRecord};
use crate::hypervisor::{Found, HvError, HvResult, Observed};

/// A cancelled migration ends in milliseconds; on a loaded host it may take its time.
const CANCEL_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Differs after each start of the host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

impl Inner {
    /// Reads the records, takes processes on, removes what nobody names.
    pub(crate) async fn recover(self: &Arc<Self>) -> HvResult<Vec<Found>> {
        for record in records::<TemplateRecord>(&self.paths.data.join("templates"), "template.json")? {
            let (id, template) = (record.id.clone(), Arc::new(Template::new(record)));
            if let Err(error) = self.check_image(&template).await {
                // Its VMs can't be used until the file is back; each use says so again.
                tracing::error!(template = %id, %error, "template can't be used");
            }
            lock(&self.templates).insert(id, template);
        }
        for record in records::<VmRecord>(&self.paths.data.join("vms"), "vm.json")? {
            let id = record.definition.id.clone();
            lock(&self.vms).insert(id, Arc::new(Vm::new(record)));
        }
        let boot = fs::read_to_string(BOOT).unwrap_or_default();
        let seen = self.paths.data.join("boot");
        let rebooted = files::read_json::<String>(&seen).map_or(true, |last| last != boot);
        let mut processes = self.processes().await?;
        let vms: Vec<_> = lock(&self.vms).values().cloned().collect();
        let mut all = Vec::new();
        for vm in vms {
            let observed = match self.recover_vm(&vm, processes.remove(vm.id.as_str()), rebooted).await {
                Ok(()) => self.observe(&vm).await,
                Err(error) => Err(error),
            };
            let observed = observed.unwrap_or_else(|error| Observed::Broken(error.to_string()));
            all.push(Found { definition: vm.record().definition, observed });
        }
        self.sweep()?;
        files::write_json(&seen, &boot, Durability::Host)?;
        all.sort_by(|a, b| a.definition.id.cmp(&b.definition.id));
        Ok(all)
    }

    /// Our processes by their VM; those without one are ended.
    async fn processes(&self) -> HvResult<HashMap<String, Process>> {
        let mut all = HashMap::new();
        for found in process::marked(&marker(&self.instance, ""))? {
            let vm =
                lock(&self.vms).iter().find(|(id, _)| id.as_str() == found.vm).map(|(_, vm)| Arc::clone(vm));
            let (dir, number) = match &vm {
                Some(vm) => {
                    let record = vm.record();
                    (self.paths.run_dir(record.definition.uid), record.run)
                }
                None => (self.paths.run.clone(), 0),
            };
            let Ok(process) = Process::adopt(found.pid, &dir, number) else { continue };
            // Held by its descriptor now, so this look is at the process that will be ended or taken on.
            if !process::bears(found.pid, &marker(&self.instance, &found.vm)) {
                continue;
            }
            if vm.is_some() && !all.contains_key(&found.vm) {
                all.insert(found.vm, process);
            } else {
                tracing::warn!(pid = found.pid, vm = %found.vm, "ending a vm process that nobody owns");
                if let Err(error) = process.kill().await {
                    tracing::error!(pid = found.pid, %error, "it does not end");
                }
            }
        }
        Ok(all)
    }

    async fn recover_vm(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        process: Option<Process>,
        rebooted: bool,
    ) -> HvResult<()> {
        let record = vm.record();
        let Some(process) = process else { return self.rest(vm, &record, rebooted).await };
        if record.phase == Phase::Rest {
            // Saved or reset, and about to be ended.
            return self.end(vm, process).await;
        }
        let qmp = match process.monitor().await {
            Ok(qmp) => qmp,
            Err(error) => {
                tracing::warn!(vm = %vm.id, %error, "ending a vm process that does not answer");
                self.end(vm, process).await?;
                return self.rest(vm, &record, rebooted).await;
            }
        };
        let status = qmp.run(&QueryStatus {}).await?.status;
        let live = Arc::new(Live { process, qmp, expected: AtomicBool::new(false) });
        match record.phase {
            Phase::Saving { paused, next_head, .. } => {
                self.keep_running(vm, &live, status, paused, next_head).await?;
            }
            // The guest has not run on from its memory, so the memory is still good.
            Phase::Running if record.memory.is_some() && status != RunState::Running => {
                live.end().await?;
                files::remove(&live.process.dir)?;
                self.update(vm, Durability::Host, |record| record.phase = Phase::Rest).await?;
                return Ok(());
            }
            Phase::Running | Phase::Rest => {
                self.update(vm, Durability::Daemon, |record| record.memory = None).await?;
            }
        }
        self.attach(vm, &live);
        Ok(())
    }

    /// A save or checkpoint that was cut off is undone. A new overlay stays where QEMU already uses it.
    async fn keep_running(
        &self,
        vm: &Vm,
        live: &Live,
        status: RunState,
        paused: bool,
        next_head: Option<DiskId>,
    ) -> HvResult<()> {
        let status = Self::end_migration(live, status).await?;
        if let Some(next) = next_head {
            let drives = live.qmp.run(&QueryBlock {}).await?;
            let node = next.node();
            if drives
                .iter()
                .any(|drive| drive.inserted.as_ref().and_then(|top| top.node.as_ref()) == Some(&node))
            {
                self.update(vm, Durability::Daemon, |record| {
                    record.chain.push(record.head);
                    record.head = next;
                })
                .await?;
            }
        }
        if status != RunState::Running {
            Self::run_on(live, paused).await?;
        }
        self.update(vm, Durability::Daemon, |record| {
            record.phase = Phase::Running;
            record.memory = None;
        })
        .await?;
        Ok(())
    }

    /// Ends the writing of a state that nobody waits for any more, and says what the VM does then. While it is written
    /// the VM is merely paused; if it were let run before the end, QEMU would stop it again when all is written.
    async fn end_migration(live: &Live, status: RunState) -> HvResult<RunState> {
        let underway = async || {
            let migration = live.qmp.run(&QueryMigrate {}).await?;
            HvResult::Ok(migration.status.is_some_and(|status| !status.is_end()))
        };
        if !underway().await? {
            return Ok(status);
        }
        live.qmp.run(&MigrateCancel {}).await?;
        let ended = async {
            while underway().await? {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            HvResult::Ok(())
        };
        tokio::time::timeout(CANCEL_DEADLINE, ended)
            .await
            .map_err(|_| HvError::Timeout("cancelling the save of a vm"))??;
        Ok(live.qmp.run(&QueryStatus {}).await?.status)
    }

    async fn end(&self, vm: &Vm, process: Process) -> HvResult<()> {
        process.kill().await?;
        files::remove(&self.paths.run_dir(vm.record().definition.uid))
    }

    /// A VM whose process is gone. A memory that others share is still good with an empty disk on top; one of its own is
    /// not, if the guest may have run on from it.
    async fn rest(&self, vm: &Vm, record: &VmRecord, rebooted: bool) -> HvResult<()> {
        files::remove(&self.paths.run_dir(record.definition.uid))?;
        let shared = record.memory.is_some_and(|memory| !memory.own);
        // After a reboot neither the record's last word nor its empty disk are sure to have reached the medium.
        if record.phase == Phase::Rest && !(shared && rebooted) {
            return Ok(());
        }
        let keep = shared && !matches!(record.phase, Phase::Saving { .. });
        let template = record.definition.origin.template();
        let head = if keep { self.blank_disk(template, Durability::Host).await? } else { record.head };
        self.update(vm, Durability::Host, |record| {
            record.phase = Phase::Rest;
            record.head = head;
            record.ram = None;
            record.memory = record.memory.filter(|_| keep);
        })
        .await?;
        Ok(())
    }

    /// Removes disks, memory and folders that no record names.
    fn sweep(&self) -> HvResult<()> {
        let named: HashSet<String> = self.named().iter().map(ToString::to_string).collect();
        for folder in ["disks", "memory"] {
            each(&self.paths.data.join(folder), |name, path| {
                let id = name.strip_suffix(".qcow2").unwrap_or(name);
                if named.contains(id) { Ok(()) } else { files::remove(path) }
            })?;
        }
        for (folder, record) in [("templates", "template.json"), ("vms", "vm.json")] {
            each(&self.paths.data.join(folder), |_, path| {
                if is_written(&path.join(record)) { Ok(()) } else { files::remove(path) }
            })?;
        }
        let vms: Vec<_> = lock(&self.vms).values().cloned().collect();
        let live: HashSet<_> =
            vms.iter().filter_map(|vm| vm.live().map(|live| live.process.dir.clone())).collect();
        each(&self.paths.run, |_, path| if live.contains(path) { Ok(()) } else { files::remove(path) })
    }
}

fn each(folder: &Path, mut visit: impl FnMut(&str, &Path) -> HvResult<()>) -> HvResult<()> {
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        if let Some(name) = entry.file_name().to_str() {
            visit(name, &entry.path())?;
        }
    }
    Ok(())
}

/// Whether a record is there. One that is empty was being made when the host crashed.
fn is_written(record: &Path) -> bool {
    fs::metadata(record).is_ok_and(|facts| facts.is_file() && facts.len() > 0)
}

/// Records in the folders of a folder; one that can't be read stops everything, since sweeping without it would remove
/// what it names.
fn records<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> HvResult<Vec<T>> {
    let mut all = Vec::new();
    each(folder, |_, path| {
        let path = path.join(name);
        if is_written(&path) {
            all.push(files::read_json(&path)?);
        }
        Ok(())
    })?;
    Ok(all)
}
