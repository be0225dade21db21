//! `hvkube lease`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hvkube_sdk::v1::watch_acquire_response::Update;
use hvkube_sdk::{Acquire, Client, ReleasePolicy};

use crate::args::{Format, ListArgs, OutputArgs};
use crate::commands::lease_run;
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
    /// Pool to take it from; may be left out where a --label, --template or --gpu says what is wanted
    #[arg(default_value = "", hide_default_value = true)]
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
    /// -100 to 100; higher ones are served earlier
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,
    /// From a pool with this label; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = units::variable)]
    pub(crate) labels: Vec<(String, String)>,
    /// A VM of this template
    #[arg(long)]
    pub(crate) template: Option<String>,
    /// A VM with a share of a GPU
    #[arg(long)]
    pub(crate) gpu: bool,
}

impl Wish {
    /// The request for it.
    pub(crate) fn request(self, client: &Client) -> Acquire {
        let mut acquire = client.acquire(&self.pool).purpose(self.purpose).priority(self.priority);
        if let Some(ttl) = self.ttl {
            acquire = acquire.ttl(ttl);
        }
        if let Some(wait) = self.wait {
            acquire = acquire.wait(wait);
        }
        for (key, value) in self.labels {
            acquire = acquire.label(key, value);
        }
        if let Some(template) = self.template {
            acquire = acquire.template(template);
        }
        if self.gpu {
            acquire = acquire.gpu(true);
        }
        acquire
    }

    /// What is waited for, for people.
    pub(crate) fn what(&self) -> String {
        match self.pool.as_str() {
            "" => "waiting for a desktop".to_owned(),
            pool => format!("waiting for a desktop of {pool}"),
        }
    }
}

/// How an acquire stands, for people.
pub(crate) fn standing(update: &Update) -> String {
    match update {
        Update::Queued(queued) => {
            let place = match queued.position {
                0 => String::new(),
                position => format!("{position} of {} in the queue", queued.waiting),
            };
            let eta = queued.eta.and_then(|eta| Duration::try_from(eta).ok());
            let eta = eta.map(|eta| format!("in about {}", human::duration(eta))).unwrap_or_default();
            let parts = [place, eta, queued.reason.clone()];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
        }
        Update::Preparing(preparing) => format!("making {} ready", human::short(&preparing.vm)),
        Update::Granted(_) => String::new(),
    }
}

/// What becomes of a VM afterwards.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Fate {
    /// Keep the VM saved as it is, out of the pool [default: as the pool says, which is mostly to reset it]
    #[arg(long)]
    keep: bool,
    /// Delete the VM; the pool makes a new one
    #[arg(long)]
    destroy: bool,
    /// Put the VM back to clean, whatever the pool says
    #[arg(long)]
    reset: bool,
}

impl Fate {
    pub(crate) fn policy(self) -> ReleasePolicy {
        match (self.keep, self.destroy, self.reset) {
            (true, ..) => ReleasePolicy::Keep,
            (_, true, _) => ReleasePolicy::Destroy,
            (.., true) => ReleasePolicy::Reset,
            _ => ReleasePolicy::Unspecified,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self.policy() {
            ReleasePolicy::Keep => "kept",
            ReleasePolicy::Destroy => "deleted",
            ReleasePolicy::Reset => "reset",
            ReleasePolicy::Unspecified => "the pool's again",
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
    let client = context.client().await?;
    let mut progress = context.progress(wish.what());
    let acquired = wish.request(client).watched(|update| progress.step(&standing(update))).await;
    drop(progress);
    let desktop = acquired?;
    let vm = desktop.vm().clone();
    // Nobody renews it from here on.
    let lease = desktop.detach();
    match format {
        Format::Json | Format::Yaml => {
            let named = [output::Named::new("lease", &lease)?, output::Named::new("vm", &vm)?];
            output::write(&output::together(&named, format == Format::Json)?)?;
        }
        _ => output::result(&lease, format)?,
    }
    Ok(())
}
