//! VMs whose process ends, and daemons that do.

use hvkube_host::hypervisor::{Event, Found, Observed, Stop, VmDefinition};
use hvkube_host::model::ids::VmId;
use tokio::time::timeout_at;

use crate::rig::{GOLDEN, Rig, at_rest, clone_of, make, observe, prepared, resting, run, soon, vm_id};

pub(crate) async fn a_killed_process_is_told_once<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let mut events = rig.hv().events().expect("the first to ask");
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    rig.read(&vm).await;
    let mut started = run_of(&observe(&rig, &vm).await);
    for round in 0..2 {
        rig.kill(&vm, started).await;
        let event = timeout_at(soon(), events.recv()).await.expect("told").expect("open");
        let Event::Exited { vm: ended, run: of, reason, clean } = event else { panic!("it ended") };
        assert_eq!((&ended, of, clean), (&vm, started, false));
        assert!(!reason.is_empty());
        assert_eq!(observe(&rig, &vm).await, Observed::Off, "what it had in memory is lost");
        assert_eq!(hv.resident_bytes(&vm).await.expect("resident"), 0);
        if round == 0 {
            let next = hv.start(&vm).await.expect("it boots again");
            assert!(next.number > started.number);
            started = next;
        }
    }
    assert_eq!(hv.reset(&vm).await.expect("reset"), at_rest(&rig));
    run(&rig, &vm).await;
    assert_eq!(rig.read(&vm).await, GOLDEN);
    hv.delete(&vm).await.expect("delete");
    assert!(events.try_recv().is_err(), "once each");
}

fn run_of(observed: &Observed) -> hvkube_host::hypervisor::Run {
    match observed {
        Observed::Running(run) | Observed::Paused(run) => *run,
        other => panic!("it does not run but is {other:?}"),
    }
}

pub(crate) async fn what_was_asked_for_is_no_news<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let mut events = rig.hv().events().expect("the first to ask");
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    hv.stop(&vm, Stop::Hard).await.expect("stop");
    run(&rig, &vm).await;
    hv.reset(&vm).await.expect("reset");
    run(&rig, &vm).await;
    if hv.capabilities().save {
        hv.save(&vm).await.expect("save");
        run(&rig, &vm).await;
    }
    hv.delete(&vm).await.expect("delete");
    // One that is news comes after all that was before it.
    let other = make(&rig, "vm-2", &template).await;
    let started = run(&rig, &other).await;
    rig.kill(&other, started).await;
    let Event::Exited { vm: ended, .. } =
        timeout_at(soon(), events.recv()).await.expect("told").expect("open")
    else {
        panic!("it ended")
    };
    assert_eq!(ended, other);
}

pub(crate) async fn a_new_daemon_finds_what_the_old_one_left<R: Rig>() {
    let (mut rig, template) = prepared::<R>().await;
    for name in ["rests", "runs", "stopped", "kept", "paused", "deleted"] {
        make(&rig, name, &template).await;
    }
    let can = rig.hv().capabilities().clone();
    let started = run(&rig, &vm_id("runs")).await;
    rig.write(&vm_id("runs"), "mine").await;
    run(&rig, &vm_id("stopped")).await;
    rig.hv().stop(&vm_id("stopped"), Stop::Hard).await.expect("stop");
    rig.hv().delete(&vm_id("deleted")).await.expect("delete");
    let mut expected = vec![
        ("kept", resting(at_rest(&rig))),
        ("paused", resting(at_rest(&rig))),
        ("rests", resting(at_rest(&rig))),
        ("runs", Observed::Running(started)),
        ("stopped", Observed::Off),
    ];
    if can.save {
        run(&rig, &vm_id("kept")).await;
        assert_eq!(rig.count(&vm_id("kept")).await, 2);
        rig.hv().save(&vm_id("kept")).await.expect("save");
    }
    if can.pause {
        let paused = run(&rig, &vm_id("paused")).await;
        rig.hv().pause(&vm_id("paused")).await.expect("pause");
        expected[1].1 = Observed::Paused(paused);
    }
    rig.restart().await;
    let mut found = rig.hv().recover().await.expect("recover");
    found.sort_by(|a, b| a.definition.id.cmp(&b.definition.id));
    let found: Vec<_> = found.iter().map(|one| (one.definition.id.as_str(), one.observed.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(rig.hv().templates().await.expect("list"), std::slice::from_ref(&template));
    assert_eq!(rig.read(&vm_id("runs")).await, "mine", "its stream opens again");
    if can.save {
        rig.hv().resume(&vm_id("kept")).await.expect("resume");
        assert_eq!(rig.count(&vm_id("kept")).await, 3, "its memory was kept");
    }
    // The new daemon hears of what the old one started.
    let mut events = rig.hv().events().expect("the first to ask");
    rig.kill(&vm_id("runs"), started).await;
    let Event::Exited { vm, run: of, .. } =
        timeout_at(soon(), events.recv()).await.expect("told").expect("open")
    else {
        panic!("it ended")
    };
    assert_eq!((vm, of), (vm_id("runs"), started));
    let next = rig.hv().start(&vm_id("stopped")).await.expect("start");
    assert!(next.number > started.number, "runs of a new daemon have larger numbers");
    for name in ["rests", "runs", "stopped", "kept", "paused"] {
        rig.hv().delete(&vm_id(name)).await.expect("delete");
    }
    rig.hv().delete_template(&template).await.expect("delete");
    rig.restart().await;
    assert_eq!(rig.hv().recover().await.expect("recover"), []);
    assert_eq!(rig.hv().templates().await.expect("list"), []);
}

/// What a look at all VMs tells, by id.
async fn survey<R: Rig>(rig: &R) -> Vec<Found> {
    let mut found = rig.hv().survey().await.expect("survey");
    found.sort_by(|a, b| a.definition.id.cmp(&b.definition.id));
    found
}

pub(crate) async fn a_survey_tells_what_each_vm_is_and_changes_nothing<R: Rig>() {
    let (mut rig, template) = prepared::<R>().await;
    assert_eq!(survey(&rig).await, [], "a template is no vm");
    let can = rig.hv().capabilities().clone();
    let all: Vec<VmDefinition> =
        ["died", "kept", "paused", "rests", "runs", "stopped"].map(|name| clone_of(name, &template)).into();
    let rest = resting(at_rest(&rig));
    let mut expected = Vec::new();
    for definition in &all {
        assert_eq!(resting(rig.hv().define(definition).await.expect("define")), rest);
        expected.push(Found { definition: definition.clone(), observed: rest.clone() });
    }
    make(&rig, "gone", &template).await;
    rig.hv().delete(&vm_id("gone")).await.expect("delete");
    assert_eq!(survey(&rig).await, expected, "each with its definition, and none that is gone");

    let mut events = rig.hv().events().expect("the first to ask");
    let died = run(&rig, &vm_id("died")).await;
    rig.read(&vm_id("died")).await;
    rig.kill(&vm_id("died"), died).await;
    timeout_at(soon(), events.recv()).await.expect("told").expect("open");
    expected[0].observed = Observed::Off;
    if can.save {
        run(&rig, &vm_id("kept")).await;
        assert_eq!(rig.count(&vm_id("kept")).await, 2);
        rig.hv().save(&vm_id("kept")).await.expect("save");
        expected[1].observed = Observed::Saved;
    }
    if can.pause {
        let paused = run(&rig, &vm_id("paused")).await;
        rig.hv().pause(&vm_id("paused")).await.expect("pause");
        expected[2].observed = Observed::Paused(paused);
    }
    let started = run(&rig, &vm_id("runs")).await;
    rig.write(&vm_id("runs"), "mine").await;
    expected[4].observed = Observed::Running(started);
    run(&rig, &vm_id("stopped")).await;
    rig.hv().stop(&vm_id("stopped"), Stop::Hard).await.expect("stop");
    expected[5].observed = Observed::Off;
    for _ in 0..3 {
        assert_eq!(survey(&rig).await, expected);
    }
    for one in &expected {
        assert_eq!(observe(&rig, &one.definition.id).await, one.observed, "{}", one.definition.id);
    }
    assert!(events.try_recv().is_err(), "to look is no news");
    assert_eq!(rig.read(&vm_id("runs")).await, "mine", "it goes on");

    // What a new daemon found at its start is what it sees afterwards.
    drop(events);
    rig.restart().await;
    rig.hv().recover().await.expect("recover");
    assert_eq!(survey(&rig).await, expected);
    if can.save {
        rig.hv().resume(&vm_id("kept")).await.expect("resume");
        assert_eq!(rig.count(&vm_id("kept")).await, 3, "its memory was kept");
    }
    for definition in &all {
        rig.hv().delete(&definition.id).await.expect("delete");
    }
    assert_eq!(survey(&rig).await, []);
}

pub(crate) async fn a_survey_leaves_out_no_vm_in_the_middle_of_a_call<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    let rest = resting(at_rest(&rig));
    for _ in 0..2 {
        let started = surveyed(&rig, &vm, run(&rig, &vm)).await;
        assert_eq!(survey(&rig).await[0].observed, Observed::Running(started));
        if hv.capabilities().save {
            surveyed(&rig, &vm, async { hv.save(&vm).await.expect("save") }).await;
            assert_eq!(survey(&rig).await[0].observed, Observed::Saved);
            run(&rig, &vm).await;
        }
        surveyed(&rig, &vm, async { hv.reset(&vm).await.expect("reset") }).await;
        assert_eq!(survey(&rig).await[0].observed, rest);
    }
    surveyed_until_gone(&rig, &vm, async { hv.delete(&vm).await.expect("delete") }).await;
    assert_eq!(survey(&rig).await, []);
}

/// Does a call, and looks all the while; the VM must be there.
async fn surveyed<R: Rig, T>(rig: &R, vm: &VmId, call: impl Future<Output = T>) -> T {
    while_looking(rig, call, |found| {
        assert_eq!(found.iter().map(|one| &one.definition.id).collect::<Vec<_>>(), [vm]);
    })
    .await
}

/// The same while it is deleted: it is there until it is not, and does not come back.
async fn surveyed_until_gone<R: Rig>(rig: &R, vm: &VmId, call: impl Future<Output = ()>) {
    let mut gone = false;
    while_looking(rig, call, |found| {
        assert!(found.iter().all(|one| one.definition.id == *vm && !gone), "{found:?}");
        gone |= found.is_empty();
    })
    .await;
}

async fn while_looking<R: Rig, T>(
    rig: &R,
    call: impl Future<Output = T>,
    mut seen: impl FnMut(&[Found]),
) -> T {
    let mut call = std::pin::pin!(call);
    loop {
        let looking = async {
            seen(&survey(rig).await);
            tokio::task::yield_now().await;
        };
        tokio::select! {
            done = &mut call => return done,
            () = looking => {}
        }
    }
}
