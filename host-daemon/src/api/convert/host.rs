//! Hosts.

use hvkube_proto::v1;

use super::{template, timestamp};
use crate::api::fields;
use crate::model::error::{Error, Result};
use crate::orchestrator::request::{BackupStore, Caller};
use crate::orchestrator::view::HostView;

pub(crate) fn backup(caller: &Caller, request: &v1::BackupStoreRequest) -> Result<BackupStore> {
    let path = fields::required_text("path", &request.path, fields::PATH)?;
    if !std::path::Path::new(path).is_absolute() || path.ends_with('/') {
        return Err(Error::field("path", "must be the absolute path of a file on the host"));
    }
    Ok(BackupStore {
        path: path.into(),
        overwrite: request.overwrite,
        request: fields::request_id(caller, "BackupStore", request, |r| &mut r.request_id)?,
    })
}

pub(crate) fn to_proto(host: &HostView) -> v1::Host {
    let can = &host.capabilities;
    v1::Host {
        name: format!("hosts/{}", host.id),
        daemon_version: env!("CARGO_PKG_VERSION").into(),
        start_time: Some(timestamp(host.started)),
        hypervisor: host.hypervisor.name.into(),
        hypervisor_version: host.hypervisor.version.clone(),
        accelerator: host.hypervisor.accelerator.into(),
        accelerator_reason: host.hypervisor.accelerator_reason.clone(),
        capabilities: Some(v1::Capabilities {
            save: can.save,
            pause: can.pause,
            memory_checkpoints: can.memory_checkpoints,
            fork: can.fork,
            hypervisor_display: can.display,
            gpu: can.gpu,
            networks: can.networks.iter().map(|mode| template::network_mode(*mode).into()).collect(),
            clone_method: template::clone_method(can.clone_method).into(),
        }),
        cpu_count: host.cpu_count,
        load1: host.load1,
        memory_total_bytes: host.memory_total_bytes,
        memory_available_bytes: host.memory_available_bytes,
        memory_running_vms_bytes: host.memory_running_vms_bytes,
        vm_count: host.vm_count,
        running_vm_count: host.running_vm_count,
        disk_available_bytes: host.disk_available_bytes,
    }
}
