//! The host.

use crate::model::error::{Error, Reason, Result};
use crate::model::vm::VmState;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::view::HostView;

impl Orchestrator {
    /// Id of this host.
    #[must_use]
    pub fn host_id(&self) -> &str {
        &self.0.settings.host_id
    }

    /// What this host is and has.
    ///
    /// # Errors
    /// [`Reason::Internal`] when the host does not say.
    pub async fn host(&self) -> Result<HostView> {
        let shared = &self.0;
        let (memory_total_bytes, memory_available_bytes) = memory();
        let mut running_mb = 0;
        let (mut vm_count, mut running_vm_count) = (0, 0);
        for handle in shared.registry.all() {
            vm_count += 1;
            let (state, memory_mb) = handle.look(|row| (row.state, row.memory_mb));
            if state.occupies_memory() {
                running_mb += memory_mb;
            }
            running_vm_count += u32::from(state == VmState::Running);
        }
        let disk = rustix::fs::statvfs(&shared.settings.data_dir)
            .map_err(|error| Error::internal(Reason::Internal, "the data folder can't be read", error))?;
        let cpu_count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(HostView {
            id: shared.settings.host_id.clone(),
            started: shared.started,
            hypervisor: shared.hv.facts().clone(),
            capabilities: shared.hv.capabilities().clone(),
            cpu_count: u32::try_from(cpu_count).unwrap_or(u32::MAX),
            load1: load1(),
            memory_total_bytes,
            memory_available_bytes,
            memory_running_vms_bytes: running_mb << 20,
            vm_count,
            running_vm_count,
            disk_available_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }
}

/// Memory of the host and how much of it programs can still get, in bytes; zeroes where the system does not say.
pub(in crate::orchestrator) fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
    };
    (field("MemTotal").unwrap_or_default(), field("MemAvailable").unwrap_or_default())
}

fn load1() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_has_memory() {
        let (total, available) = super::memory();
        assert!(total > available && available > 0, "{total} {available}");
    }
}
