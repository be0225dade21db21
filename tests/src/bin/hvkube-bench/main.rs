//! Drives a running daemon through benchmarks and writes what it saw as JSON; `cargo xtask bench` starts it and judges.
//!
//! The daemon is the one that `HVKUBE_STATE_DIR` names, but for `control`, which starts its own. Times of the phases of an
//! acquire are the daemon's own, from the readiness receipt; all others are the client's, from the call to its answer.

mod control;
mod cost;
mod display;
mod peer;
mod resume;
mod samples;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use hvkube_sdk::Client;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How fast desktops come, go and come back, and what they cost
    Resume(resume::Args),
    /// How fast screenshots come, and how well a stream of them serves many
    Display(display::Args),
    /// What leases, lists and watches cost with thousands of VMs; starts daemons of its own
    Control(control::Args),
    /// Inside a desktop: paint, and tell the input that comes
    Desk(display::desk::Args),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Template that is ready
    #[arg(long)]
    template: String,
    /// How many rounds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the samples go
    #[arg(long)]
    output: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    if let Bench::Desk(args) = &cli.bench {
        return display::desk::run(args);
    }
    let connect = async || Client::connect().await.context("connect to the daemon");
    let (samples, output) = match &cli.bench {
        Bench::Resume(args) => (resume::run(&connect().await?, args).await?, &args.common.output),
        Bench::Display(args) => (display::run(&connect().await?, args).await?, &args.output),
        Bench::Control(args) => (control::run(args).await?, &args.output),
        Bench::Desk(_) => return Ok(()),
    };
    let text = serde_json::to_string_pretty(&samples.to_json())?;
    std::fs::write(output, text).with_context(|| format!("write {}", output.display()))
}
