//! Named checkpoints and forks.

use hvkube_host::hypervisor::{HvError, Observed, Origin, Rest, VmDefinition};
use uuid::Uuid;

use crate::rig::{Rig, checkpoint_id, clone_of, golden, make, observe, prepared, run};

pub(crate) async fn checkpoints_are_kept_restored_and_deleted<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    if !hv.capabilities().memory_checkpoints {
        return;
    }
    let (first, second) = (checkpoint_id("first"), checkpoint_id("second"));
    let before = run(&rig, &vm).await;
    assert_eq!(rig.count(&vm).await, 2);
    rig.write(&vm, "one").await;
    let facts = hv.create_checkpoint(&vm, &first).await.expect("checkpoint");
    assert!(facts.has_memory && facts.id == first && facts.created_unix > 0, "{facts:?}");
    assert_eq!(observe(&rig, &vm).await, Observed::Running(before), "it goes on as it was");
    let twice = hv.create_checkpoint(&vm, &first).await.expect_err("there is one");
    assert!(matches!(twice, HvError::AlreadyExists { kind: "checkpoint", .. }), "{twice}");
    assert_eq!(rig.count(&vm).await, 3);
    rig.write(&vm, "two").await;
    hv.pause(&vm).await.expect("pause");
    hv.create_checkpoint(&vm, &second).await.expect("checkpoint");
    assert_eq!(observe(&rig, &vm).await, Observed::Paused(before), "it goes on as it was");
    let names: Vec<_> = hv.checkpoints(&vm).await.expect("list").into_iter().map(|facts| facts.id).collect();
    assert_eq!(names, [first.clone(), second.clone()]);

    // Twice each, since what runs on from a checkpoint must not touch it.
    for (id, count, word) in
        [(&first, 3, "one"), (&second, 4, "two"), (&first, 3, "one"), (&second, 4, "two")]
    {
        assert_eq!(hv.restore_checkpoint(&vm, id).await.expect("restore"), Rest::Saved);
        assert_eq!(observe(&rig, &vm).await, Observed::Saved);
        hv.resume(&vm).await.expect("resume");
        assert_eq!((rig.count(&vm).await, rig.read(&vm).await.as_str()), (count, word));
        rig.write(&vm, "else").await;
    }
    // What builds on a checkpoint does not need it.
    hv.save(&vm).await.expect("save");
    hv.delete_checkpoint(&vm, &second).await.expect("delete");
    hv.resume(&vm).await.expect("resume");
    assert_eq!((rig.count(&vm).await, rig.read(&vm).await.as_str()), (5, "else"));
    for gone in
        [hv.restore_checkpoint(&vm, &second).await.map(drop), hv.delete_checkpoint(&vm, &second).await]
    {
        assert!(matches!(gone, Err(HvError::NotFound { kind: "checkpoint", .. })), "{gone:?}");
    }
    assert!(matches!(observe(&rig, &vm).await, Observed::Running(_)), "a failed restore changes nothing");
    hv.delete(&vm).await.expect("delete");
}

pub(crate) async fn forks_go_their_own_way<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    if !hv.capabilities().fork {
        return;
    }
    let before = run(&rig, &vm).await;
    assert_eq!(rig.count(&vm).await, 2);
    rig.write(&vm, "one").await;
    let fork = clone_of("fork-1", &template);
    for _ in 0..2 {
        hv.fork(&vm, &fork).await.expect("fork");
        assert_eq!(observe(&rig, &fork.id).await, Observed::Saved);
    }
    assert_eq!(observe(&rig, &vm).await, Observed::Running(before), "it goes on as it was");
    let other = VmDefinition { uid: Uuid::new_v4(), ..fork.clone() };
    let taken = hv.fork(&vm, &other).await.expect_err("the name is taken");
    assert!(matches!(taken, HvError::AlreadyExists { kind: "vm", .. }), "{taken}");
    let stranger = golden("stranger", &template);
    assert!(matches!(stranger.origin, Origin::Golden(_)));
    hv.fork(&vm, &stranger).await.expect_err("of another origin");

    hv.resume(&fork.id).await.expect("resume");
    assert_eq!((rig.count(&vm).await, rig.count(&fork.id).await), (3, 3));
    rig.write(&fork.id, "two").await;
    assert_eq!((rig.read(&vm).await.as_str(), rig.read(&fork.id).await.as_str()), ("one", "two"));

    // Of a saved VM, which outlives the one it was forked from.
    hv.save(&fork.id).await.expect("save");
    let twin = clone_of("fork-2", &template);
    hv.fork(&fork.id, &twin).await.expect("fork");
    assert_eq!(observe(&rig, &fork.id).await, Observed::Saved);
    hv.delete(&fork.id).await.expect("delete");
    hv.resume(&twin.id).await.expect("resume");
    assert_eq!((rig.count(&twin.id).await, rig.read(&twin.id).await.as_str()), (4, "two"));
    assert_eq!(hv.reset(&twin.id).await.expect("reset"), Rest::Saved);
    hv.resume(&twin.id).await.expect("resume");
    assert_eq!(rig.count(&twin.id).await, 2, "a fork is reset to its template");
}
