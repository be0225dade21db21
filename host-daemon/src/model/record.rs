//! What is kept of templates, pools, VMs, leases and operations: one struct per row, with typed columns.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::model::ids::{LeaseId, PoolId, TemplateId, VmId};
use crate::model::lease::{EndedAs, Receipt, ReleasePolicy};
use crate::model::template::{CloneMethod, TemplateSpec};
use crate::model::vm::VmState;

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Id.
    pub id: TemplateId,
    /// Never reused.
    pub uid: Uuid,
    /// For people.
    pub display_name: String,
    /// How its VMs are built.
    pub spec: TemplateSpec,
    /// What the image holds.
    pub installed_software: Vec<String>,
    /// Port of a remote desktop server; 0: none.
    pub rdp_port: u16,
    /// Where it is in its life.
    pub state: TemplateState,
    /// What was found out of its disk.
    pub disk_sha256: String,
    /// Size of its disk file.
    pub disk_size_bytes: u64,
    /// How clones get their memory; known once it is ready.
    pub clone_method: Option<CloneMethod>,
    /// Operating system.
    pub os: String,
    /// Version of the agent.
    pub agent_version: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Grows with every change; the etag.
    pub version: u64,
}

/// Life of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TemplateState {
    /// Being prepared.
    Preparing,
    /// VMs can be made of it.
    Ready,
    /// Being deleted.
    Deleting,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Id.
    pub id: PoolId,
    /// Never reused.
    pub uid: Uuid,
    /// Its settings.
    pub spec: PoolSpec,
    /// It is being deleted.
    pub deleting: bool,
    /// Somebody stopped it: nothing is leased out, made or taken away.
    pub paused: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Grows with every change; the etag.
    pub version: u64,
}

/// Settings of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// For people.
    pub display_name: String,
    /// Template of its VMs.
    pub template: TemplateId,
    /// VMs in all.
    pub desired: u32,
    /// VMs kept ready; absent: all that are not leased.
    pub warm: Option<u32>,
    /// Limit per host; 0: none.
    pub max_per_host: u32,
    /// Life of a lease that asks for none.
    pub default_ttl: Duration,
    /// Longest life a lease may ask for.
    pub max_ttl: Duration,
    /// What most pools leave as it is.
    pub options: PoolOptions,
}

/// Settings of a pool that most leave as they are.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct PoolOptions {
    /// VMs kept running and proven ready, besides the warm ones.
    pub hot: u32,
    /// So many are kept idle however many are leased: the pool grows beyond `desired`.
    pub idle_floor: Option<u32>,
    /// When demand falls, idle ones beyond this go; needs a floor.
    pub idle_ceiling: Option<u32>,
    /// What becomes of a VM whose holder does not say.
    pub release: ReleasePolicy,
    /// Leases after which a VM is rebuilt; 0: never.
    pub max_uses: u32,
    /// Age after which a VM is rebuilt; absent: never.
    pub max_age: Option<Duration>,
    /// VMs beyond the wanted number while old ones are replaced.
    pub surge: u32,
    /// Ready VMs that may be missing while old ones are replaced.
    pub max_unavailable: u32,
    /// Leases that one caller may hold or wait for at once; 0: no limit.
    pub max_leases_per_caller: u32,
    /// A more important caller may have a less important one's VM saved.
    pub preemption: bool,
    /// For callers who name no pool.
    pub labels: BTreeMap<String, String>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            hot: 0,
            idle_floor: None,
            idle_ceiling: None,
            release: ReleasePolicy::Reset,
            max_uses: 0,
            max_age: None,
            surge: 1,
            max_unavailable: 0,
            max_leases_per_caller: 0,
            preemption: false,
            labels: BTreeMap::new(),
        }
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    /// Id.
    pub id: VmId,
    /// Never reused.
    pub uid: Uuid,
    /// Template it was made of.
    pub template: TemplateId,
    /// Pool it belongs to.
    pub pool: Option<PoolId>,
    /// VM it was forked from.
    pub forked_from: Option<VmId>,
    /// State.
    pub state: VmState,
    /// Why it is in that state.
    pub state_reason: String,
    /// Since when.
    pub state_since: Timestamp,
    /// Who may use it.
    pub availability: Availability,
    /// Lease on it.
    pub lease: Option<LeaseId>,
    /// What is to become of it once it is free; survives a crash in the middle.
    pub pending: Option<Pending>,
    /// Its memory and disk are the template's: nothing ran in it since.
    pub clean: bool,
    /// Leases it had.
    pub uses: u32,
    /// Its pool keeps it running for the next lease, and nobody used it since it was clean.
    pub hot: bool,
    /// Its lease was preempted: it is saved until there is room again.
    pub suspended: bool,
    /// Number of its last guest session.
    pub epoch: u64,
    /// Address as the agent last reported it; after a resume it may have another one.
    pub ip_address: String,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// A share of a GPU.
    pub gpu: bool,
    /// Port of a remote desktop server; 0: none.
    pub rdp_port: u16,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last resumed or started.
    pub last_resumed: Option<Timestamp>,
    /// When it last changed.
    pub updated: Timestamp,
    /// Grows with every change; the etag.
    pub version: u64,
}

/// Who may use a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Availability {
    /// Free.
    Idle,
    /// Held by a lease.
    Leased,
    /// Kept out of use after a failure.
    Quarantined,
}

/// What is to become of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pending {
    /// Back to clean.
    Reset,
    /// Saved as it is.
    Save,
    /// Deleted.
    Delete,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Id.
    pub id: LeaseId,
    /// Never reused.
    pub uid: Uuid,
    /// VM it holds, or held.
    pub vm: VmId,
    /// Pool it came from.
    pub pool: PoolId,
    /// Name of the token that acquired it.
    pub holder: String,
    /// How it ended; absent: it is active.
    pub ended: Option<EndedAs>,
    /// Why it ended.
    pub end_reason: String,
    /// Life that acquire and renew give it.
    pub ttl: Duration,
    /// When it ends unless it is renewed.
    pub expires: Timestamp,
    /// Proof that the desktop was ready; absent while it is being made ready.
    pub receipt: Option<Receipt>,
    /// Free text.
    pub purpose: String,
    /// Higher ones may preempt it.
    pub priority: i32,
    /// Since when it is preempted; its life stands still then.
    pub suspended: Option<Timestamp>,
    /// Why it is, or last was, preempted.
    pub suspend_reason: String,
    /// When it was granted.
    pub created: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// Work that takes long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Made by the server: `{kind}-{uuid}`.
    pub id: String,
    /// What it is for.
    pub work: Work,
    /// What it is doing.
    pub phase: Phase,
    /// How it ended; absent: it goes on.
    pub outcome: Option<Outcome>,
    /// When it began.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

/// What an operation is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Making a template.
    CreateTemplate(TemplateId),
    /// Copying the store.
    BackupStore(Backup),
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateTemplate(template) => write!(f, "making template {template}"),
            Self::BackupStore(backup) => write!(f, "copying the store to {}", backup.path),
        }
    }
}

/// A copy of the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Backup {
    /// The file, on the host.
    pub path: String,
    /// A file of that name is replaced.
    pub overwrite: bool,
    /// Its size; 0 until it is done.
    pub size_bytes: u64,
}

/// Steps of long work: of preparing a template, but for the last but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reading and hashing the golden disk.
    CheckingDisk,
    /// Starting the machine.
    Booting,
    /// The guest boots; its agent is not there yet.
    WaitingForAgent,
    /// The desktop is still drawing.
    Settling,
    /// Memory and disk are being frozen.
    Saving,
    /// The store is being copied.
    Copying,
    /// Finished.
    Done,
}

impl Phase {
    /// As clients see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CheckingDisk => "CHECKING_DISK",
            Self::Booting => "BOOTING",
            Self::WaitingForAgent => "WAITING_FOR_AGENT",
            Self::Settling => "SETTLING",
            Self::Saving => "SAVING",
            Self::Copying => "COPYING",
            Self::Done => "DONE",
        }
    }

    /// Share of the work that is usually done when the phase begins.
    #[must_use]
    pub fn percent(self) -> u32 {
        match self {
            Self::CheckingDisk | Self::Copying => 0,
            Self::Booting => 5,
            Self::WaitingForAgent => 10,
            Self::Settling => 80,
            Self::Saving => 95,
            Self::Done => 100,
        }
    }

    /// The reverse of [`Phase::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::CheckingDisk,
            Self::Booting,
            Self::WaitingForAgent,
            Self::Settling,
            Self::Saving,
            Self::Copying,
            Self::Done,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == text)
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The template is ready.
    Ready,
    /// It failed.
    Failed {
        /// In one word; see [`crate::model::error::Reason`].
        reason: String,
        /// For people.
        message: String,
    },
    /// Somebody cancelled it.
    Cancelled,
}
