//! What is kept on disk, and where.
//!
//! ```text
//! data_dir/
//!   lock, instance, boot      one daemon at a time; our marker; the host's start that it last ran in
//!   templates/ID/             template.json, blank.qcow2, vars.fd
//!   vms/ID/                   vm.json, vars.fd
//!   disks/UUID.qcow2          one disk overlay: written by the VM whose head it is, or frozen
//!   memory/UUID/              manifest.json, state, and ram where memory is kept apart from the devices' state
//! run_dir/UID/                qmp, agent, log: while a VM runs
//! ```
//!
//! Disks and memory are shared by reference: the records of templates and VMs name them, and what no record names is
//! garbage. A record is replaced whole, so it never names half of a change. An overlay's file does not name the one
//! below it: the chain is in the record and is given to QEMU in full, with each one's format, so that nothing a guest
//! writes into a disk can make QEMU open another file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::FileFacts;
use super::image::Format;
use super::qmp::commands::StateForm;
use crate::hypervisor::{CheckpointFacts, VmDefinition};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::template::{Boot, CloneMethod, TemplateSpec};

/// A disk overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct DiskId(pub(crate) Uuid);

impl DiskId {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// Its name inside QEMU, where 31 bytes are the most.
    pub(crate) fn node(self) -> String {
        let mut name = self.0.simple().to_string();
        name.truncate(30);
        format!("d{name}")
    }
}

/// A saved memory, or one that is going to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct MemoryId(pub(crate) Uuid);

impl MemoryId {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

/// A moment of a VM: disk and memory that belong together. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Frozen overlays from the golden disk upwards.
    pub(crate) chain: Vec<DiskId>,
    /// Memory.
    pub(crate) memory: MemoryId,
}

/// `template.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateRecord {
    /// Its id.
    pub(crate) id: TemplateId,
    /// What it was made from.
    pub(crate) spec: TemplateSpec,
    /// Format of the golden disk.
    pub(crate) format: Format,
    /// The golden disk.
    pub(crate) disk: FileFacts,
    /// The kernel.
    pub(crate) kernel: Option<FileFacts>,
    /// The initial RAM disk.
    pub(crate) initrd: Option<FileFacts>,
    /// The firmware's code, for UEFI.
    pub(crate) firmware: Option<PathBuf>,
    /// Versioned QEMU machine that all its VMs have.
    pub(crate) machine: String,
    /// Its prepared state.
    pub(crate) sealed: Option<Sealed>,
}

/// A template's prepared state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// Disk and memory.
    pub(crate) snapshot: Snapshot,
    /// How clones get the memory.
    pub(crate) method: CloneMethod,
}

/// `vm.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    /// What it was made from.
    pub(crate) definition: VmDefinition,
    /// What it is doing.
    pub(crate) phase: Phase,
    /// Number of its latest run.
    pub(crate) run: u64,
    /// Frozen overlays from the golden disk upwards.
    pub(crate) chain: Vec<DiskId>,
    /// The overlay it writes to.
    pub(crate) head: DiskId,
    /// Memory that belongs to the disk as it is; none once the guest has run on.
    pub(crate) memory: Option<MemoryUse>,
    /// The file its memory is in while it runs, where a template is going to be sealed from it.
    pub(crate) ram: Option<MemoryId>,
    /// What the guest sees as its generation: another one after each fork.
    pub(crate) generation: Uuid,
    /// Named checkpoints.
    pub(crate) checkpoints: BTreeMap<CheckpointId, CheckpointRecord>,
}

/// A saved memory in use by a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryUse {
    /// Which.
    pub(crate) id: MemoryId,
    /// It was saved by this VM for itself; else resuming it makes one more fork.
    pub(crate) own: bool,
}

/// What a VM is doing, as far as a crash must not forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It has no process.
    Rest,
    /// It may have one. As long as the record names a memory, the guest has not run.
    Running,
    /// Its state is being written out.
    Saving {
        /// Where to; none names it yet.
        memory: MemoryId,
        /// Its CPUs stood still before.
        paused: bool,
        /// An overlay that is put on top meanwhile; the guest does not write to it before the phase is over.
        next_head: Option<DiskId>,
    },
}

/// A named checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckpointRecord {
    /// Disk and memory.
    pub(crate) snapshot: Snapshot,
    /// For people.
    pub(crate) facts: CheckpointFacts,
}

/// `manifest.json` of a saved memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// How it is laid out.
    pub(crate) form: StateForm,
    /// QEMU and machine that wrote it, see `Machine::signature`.
    pub(crate) signature: String,
    /// Length of `state` in bytes.
    pub(crate) state_bytes: u64,
    /// Length of `ram` in bytes, where there is one.
    pub(crate) ram_bytes: Option<u64>,
    /// The process that wrote it, for people.
    pub(crate) command_line: Vec<String>,
}

/// Disks and memory that a record names.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// Overlays.
    pub(crate) disks: Vec<DiskId>,
    /// Memory.
    pub(crate) memory: Vec<MemoryId>,
}

impl References {
    fn snapshot(&mut self, snapshot: &Snapshot) {
        self.disks.extend(&snapshot.chain);
        self.memory.push(snapshot.memory);
    }
}

impl TemplateRecord {
    /// The files it was made from, and what was recorded of them.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&PathBuf, &FileFacts)> {
        let (kernel, initrd) = match &self.spec.boot {
            Boot::Kernel { kernel, initrd, .. } => (Some(kernel), initrd.as_ref()),
            Boot::Bios | Boot::Uefi => (None, None),
        };
        [(&self.spec.disk_path, &self.disk)]
            .into_iter()
            .chain(kernel.zip(self.kernel.as_ref()))
            .chain(initrd.zip(self.initrd.as_ref()))
    }

    /// Records that a file of the same content was touched.
    pub(crate) fn restamp(&mut self, path: &Path, now: &FileFacts) {
        if self.spec.disk_path == path {
            self.disk = now.clone();
        }
        if let Boot::Kernel { kernel, initrd, .. } = &self.spec.boot {
            if kernel == path {
                self.kernel = Some(now.clone());
            }
            if initrd.as_deref() == Some(path) {
                self.initrd = Some(now.clone());
            }
        }
    }

    /// What it names.
    pub(crate) fn references(&self) -> References {
        let mut all = References::default();
        if let Some(sealed) = &self.sealed {
            all.snapshot(&sealed.snapshot);
        }
        all
    }
}

impl VmRecord {
    /// What it names.
    pub(crate) fn references(&self) -> References {
        let mut all = References { disks: self.chain.clone(), memory: Vec::new() };
        all.disks.push(self.head);
        all.memory.extend(self.memory.map(|memory| memory.id));
        all.memory.extend(self.ram);
        if let Phase::Saving { memory, next_head, .. } = self.phase {
            all.memory.push(memory);
            all.disks.extend(next_head);
        }
        for checkpoint in self.checkpoints.values() {
            all.snapshot(&checkpoint.snapshot);
        }
        all
    }
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// See the module.
    pub(crate) data: PathBuf,
    /// See the module.
    pub(crate) run: PathBuf,
}

impl Paths {
    /// Folders that must exist.
    pub(crate) fn roots(&self) -> [PathBuf; 6] {
        [
            self.data.clone(),
            self.data.join("templates"),
            self.data.join("vms"),
            self.data.join("disks"),
            self.data.join("memory"),
            self.run.clone(),
        ]
    }

    /// Folder of a template.
    pub(crate) fn template(&self, id: &TemplateId) -> PathBuf {
        self.data.join("templates").join(id.as_str())
    }

    /// Its record.
    pub(crate) fn template_record(&self, id: &TemplateId) -> PathBuf {
        self.template(id).join("template.json")
    }

    /// An empty overlay of the size of its golden disk.
    pub(crate) fn blank(&self, id: &TemplateId) -> PathBuf {
        self.template(id).join("blank.qcow2")
    }

    /// Folder of a VM.
    pub(crate) fn vm(&self, id: &VmId) -> PathBuf {
        self.data.join("vms").join(id.as_str())
    }

    /// Its record.
    pub(crate) fn vm_record(&self, id: &VmId) -> PathBuf {
        self.vm(id).join("vm.json")
    }

    /// Variables of its UEFI firmware.
    pub(crate) fn vars(&self, id: &VmId) -> PathBuf {
        self.vm(id).join("vars.fd")
    }

    /// A disk overlay.
    pub(crate) fn disk(&self, id: DiskId) -> PathBuf {
        self.data.join("disks").join(format!("{}.qcow2", id.0))
    }

    /// Folder of a saved memory.
    pub(crate) fn memory(&self, id: MemoryId) -> PathBuf {
        self.data.join("memory").join(id.0.to_string())
    }

    /// Its state of devices, or of everything.
    pub(crate) fn state(&self, id: MemoryId) -> PathBuf {
        self.memory(id).join("state")
    }

    /// Its RAM, where kept apart.
    pub(crate) fn ram(&self, id: MemoryId) -> PathBuf {
        self.memory(id).join("ram")
    }

    /// Its manifest.
    pub(crate) fn manifest(&self, id: MemoryId) -> PathBuf {
        self.memory(id).join("manifest.json")
    }

    /// Folder of a running VM, short enough for socket addresses.
    pub(crate) fn run_dir(&self, uid: Uuid) -> PathBuf {
        let mut name = uid.simple().to_string();
        name.truncate(16);
        self.run.join(name)
    }
}

/// Sockets and log in a running VM's folder.
pub(crate) fn monitor_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("qmp")
}

/// Where the guest's port can be reached.
pub(crate) fn agent_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent")
}

/// What QEMU prints.
pub(crate) fn log_file(run_dir: &Path) -> PathBuf {
    run_dir.join("log")
}
