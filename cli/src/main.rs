//! `hvkube`: pools of desktops from the command line.
//!
//! A client of the SDK and nothing else. Standard output is data, in the format asked for; everything else (progress,
//! notes, errors, hints) goes to standard error. One module per noun lives in [`commands`]; what all of them share:
//!
//! ```text
//! args      the command line                 context   settings, connection, notes
//! units     durations, sizes, positions      output    tables, JSON, YAML, names
//! progress  bars on a terminal, else lines   report    errors, hints, exit codes
//! ```

mod args;
mod commands;
mod context;
mod interrupt;
mod output;
mod progress;
mod report;
mod units;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::context::Context;
use crate::report::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::choose_color(cli.global.color);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => return report::print(&Failure::io("start", &err), None),
    };
    let context = Context::new(cli.global, cli.format);
    let outcome = runtime.block_on(supervise(&context, cli.command));
    let code = match outcome {
        Ok(code) => code,
        Err(failure) => report::print(&failure, Some(&context)),
    };
    // A read from a terminal cannot be cancelled; do not wait for it. What matters is over by now.
    runtime.shutdown_background();
    code
}

/// Runs a command until it ends, is interrupted or has used up its time. Dropping it cancels its calls at the daemon.
async fn supervise(context: &Context, command: args::Command) -> report::Outcome {
    let interruptible = !command.handles_signals();
    let limit = if command.has_own_timeout() { None } else { context.timeout() };
    let work = commands::run(context, command);
    tokio::select! {
        // The signals first: on a fast loopback the work's first poll already asks the daemon, and must not do so before
        // anybody listens.
        biased;
        signal = interrupt::wait(), if interruptible => Err(Failure::Interrupted(signal?)),
        outcome = work => outcome,
        () = expired(limit) => Err(Failure::TimedOut(limit.unwrap_or_default())),
    }
}

async fn expired(limit: Option<std::time::Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
