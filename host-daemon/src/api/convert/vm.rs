//! VMs and checkpoints.

use std::time::Duration;

use hvkube_proto::v1;

use super::{micros, name_of, timestamp};
use crate::api::fields;
use crate::hypervisor::Stop;
use crate::model::error::{Error, Result};
use crate::model::ids::VmId;
use crate::model::record::Availability;
use crate::model::vm::VmState;
use crate::orchestrator::request::{Caller, Fork, TakeCheckpoint, VmFilter};
use crate::orchestrator::view::{CheckpointView, GuestView, VmView};

const DEFAULT_STOP: Duration = Duration::from_secs(30);
const MAX_STOP: Duration = Duration::from_secs(600);

/// The VM of a move. Moves are idempotent by themselves; a `request_id` only has to be one.
pub(crate) fn moved(name: &str, request_id: &str) -> Result<VmId> {
    let id = fields::name("name", "vms", name)?;
    fields::uuid("request_id", request_id)?;
    Ok(id)
}

pub(crate) fn stop(request: &v1::StopVmRequest) -> Result<(VmId, Stop)> {
    let id = moved(&request.name, &request.request_id)?;
    let mode = fields::one_of("mode", request.mode, v1::StopMode::as_str_name)?;
    let timeout = fields::duration("timeout", request.timeout, Duration::ZERO..=MAX_STOP)?;
    Ok(match (mode, timeout) {
        (v1::StopMode::Hard, None) => (id, Stop::Hard),
        (v1::StopMode::Hard, Some(_)) => return Err(Error::field("timeout", "needs a graceful mode")),
        (v1::StopMode::Unspecified | v1::StopMode::Graceful, timeout) => {
            (id, Stop::Graceful(timeout.unwrap_or(DEFAULT_STOP)))
        }
    })
}

pub(crate) fn filter(request: &v1::ListVmsRequest) -> Result<VmFilter> {
    Ok(VmFilter {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        states: states(&request.states)?,
    })
}

pub(super) fn states(wanted: &[i32]) -> Result<Vec<VmState>> {
    let mut states = Vec::new();
    for (i, state) in wanted.iter().enumerate() {
        let field = format!("states[{i}]");
        let state = fields::one_of(&field, *state, v1::VmState::as_str_name)?;
        states
            .push(from_state(state).ok_or_else(|| Error::field(field, "VM_STATE_UNSPECIFIED is no state"))?);
    }
    Ok(states)
}

pub(crate) fn fork(caller: &Caller, request: &v1::ForkVmRequest) -> Result<Fork> {
    Ok(Fork {
        vm: fields::name("name", "vms", &request.name)?,
        new: fields::id("vm_id", &request.vm_id)?,
        request: fields::request_id(caller, "ForkVm", request, |r| &mut r.request_id)?,
    })
}

pub(crate) fn take_checkpoint(
    caller: &Caller,
    request: &v1::CreateCheckpointRequest,
) -> Result<TakeCheckpoint> {
    let description = request.checkpoint.as_ref().map(|c| c.description.as_str()).unwrap_or_default();
    Ok(TakeCheckpoint {
        vm: fields::name("parent", "vms", &request.parent)?,
        id: fields::id("checkpoint_id", &request.checkpoint_id)?,
        description: fields::text("checkpoint.description", description, fields::DESCRIPTION)?.to_owned(),
        request: fields::request_id(caller, "CreateCheckpoint", request, |r| &mut r.request_id)?,
    })
}

pub(crate) fn to_proto(view: &VmView) -> v1::Vm {
    let vm = &view.vm;
    v1::Vm {
        name: format!("vms/{}", vm.id),
        uid: vm.uid.to_string(),
        template: format!("templates/{}", vm.template),
        pool: name_of("pools", vm.pool.as_ref()),
        forked_from: name_of("vms", vm.forked_from.as_ref()),
        state: state(vm.state).into(),
        state_reason: vm.state_reason.clone(),
        state_time: Some(timestamp(vm.state_since)),
        availability: match vm.availability {
            Availability::Idle => v1::VmAvailability::Idle,
            Availability::Leased => v1::VmAvailability::Leased,
            Availability::Quarantined => v1::VmAvailability::Quarantined,
        }
        .into(),
        lease: name_of("leases", vm.lease.as_ref()),
        disk_path: view.files.disk.display().to_string(),
        saved_state_path: view
            .files
            .saved_state
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
        ip_address: vm.ip_address.clone(),
        rdp_port: vm.rdp_port.into(),
        memory_mb: vm.memory_mb,
        cpu_count: vm.cpu_count,
        gpu_enabled: vm.gpu,
        resident_bytes: view.resident_bytes,
        guest: view.guest.as_ref().map(guest),
        process_id: view.pid.unwrap_or(0),
        current_agent: name_of("agents", view.agent.as_ref()),
        create_time: Some(timestamp(vm.created)),
        last_resumed_at: vm.last_resumed.map(timestamp),
        update_time: Some(timestamp(vm.updated)),
        etag: vm.version.to_string(),
    }
}

fn guest(guest: &GuestView) -> v1::GuestSession {
    v1::GuestSession {
        connected: guest.connected,
        epoch: guest.epoch,
        agent_version: guest.agent_version.clone(),
        os: guest.os.clone(),
        clock_skew: Some(micros(guest.clock_skew_micros)),
        load1: guest.load1,
        memory_available_bytes: guest.memory_available_bytes,
        heartbeat_time: guest.heartbeat.map(timestamp),
    }
}

pub(crate) fn checkpoint(vm: &VmId, view: &CheckpointView) -> v1::Checkpoint {
    v1::Checkpoint {
        name: format!("vms/{vm}/checkpoints/{}", view.id),
        description: view.description.clone(),
        has_memory: view.has_memory,
        size_bytes: view.size_bytes,
        create_time: Some(timestamp(view.created)),
    }
}

pub(super) fn state(state: VmState) -> v1::VmState {
    match state {
        VmState::Provisioning => v1::VmState::Provisioning,
        VmState::Booting => v1::VmState::Booting,
        VmState::Running => v1::VmState::Running,
        VmState::Saving => v1::VmState::Saving,
        VmState::Saved => v1::VmState::Saved,
        VmState::Resuming => v1::VmState::Resuming,
        VmState::Paused => v1::VmState::Paused,
        VmState::Resetting => v1::VmState::Resetting,
        VmState::Stopping => v1::VmState::Stopping,
        VmState::Off => v1::VmState::Off,
        VmState::Deleting => v1::VmState::Deleting,
        VmState::Error => v1::VmState::Error,
    }
}

fn from_state(wanted: v1::VmState) -> Option<VmState> {
    VmState::ALL.into_iter().find(|known| state(*known) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").violations.remove(0).field
    }

    #[test]
    fn refusals_name_their_field() {
        let caller = Caller::admin();
        assert_eq!(field(moved("vms/", "")), "name");
        assert_eq!(field(moved("vms/a1", "x")), "request_id");

        let stop_with = |mode: i32, seconds: Option<i64>| {
            let timeout = seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
            stop(&v1::StopVmRequest { name: "vms/a1".into(), mode, timeout, request_id: String::new() })
        };
        assert_eq!(field(stop_with(7, None)), "mode");
        assert_eq!(field(stop_with(0, Some(601))), "timeout");
        assert_eq!(field(stop_with(2, Some(1))), "timeout");
        assert_eq!(stop_with(0, None).expect("legal").1, Stop::Graceful(DEFAULT_STOP));
        assert_eq!(stop_with(2, None).expect("legal").1, Stop::Hard);

        let list = v1::ListVmsRequest { states: vec![3, 99], ..Default::default() };
        assert_eq!(field(filter(&list)), "states[1]");
        let list = v1::ListVmsRequest { states: vec![0], ..Default::default() };
        assert_eq!(field(filter(&list)), "states[0]");
        let list = v1::ListVmsRequest { pool: "web".into(), ..Default::default() };
        assert_eq!(field(filter(&list)), "pool");

        let forked = v1::ForkVmRequest { name: "vms/a1".into(), vm_id: "B".into(), ..Default::default() };
        assert_eq!(field(fork(&caller, &forked)), "vm_id");
        let taken = |id: &str, description: String| {
            let checkpoint = Some(v1::Checkpoint { description, ..Default::default() });
            take_checkpoint(
                &caller,
                &v1::CreateCheckpointRequest {
                    parent: "vms/a1".into(),
                    checkpoint_id: id.into(),
                    checkpoint,
                    request_id: String::new(),
                },
            )
        };
        assert_eq!(field(taken("a/b", String::new())), "checkpoint_id");
        assert_eq!(field(taken("c1", "x".repeat(257))), "checkpoint.description");
        assert_eq!(field(take_checkpoint(&caller, &v1::CreateCheckpointRequest::default())), "parent");
    }

    #[test]
    fn states_map_both_ways() {
        for known in VmState::ALL {
            assert_eq!(from_state(state(known)), Some(known));
        }
        assert_eq!(from_state(v1::VmState::Unspecified), None);
    }
}
