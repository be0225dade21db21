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
    /// Where secrets are kept; made with the first one.
    pub secrets_dir: PathBuf,
    /// Where masks are kept; made with the first ones.
    pub masks_dir: PathBuf,
    /// How long a golden image may take to boot until its agent answers. Software emulation takes 20 to 40 s, a first
    /// Windows boot longer.
    pub boot_timeout: Duration,
    /// How long a resumed guest's agent may take to answer before something else is tried: another VM if one is ready,
    /// else its clean state again. Usually it takes 60 ms.
    pub answer_timeout: Duration,
    /// How long it may take after that before the VM counts as failed.
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
    /// How long events are kept.
    pub keep_events: Duration,
    /// Most events that are kept, whatever their age: a busy host has thousands a second. Each takes about 200 bytes.
    pub keep_events_max: u64,
    /// A watch that has nothing to say says so this often, which moves its revision on and shows that it lives.
    pub watch_bookmark: Duration,
    /// How long a reader of a watch may take nothing though there is something.
    pub watch_patience: Duration,
    /// Save running VMs when the daemon stops, so that they go on afterwards; otherwise they keep running by themselves.
    pub save_on_shutdown: bool,
    /// How long moves under way get to finish when the daemon stops.
    pub drain_timeout: Duration,
    /// How much waiting a point of priority is worth in a queue.
    pub queue_ageing: Duration,
    /// Leases that one caller may hold or wait for at once, in all pools; 0: no limit.
    pub max_leases_per_caller: u32,
    /// Share of the host's memory that may be promised to VMs, in percent; 0: no limit. Saved ones count with what they
    /// will need when they run.
    pub memory_limit_percent: u32,
    /// How long a pool that follows demand keeps idle VMs it has too many of: demand may come back.
    pub scale_down_after: Duration,
    /// How long a lease has its VM before a more important one may preempt it.
    pub preempt_grace: Duration,
    /// How often a hot VM is proven; more seldom where there are hundreds of them.
    pub proof_every: Duration,
    /// How often rows and VMs are brought together while the daemon runs; zero: only at its start. One look costs some
    /// microseconds for each VM, and what does not fit is acted on at the second.
    pub reconcile_every: Duration,
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
            secrets_dir: PathBuf::from("secrets"),
            masks_dir: PathBuf::from("masks"),
            boot_timeout: Duration::from_secs(180),
            answer_timeout: Duration::from_secs(10),
            agent_timeout: Duration::from_secs(30),
            settle_quiet: Duration::from_secs(5),
            part_time: Duration::from_secs(1),
            settle_timeout: Duration::from_secs(60),
            provision_parallel: 4,
            keep_broken: Duration::from_secs(300),
            keep_ended: Duration::from_secs(24 * 3600),
            keep_events: Duration::from_secs(24 * 3600),
            keep_events_max: 1_000_000,
            watch_bookmark: Duration::from_secs(15),
            watch_patience: Duration::from_secs(30),
            save_on_shutdown: true,
            drain_timeout: Duration::from_secs(30),
            queue_ageing: Duration::from_secs(30),
            max_leases_per_caller: 0,
            memory_limit_percent: 80,
            scale_down_after: Duration::from_secs(60),
            preempt_grace: Duration::from_secs(10),
            proof_every: Duration::from_millis(400),
            reconcile_every: Duration::from_secs(60),
            apply_identity: true,
            agents: AgentSettings::default(),
        }
    }
}
