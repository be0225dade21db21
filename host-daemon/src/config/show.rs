//! Prints settings as TOML that can be read back, with what each means or where it came from.

use std::fmt::Write as _;

use super::Config;
use super::load::Loaded;

/// A setting, for people.
pub(super) struct Key {
    pub(super) path: &'static str,
    about: &'static str,
}

/// The settings that are lists.
pub(super) const LISTS: &[&str] = &["qemu.firmware_dirs", "sim.faults"];

const fn key(path: &'static str, about: &'static str) -> Key {
    Key { path, about }
}

/// Settings of each workflow: tables of any name, so they are not among [`KEYS`].
pub(super) const WORKFLOW: &[&str] = &["argv", "cwd", "timeout", "as_root", "screenshot"];

const WORKFLOW_ABOUT: &str = "
# Workflows that the daemon runs itself, as programs in the VMs of the agent's pool: the agent's input comes on standard
# input, its output is one JSON value on standard output, code 0 means done, standard error is its log. Any number:
#
# [workflows.book-flight]
# argv = [\"/opt/flows/book\", \"--headed\"]  # run without a shell
# cwd = \"\"                                # empty: the desktop user's home
# timeout = \"30m\"                         # of an attempt, where the submitter does not say
# as_root = false                         # run as root instead of the desktop user
# screenshot = true                       # keep a picture of the screen when it has ended
";

/// All settings in the order they are printed; those without a section come first, as TOML wants.
pub(super) const KEYS: &[Key] = &[
    key(
        "listen",
        "Address of the API: loopback only. Port 0 takes a free one; `endpoint` in state_dir tells it.",
    ),
    key(
        "state_dir",
        "Database, tokens, templates and VMs. Default: /var/lib/hvkube for root, else hvkube in the\nuser's state directory (~/.local/state). HVKUBE_STATE_DIR changes the default.",
    ),
    key(
        "run_dir",
        "Sockets; keep it short. Empty: /run/hvkube for root, else hvkube in XDG_RUNTIME_DIR, else\nrun in state_dir; another state_dir than the default one gets a directory of its own in there.",
    ),
    key(
        "hypervisor",
        "\"qemu\"; \"process\": a private X display per VM, without any isolation; or \"sim\": nothing real, for\ntests of scale and of faults.",
    ),
    key(
        "allow_root_exec",
        "Callers without the admin token may run programs and use files as root in their guests.",
    ),
    key("qemu.binary", "Emulator; looked up in the PATH."),
    key("qemu.img_binary", "Disk tool; looked up in the PATH."),
    key(
        "qemu.accel",
        "\"auto\" (KVM where a probe says that it works), \"kvm\" or \"tcg\" (software emulation).",
    ),
    key("qemu.fork", "Clone the memory of templates by copy-on-write: \"auto\", \"on\" or \"off\"."),
    key("qemu.bridge_helper", "Helper that connects VMs to bridges of the host."),
    key(
        "qemu.firmware_dirs",
        "Folders to look for UEFI firmware (OVMF) in; in the environment and flags with : between them.",
    ),
    key("process.agent_binary", "Guest agent. Empty: hvkube-guest beside hvkubed, else in the PATH."),
    key("process.x_server", "X server; looked up in the PATH."),
    key("process.window_manager", "Window manager and its arguments; looked up in the PATH. Empty: none."),
    key(
        "sim.profile",
        "How long the simulated hypervisor takes: \"hyperv\" (boot 30-60 s, resume 2-5 s) or \"instant\". Its templates\nneed a disk_path, but no file has to be there.",
    ),
    key("sim.time_factor", "Scales the times of the profile; 0 to 100."),
    key("sim.seed", "Decides what the faults hit, and where between its bounds a time lies."),
    key(
        "sim.faults",
        "Faults and their rates, as \"start_fails=0.05\"; there are start_fails, save_corrupts, guest_hangs,\naddress_changes, vm_dies, vm_vanishes, out_of_memory and slow_disk. In the environment and flags with\n: between them.",
    ),
    key("orchestrator.host_id", "Id of this host in the API."),
    key("orchestrator.boot_timeout", "How long a guest may take to boot until its agent answers."),
    key(
        "orchestrator.answer_timeout",
        "How long the agent of a resumed guest may take to answer before another VM, or a reset, is tried.",
    ),
    key("orchestrator.agent_timeout", "How long it may take after that before the VM has failed."),
    key(
        "orchestrator.settle_quiet",
        "How long a desktop must be quiet before it becomes a template's clean state.",
    ),
    key("orchestrator.settle_timeout", "When it is taken although it is not quiet."),
    key("orchestrator.provision_parallel", "VMs made at the same time in one pool."),
    key("orchestrator.keep_broken", "How long a VM that failed is kept for a look before it is deleted."),
    key(
        "orchestrator.keep_ended",
        "How long ended leases, finished operations and answered requests are kept.",
    ),
    key("orchestrator.keep_events", "How long events are kept."),
    key(
        "orchestrator.keep_events_max",
        "Most events that are kept, whatever their age; a million take about 200 MB.",
    ),
    key("orchestrator.queue_ageing", "How much waiting in a pool's queue a point of priority is worth."),
    key(
        "orchestrator.max_leases_per_caller",
        "Leases that one token may hold or wait for at once, in all pools. 0: no limit.",
    ),
    key(
        "orchestrator.memory_limit_percent",
        "Share of the host's memory that pools may promise to VMs, saved ones included. 0: no limit.",
    ),
    key(
        "orchestrator.scale_down_after",
        "How long a pool with an idle floor keeps idle VMs it has too many of.",
    ),
    key(
        "orchestrator.preempt_grace",
        "How long a lease has its VM before a more important one may preempt it.",
    ),
    key(
        "orchestrator.reconcile_every",
        "How often VMs and their rows are compared and brought together while the daemon runs. 0s: only at its start.",
    ),
    key("orchestrator.apply_identity", "Give every clone a hostname, machine id and MAC address of its own."),
    key(
        "agents.claim_ttl",
        "How long a worker may be silent before it loses its agent, where it does not say.",
    ),
    key("agents.keep_ended", "How long agents that have ended are kept, with their logs."),
    key(
        "agents.keep_screenshots",
        "How long pictures that agents left are kept; at most as long as the agents.",
    ),
    key("agents.per_pool", "Programs of workflows that run, or wait for a VM, at the same time in one pool."),
    key("store.path", "Database file. Empty: hvkube.db in state_dir."),
    key("store.synchronous", "Commits wait for the disk. Off only for tests."),
    key(
        "log.level",
        "\"error\", \"warn\", \"info\", \"debug\", \"trace\", or directives: \"info,hvkube_host::api=debug\".",
    ),
    key("log.format", "\"full\" or \"compact\"."),
    key("shutdown.drain_timeout", "How long calls get to finish when the daemon stops."),
    key("shutdown.moves_timeout", "How long VMs on the move get to arrive when the daemon stops."),
    key(
        "shutdown.save_vms",
        "Save running VMs when the daemon stops; otherwise they run on until it is back.",
    ),
];

/// The effective settings, each that is no default with its origin.
#[must_use]
pub fn effective(loaded: &Loaded) -> String {
    let mut text = match &loaded.file {
        Some(file) => format!("# File: {}\n", file.display()),
        None => "# File: none\n".into(),
    };
    text.push_str("# Settings without a remark are defaults.\n\n");
    print(&mut text, &loaded.config, |_, _| (), |path| loaded.origins.get(path).cloned());
    text
}

/// The defaults, each with what it means.
#[must_use]
pub fn defaults(config: &Config) -> String {
    let mut text = String::from(
        "# Settings of hvkubed with their defaults. Each can also be set by an environment variable\n\
         # (qemu.accel: HVKUBED_QEMU__ACCEL) or a flag (--set qemu.accel=tcg); `hvkubed config` prints what is in force.\n\n",
    );
    let about = |text: &mut String, key: &Key| {
        for line in key.about.lines() {
            text.push_str("# ");
            text.push_str(line);
            text.push('\n');
        }
    };
    print(&mut text, config, about, |_| None);
    text.push_str(WORKFLOW_ABOUT);
    text
}

fn print(
    text: &mut String,
    config: &Config,
    before: impl Fn(&mut String, &Key),
    remark: impl Fn(&str) -> Option<String>,
) {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.path.split_once('.').unwrap_or(("", key.path));
        let value = if of.is_empty() { table.get(name) } else { table.get(of).and_then(|t| t.get(name)) };
        let Some(value) = value else { continue };
        if of != section {
            section = of;
            let _ = writeln!(text, "\n[{of}]");
        }
        before(text, key);
        match remark(key.path) {
            Some(origin) => {
                let _ = writeln!(text, "{name} = {value}  # {}", origin.replace('\n', " "));
            }
            None => {
                let _ = writeln!(text, "{name} = {value}");
            }
        }
    }
    let workflows = table.get("workflows").and_then(toml::Value::as_table);
    for (workflow, values) in workflows.into_iter().flatten() {
        let _ = writeln!(text, "\n[workflows.{workflow}]");
        for name in WORKFLOW {
            if let Some(value) = values.get(*name) {
                let path = format!("workflows.{workflow}.{name}");
                let about = remark(&path).map(|origin| format!("  # {}", origin.replace('\n', " ")));
                let _ = writeln!(text, "{name} = {value}{}", about.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dirs;
    use crate::config::load::{Sources, load};

    fn example() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hvkubed.toml")
    }

    #[test]
    fn every_setting_is_in_the_table_and_the_other_way_round() {
        let table = toml::Table::try_from(Config::defaults("/s")).expect("TOML");
        let mut paths = Vec::new();
        for (name, value) in &table {
            match value.as_table() {
                Some(inner) => paths.extend(inner.keys().map(|key| format!("{name}.{key}"))),
                None => paths.push(name.clone()),
            }
        }
        let mut known: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        paths.sort();
        known.sort();
        assert_eq!(paths, known);
    }

    /// Write it anew with `hvkubed config --default > host-daemon/examples/hvkubed.toml` as root.
    #[test]
    fn the_example_file_is_the_defaults() {
        let printed = defaults(&Config::defaults(Dirs::system().state_dir));
        let file = std::fs::read_to_string(example()).expect("example");
        assert!(file == printed, "examples/hvkubed.toml is out of date; it should be:\n{printed}");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let dirs = Dirs { files: Vec::new(), ..Dirs::system() };
        let sources = Sources { dirs, file: Some(example()), environment: Vec::new(), flags: Vec::new() };
        let loaded = load(&sources).expect("legal");
        let mut defaults = Config::defaults(&sources.dirs.state_dir);
        defaults.resolve(&sources.dirs);
        assert_eq!(loaded.config, defaults);

        let printed = effective(&loaded);
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("again.toml");
        std::fs::write(&file, &printed).expect("written");
        let again = load(&Sources { file: Some(file), ..sources }).expect("legal");
        assert_eq!(again.config, loaded.config);
        assert!(printed.contains("run_dir = \"/run/hvkube\"  # "), "{printed}");
    }
}
