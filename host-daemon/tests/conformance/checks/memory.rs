//! What a guest remembers, and what is thrown away.

use hvkube_host::hypervisor::{HvError, Stop};

use crate::rig::{GOLDEN, Rig, at_rest, checkpoint_id, make, observe, prepared, resting, run};

pub(crate) async fn memory_goes_on_after_a_save_and_a_pause<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    if !hv.capabilities().save {
        let refused = hv.resume(&vm).await.expect_err("no saved memory");
        assert!(matches!(refused, HvError::NotSupported { .. }), "{refused}");
        return;
    }
    run(&rig, &vm).await;
    assert_eq!(rig.count(&vm).await, 2, "the template's memory goes on");
    rig.write(&vm, "mine").await;
    for expected in [3, 4] {
        hv.save(&vm).await.expect("save");
        assert!(hv.files(&vm).await.expect("files").saved_state.is_some(), "a memory of its own");
        hv.resume(&vm).await.expect("resume");
        assert_eq!(rig.count(&vm).await, expected);
        assert_eq!(rig.read(&vm).await, "mine");
    }
    if hv.capabilities().pause {
        hv.pause(&vm).await.expect("pause");
        hv.save(&vm).await.expect("save from paused");
        hv.resume(&vm).await.expect("resume");
        hv.pause(&vm).await.expect("pause");
        hv.resume(&vm).await.expect("go on");
        assert_eq!(rig.count(&vm).await, 5);
    }
}

pub(crate) async fn memory_is_gone_after_a_stop_and_the_disk_is_not<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    rig.write(&vm, "mine").await;
    hv.stop(&vm, Stop::Hard).await.expect("stop");
    run(&rig, &vm).await;
    assert_eq!(rig.read(&vm).await, "mine");
    if hv.capabilities().save {
        assert_eq!(rig.count(&vm).await, 1, "it has booted");
        hv.save(&vm).await.expect("save");
        hv.stop(&vm, Stop::Hard).await.expect("saved memory is thrown away");
        run(&rig, &vm).await;
        assert_eq!(rig.count(&vm).await, 1, "it has booted");
        assert_eq!(rig.read(&vm).await, "mine");
    }
}

pub(crate) async fn a_reset_from_any_state_leaves_a_clean_vm<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    let can = hv.capabilities().clone();
    for state in ["running", "off", "saved", "paused"] {
        if (state == "saved" && !can.save) || (state == "paused" && !can.pause) {
            continue;
        }
        run(&rig, &vm).await;
        assert_eq!(rig.read(&vm).await, GOLDEN, "before it is {state}");
        if can.save {
            assert_eq!(rig.count(&vm).await, 2, "before it is {state}");
        }
        rig.write(&vm, "mine").await;
        match state {
            "off" => hv.stop(&vm, Stop::Hard).await.expect("stop"),
            "saved" => hv.save(&vm).await.expect("save"),
            "paused" => hv.pause(&vm).await.expect("pause"),
            _ => {}
        }
        if state == "paused" && can.memory_checkpoints {
            hv.create_checkpoint(&vm, &checkpoint_id("kept")).await.expect("checkpoint");
        }
        assert_eq!(hv.reset(&vm).await.expect("reset"), at_rest(&rig), "from {state}");
        assert_eq!(observe(&rig, &vm).await, resting(at_rest(&rig)));
        assert_eq!(hv.files(&vm).await.expect("files").saved_state, None, "from {state}");
    }
    run(&rig, &vm).await;
    assert_eq!(rig.read(&vm).await, GOLDEN);
    let kept = hv.checkpoints(&vm).await.expect("list").len();
    assert_eq!(kept, usize::from(can.pause && can.memory_checkpoints), "named checkpoints stay");
}
