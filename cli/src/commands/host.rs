//! `hvkube host`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use hvkube_sdk::v1::BackupStoreResponse;

use crate::args::OutputArgs;
use crate::context::Context;
use crate::output;
use crate::report::{Failure, Outcome};

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
    /// Copy what the daemon knows (not disks and memories) into a file of its host, while it runs; `hvkubed restore` puts
    /// it back
    Backup {
        /// The file
        file: PathBuf,
        /// Replace a file of that name
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Get { name, output } => {
            let host = context.client().await?.get_host(&name).await?;
            output::one(&host, context.format(output))?;
        }
        Action::Backup { file, overwrite, output } => {
            // The daemon may run in another folder.
            let path =
                std::path::absolute(&file).map_err(|error| Failure::io("find the file's folder", &error))?;
            let Some(path) = path.to_str() else {
                return Err(Failure::Usage(format!("{} is no text", file.display())));
            };
            let client = context.client().await?;
            let operation = client.backup_store(path, overwrite).await?;
            let progress = context.progress("copying the store");
            let made: BackupStoreResponse = client.wait_operation(operation, |_| {}).await?;
            drop(progress);
            output::result(&made, context.format(output))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
