//! Many watchers of all VMs, while VMs change.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use hvkube_sdk::v1::{Vm, WatchPhase, WatchVmsRequest};
use hvkube_sdk::{Client, Timestamp};
use hvkube_tests::Daemon;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use super::{POOL, load};
use crate::samples::Samples;

const WATCHERS: usize = 200;
const CONNECTIONS: usize = 8;
/// VMs that change all the time meanwhile.
const CHANGING: usize = 4;
const TIME: Duration = Duration::from_secs(3);

/// What one watcher has seen.
struct Seen {
    /// The present version of each VM.
    vms: BTreeMap<String, String>,
    messages: u32,
    delays: Vec<Duration>,
}

pub(super) async fn fan_out(
    daemon: &Daemon,
    callers: &load::Callers,
    size: u32,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let (over, ends) = watch::channel(false);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::builder().state_dir(daemon.state_dir()).connect().await?);
    }
    let (ready, mut readies) = tokio::sync::mpsc::channel(WATCHERS);
    let mut watchers = JoinSet::new();
    for n in 0..WATCHERS {
        watchers.spawn(one(clients[n % CONNECTIONS].clone(), ready.clone(), ends.clone()));
    }
    drop(ready);
    for _ in 0..WATCHERS {
        readies.recv().await.context("a watcher ended early")?;
    }
    let mut changing = load::in_background(callers.first(), CHANGING, TIME);
    let mut leases = 0;
    while let Some(done) = changing.join_next().await {
        leases += done??;
    }
    super::full(callers.first(), |status| status.warm == size).await?;
    // Every watcher gets so long to hear of the last change.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _ = over.send(true);

    let mut truth = BTreeMap::new();
    let mut all = std::pin::pin!(callers.first().list_vms(Some(POOL), &[]));
    while let Some(vm) = all.next().await {
        let vm = vm?;
        truth.insert(vm.name, vm.etag);
    }
    let mut messages = 0;
    while let Some(seen) = watchers.join_next().await {
        let seen = seen??;
        ensure!(seen.vms == truth, "a watcher saw something else in the end than the list does");
        messages += seen.messages;
        for delay in seen.delays {
            samples.add_ms(format!("watch_delay_ms_{size}"), delay);
        }
    }
    samples.add(format!("watch_messages_per_s_{size}"), f64::from(messages) / TIME.as_secs_f64());
    samples.add(format!("watched_leases_per_s_{size}"), f64::from(leases) / TIME.as_secs_f64());
    Ok(())
}

async fn one(
    client: Client,
    ready: tokio::sync::mpsc::Sender<()>,
    mut over: watch::Receiver<bool>,
) -> anyhow::Result<Seen> {
    let request = WatchVmsRequest { pool: format!("pools/{POOL}"), ..Default::default() };
    let mut stream = client.vms().watch_vms(request).await?.into_inner();
    let mut seen = Seen { vms: BTreeMap::new(), messages: 0, delays: Vec::new() };
    loop {
        let message = tokio::select! {
            message = stream.message() => message?.context("the watch ended")?,
            _ = over.wait_for(|over| *over) => return Ok(seen),
        };
        match message.phase() {
            WatchPhase::Synced => ready.send(()).await?,
            WatchPhase::Change => {
                seen.messages += 1;
                // Of the newest in it; the others were gathered.
                let newest = message.vms.iter().filter_map(age).min();
                seen.delays.extend(newest);
            }
            _ => {}
        }
        for name in message.removed {
            seen.vms.remove(&name);
        }
        seen.vms.extend(message.vms.into_iter().map(|vm| (vm.name, vm.etag)));
    }
}

/// How long ago a VM changed.
fn age(vm: &Vm) -> Option<Duration> {
    let at: Timestamp = vm.update_time?;
    SystemTime::now().duration_since(SystemTime::try_from(at).ok()?).ok()
}
