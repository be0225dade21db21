//! `cargo xtask bench display`: a daemon with desktops of the process backend, and `hvkube-bench` as its clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::TEMPLATE;
use super::cua;
use super::report::{Better, Metric, Of, Report};
use crate::cargo::{self, Programs};
use crate::command;
use crate::image;
use crate::interrupt;
use crate::progress::Step;
use crate::stage::Stage;
use crate::system::{self, Job};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many rounds of screenshots and of input
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write the metrics to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure other programs in turns with ours: Cua's computer-server and scrot
    #[arg(long, value_enum, value_name = "PEER")]
    vs: Option<Peer>,
    /// Measure a VM's desktop too, the golden image's on QEMU
    #[arg(long)]
    guest: bool,
    /// Use this golden image instead of building one
    #[arg(long, value_name = "DIR", requires = "guest")]
    image: Option<PathBuf>,
    /// Measure the programs of this folder instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    Cua,
}

/// What is promised, on two processors that the desktop, the daemon and all clients share. The names are stable.
const METRICS: &[Metric] = &[
    Metric::new(
        "screenshot_unchanged_p50_ms",
        Of::P50("ours_1280x800_text_unchanged_png_ms"),
        "ms",
        Better::Lower,
        1.0,
    ),
    Metric::new("click_p50_ms", Of::P50("ours_click_ms"), "ms", Better::Lower, 2.0),
    Metric::new("stream_100_fps", Of::P50("stream_100_fps"), "/s", Better::Higher, 30.0),
    Metric::new(
        "stream_100_staleness_p99_ms",
        Of::P99("stream_100_staleness_ms"),
        "ms",
        Better::Lower,
        100.0,
    ),
];
const VS_CUA: &[Metric] = &[
    // As much faster as our aim is than what the peer took when the aim was set.
    Metric::new("click_ratio", Of::Ratio("cua_click_ms", "ours_click_ms"), "x", Better::Higher, 50.0),
    Metric::new(
        "screenshot_photo_png_ratio",
        Of::Ratio("cua_1280x800_photo_changing_ms", "ours_1280x800_photo_changing_png_ms"),
        "x",
        Better::Higher,
        8.0,
    ),
    Metric::new(
        "screenshot_photo_jpeg_ratio",
        Of::Ratio("cua_1280x800_photo_changing_ms", "ours_1280x800_photo_changing_jpeg_ms"),
        "x",
        Better::Higher,
        20.0,
    ),
];
/// The backend without virtualisation, and nothing on the screen but what the benchmark draws.
const SETTINGS: &[(&str, &str)] =
    &[("HVKUBED_HYPERVISOR", "process"), ("HVKUBED_PROCESS__WINDOW_MANAGER", "")];

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut jobs = vec![Job::Build, Job::ProcessDesktop];
    if args.guest {
        jobs.extend([Job::Vm, Job::Image]);
    }
    if args.vs.is_some() {
        jobs.push(Job::BenchScreenshots);
    }
    system::ensure(&jobs)?;
    let names = ["hvkubed", "hvkube", "hvkube-guest", "hvkube-bench"];
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder, &names)?,
        None => {
            let step = Step::start("building, optimised");
            let packages = ["hvkube-host", "hvkube-cli", "hvkube-guest", "hvkube-tests"];
            let programs = cargo::build(&packages, "release", &step)?;
            step.done();
            programs
        }
    };
    let python = match args.vs {
        Some(Peer::Cua) => Some(cua::python()?),
        None => None,
    };
    let image = match &args.image {
        Some(folder) => Some(std::path::absolute(folder).context("find the image")?),
        None if args.guest => Some(image::build(&image::Args::standard())?),
        None => None,
    };
    interrupt::check()?;

    let step = Step::start("starting hvkubed");
    let stage = Stage::start_with(&programs, SETTINGS, &step)?;
    step.done();
    let step = Step::start("measuring");
    let output = stage.folder().join("samples.json");
    let mut driver = Command::new(programs.get("hvkube-bench")?);
    stage.point(&mut driver);
    driver.args(["display", "--runs", &args.runs.to_string()]);
    driver.args(["--daemon-pid", &stage.daemon().to_string(), "--output"]).arg(&output);
    if let Some(python) = &python {
        driver.arg("--cua").arg(python);
    }
    stage.explain(command::run(&mut driver, &step))?;
    step.done();
    let mut samples = read(&output)?;
    let step = Step::start("stopping everything");
    stage.close()?;
    step.done();
    if let Some(image) = &image {
        merge(&mut samples, guest(&programs, image, args.runs)?);
    }
    let mut report = Report::new("display", args.runs, &samples)?;
    let mut metrics = METRICS.to_vec();
    if python.is_some() {
        metrics.extend_from_slice(VS_CUA);
        report.fact("peers", &format!("cua-computer-server {}, {}", cua::VERSION, scrot()));
    }
    report.measure(&metrics)?;
    println!("{}", report.table(&phases()));
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Measures a VM, with a daemon of its own: the first one's backend has none.
fn guest(programs: &Programs, image: &Path, runs: u32) -> anyhow::Result<Value> {
    let step = Step::start("starting hvkubed for VMs");
    let stage = Stage::start(programs, &step)?;
    step.done();
    let step = Step::start("making a template: boot, settle, freeze");
    let arguments = ["template", "create", "--name", TEMPLATE, "--image-dir"];
    stage.explain(command::run(stage.hvkube(arguments).arg(image), &step))?;
    step.done();
    let step = Step::start("measuring a guest");
    let output = stage.folder().join("samples.json");
    let mut driver = Command::new(programs.get("hvkube-bench")?);
    stage.point(&mut driver);
    driver.args(["display", "--runs", &runs.to_string(), "--guest", TEMPLATE, "--output"]).arg(&output);
    stage.explain(command::run(&mut driver, &step))?;
    step.done();
    let samples = read(&output)?;
    let step = Step::start("stopping everything");
    stage.delete_template(TEMPLATE, &step)?;
    stage.close()?;
    step.done();
    Ok(samples)
}

fn read(samples: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(samples).with_context(|| format!("read {}", samples.display()))?;
    serde_json::from_slice(&text).context("read the samples")
}

/// Adds another run's samples and facts; their names are others.
fn merge(into: &mut Value, other: Value) {
    for part in ["samples", "facts"] {
        if let (Some(into), Some(other)) = (into[part].as_object_mut(), other[part].as_object()) {
            into.extend(other.clone());
        }
    }
}

fn scrot() -> String {
    super::first_line("scrot", "--version").unwrap_or_else(|_| "scrot".to_owned())
}

/// Everything that was measured, for people.
fn phases() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for size in ["1280x800", "1920x1080"] {
        for content in ["plain", "text", "photo"] {
            for (who, how) in [
                ("ours", "unchanged_png"),
                ("ours", "unchanged_jpeg"),
                ("cua", "unchanged"),
                ("ours", "changing_png"),
                ("ours", "changing_jpeg"),
                ("cua", "changing"),
                ("scrot", "changing"),
            ] {
                let title = format!("{size} {content} {}: {who}, ms", how.replace('_', " "));
                out.push((format!("{who}_{size}_{content}_{how}_ms"), title));
            }
        }
    }
    for (name, what) in [("click", "click"), ("move", "move"), ("type", "a word of 10 letters")] {
        for who in ["ours", "cua"] {
            for (how, title) in [("", "until the X server recorded it"), ("answer_", "until the answer")] {
                out.push((format!("{who}_{name}_{how}ms"), format!("{what}: {who}, {title}, ms")));
            }
        }
    }
    let streamed = "click in a stream: ours, until the X server recorded it, ms";
    out.push(("ours_stream_click_ms".to_owned(), streamed.to_owned()));
    for content in ["plain", "text", "photo"] {
        for how in ["unchanged_png", "unchanged_jpeg", "changing_png", "changing_jpeg"] {
            let title = format!("guest: {content} {}, ms", how.replace('_', " "));
            out.push((format!("guest_{content}_{how}_ms"), title));
        }
    }
    for name in ["click", "move", "type"] {
        out.push((format!("guest_{name}_ms"), format!("guest: {name}, until its record came back, ms")));
        out.push((format!("guest_{name}_answer_ms"), format!("guest: {name}, until the answer, ms")));
    }
    for readers in [1, 10, 100] {
        for (what, title) in [
            ("fps", "pictures/s of each"),
            ("staleness_ms", "staleness, ms"),
            ("picture_kb", "a picture, kB"),
            ("mb_per_s", "all, MB/s"),
            ("cpu_daemon", "daemon, % of a processor"),
            ("cpu_agent", "agent, % of a processor"),
            ("cpu_bench", "readers and painter, %"),
        ] {
            out.push((format!("stream_{readers}_{what}"), format!("stream to {readers}: {title}")));
        }
    }
    out
}
