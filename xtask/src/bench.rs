//! `cargo xtask bench`: measures on a real daemon, prints a table for people and writes JSON for machines.
//!
//! The work is done by `hvkube-bench`, a client of the Rust SDK: it writes raw samples, and here they become metrics.
//! Everything is built optimised. A peer is measured in the same run, in turns with ours, on the same guest.

mod control;
mod cua;
mod display;
mod libvirt;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use serde_json::Value;

use crate::cargo::{self, Programs};
use crate::command;
use crate::image::{self, Stamp};
use crate::interrupt;
use crate::progress::Step;
use crate::stage::Stage;
use crate::system::{self, Job};
use report::{Better, Metric, Of, Report};

const TEMPLATE: &str = "bench";

/// Flags of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How fast desktops are acquired, saved and reset, and what they cost
    Resume(Resume),
    /// How fast screenshots come, and how well a stream of them serves many
    Display(display::Args),
    /// What leases, lists and watches cost with thousands of VMs, and how fast a hot one is leased
    Control(control::Args),
}

#[derive(Debug, clap::Args)]
struct Resume {
    /// How many rounds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write the metrics to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure another system in turns with ours; libvirt needs root
    #[arg(long, value_enum, value_name = "PEER")]
    vs: Option<Peer>,
    /// Measure the programs of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Use this golden image instead of building one
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    Libvirt,
}

/// What `resume` promises, on two processors that emulate the guest's. The names are stable.
const RESUME: &[Metric] = &[
    Metric::new("saved_to_running_p50_ms", Of::P50("saved_to_running_ms"), "ms", Better::Lower, 70.0),
    Metric::new("saved_to_receipt_p50_ms", Of::P50("saved_to_receipt_ms"), "ms", Better::Lower, 150.0),
    Metric::new("save_p50_ms", Of::P50("save_ms"), "ms", Better::Lower, 300.0),
    Metric::new("reset_p50_ms", Of::P50("reset_ms"), "ms", Better::Lower, 150.0),
    Metric::new("pool_of_8_s", Of::P50("pool_of_8_s"), "s", Better::Lower, 3.0),
    Metric::new("idle_clone_rss_ratio", Of::P50("idle_clone_rss_ratio"), "", Better::Lower, 0.2),
    Metric::new("saved_clean_disk_kb", Of::P50("saved_clean_disk_kb"), "KiB", Better::Lower, 1024.0),
];
const RESUME_VS_LIBVIRT: &[Metric] = &[
    Metric::new(
        "libvirt_start_ratio",
        Of::Ratio("libvirt_start_ms", "saved_to_running_ms"),
        "x",
        Better::Higher,
        7.0,
    ),
    Metric::new("libvirt_save_ratio", Of::Ratio("libvirt_save_ms", "save_ms"), "x", Better::Higher, 1.0),
];
/// Phases shown for people, in the order they happen.
const RESUME_PHASES: &[(&str, &str)] = &[
    ("saved_to_running_ms", "acquire: granted -> running"),
    ("saved_to_agent_ms", "acquire: granted -> agent session"),
    ("saved_to_frame_ms", "acquire: granted -> first frame"),
    ("saved_to_receipt_ms", "acquire: granted -> full receipt"),
    ("acquire_call_ms", "acquire: the client's call"),
    ("save_ms", "save of a used VM, state kept"),
    ("resume_used_ms", "resume of that VM"),
    ("reset_ms", "reset of a used VM"),
    ("release_call_ms", "release with reset: the client's call"),
    ("idle_clone_mb", "private memory of an idle clone, MiB"),
    ("libvirt_save_ms", "libvirt managedsave"),
    ("libvirt_start_ms", "libvirt start"),
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.bench {
        Bench::Resume(args) => resume(args),
        Bench::Display(args) => display::run(args),
        Bench::Control(args) => control::run(args),
    }
}

fn resume(args: &Resume) -> anyhow::Result<()> {
    let mut jobs = vec![Job::Build, Job::Vm, Job::Image];
    if args.vs == Some(Peer::Libvirt) {
        libvirt::check_rights()?;
        jobs.push(Job::BenchLibvirt);
    }
    system::ensure(&jobs)?;
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder, &["hvkubed", "hvkube", "hvkube-bench"])?,
        None => {
            let step = Step::start("building, optimised");
            let programs = cargo::build(&["hvkube-host", "hvkube-cli", "hvkube-tests"], "release", &step)?;
            step.done();
            programs
        }
    };
    let image = match &args.image {
        Some(folder) => std::path::absolute(folder).context("find the image")?,
        None => image::build(&image::Args::standard())?,
    };
    interrupt::check()?;

    let step = Step::start("starting hvkubed");
    let stage = Stage::start(&programs, &step)?;
    step.done();
    let step = Step::start("making a template: boot, settle, freeze");
    let arguments = ["template", "create", "--name", TEMPLATE, "--image-dir"];
    stage.explain(command::run(stage.hvkube(arguments).arg(&image), &step))?;
    step.done();

    // Declared after the stage, so that on the way out of an error it ends first: its files are in the stage's folder.
    let peer = match args.vs {
        Some(Peer::Libvirt) => {
            let accelerator = accelerator(&stage)?;
            Some(libvirt::Peer::start(stage.folder(), &image, &Stamp::read(&image)?, &accelerator)?)
        }
        None => None,
    };
    let samples = measure(&stage, &programs, args, peer.as_ref())?;
    let mut report = Report::new("resume", args.runs, &samples)?;
    let mut metrics = RESUME.to_vec();
    if let Some(peer) = &peer {
        metrics.extend_from_slice(RESUME_VS_LIBVIRT);
        report.fact("peer", peer.version());
    }
    report.measure(&metrics)?;

    let step = Step::start("stopping everything");
    if let Some(peer) = peer {
        peer.close()?;
    }
    stage.delete_template(TEMPLATE, &step)?;
    stage.close()?;
    step.done();
    println!("{}", report.table(RESUME_PHASES));
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(
    stage: &Stage,
    programs: &Programs,
    args: &Resume,
    peer: Option<&libvirt::Peer>,
) -> anyhow::Result<Value> {
    let step = Step::start("measuring");
    let output = stage.folder().join("samples.json");
    let mut driver = Command::new(programs.get("hvkube-bench")?);
    stage.point(&mut driver);
    driver.args(["resume", "--template", TEMPLATE, "--runs", &args.runs.to_string(), "--output"]);
    driver.arg(&output);
    if let Some(peer) = peer {
        driver.args(["--libvirt", peer.domain()]);
    }
    stage.explain(command::run(&mut driver, &step))?;
    step.done();
    let text = std::fs::read(&output).with_context(|| format!("read {}", output.display()))?;
    serde_json::from_slice(&text).context("read the samples")
}

/// `kvm` or `tcg`: the peer has to use the same.
fn accelerator(stage: &Stage) -> anyhow::Result<String> {
    let text = command::output(&mut stage.hvkube(["host", "get", "-o", "json"]))?;
    let host: Value = serde_json::from_str(&text).context("read hvkube's JSON")?;
    let name = host["accelerator"].as_str().unwrap_or_default();
    ensure!(!name.is_empty(), "the daemon does not tell its accelerator");
    Ok(name.to_owned())
}

/// The first line of what a program says about itself.
fn first_line(program: &str, argument: &str) -> anyhow::Result<String> {
    let text = command::output(Command::new(program).arg(argument))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Which sources were measured.
fn commit(workspace: &Path) -> String {
    command::output(Command::new("git").current_dir(workspace).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]))
    .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
