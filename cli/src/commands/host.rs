//! `hvkube host`.

use std::process::ExitCode;

use clap::Subcommand;

use crate::args::OutputArgs;
use crate::context::Context;
use crate::output;
use crate::report::Outcome;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Show a host: hypervisor, what it can do, what is free
    #[command(visible_alias = "info")]
    Get {
        /// Which; `-` is the one that answers
        #[arg(default_value = "-", hide_default_value = true)]
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    let Action::Get { name, output } = action;
    let host = context.client().await?.get_host(&name).await?;
    output::one(&host, context.format(output))?;
    Ok(ExitCode::SUCCESS)
}
