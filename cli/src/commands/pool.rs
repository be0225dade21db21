//! `hvkube pool`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hvkube_sdk::v1::{Pool, WatchPoolsRequest};
use hvkube_sdk::{Client, ProtoDuration, ReleasePolicy, qualify};

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
    /// Stop pools: nothing is leased out, made or deleted; leases go on
    Pause {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let paused pools work again
    Resume {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
    },
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
    /// Template that its VMs are made from; a new one rolls out
    #[arg(long)]
    template: Option<String>,
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
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// How many are kept running, leased in milliseconds, on top of --warm [default: 0]
    #[arg(long, value_name = "N")]
    hot: Option<u32>,
    /// Keep so many idle however many are leased, beyond --count
    #[arg(long, value_name = "N")]
    idle_floor: Option<u32>,
    /// Delete idle ones beyond this when demand falls [default: --idle-floor]
    #[arg(long, value_name = "N")]
    idle_ceiling: Option<u32>,
    /// What becomes of a VM whose holder does not say [default: reset]
    #[arg(long, value_enum, value_name = "POLICY")]
    on_release: Option<OnRelease>,
    /// Rebuild a VM after so many leases; 0: never
    #[arg(long, value_name = "N")]
    max_uses: Option<u32>,
    /// Rebuild a VM at this age; 0: never
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    max_age: Option<Duration>,
    /// How many VMs may be too many while old ones are replaced [default: 1]
    #[arg(long, value_name = "N")]
    surge: Option<u32>,
    /// How many ready VMs may be missing while old ones are replaced [default: 0]
    #[arg(long, value_name = "N")]
    max_unavailable: Option<u32>,
    /// How many leases one token may hold or wait for; 0: no limit
    #[arg(long, value_name = "N")]
    max_leases: Option<u32>,
    /// Let callers of higher priority have VMs of lower ones saved
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    preemption: Option<bool>,
    /// Label for callers who name no pool; repeatable. An update replaces all of them
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = units::variable)]
    labels: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnRelease {
    /// Back to clean
    Reset,
    /// Saved as it is, out of the pool
    Keep,
    /// Deleted
    Destroy,
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
        self.options.apply(pool, &mut fields)?;
        Ok(fields)
    }
}

impl Options {
    fn apply(self, pool: &mut Pool, fields: &mut Vec<&'static str>) -> Result<(), Failure> {
        let mut set = |name, given: bool| {
            if given {
                fields.push(name);
            }
            given
        };
        if set("hot_count", self.hot.is_some()) {
            pool.hot_count = self.hot.unwrap_or_default();
        }
        if set("idle_floor", self.idle_floor.is_some()) {
            pool.idle_floor = self.idle_floor;
        }
        if set("idle_ceiling", self.idle_ceiling.is_some()) {
            pool.idle_ceiling = self.idle_ceiling;
        }
        if set("release_policy", self.on_release.is_some()) {
            let policy = match self.on_release {
                Some(OnRelease::Keep) => ReleasePolicy::Keep,
                Some(OnRelease::Destroy) => ReleasePolicy::Destroy,
                Some(OnRelease::Reset) | None => ReleasePolicy::Reset,
            };
            pool.set_release_policy(policy);
        }
        if set("max_uses", self.max_uses.is_some()) {
            pool.max_uses = self.max_uses.unwrap_or_default();
        }
        if set("max_age", self.max_age.is_some()) {
            let age = self.max_age.filter(|age| !age.is_zero());
            pool.max_age = age.map(|age| proto(age, "--max-age")).transpose()?;
        }
        if set("surge", self.surge.is_some()) {
            pool.surge = self.surge;
        }
        if set("max_unavailable", self.max_unavailable.is_some()) {
            pool.max_unavailable = self.max_unavailable.unwrap_or_default();
        }
        if set("max_leases_per_caller", self.max_leases.is_some()) {
            pool.max_leases_per_caller = self.max_leases.unwrap_or_default();
        }
        if set("preemption", self.preemption.is_some()) {
            pool.preemption = self.preemption.unwrap_or_default();
        }
        if set("labels", !self.labels.is_empty()) {
            pool.labels = self.labels.into_iter().collect();
        }
        Ok(())
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
            if let Some(template) = &args.template {
                pool.template = qualify("templates", template);
                fields.push("template");
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
        Action::Pause { names } => {
            let client = context.client().await?;
            for name in names {
                client.pause_pool(&name).await?;
                context.note(format_args!("paused pool {name}"));
            }
        }
        Action::Resume { names } => {
            let client = context.client().await?;
            for name in names {
                client.resume_pool(&name).await?;
                context.note(format_args!("resumed pool {name}"));
            }
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
        let idle = pool.warm_count.map_or(u32::MAX, |warm| warm.saturating_add(pool.hot_count));
        let wanted = pool
            .desired_count
            .min(idle.saturating_add(status.leased))
            .max(pool.idle_floor.map_or(0, |floor| floor.saturating_add(status.leased)));
        let have = status.warm.saturating_add(status.hot).saturating_add(status.leased).min(wanted);
        // Those of an old template are as ready, but not what is waited for.
        if have == wanted && status.hot >= pool.hot_count.min(wanted) && status.outdated == 0 {
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
