//! Moves between states: what they lead to, what they refuse, and that they may be asked for again.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use hvkube_host::hypervisor::{HvError, HvResult, Observed, Stop, VmDefinition};
use hvkube_host::model::template::CloneMethod;
use uuid::Uuid;

use crate::rig::{
    Rig, at_rest, checkpoint_id, clone_of, make, observe, prepared, resting, run, template_id, vm_id,
};

pub(crate) async fn a_definition_is_made_once<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let definition = clone_of("vm-1", &template);
    for _ in 0..2 {
        assert_eq!(rig.hv().define(&definition).await.expect("define"), at_rest(&rig));
    }
    let other = VmDefinition { uid: Uuid::new_v4(), ..definition };
    let taken = rig.hv().define(&other).await.expect_err("the name is taken");
    assert!(matches!(taken, HvError::AlreadyExists { kind: "vm", .. }), "{taken}");
    assert_eq!(observe(&rig, &other.id).await, resting(at_rest(&rig)));
    assert_eq!(rig.hv().resident_bytes(&other.id).await.expect("resident"), 0, "it does not run");
    rig.hv().files(&other.id).await.expect("files");
    let unknown = rig.hv().define(&clone_of("vm-2", &template_id("nothing"))).await.expect_err("no template");
    assert!(matches!(unknown, HvError::NotFound { .. }), "{unknown}");
    rig.hv().delete(&other.id).await.expect("delete");
    assert_eq!(rig.hv().define(&other).await.expect("the name is free"), at_rest(&rig));
}

pub(crate) async fn what_is_not_there_is_not_found<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm, id) = (rig.hv(), vm_id("nobody"), checkpoint_id("moment"));
    let can = hv.capabilities();
    assert_missing(true, "observe", hv.observe(&vm)).await;
    assert_missing(true, "start", hv.start(&vm)).await;
    assert_missing(can.save, "resume", hv.resume(&vm)).await;
    assert_missing(can.save, "save", hv.save(&vm)).await;
    assert_missing(can.pause, "pause", hv.pause(&vm)).await;
    assert_missing(true, "stop", hv.stop(&vm, Stop::Hard)).await;
    assert_missing(true, "reset", hv.reset(&vm)).await;
    assert_missing(true, "checkpoints", hv.checkpoints(&vm)).await;
    assert_missing(can.memory_checkpoints, "create", hv.create_checkpoint(&vm, &id)).await;
    assert_missing(can.memory_checkpoints, "restore", hv.restore_checkpoint(&vm, &id)).await;
    assert_missing(can.memory_checkpoints, "delete", hv.delete_checkpoint(&vm, &id)).await;
    assert_missing(can.fork, "fork", hv.fork(&vm, &clone_of("twin", &template))).await;
    assert_missing(true, "open", hv.open_guest(&vm)).await;
    assert_missing(true, "secret", hv.guest_secret(&vm)).await;
    assert_missing(can.display, "screenshot", hv.screenshot(&vm)).await;
    assert_missing(true, "resident", hv.resident_bytes(&vm)).await;
    assert_missing(true, "files", hv.files(&vm)).await;
    hv.delete(&vm).await.expect("what is not there is deleted");
}

/// A call for a VM that is not there: not found, or not supported at all.
async fn assert_missing<T>(supported: bool, name: &str, call: impl Future<Output = HvResult<T>>) {
    match call.await {
        Err(HvError::NotFound { kind: "vm", .. }) if supported => {}
        Err(HvError::NotSupported { .. }) if !supported => {}
        Err(error) => panic!("{name}: {error}"),
        Ok(_) => panic!("{name}: did something to nobody"),
    }
}

pub(crate) async fn what_has_happened_need_not_happen_again<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    let first = run(&rig, &vm).await;
    assert_eq!(observe(&rig, &vm).await, Observed::Running(first));
    assert_eq!(hv.start(&vm).await.expect("it runs"), first);
    if hv.capabilities().save {
        assert_eq!(hv.resume(&vm).await.expect("it runs"), first);
    }
    assert!(hv.resident_bytes(&vm).await.expect("resident") > 0);
    if hv.capabilities().pause {
        for _ in 0..2 {
            hv.pause(&vm).await.expect("pause");
            assert_eq!(observe(&rig, &vm).await, Observed::Paused(first));
        }
        assert_eq!(hv.resume(&vm).await.expect("go on"), first, "the same run");
    }
    let mut last = first;
    if hv.capabilities().save {
        for _ in 0..2 {
            hv.save(&vm).await.expect("save");
            assert_eq!(observe(&rig, &vm).await, Observed::Saved);
        }
        assert_eq!(hv.resident_bytes(&vm).await.expect("resident"), 0);
        last = hv.resume(&vm).await.expect("resume");
        assert!(last.number > first.number, "{last:?} after {first:?}");
    }
    for how in [Stop::Graceful(Duration::from_secs(60)), Stop::Hard, Stop::Graceful(Duration::ZERO)] {
        hv.stop(&vm, how).await.expect("stop");
        assert_eq!(observe(&rig, &vm).await, Observed::Off);
    }
    let next = hv.start(&vm).await.expect("start");
    assert!(next.number > last.number, "{next:?} after {last:?}");
    for _ in 0..2 {
        assert_eq!(hv.reset(&vm).await.expect("reset"), at_rest(&rig));
        assert_eq!(observe(&rig, &vm).await, resting(at_rest(&rig)));
    }
    for _ in 0..2 {
        hv.delete(&vm).await.expect("delete");
        hv.observe(&vm).await.expect_err("it is gone");
    }
}

pub(crate) async fn illegal_moves_are_refused_and_change_nothing<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    let can = hv.capabilities().clone();
    hv.stop(&vm, Stop::Hard).await.expect("stop");
    let (twin, moment) = (clone_of("twin", &template), checkpoint_id("moment"));
    if can.save {
        assert_illegal(&rig, &vm, "off", hv.resume(&vm)).await;
        assert_illegal(&rig, &vm, "off", hv.save(&vm)).await;
    }
    if can.pause {
        assert_illegal(&rig, &vm, "off", hv.pause(&vm)).await;
    }
    if can.memory_checkpoints {
        assert_illegal(&rig, &vm, "off", hv.create_checkpoint(&vm, &moment)).await;
    }
    if can.fork {
        assert_illegal(&rig, &vm, "off", hv.fork(&vm, &twin)).await;
    }
    assert_illegal(&rig, &vm, "off", hv.open_guest(&vm)).await;
    if !can.save {
        return;
    }
    hv.reset(&vm).await.expect("reset");
    assert_illegal(&rig, &vm, "saved", hv.start(&vm)).await;
    assert_illegal(&rig, &vm, "saved", hv.open_guest(&vm)).await;
    if can.pause {
        assert_illegal(&rig, &vm, "saved", hv.pause(&vm)).await;
        hv.resume(&vm).await.expect("resume");
        hv.pause(&vm).await.expect("pause");
        assert_illegal(&rig, &vm, "paused", hv.start(&vm)).await;
        hv.stop(&vm, Stop::Hard).await.expect("any state can be stopped");
    }
}

async fn assert_illegal<R: Rig, T>(
    rig: &R,
    vm: &hvkube_host::model::ids::VmId,
    state: &str,
    call: impl Future<Output = HvResult<T>>,
) {
    let before = observe(rig, vm).await;
    match call.await {
        Err(HvError::IllegalState { vm: of, state: told, .. }) => {
            assert_eq!((&of, told.as_str()), (vm, state));
        }
        Err(error) => panic!("{state}: {error}"),
        Ok(_) => panic!("{state}: done all the same"),
    }
    assert_eq!(observe(rig, vm).await, before);
}

pub(crate) async fn what_a_backend_lacks_is_refused<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    let can = hv.capabilities().clone();
    let started = run(&rig, &vm).await;
    let moment = checkpoint_id("moment");
    assert_lacking(can.save, "save", hv.save(&vm)).await;
    assert_lacking(can.pause, "pause", hv.pause(&vm)).await;
    assert_lacking(can.memory_checkpoints, "checkpoint", hv.create_checkpoint(&vm, &moment)).await;
    assert_lacking(can.fork, "fork", hv.fork(&vm, &clone_of("twin", &template))).await;
    assert_lacking(can.display, "screenshot", hv.screenshot(&vm)).await;
    assert_eq!(observe(&rig, &vm).await, Observed::Running(started));
    assert_eq!(hv.checkpoints(&vm).await.expect("list"), []);
    if can.clone_method == CloneMethod::Boot {
        assert_eq!(rig.read(&vm).await, crate::rig::GOLDEN, "it boots from the golden disk's content");
    }
}

/// Only looks at what is not supported: what is has checks of its own.
async fn assert_lacking<T>(supported: bool, name: &str, call: impl Future<Output = HvResult<T>>) {
    if supported {
        return;
    }
    match call.await {
        Err(HvError::NotSupported { .. }) => {}
        Err(error) => panic!("{name}: {error}"),
        Ok(_) => panic!("{name}: done, though the capabilities deny it"),
    }
}

pub(crate) async fn a_dropped_call_leaves_a_vm_that_can_be_used<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    for millis in [0, 1, 5, 20] {
        let patience = Duration::from_millis(millis);
        let _done_or_dropped = tokio::time::timeout(patience, hv.reset(&vm)).await;
        // The next call waits for whatever goes on.
        assert_eq!(hv.reset(&vm).await.expect("reset"), at_rest(&rig));
        let _done_or_dropped = if hv.capabilities().save {
            tokio::time::timeout(patience, hv.resume(&vm)).await
        } else {
            tokio::time::timeout(patience, hv.start(&vm)).await
        };
        hv.stop(&vm, Stop::Hard).await.expect("stop");
        assert_eq!(observe(&rig, &vm).await, Observed::Off);
    }
    hv.reset(&vm).await.expect("reset");
    run(&rig, &vm).await;
    assert_eq!(rig.read(&vm).await, crate::rig::GOLDEN);
    hv.delete(&vm).await.expect("delete");
}

pub(crate) async fn vms_move_side_by_side<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let names = ["vm-1", "vm-2", "vm-3"];
    let lives = names.map(|name| {
        let (rig, template) = (&rig, &template);
        async move {
            let vm = make(rig, name, template).await;
            run(rig, &vm).await;
            rig.write(&vm, name).await;
            assert_eq!(rig.read(&vm).await, name, "a disk of its own");
            assert_eq!(rig.hv().reset(&vm).await.expect("reset"), at_rest(rig));
            rig.hv().delete(&vm).await.expect("delete");
        }
    });
    join_all(lives).await;
}
