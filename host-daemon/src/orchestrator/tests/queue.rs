//! Who waits, in which order, for how much, and what they are told.

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::sim::When;
use super::*;
use crate::model::error::{Error, Reason};
use crate::orchestrator::request::{Stage, UpdatePool};
use crate::orchestrator::view::{QueueView, ShortfallReason};

fn caller(name: &str) -> Caller {
    Caller { name: name.to_owned(), admin: false }
}

/// Somebody who waits, once they stand in the queue.
async fn waits(bench: &Bench, who: &str, priority: i32) -> JoinHandle<Result<Granted, Error>> {
    let before = bench.o.pool(&id("desk")).await.expect("pool").status.waiting;
    let (o, who) = (bench.o.clone(), caller(who));
    let asked = Acquire { priority, ..wanted(LONG) };
    let task = tokio::spawn(async move { o.acquire(&who, asked).await });
    status_when(&bench.o, "desk", "one more waits", |status| status.waiting > before).await;
    task
}

#[tokio::test]
async fn the_important_are_served_first_and_callers_take_turns() {
    let bench = Bench::with_pool(1).await;
    let held = bench.acquire().await.expect("granted");
    let mut waiting = Vec::new();
    for (who, priority) in [("a", 0), ("a", 0), ("b", 0), ("c", 5)] {
        waiting.push(waits(&bench, who, priority).await);
    }
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    for expected in [3, 0, 2, 1] {
        let task = std::mem::replace(&mut waiting[expected], tokio::spawn(std::future::pending()));
        let granted = task.await.expect("ran").expect("granted");
        release(&bench.o, &granted, ReleasePolicy::Reset).await;
    }
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_caller_sees_the_queue_move_and_what_comes() {
    let bench = Bench::with_pool(1).await;
    let held = bench.acquire().await.expect("granted");
    let first = waits(&bench, "a", 0).await;
    let (tell, mut stage) = watch::channel(Stage::Asked);
    let o = bench.o.clone();
    let second = tokio::spawn(async move { o.acquire_watched(&caller("b"), wanted(LONG), Some(tell)).await });
    let queued = stage.wait_for(|stage| matches!(stage, Stage::Queued { .. })).await.expect("told").clone();
    let QueueView { position, waiting, .. } = bench.o.queued(&queued);
    assert_eq!((position, waiting), (2, 2));
    let mut moves = bench.o.queue_moves(&id("desk")).expect("a pool");
    let gate = bench.world.gate("resume", When::Before);
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    gate.reached().await;
    moves.changed().await.expect("moved");
    assert_eq!(bench.o.queued(&queued).position, 1);
    bench.world.ungate();
    let granted = first.await.expect("ran").expect("granted");
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    let granted = second.await.expect("ran").expect("granted");
    let last = stage.borrow().clone();
    assert_eq!(last, Stage::Preparing { vm: granted.vm.vm.id.clone() });
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_caller_has_no_more_than_their_quota_however_they_ask() {
    let bench = Bench::with_pool(3).await;
    let quota = UpdatePool { max_leases_per_caller: Some(2), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, quota).await.expect("changed");
    let ask = |who: &str| {
        let (o, who) = (bench.o.clone(), caller(who));
        async move { o.acquire(&who, wanted(LONG)).await }
    };
    let all = futures_util::future::join_all((0..6).map(|_| ask("a"))).await;
    let (granted, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!(granted.len(), 2);
    for error in refused.into_iter().map(|one| one.expect_err("refused")) {
        assert_eq!(error.reason, Reason::QuotaExceeded);
        assert!(error.retry_after.is_some());
    }
    ask("b").await.expect("another's quota");
    let mut granted = granted.into_iter().map(|one| one.expect("granted"));
    let one = granted.next().expect("two");
    release(&bench.o, &one, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    ask("a").await.expect("there is room again");
    bench.check().await;
}

#[tokio::test]
async fn a_pool_is_found_by_what_it_has() {
    let bench = Bench::with_pool(1).await;
    let mut other = pool("other", 1);
    other.spec.options.labels = [("team".to_owned(), "qa".to_owned())].into();
    bench.o.create_pool(other).await.expect("pool");
    bench.ready("other", 1).await;
    let by = |key: &str, value: &str| Acquire {
        pool: None,
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..wanted(LONG)
    };
    let granted = bench.o.acquire(&admin(), by("team", "qa")).await.expect("granted");
    assert_eq!(granted.lease.pool, id("other"));
    let unmet = bench.o.acquire(&admin(), by("team", "dev")).await.expect_err("none has it");
    assert_eq!(unmet.reason, Reason::RequirementsUnmet);
    let gpu = Acquire { needs: Needs { gpu: true, template: None }, ..wanted(LONG) };
    let unmet = bench.o.acquire(&admin(), gpu).await.expect_err("no gpu");
    assert_eq!(unmet.reason, Reason::RequirementsUnmet);
    // Both would do; the one with a VM ready is taken.
    let linux = Needs { gpu: false, template: Some(id("linux")) };
    let any = Acquire { pool: None, needs: linux, ..wanted(LONG) };
    let granted = bench.o.acquire(&admin(), any).await.expect("granted");
    assert_eq!(granted.lease.pool, id("desk"));
    bench.check().await;
}

#[tokio::test]
async fn a_paused_pool_keeps_its_callers_waiting_and_makes_nothing() {
    let bench = Bench::with_pool(1).await;
    let paused = bench.o.pause_pool(&id("desk"), None, true).await.expect("paused");
    assert_eq!(paused.status.shortfalls[0].reason, ShortfallReason::Paused);
    let more = UpdatePool { desired: Some(2), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, more).await.expect("changed");
    let none = bench.o.acquire(&admin(), wanted(Duration::from_millis(50))).await.expect_err("paused");
    assert_eq!(none.reason, Reason::PoolExhausted);
    assert!(none.to_string().contains("paused"), "{none}");
    let waiting = waits(&bench, "a", 0).await;
    assert_eq!(bench.o.pool(&id("desk")).await.expect("pool").status.total, 1);
    let bench = {
        // Also over a restart; whoever waited is told.
        let bench = bench.restart().await;
        let gone = waiting.await.expect("ran").expect_err("the daemon stopped");
        assert_eq!(gone.reason, Reason::ShuttingDown);
        bench
    };
    let waiting = waits(&bench, "a", 0).await;
    bench.o.pause_pool(&id("desk"), None, false).await.expect("resumed");
    let granted = waiting.await.expect("ran").expect("granted");
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.ready("desk", 2).await;
    bench.check().await;
}

#[tokio::test]
async fn a_caller_has_no_more_than_the_hosts_quota_over_all_pools() {
    let settings = Settings { max_leases_per_caller: 2, ..settings() };
    let bench = Bench::of(World::new(true), settings, pool("desk", 2)).await;
    bench.o.create_pool(pool("side", 2)).await.expect("pool");
    for name in ["desk", "side"] {
        bench.ready(name, 2).await;
    }
    let ask = |who: &str, pool: &str, wait| {
        let (o, who) = (bench.o.clone(), caller(who));
        let wanted = Acquire { pool: Some(id(pool)), ..wanted(wait) };
        async move { o.acquire(&who, wanted).await }
    };
    let refused = |result: Result<Granted>| {
        let error = result.expect_err("refused");
        assert_eq!(error.reason, Reason::QuotaExceeded);
        assert!(error.message.contains("2 leases on this host, 2 are allowed"), "{}", error.message);
    };
    let first = ask("a", "desk", LONG).await.expect("granted");
    let second = ask("a", "side", LONG).await.expect("granted");
    for name in ["desk", "side"] {
        refused(ask("a", name, LONG).await);
    }
    let held = [ask("b", "desk", LONG).await, ask("b", "side", LONG).await];
    assert!(held.iter().all(Result::is_ok), "another caller has a quota of their own");

    // Whoever waits in one pool counts for the others.
    release(&bench.o, &second, ReleasePolicy::Keep).await;
    let waiting = tokio::spawn(ask("a", "desk", LONG));
    status_when(&bench.o, "desk", "somebody waits", |status| status.waiting == 1).await;
    refused(ask("a", "side", LONG).await);
    waiting.abort();
    status_when(&bench.o, "desk", "nobody waits", |status| status.waiting == 0).await;
    let second = ask("a", "side", LONG).await.expect("who went away counts no more");

    // A restart counts what it finds.
    bench.o.shutdown().await;
    let settings = Settings { max_leases_per_caller: 2, ..super::settings() };
    let o = start_with(bench.dir.path(), &bench.world, settings).await;
    let again = Acquire { pool: Some(id("side")), ..wanted(Duration::ZERO) };
    refused(o.acquire(&caller("a"), again.clone()).await);
    for granted in [&first, &second] {
        release(&o, granted, ReleasePolicy::Reset).await;
    }
    o.acquire(&caller("a"), Acquire { wait: LONG, ..again }).await.expect("room again");
}
