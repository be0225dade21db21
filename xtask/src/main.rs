//! `cargo xtask`: the one entry point for developers and CI.
//!
//! Each subcommand is a module. Output for machines goes to stdout, everything for people to stderr. Exit codes: 0 done,
//! 1 failed, 2 the caller has to do something first (a wrong flag, a missing package; the message says what), 130
//! interrupted.

mod bench;
mod cargo;
mod command;
mod demo;
mod fuzz;
mod image;
mod interrupt;
mod progress;
mod soak;
mod stage;
mod system;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Developer commands of hyperv-kube",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the Linux desktop golden image, or find it in the cache; prints its folder
    Image(image::Args),
    /// Run the whole path once: image, daemon, pool, a desktop, a picture of it
    Demo(demo::Args),
    /// Run all tests
    Test(test::Args),
    /// Measure
    Bench(bench::Args),
    /// Throw made-up bytes at all that reads what guests send
    Fuzz(fuzz::Args),
    /// Run the model of the orchestrator for minutes: random operations, faults and crashes
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = interrupt::install().and_then(|()| match cli.command {
        Task::Image(args) => image::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Soak(args) => soak::run(&args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<system::NeedsPackages>() => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Err(_) if interrupt::requested() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
