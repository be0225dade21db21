//! What the orchestrator answers: rows, with what is only known while the daemon runs.

use jiff::Timestamp;

use crate::hypervisor::{BackendFacts, Capabilities, VmFiles};
use crate::model::ids::{AgentId, VmId};
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
    /// Saved, clean and free.
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
    /// Why there are fewer than desired; empty when there are not.
    pub reason: String,
    /// VMs by id, 100 at most.
    pub vms: Vec<VmId>,
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
