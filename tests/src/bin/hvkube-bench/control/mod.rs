//! `control`: what the daemon itself costs, with simulated VMs that take no time and a store that waits for the disk.
//!
//! A daemon per size: a pool of saved VMs is filled, listed, watched, leased from and found again after `kill -9`; then the
//! same pool keeps all of them hot, each with a live guest session, whose both ends are in the daemon's process. Callers and
//! watchers share the daemon's processors, so every time holds the clients' cost too; processor time is the daemon's
//! alone. What the same clients and the same disk do without the daemon's work is measured beside it.

mod load;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hvkube_sdk::v1::{DisplaySize, ListVmsRequest, NetworkMode, Pool, PoolStatus, Template, TemplateSource};
use hvkube_sdk::{Client, Desktop, ReleasePolicy};
use hvkube_tests::{Daemon, make_template};

use super::cost;
use super::samples::Samples;

const TEMPLATE: &str = "sim";
const POOL: &str = "bench";
/// Nothing here takes so long unless it is stuck.
const FULL: Duration = Duration::from_secs(300);
/// How long the daemon is watched while nobody asks for anything.
const IDLE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// Callers at once.
const CALLERS: usize = 64;
/// Connections that they share.
const CONNECTIONS: usize = 8;
/// Restarts per daemon.
const RESTARTS: usize = 3;
const PAGE: i32 = 100;
const PAGES: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many VMs; may be given several times
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    sizes: Vec<u32>,
    /// How often all is measured for each of them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How long to acquire and release, each time
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Rounds of leases of hot VMs on QEMU, with the golden image that `HVKUBE_TEST_IMAGE` names
    #[arg(long, default_value_t = 0)]
    qemu_runs: u32,
    /// Where the samples go
    #[arg(long)]
    pub(crate) output: PathBuf,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let time = Duration::from_secs(args.seconds);
    for round in 1..=args.runs {
        for size in &args.sizes {
            eprintln!("{size} vms, round {round} of {}", args.runs);
            Run { size: *size, time, samples: &mut samples }
                .all()
                .await
                .with_context(|| format!("with {size} vms"))?;
        }
    }
    if args.qemu_runs > 0 {
        eprintln!("hot vms on qemu");
        on_qemu(args.qemu_runs, &mut samples).await.context("on qemu")?;
    }
    samples.fact("callers", format!("{CALLERS} on {CONNECTIONS} connections, {} s", args.seconds));
    Ok(samples)
}

/// A daemon whose VMs are simulated.
async fn daemon() -> Daemon {
    let settings = [
        "hypervisor=sim",
        "sim.profile=instant",
        "orchestrator.settle_quiet=10ms",
        "orchestrator.provision_parallel=64",
        "orchestrator.memory_limit_percent=0",
        "log.level=warn",
    ];
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    Daemon::start(&arguments).await
}

/// All measurements with one daemon and so many VMs.
struct Run<'a> {
    size: u32,
    time: Duration,
    samples: &'a mut Samples,
}

impl Run<'_> {
    fn name(&self, what: &str) -> String {
        format!("{what}_{}", self.size)
    }

    fn add(&mut self, what: &str, value: f64) {
        self.samples.add(self.name(what), value);
    }

    async fn all(&mut self) -> anyhow::Result<()> {
        let size = self.size;
        let mut daemon = daemon().await;
        let client = daemon.client();
        let template = Template {
            source: Some(TemplateSource { disk_path: "/sim.raw".into(), ..Default::default() }),
            display: Some(DisplaySize { width: 640, height: 400 }),
            memory_mb: 64,
            cpu_count: 1,
            network: NetworkMode::None.into(),
            ..Default::default()
        };
        make_template(&client, TEMPLATE, template)
            .await
            .map_err(|error| anyhow::anyhow!("template: {error}"))?;
        let empty = resident(&daemon)?;

        let began = Instant::now();
        let pool =
            Pool { template: format!("templates/{TEMPLATE}"), desired_count: size, ..Default::default() };
        client.create_pool(POOL, pool).await?;
        full(&client, |status| status.warm == size).await?;
        self.add("fill_s", began.elapsed().as_secs_f64());
        self.add("saved_rss_kb", (resident(&daemon)? - empty) / f64::from(size));
        self.lists(&client).await?;

        let callers = load::Callers::connect(&daemon, CONNECTIONS, CALLERS).await?;
        // What the clients, the wire and the disk cost by themselves.
        load::empty_calls(&callers, Duration::from_secs(1), self.size, self.samples).await?;
        load::synced_writes(daemon.scratch(), self.size, self.samples)?;

        self.leases(&daemon, &callers, "saved", |status| status.warm == size).await?;
        watch::fan_out(&daemon, &callers, size, self.samples).await?;
        full(&client, |status| status.warm == size).await?;

        for _ in 0..RESTARTS {
            daemon.kill();
            let began = Instant::now();
            daemon.again().await;
            let found = daemon.client().get_pool(POOL).await?.status.unwrap_or_default();
            self.add("reconcile_s", began.elapsed().as_secs_f64());
            ensure!(found.warm == size, "after a kill: {found:?}");
        }
        self.hot(&daemon).await
    }

    /// The same pool with every VM running, connected and proven.
    async fn hot(&mut self, daemon: &Daemon) -> anyhow::Result<()> {
        let size = self.size;
        let client = daemon.client();
        let before = resident(daemon)?;
        let pool = Pool { name: format!("pools/{POOL}"), hot_count: size, ..Default::default() };
        let began = Instant::now();
        client.update_pool(pool, &["hot_count"]).await?;
        full(&client, |status| status.hot == size).await?;
        self.add("heat_s", began.elapsed().as_secs_f64());
        self.add("live_rss_kb", (resident(daemon)? - before) / f64::from(size));
        let callers = load::Callers::connect(daemon, CONNECTIONS, CALLERS).await?;
        self.leases(daemon, &callers, "hot", |status| status.hot == size).await?;
        self.add("daemon_rss_mb", resident(daemon)? / 1024.0);
        Ok(())
    }

    /// Takes VMs and gives them back for a while, and then waits until the pool is as it was: what a lease costs ends with
    /// its VM being ready for the next one. What the daemon does anyway, such as proving hot VMs, is not the leases' cost.
    async fn leases(
        &mut self,
        daemon: &Daemon,
        callers: &load::Callers,
        kind: &str,
        as_before: impl Fn(&PoolStatus) -> bool,
    ) -> anyhow::Result<()> {
        let before = cost::cpu_time(daemon.pid())?;
        tokio::time::sleep(IDLE).await;
        let idle = (cost::cpu_time(daemon.pid())?.saturating_sub(before)).as_secs_f64() / IDLE.as_secs_f64();
        self.add(&format!("{kind}_idle_cpu"), 100.0 * idle);
        let (began, before) = (Instant::now(), cost::cpu_time(daemon.pid())?);
        let count = load::leases(callers, self.time, kind, self.size, self.samples).await?;
        full(callers.first(), as_before).await?;
        let took = began.elapsed().as_secs_f64();
        let spent = cost::cpu_time(daemon.pid())?.saturating_sub(before).as_secs_f64() - idle * took;
        self.add(&format!("{kind}_cpu_us"), spent * 1e6 / count);
        self.add(&format!("{kind}_cycles_per_s"), count / took);
        Ok(())
    }

    /// One page of VMs after another.
    async fn lists(&mut self, client: &Client) -> anyhow::Result<()> {
        let mut vms = client.vms();
        let mut page_token = String::new();
        for _ in 0..PAGES {
            let began = Instant::now();
            let request = ListVmsRequest { page_size: PAGE, page_token, ..Default::default() };
            page_token = vms.list_vms(request).await?.into_inner().next_page_token;
            self.samples.add_ms(self.name("list_page_ms"), began.elapsed());
        }
        Ok(())
    }
}

/// Waits until the pool is as it should be.
async fn full(client: &Client, good: impl Fn(&PoolStatus) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + FULL;
    loop {
        let status = client.get_pool(POOL).await?.status.unwrap_or_default();
        if good(&status) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the pool does not get there: {:?}",
            PoolStatus { vms: Vec::new(), ..status }
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// Memory of the daemon that is its own, in KiB.
fn resident(daemon: &Daemon) -> anyhow::Result<f64> {
    let bytes = cost::private_bytes(daemon.pid())?;
    Ok(f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)))
}

/// Leases of hot VMs, one after another, each VM new to its holder.
async fn on_qemu(runs: u32, samples: &mut Samples) -> anyhow::Result<()> {
    let image = hvkube_tests::GoldenImage::find();
    let daemon = Daemon::start(&["--set", "log.level=warn"]).await;
    let client = daemon.client();
    make_template(&client, TEMPLATE, image.template()).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let pool = Pool {
        template: format!("templates/{TEMPLATE}"),
        desired_count: 2,
        hot_count: 2,
        ..Default::default()
    };
    client.create_pool(POOL, pool).await?;
    for _ in 0..runs {
        full(&client, |status| status.hot == 2).await?;
        let began = Instant::now();
        let desktop: Desktop = client.acquire(POOL).await?;
        samples.add_ms("qemu_hot_acquire_ms", began.elapsed());
        let receipt = desktop.lease().receipt.clone().context("a receipt")?;
        let age = Duration::try_from(receipt.age.unwrap_or_default()).unwrap_or_default();
        ensure!(age <= load::OLDEST, "the receipt was {age:?} old");
        samples.add_ms("qemu_hot_receipt_age_ms", age);
        desktop.release(ReleasePolicy::Reset).await?;
    }
    client.delete_pool(POOL, true).await?;
    Ok(())
}
