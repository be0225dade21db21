//! `hvkube lease`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hvkube_sdk::ReleasePolicy;
use hvkube_sdk::v1::{AcquireVmRequest, AcquireVmResponse};

use crate::args::{Format, ListArgs, OutputArgs};
use crate::commands::lease_run;
use crate::commands::pool::proto;
use crate::commands::vm::shown;
use crate::context::Context;
use crate::output::{self, human};
use crate::report::{Failure, Outcome};
use crate::units;
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Get a clean, running desktop; nobody renews its lease, see `run` for that
    Acquire {
        #[command(flatten)]
        wish: Wish,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Run a local command with a desktop of its own, and give the desktop back after it
    Run(lease_run::Run),
    /// Move a lease's end
    Renew {
        /// Id or name
        name: String,
        /// From now on [default: the lease's own]
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give desktops back, clean ones into the pool
    Release {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        fate: Fate,
    },
    /// List leases, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those from this pool
        #[arg(short, long)]
        pool: Option<String>,
        /// Ended ones of the last day too
        #[arg(short, long)]
        all: bool,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a lease with its readiness receipt
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// What desktop is wanted.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    /// Pool to take it from
    pub(crate) pool: String,
    /// Life of the lease [default: the pool's]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long to wait for a VM; 0: not at all [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) wait: Option<Duration>,
    /// Kept with the lease, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) purpose: String,
}

/// What becomes of a VM afterwards.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Fate {
    /// Keep the VM saved as it is, out of the pool [default: reset it]
    #[arg(long)]
    keep: bool,
    /// Delete the VM; the pool makes a new one
    #[arg(long)]
    destroy: bool,
}

impl Fate {
    pub(crate) fn policy(self) -> ReleasePolicy {
        match (self.keep, self.destroy) {
            (true, _) => ReleasePolicy::Keep,
            (_, true) => ReleasePolicy::Destroy,
            _ => ReleasePolicy::Reset,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self.policy() {
            ReleasePolicy::Keep => "kept",
            ReleasePolicy::Destroy => "deleted",
            _ => "reset",
        }
    }
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Run(args) => return lease_run::run(context, args).await,
        Action::Acquire { wish, output } => acquire(context, wish, context.format(output)).await?,
        Action::Renew { name, ttl, output } => {
            let lease = context.client().await?.renew_lease(&name, ttl).await?;
            output::result(&lease, context.format(output))?;
        }
        Action::Release { names, fate } => {
            let client = context.client().await?;
            for name in names {
                let lease = client.release_vm(&name, fate.policy()).await?;
                context.note(format_args!(
                    "released {}, its VM is {}",
                    human::short(&lease.name),
                    fate.word()
                ));
            }
        }
        Action::List { pool, all, list } => {
            let client = context.client().await?;
            return watch::list(context, list, || client.list_leases(pool.as_deref(), all)).await;
        }
        Action::Get { name, output } => {
            let lease = context.client().await?.get_lease(&name).await?;
            output::one(&lease, context.format(output))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn acquire(context: &Context, wish: Wish, format: Format) -> Result<(), Failure> {
    let request = AcquireVmRequest {
        ttl: wish.ttl.map(|ttl| proto(ttl, "--ttl")).transpose()?,
        wait: wish.wait.map(|wait| proto(wait, "--wait")).transpose()?,
        purpose: wish.purpose,
        pool: wish.pool,
        request_id: String::new(),
    };
    let client = context.client().await?;
    let what = format!("waiting for a desktop of {}", request.pool);
    let AcquireVmResponse { lease, vm } = shown(context, what, client.acquire_vm(request)).await?;
    let lease = lease.ok_or(hvkube_sdk::Error::Protocol("an acquire without a lease"))?;
    match format {
        Format::Json | Format::Yaml => {
            let vm = vm.unwrap_or_default();
            let named = [output::Named::new("lease", &lease)?, output::Named::new("vm", &vm)?];
            output::write(&output::together(&named, format == Format::Json)?)?;
        }
        _ => output::result(&lease, format)?,
    }
    Ok(())
}
