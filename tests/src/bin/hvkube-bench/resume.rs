//! `resume`: a pool is made, desktops are acquired, used, saved, resumed, reset and given back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hvkube_sdk::v1::{Pool, ReadinessCheckKind, ReadinessReceipt};
use hvkube_sdk::{Client, Desktop, ReleasePolicy, state_dir};

use super::Common;
use super::cost;
use super::peer::Domain;
use super::samples::Samples;

/// VMs in the pool whose making is timed.
const POOL_SIZE: u32 = 8;
/// How many times it is made.
const POOL_RUNS: u32 = 3;
/// Clones that run idle while their memory is read: enough to see that they are alike, few enough for a small host.
const IDLE: usize = 4;
/// How long they have been idle then.
const IDLE_FOR: Duration = Duration::from_secs(5);
/// A pool that is not full by then never will be.
const FULL: Duration = Duration::from_secs(120);
/// Between two looks at a pool: adds half of it to what is measured, on the average.
const LOOK: Duration = Duration::from_millis(10);
/// Makes a clean clone a used one: a file on its disk, 16 MiB of memory written, the screen changed.
const USE: &str =
    "head -c 16777216 /dev/urandom >/dev/shm/used && cp /dev/shm/used used && sync used && echo used";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Measure this domain of libvirt in turns
    #[arg(long, value_name = "DOMAIN")]
    libvirt: Option<String>,
}

pub(crate) async fn run(client: &Client, args: &Args) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let host = client.get_host("-").await?;
    samples.fact("hypervisor", format!("{} {}", host.hypervisor, host.hypervisor_version));
    samples.fact("accelerator", format!("{} ({})", host.accelerator, host.accelerator_reason));
    let template = client.get_template(&args.common.template).await?;
    samples
        .fact("guest", format!("{} MiB, {} CPUs, {}", template.memory_mb, template.cpu_count, template.os));

    let mut pool = String::new();
    for round in 0..POOL_RUNS {
        if round > 0 {
            client.delete_pool(&pool, true).await?;
        }
        // A name of its own: the old one is taken until the last file of that pool is gone.
        pool = format!("bench-{round}");
        let before = cost::disk_bytes(&state_dir())?;
        make_pool(client, &pool, &args.common.template, &mut samples).await?;
        if round == 0 {
            // Later ones begin while the files of the one before may still be on their way out.
            let grown = cost::disk_bytes(&state_dir())?.saturating_sub(before);
            samples.add("saved_clean_disk_kb", kilobytes(grown) / f64::from(POOL_SIZE));
        }
    }
    idle_memory(client, &pool, template.memory_mb << 20, &mut samples).await?;
    let domain = args.libvirt.as_deref().map(Domain);
    for round in 1..=args.common.runs {
        cycle(client, &pool, &mut samples).await.with_context(|| format!("round {round}"))?;
        if let Some(domain) = &domain {
            samples.add_ms("libvirt_start_ms", domain.start().await?);
            samples.add_ms("libvirt_save_ms", domain.save().await?);
        }
        eprintln!("round {round} of {}", args.common.runs);
    }
    client.delete_pool(&pool, true).await?;
    Ok(samples)
}

async fn make_pool(client: &Client, id: &str, template: &str, samples: &mut Samples) -> anyhow::Result<()> {
    let began = Instant::now();
    let pool =
        Pool { template: format!("templates/{template}"), desired_count: POOL_SIZE, ..Pool::default() };
    client.create_pool(id, pool).await?;
    wait_until_full(client, id).await?;
    samples.add("pool_of_8_s", began.elapsed().as_secs_f64());
    Ok(())
}

async fn wait_until_full(client: &Client, pool: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + FULL;
    loop {
        let status = client.get_pool(pool).await?.status.unwrap_or_default();
        if status.warm == POOL_SIZE {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the pool does not get full: {status:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn idle_memory(client: &Client, pool: &str, nominal: u64, samples: &mut Samples) -> anyhow::Result<()> {
    let mut desktops = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        desktops.push(client.acquire(pool).await?);
    }
    tokio::time::sleep(IDLE_FOR).await;
    for desktop in &desktops {
        let pid = client.get_vm(&desktop.vm().name).await?.process_id;
        ensure!(pid != 0, "{} has no process", desktop.vm().name);
        let bytes = cost::private_bytes(pid)?;
        samples.add("idle_clone_mb", kilobytes(bytes) / 1024.0);
        samples.add("idle_clone_rss_ratio", kilobytes(bytes) / kilobytes(nominal));
    }
    for desktop in desktops {
        desktop.release(ReleasePolicy::Reset).await?;
    }
    wait_until_full(client, pool).await
}

/// One life of a desktop: acquired clean, used, saved, resumed, reset, given back.
async fn cycle(client: &Client, pool: &str, samples: &mut Samples) -> anyhow::Result<()> {
    let began = Instant::now();
    let desktop = client.acquire(pool).await.context("acquire")?;
    samples.add_ms("acquire_call_ms", began.elapsed());
    let receipt = desktop.lease().receipt.clone().context("the lease has no receipt")?;
    read_receipt(&receipt, samples)?;
    let vm = desktop.vm().name.clone();
    make_used(&desktop).await.context("use the desktop")?;

    samples.add_ms("save_ms", timed(client.save_vm(&vm)).await.context("save")?);
    samples.add_ms("resume_used_ms", timed(client.resume_vm(&vm)).await.context("resume")?);
    samples.add_ms("reset_ms", timed(client.reset_vm(&vm)).await.context("reset")?);
    samples.add_ms("release_call_ms", timed(desktop.release(ReleasePolicy::Reset)).await.context("release")?);
    wait_until_full(client, pool).await
}

async fn make_used(desktop: &Desktop) -> anyhow::Result<()> {
    let done = desktop.exec(["sh", "-c", USE]).await?;
    ensure!(done.exit.code == 0, "{}", String::from_utf8_lossy(&done.stderr));
    desktop.click(640, 300).await?;
    desktop.type_text("echo used\n").await?;
    Ok(())
}

async fn timed<T>(call: impl Future<Output = hvkube_sdk::Result<T>>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    call.await?;
    Ok(began.elapsed())
}

fn read_receipt(receipt: &ReadinessReceipt, samples: &mut Samples) -> anyhow::Result<()> {
    for (kind, name) in [
        (ReadinessCheckKind::Running, "saved_to_running_ms"),
        (ReadinessCheckKind::AgentSession, "saved_to_agent_ms"),
        (ReadinessCheckKind::Frame, "saved_to_frame_ms"),
    ] {
        let Some(check) = receipt.checks.iter().find(|check| check.kind() == kind) else {
            bail!("the receipt has no {}", kind.as_str_name());
        };
        samples.add_ms(name, duration(check.at.unwrap_or_default())?);
    }
    samples.add_ms("saved_to_receipt_ms", duration(receipt.total.context("the receipt has no total")?)?);
    Ok(())
}

fn duration(time: hvkube_sdk::ProtoDuration) -> anyhow::Result<Duration> {
    Duration::try_from(time).map_err(|_| anyhow::anyhow!("the receipt has a negative time"))
}

fn kilobytes(bytes: u64) -> f64 {
    // Exact up to 2^53 KiB.
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX))
}
