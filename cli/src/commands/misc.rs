//! `hvkube completions` and `hvkube version`.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::context::Context;
use crate::output;
use crate::report::Outcome;

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Version {
    /// Do not ask the daemon
    #[arg(long)]
    client: bool,
}

pub(crate) fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hvkube", &mut script);
    output::write(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn version(context: &Context, args: Version) -> Outcome {
    output::write(&format!("hvkube   {}\n", env!("CARGO_PKG_VERSION")))?;
    if !args.client {
        let client = context.client().await?;
        let host = client.get_host("-").await?;
        output::write(&format!("hvkubed  {} at {}\n", host.daemon_version, client.endpoint()))?;
    }
    Ok(ExitCode::SUCCESS)
}
