//! `hvkube pool`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hvkube_sdk::v1::{Pool, WatchPoolsRequest};
use hvkube_sdk::{Client, ProtoDuration, qualify};

use crate::args::{ListArgs, OutputArgs};
use crate::context::Context;
use crate::output::{self, human};
use crate::report::{Failure, Outcome};
use crate::units;
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make a pool of a template's VMs
    Create(Create),
    /// List pools
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a pool
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change a pool; what is not given stays
    Update(Update),
    /// Delete pools and their VMs
    #[command(visible_alias = "rm")]
    Delete {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
        /// End the leases on their VMs too
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Id of the new pool; its VMs are named after it [default: made by the daemon]
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Template that its VMs are made from
    #[arg(long)]
    template: String,
    /// How many VMs it has, leased ones included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    count: u32,
    #[command(flatten)]
    settings: Settings,
    /// Wait until its VMs are ready
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Id or name
    name: String,
    /// How many VMs it has, leased ones included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    count: Option<u32>,
    #[command(flatten)]
    settings: Settings,
    /// Wait until its VMs are ready
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct Settings {
    /// How many are kept saved and clean [default: all that are not leased]
    #[arg(long, value_name = "N")]
    warm: Option<u32>,
    /// How many VMs one host may have; 0: no limit
    #[arg(long, value_name = "N")]
    max_per_host: Option<u32>,
    /// Life of a lease that asks for none [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    ttl: Option<Duration>,
    /// Longest life a lease may ask for at once [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    max_ttl: Option<Duration>,
    /// Title for people
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

impl Settings {
    /// Puts what is given into the pool and names its fields.
    fn apply(self, pool: &mut Pool) -> Result<Vec<&'static str>, Failure> {
        let mut fields = Vec::new();
        if self.warm.is_some() {
            pool.warm_count = self.warm;
            fields.push("warm_count");
        }
        if let Some(limit) = self.max_per_host {
            pool.max_per_host = limit;
            fields.push("max_per_host");
        }
        if let Some(ttl) = self.ttl {
            pool.default_lease_ttl = Some(proto(ttl, "--ttl")?);
            fields.push("default_lease_ttl");
        }
        if let Some(ttl) = self.max_ttl {
            pool.max_lease_ttl = Some(proto(ttl, "--max-ttl")?);
            fields.push("max_lease_ttl");
        }
        if let Some(title) = self.title {
            pool.display_name = title;
            fields.push("display_name");
        }
        Ok(fields)
    }
}

/// A duration as the API has it.
pub(crate) fn proto(time: Duration, argument: &str) -> Result<ProtoDuration, Failure> {
    ProtoDuration::try_from(time).map_err(|_| Failure::Usage(format!("{argument} is too long")))
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Create(args) => {
            let mut pool = Pool {
                template: qualify("templates", &args.template),
                desired_count: args.count,
                ..Pool::default()
            };
            args.settings.apply(&mut pool)?;
            let client = context.client().await?;
            let pool = client.create_pool(&args.name, pool).await?;
            let pool = if args.wait { ready(context, client, pool).await? } else { pool };
            output::result(&pool, context.format(args.output))?;
        }
        Action::Update(args) => {
            let mut pool = Pool { name: qualify("pools", &args.name), ..Pool::default() };
            let mut fields = args.settings.apply(&mut pool)?;
            if let Some(count) = args.count {
                pool.desired_count = count;
                fields.push("desired_count");
            }
            if fields.is_empty() {
                return Err(Failure::Usage(
                    "nothing to change: give at least one option, like --count".to_owned(),
                ));
            }
            let client = context.client().await?;
            let pool = client.update_pool(pool, &fields).await?;
            let pool = if args.wait { ready(context, client, pool).await? } else { pool };
            output::result(&pool, context.format(args.output))?;
        }
        Action::List { list } => {
            let client = context.client().await?;
            if list.watch {
                return watch::follow(context, list, client.watch_pools(WatchPoolsRequest::default())).await;
            }
            return watch::list(context, list, || client.list_pools()).await;
        }
        Action::Get { name, output } => {
            let pool = context.client().await?.get_pool(&name).await?;
            output::one(&pool, context.format(output))?;
        }
        Action::Delete { names, force } => {
            let client = context.client().await?;
            for name in names {
                let progress = context.progress(format!("deleting pool {name}"));
                client.delete_pool(&name, force).await?;
                drop(progress);
                context.note(format_args!("deleted pool {name}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until a pool has what it wants.
async fn ready(context: &Context, client: &Client, mut pool: Pool) -> Result<Pool, Failure> {
    let name = human::short(&pool.name);
    context.when_interrupted(Some(format!(
        "the pool goes on by itself; look at it with `hvkube pool get {name}`"
    )));
    let mut bar = context.progress(format!("pool {name}"));
    loop {
        let status = pool.status.clone().unwrap_or_default();
        let wanted =
            pool.desired_count.min(pool.warm_count.unwrap_or(u32::MAX).saturating_add(status.leased));
        let have = status.warm.saturating_add(status.leased).min(wanted);
        if have == wanted && status.total >= pool.desired_count {
            context.when_interrupted(None);
            return Ok(pool);
        }
        let why = if status.reason.is_empty() { String::new() } else { format!(" ({})", status.reason) };
        bar.step(&format!("{have} of {wanted} ready{why}"));
        bar.amount(u64::from(have), u64::from(wanted), false);
        tokio::time::sleep(Duration::from_millis(500)).await;
        pool = client.get_pool(&pool.name).await?;
    }
}
