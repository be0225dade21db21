//! `hvkube vm checkpoint`.

use std::process::ExitCode;

use clap::Subcommand;

use crate::args::{ListArgs, OutputArgs};
use crate::commands::vm::shown;
use crate::context::Context;
use crate::output;
use crate::report::Outcome;
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Keep memory and disk of a running or paused VM
    Create {
        /// Id or name of the VM
        vm: String,
        /// Id of the checkpoint [default: made by the daemon]
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List a VM's checkpoints
    #[command(visible_alias = "ls")]
    List {
        /// Id or name of the VM
        vm: String,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Put a VM back to a checkpoint
    Restore {
        /// Id or name of the VM
        vm: String,
        /// Id of the checkpoint
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a checkpoint; the VM and its other checkpoints are not affected
    #[command(visible_alias = "rm")]
    Delete {
        /// Id or name of the VM
        vm: String,
        /// Id of the checkpoint
        name: String,
    },
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    let client = context.client().await?;
    match action {
        Action::Create { vm, name, description, output } => {
            let work = client.create_checkpoint(&vm, &name, &description);
            let checkpoint = shown(context, format!("keeping {vm}"), work).await?;
            output::result(&checkpoint, context.format(output))?;
        }
        Action::List { vm, list } => {
            return watch::list(context, list, || client.list_checkpoints(&vm)).await;
        }
        Action::Restore { vm, name, output } => {
            let work = client.restore_checkpoint(&vm, &name);
            let vm = shown(context, format!("restoring {vm} to {name}"), work).await?;
            output::result(&vm, context.format(output))?;
        }
        Action::Delete { vm, name } => {
            client.delete_checkpoint(&vm, &name).await?;
            context.note(format_args!("deleted checkpoint {name} of {vm}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
