//! `hvkube operation`.

use std::process::ExitCode;

use clap::Subcommand;
use hvkube_proto::google::longrunning::Operation;
use hvkube_sdk::v1::BackupStoreResponse;
use hvkube_sdk::{Client, qualify, template_progress};

use crate::args::{ListArgs, OutputArgs};
use crate::context::Context;
use crate::output::{self, backup, human};
use crate::report::{Failure, Outcome};
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List operations
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show an operation
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Wait until an operation has ended; fails as it does
    Wait {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Ask an operation to stop
    Cancel {
        /// Id or name
        name: String,
    },
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    let client = context.client().await?;
    match action {
        Action::List { list } => return watch::list(context, list, || client.list_operations()).await,
        Action::Get { name, output } => {
            let operation = client.get_operation(&qualify("operations", &name)).await?;
            output::one(&operation, context.format(output))?;
        }
        Action::Wait { name, output } => {
            let operation = client.get_operation(&qualify("operations", &name)).await?;
            if backup(&operation).is_some() {
                let progress = context.progress("copying the store");
                let made: BackupStoreResponse = client.wait_operation(operation, |_| {}).await?;
                drop(progress);
                output::result(&made, context.format(output))?;
            } else {
                let template = follow(context, client, operation, "operation").await?;
                output::result(&template, context.format(output))?;
            }
        }
        Action::Cancel { name } => {
            let name = qualify("operations", &name);
            client.cancel_operation(&name).await?;
            context.note(format_args!("asked {name} to stop"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for an operation that makes a template, and shows how far it is.
pub(crate) async fn follow(
    context: &Context,
    client: &Client,
    operation: Operation,
    what: &str,
) -> Result<hvkube_sdk::v1::Template, Failure> {
    context.when_interrupted(Some(format!(
        "it goes on in the background; wait for it again with `hvkube operation wait {}`",
        human::short(&operation.name)
    )));
    let mut bar = context.progress(what);
    let template = client
        .wait_operation(operation, |operation| {
            if let Some(progress) = template_progress(operation).filter(|_| !operation.done) {
                bar.step(&human::enum_name(&progress.phase));
                bar.amount(u64::from(progress.progress_percent), 100, false);
            }
        })
        .await;
    context.when_interrupted(None);
    Ok(template?)
}
