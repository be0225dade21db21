//! Leases: how they end, and the proof that a desktop was ready when it was handed over.

use std::time::Duration;

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndedAs {
    /// Given back.
    Released,
    /// Not renewed in time.
    Expired,
    /// Its VM died.
    VmLost,
    /// Ended by an operator: its VM or pool was deleted, or an older store put back.
    Revoked,
}

impl EndedAs {
    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Expired => "expired",
            Self::VmLost => "vm_lost",
            Self::Revoked => "revoked",
        }
    }

    /// The reverse of [`EndedAs::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Released, Self::Expired, Self::VmLost, Self::Revoked].into_iter().find(|e| e.as_str() == text)
    }
}

/// What becomes of a VM when its lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleasePolicy {
    /// Back to clean, and into the pool.
    Reset,
    /// Saved as it is; it leaves the pool.
    Keep,
    /// Deleted.
    Destroy,
}

/// Each check a desktop passed before it was handed over.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Receipt {
    /// In the order they passed.
    pub checks: Vec<Check>,
    /// From the grant of the VM to the last check.
    pub total: Duration,
    /// Guest session they were made in.
    pub epoch: u64,
    /// Time in the queue before the grant.
    pub waited: Duration,
    /// VMs that failed and were replaced before this one.
    pub replaced: u32,
    /// How old the checks were when the VM was granted: a hot VM passes them all the time. Zero: made for this lease.
    #[serde(default)]
    pub age: Duration,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Check {
    /// Which.
    pub kind: CheckKind,
    /// From the grant of the VM to passing.
    pub at: Duration,
    /// What was seen.
    pub detail: String,
}

/// Kinds of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The hypervisor says that it runs.
    Running,
    /// The agent has a session.
    AgentSession,
    /// The clock was compared and set.
    Clock,
    /// Hostname, machine id, MAC and random pool are its own.
    Identity,
    /// An input event came back.
    Input,
    /// A full frame was captured.
    Frame,
}
