//! Masks belong to a lease, and outlive it as long as what they cover.

use super::sim::{Fault, When};
use super::*;
use crate::model::error::Reason;
use crate::model::lease::EndedAs;
use crate::model::mask::Masks;
use crate::model::record::Pending;
use crate::model::screen::Rect;
use crate::orchestrator::actor::Handle;
use crate::orchestrator::request::{Target, Until};

fn masks() -> Option<Masks> {
    let areas = vec![Rect { x: 0, y: 0, width: 4, height: 4 }];
    Some(Masks { frame: Size { width: 8, height: 8 }, areas })
}

async fn bench() -> Bench {
    Bench::with_pool(1).await
}

async fn cover(bench: &Bench) -> (Granted, Handle) {
    let granted = bench.acquire().await.expect("granted");
    let handle = bench.o.0.registry.get(&granted.vm.vm.id).expect("there");
    let lease = Some(granted.lease.id.clone());
    handle.call(|vm| Box::pin(vm.set_masks(lease, masks()))).await.expect("covered");
    assert_eq!(handle.hub.masks(), masks());
    (granted, handle)
}

#[tokio::test]
async fn masks_are_put_over_the_screen_that_their_caller_saw() {
    let bench = bench().await;
    let granted = bench.acquire().await.expect("granted");
    let handle = bench.o.0.registry.get(&granted.vm.vm.id).expect("there");
    let error = handle.call(|vm| Box::pin(vm.set_masks(None, masks()))).await.expect_err("leased meanwhile");
    assert_eq!((error.reason, handle.hub.masks()), (Reason::VmBusy, None));
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    bench.check().await;
}

#[tokio::test]
async fn until_the_vm_is_clean_all_of_it_is_covered() {
    let bench = bench().await;
    let (granted, handle) = cover(&bench).await;
    let gate = bench.world.gate("reset", When::Before);
    let (o, lease) = (bench.o.clone(), granted.lease.id.clone());
    let releasing =
        tokio::spawn(async move { o.release(&admin(), &lease, Some(ReleasePolicy::Reset)).await });
    gate.reached().await;
    assert_eq!(handle.hub.masks(), Some(Masks::everything()));
    bench.world.ungate();
    releasing.await.expect("no panic").expect("released");
    bench.ready("desk", 1).await;
    assert_eq!(handle.hub.masks(), None);

    // What could not be cleaned stays covered.
    let (granted, handle) = cover(&bench).await;
    bench.world.fail("reset", &[Fault::Refused; 9]);
    release(&bench.o, &granted, ReleasePolicy::Reset).await;
    until("kept out of use", async || {
        (handle.look(|row| row.availability) == Availability::Quarantined).then_some(())
    })
    .await;
    assert_eq!(handle.hub.masks(), Some(Masks::everything()));

    // Its last holder's desktop is still in there, and nobody's but the operator's business.
    let (vm, target) = (handle.id.clone(), Target::Vm(handle.id.clone()));
    let deadline = tokio::time::Instant::now() + LONG;
    for name in ["somebody", granted.lease.holder.as_str()] {
        let other = Caller { name: name.to_owned(), admin: false };
        let uncovered = bench.o.set_masks(&other, &target, Vec::new(), None, deadline).await;
        assert_eq!(uncovered.expect_err("not theirs").reason, Reason::AdminOnly);
        assert_eq!(bench.o.desktop(&other, &target).await.expect_err("nor this").reason, Reason::AdminOnly);
        assert_eq!(bench.o.save_vm(&other, &vm).await.expect_err("nor this").reason, Reason::AdminOnly);
        let seen = bench.o.desktop_ended(&other, &target, Until::Stopped, false).await;
        assert_eq!(seen.err().expect("nor this").reason, Reason::AdminOnly);
    }
    assert_eq!(handle.hub.masks(), Some(Masks::everything()));
    bench.o.set_masks(&admin(), &target, Vec::new(), None, deadline).await.expect("the operator may");
    assert_eq!(handle.hub.masks(), None);
}

#[tokio::test]
async fn nobody_looks_in_between() {
    let bench = bench().await;
    let (granted, handle) = cover(&bench).await;
    // Given back without a move in the same write: it is still running, and what it holds is to be deleted.
    let gate = bench.world.gate("delete", When::Before);
    let (vm, target) = (handle.id.clone(), Target::Vm(handle.id.clone()));
    let (o, lease) = (bench.o.clone(), granted.lease.id.clone());
    let marked = handle.call(move |vm| {
        Box::pin(async move {
            vm.end_lease(&lease, EndedAs::Revoked, "over", Some(Pending::Delete)).await?;
            // As seen by others, until the actor goes on.
            let other = Caller { name: "somebody".to_owned(), admin: false };
            Ok(o.desktop(&other, &target).await.err().map(|error| error.reason))
        })
    });
    assert_eq!(marked.await.expect("ended"), Some(Reason::VmBusy));
    gate.reached().await;
    assert_eq!(bench.o.vm(&vm).await.expect("there").vm.state, VmState::Deleting);
    bench.world.ungate();
}

#[tokio::test]
async fn a_kept_vm_is_uncovered_once_it_is_saved() {
    let bench = bench().await;
    let (granted, handle) = cover(&bench).await;
    let gate = bench.world.gate("save", When::Before);
    let (o, lease) = (bench.o.clone(), granted.lease.id.clone());
    let releasing = tokio::spawn(async move { o.release(&admin(), &lease, Some(ReleasePolicy::Keep)).await });
    gate.reached().await;
    assert_eq!(handle.hub.masks(), Some(Masks::everything()));
    bench.world.ungate();
    releasing.await.expect("no panic").expect("released");
    until("saved", async || handle.look(|row| row.pending.is_none()).then_some(())).await;
    assert_eq!(handle.hub.masks(), None);
}

#[test]
fn a_daemon_that_dies_before_the_reset_begins_with_everything_covered() {
    let first = crash::runtime();
    let (bench, vm, gate) = first.block_on(async {
        let bench = bench().await;
        let (granted, _) = cover(&bench).await;
        let gate = bench.world.gate("reset", When::Before);
        let (o, vm) = (bench.o.clone(), granted.vm.vm.id.clone());
        tokio::spawn(async move { o.release(&admin(), &granted.lease.id, Some(ReleasePolicy::Reset)).await });
        gate.reached().await;
        (bench, vm, gate)
    });
    let Bench { dir, world, o } = bench;
    drop(o);
    first.shutdown_timeout(LONG);
    drop(gate);
    world.ungate();

    let second = crash::runtime();
    second.block_on(async {
        let gate = world.gate("reset", When::Before);
        let o = start(dir.path(), &world).await;
        gate.reached().await;
        let handle = o.0.registry.get(&vm).expect("there");
        assert_eq!(handle.hub.masks(), Some(Masks::everything()));
        world.ungate();
        status_when(&o, "desk", "clean", |status| status.warm == 1).await;
        assert_eq!(handle.hub.masks(), None);
    });
}
