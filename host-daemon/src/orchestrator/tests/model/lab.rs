//! The daemon under test: its whole orchestrator on a store and a simulated world that outlive it.
//!
//! It lives in a runtime of one thread that goes on only while the test lets it, one poll of a task after the other. So it
//! can be stopped at any await: dropping the runtime drops every task where it stands, as `kill -9` would.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::ops::Leaves;
use super::rows::{Reader, Rows};
use super::{Figures, SHORTENING, Verdict};
use crate::hypervisor::sim::{Control, SimConfig, SimHypervisor};
use crate::model::ids::TemplateId;
use crate::model::record::Outcome;
use crate::orchestrator::agents::AgentSettings;
use crate::orchestrator::agents::request::GuestWorkflow;
use crate::orchestrator::tests::{LONG, id, pool, status_when, template};
use crate::orchestrator::{Orchestrator, Settings};
use crate::store::{Store, StoreConfig};

/// In which everything comes to rest, unless it is stuck. Other tests want the processors too.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same when it is known to fail and only made short.
const LESS_PATIENCE: Duration = Duration::from_secs(4);
/// Often enough to meet everything.
const RECONCILE: Duration = Duration::from_millis(40);
/// A call of the hypervisor comes within this time, or none does.
const CALL: Duration = Duration::from_millis(20);
/// The template of the pool `desk-0` that every run begins with.
pub(super) const FIRST: &str = "linux";

pub(super) struct Lab {
    dir: tempfile::TempDir,
    seed: u64,
    up: Option<Up>,
    reader: Reader,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) figures: Figures,
    starts: u32,
    /// Leases that this daemon found: whoever asked for them may have died with the one before.
    pub(super) found: BTreeSet<String>,
}

/// A daemon that runs.
struct Up {
    o: Orchestrator,
    hv: Arc<SimHypervisor>,
    clients: JoinSet<()>,
    runtime: Runtime,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // After each task's poll it is our turn.
        .event_interval(1)
        .build()
        .expect("runtime")
}

/// Lets the other tasks go on for so many polls.
pub(super) async fn polls(count: u16) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn settings(dir: &Path, save_on_shutdown: bool) -> Settings {
    let program = |argv: &[&str]| GuestWorkflow {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        cwd: String::new(),
        timeout: Duration::from_secs(2),
        as_root: false,
        screenshot: false,
    };
    let workflows =
        [("echo", program(&["cat"])), ("sleep", program(&["sleep", "0.05"])), ("fail", program(&["false"]))];
    let agents = AgentSettings {
        dir: dir.join("agents"),
        claim_ttl: Duration::from_millis(500),
        workflows: workflows.into_iter().map(|(name, flow)| (name.to_owned(), flow)).collect(),
        ..AgentSettings::default()
    };
    Settings {
        data_dir: dir.to_owned(),
        // Long against the milliseconds that it takes here, short against our patience.
        boot_timeout: Duration::from_millis(1500),
        answer_timeout: Duration::from_millis(250),
        agent_timeout: Duration::from_millis(500),
        keep_broken: Duration::from_millis(50),
        drain_timeout: Duration::from_secs(2),
        scale_down_after: Duration::from_millis(30),
        queue_ageing: Duration::from_millis(200),
        memory_limit_percent: 0,
        save_on_shutdown,
        agents,
        ..crate::orchestrator::tests::settings()
    }
}

/// A store and a world with a template and a pool, made once and copied for each run.
fn prepared() -> &'static Path {
    static PREPARED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let runtime = runtime();
        runtime.block_on(async {
            let config = SimConfig::new(dir.path().join("sim"));
            let hv = Arc::new(SimHypervisor::open(config).expect("a world"));
            let store = StoreConfig { path: dir.path().join("store.db"), durable: false };
            let store = Store::open(&store).await.expect("store");
            let o = Orchestrator::start(store, hv, settings(dir.path(), true)).await.expect("started");
            let operation = o.create_template(template(FIRST)).await.expect("template");
            let done = o.wait_operation(&operation.id, LONG).await.expect("operation");
            assert_eq!(done.outcome, Some(Outcome::Ready));
            o.create_pool(pool("desk-0", 3)).await.expect("pool");
            status_when(&o, "desk-0", "ready", |status| status.warm == 3).await;
            o.shutdown().await;
        });
        runtime.shutdown_timeout(LONG);
        dir
    });
    prepared.path()
}

impl Lab {
    pub(super) fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("sim")).expect("made");
        for file in ["store.db", "sim/journal"] {
            std::fs::copy(prepared().join(file), dir.path().join(file)).expect("copied");
        }
        let reader = Reader::open(&dir.path().join("store.db")).expect("a reader");
        let mut lab = Self {
            dir,
            seed,
            up: None,
            reader,
            ledger: Arc::default(),
            figures: Figures::default(),
            starts: 0,
            found: BTreeSet::new(),
        };
        lab.start(None).expect("the first start");
        lab
    }

    /// Whether rows and VMs are brought together while the daemon runs. Half of the runs do without: what one part leaves
    /// behind must not be hidden by another that clears it away.
    pub(super) fn reconciles(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    fn up(&self) -> &Up {
        self.up.as_ref().expect("the daemon is up")
    }

    pub(super) fn o(&self) -> &Orchestrator {
        &self.up().o
    }

    pub(super) fn hv(&self) -> &Arc<SimHypervisor> {
        &self.up().hv
    }

    pub(super) fn control(&self) -> Control {
        self.up().hv.control()
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is committed, and what happened behind a revision.
    pub(super) fn rows(&mut self, after: u64) -> Rows {
        self.reader.read(after).expect("the store can be read")
    }

    /// What VMs of the first template begin with.
    pub(super) fn prepared(&self) -> hvkube_guest::sim::State {
        let first: TemplateId = id(FIRST);
        self.control().prepared(&first).expect("prepared")
    }

    /// Starts a daemon. `crash`: it dies after so many polls, if it is not up by then.
    fn start(&mut self, crash: Option<u16>) -> Verdict {
        let (runtime, dir) = (runtime(), self.dir.path().to_owned());
        self.starts += 1;
        let config =
            SimConfig { seed: self.seed ^ u64::from(self.starts), ..SimConfig::new(dir.join("sim")) };
        let hv = Arc::new(SimHypervisor::open(config).map_err(|error| format!("no world: {error}"))?);
        let every = if self.reconciles() { RECONCILE } else { Duration::ZERO };
        let settings = Settings { reconcile_every: every, ..settings(&dir, self.starts.is_multiple_of(2)) };
        let starting = {
            let hv = Arc::clone(&hv);
            async move {
                let store = StoreConfig { path: dir.join("store.db"), durable: false };
                let store = Store::open(&store).await.map_err(|error| format!("no store: {error}"))?;
                let started = Orchestrator::start(store, hv, settings).await;
                started.map_err(|error| format!("the daemon does not start: {error:?}"))
            }
        };
        let started = runtime.block_on(async {
            tokio::select! {
                biased;
                started = starting => Some(started),
                () = async { polls(crash.unwrap_or_default()).await }, if crash.is_some() => None,
            }
        });
        match started {
            Some(o) => {
                self.up = Some(Up { o: o?, hv, clients: JoinSet::new(), runtime });
                let leases = self.rows(u64::MAX).leases.into_iter();
                self.found = leases.filter(|lease| lease.ended.is_none()).map(|lease| lease.id).collect();
                Ok(())
            }
            None => {
                runtime.shutdown_timeout(LONG);
                drop(hv);
                self.start(None)
            }
        }
    }

    /// The daemon dies where it stands, and another one starts. `in_start`: that one dies too.
    pub(super) fn crash(&mut self, in_start: Option<u16>) -> Verdict {
        self.figures.crashes += 1 + u32::from(in_start.is_some());
        let before = self.control().found();
        let Up { o, hv, clients, runtime } = self.up.take().expect("up");
        drop((o, clients));
        runtime.shutdown_timeout(LONG);
        drop(hv);
        let world = SimHypervisor::open(SimConfig::new(self.dir.path().join("sim")))
            .map_err(|error| format!("the world is lost: {error}"))?;
        let after = world.control().found();
        drop(world);
        if before != after {
            return Err(format!("the world is not what it said it is: {before:?}, but then {after:?}"));
        }
        self.start(in_start)
    }

    /// The same in a call of the hypervisor.
    pub(super) fn crash_in_call(&mut self, skip: u8, done: bool) -> Verdict {
        let control = self.control();
        control.stepping(true);
        self.block_on(async {
            let deadline = Instant::now() + CALL;
            let mut left = skip;
            loop {
                if tokio::time::timeout_at(deadline, control.arrived(1)).await.is_err() {
                    break;
                }
                let here = control.waiting().first().is_some_and(|step| step.done == done);
                if here && left == 0 {
                    break;
                }
                left -= u8::from(here);
                let _ = control.step(|_| true);
                tokio::task::yield_now().await;
            }
        });
        drop(control);
        self.crash(None)
    }

    /// The daemon stops in order and starts again.
    pub(super) fn restart(&mut self) -> Verdict {
        let Up { o, hv, mut clients, runtime } = self.up.take().expect("up");
        let stopped = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, async {
                o.shutdown().await;
                // Every request ends, those of a stopping daemon too.
                while let Some(ended) = clients.join_next().await {
                    ended.map_err(|error| format!("a call panicked: {error}"))?;
                }
                Verdict::Ok(())
            })
            .await
        });
        drop((o, clients));
        runtime.shutdown_timeout(LONG);
        drop(hv);
        stopped.map_err(|_| "the daemon does not stop".to_owned())??;
        self.figures.restarts += 1;
        self.start(None)
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.up().runtime.block_on(work)
    }

    /// The daemon goes on for so many polls.
    pub(super) fn go_on(&mut self, count: u16) -> Verdict {
        self.block_on(polls(count));
        self.look_at_clients()
    }

    fn look_at_clients(&mut self) -> Verdict {
        let Some(up) = &mut self.up else { return Ok(()) };
        while let Some(ended) = up.clients.try_join_next() {
            ended.map_err(|error| format!("a call panicked: {error}"))?;
        }
        Ok(())
    }

    /// Somebody calls. `leaves`: they go away after so many polls, whatever has come of it.
    pub(super) fn client(&mut self, leaves: Leaves, call: impl Future<Output = ()> + Send + 'static) {
        self.figures.gone += u32::from(leaves.is_some());
        let Some(up) = &mut self.up else { return };
        let call = async move {
            tokio::select! {
                biased;
                () = call => {}
                () = async { polls(leaves.unwrap_or_default()).await }, if leaves.is_some() => {}
            }
        };
        up.clients.spawn_on(call, up.runtime.handle());
    }

    /// Waits until something holds; `good` gives what is still missing.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut good: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Verdict {
        let patience = if SHORTENING.load(Ordering::Relaxed) { LESS_PATIENCE } else { PATIENCE };
        let deadline = std::time::Instant::now() + patience;
        loop {
            self.look_at_clients()?;
            let missing = match good(self) {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if std::time::Instant::now() > deadline {
                return Err(format!("not in time, {what}: {missing}"));
            }
            self.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
        }
    }

    /// Everything that is under way comes to its end.
    pub(super) fn rest(&mut self) -> Verdict {
        let control = self.control();
        control.stepping(false);
        self.until("all is at rest", |lab| {
            let calls = lab.up().clients.len();
            if calls > 0 {
                return Err(format!("{calls} calls have no answer"));
            }
            let rows = lab.rows(u64::MAX);
            // Agents may wait for a VM for as long as there is none.
            let waiting = rows.agents.iter().filter(|one| one.waits()).count();
            let under_way = lab.o().0.leases.under_way.len();
            if under_way > waiting {
                return Err(format!("{under_way} requests are under way, {waiting} of them wait for a vm"));
            }
            match rows.vms.iter().find(|vm| !vm.at_rest()) {
                Some(vm) => Err(format!("{vm:?}")),
                None => Ok(()),
            }
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(Up { o, hv, clients, runtime }) = self.up.take() else { return };
        drop((o, clients));
        runtime.shutdown_timeout(LONG);
        drop(hv);
    }
}
