//! The daemon dies in the middle of everything, and the next one makes it good.
//!
//! Each daemon has a runtime of its own; shutting that down kills all its tasks wherever they are, as `kill -9` would.

use tokio::runtime::Runtime;

use super::sim::When;
use super::*;
use crate::model::error::Reason;
use crate::orchestrator::request::{Fork, TakeCheckpoint};

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

/// What is under way when the daemon dies: the call to the hypervisor, and who causes it.
async fn cause(o: Orchestrator, call: &str) {
    let caller = admin();
    if call == "define" {
        let grow = super::super::request::UpdatePool { desired: Some(3), ..Default::default() };
        o.update_pool(&id("desk"), None, grow).await.expect("changed");
        std::future::pending::<()>().await;
    }
    let granted = o.acquire(&caller, wanted(LONG)).await.expect("granted");
    let vm = granted.vm.vm.id;
    match call {
        "resume" | "open_guest" => {}
        "save" => drop(o.save_vm(&caller, &vm).await),
        "reset" => {
            release(
                &o,
                &Granted { lease: granted.lease, vm: o.vm(&vm).await.expect("vm") },
                ReleasePolicy::Reset,
            )
            .await;
        }
        "stop" => drop(o.stop_vm(&caller, &vm, crate::hypervisor::Stop::Hard).await),
        "pause" => drop(o.pause_vm(&caller, &vm).await),
        "delete" => drop(o.delete_vm(&caller, &vm, true, None).await),
        "fork" => drop(o.fork_vm(&caller, Fork { vm, new: Some(id("second")), request: None }).await),
        "checkpoint" => {
            let take = TakeCheckpoint { vm, id: Some(id("one")), description: String::new(), request: None };
            drop(o.create_checkpoint(&caller, take).await);
        }
        other => panic!("no way to {other}"),
    }
    std::future::pending::<()>().await;
}

/// An orchestrator with a pool of two that are ready.
async fn with_two(dir: &Path, world: &Arc<World>) -> Orchestrator {
    let o = start(dir, world).await;
    make_template(&o).await;
    o.create_pool(pool("desk", 2)).await.expect("pool");
    status_when(&o, "desk", "two", |status| status.warm == 2).await;
    o
}

#[test]
fn whatever_was_under_way_is_made_good() {
    let calls =
        ["define", "resume", "open_guest", "save", "pause", "reset", "stop", "delete", "fork", "checkpoint"];
    for call in calls {
        for when in [When::Before, When::After] {
            let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
            let first = runtime();
            let o = first.block_on(with_two(dir.path(), &world));
            let gate = world.gate(call, when);
            first.spawn(cause(o.clone(), call));
            first.block_on(async {
                let reached = tokio::time::timeout(LONG, gate.reached()).await;
                reached.unwrap_or_else(|_| panic!("{call} was never asked for"));
            });
            drop(o);
            first.shutdown_timeout(LONG);
            world.ungate();

            let second = runtime();
            second.block_on(async {
                let o = start(dir.path(), &world).await;
                let page = Page { after: String::new(), limit: 10 };
                let leases = o.leases(&LeaseFilter::default(), &page).await.expect("leases");
                for lease in &leases {
                    let vm = o.vm(&lease.vm).await.expect("vm");
                    // Whoever holds it can go on: it runs, unless it was told not to.
                    let stopped = matches!(call, "save" | "pause" | "stop");
                    assert!(vm.vm.state == VmState::Running || stopped, "{call} {when:?}: {:?}", vm.vm);
                    o.release(&admin(), &lease.id, Some(ReleasePolicy::Reset)).await.expect("released");
                }
                let size = if call == "define" { 3 } else { 2 };
                status_when(&o, "desk", &format!("{call} {when:?}: all ready"), |status| status.warm == size)
                    .await;
                check(&o, &world).await;
                o.shutdown().await;
            });
            second.shutdown_timeout(LONG);
        }
    }
}

#[test]
fn a_vm_that_fails_its_proof_after_a_crash_is_replaced_beneath_the_request() {
    let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
    let asked = Acquire { request: Some(request("acquire")), ..wanted(LONG) };
    let first = runtime();
    let o = first.block_on(with_two(dir.path(), &world));
    let gate = world.gate("open_guest", When::Before);
    let (this, request) = (o.clone(), asked.clone());
    first.spawn(async move { this.acquire(&admin(), request).await });
    first.block_on(gate.reached());
    let page = Page { after: String::new(), limit: 10 };
    let lease = first.block_on(o.leases(&LeaseFilter::default(), &page)).expect("leases").remove(0);
    assert!(lease.receipt.is_none(), "granted and not proven");
    drop(o);
    first.shutdown_timeout(LONG);
    world.ungate();
    world.agent(&lease.vm).state().hangs = true;

    runtime().block_on(async {
        let settings = Settings { answer_timeout: Duration::from_millis(500), ..settings() };
        let o = start_with(dir.path(), &world, settings).await;
        status_when(&o, "desk", "another", |status| status.warm == 1).await;
        let granted = o.acquire(&admin(), asked.clone()).await.expect("granted");
        assert_ne!(granted.vm.vm.id, lease.vm);
        assert!(granted.lease.receipt.is_some());
        let again = o.acquire(&admin(), asked).await.expect("the same again");
        assert_eq!(again.lease.id, granted.lease.id);
        let status = status_when(&o, "desk", "one more", |status| status.warm == 1).await;
        assert_eq!((status.quarantined, status.leased), (1, 1));
        check(&o, &world).await;
        o.shutdown().await;
    });
}

#[test]
fn a_template_in_the_making_is_gone_and_its_operation_failed() {
    for (call, when) in
        [("import", When::After), ("define", When::After), ("start", When::After), ("seal", When::After)]
    {
        let (dir, world) = (tempfile::tempdir().expect("dir"), World::new(true));
        let first = runtime();
        let gate = world.gate(call, when);
        let o = first.block_on(start(dir.path(), &world));
        let this = o.clone();
        first.spawn(async move { this.create_template(template("linux")).await });
        first.block_on(gate.reached());
        drop(o);
        first.shutdown_timeout(LONG);
        world.ungate();
        runtime().block_on(async {
            let o = start(dir.path(), &world).await;
            assert_eq!(o.template(&id("linux")).await.expect_err("gone").reason, Reason::NotFound);
            assert!(world.names().is_empty() && world.templates().is_empty(), "{call}");
            let page = Page { after: String::new(), limit: 10 };
            for operation in o.operations(&page).await.expect("operations") {
                assert!(matches!(operation.outcome, Some(Outcome::Failed { .. })), "{call}: {operation:?}");
            }
            make_template(&o).await;
        });
    }
}

#[tokio::test]
async fn a_stop_in_order_saves_what_runs_and_a_start_resumes_what_is_held() {
    let bench = Bench::with_pool(3).await;
    let held = bench.acquire().await.expect("granted");
    let paused = bench.acquire().await.expect("granted");
    bench.o.pause_vm(&admin(), &paused.vm.vm.id).await.expect("paused");
    bench.world.soil(&held.vm.vm.id);
    let bench = bench.restart().await;
    assert_eq!(bench.world.count("save"), 2);
    let row = bench.o.vm(&held.vm.vm.id).await.expect("vm").vm;
    assert_eq!((row.state, row.lease), (VmState::Running, Some(held.lease.id.clone())));
    assert_eq!(bench.world.dirt(&held.vm.vm.id), Some(1), "its state was kept");
    bench.ready("desk", 1).await;
    bench.check().await;
}

#[tokio::test]
async fn where_nothing_can_be_saved_a_pool_is_ready_again_after_a_start() {
    let bench = Bench::on(World::new(false), 2).await;
    let held = bench.acquire().await.expect("granted");
    let bench = bench.restart().await;
    let row = bench.o.vm(&held.vm.vm.id).await.expect("vm").vm;
    assert_eq!((row.state, row.lease), (VmState::Running, Some(held.lease.id.clone())));
    bench.ready("desk", 1).await;
    bench.check().await;
    // Killed, and everything on the host died with it.
    release(&bench.o, &held, ReleasePolicy::Reset).await;
    bench.ready("desk", 2).await;
}

#[tokio::test]
async fn a_failed_vm_stays_failed_over_a_restart_and_takes_nobodys_place() {
    let bench = Bench::with_pool(1).await;
    let granted = bench.acquire().await.expect("granted");
    bench.world.exit(&granted.vm.vm.id, false).await;
    bench.ready("desk", 1).await;
    let bench = bench.restart().await;
    let status = bench.ready("desk", 1).await;
    assert_eq!((status.total, status.error), (2, 1));
    assert_eq!(state(&bench.o, &granted.vm.vm.id).await, VmState::Error);
}
