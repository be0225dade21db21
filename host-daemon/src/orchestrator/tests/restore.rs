//! A copy of the store is put back, and what happened since is not in it.

use futures_util::StreamExt as _;

use super::agents::{OUTSIDE, claim, report, start_with_agents, submit, with_pool};
use super::sim::When;
use super::*;
use crate::model::agent::AgentStatus;
use crate::model::error::Reason;
use crate::model::event::{EventFilter, EventKind};
use crate::model::lease::EndedAs;
use crate::orchestrator::request::{Target, UpdatePool};
use crate::orchestrator::watch::VmWatch;
use crate::store::copy::{self, Restored};

#[tokio::test]
async fn a_restored_store_is_brought_together_with_what_is_there() {
    let bench = Bench::with_pool(3).await;
    let old = bench.acquire().await.expect("granted");
    bench.world.soil(&old.vm.vm.id);
    bench.ready("desk", 2).await;
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    let known = bench.world.names();

    // One of the copy's VMs is leased and used, another is deleted, and new ones are made.
    let late = bench.acquire().await.expect("granted");
    let used = late.vm.vm.id.clone();
    bench.world.soil(&used);
    let is_free = |name: &&String| ![&old.vm.vm.id, &used].iter().any(|vm| vm.as_str() == name.as_str());
    let missing: VmId = known.iter().find(is_free).expect("three of them").parse().expect("an id");
    bench.o.delete_vm(&admin(), &missing, false, None).await.expect("deleted");
    let update = UpdatePool { desired: Some(5), ..UpdatePool::default() };
    bench.o.update_pool(&id("desk"), None, update).await.expect("changed");
    bench.ready("desk", 3).await;
    let strangers: Vec<String> =
        bench.world.names().into_iter().filter(|name| !known.contains(name)).collect();
    assert_eq!(strangers.len(), 3, "{strangers:?}");
    let mut watch = bench.o.watch_vms(VmWatch::default(), None).expect("open");
    let revision = loop {
        let delta = watch.next().await.expect("goes on").expect("no error");
        if let Some(revision) = delta.revision {
            break revision;
        }
    };
    drop(watch);

    bench.o.shutdown().await;
    let after = copy::restore(&file, &config(&bench)).expect("restored");
    assert!(after.ended.is_empty() && after.unread.is_none(), "{after:?}");
    let o = start(bench.dir.path(), &bench.world).await;
    let bench = Bench { o, ..bench };
    let status = bench.ready("desk", 2).await;
    assert_eq!((status.leased, status.quarantined), (1, 1), "the lost one is kept for people to see");

    let lost = bench.o.vm(&missing).await.expect("its row").vm;
    assert_eq!(lost.state, VmState::Error);
    assert!(
        bench
            .world
            .names()
            .iter()
            .all(|name| !strangers.contains(name) || status.vms.iter().any(|vm| vm.as_str() == name))
    );
    let lease = bench.o.lease(&old.lease.id).await.expect("in the copy");
    assert_eq!((lease.ended, lease.vm.clone()), (None, old.vm.vm.id.clone()));
    bench.o.desktop(&admin(), &Target::Lease(old.lease.id.clone())).await.expect("still theirs");
    assert_eq!(bench.world.dirt(&old.vm.vm.id), Some(1), "as it was left");
    let gone = bench.o.lease(&late.lease.id).await.expect_err("made later");
    assert_eq!(gone.reason, Reason::NotFound);
    assert_ne!(bench.world.dirt(&used), Some(1), "nobody gets what was left in it");
    let behind = bench.o.watch_vms(VmWatch::default(), Some(revision)).err().expect("of another life");
    assert_eq!(behind.reason, Reason::RevisionGone);
    bench.acquire().await.expect("the pool works");
    bench.check().await;
}

fn config(bench: &Bench) -> StoreConfig {
    StoreConfig { path: bench.dir.path().join("store.db"), durable: false }
}

/// Stops, puts a copy back and starts again.
async fn restored(bench: Bench, file: &Path) -> (Bench, Restored) {
    bench.o.shutdown().await;
    let restored = copy::restore(file, &config(&bench)).expect("restored");
    let o = start(bench.dir.path(), &bench.world).await;
    (Bench { o, ..bench }, restored)
}

#[tokio::test]
async fn nobody_gets_back_a_vm_that_somebody_else_had_since() {
    let bench = Bench::with_pool(1).await;
    let old = bench.acquire().await.expect("granted");
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    release(&bench.o, &old, ReleasePolicy::Reset).await;
    bench.ready("desk", 1).await;
    let late = bench.acquire().await.expect("granted");
    assert_eq!(late.vm.vm.id, old.vm.vm.id);
    bench.world.soil(&late.vm.vm.id);

    let (bench, restored) = restored(bench, &file).await;
    assert_eq!(restored.ended, [old.lease.id.to_string()]);
    let lease = bench.o.lease(&old.lease.id).await.expect("in the copy");
    assert_eq!(lease.ended, Some(EndedAs::Revoked));
    assert!(lease.end_reason.contains("restored from a copy"), "{}", lease.end_reason);
    let refused = bench.o.desktop(&admin(), &Target::Lease(old.lease.id.clone())).await.expect_err("ended");
    assert_eq!(refused.reason, Reason::LeaseEnded);
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&late.vm.vm.id), Some(0), "clean before anybody gets it");
    let (events, _) = bench.o.0.store.events(0, 1000, &EventFilter::default()).await.expect("events");
    let told: Vec<_> = events.iter().filter(|event| event.lease.as_ref() == Some(&old.lease.id)).collect();
    let last = told.iter().find(|event| event.kind == EventKind::LeaseEnded).expect("told");
    assert_eq!((last.ended, &last.cause), (Some(EndedAs::Revoked), &lease.end_reason));
    assert_eq!(last.vm.as_ref(), Some(&old.vm.vm.id));
    bench.check().await;
}

#[tokio::test]
async fn a_store_that_is_gone_or_damaged_proves_nothing() {
    let mut bench = Bench::with_pool(1).await;
    for gone in [true, false] {
        let held = bench.acquire().await.expect("granted");
        bench.world.soil(&held.vm.vm.id);
        let file = bench.dir.path().join(format!("copy-{gone}.db"));
        bench.o.0.store.backup(&file, false).await.expect("copied");
        bench.o.shutdown().await;
        let path = config(&bench).path;
        if gone {
            std::fs::remove_file(&path).expect("removed");
        } else {
            std::fs::write(&path, "nothing that can be read").expect("written");
        }
        let after;
        (bench, after) = restored(bench, &file).await;
        assert_eq!(after.ended, [held.lease.id.to_string()]);
        assert_eq!(after.unread.is_some(), !gone, "{after:?}");
        let lease = bench.o.lease(&held.lease.id).await.expect("in the copy");
        assert_eq!(lease.ended, Some(EndedAs::Revoked), "nobody knows who had its vm");
        bench.ready("desk", 1).await;
        assert_eq!(bench.world.dirt(&held.vm.vm.id), Some(0));
        bench.check().await;
    }
}

#[tokio::test]
async fn a_vm_that_was_just_being_made_is_not_taken_for_clean() {
    let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
    let o = start(dir.path(), &world).await;
    make_template(&o).await;
    let made = world.gate("define", When::After);
    o.create_pool(pool("desk", 1)).await.expect("pool");
    let bench = Bench { dir, world, o };
    made.reached().await;
    let file = bench.dir.path().join("copy.db");
    let vm = until("a vm in the making", async || {
        let page = Page { after: String::new(), limit: 10 };
        bench.o.vms(&VmFilter::default(), &page).await.expect("vms").pop()
    })
    .await;
    assert_eq!(vm.vm.state, VmState::Provisioning);
    bench.o.0.store.backup(&file, false).await.expect("copied");
    bench.world.ungate();
    made.open();
    let late = bench.acquire().await.expect("granted");
    assert_eq!(late.vm.vm.id, vm.vm.id);
    bench.world.soil(&vm.vm.id);

    let (bench, _) = restored(bench, &file).await;
    bench.ready("desk", 1).await;
    assert_eq!(bench.world.dirt(&vm.vm.id), Some(0), "clean before anybody gets it");
    bench.check().await;
}

#[tokio::test]
async fn what_is_used_by_name_goes_on_only_if_nobody_else_had_it_since() {
    let bench = Bench::with_pool(2).await;
    let names = bench.world.names();
    let [kept, lost]: [VmId; 2] = [id(&names[0]), id(&names[1])];
    for vm in [&kept, &lost] {
        bench.o.resume_vm(&admin(), vm).await.expect("running");
        bench.o.save_vm(&admin(), vm).await.expect("saved");
        bench.world.soil(vm);
    }
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    bench.o.reset_vm(&admin(), &lost).await.expect("reset");
    let late = bench.acquire().await.expect("granted");
    assert_eq!(late.vm.vm.id, lost);
    bench.world.soil(&lost);

    let (bench, _) = restored(bench, &file).await;
    bench.check().await;
    assert_eq!(bench.world.dirt(&kept), Some(1), "as it was left");
    assert_eq!(bench.world.dirt(&lost), Some(0), "it may hold what somebody left");
}

#[tokio::test]
async fn an_agent_pays_nothing_for_a_restore() {
    let bench = with_pool(1).await;
    let submitted = submit(&bench.o, OUTSIDE).await;
    let claimed = claim(&bench.o).await;
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    bench.o.release(&admin(), &claimed.lease.id, None).await.expect("released");

    bench.o.shutdown().await;
    let after = copy::restore(&file, &config(&bench)).expect("restored");
    assert_eq!(after.ended, [claimed.lease.id.to_string()]);
    let o = start_with_agents(bench.dir.path(), &bench.world).await;
    let agent = until("free again", async || {
        let agent = o.agent(&submitted.id).await.expect("agent");
        agent.claim.is_none().then_some(agent)
    })
    .await;
    assert_eq!((agent.status, agent.attempt), (AgentStatus::Pending, 0), "{agent:?}");
    check(&o, &bench.world).await;
}

#[tokio::test]
async fn a_worker_of_before_a_restore_passes_for_no_later_one() {
    let bench = with_pool(1).await;
    submit(&bench.o, OUTSIDE).await;
    let file = bench.dir.path().join("copy.db");
    bench.o.0.store.backup(&file, false).await.expect("copied");
    let mut before = claim(&bench.o).await;

    bench.o.shutdown().await;
    // The same copy twice: the second time it knows nothing of the first.
    for _ in 0..2 {
        copy::restore(&file, &config(&bench)).expect("restored");
        let o = start_with_agents(bench.dir.path(), &bench.world).await;
        let now = claim(&o).await;
        assert!(now.agent.epoch > before.agent.epoch, "{} after {}", now.agent.epoch, before.agent.epoch);
        let late = o.report_agent(&admin(), report(&before)).await.expect_err("of another life");
        assert_eq!(late.reason, Reason::AgentClaimLost);
        o.report_agent(&admin(), report(&now)).await.expect("its own");
        check(&o, &bench.world).await;
        o.shutdown().await;
        before = now;
    }
}
