//! Moves of one VM, and what a failed one leaves.

use super::sim::Fault;
use super::*;
use crate::hypervisor::Stop;
use crate::model::error::Reason;
use crate::orchestrator::request::{Fork, TakeCheckpoint};

#[tokio::test]
async fn a_vm_goes_round_and_refuses_what_the_table_does_not_have() {
    let bench = Bench::with_pool(1).await;
    let (o, caller) = (&bench.o, admin());
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    o.save_vm(&caller, &vm).await.expect("saved");
    o.save_vm(&caller, &vm).await.expect("already");
    let error = o.pause_vm(&caller, &vm).await.expect_err("saved");
    assert_eq!(error.reason, Reason::IllegalVmState);
    let resumed = o.resume_vm(&caller, &vm).await.expect("resumed");
    assert!(resumed.vm.epoch > granted.vm.vm.epoch, "a new session");
    o.pause_vm(&caller, &vm).await.expect("paused");
    o.resume_vm(&caller, &vm).await.expect("resumed");
    o.stop_vm(&caller, &vm, Stop::Hard).await.expect("off");
    o.start_vm(&caller, &vm).await.expect("on");
    bench.world.soil(&vm);
    let reset = o.reset_vm(&caller, &vm).await.expect("clean");
    assert_eq!((reset.vm.state, bench.world.dirt(&vm)), (VmState::Running, Some(0)));
    o.delete_vm(&caller, &vm, true, None).await.expect("gone");
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn a_refused_move_leaves_the_vm_as_it_was() {
    let bench = Bench::with_pool(1).await;
    let (o, caller) = (&bench.o, admin());
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    for call in ["pause", "save"] {
        bench.world.fail(call, &[Fault::Refused]);
        let done =
            if call == "pause" { o.pause_vm(&caller, &vm).await } else { o.save_vm(&caller, &vm).await };
        assert_eq!(done.expect_err("refused").reason, Reason::HypervisorFailed);
        assert_eq!(state(o, &vm).await, VmState::Running, "{call}");
        until("a session again", async || o.vm(&vm).await.expect("vm").guest.filter(|g| g.connected)).await;
    }
    o.pause_vm(&caller, &vm).await.expect("paused");
    bench.world.fail("resume", &[Fault::Refused]);
    o.resume_vm(&caller, &vm).await.expect_err("refused");
    assert_eq!(state(o, &vm).await, VmState::Paused);
    o.resume_vm(&caller, &vm).await.expect("resumed");
    assert!(o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
    bench.check().await;
}

#[tokio::test]
async fn a_reset_that_fails_keeps_the_vm_out_of_use() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    bench.world.fail("reset", &[Fault::Refused; 2]);
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    let status = bench.ready("desk", 1).await;
    assert_eq!(status.quarantined + status.error, 1);
    bench.check().await;
}

#[tokio::test]
async fn checkpoints_are_made_restored_and_deleted() {
    let bench = Bench::with_pool(1).await;
    let (o, caller) = (&bench.o, admin());
    let vm = bench.acquire().await.expect("granted").vm.vm.id;
    let take = |name: &str| TakeCheckpoint {
        vm: vm.clone(),
        id: Some(id(name)),
        description: "before".into(),
        request: None,
    };
    bench.world.soil(&vm);
    o.create_checkpoint(&caller, take("one")).await.expect("taken");
    let again = o.create_checkpoint(&caller, take("one")).await.expect_err("taken");
    assert_eq!(again.reason, Reason::AlreadyExists);
    assert_eq!(state(o, &vm).await, VmState::Running);
    bench.world.soil(&vm);
    o.restore_checkpoint(&caller, &vm, "one").await.expect("restored");
    assert_eq!((state(o, &vm).await, bench.world.dirt(&vm)), (VmState::Running, Some(1)));
    let all = o.checkpoints(&caller, &vm).await.expect("listed");
    let names: Vec<_> = all.iter().map(|one| (one.id.as_str(), one.description.as_str())).collect();
    assert_eq!(names[1], ("one", "before"));
    assert_eq!(names[0].0, "clean");
    o.restore_checkpoint(&caller, &vm, "clean").await.expect("reset");
    assert_eq!(bench.world.dirt(&vm), Some(0));
    let reserved = o.delete_checkpoint(&caller, &vm, "clean").await.expect_err("reserved");
    assert_eq!(reserved.reason, Reason::CheckpointReserved);
    o.delete_checkpoint(&caller, &vm, "one").await.expect("deleted");
    let unknown = o.restore_checkpoint(&caller, &vm, "one").await.expect_err("gone");
    assert_eq!(unknown.reason, Reason::NotFound);
    assert_eq!(state(o, &vm).await, VmState::Running);
    bench.check().await;
}

#[tokio::test]
async fn a_fork_is_made_once_and_a_failed_one_leaves_nothing() {
    let bench = Bench::with_pool(1).await;
    let (o, caller) = (&bench.o, admin());
    let vm = bench.acquire().await.expect("granted").vm.vm.id;
    bench.world.soil(&vm);
    let fork = Fork { vm: vm.clone(), new: Some(id("second")), request: Some(request("fork")) };
    bench.world.fail("fork", &[Fault::Refused]);
    o.fork_vm(&caller, fork.clone()).await.expect_err("refused");
    assert_eq!(o.vm(&id("second")).await.expect_err("none").reason, Reason::NotFound);
    let one = o.fork_vm(&caller, fork.clone()).await.expect("forked");
    let two = o.fork_vm(&caller, fork.clone()).await.expect("the same");
    assert_eq!(one.vm.uid, two.vm.uid);
    assert_eq!((one.vm.state, one.vm.pool, bench.world.dirt(&id("second"))), (VmState::Saved, None, Some(1)));
    let taken = o.fork_vm(&caller, Fork { request: None, ..fork }).await.expect_err("taken");
    assert_eq!(taken.reason, Reason::AlreadyExists);
    assert_eq!(state(o, &vm).await, VmState::Running);
    o.resume_vm(&caller, &id("second")).await.expect("runs too");
    bench.check().await;
}

#[tokio::test]
async fn a_guest_that_shuts_down_is_off_and_stays_its_holders() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    let vm = granted.vm.vm.id.clone();
    bench.world.exit(&vm, true).await;
    until("off", async || (state(&bench.o, &vm).await == VmState::Off).then_some(())).await;
    assert!(bench.o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
    bench.o.start_vm(&admin(), &vm).await.expect("on again");
    bench.check().await;
}
