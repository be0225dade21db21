//! Callers, and what they are compared with.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use hvkube_sdk::v1::AcquireVmRequest;
use hvkube_sdk::{Client, ReleasePolicy};
use hvkube_tests::Daemon;
use tokio::task::JoinSet;

use super::POOL;
use crate::samples::Samples;

/// Appends to a file, each waited for.
const WRITES: u32 = 500;
/// No receipt may be older.
pub(super) const OLDEST: Duration = Duration::from_secs(1);
/// About what a lease's transaction writes.
const WRITE: [u8; 4096] = [1; 4096];

/// Clients with connections to share.
pub(super) struct Callers {
    clients: Vec<Client>,
    count: usize,
}

impl Callers {
    pub(super) async fn connect(daemon: &Daemon, connections: usize, count: usize) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::builder().state_dir(daemon.state_dir()).connect().await?);
        }
        Ok(Self { clients, count })
    }

    /// Runs one thing over and over from every caller at once; gives what each gave, and the time of all together.
    async fn repeat<T, F>(
        &self,
        time: Duration,
        what: impl Fn(Client) -> F,
    ) -> anyhow::Result<(Vec<T>, Duration)>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let what = &what;
        let began = Instant::now();
        let each = (0..self.count).map(|n| {
            let client = &self.clients[n % self.clients.len()];
            async move {
                let mut all = Vec::new();
                while began.elapsed() < time {
                    all.push(what(client.clone()).await?);
                }
                anyhow::Ok(all)
            }
        });
        let all = try_join_all(each).await?;
        Ok((all.into_iter().flatten().collect(), began.elapsed()))
    }

    pub(super) fn first(&self) -> &Client {
        &self.clients[0]
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Every caller takes a VM and gives it back, over and over; gives how often.
pub(super) async fn leases(
    callers: &Callers,
    time: Duration,
    kind: &str,
    size: u32,
    samples: &mut Samples,
) -> anyhow::Result<f64> {
    let one = |client: Client| async move {
        let began = Instant::now();
        let granted = client.acquire_vm(wanted()).await.context("acquire")?;
        let acquired = began.elapsed();
        let lease = granted.lease.context("a lease")?;
        let age = lease.receipt.context("a receipt")?.age.unwrap_or_default();
        let age = Duration::try_from(age).unwrap_or_default();
        client.release_vm(&lease.name, ReleasePolicy::Reset).await.context("release")?;
        Ok((acquired, began.elapsed() - acquired, age))
    };
    let (all, took) = callers.repeat(time, one).await?;
    let count = number(all.len());
    samples.add(format!("{kind}_leases_per_s_{size}"), count / took.as_secs_f64());
    let proven = all.iter().filter(|(.., age)| !age.is_zero()).count();
    samples.add(format!("{kind}_proven_before_{size}"), 100.0 * number(proven) / count);
    for (acquire, release, age) in all {
        ensure!(age <= OLDEST, "a receipt was {age:?} old");
        samples.add_ms(format!("{kind}_acquire_ms_{size}"), acquire);
        samples.add_ms(format!("{kind}_release_ms_{size}"), release);
    }
    Ok(count)
}

fn wanted() -> AcquireVmRequest {
    AcquireVmRequest { pool: format!("pools/{POOL}"), ..Default::default() }
}

/// The cheapest call there is, by as many callers.
pub(super) async fn empty_calls(
    callers: &Callers,
    time: Duration,
    size: u32,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let one = |client: Client| async move {
        let began = Instant::now();
        client.is_serving("").await?;
        Ok(began.elapsed())
    };
    let (all, took) = callers.repeat(time, one).await?;
    samples.add(format!("empty_calls_per_s_{size}"), number(all.len()) / took.as_secs_f64());
    all.into_iter().for_each(|time| samples.add_ms(format!("empty_call_ms_{size}"), time));
    Ok(())
}

/// What the disk does with one writer.
pub(super) fn synced_writes(folder: &Path, size: u32, samples: &mut Samples) -> anyhow::Result<()> {
    let path = folder.join("synced");
    let mut file = File::create(&path).context("create a file")?;
    let began = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&WRITE).and_then(|()| file.sync_data()).context("write a file")?;
    }
    samples.add(format!("synced_writes_per_s_{size}"), f64::from(WRITES) / began.elapsed().as_secs_f64());
    std::fs::remove_file(&path).context("remove a file")
}

/// Takes and gives back so many VMs as fast as they come, beside something else.
pub(super) fn in_background(client: &Client, callers: usize, time: Duration) -> JoinSet<anyhow::Result<u32>> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let client = client.clone();
        tasks.spawn(async move {
            let (began, mut count) = (Instant::now(), 0);
            while began.elapsed() < time {
                let lease = client.acquire_vm(wanted()).await?.lease.context("a lease")?;
                client.release_vm(&lease.name, ReleasePolicy::Reset).await?;
                count += 1;
            }
            Ok(count)
        });
    }
    tasks
}
