//! Settings of the daemon: what they are, their defaults, and what they mean for the parts.
//!
//! Sources in rising precedence: defaults, the file, the environment (`HVKUBED_QEMU__ACCEL=tcg`), flags. [`load`] merges
//! them and remembers where each value came from; [`show`] prints that.

mod duration;
pub mod load;
pub mod show;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::hypervisor::process::ProcessConfig;
use crate::hypervisor::qemu::{AccelChoice, ForkChoice, QemuConfig};
use crate::hypervisor::sim::{FaultRate, Profile, SimConfig, TimeFactor};
use crate::orchestrator::agents::AgentSettings;
use crate::orchestrator::agents::request::GuestWorkflow;
use crate::orchestrator::settings::Settings;
use crate::store::StoreConfig;

/// All settings; complete after [`load::load`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the API; loopback only.
    pub listen: SocketAddr,
    /// Everything that must outlive the daemon.
    pub state_dir: PathBuf,
    /// Sockets; short, because a socket's path has 107 bytes at most.
    pub run_dir: PathBuf,
    /// What runs the VMs.
    pub hypervisor: HypervisorKind,
    /// Callers without the admin token may use `as_root` in guests.
    pub allow_root_exec: bool,
    /// QEMU.
    pub qemu: Qemu,
    /// Plain processes.
    pub process: Process,
    /// The simulation.
    pub sim: Sim,
    /// VMs, pools and leases.
    pub orchestrator: Orchestrator,
    /// Agents: tasks that run on desktops.
    pub agents: Agents,
    /// The database.
    pub store: Store,
    /// What is written to standard error.
    pub log: Log,
    /// How the daemon stops.
    pub shutdown: Shutdown,
    /// Workflows that are programs in guests, by name.
    #[serde(default)]
    pub workflows: BTreeMap<String, Workflow>,
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HypervisorKind {
    /// Virtual machines.
    Qemu,
    /// A private X display with an agent: no isolation, so it is never chosen by itself.
    Process,
    /// Nothing real at all, for tests of scale and of faults; never chosen by itself either.
    Sim,
}

/// Settings of the QEMU backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// The emulator.
    pub binary: PathBuf,
    /// The disk tool.
    pub img_binary: PathBuf,
    /// Accelerator.
    pub accel: AccelChoice,
    /// Copy-on-write clones of the template's memory.
    pub fork: ForkChoice,
    /// The helper that connects VMs to bridges.
    pub bridge_helper: PathBuf,
    /// Folders to look for UEFI firmware in.
    pub firmware_dirs: Vec<PathBuf>,
}

/// Settings of the process backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The guest agent; empty: the one beside the daemon, then on the PATH.
    pub agent_binary: PathBuf,
    /// The X server.
    pub x_server: PathBuf,
    /// The window manager and its arguments, with spaces between them; empty: none.
    pub window_manager: String,
}

/// Settings of the simulated hypervisor; see [`SimConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sim {
    /// See [`SimConfig::profile`].
    pub profile: Profile,
    /// See [`SimConfig::time_factor`].
    pub time_factor: TimeFactor,
    /// See [`SimConfig::seed`].
    pub seed: u64,
    /// See [`SimConfig::faults`].
    // An empty list is lost on the way through the merge of the sources.
    #[serde(default)]
    pub faults: Vec<FaultRate>,
}

/// Settings of VMs, pools and leases; see [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orchestrator {
    /// Id of this host.
    pub host_id: String,
    /// See [`Settings::boot_timeout`].
    #[serde(with = "duration")]
    pub boot_timeout: Duration,
    /// See [`Settings::answer_timeout`].
    #[serde(with = "duration")]
    pub answer_timeout: Duration,
    /// See [`Settings::agent_timeout`].
    #[serde(with = "duration")]
    pub agent_timeout: Duration,
    /// See [`Settings::settle_quiet`].
    #[serde(with = "duration")]
    pub settle_quiet: Duration,
    /// See [`Settings::settle_timeout`].
    #[serde(with = "duration")]
    pub settle_timeout: Duration,
    /// See [`Settings::provision_parallel`].
    pub provision_parallel: usize,
    /// See [`Settings::keep_broken`].
    #[serde(with = "duration")]
    pub keep_broken: Duration,
    /// See [`Settings::keep_ended`].
    #[serde(with = "duration")]
    pub keep_ended: Duration,
    /// See [`Settings::keep_events`].
    #[serde(with = "duration")]
    pub keep_events: Duration,
    /// See [`Settings::keep_events_max`].
    pub keep_events_max: u64,
    /// See [`Settings::queue_ageing`].
    #[serde(with = "duration")]
    pub queue_ageing: Duration,
    /// See [`Settings::max_leases_per_caller`].
    pub max_leases_per_caller: u32,
    /// See [`Settings::memory_limit_percent`].
    pub memory_limit_percent: u32,
    /// See [`Settings::scale_down_after`].
    #[serde(with = "duration")]
    pub scale_down_after: Duration,
    /// See [`Settings::preempt_grace`].
    #[serde(with = "duration")]
    pub preempt_grace: Duration,
    /// See [`Settings::reconcile_every`].
    #[serde(with = "duration")]
    pub reconcile_every: Duration,
    /// See [`Settings::apply_identity`].
    pub apply_identity: bool,
}

/// Settings of agents; see [`AgentSettings`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agents {
    /// See [`AgentSettings::claim_ttl`].
    #[serde(with = "duration")]
    pub claim_ttl: Duration,
    /// See [`AgentSettings::keep_ended`].
    #[serde(with = "duration")]
    pub keep_ended: Duration,
    /// See [`AgentSettings::keep_screenshots`].
    #[serde(with = "duration")]
    pub keep_screenshots: Duration,
    /// See [`AgentSettings::per_pool`].
    pub per_pool: usize,
}

/// A workflow that is a program in guests; see [`GuestWorkflow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    /// Program and arguments, run without a shell.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Directory to start in; empty: the desktop user's home.
    #[serde(default)]
    pub cwd: String,
    /// How long an attempt may take, where the submitter does not say.
    #[serde(with = "duration", default = "workflow_timeout")]
    pub timeout: Duration,
    /// Run as root instead of the desktop user.
    #[serde(default)]
    pub as_root: bool,
    /// Keep a picture of the screen when the program has ended.
    #[serde(default = "yes")]
    pub screenshot: bool,
}

fn workflow_timeout() -> Duration {
    Duration::from_secs(30 * 60)
}

fn yes() -> bool {
    true
}

impl From<&Workflow> for GuestWorkflow {
    fn from(from: &Workflow) -> Self {
        Self {
            argv: from.argv.clone(),
            cwd: from.cwd.clone(),
            timeout: from.timeout,
            as_root: from.as_root,
            screenshot: from.screenshot,
        }
    }
}

/// Settings of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The file.
    pub path: PathBuf,
    /// Commits wait for the disk.
    pub synchronous: bool,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `error` to `trace`, or directives as `info,hvkube_host::api=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Time, level, module and text.
    Full,
    /// The same with less of it, for journals that have a time of their own.
    Compact,
}

/// How the daemon stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// How long calls get to finish.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// How long moves of VMs get to finish.
    #[serde(with = "duration")]
    pub moves_timeout: Duration,
    /// Save running VMs; otherwise they keep running and are taken over by the next daemon.
    pub save_vms: bool,
}

/// The address that clients try by themselves.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7420);

impl Config {
    /// The defaults for this state directory. Empty paths are filled by [`Config::resolve`].
    #[must_use]
    pub fn defaults(state_dir: impl Into<PathBuf>) -> Self {
        let settings = Settings::default();
        let qemu = QemuConfig::new("", "");
        Self {
            listen: DEFAULT_LISTEN,
            state_dir: state_dir.into(),
            run_dir: PathBuf::new(),
            hypervisor: HypervisorKind::Qemu,
            allow_root_exec: true,
            qemu: Qemu {
                binary: qemu.binary,
                img_binary: qemu.img_binary,
                accel: qemu.accel,
                fork: qemu.fork,
                bridge_helper: qemu.bridge_helper,
                firmware_dirs: qemu.firmware_dirs,
            },
            process: Process {
                agent_binary: PathBuf::new(),
                x_server: "Xvfb".into(),
                window_manager: "openbox".into(),
            },
            sim: Sim { profile: Profile::Hyperv, time_factor: TimeFactor::ONE, seed: 0, faults: Vec::new() },
            orchestrator: Orchestrator {
                host_id: settings.host_id,
                boot_timeout: settings.boot_timeout,
                answer_timeout: settings.answer_timeout,
                agent_timeout: settings.agent_timeout,
                settle_quiet: settings.settle_quiet,
                settle_timeout: settings.settle_timeout,
                provision_parallel: settings.provision_parallel,
                keep_broken: settings.keep_broken,
                keep_ended: settings.keep_ended,
                keep_events: settings.keep_events,
                keep_events_max: settings.keep_events_max,
                queue_ageing: settings.queue_ageing,
                max_leases_per_caller: settings.max_leases_per_caller,
                memory_limit_percent: settings.memory_limit_percent,
                scale_down_after: settings.scale_down_after,
                preempt_grace: settings.preempt_grace,
                reconcile_every: settings.reconcile_every,
                apply_identity: settings.apply_identity,
            },
            agents: Agents {
                claim_ttl: settings.agents.claim_ttl,
                keep_ended: settings.agents.keep_ended,
                keep_screenshots: settings.agents.keep_screenshots,
                per_pool: settings.agents.per_pool,
            },
            store: Store { path: PathBuf::new(), synchronous: true },
            log: Log { level: "info".into(), format: LogFormat::Full },
            shutdown: Shutdown {
                drain_timeout: Duration::from_secs(10),
                moves_timeout: settings.drain_timeout,
                save_vms: settings.save_on_shutdown,
            },
            workflows: BTreeMap::new(),
        }
    }

    /// Fills what follows from other settings.
    pub fn resolve(&mut self, dirs: &Dirs) {
        if self.run_dir.as_os_str().is_empty() {
            self.run_dir = match &dirs.run_base {
                Some(base) if self.state_dir == dirs.state_dir => base.clone(),
                // Two daemons with different state must not meet in one directory; eight digits keep the path short.
                Some(base) => {
                    let hash = Sha256::digest(self.state_dir.as_os_str().as_encoded_bytes());
                    base.join(hex::encode(&hash[..4]))
                }
                None => self.state_dir.join("run"),
            };
        }
        if self.store.path.as_os_str().is_empty() {
            self.store.path = self.state_dir.join("hvkube.db");
        }
    }

    /// For the orchestrator.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let from = &self.orchestrator;
        Settings {
            host_id: from.host_id.clone(),
            data_dir: self.state_dir.clone(),
            secrets_dir: self.state_dir.join("secrets"),
            masks_dir: self.state_dir.join("masks"),
            boot_timeout: from.boot_timeout,
            answer_timeout: from.answer_timeout,
            agent_timeout: from.agent_timeout,
            settle_quiet: from.settle_quiet,
            part_time: Settings::default().part_time,
            settle_timeout: from.settle_timeout,
            provision_parallel: from.provision_parallel,
            keep_broken: from.keep_broken,
            keep_ended: from.keep_ended,
            keep_events: from.keep_events,
            keep_events_max: from.keep_events_max,
            watch_bookmark: Settings::default().watch_bookmark,
            watch_patience: Settings::default().watch_patience,
            save_on_shutdown: self.shutdown.save_vms,
            drain_timeout: self.shutdown.moves_timeout,
            queue_ageing: from.queue_ageing,
            max_leases_per_caller: from.max_leases_per_caller,
            memory_limit_percent: from.memory_limit_percent,
            scale_down_after: from.scale_down_after,
            preempt_grace: from.preempt_grace,
            proof_every: Settings::default().proof_every,
            reconcile_every: from.reconcile_every,
            apply_identity: from.apply_identity,
            agents: self.agent_settings(),
        }
    }

    fn agent_settings(&self) -> AgentSettings {
        let from = &self.agents;
        AgentSettings {
            dir: self.state_dir.join("agents"),
            claim_ttl: from.claim_ttl,
            keep_ended: from.keep_ended,
            keep_screenshots: from.keep_screenshots,
            per_pool: from.per_pool,
            workflows: self.workflows.iter().map(|(name, from)| (name.clone(), from.into())).collect(),
        }
    }

    /// For the QEMU backend.
    #[must_use]
    pub fn qemu(&self) -> QemuConfig {
        let from = &self.qemu;
        QemuConfig {
            data_dir: self.state_dir.join("qemu"),
            run_dir: self.run_dir.clone(),
            binary: from.binary.clone(),
            img_binary: from.img_binary.clone(),
            bridge_helper: from.bridge_helper.clone(),
            firmware_dirs: from.firmware_dirs.clone(),
            accel: from.accel,
            fork: from.fork,
        }
    }

    /// For the process backend.
    #[must_use]
    pub fn process(&self) -> ProcessConfig {
        let from = &self.process;
        ProcessConfig {
            dir: self.state_dir.join("process"),
            agent: if from.agent_binary.as_os_str().is_empty() { agent() } else { from.agent_binary.clone() },
            x_server: from.x_server.clone(),
            window_manager: from.window_manager.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// For the simulated hypervisor.
    #[must_use]
    pub fn sim(&self) -> SimConfig {
        let from = &self.sim;
        SimConfig {
            dir: self.state_dir.join("sim"),
            profile: from.profile,
            time_factor: from.time_factor,
            seed: from.seed,
            faults: from.faults.clone(),
        }
    }

    /// For the store.
    #[must_use]
    pub fn store(&self) -> StoreConfig {
        StoreConfig { path: self.store.path.clone(), durable: self.store.synchronous }
    }
}

/// The guest agent that was installed with this program, else the one in the PATH. Where there is none, its bare name:
/// the backend then says what it missed.
fn agent() -> PathBuf {
    const NAME: &str = "hvkube-guest";
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(NAME));
    beside.into_iter().chain(in_path).find(|agent| agent.is_file()).unwrap_or_else(|| NAME.into())
}

/// Where things are on this machine unless a setting says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Default state directory.
    pub state_dir: PathBuf,
    /// Directory for sockets of the daemon on the default state directory; absent: inside the state directory.
    pub run_base: Option<PathBuf>,
    /// Configuration files, the first that exists is read.
    pub files: Vec<PathBuf>,
}

const SYSTEM_FILE: &str = "/etc/hvkube/hvkubed.toml";

impl Dirs {
    /// Those of the system's daemon.
    #[must_use]
    pub fn system() -> Self {
        Self {
            state_dir: "/var/lib/hvkube".into(),
            run_base: Some("/run/hvkube".into()),
            files: vec![SYSTEM_FILE.into()],
        }
    }

    /// Those of this process: the system's for root, else the user's. `HVKUBE_STATE_DIR`, which the command line tool
    /// reads too, names another state directory.
    #[must_use]
    pub fn of_process() -> Self {
        let mut dirs = if rustix::process::geteuid().is_root() { Self::system() } else { Self::of_user() };
        if let Some(dir) = std::env::var_os("HVKUBE_STATE_DIR").filter(|dir| !dir.is_empty()) {
            let dir = Path::new(&dir);
            let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
            // A named one is never the default one, whatever its name: its sockets get a directory of their own.
            dirs.run_base = dirs.run_base.map(|base| {
                let hash = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
                if absolute == dirs.state_dir { base } else { base.join(hex::encode(&hash[..4])) }
            });
            dirs.state_dir = absolute;
        }
        dirs
    }

    fn of_user() -> Self {
        let Some(user) = directories::BaseDirs::new() else { return Self::system() };
        let state = user.state_dir().unwrap_or_else(|| user.data_local_dir());
        Self {
            state_dir: state.join("hvkube"),
            run_base: user.runtime_dir().map(|dir| dir.join("hvkube")),
            files: vec![user.config_dir().join("hvkube/hvkubed.toml"), SYSTEM_FILE.into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_do_not_share_a_run_directory() {
        let dirs = Dirs::system();
        let run = |state: &str| {
            let mut config = Config::defaults(state);
            config.resolve(&dirs);
            config.run_dir
        };
        assert_eq!(run("/var/lib/hvkube"), Path::new("/run/hvkube"));
        assert_ne!(run("/srv/a"), run("/srv/b"));
        assert!(run("/srv/a").starts_with("/run/hvkube"));
        let dirs = Dirs { run_base: None, ..dirs };
        let mut config = Config::defaults("/srv/a");
        config.resolve(&dirs);
        assert_eq!(config.run_dir, Path::new("/srv/a/run"));
        assert_eq!(config.store.path, Path::new("/srv/a/hvkube.db"));
    }
}
