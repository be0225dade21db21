//! What callers ask of the orchestrator; shapes are checked before they get here, states are not.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

pub use crate::model::query::{LeaseFilter, Page, RequestId, VmFilter};

use crate::model::ids::{CheckpointId, LeaseId, PoolId, SecretId, TemplateId, VmId};
use crate::model::lease::ReleasePolicy;
use crate::model::queue::{Needs, Place};
use crate::model::record::{PoolOptions, PoolSpec};
use crate::model::secret::SecretValue;
use crate::model::template::TemplateSpec;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token.
    pub name: String,
    /// May act on everybody's leases.
    pub admin: bool,
}

impl Caller {
    /// The daemon's own operator.
    #[must_use]
    pub fn admin() -> Self {
        Self { name: "admin".into(), admin: true }
    }
}

/// A template to make.
#[derive(Debug, Clone)]
pub struct CreateTemplate {
    /// Its id; absent: made here.
    pub id: Option<TemplateId>,
    /// For people.
    pub display_name: String,
    /// How its VMs are built.
    pub spec: TemplateSpec,
    /// What the image holds; empty: as its stamp says.
    pub installed_software: Vec<String>,
    /// Port of a remote desktop server; 0: none.
    pub rdp_port: u16,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// A pool to make.
#[derive(Debug, Clone)]
pub struct CreatePool {
    /// Its id; absent: made here.
    pub id: Option<PoolId>,
    /// Its settings.
    pub spec: PoolSpec,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// A secret to keep.
#[derive(Debug, Clone)]
pub struct CreateSecret {
    /// Its id; absent: made here.
    pub id: Option<SecretId>,
    /// For people.
    pub description: String,
    /// Into whose desktops it may be typed; empty: all.
    pub allowed_pools: Vec<PoolId>,
    /// Who may have it typed beside the admin; empty: everybody.
    pub allowed_callers: Vec<String>,
    /// The value.
    pub value: SecretValue,
    /// For a safe repeat. Of no fingerprint, which would be one of the value.
    pub request: Option<Uuid>,
}

/// Settings to change; absent ones stay.
#[derive(Debug, Clone, Default)]
pub struct UpdatePool {
    /// For people.
    pub display_name: Option<String>,
    /// VMs in all.
    pub desired: Option<u32>,
    /// VMs kept ready; the inner absent: all that are not leased.
    pub warm: Option<Option<u32>>,
    /// Limit per host.
    pub max_per_host: Option<u32>,
    /// Life of a lease that asks for none.
    pub default_ttl: Option<Duration>,
    /// Longest life a lease may ask for.
    pub max_ttl: Option<Duration>,
    /// Template of its VMs.
    pub template: Option<TemplateId>,
    /// See [`PoolOptions::hot`].
    pub hot: Option<u32>,
    /// See [`PoolOptions::idle_floor`].
    pub idle_floor: Option<Option<u32>>,
    /// See [`PoolOptions::idle_ceiling`].
    pub idle_ceiling: Option<Option<u32>>,
    /// See [`PoolOptions::release`].
    pub release: Option<ReleasePolicy>,
    /// See [`PoolOptions::max_uses`].
    pub max_uses: Option<u32>,
    /// See [`PoolOptions::max_age`].
    pub max_age: Option<Option<Duration>>,
    /// See [`PoolOptions::surge`].
    pub surge: Option<u32>,
    /// See [`PoolOptions::max_unavailable`].
    pub max_unavailable: Option<u32>,
    /// See [`PoolOptions::max_leases_per_caller`].
    pub max_leases_per_caller: Option<u32>,
    /// See [`PoolOptions::preemption`].
    pub preemption: Option<bool>,
    /// See [`PoolOptions::labels`].
    pub labels: Option<BTreeMap<String, String>>,
}

impl UpdatePool {
    /// Changes what is to be changed.
    pub(super) fn apply(self, spec: &mut PoolSpec) {
        fn set<T>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        set(&mut spec.display_name, self.display_name);
        set(&mut spec.template, self.template);
        set(&mut spec.desired, self.desired);
        set(&mut spec.warm, self.warm);
        set(&mut spec.max_per_host, self.max_per_host);
        set(&mut spec.default_ttl, self.default_ttl);
        set(&mut spec.max_ttl, self.max_ttl);
        let options: &mut PoolOptions = &mut spec.options;
        set(&mut options.hot, self.hot);
        set(&mut options.idle_floor, self.idle_floor);
        set(&mut options.idle_ceiling, self.idle_ceiling);
        set(&mut options.release, self.release);
        set(&mut options.max_uses, self.max_uses);
        set(&mut options.max_age, self.max_age);
        set(&mut options.surge, self.surge);
        set(&mut options.max_unavailable, self.max_unavailable);
        set(&mut options.max_leases_per_caller, self.max_leases_per_caller);
        set(&mut options.preemption, self.preemption);
        set(&mut options.labels, self.labels);
    }
}

/// A desktop wanted.
#[derive(Debug, Clone)]
pub struct Acquire {
    /// From this pool; absent: from one that has what is required.
    pub pool: Option<PoolId>,
    /// Higher ones are served earlier.
    pub priority: i32,
    /// What the VM must be.
    pub needs: Needs,
    /// What its pool must have.
    pub labels: BTreeMap<String, String>,
    /// Life of the lease; absent: the pool's default.
    pub ttl: Option<Duration>,
    /// How long to wait for a VM.
    pub wait: Duration,
    /// Free text.
    pub purpose: String,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// How an acquire stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It is being looked at.
    Asked,
    /// It waits.
    Queued {
        /// For this pool.
        pool: PoolId,
        /// At this place.
        place: Place,
    },
    /// It has a VM that is made ready.
    Preparing {
        /// This one.
        vm: VmId,
    },
}

/// A VM to fork off another.
#[derive(Debug, Clone)]
pub struct Fork {
    /// The other.
    pub vm: VmId,
    /// Id of the new one; absent: made here.
    pub new: Option<VmId>,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// A checkpoint to take.
#[derive(Debug, Clone)]
pub struct TakeCheckpoint {
    /// Of this VM.
    pub vm: VmId,
    /// Its id; absent: made here.
    pub id: Option<CheckpointId>,
    /// For people.
    pub description: String,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// A copy of the store wanted.
#[derive(Debug, Clone)]
pub struct BackupStore {
    /// The file, an absolute path on the host.
    pub path: std::path::PathBuf,
    /// Replace a file of that name.
    pub overwrite: bool,
    /// For a safe repeat.
    pub request: Option<RequestId>,
}

/// How long a desktop is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// As long as the VM runs.
    Stopped,
    /// Also while it is saved, to go on when it runs again.
    Gone,
}

/// Whose desktop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Of this VM.
    Vm(VmId),
    /// Of the VM that this lease holds.
    Lease(LeaseId),
}
