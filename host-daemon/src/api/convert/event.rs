//! Events.

use hvkube_proto::v1;

use super::{duration, name_of, timestamp, vm};
use crate::model::event::{Event, EventKind, Revision};
use crate::model::lease::EndedAs;

pub(crate) fn to_proto(event: &Event, incarnation: u32) -> v1::Event {
    let (from_state, to_state) = event.moved.unzip();
    v1::Event {
        revision: Revision { incarnation, number: event.revision }.to_string(),
        time: Some(timestamp(event.at)),
        kind: kind(event.kind).into(),
        vm: name_of("vms", event.vm.as_ref()),
        pool: name_of("pools", event.pool.as_ref()),
        lease: name_of("leases", event.lease.as_ref()),
        template: name_of("templates", event.template.as_ref()),
        agent: name_of("agents", event.agent.as_ref()),
        from_state: from_state.map_or(0, |state| vm::state(state).into()),
        to_state: to_state.map_or(0, |state| vm::state(state).into()),
        lease_state: event.ended.map_or(0, |ended| i32::from(lease_state(ended))),
        cause: event.cause.clone(),
        actor: event.actor.clone(),
        duration: event.duration.map(duration),
    }
}

fn lease_state(ended: EndedAs) -> v1::LeaseState {
    match ended {
        EndedAs::Released => v1::LeaseState::Released,
        EndedAs::Expired => v1::LeaseState::Expired,
        EndedAs::VmLost => v1::LeaseState::VmLost,
        EndedAs::Revoked => v1::LeaseState::Revoked,
    }
}

fn kind(kind: EventKind) -> v1::EventKind {
    match kind {
        EventKind::VmCreated => v1::EventKind::VmCreated,
        EventKind::VmMoved => v1::EventKind::VmMoved,
        EventKind::VmQuarantined => v1::EventKind::VmQuarantined,
        EventKind::VmChanged => v1::EventKind::VmChanged,
        EventKind::VmDeleted => v1::EventKind::VmDeleted,
        EventKind::ConsoleOpened => v1::EventKind::ConsoleOpened,
        EventKind::ConsoleClosed => v1::EventKind::ConsoleClosed,
        EventKind::LeaseGranted => v1::EventKind::LeaseGranted,
        EventKind::LeaseReady => v1::EventKind::LeaseReady,
        EventKind::LeaseSuspended => v1::EventKind::LeaseSuspended,
        EventKind::LeaseResumed => v1::EventKind::LeaseResumed,
        EventKind::LeaseRenewed => v1::EventKind::LeaseRenewed,
        EventKind::LeaseEnded => v1::EventKind::LeaseEnded,
        EventKind::PoolCreated => v1::EventKind::PoolCreated,
        EventKind::PoolChanged => v1::EventKind::PoolChanged,
        EventKind::PoolPaused => v1::EventKind::PoolPaused,
        EventKind::PoolResumed => v1::EventKind::PoolResumed,
        EventKind::PoolDeleting => v1::EventKind::PoolDeleting,
        EventKind::PoolDeleted => v1::EventKind::PoolDeleted,
        EventKind::TemplateCreated => v1::EventKind::TemplateCreated,
        EventKind::TemplateReady => v1::EventKind::TemplateReady,
        EventKind::TemplateDeleting => v1::EventKind::TemplateDeleting,
        EventKind::TemplateDeleted => v1::EventKind::TemplateDeleted,
        EventKind::AgentSubmitted => v1::EventKind::AgentSubmitted,
        EventKind::AgentScheduled => v1::EventKind::AgentScheduled,
        EventKind::AgentRunning => v1::EventKind::AgentRunning,
        EventKind::AgentPending => v1::EventKind::AgentPending,
        EventKind::AgentCompleted => v1::EventKind::AgentCompleted,
        EventKind::AgentFailed => v1::EventKind::AgentFailed,
        EventKind::AgentCancelled => v1::EventKind::AgentCancelled,
        EventKind::AgentChanged => v1::EventKind::AgentChanged,
        EventKind::AgentDeleted => v1::EventKind::AgentDeleted,
    }
}

/// The reverse; unspecified is no kind.
pub(crate) fn from_kind(wanted: v1::EventKind) -> Option<EventKind> {
    EventKind::ALL.iter().copied().find(|known| kind(*known) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_map_both_ways() {
        for known in EventKind::ALL {
            assert_eq!(from_kind(kind(*known)), Some(*known));
            let text = format!("EVENT_KIND_{}", known.as_str().to_uppercase());
            assert_eq!(kind(*known).as_str_name(), text);
        }
        assert_eq!(from_kind(v1::EventKind::Unspecified), None);
    }
}
