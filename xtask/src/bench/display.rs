//! `cargo xtask bench display`: a daemon with desktops of the process backend, and `hvkube-bench` as its clients.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use super::cua;
use super::report::{Better, Metric, Of, Report};
use crate::cargo::{self, Programs};
use crate::command;
use crate::interrupt;
use crate::progress::Step;
use crate::stage::Stage;
use crate::system::{self, Job};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many rounds of screenshots
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write the metrics to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure other programs in turns with ours: Cua's computer-server and scrot
    #[arg(long, value_enum, value_name = "PEER")]
    vs: Option<Peer>,
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
    let text = std::fs::read(&output).with_context(|| format!("read {}", output.display()))?;
    let samples = serde_json::from_slice(&text).context("read the samples")?;
    let mut report = Report::new("display", args.runs, &samples)?;
    let mut metrics = METRICS.to_vec();
    if python.is_some() {
        metrics.extend_from_slice(VS_CUA);
        report.fact("peers", &format!("cua-computer-server {}, {}", cua::VERSION, scrot()));
    }
    report.measure(&metrics)?;

    let step = Step::start("stopping everything");
    stage.close()?;
    step.done();
    println!("{}", report.table(&phases()));
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
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
