//! `cargo xtask bench control`: daemons with simulated VMs, which `hvkube-bench` starts itself, and hot VMs on QEMU.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use super::report::{Better, Metric, Of, Report};
use crate::cargo::{self, Programs};
use crate::command;
use crate::image;
use crate::interrupt;
use crate::progress::Step;
use crate::system::{self, Job};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How often each number of VMs is measured, each time with a daemon of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How long callers acquire and release, each time
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Rounds of leases of hot VMs on QEMU; 0: none, and no golden image is needed
    #[arg(long, value_name = "N", default_value_t = 30)]
    qemu_runs: u32,
    /// Write the metrics to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure the programs of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Use this golden image instead of building one
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

/// What is promised of simulated VMs, on two processors that the daemon and all clients share. The names are stable.
const METRICS: &[Metric] = &[
    Metric::new("acquire_release_per_s", Of::P50("hot_leases_per_s_10000"), "/s", Better::Higher, 2500.0),
    Metric::new("acquire_p99_ms", Of::P99("hot_acquire_ms_10000"), "ms", Better::Lower, 50.0),
    Metric::new(
        "cost_ratio_100_to_10000",
        Of::Ratio("hot_cpu_us_10000", "hot_cpu_us_100"),
        "x",
        Better::Lower,
        1.5,
    ),
    Metric::new("reconcile_10000_s", Of::P50("reconcile_s_10000"), "s", Better::Lower, 3.0),
    Metric::new("rss_per_vm_kb", Of::P50("live_rss_kb_10000"), "KiB", Better::Lower, 40.0),
];
const ON_QEMU: &[Metric] =
    &[Metric::new("hot_acquire_p50_ms", Of::P50("qemu_hot_acquire_ms"), "ms", Better::Lower, 10.0)];

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut jobs = vec![Job::Build];
    if args.qemu_runs > 0 {
        jobs.extend([Job::Vm, Job::Image]);
    }
    system::ensure(&jobs)?;
    let names = ["hvkubed", "hvkube-bench"];
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder, &names)?,
        None => {
            let step = Step::start("building, optimised");
            let programs = cargo::build(&["hvkube-host", "hvkube-tests"], "release", &step)?;
            step.done();
            programs
        }
    };
    let image = match &args.image {
        _ if args.qemu_runs == 0 => None,
        Some(folder) => Some(std::path::absolute(folder).context("find the image")?),
        None => Some(image::build(&image::Args::standard())?),
    };
    interrupt::check()?;

    let step = Step::start("measuring");
    let folder = tempfile::tempdir().context("make a folder")?;
    let output = folder.path().join("samples.json");
    let mut driver = Command::new(programs.get("hvkube-bench")?);
    driver.args(["control", "--runs", &args.runs.to_string(), "--seconds", &args.seconds.to_string()]);
    driver.args(["--qemu-runs", &args.qemu_runs.to_string(), "--output"]).arg(&output);
    // It starts daemons of its own, from the same folder as this one.
    if let Some(folder) = programs.get("hvkubed")?.parent() {
        driver.env("HVKUBE_TEST_BIN_DIR", folder);
    }
    if let Some(image) = &image {
        driver.env("HVKUBE_TEST_IMAGE", image);
    }
    command::run(&mut driver, &step)?;
    step.done();
    let text = std::fs::read(&output).with_context(|| format!("read {}", output.display()))?;
    let samples = serde_json::from_slice(&text).context("read the samples")?;
    let mut report = Report::new("control", args.runs, &samples)?;
    report.measure(METRICS)?;
    if image.is_some() {
        report.measure(ON_QEMU)?;
    }
    println!("{}", report.table(&phases()));
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Everything that was measured, for people.
fn phases() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for size in [100, 1000, 10_000] {
        for (what, title) in [
            ("fill_s", "pool filled, s"),
            ("reconcile_s", "start after a kill, s"),
            ("saved_rss_kb", "memory of a saved one, KiB"),
            ("heat_s", "pool heated, s"),
            ("live_rss_kb", "memory of a hot one, KiB"),
            ("daemon_rss_mb", "daemon at the end, MiB"),
            ("list_page_ms", "page of 100, ms"),
            ("empty_calls_per_s", "empty calls/s"),
            ("empty_call_ms", "empty call, ms"),
            ("synced_writes_per_s", "synced writes/s"),
        ] {
            out.push((format!("{what}_{size}"), format!("{size}: {title}")));
        }
        for kind in ["saved", "hot"] {
            for (what, title) in [
                ("leases_per_s", "leases/s"),
                ("cycles_per_s", "leases/s till all ready"),
                ("acquire_ms", "acquire, ms"),
                ("release_ms", "release, ms"),
                ("cpu_us", "daemon's CPU of one, us"),
                ("idle_cpu", "daemon's CPU when idle, %"),
                ("proven_before", "proven before, %"),
            ] {
                out.push((format!("{kind}_{what}_{size}"), format!("{size} {kind}: {title}")));
            }
        }
        for (what, title) in [
            ("watched_leases_per_s", "leases/s"),
            ("watch_messages_per_s", "messages/s of all"),
            ("watch_delay_ms", "change till seen, ms"),
        ] {
            out.push((format!("{what}_{size}"), format!("{size}, 200 watch: {title}")));
        }
    }
    out.push(("qemu_hot_acquire_ms".to_owned(), "qemu hot: acquire, ms".to_owned()));
    out.push(("qemu_hot_receipt_age_ms".to_owned(), "qemu hot: age of the receipt, ms".to_owned()));
    out
}
