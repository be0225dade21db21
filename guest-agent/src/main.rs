//! `hvkube-guest`: the agent inside a desktop VM.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hvkube_guest::config::{Config, DEFAULT_PATH};
use hvkube_guest::run;

/// Guest agent of hyperv-kube.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The privileged half, started by the init system.
    Supervisor {
        /// Configuration; defaults apply where the file is missing.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// The desktop user's half, started by the supervisor.
    #[command(hide = true)]
    Worker {
        /// User to become.
        #[arg(long)]
        user: String,
        /// X display of the desktop.
        #[arg(long)]
        display: String,
    },
    /// Both halves in one process without privileges, for a display that is not in a VM.
    Standalone {
        /// Host to connect to, `tcp://127.0.0.1:PORT`.
        #[arg(long)]
        connect: String,
        /// File with the secret, 64 hexadecimal digits.
        #[arg(long)]
        secret_file: PathBuf,
        /// X display of the desktop.
        #[arg(long)]
        display: String,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HVKUBE_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let result = match Args::parse().command {
        Command::Supervisor { config } => Config::load(&config).map_err(Into::into).and_then(run::supervisor),
        Command::Worker { user, display } => run::worker(&user, &display),
        Command::Standalone { connect, secret_file, display } => {
            run::standalone(&connect, &secret_file, &display)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
