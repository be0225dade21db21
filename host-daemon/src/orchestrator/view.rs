//! What the orchestrator answers: rows, with what is only known while the daemon runs.

use std::time::Duration;

use jiff::Timestamp;

use crate::hypervisor::{BackendFacts, Capabilities, VmFiles};
use crate::model::ids::{AgentId, PoolId, VmId};
use crate::model::record::{Lease, Pool, Vm};

/// A VM as it is now.
#[derive(Debug, Clone)]
pub struct VmView {
    /// Its row.
    pub vm: Vm,
    /// Its guest session.
    pub guest: Option<GuestView>,
    /// Process that runs it.
    pub pid: Option<u32>,
    /// Memory that it alone occupies, in bytes.
    pub resident_bytes: u64,
    /// Where its files are.
    pub files: VmFiles,
    /// The agent that runs on it.
    pub agent: Option<AgentId>,
}

impl VmView {
    /// A row of which nothing else is known: its VM was just made, or just deleted.
    pub(super) fn bare(vm: Vm) -> Self {
        Self { vm, guest: None, pid: None, resident_bytes: 0, files: VmFiles::default(), agent: None }
    }
}

/// What is known of a guest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestView {
    /// There is a session now.
    pub connected: bool,
    /// Its number.
    pub epoch: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// Operating system.
    pub os: String,
    /// Its address, as the agent reports it.
    pub ip_address: String,
    /// Guest clock minus host clock at the last attach, in microseconds.
    pub clock_skew_micros: i64,
    /// Load average over one minute.
    pub load1: f64,
    /// Memory that programs can still get, in bytes.
    pub memory_available_bytes: u64,
    /// When the last heartbeat came.
    pub heartbeat: Option<Timestamp>,
}

/// A pool as it is now.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Its row.
    pub pool: Pool,
    /// What is where.
    pub status: PoolStatus,
}

/// What is where in a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// VMs that exist.
    pub total: u32,
    /// Saved, clean and free; running, where nothing can be saved.
    pub warm: u32,
    /// Leased.
    pub leased: u32,
    /// On their way.
    pub in_transition: u32,
    /// Kept out of use.
    pub quarantined: u32,
    /// In state error.
    pub error: u32,
    /// Callers waiting.
    pub waiting: u32,
    /// Why there are fewer than wanted; empty when there are not.
    pub reason: String,
    /// VMs by id, 100 at most.
    pub vms: Vec<VmId>,
    /// Running, proven and free.
    pub hot: u32,
    /// Held by preempted leases.
    pub suspended: u32,
    /// To be replaced; counted elsewhere too.
    pub outdated: u32,
    /// Free but not ready: somebody uses them by name.
    pub strayed: u32,
    /// Why anything is missing, the most telling first.
    pub shortfalls: Vec<Shortfall>,
}

/// A reason why a pool has not what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// Which.
    pub reason: ShortfallReason,
    /// VMs that are missing for it; 0 where that can't be told.
    pub count: u32,
    /// For people.
    pub detail: String,
}

impl Shortfall {
    pub(super) fn new(reason: ShortfallReason, count: u32, detail: impl Into<String>) -> Self {
        Self { reason, count, detail: detail.into() }
    }
}

/// Why VMs are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShortfallReason {
    /// The pool is paused.
    Paused,
    /// The template is not ready.
    TemplateNotReady,
    /// Making VMs failed, or they did not become ready.
    TemplateFails,
    /// The pool's limit per host.
    MaxPerHost,
    /// The host's memory is promised away.
    HostMemory,
    /// They are on their way.
    InProgress,
    /// Somebody uses free VMs by name.
    Strayed,
}

/// How a caller who waits stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueView {
    /// Pool whose queue it is; absent: none yet.
    pub pool: Option<PoolId>,
    /// Place, from 1; 0: not known.
    pub position: u32,
    /// Those who wait in all.
    pub waiting: u32,
    /// When a VM is likely to be free.
    pub eta: Option<Duration>,
    /// Why there is none.
    pub reason: String,
}

/// A lease that was just granted, and its VM.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The lease, with its receipt.
    pub lease: Lease,
    /// Its VM.
    pub vm: VmView,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointView {
    /// `clean` or the id it was given.
    pub id: String,
    /// For people.
    pub description: String,
    /// It holds memory.
    pub has_memory: bool,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// When it was taken.
    pub created: Timestamp,
}

/// The host.
#[derive(Debug, Clone)]
pub struct HostView {
    /// Its id.
    pub id: String,
    /// When the daemon started.
    pub started: Timestamp,
    /// The hypervisor.
    pub hypervisor: BackendFacts,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Load average over one minute.
    pub load1: f64,
    /// Memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory that programs can still get.
    pub memory_available_bytes: u64,
    /// Nominal memory of running VMs.
    pub memory_running_vms_bytes: u64,
    /// VMs.
    pub vm_count: u32,
    /// VMs that run.
    pub running_vm_count: u32,
    /// Free space where VM files are.
    pub disk_available_bytes: u64,
}
