//! Golden disks and what is prepared from them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::{Inner, Template, Vm, blocking, lock};
use super::error::{Context, io_error};
use super::files::{self, Check, Durability, FileFacts};
use super::image::{self, Format};
use super::qmp::commands::{Halt, StateForm};
use super::records::{MemoryId, Sealed, Snapshot, TemplateRecord};
use super::{machine, network, program};
use crate::hypervisor::{DiskFacts, HvError, HvResult, Origin};
use crate::model::ids::TemplateId;
use crate::model::template::{Boot, CloneMethod, TemplateSpec};

impl Inner {
    /// Checks and registers a golden disk.
    pub(crate) async fn import(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts> {
        if lock(&self.templates).contains_key(id) {
            return Err(HvError::AlreadyExists { kind: "template", id: id.to_string() });
        }
        machine::check(spec, self.host_mb)?;
        network::check(&spec.network, &self.config.bridge_helper)?;
        let wanted = spec.disk_format.as_deref().map(Format::parse).transpose()?;
        let mut spec = spec.clone();
        spec.disk_path = readable("disk_path", &spec.disk_path)?;
        let mut firmware = None;
        match &mut spec.boot {
            Boot::Kernel { kernel, initrd, .. } => {
                *kernel = readable("kernel_path", kernel)?;
                if let Some(initrd) = initrd {
                    *initrd = readable("initrd_path", initrd)?;
                }
            }
            Boot::Bios => {}
            Boot::Uefi => firmware = Some(machine::firmware(&self.config.firmware_dirs)?),
        }
        let image = image::inspect(&self.config.img_binary, &spec.disk_path, wanted).await?;
        let facts = hash(&spec).await?;
        let record = TemplateRecord {
            id: id.clone(),
            spec,
            format: image.format,
            disk: facts.0,
            kernel: facts.1,
            initrd: facts.2,
            firmware: firmware.as_ref().map(|(code, _)| code.clone()),
            machine: self.version.machine.clone(),
            sealed: None,
        };
        let made = self.make_template(&record, image.virtual_bytes, firmware.map(|(_, vars)| vars)).await;
        if made.is_err() {
            files::remove(&self.paths.template(id))?;
        }
        made?;
        let facts = DiskFacts {
            format: record.format.name().to_owned(),
            file_bytes: record.disk.bytes(),
            sha256: record.disk.sha256.clone(),
        };
        lock(&self.templates).insert(id.clone(), Arc::new(Template::new(record)));
        Ok(facts)
    }

    async fn make_template(
        &self,
        record: &TemplateRecord,
        bytes: u64,
        vars: Option<PathBuf>,
    ) -> HvResult<()> {
        let folder = self.paths.template(&record.id);
        files::remove(&folder)?;
        files::private_dir(&folder)?;
        // One for all overlays of this template: copying it is how a disk is made.
        let blank = self.paths.blank(&record.id);
        let args = ["create", "-q", "-f", "qcow2"].map(std::ffi::OsString::from);
        let args = [&args[..], &[blank.clone().into_os_string(), bytes.to_string().into()]].concat();
        program::output(&self.config.img_binary, &args).await?;
        let (path, record) = (self.paths.template_record(&record.id), record.clone());
        blocking(move || {
            if let Some(vars) = vars {
                let own = folder.join("vars.fd");
                std::fs::copy(&vars, &own).context("copy firmware variables to", &own)?;
                files::sync_file(&own).context("sync", &own)?;
            }
            files::sync_file(&blank).context("sync", &blank)?;
            files::write_json(&path, &record, Durability::Host)?;
            files::sync_parent(&folder).context("sync", &folder)
        })
        .await
    }

    /// Makes sure that what VMs of a template stand on is what was registered. Reads the files only when their size,
    /// time or inode differ from the record.
    pub(crate) async fn check_image(&self, template: &Template) -> HvResult<()> {
        if lock(&template.record).files().all(|(path, facts)| facts.is_untouched(path)) {
            return Ok(());
        }
        let _checking = template.checking.lock().await;
        let record = lock(&template.record).clone();
        let checked = blocking(move || {
            let mut touched = Vec::new();
            for (path, facts) in record.files() {
                match facts.check(path) {
                    Check::Same => {}
                    Check::Touched(now) => touched.push((path.clone(), now)),
                    Check::Changed => return Err(HvError::ImageChanged { path: path.clone() }),
                }
            }
            Ok(touched)
        });
        let touched = checked.await?;
        let mut record = lock(&template.record);
        for (path, now) in &touched {
            record.restamp(path, now);
        }
        if !touched.is_empty() {
            files::write_json(&self.paths.template_record(&record.id), &*record, Durability::Daemon)?;
        }
        Ok(())
    }

    /// Makes the prepared state from a running VM, which is gone afterwards.
    pub(crate) async fn seal(&self, id: &TemplateId, vm: &Vm) -> HvResult<CloneMethod> {
        let template = self.template(id)?;
        let record = vm.record();
        if record.definition.origin != Origin::Golden(id.clone()) {
            return Err(HvError::IllegalState {
                vm: vm.id.clone(),
                state: "not made from that template's golden disk".to_owned(),
                action: "seal a template from",
            });
        }
        let sealed = self.try_seal(&template, vm).await;
        // The disk and memory now have another name, or are garbage.
        self.delete(vm).await?;
        sealed
    }

    async fn try_seal(&self, template: &Template, vm: &Vm) -> HvResult<CloneMethod> {
        if lock(&template.record).sealed.is_some() {
            let id = lock(&template.record).id.to_string();
            return Err(HvError::AlreadyExists { kind: "prepared state of template", id });
        }
        self.settle(vm).await?;
        let live = vm.running("seal a template from")?;
        live.qmp.run(&Halt {}).await?;
        let record = vm.record();
        let (memory, form, method) = match record.ram {
            Some(ram) => (ram, StateForm::Devices, CloneMethod::Fork),
            None => (MemoryId::new(), StateForm::Mapped, CloneMethod::Restore),
        };
        self.write_state(vm, &live, memory, form).await?;
        // Ended before its disk is synced and shared: from here on nobody writes to it.
        live.end().await?;
        let head = self.paths.disk(record.head);
        let chain = [&record.chain[..], &[record.head]].concat();
        let sealed = Sealed { snapshot: Snapshot { chain, memory }, method };
        let mut changed = lock(&template.record).clone();
        changed.sealed = Some(sealed);
        let (path, written) = (self.paths.template_record(&changed.id), changed.clone());
        blocking(move || {
            files::sync_new(&head)?;
            files::write_json(&path, &written, Durability::Host)
        })
        .await?;
        *lock(&template.record) = changed;
        Ok(method)
    }

    /// Forgets a template.
    pub(crate) async fn delete_template(&self, id: &TemplateId) -> HvResult<()> {
        let Ok(template) = self.template(id) else { return Ok(()) };
        let vms: Vec<_> = lock(&self.vms).values().cloned().collect();
        if let Some(vm) = vms.iter().find(|vm| lock(&vm.record).definition.origin.template() == id) {
            return Err(HvError::IllegalState {
                vm: vm.id.clone(),
                state: "still there".to_owned(),
                action: "delete the template of",
            });
        }
        let record = self.paths.template_record(id);
        blocking(move || {
            files::remove(&record)?;
            files::sync_parent(&record).context("sync the removal of", &record)
        })
        .await?;
        files::remove(&self.paths.template(id))?;
        lock(&self.templates).remove(id);
        let references = lock(&template.record).references();
        self.collect(references);
        Ok(())
    }
}

/// A file we can read, by its absolute path, which must be text because QEMU is told it as JSON.
fn readable(field: &'static str, path: &Path) -> HvResult<PathBuf> {
    let missing = || HvError::FileNotFound { field, path: path.to_owned() };
    let absolute = std::fs::canonicalize(path).map_err(|_| missing())?;
    let is_file =
        std::fs::File::open(&absolute).and_then(|file| file.metadata()).is_ok_and(|facts| facts.is_file());
    if !is_file {
        return Err(missing());
    }
    if absolute.to_str().is_none() {
        return Err(HvError::BadSetting { field, why: "the path must be UTF-8".to_owned() });
    }
    Ok(absolute)
}

type Facts = (FileFacts, Option<FileFacts>, Option<FileFacts>);

/// Reads the whole of the disk, the kernel and the initial RAM disk.
async fn hash(spec: &TemplateSpec) -> HvResult<Facts> {
    let disk = spec.disk_path.clone();
    let (kernel, initrd) = match &spec.boot {
        Boot::Kernel { kernel, initrd, .. } => (Some(kernel.clone()), initrd.clone()),
        Boot::Bios | Boot::Uefi => (None, None),
    };
    blocking(move || {
        let facts = |path: PathBuf| FileFacts::of(&path).map_err(|error| io_error("read", &path, error));
        Ok((facts(disk)?, kernel.map(facts).transpose()?, initrd.map(facts).transpose()?))
    })
    .await
}
