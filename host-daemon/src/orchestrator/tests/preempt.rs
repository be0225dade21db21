//! A more important caller, and the lease that goes on after it.

use super::sim::{Fault, When};
use super::*;
use crate::model::error::Reason;
use crate::model::queue::Needs;
use crate::model::record::{Lease, TemplateState};
use crate::orchestrator::request::{Stage, Target, UpdatePool};
use crate::orchestrator::view::ShortfallReason;
use tokio::sync::watch;

async fn bench(size: u32) -> Bench {
    let mut wish = pool("desk", size);
    wish.spec.options.preemption = true;
    let bench = Bench::of(World::new(true), settings(), wish).await;
    bench.ready("desk", size).await;
    bench
}

fn important(priority: i32) -> Acquire {
    Acquire { priority, ..wanted(LONG) }
}

async fn lease(bench: &Bench, granted: &Granted) -> Lease {
    bench.o.lease(&granted.lease.id).await.expect("lease")
}

async fn runs_again(bench: &Bench, granted: &Granted) -> Lease {
    until("the lease goes on", async || {
        let lease = lease(bench, granted).await;
        (lease.suspended.is_none() && state(&bench.o, &lease.vm).await == VmState::Running).then_some(lease)
    })
    .await
}

#[tokio::test]
async fn a_less_important_lease_makes_room_and_goes_on_intact() {
    let bench = bench(1).await;
    let low = bench.acquire().await.expect("granted");
    let vm = low.vm.vm.id.clone();
    bench.world.soil(&vm);
    let high = bench.o.acquire(&admin(), important(10)).await.expect("granted");
    assert_ne!(high.vm.vm.id, vm);
    let kept = until("saved", async || {
        let kept = lease(&bench, &low).await;
        (state(&bench.o, &vm).await == VmState::Saved).then_some(kept)
    })
    .await;
    assert!(kept.suspended.is_some() && kept.ended.is_none());
    assert!(kept.suspend_reason.contains("priority 10"), "{}", kept.suspend_reason);
    bench.check().await;

    let by_lease = Target::Lease(low.lease.id.clone());
    let told = [
        bench.o.renew(&admin(), &low.lease.id, None).await.map(drop).expect_err("preempted"),
        bench.o.resume_vm(&admin(), &vm).await.map(drop).expect_err("preempted"),
        bench.o.desktop(&admin(), &by_lease).await.map(drop).expect_err("preempted"),
        bench.o.desktop(&admin(), &Target::Vm(vm.clone())).await.map(drop).expect_err("preempted"),
    ];
    for error in told {
        assert_eq!(error.reason, Reason::LeasePreempted, "{error}");
    }
    let status = bench.o.pool(&id("desk")).await.expect("pool").status;
    assert_eq!((status.leased, status.suspended), (1, 1));

    release(&bench.o, &high, ReleasePolicy::Reset).await;
    let on = runs_again(&bench, &low).await;
    assert_eq!((on.vm.clone(), bench.world.dirt(&vm)), (vm.clone(), Some(1)), "as it was left");
    let left = |lease: &Lease, since| lease.expires.duration_since(since).as_secs_f64();
    let before = left(&kept, kept.suspended.expect("since"));
    let after = left(&on, jiff::Timestamp::now());
    assert!(after <= before && before - after < 30.0, "its life stood still: {before} {after}");
    bench.o.desktop(&admin(), &by_lease).await.expect("its again");
    release(&bench.o, &low, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn both_are_told_and_the_room_is_there_when_the_lease_is_saved() {
    let bench = bench(1).await;
    // For one VM of 64 MiB, not for two.
    bench.world.set_memory_mb(100);
    let low = bench.acquire().await.expect("granted");
    let gate = bench.world.gate("save", When::Before);
    let (tell, stage) = watch::channel(Stage::Asked);
    let o = bench.o.clone();
    let high = tokio::spawn(async move { o.acquire_watched(&admin(), important(10), Some(tell)).await });
    gate.reached().await;
    let told = format!("lease {} of priority 0 is being saved for you", low.lease.id);
    until("the reason", async || {
        let stage = stage.borrow().clone();
        (bench.o.queued(&stage).reason == told).then_some(())
    })
    .await;
    status_when(&bench.o, "desk", "no memory yet", |status| {
        status.shortfalls.iter().any(|one| one.reason == ShortfallReason::HostMemory)
    })
    .await;
    assert_eq!(bench.world.names().len(), 1, "a vm that is being saved has its memory");
    bench.world.ungate();
    gate.open();
    let high = high.await.expect("ran").expect("granted");
    let kept = lease(&bench, &low).await;
    assert!(kept.suspend_reason.contains("priority 10"), "{}", kept.suspend_reason);
    release(&bench.o, &high, ReleasePolicy::Reset).await;
    runs_again(&bench, &low).await;
    bench.check().await;
}

#[tokio::test]
async fn nobody_is_preempted_for_a_caller_whom_the_new_vm_would_not_do() {
    let bench = bench(1).await;
    let low = bench.acquire().await.expect("granted");
    bench.o.create_template(template("other")).await.expect("begun");
    until("the template", async || {
        let other = bench.o.template(&id("other")).await.expect("template");
        (other.state == TemplateState::Ready).then_some(())
    })
    .await;
    let update = UpdatePool { template: Some(id("other")), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    let needs = Needs { template: Some(id("linux")), ..Needs::default() };
    let picky = Acquire { needs, wait: Duration::from_secs(1), ..important(10) };
    bench.o.acquire(&admin(), picky).await.expect_err("none of that template comes");
    assert_eq!(lease(&bench, &low).await.suspended, None);
    // Whom it does is served.
    bench.o.acquire(&admin(), important(10)).await.expect("granted");
    assert!(lease(&bench, &low).await.suspended.is_some());
}

#[tokio::test]
async fn equals_are_not_preempted_nor_anybody_where_the_pool_does_not_say_so() {
    let bench = bench(1).await;
    let held = bench.o.acquire(&admin(), important(10)).await.expect("granted");
    let short = Acquire { wait: Duration::from_millis(200), ..important(10) };
    bench.o.acquire(&admin(), short).await.expect_err("as important");
    release(&bench.o, &held, ReleasePolicy::Reset).await;

    let bench = Bench::with_pool(1).await;
    let _held = bench.acquire().await.expect("granted");
    let short = Acquire { wait: Duration::from_millis(200), ..important(100) };
    bench.o.acquire(&admin(), short).await.expect_err("no preemption here");
    bench.check().await;
}

#[tokio::test]
async fn a_preempted_lease_outlives_a_restart_and_may_be_given_back() {
    let bench = bench(1).await;
    let low = bench.acquire().await.expect("granted");
    bench.world.soil(&low.vm.vm.id);
    let high = bench.o.acquire(&admin(), important(1)).await.expect("granted");
    until("saved", async || (state(&bench.o, &low.vm.vm.id).await == VmState::Saved).then_some(())).await;
    let bench = bench.restart().await;
    assert!(lease(&bench, &low).await.suspended.is_some());
    assert_eq!(state(&bench.o, &low.vm.vm.id).await, VmState::Saved);
    bench.check().await;
    release(&bench.o, &high, ReleasePolicy::Destroy).await;
    assert_eq!(runs_again(&bench, &low).await.vm, low.vm.vm.id);
    assert_eq!(bench.world.dirt(&low.vm.vm.id), Some(1));

    let high = bench.o.acquire(&admin(), important(1)).await.expect("granted");
    release(&bench.o, &low, ReleasePolicy::Reset).await;
    release(&bench.o, &high, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_lease_as_it_was() {
    let bench = bench(1).await;
    let low = bench.acquire().await.expect("granted");
    bench.world.fail("save", &[Fault::Refused]);
    let high = bench.o.acquire(&admin(), important(1)).await.expect("the second try");
    until("saved", async || (state(&bench.o, &low.vm.vm.id).await == VmState::Saved).then_some(())).await;
    release(&bench.o, &high, ReleasePolicy::Reset).await;
    // So does a resume: it is tried again.
    bench.world.fail("resume", &[Fault::Refused]);
    runs_again(&bench, &low).await;
    bench.check().await;
}

#[test]
fn whatever_of_a_preemption_was_under_way_is_made_good() {
    for (call, when) in
        [("save", When::Before), ("save", When::After), ("resume", When::Before), ("resume", When::After)]
    {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("runtime")
        };
        let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
        let first = runtime();
        let (o, low, gate) = first.block_on(async {
            let o = start(dir.path(), &world).await;
            make_template(&o).await;
            let mut wish = pool("desk", 1);
            wish.spec.options.preemption = true;
            o.create_pool(wish).await.expect("pool");
            status_when(&o, "desk", "one", |status| status.warm == 1).await;
            let low = o.acquire(&admin(), wanted(LONG)).await.expect("granted");
            world.soil(&low.vm.vm.id);
            let high = if call == "resume" {
                let high = o.acquire(&admin(), important(1)).await.expect("granted");
                until("saved", async || (state(&o, &low.vm.vm.id).await == VmState::Saved).then_some(()))
                    .await;
                Some(high)
            } else {
                None
            };
            let gate = world.gate(call, when);
            match high {
                Some(high) => release(&o, &high, ReleasePolicy::Reset).await,
                None => {
                    let o = o.clone();
                    tokio::spawn(async move { o.acquire(&admin(), important(1)).await });
                }
            }
            gate.reached().await;
            (o, low, gate)
        });
        drop((o, gate));
        first.shutdown_timeout(LONG);
        world.ungate();
        runtime().block_on(async {
            let o = start(dir.path(), &world).await;
            let on = until("the lease goes on", async || {
                let lease = o.lease(&low.lease.id).await.expect("lease");
                assert!(lease.ended.is_none(), "{call} {when:?}: {lease:?}");
                (lease.suspended.is_none() && state(&o, &lease.vm).await == VmState::Running).then_some(lease)
            })
            .await;
            assert_eq!(world.dirt(&on.vm), Some(1), "{call} {when:?}");
            let page = Page { after: String::new(), limit: 10 };
            for lease in o.leases(&LeaseFilter::default(), &page).await.expect("leases") {
                o.release(&admin(), &lease.id, Some(ReleasePolicy::Reset)).await.expect("released");
            }
            status_when(&o, "desk", "all ready", |status| status.warm == 1).await;
            check(&o, &world).await;
            o.shutdown().await;
        });
    }
}
