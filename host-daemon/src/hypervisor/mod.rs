//! What a hypervisor can do for the orchestrator, whichever it is.
//!
//! A backend owns VMs as files and processes; it knows no pools, leases or gRPC. It keeps what it needs to find them
//! again on disk beside them, each under our marker, so that after a crash of the daemon [`Hypervisor::recover`] can say
//! what really exists. What a backend can't do is in its [`Capabilities`]; asking for it all the same gives
//! [`HvError::NotSupported`].
//!
//! ```text
//!            define(Template)──► Saved or Off ◄── reset, restore_checkpoint
//!   define(Golden) ─► Off ─start─► Running ◄─resume─ Saved
//!                       ▲            │ ▲ └──save───────┘
//!                       └───stop─────┘ └─pause/resume─► Paused
//! ```
//!
//! Guarantees that hold for every backend:
//! - Calls for one VM are made one after the other (its actor sees to that); calls for different VMs run in parallel.
//! - A call that fails leaves the VM where it was or in a state that [`Hypervisor::observe`] tells; files that it began
//!   are gone or will be collected by [`Hypervisor::recover`].
//! - Moves are idempotent: one that its VM is already at the end of succeeds. `delete` of an unknown VM succeeds.
//! - When a call that makes a VM saved has answered, its state survives a crash of the host (files are fsynced).
//! - A VM process that ends by itself is reported once through [`Hypervisor::events`] with its last words.
//! - A VM process that ends by itself takes the memory with it: the VM is off then, with its disk.
//! - Dropping a call's future part-way is allowed: the backend finishes or undoes the step by itself.
//!
//! `tests/conformance` checks them on each backend.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::screen::{Frame, Size};
use crate::model::template::{CloneMethod, NetworkMode, TemplateSpec};

pub mod process;
pub mod qemu;
pub mod sim;

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Save memory to disk and resume from it.
    pub save: bool,
    /// Stop the CPUs and keep the memory.
    pub pause: bool,
    /// Checkpoints with memory.
    pub memory_checkpoints: bool,
    /// Fork a running VM.
    pub fork: bool,
    /// Screen and input without a guest agent.
    pub display: bool,
    /// GPU shares.
    pub gpu: bool,
    /// Ways to a network.
    pub networks: Vec<NetworkMode>,
    /// How clones get their memory.
    pub clone_method: CloneMethod,
}

/// What a backend says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendFacts {
    /// `qemu`, `process`, `sim`.
    pub name: &'static str,
    /// Version of the hypervisor.
    pub version: String,
    /// `kvm`, `tcg`, `none`.
    pub accelerator: &'static str,
    /// Why that accelerator.
    pub accelerator_reason: String,
}

/// A VM to make.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VmDefinition {
    /// Its id.
    pub id: VmId,
    /// Never reused; also its generation id and part of our marker.
    pub uid: Uuid,
    /// What it starts from.
    pub origin: Origin,
}

/// What a VM starts from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Origin {
    /// The template's golden disk, to be booted: the VM that a template is prepared with.
    Golden(TemplateId),
    /// The template's prepared state.
    Template(TemplateId),
}

impl Origin {
    /// The template either way.
    #[must_use]
    pub fn template(&self) -> &TemplateId {
        match self {
            Self::Golden(id) | Self::Template(id) => id,
        }
    }
}

/// What is known of a golden disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// `qcow2`, `raw`, `vhdx`.
    pub format: String,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// One run of a VM: from a process's start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Grows with every run of any VM of this backend; tells a late event of an older run apart.
    pub number: u64,
    /// Process that runs it.
    pub pid: u32,
}

/// Where a VM comes to rest after a reset or a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Its memory is on disk: resume it.
    Saved,
    /// It has none: start it.
    Off,
}

/// What a VM really is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It runs.
    Running(Run),
    /// Its CPUs stand still.
    Paused(Run),
    /// Its memory is on disk.
    Saved,
    /// Switched off.
    Off,
    /// Its files are damaged.
    Broken(String),
}

/// A VM that exists, found at start-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its definition.
    pub definition: VmDefinition,
    /// What it is now.
    pub observed: Observed,
}

/// Something that happened without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A VM's process ended by itself.
    Exited {
        /// The VM.
        vm: VmId,
        /// The run that ended.
        run: Run,
        /// How, with the process's last words.
        reason: String,
        /// The guest shut itself down in an orderly way.
        clean: bool,
    },
    /// A VM's CPUs were stopped, since the host could not do what its disk was asked for. Nothing is lost: `resume` tries
    /// that again.
    Halted {
        /// The VM.
        vm: VmId,
        /// Its run, which goes on.
        run: Run,
        /// What could not be done, and why.
        reason: String,
    },
}

impl Event {
    /// The VM it is about.
    #[must_use]
    pub fn vm(&self) -> &VmId {
        match self {
            Self::Exited { vm, .. } | Self::Halted { vm, .. } => vm,
        }
    }
}

/// Files of a VM, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFiles {
    /// Disk of its own.
    pub disk: PathBuf,
    /// Its own saved memory, where it has any.
    pub saved_state: Option<PathBuf>,
}

/// A named checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckpointFacts {
    /// Its id.
    pub id: CheckpointId,
    /// It holds memory.
    pub has_memory: bool,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Seconds since 1970 when it was taken.
    pub created_unix: i64,
}

/// How to stop a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Press the power button and wait; switch off when the time is over.
    Graceful(Duration),
    /// Switch off.
    Hard,
}

/// A byte stream to the agent in a guest.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// What can go wrong in a hypervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HvError {
    /// No such template, VM or checkpoint.
    #[error("no {kind} {id}")]
    NotFound {
        /// `template`, `vm`, `checkpoint`.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// There is one of that name.
    #[error("{kind} {id} exists")]
    AlreadyExists {
        /// `template`, `vm`, `checkpoint`.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// The VM's state does not allow it.
    #[error("can't {action} vm {vm}, it is {state}")]
    IllegalState {
        /// Which.
        vm: VmId,
        /// What it is.
        state: String,
        /// What was asked.
        action: &'static str,
    },
    /// The backend can't do it.
    #[error("{backend} can't {action}")]
    NotSupported {
        /// Name of the backend.
        backend: &'static str,
        /// What was asked.
        action: &'static str,
    },
    /// The file isn't there or can't be read.
    #[error("no readable file at {}", path.display())]
    FileNotFound {
        /// Which field it came from: `disk_path`, `kernel_path`, `initrd_path`.
        field: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The file is no disk image.
    #[error("{} is not a disk image: {why}", path.display())]
    NotAnImage {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that this backend or host does not have.
    #[error("{field}: {why}")]
    BadSetting {
        /// Which.
        field: &'static str,
        /// Why.
        why: String,
    },
    /// The golden disk or a frozen layer is not what was recorded.
    #[error("{} changed since it was registered", path.display())]
    ImageChanged {
        /// Where.
        path: PathBuf,
    },
    /// The saved memory was written by another version or machine.
    #[error("saved state does not fit this host: {0}")]
    Incompatible(String),
    /// The saved memory can't be read back.
    #[error("saved state is damaged: {0}")]
    StateDamaged(String),
    /// The VM's process ended or refused.
    #[error("vm process failed: {0}")]
    Process(String),
    /// It took too long.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// A program that the backend needs is missing or too old.
    #[error("{0}")]
    Unavailable(String),
    /// The host refused a file or process operation.
    #[error("{context}")]
    Io {
        /// What was tried.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl HvError {
    /// Whether a saved memory will never be of use again, here and as it is.
    #[must_use]
    pub fn is_of_memory(&self) -> bool {
        matches!(self, Self::StateDamaged(_) | Self::Incompatible(_))
    }
}

/// Result of a hypervisor call.
pub type HvResult<T> = Result<T, HvError>;

/// A hypervisor. See the module for what every backend guarantees.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// What it can do; does not change while the daemon runs.
    fn capabilities(&self) -> &Capabilities;

    /// What it is.
    fn facts(&self) -> &BackendFacts;

    /// Things that happen by themselves. Given once; the channel is bounded and the backend waits when it is full.
    fn events(&self) -> Option<mpsc::Receiver<Event>>;

    /// Finds what exists after a start of the daemon, re-attaches to what runs, and collects what nothing refers to.
    /// Called once, before anything else. A VM found in the middle of a save goes on running; one found in the middle of
    /// a resume is running or saved, whichever is sure.
    async fn recover(&self) -> HvResult<Vec<Found>>;

    /// What exists now, and what each of it is, while the daemon runs. Changes nothing. A VM in the middle of a call is told
    /// as whatever it is on its way, so nothing may follow from that: whoever acts on it observes it between two calls.
    async fn survey(&self) -> HvResult<Vec<Found>>;

    /// What a VM is now.
    async fn observe(&self, vm: &VmId) -> HvResult<Observed>;

    /// Whether the saved memory of a VM can be read back, as far as that shows without reading it; a VM without one is fine.
    /// Takes microseconds: every free VM is asked now and then.
    /// Errors: `StateDamaged`, `Incompatible`.
    async fn check_memory(&self, _vm: &VmId) -> HvResult<()> {
        Ok(())
    }

    /// Checks a golden disk and its settings and records its hash; the disk is never written.
    /// Errors: `FileNotFound`, `NotAnImage`, `BadSetting`, `AlreadyExists`.
    async fn import_template(&self, id: &TemplateId, spec: &TemplateSpec) -> HvResult<DiskFacts>;

    /// Turns a running VM of origin [`Origin::Golden`] into the template's prepared state. The VM is consumed, also when
    /// sealing fails. Its guest stream must be closed.
    async fn seal_template(&self, id: &TemplateId, vm: &VmId) -> HvResult<CloneMethod>;

    /// Forgets a template and deletes what was prepared; VMs of it must be gone.
    async fn delete_template(&self, id: &TemplateId) -> HvResult<()>;

    /// Templates that exist on disk, at start-up.
    async fn templates(&self) -> HvResult<Vec<TemplateId>>;

    /// Makes a VM's disk and definition, without running it.
    async fn define(&self, definition: &VmDefinition) -> HvResult<Rest>;

    /// Boots a VM that is off. Answers when its CPUs run.
    async fn start(&self, vm: &VmId) -> HvResult<Run>;

    /// Saved or paused to running. Answers when its CPUs run.
    /// Errors: `StateDamaged`, `Incompatible`, `ImageChanged`: it stays saved.
    async fn resume(&self, vm: &VmId) -> HvResult<Run>;

    /// Running or paused to saved, its state kept. The guest stream must be closed before.
    async fn save(&self, vm: &VmId) -> HvResult<()>;

    /// Running to paused.
    async fn pause(&self, vm: &VmId) -> HvResult<()>;

    /// Any state to off; saved memory is thrown away.
    async fn stop(&self, vm: &VmId, how: Stop) -> HvResult<()>;

    /// Any state to clean and at rest: its own disk changes and memory are thrown away; named checkpoints stay.
    async fn reset(&self, vm: &VmId) -> HvResult<Rest>;

    /// Removes a VM with its files and checkpoints, whatever it is doing.
    async fn delete(&self, vm: &VmId) -> HvResult<()>;

    /// Keeps memory and disk of a running or paused VM; it goes on as it was. The guest stream must be closed before.
    async fn create_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<CheckpointFacts>;

    /// Named checkpoints by id; `clean` is not among them.
    async fn checkpoints(&self, vm: &VmId) -> HvResult<Vec<CheckpointFacts>>;

    /// Any state to a checkpoint, at rest.
    async fn restore_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<Rest>;

    /// Removes a named checkpoint; whatever builds on it is not affected.
    async fn delete_checkpoint(&self, vm: &VmId, id: &CheckpointId) -> HvResult<()>;

    /// Makes another VM, saved, from the memory and disk of a running, paused or saved one, which goes on as it was.
    /// `new.origin` must be the template of the first. The guest stream must be closed before.
    async fn fork(&self, vm: &VmId, new: &VmDefinition) -> HvResult<()>;

    /// Opens the stream to the agent of a running VM: connects to its virtual port, or waits for the agent to dial.
    /// One at a time; dropping it closes it, which the guest notices at once.
    async fn open_guest(&self, vm: &VmId) -> HvResult<Box<dyn GuestStream>>;

    /// The per-VM secret that the agent must send, on transports that have no identity of their own.
    async fn guest_secret(&self, vm: &VmId) -> HvResult<Option<[u8; 32]>>;

    /// The screen, without the guest's help.
    async fn screenshot(&self, vm: &VmId) -> HvResult<Frame>;

    /// Input, without the guest's help; `size` is that of the frame the coordinates refer to.
    async fn input(&self, vm: &VmId, size: Size, events: &[RawInput]) -> HvResult<()>;

    /// Memory that VMs can have in all, in MiB; 0: they take none of the host's, or it is not limited. `None`: what this
    /// computer has.
    fn memory_mb(&self) -> Option<u64> {
        None
    }

    /// Memory that this VM alone occupies, in bytes; 0 while it does not run.
    async fn resident_bytes(&self, vm: &VmId) -> HvResult<u64>;

    /// Where its files are.
    async fn files(&self, vm: &VmId) -> HvResult<VmFiles>;
}
