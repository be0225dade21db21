//! `kill -9` on the real daemon, again and again at any moment, while many clients make it work; nothing is lost and
//! nothing doubled.
//!
//! The clients go on as well-made ones do: what was not answered is asked again, with the same request id, of whichever
//! daemon lives. What was answered is written down, and every next daemon is held to it, and so are the files that the
//! dead one left: the store, and the journal that is the simulated hypervisor's own truth.
//!
//! The seed is printed; the moments still differ from run to run, since the machine's timing decides where a kill hits.

mod agents;
mod leases;
mod ledger;
mod line;
mod remains;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hvkube_sdk::v1::{DisplaySize, Pool, Template, TemplateSource};
use hvkube_tests::{Daemon, LONG, make_template, until};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use ledger::Ledger;
use line::{Dice, Line, Switchboard};

const KILLS: u32 = 200;
const LEASE_CLIENTS: u64 = 16;
const WORKERS: u64 = 4;
/// VMs of the pool that everybody uses, when nothing changes it, and of the agents'.
const DESKS: u32 = 8;
const ERRANDS: u32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_kills_lose_nothing_and_double_nothing() {
    // On one thread: clients need little, the daemon can use the rest.
    tokio::task::LocalSet::new().run_until(kills()).await;
}

async fn kills() {
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    // Short times instead of none, so that moves are caught in the middle.
    let settings =
        ["sim.profile=hyperv", "sim.time_factor=0.005", "orchestrator.settle_quiet=50ms", "log.level=warn"];
    let mut arguments = vec!["--hypervisor", "sim"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut daemon = Daemon::start(&arguments).await;
    furnish(&daemon).await;

    let ledger = Arc::new(Ledger::default());
    let (switchboard, line) = Switchboard::new(&daemon, &ledger).await;
    let mut clients = JoinSet::new();
    for number in 0..LEASE_CLIENTS {
        clients.spawn_local(leases::client(line.clone(), Dice(seed ^ number)));
    }
    clients.spawn_local(leases::changer(line.clone(), Dice(seed ^ 100)));
    clients.spawn_local(leases::passing_pools(line.clone(), Dice(seed ^ 101)));
    clients.spawn_local(agents::submitter(line.clone(), Dice(seed ^ 102)));
    for number in 0..WORKERS {
        clients.spawn_local(agents::worker(line.clone(), Dice(seed ^ (200 + number)), number));
    }

    let began = Instant::now();
    let (mut kills, mut recovered, mut longest) = (0, 0, Duration::ZERO);
    while kills < KILLS {
        tokio::time::sleep(Duration::from_millis(10 + dice.below(200))).await;
        switchboard.cut();
        daemon.kill();
        kills += 1;
        // Some die again before they serve.
        while dice.below(8) == 0 && kills < KILLS {
            daemon.begin_again();
            tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
            daemon.kill();
            kills += 1;
        }
        let held = ledger.held();
        remains::check(&daemon, &ledger, kills % 20 == 0).await;
        let start = Instant::now();
        daemon.begin_again();
        daemon.serves().await;
        longest = longest.max(start.elapsed());
        switchboard.connect(&daemon).await;
        recovered += held.len();
        after_start(&line, &ledger, held).await;
        ledger.assert_good();
    }
    let took = began.elapsed().as_secs();
    line.finish();
    let finished = tokio::time::timeout(LONG * 2, async {
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client panics");
        }
    });
    let finished = finished.await.is_ok();
    ledger.assert_good();
    assert!(finished, "clients hang: {}\n{}", agents::open(&line).await.join("\n"), ledger.figures());

    let client = daemon.client();
    agents::all_ended(&client, &ledger).await;
    settled(&daemon).await;
    ledger.assert_good();
    switchboard.cut();
    daemon.kill();
    remains::check(&daemon, &ledger, true).await;
    remains::same_vms(&daemon, (DESKS + ERRANDS) as usize).await;
    daemon.again().await;
    settled(&daemon).await;
    println!(
        "{kills} kills in {took} s: {}, {recovered} leases found again, longest start {} ms",
        ledger.figures(),
        longest.as_millis()
    );
}

/// A template, the pool that everybody uses, and that of the agents.
async fn furnish(daemon: &Daemon) {
    let client = daemon.client();
    let template = Template {
        source: Some(TemplateSource { disk_path: "/no/such/disk".into(), ..TemplateSource::default() }),
        memory_mb: 64,
        display: Some(DisplaySize { width: 320, height: 200 }),
        ..Template::default()
    };
    make_template(&client, "tiny", template).await.expect("a template");
    let pool =
        Pool { template: "templates/tiny".into(), desired_count: DESKS, preemption: true, ..Pool::default() };
    client.create_pool("desks", pool).await.expect("a pool");
    let pool = Pool { template: "templates/tiny".into(), desired_count: ERRANDS, ..Pool::default() };
    client.create_pool("errands", pool).await.expect("a pool");
}

/// What the ledger says is held must be held in the new daemon, and no VM by two.
async fn after_start(line: &Line, ledger: &Ledger, held: Vec<(String, String)>) {
    let Some(client) = line.now() else { return };
    let live: Result<Vec<_>, _> = client.list_leases(None, false).collect().await;
    let Ok(live) = live.inspect_err(|error| ledger.found(format!("leases can't be listed: {error}"))) else {
        return;
    };
    let mut vms: Vec<_> = live.iter().map(|lease| &lease.vm).collect();
    vms.sort();
    let before = vms.len();
    vms.dedup();
    // The pages are read one after the other; a VM that is leased anew meanwhile may be in two.
    if vms.len() != before && live.len() < 100 {
        ledger.found(format!("a vm has two live leases: {live:?}"));
    }
    for (name, vm) in held {
        let lease = match client.get_lease(&name).await {
            Ok(lease) => lease,
            Err(error) => {
                ledger.found(format!("{name} was answered and is gone: {error}"));
                continue;
            }
        };
        if lease.vm != vm {
            ledger.found(format!("{name} was of {vm} and is of {}", lease.vm));
        }
        let live = lease.end_time.is_none();
        if !live && lease.end_reason.is_empty() {
            ledger.found(format!("{name} ended without a reason"));
        }
        // Its holder may have given it back since the start.
        if !live && !ledger.may_have_ended(&name) {
            ledger.found(format!("{name} ended by itself: {:?} {}", lease.state(), lease.end_reason));
        }
    }
}

/// Waits until the pool is as it was made, and nothing else is left.
async fn settled(daemon: &Daemon) {
    let client = daemon.client();
    until("a pool of clean vms and nothing besides", async || {
        let pools: Vec<Pool> = client.list_pools().collect::<Result<_, _>>().await.expect("pools");
        let vms: Vec<_> = client.list_vms(None, &[]).collect::<Result<_, _>>().await.expect("vms");
        // Kept by their last holders, who are gone.
        for kept in vms.iter().filter(|vm| vm.pool.is_empty()) {
            // It may still be on its way out.
            let _ = client.delete_vm(&kept.name, false).await;
        }
        let leases: Vec<_> = client.list_leases(None, false).collect::<Result<_, _>>().await.expect("leases");
        let warm = |name: &str| Some(pools.iter().find(|pool| pool.name == name)?.status.as_ref()?.warm);
        let clean = (warm("pools/desks")?, warm("pools/errands")?) == (DESKS, ERRANDS);
        let only = (pools.len(), vms.len()) == (2, (DESKS + ERRANDS) as usize);
        (clean && only && leases.is_empty()).then_some(())
    })
    .await;
}
