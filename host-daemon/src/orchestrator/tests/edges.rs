//! What goes wrong with every hypervisor sooner or later, on the simulated one.

use std::collections::HashSet;
use std::sync::Mutex;

use super::*;
use crate::hypervisor::sim::{Control, Fault, SimConfig, SimHypervisor, Target as Victim};
use crate::hypervisor::{Hypervisor as _, Observed, Origin, VmDefinition};
use crate::model::ids::TemplateId;
use crate::model::lease::{CheckKind, EndedAs};
use crate::orchestrator::request::{Fork, UpdatePool};
use crate::orchestrator::view::ShortfallReason;

struct Edge {
    _dir: Option<tempfile::TempDir>,
    hv: Arc<SimHypervisor>,
    o: Orchestrator,
}

/// A daemon's life on what is in `dir`; it is killed at the end.
fn life<T>(dir: &Path, work: impl AsyncFnOnce(Edge) -> T) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let done = runtime.block_on(async {
        let (hv, o) = open(dir, settings()).await;
        work(Edge { _dir: None, hv, o }).await
    });
    runtime.shutdown_timeout(LONG);
    done
}

async fn open(dir: &Path, settings: Settings) -> (Arc<SimHypervisor>, Orchestrator) {
    let hv = Arc::new(SimHypervisor::open(SimConfig::new(dir.join("sim"))).expect("a world"));
    let store =
        Store::open(&StoreConfig { path: dir.join("store.db"), durable: false }).await.expect("store");
    let o = Orchestrator::start(store, Arc::clone(&hv) as Arc<_>, settings).await.expect("started");
    (hv, o)
}

impl Edge {
    async fn with_pool(settings: Settings, memory_mb: u64, desired: u32) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let (hv, o) = open(dir.path(), settings).await;
        let edge = Self { _dir: Some(dir), hv, o };
        edge.make_pool(memory_mb, desired).await;
        edge
    }

    async fn make_pool(&self, memory_mb: u64, desired: u32) {
        let o = &self.o;
        let mut linux = template("linux");
        linux.spec.memory_mb = memory_mb;
        linux.spec.network = Network::User;
        let operation = o.create_template(linux).await.expect("template");
        let done = o.wait_operation(&operation.id, LONG).await.expect("operation");
        assert_eq!(done.outcome, Some(Outcome::Ready));
        o.create_pool(pool("desk", desired)).await.expect("pool");
    }

    async fn ready(settings: Settings, desired: u32) -> Self {
        let edge = Self::with_pool(settings, 64, desired).await;
        edge.warm(desired).await;
        edge
    }

    async fn warm(&self, count: u32) -> PoolStatus {
        status_when(&self.o, "desk", &format!("{count} warm"), |status| status.warm == count).await
    }

    fn control(&self) -> Control {
        self.hv.control()
    }

    async fn acquire(&self) -> Granted {
        self.o.acquire(&admin(), wanted(LONG)).await.expect("granted")
    }

    async fn vms(&self) -> Vec<VmId> {
        let page = Page { after: String::new(), limit: 100 };
        let vms = self.o.vms(&VmFilter::default(), &page).await.expect("vms");
        vms.into_iter().map(|view| view.vm.id).collect()
    }

    fn is(&self, vm: &VmId) -> Option<Observed> {
        self.control().found().into_iter().find(|one| one.definition.id == *vm).map(|one| one.observed)
    }
}

/// How a lease's VM came to run, as its receipt says.
fn running(granted: &Granted) -> &str {
    &granted.lease.receipt.as_ref().expect("receipt").checks[0].detail
}

#[tokio::test]
async fn a_damaged_saved_state_gives_way_to_the_checkpoint_and_is_saved_again() {
    let edge = Edge::ready(settings(), 1).await;
    let vm = edge.vms().await.remove(0);
    edge.control().corrupt(&vm).expect("saved");
    let granted = edge.acquire().await;
    assert_eq!(granted.vm.vm.id, vm);
    assert!(running(&granted).contains("reset, since after its resume"), "{}", running(&granted));
    let saved = edge.o.save_vm(&admin(), &vm).await.expect("saved again");
    assert_eq!((saved.vm.state, edge.is(&vm)), (VmState::Saved, Some(Observed::Saved)));
    assert!(!edge.control().is_damaged(&vm).expect("known"));
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(1).await;
    assert_eq!(edge.is(&vm), Some(Observed::Saved));
}

#[tokio::test]
async fn a_damaged_saved_state_without_a_checkpoint_that_works_gives_way_to_a_boot() {
    let edge = Edge::ready(settings(), 1).await;
    let vm = edge.vms().await.remove(0);
    edge.control().corrupt(&vm).expect("saved");
    // Of the clean state, after the damaged one was given up.
    edge.control().fail(Fault::OutOfMemory, Victim::Vm(vm.clone()), 1);
    let granted = edge.acquire().await;
    assert!(running(&granted).contains("booted, since after a reset"), "{}", running(&granted));
    let saved = edge.o.save_vm(&admin(), &vm).await.expect("saved again");
    assert_eq!((saved.vm.state, edge.is(&vm)), (VmState::Saved, Some(Observed::Saved)));
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(1).await;
}

#[tokio::test]
async fn a_lease_on_a_damaged_template_boots_its_clean_disk() {
    let edge = Edge::ready(settings(), 1).await;
    let vm = edge.vms().await.remove(0);
    edge.control().corrupt_template(&id("linux")).expect("a template");
    let granted = edge.acquire().await;
    let told = running(&granted);
    assert!(told.contains("reset, since after its resume saved state is damaged"), "{told}");
    assert!(told.contains("booted, since its clean memory is of no use: saved state is damaged"), "{told}");
    assert_eq!((&granted.vm.vm.id, granted.vm.vm.state), (&vm, VmState::Running));
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(1).await;
    assert!(!edge.control().is_damaged(&vm).expect("known"), "it has a memory of its own");
    let granted = edge.acquire().await;
    assert!(!running(&granted).contains("booted"), "{}", running(&granted));
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(1).await;
}

#[tokio::test]
async fn a_lease_does_not_use_up_a_pool_whose_template_is_damaged() {
    let edge = Edge::ready(Settings { keep_broken: LONG, ..settings() }, 6).await;
    edge.control().corrupt_template(&id("linux")).expect("a template");
    let granted = edge.acquire().await;
    assert_eq!(granted.lease.receipt.as_ref().expect("receipt").replaced, 1);
    assert!(running(&granted).contains("booted, since"), "{}", running(&granted));
    let status = edge.warm(5).await;
    assert_eq!((status.leased, status.quarantined), (1, 1), "what it did not need is left alone");
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(6).await;
}

#[tokio::test]
async fn free_vms_of_a_damaged_template_are_made_ready_anew_while_nobody_waits() {
    let edge = Edge::ready(Settings { provision_parallel: 2, ..quick(10) }, 5).await;
    let vms = edge.vms().await;
    edge.control().corrupt_template(&id("linux")).expect("a template");
    let sound = async || {
        let all = edge.vms().await;
        let damaged = |vm: &VmId| edge.control().is_damaged(vm).unwrap_or(true);
        (all.len() >= 5 && !all.iter().any(damaged)).then_some(all)
    };
    assert_eq!(until("a memory of its own for each", sound).await, vms, "the same ones");
    edge.warm(5).await;
    // And whatever is made of it from now on.
    let more = UpdatePool { desired: Some(6), ..UpdatePool::default() };
    edge.o.update_pool(&id("desk"), None, more).await.expect("changed");
    assert_eq!(edge.warm(6).await.quarantined, 0);
    let made = until("the sixth", sound).await.into_iter().find(|vm| !vms.contains(vm)).expect("the sixth");
    assert_eq!(edge.o.vm(&made).await.expect("vm").vm.state_reason, "booted clean, saved again");
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(edge.acquire().await);
        let told = running(held.last().expect("granted"));
        assert!(!told.contains("since"), "no lease waits for that: {told}");
    }
    for granted in held {
        release(&edge.o, &granted, ReleasePolicy::Reset).await;
    }
    edge.warm(6).await;
}

#[test]
fn a_holder_keeps_the_disk_when_the_saved_memory_is_damaged_while_the_daemon_is_down() {
    let dir = tempfile::tempdir().expect("dir");
    let granted = life(dir.path(), async |edge: Edge| {
        edge.make_pool(64, 1).await;
        let granted = edge.acquire().await;
        let vm = &granted.vm.vm.id;
        edge.o.save_vm(&admin(), vm).await.expect("saved");
        edge.control().corrupt(vm).expect("saved");
        let refused = edge.o.resume_vm(&admin(), vm).await.expect_err("damaged");
        assert_eq!(refused.reason, crate::model::error::Reason::StateDamaged);
        assert_eq!(state(&edge.o, vm).await, VmState::Saved, "whoever asks decides what comes of it");
        granted
    });
    life(dir.path(), async |edge: Edge| {
        let vm = &granted.vm.vm.id;
        until("booted", async || (state(&edge.o, vm).await == VmState::Running).then_some(())).await;
        let why = edge.o.vm(vm).await.expect("vm").vm.state_reason;
        assert!(why.contains("booted, since it could not be resumed"), "{why}");
        assert!(edge.o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
        release(&edge.o, &granted, ReleasePolicy::Reset).await;
        edge.warm(1).await;
    });
}

#[test]
fn a_leased_vm_that_dies_while_the_daemon_is_down_is_lost() {
    let dir = tempfile::tempdir().expect("dir");
    let granted = life(dir.path(), async |edge: Edge| {
        edge.make_pool(64, 2).await;
        edge.acquire().await
    });
    let vm = &granted.vm.vm.id;
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let hv = SimHypervisor::open(SimConfig::new(dir.path().join("sim"))).expect("a world");
        hv.control().kill(vm).expect("it runs");
    });
    drop(runtime);
    life(dir.path(), async |edge: Edge| {
        let lease = edge.o.lease(&granted.lease.id).await.expect("lease");
        assert_eq!(
            lease.ended,
            Some(EndedAs::VmLost),
            "its holder is told, and gets no desktop that was booted"
        );
        assert!(lease.end_reason.contains("while nobody watched it"), "{}", lease.end_reason);
        assert_eq!(state(&edge.o, vm).await, VmState::Error);
        edge.warm(2).await;
    });
}

#[test]
fn an_address_that_changes_with_a_resume_is_in_receipt_and_row() {
    let dir = tempfile::tempdir().expect("dir");
    let (vm, known) = life(dir.path(), async |edge: Edge| {
        edge.make_pool(64, 1).await;
        let mut seen = HashSet::new();
        for _ in 0..3 {
            edge.control().fail(Fault::AddressChanges, Victim::Any, 1);
            let granted = edge.acquire().await;
            let checks = granted.lease.receipt.clone().expect("receipt").checks;
            let identity =
                checks.into_iter().find(|check| check.kind == CheckKind::Identity).expect("checked");
            let address = granted.vm.vm.ip_address.clone();
            let told = format!("address {address}");
            assert!(identity.detail.ends_with(&told), "{}, {told}", identity.detail);
            assert!(seen.insert(address.clone()), "{address} again: {seen:?}");
            until("in the row", async || {
                let handle = edge.o.0.registry.get(&granted.vm.vm.id).expect("vm");
                (handle.row().ip_address == address).then_some(())
            })
            .await;
            release(&edge.o, &granted, ReleasePolicy::Reset).await;
            edge.warm(1).await;
        }
        let vm = edge.vms().await.remove(0);
        let known = edge.o.vm(&vm).await.expect("vm").vm.ip_address;
        (vm, known)
    });
    life(dir.path(), async |edge: Edge| {
        let told = edge.o.vm(&vm).await.expect("vm").vm.ip_address;
        assert_eq!((told.as_str(), known.as_str()), ("", ""), "it is at rest");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_at_once_never_have_the_same_vm() {
    let edge = Edge::ready(settings(), 4).await;
    let held: Arc<Mutex<HashSet<VmId>>> = Arc::default();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (o, held) = (edge.o.clone(), Arc::clone(&held));
        callers.spawn(async move {
            let granted = o.acquire(&admin(), wanted(LONG)).await.expect("granted");
            let vm = granted.vm.vm.id.clone();
            assert!(held.lock().expect("lock").insert(vm.clone()), "{vm} is held twice");
            tokio::task::yield_now().await;
            assert!(held.lock().expect("lock").remove(&vm));
            release(&o, &granted, ReleasePolicy::Reset).await;
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("served");
    }
    edge.warm(4).await;
}

#[tokio::test]
async fn the_hosts_memory_is_promised_up_to_its_share_and_saved_vms_count() {
    let tenth = super::super::calls::host::memory().0 / (1 << 20) / 10;
    for (percent, room) in [(80, 8), (50, 5)] {
        let settings = Settings { memory_limit_percent: percent, ..settings() };
        let edge = Edge::with_pool(settings, tenth, 12).await;
        let status = status_when(&edge.o, "desk", "a reason", |status| {
            status.warm == room
                && status.shortfalls.iter().any(|one| one.reason == ShortfallReason::HostMemory)
        })
        .await;
        assert!(status.reason.contains(&format!("{percent} %")), "{}", status.reason);
        assert_eq!(status.total, room, "all of them saved, none running");
        // One that runs needs what it was counted with before.
        let granted = edge.acquire().await;
        let poke = UpdatePool { desired: Some(13), ..UpdatePool::default() };
        edge.o.update_pool(&id("desk"), None, poke).await.expect("changed");
        release(&edge.o, &granted, ReleasePolicy::Reset).await;
        assert_eq!(edge.warm(room).await.total, room);
    }
}

#[tokio::test]
async fn a_vm_that_the_hypervisor_stops_is_told_and_goes_on_when_asked() {
    let edge = Edge::ready(settings(), 1).await;
    let granted = edge.acquire().await;
    let vm = &granted.vm.vm.id;
    for _ in 0..2 {
        edge.control().halt(vm, "the host can't write its disk: No space left on device").expect("it runs");
        until("told", async || (state(&edge.o, vm).await == VmState::Paused).then_some(())).await;
        let why = edge.o.vm(vm).await.expect("vm").vm.state_reason;
        assert!(why.contains("No space left"), "{why}");
        assert!(edge.o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
        edge.o.resume_vm(&admin(), vm).await.expect("resumed");
        assert_eq!(state(&edge.o, vm).await, VmState::Running);
    }
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(1).await;

    // Nobody's: put back by itself.
    let hot = UpdatePool { hot: Some(1), ..UpdatePool::default() };
    edge.o.update_pool(&id("desk"), None, hot).await.expect("changed");
    let is_hot = |status: &PoolStatus| status.hot == 1;
    status_when(&edge.o, "desk", "hot", is_hot).await;
    let before = edge.o.vm(vm).await.expect("vm").vm.version;
    edge.control().halt(vm, "the host can't write its disk: No space left on device").expect("it runs");
    let again = async || (edge.o.vm(vm).await.expect("vm").vm.version > before + 2).then_some(());
    until("put back", again).await;
    status_when(&edge.o, "desk", "hot again", is_hot).await;
}

fn quick(every: u64) -> Settings {
    Settings { reconcile_every: Duration::from_millis(every), ..settings() }
}

#[tokio::test]
async fn what_vanishes_and_what_nobody_knows_is_found_while_the_daemon_runs() {
    let edge = Edge::ready(Settings { keep_broken: LONG, ..quick(10) }, 2).await;
    // Saved, so no process ends with it.
    let lost = edge.vms().await.remove(0);
    edge.control().vanish(&lost).expect("there");
    let status =
        status_when(&edge.o, "desk", "replaced", |status| (status.warm, status.error) == (2, 1)).await;
    assert!(status.vms.contains(&lost), "kept for a look");
    let why = edge.o.vm(&lost).await.expect("vm").vm.state_reason;
    assert!(why.contains("files are gone"), "{why}");

    let first: TemplateId = id("linux");
    let stranger = VmDefinition { id: id("stranger"), uid: Uuid::new_v4(), origin: Origin::Template(first) };
    edge.hv.define(&stranger).await.expect("made");
    until("removed", async || edge.is(&stranger.id).is_none().then_some(())).await;

    // Somebody's hand on the hypervisor: one that is leased goes on, one that is free is cleaned.
    let granted = edge.acquire().await;
    let vm = granted.vm.vm.id.clone();
    edge.hv.save(&vm).await.expect("saved");
    until("resumed", async || matches!(edge.is(&vm), Some(Observed::Running(_))).then_some(())).await;
    assert!(edge.o.lease(&granted.lease.id).await.expect("lease").ended.is_none());
    release(&edge.o, &granted, ReleasePolicy::Reset).await;
    edge.warm(2).await;
    edge.hv.resume(&vm).await.expect("resumed");
    until("cleaned", async || (edge.is(&vm) == Some(Observed::Saved)).then_some(())).await;
    edge.warm(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_in_the_middle_of_moves_takes_nothing_away() {
    let edge = Edge::ready(quick(1), 3).await;
    let mut work = tokio::task::JoinSet::new();
    for n in 0..3 {
        let o = edge.o.clone();
        work.spawn(async move {
            for round in 0..8 {
                let granted = o.acquire(&admin(), wanted(LONG)).await.expect("granted");
                let vm = granted.vm.vm.id.clone();
                o.save_vm(&admin(), &vm).await.expect("saved");
                let new = Some(id(&format!("fork-{n}-{round}")));
                let fork =
                    o.fork_vm(&admin(), Fork { vm: vm.clone(), new, request: None }).await.expect("forked");
                o.resume_vm(&admin(), &vm).await.expect("resumed");
                o.delete_vm(&admin(), &fork.vm.id, false, None).await.expect("deleted");
                release(&o, &granted, ReleasePolicy::Reset).await;
            }
        });
    }
    let o = edge.o.clone();
    work.spawn(async move {
        for _ in 0..3 {
            let operation = o.create_template(template("other")).await.expect("template");
            let done = o.wait_operation(&operation.id, LONG).await.expect("operation");
            assert_eq!(done.outcome, Some(Outcome::Ready), "its vm has no row and is known all the same");
            o.delete_template(&id("other"), None).await.expect("deleted");
        }
    });
    while let Some(done) = work.join_next().await {
        done.expect("nothing was taken away");
    }
    let status = edge.warm(3).await;
    assert_eq!((status.total, status.error, status.quarantined), (3, 0, 0));
}

#[tokio::test]
async fn a_guest_that_hangs_after_its_resume_is_reset_and_then_booted() {
    for (hangs, told) in [(1, "reset, since after its resume"), (2, "booted, since after a reset")] {
        let quick = Duration::from_millis(if hangs == 2 { 500 } else { 20_000 });
        let settings =
            Settings { answer_timeout: Duration::from_millis(300), agent_timeout: quick, ..settings() };
        let edge = Edge::ready(settings, 1).await;
        edge.control().fail(Fault::GuestHangs, Victim::Any, hangs);
        let granted = edge.acquire().await;
        assert!(running(&granted).contains(told), "{}", running(&granted));
        assert_eq!(granted.lease.receipt.as_ref().expect("receipt").replaced, 0);
        release(&edge.o, &granted, ReleasePolicy::Reset).await;
        edge.warm(1).await;
    }
}
