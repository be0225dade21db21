//! The orchestrator on a scripted hypervisor: real store, real guest protocol, faults and crashes on demand.

mod agents;
mod choice;
mod claims;
mod crash;
mod edges;
mod hot;
mod leases;
mod masks;
mod model;
mod moves;
mod pools;
mod preempt;
mod queue;
mod restore;
mod rollout;
mod sim;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::request::{Acquire, Caller, CreatePool, CreateTemplate};
use super::view::{Granted, PoolStatus};
use super::{Orchestrator, Settings};
use crate::model::error::Result;
use crate::model::ids::{PoolId, VmId};
use crate::model::lease::ReleasePolicy;
use crate::model::query::{LeaseFilter, Page, RequestId, VmFilter};
use crate::model::queue::Needs;
use crate::model::record::{Availability, Outcome, PoolOptions, PoolSpec};
use crate::model::screen::Size;
use crate::model::template::{Boot, Network, TemplateSpec};
use crate::model::vm::VmState;
use crate::store::{Store, StoreConfig};
use sim::{Sim, World};

/// Nothing here takes so long unless it is stuck.
const LONG: Duration = Duration::from_secs(60);

fn id<T: TryFrom<String>>(text: &str) -> T {
    T::try_from(text.to_owned()).ok().expect("a legal id")
}

fn request(what: &str) -> RequestId {
    RequestId { id: Uuid::new_v4(), fingerprint: what.to_owned() }
}

fn admin() -> Caller {
    Caller::admin()
}

fn settings() -> Settings {
    Settings {
        answer_timeout: Duration::from_secs(5),
        agent_timeout: Duration::from_secs(5),
        preempt_grace: Duration::ZERO,
        proof_every: Duration::from_millis(20),
        settle_quiet: Duration::from_millis(1),
        part_time: Duration::ZERO,
        settle_timeout: Duration::from_millis(10),
        ..Settings::default()
    }
}

/// An orchestrator with the store in `dir` and what `world` has.
async fn start(dir: &Path, world: &Arc<World>) -> Orchestrator {
    start_with(dir, world, settings()).await
}

async fn start_with(dir: &Path, world: &Arc<World>, settings: Settings) -> Orchestrator {
    let settings = Settings { masks_dir: dir.join("masks"), ..settings };
    let store =
        Store::open(&StoreConfig { path: dir.join("store.db"), durable: false }).await.expect("store");
    Orchestrator::start(store, Arc::new(Sim::new(world)), settings).await.expect("started")
}

struct Bench {
    dir: tempfile::TempDir,
    world: Arc<World>,
    o: Orchestrator,
}

impl Bench {
    /// A ready template `linux` and a pool `desk` whose VMs are ready.
    async fn with_pool(size: u32) -> Self {
        Self::on(World::new(true), size).await
    }

    async fn on(world: Arc<World>, size: u32) -> Self {
        let bench = Self::of(world, settings(), pool("desk", size)).await;
        bench.ready("desk", size).await;
        bench
    }

    /// A ready template `linux` and this pool, whatever of it is ready.
    async fn of(world: Arc<World>, settings: Settings, pool: CreatePool) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let o = start_with(dir.path(), &world, settings).await;
        make_template(&o).await;
        o.create_pool(pool).await.expect("pool");
        Self { dir, world, o }
    }

    async fn acquire(&self) -> Result<Granted> {
        self.o.acquire(&admin(), wanted(LONG)).await
    }

    async fn ready(&self, pool: &str, count: u32) -> PoolStatus {
        status_when(&self.o, pool, &format!("{count} warm"), |status| status.warm == count).await
    }

    /// Stops in order and starts again on what is left.
    async fn restart(self) -> Self {
        self.o.shutdown().await;
        let o = start(self.dir.path(), &self.world).await;
        Self { o, ..self }
    }

    /// What must hold whenever nothing is under way.
    async fn check(&self) {
        check(&self.o, &self.world).await;
    }
}

/// For tests of the layers above: a pool `desk` of one VM that somebody holds.
pub(crate) struct Busy {
    bench: Bench,
    held: Granted,
}

impl Busy {
    pub(crate) async fn new() -> Self {
        let bench = Bench::with_pool(1).await;
        let held = bench.acquire().await.expect("granted");
        Self { bench, held }
    }

    pub(crate) fn orchestrator(&self) -> Orchestrator {
        self.bench.o.clone()
    }

    /// A request that has to wait.
    pub(crate) fn wanted(&self) -> Acquire {
        wanted(LONG)
    }

    /// The VM is given back.
    pub(crate) async fn release(&self) {
        release(&self.bench.o, &self.held, ReleasePolicy::Reset).await;
    }

    /// From now on VMs stand still before they are resumed, or go on.
    pub(crate) fn stall(&self, yes: bool) {
        if yes {
            self.bench.world.gate("resume", sim::When::Before);
        } else {
            self.bench.world.ungate();
        }
    }

    /// Nobody waits and nothing is held: the VM is ready.
    pub(crate) async fn ready(&self) {
        status_when(&self.bench.o, "desk", "ready", |status| (status.warm, status.waiting) == (1, 0)).await;
        self.bench.check().await;
    }

    pub(crate) async fn waiting(&self, count: u32) {
        status_when(&self.bench.o, "desk", "waiting", |status| status.waiting == count).await;
    }
}

async fn make_template(o: &Orchestrator) {
    let operation = o.create_template(template("linux")).await.expect("template");
    let done = o.wait_operation(&operation.id, LONG).await.expect("operation");
    assert_eq!(done.outcome, Some(Outcome::Ready));
}

fn template(name: &str) -> CreateTemplate {
    CreateTemplate {
        id: Some(id(name)),
        display_name: String::new(),
        spec: TemplateSpec {
            disk_path: "/golden.raw".into(),
            disk_format: None,
            boot: Boot::Bios,
            memory_mb: 64,
            cpu_count: 1,
            gpu: false,
            network: Network::None,
            display: Size { width: 8, height: 8 },
        },
        installed_software: Vec::new(),
        rdp_port: 0,
        request: None,
    }
}

fn pool(name: &str, desired: u32) -> CreatePool {
    let spec = PoolSpec {
        display_name: String::new(),
        template: id("linux"),
        desired,
        warm: None,
        max_per_host: 0,
        default_ttl: Duration::from_secs(600),
        max_ttl: Duration::from_secs(3600),
        options: PoolOptions::default(),
    };
    CreatePool { id: Some(id(name)), spec, request: None }
}

fn wanted(wait: Duration) -> Acquire {
    Acquire {
        pool: Some(id("desk")),
        priority: 0,
        needs: Needs::default(),
        labels: BTreeMap::new(),
        ttl: None,
        wait,
        purpose: String::new(),
        request: None,
    }
}

async fn status_when(
    o: &Orchestrator,
    pool: &str,
    what: &str,
    good: impl Fn(&PoolStatus) -> bool,
) -> PoolStatus {
    let pool: PoolId = id(pool);
    until(what, async || {
        let status = o.pool(&pool).await.expect("pool").status;
        good(&status).then_some(status)
    })
    .await
}

/// Looks until there is something, and says what was missing when it is not there in time.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    match tokio::time::timeout(LONG, looking).await {
        Ok(found) => found,
        Err(_) => panic!("not in time: {what}"),
    }
}

async fn release(o: &Orchestrator, granted: &Granted, policy: ReleasePolicy) {
    o.release(&admin(), &granted.lease.id, Some(policy)).await.expect("released");
}

async fn state(o: &Orchestrator, vm: &VmId) -> VmState {
    o.vm(vm).await.expect("vm").vm.state
}

/// Waits until nothing is under way, then checks the invariants between store and hypervisor.
async fn check(o: &Orchestrator, world: &World) {
    let page = Page { after: String::new(), limit: 1000 };
    let vms = until("nothing under way", async || {
        let vms = o.vms(&VmFilter::default(), &page).await.expect("vms");
        let still = vms.iter().all(|view| {
            let open = view.vm.pending.is_some() && view.vm.availability != Availability::Leased;
            !view.vm.state.is_transient() && !open
        });
        // A caller who went away may have left a grant in an actor's queue, which is taken back in the background.
        (still && o.0.leases.under_way.is_empty()).then_some(vms)
    })
    .await;
    let leases = o.leases(&LeaseFilter::default(), &page).await.expect("leases");
    for view in &vms {
        let row = &view.vm;
        assert_eq!(row.availability == Availability::Leased, row.lease.is_some(), "{row:?}");
        assert!(!row.suspended || row.lease.is_some(), "suspended without a lease: {row:?}");
        assert!(!row.hot || row.state == VmState::Running, "hot and not running: {row:?}");
        if let Some(lease) = &row.lease {
            assert!(leases.iter().any(|one| one.id == *lease && one.vm == row.id), "{lease} of {}", row.id);
        }
        if row.state != VmState::Error {
            assert_eq!(world.state(&row.id).as_deref(), Some(row.state.as_str()), "{}", row.id);
        }
    }
    for lease in &leases {
        let held = vms.iter().filter(|view| view.vm.lease.as_ref() == Some(&lease.id)).count();
        assert_eq!(held, 1, "vms of {}: {lease:?}", lease.id);
        let suspended = vms.iter().any(|view| view.vm.lease.as_ref() == Some(&lease.id) && view.vm.suspended);
        assert_eq!(lease.suspended.is_some(), suspended, "{lease:?}");
    }
    let mut rows: Vec<String> = vms.iter().map(|view| view.vm.id.to_string()).collect();
    let mut real = world.names();
    rows.retain(|name| {
        real.contains(name) || !vms.iter().any(|v| v.vm.id.as_str() == name && v.vm.state == VmState::Error)
    });
    real.sort();
    rows.sort();
    assert_eq!(rows, real, "rows and vms");
}
