//! Hot VMs: ready at once, proven all the time, and nobody's but the pool's.

use super::sim::{Fault, When};
use super::*;
use crate::model::error::Reason;
use crate::orchestrator::request::{Caller, Target, Until, UpdatePool};
use crate::store::Behind;

async fn hot(size: u32, hot: u32) -> Bench {
    let mut wish = pool("desk", size);
    wish.spec.options.hot = hot;
    let bench = Bench::of(World::new(true), settings(), wish).await;
    bench.hot(hot).await;
    bench
}

impl Bench {
    async fn hot(&self, count: u32) -> PoolStatus {
        status_when(&self.o, "desk", &format!("{count} hot"), |status| status.hot == count).await
    }
}

#[tokio::test]
async fn a_hot_desktop_is_leased_with_a_receipt_that_says_its_age() {
    let bench = hot(3, 1).await;
    let resumed = bench.world.count("resume");
    let granted = bench.acquire().await.expect("granted");
    let receipt = granted.lease.receipt.clone().expect("receipt");
    assert!(!receipt.age.is_zero() && receipt.age <= Duration::from_secs(1), "{receipt:?}");
    assert_eq!(receipt.checks.len(), 6);
    assert_eq!(receipt.epoch, granted.vm.vm.epoch);
    assert_eq!(granted.vm.vm.state, VmState::Running);
    let other_resumes = bench.world.count("resume") - resumed;
    assert!(other_resumes <= 1, "only the next hot one was resumed");
    // Its receipt is what the store has.
    assert_eq!(bench.o.lease(&granted.lease.id).await.expect("lease").receipt, Some(receipt));
    bench.hot(1).await;
    bench.world.soil(&granted.vm.vm.id);
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    status_when(&bench.o, "desk", "as before", |status| (status.hot, status.warm) == (1, 2)).await;
    assert_eq!(bench.world.dirt(&granted.vm.vm.id), Some(0));
    bench.check().await;
}

#[tokio::test]
async fn one_that_comes_back_to_a_pool_that_wants_it_hot_runs_as_soon_as_it_is_clean() {
    let bench = hot(1, 1).await;
    let granted = bench.acquire().await.expect("granted");
    bench.world.soil(&granted.vm.vm.id);
    let before = bench.o.0.store.changes().head();
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.hot(1).await;
    assert_eq!(bench.world.dirt(&granted.vm.vm.id), Some(0));
    let Behind::Events(events) = bench.o.0.store.changes().behind(before, 100) else { panic!("so many") };
    let moves: Vec<_> = events.iter().filter_map(|event| event.moved).collect();
    use VmState::{Resetting, Resuming, Running};
    assert_eq!(moves, [(Running, Resetting), (Resetting, Resuming), (Resuming, Running)]);
    bench.check().await;
}

#[tokio::test]
async fn hot_ones_follow_the_settings_and_survive_a_restart() {
    let bench = hot(3, 1).await;
    let more = UpdatePool { hot: Some(3), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, more).await.expect("changed");
    bench.hot(3).await;
    let bench = bench.restart().await;
    bench.hot(3).await;
    bench.check().await;
    let fewer = UpdatePool { hot: Some(1), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, fewer).await.expect("changed");
    status_when(&bench.o, "desk", "cooled", |status| (status.hot, status.warm) == (1, 2)).await;
    bench.check().await;
}

#[tokio::test]
async fn one_that_fails_its_proof_goes_back_to_clean_and_another_takes_its_place() {
    let bench = hot(2, 1).await;
    let page = Page { after: String::new(), limit: 10 };
    let vms = bench.o.vms(&VmFilter::default(), &page).await.expect("vms");
    let vm = vms.iter().find(|view| view.vm.hot).expect("a hot one").vm.id.clone();
    bench.world.exit(&vm, false).await;
    status_when(&bench.o, "desk", "made good", |status| (status.hot, status.warm, status.error) == (1, 1, 1))
        .await;
    bench.check().await;
    // A guest that switches itself off is cleaned, not taken for somebody's.
    let vms = bench.o.vms(&VmFilter::default(), &page).await.expect("vms");
    let vm = vms.iter().find(|view| view.vm.hot).expect("a hot one").vm.id.clone();
    let resets = bench.world.count("reset");
    bench.world.exit(&vm, true).await;
    until("cleaned", async || (bench.world.count("reset") > resets).then_some(())).await;
    status_when(&bench.o, "desk", "made good", |status| {
        (status.hot, status.warm, status.strayed) == (1, 1, 0)
    })
    .await;
    bench.check().await;
}

#[tokio::test]
async fn an_image_that_never_becomes_ready_does_not_spin() {
    let mut wish = pool("desk", 2);
    wish.spec.options.hot = 2;
    let world = World::new(true);
    let bench = Bench::of(Arc::clone(&world), settings(), wish).await;
    bench.hot(2).await;
    world.fail("resume", &[Fault::Refused; 500]);
    let granted = bench.acquire().await.expect("a hot one");
    release(&bench.o, &granted, ReleasePolicy::Destroy).await;
    let said = status_when(&bench.o, "desk", "a reason", |status| status.reason.contains("failed")).await;
    assert!(said.reason.contains("template linux failed"), "{}", said.reason);
    assert!(world.count("define") < 20, "{}", world.count("define"));
    world.mend();
    bench.hot(2).await;
    bench.check().await;
}

#[tokio::test]
async fn nobody_drives_a_hot_desktop_without_a_lease() {
    let bench = hot(1, 1).await;
    let page = Page { after: String::new(), limit: 10 };
    let vm = bench.o.vms(&VmFilter::default(), &page).await.expect("vms")[0].vm.id.clone();
    let by_name = Target::Vm(vm.clone());
    assert_eq!(bench.o.may_drive(&by_name).expect_err("reserved").reason, Reason::VmReserved);
    bench.o.desktop(&admin(), &by_name).await.expect("may be looked at");
    let granted = bench.acquire().await.expect("granted");
    assert_eq!(granted.vm.vm.id, vm);
    bench.o.may_drive(&by_name).expect("leased");
    // Somebody who saves it by name has it: it is no longer the pool's to lease.
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.hot(1).await;
    bench.o.save_vm(&admin(), &vm).await.expect("saved");
    let status = status_when(&bench.o, "desk", "strayed", |status| status.strayed == 1).await;
    assert_eq!(status.hot, 0);
    bench.check().await;
}

#[tokio::test]
async fn a_guest_that_is_silent_after_its_resume_is_reset_and_then_booted() {
    for boot in [false, true] {
        let quick = Duration::from_millis(200);
        let settings = Settings {
            answer_timeout: quick,
            agent_timeout: if boot { quick } else { Duration::from_secs(20) },
            boot_timeout: Duration::from_secs(30),
            ..settings()
        };
        // Templates are made with an agent that answers.
        let bench = Bench::of(World::new(true), settings, pool("desk", 1)).await;
        bench.ready("desk", 1).await;
        let booted = bench.world.count("start");
        let gate = bench.world.gate("open_guest", When::Before);
        let o = bench.o.clone();
        let waiting = tokio::spawn(async move { o.acquire(&admin(), wanted(LONG)).await });
        gate.reached().await;
        until("the fallback", async || {
            let done =
                if boot { bench.world.count("start") > booted } else { bench.world.count("reset") > 0 };
            done.then_some(())
        })
        .await;
        bench.world.ungate();
        let granted = waiting.await.expect("ran").expect("granted");
        let receipt = granted.lease.receipt.clone().expect("receipt");
        let told = if boot { "booted, since after a reset" } else { "reset, since after its resume" };
        assert!(receipt.checks[0].detail.contains(told), "{receipt:?}");
        assert_eq!(receipt.replaced, 0);
        release(&bench.o, &granted, ReleasePolicy::Reset).await;
        bench.ready("desk", 1).await;
        if boot {
            // Its clean memory is no good, so its disk was booted once more, while nobody waited, and saved.
            assert_eq!((bench.world.count("start"), bench.world.count("save")), (booted + 2, 1));
            let again = bench.acquire().await.expect("granted");
            let receipt = again.lease.receipt.clone().expect("receipt");
            assert!(!receipt.checks[0].detail.contains("booted"), "{receipt:?}");
            assert_eq!(bench.world.count("start"), booted + 2);
            release(&bench.o, &again, ReleasePolicy::Reset).await;
            bench.ready("desk", 1).await;
        }
        bench.check().await;
    }
}

/// The end of a right, which must come.
async fn end(ended: impl Future<Output = crate::model::error::Error>) -> Reason {
    tokio::time::timeout(LONG, ended).await.expect("an end").reason
}

#[tokio::test]
async fn by_its_name_a_desktop_is_left_when_it_changes_hands() {
    let bench = hot(1, 1).await;
    let page = Page { after: String::new(), limit: 10 };
    let vm = bench.o.vms(&VmFilter::default(), &page).await.expect("vms")[0].vm.id.clone();
    let by_name = Target::Vm(vm.clone());
    let [ci, other] = ["ci", "other"].map(|name| Caller { name: name.into(), admin: false });
    let until = Until::Gone;
    let reserved = bench.o.desktop_ended(&ci, &by_name, until, true).await.err().expect("refused");
    assert_eq!(reserved.reason, Reason::VmReserved);
    let onlooker = bench.o.desktop_ended(&other, &by_name, until, false).await.expect("may look");
    let operator = bench.o.desktop_ended(&admin(), &by_name, until, false).await.expect("may look");

    let granted = bench.o.acquire(&ci, wanted(LONG)).await.expect("granted");
    assert_eq!(granted.vm.vm.id, vm);
    assert_eq!(end(onlooker).await, Reason::VmBusy, "leased meanwhile");
    let holder = bench.o.desktop_ended(&ci, &by_name, until, true).await.expect("may drive");
    let again = bench.o.desktop_ended(&ci, &by_name, until, false).await.expect("may look");
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.hot(1).await;
    let next = bench.o.acquire(&other, wanted(LONG)).await.expect("granted");
    assert_eq!(next.vm.vm.id, vm);
    // Looked at only now: what was in between has passed unseen.
    assert_eq!((end(holder).await, end(again).await), (Reason::LeaseEnded, Reason::LeaseEnded));
    let waited = tokio::time::timeout(Duration::from_millis(50), operator).await;
    assert!(waited.is_err(), "the operator may use every vm");
    bench.check().await;
}
