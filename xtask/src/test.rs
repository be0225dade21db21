//! `cargo xtask test`: runs every gate and every test, those on real VMs included. CI runs exactly this.
//!
//! ```text
//! tools    what is missing gets installed: Debian packages, and under the cache folder cargo-deny, buf and grpcurl
//! gates    fmt, licences and bans, proto lint, clippy, rustdoc
//! image    the golden image, cached
//! tests    cargo nextest where it is installed, else cargo test; then the documentation's examples
//! ```
//!
//! A part that fails does not keep the next one from running: one run shows all there is to mend. The last line sums
//! everything up.

mod summary;
mod tools;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;

use crate::cargo::{self, cargo};
use crate::command;
use crate::image;
use crate::interrupt;
use crate::progress::{Step, seconds};
use crate::system::{self, Job};
use summary::Summary;
use tools::Tools;

/// The crate whose tests run real VMs.
const VM_TESTS: &str = "hvkube-tests";

/// Flags of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Gates and unit tests only: no image, no VMs
    #[arg(long)]
    quick: bool,
    /// Only tests whose name contains this, and no gates
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut jobs = vec![Job::Build, Job::Tools];
    if !args.quick {
        jobs.extend([Job::DisplayTests, Job::Vm, Job::Image, Job::Firmware]);
    }
    system::ensure(&jobs)?;
    let tools = Tools::ensure(args.filter.is_none())?;

    let mut sum = Summary::default();
    if args.filter.is_none() {
        gates(&tools, &mut sum)?;
    }
    if args.quick {
        tests(args, &tools, None, &mut sum)?;
    } else {
        let folder = image::build(&image::Args::standard())?;
        tests(args, &tools, Some(&folder), &mut sum)?;
    }
    eprintln!("{} in all", seconds(began.elapsed()));
    println!("{sum}");
    ensure!(sum.is_good(), "{} failed", sum.failures().join(", "));
    Ok(())
}

fn gates(tools: &Tools, sum: &mut Summary) -> anyhow::Result<()> {
    let mut format = cargo();
    format.args(["fmt", "--all", "--check"]);
    gate("formatting", &mut format, sum)?;
    let mut format = cargo();
    format.args(["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]);
    gate("formatting of the fuzzer", &mut format, sum)?;

    eprintln!(
        "cargo deny does not check advisories: their database is on a host of its own, CI must not need it"
    );
    let mut deny = Command::new(tools.cargo_deny()?);
    deny.current_dir(cargo::workspace()).args(["check", "bans", "licenses", "sources"]);
    gate("licences, bans and sources", &mut deny, sum)?;

    let mut buf = Command::new(tools.buf());
    buf.current_dir(cargo::workspace()).arg("lint");
    gate("proto lint", &mut buf, sum)?;

    let mut clippy = cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    gate("clippy", &mut clippy, sum)?;
    let mut clippy = cargo();
    clippy.args(["clippy", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target"]);
    gate("clippy of the fuzzer", clippy.args(["--", "--deny", "warnings"]), sum)?;

    let mut doc = cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    gate("rustdoc", &mut doc, sum)
}

fn gate(name: &str, command: &mut Command, sum: &mut Summary) -> anyhow::Result<()> {
    let step = Step::start(name);
    let outcome = command::run(command, &step);
    interrupt::check()?;
    match outcome {
        Ok(()) => {
            step.done();
            sum.pass();
        }
        Err(error) => {
            drop(step);
            eprintln!("{error:#}");
            sum.fail(name);
        }
    }
    Ok(())
}

fn tests(args: &Args, tools: &Tools, image: Option<&Path>, sum: &mut Summary) -> anyhow::Result<()> {
    let environment = |command: &mut Command| {
        command.env("HVKUBE_TEST_GRPCURL", tools.grpcurl()).env("CARGO_TERM_COLOR", "never");
        if let Some(image) = image {
            command.env("HVKUBE_TEST_IMAGE", image);
        }
    };
    // Tests start hvkubed, hvkube and hvkube-guest as programs; cargo builds those of other packages only when told.
    let step = Step::start("building the programs");
    let built = command::run(cargo().args(["build", "--workspace", "--bins"]), &step);
    interrupt::check()?;
    if let Err(error) = built {
        drop(step);
        eprintln!("{error:#}");
        sum.fail("build");
        return Ok(());
    }
    step.done();

    let units: &[&str] = if args.quick { &["--lib", "--bins"] } else { &[] };
    let filter = args.filter.as_deref();
    if command::exists("cargo-nextest") {
        let mut nextest = cargo();
        nextest.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]).args(units);
        environment(nextest.args(filter));
        runner("tests", &mut nextest, sum)?;
    } else {
        let mut others = cargo();
        others.args(["test", "--workspace", "--no-fail-fast", "--exclude", VM_TESTS]);
        others.args(if args.quick { units } else { &["--lib", "--bins", "--tests"] });
        environment(others.arg("--").args(filter));
        runner("tests", &mut others, sum)?;
        if !args.quick {
            // One at a time: each runs VMs that want the whole machine.
            let mut machines = cargo();
            machines.args(["test", "--package", VM_TESTS, "--no-fail-fast", "--", "--test-threads=1"]);
            environment(machines.args(filter));
            runner("tests on VMs", &mut machines, sum)?;
        }
    }
    if !args.quick {
        let mut doc = cargo();
        doc.args(["test", "--workspace", "--doc", "--no-fail-fast", "--"]).args(filter);
        environment(&mut doc);
        runner("examples in the documentation", &mut doc, sum)?;
    }
    Ok(())
}

/// Runs a test runner, passing on what it prints.
fn runner(name: &str, command: &mut Command, sum: &mut Summary) -> anyhow::Result<()> {
    let step = Step::plain(name);
    let before = sum.clone();
    let outcome = command::watch(command, &step, |line| {
        println!("{line}");
        sum.read(line);
    });
    interrupt::check()?;
    match outcome {
        Ok(()) => {
            step.done();
        }
        Err(error) => {
            drop(step);
            // A runner that failed without naming a failed test did not even get to them.
            if !sum.failed_since(&before) {
                eprintln!("{error:#}");
            }
            sum.blame(name, &before);
        }
    }
    Ok(())
}
