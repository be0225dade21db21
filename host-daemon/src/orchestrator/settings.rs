//! Knobs of the orchestrator, with the reasons for their defaults.

use std::path::PathBuf;
use std::time::Duration;

use super::agents::AgentSettings;

/// Knobs of the orchestrator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Id of this host.
    pub host_id: String,
    /// Where VM files are kept; its free space is reported.
    pub data_dir: PathBuf,
    /// How long a golden image may take to boot until its agent answers. Software emulation takes 20 to 40 s, a first
    /// Windows boot longer.
    pub boot_timeout: Duration,
    /// How long a resumed guest's agent may take to answer before the VM counts as failed; usually 60 ms.
    pub agent_timeout: Duration,
    /// How long a desktop must be quiet before it becomes a template's clean state. What the guest still has to do then,
    /// every VM of the template does again when it is resumed; services start and end for seconds after a boot.
    pub settle_quiet: Duration,
    /// How long the guest goes on after the template's only session was closed, before its memory is frozen.
    pub part_time: Duration,
    /// When to take the clean state though the desktop is not quiet (a clock, a blinking caret).
    pub settle_timeout: Duration,
    /// VMs made at the same time in one pool. A clone is some file operations, a boot keeps a core busy.
    pub provision_parallel: usize,
    /// How long a VM that failed is kept for a look before it is deleted.
    pub keep_broken: Duration,
    /// How long ended leases, finished operations and answered requests are kept.
    pub keep_ended: Duration,
    /// Save running VMs when the daemon stops, so that they go on afterwards; otherwise they keep running by themselves.
    pub save_on_shutdown: bool,
    /// How long moves under way get to finish when the daemon stops.
    pub drain_timeout: Duration,
    /// Apply a fork's own hostname, machine id and MAC address in the guest.
    pub apply_identity: bool,
    /// Agents.
    pub agents: AgentSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host_id: "local".into(),
            data_dir: PathBuf::from("."),
            boot_timeout: Duration::from_secs(180),
            agent_timeout: Duration::from_secs(30),
            settle_quiet: Duration::from_secs(5),
            part_time: Duration::from_secs(1),
            settle_timeout: Duration::from_secs(60),
            provision_parallel: 4,
            keep_broken: Duration::from_secs(300),
            keep_ended: Duration::from_secs(24 * 3600),
            save_on_shutdown: true,
            drain_timeout: Duration::from_secs(30),
            apply_identity: true,
            agents: AgentSettings::default(),
        }
    }
}
