//! Writing a VM's memory out, and reading it in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Inner, Live, Vm, blocking};
use super::error::Context;
use super::files::{self, Durability};
use super::machine::Ram;
use super::qmp::commands::{
    Migrate, MigrateCancel, MigrateIncoming, MigrateSetCapabilities, MigrateSetParameters, MigrationStatus,
    QueryMigrate, StateForm,
};
use super::records::{Manifest, MemoryId};
use crate::hypervisor::{HvError, HvResult};

/// At 100 MB/s, a slow disk, this is 60 GB of memory.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(600);
/// Threads that read and write pages; more than the cores of a small host gain nothing.
const CHANNELS: u8 = 2;

impl Inner {
    /// Writes the state of a VM whose CPUs stand still. The files are on the medium afterwards; what fails leaves none.
    pub(crate) async fn write_state(
        &self,
        vm: &Vm,
        live: &Live,
        memory: MemoryId,
        form: StateForm,
    ) -> HvResult<()> {
        let written = self.try_write_state(vm, live, memory, form).await;
        if written.is_err() && form == StateForm::Mapped {
            files::remove(&self.paths.memory(memory))?;
        }
        written
    }

    async fn try_write_state(&self, vm: &Vm, live: &Live, memory: MemoryId, form: StateForm) -> HvResult<()> {
        files::private_dir(&self.paths.memory(memory))?;
        let state = self.paths.state(memory);
        let qmp = &live.qmp;
        qmp.forget_migration();
        let capabilities = qmp.send(&MigrateSetCapabilities::of(form));
        let parameters = qmp.send(&MigrateSetParameters::unlimited(CHANNELS));
        let begun = qmp.send(&Migrate::to(&state));
        capabilities.answer().await?;
        parameters.answer().await?;
        begun.answer().await?;
        match qmp.migration_end(TRANSFER_DEADLINE).await {
            Ok(MigrationStatus::Completed) => {}
            Ok(_) => return Err(HvError::Process(failure(live).await)),
            Err(error) => {
                // Over time: let it go, so that the VM can go on.
                let _ = qmp.run(&MigrateCancel {}).await;
                return Err(error.into());
            }
        }
        let template = self.template_of(&vm.record())?;
        let signature = self.signature(&template);
        let command_line = Self::command_line(live.run().pid);
        let (paths, ram) = (self.paths.clone(), self.paths.ram(memory));
        blocking(move || {
            let length = |path: &Path| fs::metadata(path).map(|facts| facts.len()).context("look at", path);
            let ram_bytes = match form {
                StateForm::Devices => {
                    files::sync_file(&ram).context("sync", &ram)?;
                    // From now on it is read by many and written by none.
                    fs::set_permissions(&ram, fs::Permissions::from_mode(0o400)).context("protect", &ram)?;
                    Some(length(&ram)?)
                }
                StateForm::Mapped => None,
            };
            files::sync_file(&state).context("sync", &state)?;
            fs::set_permissions(&state, fs::Permissions::from_mode(0o400)).context("protect", &state)?;
            let manifest =
                Manifest { form, signature, state_bytes: length(&state)?, ram_bytes, command_line };
            files::write_json(&paths.manifest(memory), &manifest, Durability::Host)?;
            let folder = paths.memory(memory);
            files::sync_parent(&folder).context("sync", &folder)
        })
        .await
    }

    /// Checks that a saved memory is whole and fits, and says where a process that reads it has its RAM.
    pub(crate) fn check_state(&self, vm: &Vm, memory: MemoryId) -> HvResult<(StateForm, Option<Ram>)> {
        let damaged = |what: &str| HvError::StateDamaged(format!("{what} of memory {}", memory.0));
        let manifest: Manifest =
            files::read_json(&self.paths.manifest(memory)).map_err(|error| damaged(&error.to_string()))?;
        let here = self.signature(&self.template_of(&vm.record())?);
        if manifest.signature != here {
            return Err(HvError::Incompatible(format!(
                "it was saved on [{}], this is [{here}]",
                manifest.signature
            )));
        }
        let length = |path: &Path| fs::metadata(path).map(|facts| facts.len()).ok();
        if length(&self.paths.state(memory)) != Some(manifest.state_bytes) {
            return Err(damaged("the state file's length is not that"));
        }
        let ram = self.paths.ram(memory);
        if manifest.ram_bytes.is_some() && length(&ram) != manifest.ram_bytes {
            return Err(damaged("the RAM file's length is not that"));
        }
        Ok((manifest.form, (manifest.form == StateForm::Devices).then_some(Ram::Fork(ram))))
    }

    /// Checks the memory of a VM that rests.
    pub(crate) fn check_memory(&self, vm: &Vm) -> HvResult<()> {
        match vm.record().memory {
            Some(memory) if vm.live().is_none() => self.check_state(vm, memory.id).map(drop),
            _ => Ok(()),
        }
    }

    /// Reads a saved state into a process that waits for it. The CPUs stand still afterwards.
    pub(crate) async fn read_state(
        &self,
        live: &Arc<Live>,
        memory: MemoryId,
        form: StateForm,
    ) -> HvResult<()> {
        let qmp = &live.qmp;
        qmp.forget_migration();
        let capabilities = qmp.send(&MigrateSetCapabilities::of(form));
        let parameters = qmp.send(&MigrateSetParameters::unlimited(CHANNELS));
        let begun = qmp.send(&MigrateIncoming::from(&self.paths.state(memory)));
        capabilities.answer().await?;
        parameters.answer().await?;
        begun.answer().await?;
        match qmp.migration_end(TRANSFER_DEADLINE).await {
            Ok(MigrationStatus::Completed) => Ok(()),
            // A process that can't read its state says why and ends.
            Ok(_) | Err(super::qmp::QmpError::Closed) => {
                let words = match tokio::time::timeout(Duration::from_secs(5), live.process.ended()).await {
                    Ok(exit) => exit.to_string(),
                    Err(_) => failure(live).await,
                };
                Err(HvError::StateDamaged(words))
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn failure(live: &Live) -> String {
    match live.qmp.run(&QueryMigrate {}).await {
        Ok(migration) => migration.error.unwrap_or_else(|| "qemu gave no reason".to_owned()),
        Err(_) => match tokio::time::timeout(Duration::from_secs(2), live.process.ended()).await {
            Ok(exit) => exit.to_string(),
            Err(_) => "qemu does not answer".to_owned(),
        },
    }
}
