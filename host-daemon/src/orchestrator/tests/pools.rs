//! What a pool's controller makes, takes away and makes good.

use futures_util::FutureExt as _;

use super::sim::Fault;
use super::*;
use crate::model::error::Reason;
use crate::orchestrator::request::UpdatePool;

#[tokio::test]
async fn a_pool_follows_its_settings() {
    let bench = Bench::with_pool(2).await;
    let update = |desired, warm| UpdatePool { desired, warm, ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update(Some(5), None)).await.expect("changed");
    bench.ready("desk", 5).await;
    bench.o.update_pool(&id("desk"), None, update(None, Some(Some(1)))).await.expect("changed");
    status_when(&bench.o, "desk", "one left", |status| (status.total, status.warm) == (1, 1)).await;
    // Whoever takes the only warm one makes the next one come.
    bench.acquire().await.expect("granted");
    status_when(&bench.o, "desk", "one more", |status| (status.total, status.warm) == (2, 1)).await;
    let stale = bench.o.update_pool(&id("desk"), Some(1), update(Some(3), None)).await;
    assert_eq!(stale.expect_err("stale").reason, Reason::StaleEtag);
    bench.check().await;
}

#[tokio::test]
async fn a_pool_is_changed_and_paused_though_the_caller_goes_away() {
    let bench = Bench::with_pool(1).await;
    let desk = id("desk");
    let update = UpdatePool { desired: Some(2), ..UpdatePool::default() };
    let mut call = Box::pin(bench.o.update_pool(&desk, None, update));
    assert!((&mut call).now_or_never().is_none(), "it waits for the store");
    drop(call);
    bench.ready("desk", 2).await;
    for paused in [true, false] {
        let mut call = Box::pin(bench.o.pause_pool(&desk, None, paused));
        assert!((&mut call).now_or_never().is_none(), "it waits for the store");
        drop(call);
        until("row and controller agree", async || {
            let row = bench.o.pool(&desk).await.expect("pool").pool;
            (row.paused == paused && bench.o.0.pools.is_open(&desk) != paused).then_some(())
        })
        .await;
    }
    bench.check().await;
}

#[tokio::test]
async fn a_failure_to_make_a_vm_is_said_and_made_good() {
    let bench = Bench::with_pool(1).await;
    bench.world.fail("define", &[Fault::Refused]);
    let update = UpdatePool { desired: Some(2), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    let status = status_when(&bench.o, "desk", "a reason", |status| !status.reason.is_empty()).await;
    assert!(status.reason.contains("define"), "{}", status.reason);
    let status = bench.ready("desk", 2).await;
    assert_eq!((status.error, status.reason.as_str()), (1, ""));
    bench.check().await;
}

#[tokio::test]
async fn a_pool_with_leases_goes_only_by_force_and_its_name_is_free_at_once() {
    let bench = Bench::with_pool(2).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    let refused = bench.o.delete_vm(&admin(), &vm, false, None).await.expect_err("leased");
    assert_eq!(refused.reason, Reason::VmLeased);
    let refused = bench.o.delete_pool(&admin(), &id("desk"), false, None).await.expect_err("leased");
    assert_eq!(refused.reason, Reason::PoolHasLeases);
    let in_use = bench.o.delete_template(&id("linux"), None).await.expect_err("used");
    assert_eq!(in_use.reason, Reason::TemplateInUse);

    bench.o.delete_pool(&admin(), &id("desk"), true, None).await.expect("forced");
    assert_eq!(bench.o.pool(&id("desk")).await.expect_err("gone").reason, Reason::NotFound);
    let lease = bench.o.lease(&granted.lease.id).await.expect("kept");
    assert_eq!(lease.ended, Some(crate::model::lease::EndedAs::Revoked));
    for round in 0..10 {
        bench.o.create_pool(pool("desk", 1)).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let granted = bench.acquire().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(granted.lease.pool, id("desk"));
        bench.o.delete_pool(&admin(), &id("desk"), true, None).await.expect("forced");
    }
    assert!(bench.world.names().is_empty(), "{:?}", bench.world.names());
    bench.check().await;
    bench.o.delete_template(&id("linux"), None).await.expect("unused now");
    assert!(bench.world.templates().is_empty());
}

#[tokio::test]
async fn callers_who_wait_for_a_pool_that_goes_are_told() {
    let bench = Bench::with_pool(1).await;
    let _held = bench.acquire().await.expect("granted");
    let o = bench.o.clone();
    let waiting = tokio::spawn(async move { o.acquire(&admin(), wanted(LONG)).await });
    status_when(&bench.o, "desk", "waiting", |status| status.waiting == 1).await;
    bench.o.delete_pool(&admin(), &id("desk"), true, None).await.expect("forced");
    let error = waiting.await.expect("ran").expect_err("no pool");
    assert_eq!(error.reason, Reason::NotFound);
}

#[tokio::test]
async fn a_template_is_made_once_and_a_failed_one_leaves_nothing() {
    let bench = Bench::with_pool(0).await;
    let again = bench.o.create_template(template("linux")).await.expect_err("taken");
    assert_eq!(again.reason, Reason::AlreadyExists);

    for (call, outcome) in [("start", "HYPERVISOR_FAILED"), ("seal", "HYPERVISOR_FAILED")] {
        bench.world.fail(call, &[Fault::Refused]);
        let operation = bench.o.create_template(template("other")).await.expect("begun");
        let done = bench.o.wait_operation(&operation.id, LONG).await.expect("operation");
        let Some(Outcome::Failed { reason, .. }) = done.outcome else { panic!("{:?}", done.outcome) };
        assert_eq!(reason, outcome);
        assert_eq!(bench.o.template(&id("other")).await.expect_err("gone").reason, Reason::NotFound);
        assert_eq!(bench.world.templates(), [id("linux")]);
        assert!(bench.world.names().is_empty(), "{:?}", bench.world.names());
    }

    let request = request("create other");
    let asked = CreateTemplate { request: Some(request.clone()), ..template("other") };
    let one = bench.o.create_template(asked.clone()).await.expect("begun");
    let two = bench.o.create_template(asked.clone()).await.expect("the same");
    assert_eq!(one.id, two.id);
    let other = RequestId { fingerprint: "else".into(), ..request };
    let error = bench.o.create_template(CreateTemplate { request: Some(other), ..asked }).await;
    assert_eq!(error.expect_err("reused").reason, Reason::RequestIdReused);
    bench.o.wait_operation(&one.id, LONG).await.expect("operation");

    let request = super::request("create pool");
    let asked = CreatePool { request: Some(request), ..pool("second", 1) };
    let one = bench.o.create_pool(asked.clone()).await.expect("made");
    let two = bench.o.create_pool(asked).await.expect("the same");
    assert_eq!(one.pool.uid, two.pool.uid);
    let taken = bench.o.create_pool(pool("second", 1)).await.expect_err("taken");
    assert_eq!(taken.reason, Reason::AlreadyExists);
}

#[tokio::test]
async fn an_image_that_dies_while_it_boots_fails_at_once() {
    let bench = Bench::with_pool(0).await;
    let gate = bench.world.gate("open_guest", sim::When::Before);
    let operation = bench.o.create_template(template("other")).await.expect("begun");
    gate.reached().await;
    let builder = id(&bench.world.names()[0]);
    bench.world.exit(&builder, false).await;
    let done = bench.o.wait_operation(&operation.id, LONG).await.expect("operation");
    let Some(Outcome::Failed { message, .. }) = done.outcome else { panic!("{:?}", done.outcome) };
    assert!(message.contains("it burned"), "{message}");
    assert!(bench.world.names().is_empty());
}
