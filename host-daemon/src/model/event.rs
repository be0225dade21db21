//! What happened: one record per change of a row, with its cause, who asked, and how long what ended with it had taken.
//!
//! Events are numbered without gaps. The number of the last one is the revision of everything: whoever knows all up to a
//! revision knows the state at that revision.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::agent::{Agent, AgentStatus};
use crate::model::ids::{AgentId, LeaseId, PoolId, TemplateId, VmId};
use crate::model::lease::EndedAs;
use crate::model::record::{Availability, Lease, Pool, Template, Vm};
use crate::model::vm::VmState;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What kind of thing happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventKind { $($(#[$doc])* $name,)* }

        impl EventKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is stored.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The reverse of [`EventKind::as_str`].
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
            }
        }
    };
}

kinds! {
    /// A VM was made.
    VmCreated = "vm_created";
    /// A VM went from one state to another.
    VmMoved = "vm_moved";
    /// A VM was taken out of use.
    VmQuarantined = "vm_quarantined";
    /// Something else about a VM changed.
    VmChanged = "vm_changed";
    /// A VM is gone.
    VmDeleted = "vm_deleted";
    /// Somebody began to look at a VM through a console.
    ConsoleOpened = "console_opened";
    /// A console was closed.
    ConsoleClosed = "console_closed";
    /// A lease got a VM: its first one, or another one after that failed its checks.
    LeaseGranted = "lease_granted";
    /// The desktop of a lease has proven itself ready.
    LeaseReady = "lease_ready";
    /// A lease was preempted: its VM is saved for a more important one.
    LeaseSuspended = "lease_suspended";
    /// A preempted lease goes on.
    LeaseResumed = "lease_resumed";
    /// The end of a lease was moved.
    LeaseRenewed = "lease_renewed";
    /// A lease ended.
    LeaseEnded = "lease_ended";
    /// A pool was made.
    PoolCreated = "pool_created";
    /// A pool's settings changed.
    PoolChanged = "pool_changed";
    /// Nothing is leased from a pool, made or replaced until it is resumed.
    PoolPaused = "pool_paused";
    /// A paused pool works again.
    PoolResumed = "pool_resumed";
    /// A pool is being deleted.
    PoolDeleting = "pool_deleting";
    /// A pool is gone.
    PoolDeleted = "pool_deleted";
    /// A template is being prepared.
    TemplateCreated = "template_created";
    /// VMs can be made of a template.
    TemplateReady = "template_ready";
    /// A template is being deleted.
    TemplateDeleting = "template_deleting";
    /// A template is gone.
    TemplateDeleted = "template_deleted";
    /// An agent was submitted.
    AgentSubmitted = "agent_submitted";
    /// An agent got a VM.
    AgentScheduled = "agent_scheduled";
    /// An agent's work began.
    AgentRunning = "agent_running";
    /// An attempt ended without a result; another one follows.
    AgentPending = "agent_pending";
    /// An agent did what it was asked for.
    AgentCompleted = "agent_completed";
    /// An agent failed.
    AgentFailed = "agent_failed";
    /// An agent was cancelled.
    AgentCancelled = "agent_cancelled";
    /// Something else about an agent changed: a claim, progress, a picture.
    AgentChanged = "agent_changed";
    /// An agent that ended long ago is gone.
    AgentDeleted = "agent_deleted";
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number; 0 until it is stored.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// VM it is about.
    pub vm: Option<VmId>,
    /// Pool it is about, or that its VM or lease belongs to; of a VM that left its pool, the one it left.
    pub pool: Option<PoolId>,
    /// Lease it is about.
    pub lease: Option<LeaseId>,
    /// Template it is about.
    pub template: Option<TemplateId>,
    /// Agent it is about.
    pub agent: Option<AgentId>,
    /// The states between which a VM moved.
    pub moved: Option<(VmState, VmState)>,
    /// How a lease ended.
    pub ended: Option<EndedAs>,
    /// Why.
    pub cause: String,
    /// Name of the caller who asked; empty: the daemon.
    pub actor: String,
    /// How long what ended with it took: a VM's move, a lease's life, its way to readiness, a template's preparation, an
    /// agent's last attempt.
    pub duration: Option<Duration>,
}

impl Event {
    fn new(kind: EventKind, actor: &str) -> Self {
        Self {
            revision: 0,
            at: Timestamp::now(),
            kind,
            vm: None,
            pool: None,
            lease: None,
            template: None,
            agent: None,
            moved: None,
            ended: None,
            cause: String::new(),
            actor: actor.to_owned(),
            duration: None,
        }
    }

    /// Something about a VM that is no change of its row.
    #[must_use]
    pub fn of_vm(kind: EventKind, vm: &Vm, cause: &str, actor: &str) -> Self {
        Self {
            vm: Some(vm.id.clone()),
            pool: vm.pool.clone(),
            cause: cause.to_owned(),
            ..Self::new(kind, actor)
        }
    }

    /// A VM's row became another one.
    #[must_use]
    pub fn vm_changed(old: &Vm, new: &Vm, actor: &str) -> Self {
        let moved = old.state != new.state;
        let quarantined =
            new.availability == Availability::Quarantined && old.availability != Availability::Quarantined;
        let kind = if moved {
            EventKind::VmMoved
        } else if quarantined {
            EventKind::VmQuarantined
        } else {
            EventKind::VmChanged
        };
        let told = moved || quarantined || old.state_reason != new.state_reason;
        // A state at rest lasts as long as it likes; how long a move took is worth knowing.
        let took = (moved && old.state.is_transient())
            .then(|| new.state_since.duration_since(old.state_since).unsigned_abs());
        Self {
            at: new.updated,
            pool: old.pool.clone().or_else(|| new.pool.clone()),
            lease: old.lease.clone().or_else(|| new.lease.clone()),
            moved: moved.then_some((old.state, new.state)),
            duration: took,
            ..Self::of_vm(kind, new, if told { &new.state_reason } else { "" }, actor)
        }
    }

    /// Something about a lease.
    #[must_use]
    pub fn of_lease(kind: EventKind, lease: &Lease, actor: &str) -> Self {
        Self {
            vm: Some(lease.vm.clone()),
            pool: Some(lease.pool.clone()),
            lease: Some(lease.id.clone()),
            ended: lease.ended,
            cause: if lease.ended.is_some() { lease.end_reason.clone() } else { lease.purpose.clone() },
            duration: lease.ended_at.map(|at| at.duration_since(lease.created).unsigned_abs()),
            ..Self::new(kind, actor)
        }
    }

    /// Something about a pool.
    #[must_use]
    pub fn of_pool(kind: EventKind, pool: &Pool, actor: &str) -> Self {
        Self {
            pool: Some(pool.id.clone()),
            template: Some(pool.spec.template.clone()),
            ..Self::new(kind, actor)
        }
    }

    /// Something about a template.
    #[must_use]
    pub fn of_template(kind: EventKind, template: &Template, cause: &str, actor: &str) -> Self {
        let now = Timestamp::now();
        Self {
            at: now,
            template: Some(template.id.clone()),
            cause: cause.to_owned(),
            duration: (kind == EventKind::TemplateReady)
                .then(|| now.duration_since(template.created).unsigned_abs()),
            ..Self::new(kind, actor)
        }
    }
}

impl Event {
    /// Something about an agent.
    #[must_use]
    pub fn of_agent(kind: EventKind, agent: &Agent, actor: &str) -> Self {
        Self {
            pool: Some(agent.spec.pool.clone()),
            vm: agent.vm.clone(),
            agent: Some(agent.id.clone()),
            cause: agent.reason.clone(),
            ..Self::new(kind, actor)
        }
    }

    /// An agent's row became another one.
    #[must_use]
    pub fn agent_changed(old: &Agent, new: &Agent, actor: &str) -> Self {
        let kind = match new.status {
            same if same == old.status => EventKind::AgentChanged,
            AgentStatus::Pending => EventKind::AgentPending,
            AgentStatus::Scheduled => EventKind::AgentScheduled,
            AgentStatus::Running => EventKind::AgentRunning,
            AgentStatus::Completed => EventKind::AgentCompleted,
            AgentStatus::Failed => EventKind::AgentFailed,
            AgentStatus::Cancelled => EventKind::AgentCancelled,
        };
        let took = (old.status == AgentStatus::Running && new.status != old.status)
            .then(|| old.started.map(|started| new.updated.duration_since(started).unsigned_abs()));
        let vm = new.vm.clone().or_else(|| old.vm.clone());
        let cause = if kind == EventKind::AgentChanged { "" } else { &new.reason };
        Self {
            at: new.updated,
            vm,
            cause: cause.to_owned(),
            duration: took.flatten(),
            ..Self::of_agent(kind, new, actor)
        }
    }
}

/// A point in the history of one store. Text of it is opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// Tells histories apart: a store that was restored from a backup has another one.
    pub incarnation: u32,
    /// Number of the last event that is known there.
    pub number: u64,
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}{:x}", self.incarnation, self.number)
    }
}

impl std::str::FromStr for Revision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // `from_str_radix` takes signs.
        if !(9..=24).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        let (incarnation, number) = text.split_at(8);
        Ok(Self {
            incarnation: u32::from_str_radix(incarnation, 16).map_err(drop)?,
            number: u64::from_str_radix(number, 16).map_err(drop)?,
        })
    }
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only about this pool, its VMs and leases.
    pub pool: Option<PoolId>,
    /// Only about this VM.
    pub vm: Option<VmId>,
    /// Only about this agent.
    pub agent: Option<AgentId>,
    /// Only of these kinds; empty: all.
    pub kinds: Vec<EventKind>,
    /// Only from then on.
    pub since: Option<Timestamp>,
}

impl EventFilter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        (self.pool.is_none() || self.pool == event.pool)
            && (self.vm.is_none() || self.vm == event.vm)
            && (self.agent.is_none() || self.agent == event.agent)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.since.is_none_or(|since| event.at >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn revisions_read_back() {
        for (incarnation, number) in [(0, 0), (7, 1), (u32::MAX, u64::MAX)] {
            let revision = Revision { incarnation, number };
            assert_eq!(revision.to_string().parse(), Ok(revision));
        }
        for bad in ["", "12345678", "+1234567+", "1234567890123456789012345", "zzzzzzzz1"] {
            assert_eq!(bad.parse::<Revision>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn kinds_are_unique_and_read_back() {
        let texts: HashSet<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(texts.len(), EventKind::ALL.len());
        assert!(EventKind::ALL.iter().all(|kind| EventKind::parse(kind.as_str()) == Some(*kind)));
        assert_eq!(EventKind::parse("vm_born"), None);
    }
}
