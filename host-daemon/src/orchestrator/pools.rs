//! Pools: who is ready, who waits, and a controller per pool that makes up for what is missing.
//!
//! Callers who wait stand in a queue in the order they came. A VM that becomes ready goes to the first of them as a
//! [`Ticket`]; a ticket that is dropped unused gives its VM back. The ticket is only an invitation: the VM's actor decides
//! with a transaction who gets it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::actor::{Actor, Handle, is_ready};
use super::view::PoolStatus;
use crate::model::error::{Error, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{PoolId, VmId};
use crate::model::policy::{PoolHas, plan};
use crate::model::record::{Availability, Pool, Template, TemplateState, Vm};
use crate::model::vm::VmState;

/// A controller looks again after this long, whatever happened.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After a failure to make a VM: first and longest pause before the next try.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failed VMs kept for a look; more than these only fill the disk.
const BROKEN_KEPT: usize = 3;
/// VMs named in a pool's status.
const NAMED: usize = 100;

/// All pools this daemon controls.
#[derive(Default)]
pub(super) struct Pools {
    all: Mutex<HashMap<PoolId, Arc<PoolState>>>,
    /// VMs wait saved; on a hypervisor without saving they wait running.
    needs_memory: bool,
}

/// What is known of one pool while the daemon runs.
pub(super) struct PoolState {
    id: PoolId,
    /// A VM changed or somebody waits: look when there is time.
    wake: Notify,
    /// The pool itself was changed: look now, also while a pause after a failure goes on.
    changed: Notify,
    /// The pool is deleted, or the daemon stops.
    over: CancellationToken,
    lot: Mutex<Lot>,
}

#[derive(Default)]
struct Lot {
    ready: BTreeSet<VmId>,
    /// VMs whose tickets are under way, few at a time.
    invited: Vec<VmId>,
    waiting: VecDeque<oneshot::Sender<Ticket>>,
    reason: String,
    closed: bool,
}

/// An invitation to lease a VM. Dropped unused, the VM goes to the next one.
pub(super) struct Ticket {
    pub(super) vm: VmId,
    pool: Arc<PoolState>,
    used: bool,
}

impl Ticket {
    fn new(pool: &Arc<PoolState>, lot: &mut Lot, vm: VmId) -> Self {
        lot.invited.push(vm.clone());
        Self { vm, pool: Arc::clone(pool), used: false }
    }

    /// The VM was leased, or turned out not to be ready.
    pub(super) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        {
            let mut lot = self.pool.lot();
            if let Some(at) = lot.invited.iter().position(|vm| *vm == self.vm) {
                lot.invited.swap_remove(at);
            }
        }
        if self.used {
            // It may have become ready again before its ticket went.
            self.pool.wake.notify_one();
        } else {
            PoolState::offer(&self.pool, self.vm.clone());
        }
    }
}

impl PoolState {
    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.lot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM is ready: to the first who still waits, else among the ready ones. One whose ticket is under way is not
    /// offered again: whoever is invited in vain loses their turn to the one behind.
    fn offer(this: &Arc<Self>, vm: VmId) {
        loop {
            let mut lot = this.lot();
            if lot.invited.contains(&vm) {
                return;
            }
            let Some(next) = lot.waiting.pop_front() else {
                lot.ready.insert(vm);
                return;
            };
            let ticket = Ticket::new(this, &mut lot, vm.clone());
            drop(lot);
            match next.send(ticket) {
                Ok(()) => return,
                // That one has gone.
                Err(back) => back.used(),
            }
        }
    }

    fn withdraw(&self, vm: &VmId) {
        self.lot().ready.remove(vm);
    }
}

impl Pools {
    pub(super) fn new(needs_memory: bool) -> Self {
        Self { needs_memory, ..Self::default() }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PoolId, Arc<PoolState>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &PoolId) -> Option<Arc<PoolState>> {
        self.all().get(id).cloned()
    }

    /// A VM's row changed.
    pub(super) fn vm_changed(&self, row: &Vm) {
        let Some(pool) = row.pool.as_ref().and_then(|id| self.get(id)) else { return };
        if is_ready(row, self.needs_memory) {
            PoolState::offer(&pool, row.id.clone());
        } else {
            pool.withdraw(&row.id);
        }
        if !row.state.is_transient() {
            pool.wake.notify_one();
        }
    }

    /// A VM is gone.
    pub(super) fn vm_gone(&self, row: &Vm) {
        if let Some(pool) = row.pool.as_ref().and_then(|id| self.get(id)) {
            pool.withdraw(&row.id);
            pool.wake.notify_one();
        }
    }

    /// Something about the pool changed.
    pub(super) fn wake(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.wake.notify_one();
            pool.changed.notify_one();
        }
    }

    /// Whether VMs of the pool may be leased.
    pub(super) fn is_open(&self, id: &PoolId) -> bool {
        self.get(id).is_some_and(|pool| !pool.lot().closed)
    }

    /// Waits for a VM, in the order of coming; nothing when the deadline passes or the pool goes away. Whoever got a VM
    /// that was no good stands in front `again`.
    pub(super) async fn take(&self, id: &PoolId, deadline: Instant, again: bool) -> Option<Ticket> {
        let pool = self.get(id)?;
        let answer = {
            let mut lot = pool.lot();
            if lot.closed {
                return None;
            }
            if let Some(vm) = lot.ready.pop_first() {
                return Some(Ticket::new(&pool, &mut lot, vm));
            }
            let (next, answer) = oneshot::channel();
            // Those who gave up would stay until a VM comes, which may be never.
            lot.waiting.retain(|one| !one.is_closed());
            if again {
                lot.waiting.push_front(next);
            } else {
                lot.waiting.push_back(next);
            }
            answer
        };
        // One more waits: the pool may be allowed to grow.
        pool.wake.notify_one();
        let ticket = timeout_at(deadline, answer).await.ok()?.ok();
        if ticket.is_none() {
            tracing::debug!(pool = %id, "the pool went away while a caller waited");
        }
        ticket
    }

    /// Sends everybody who waits away.
    pub(super) fn close_all(&self) {
        for pool in self.all().values() {
            let mut lot = pool.lot();
            lot.closed = true;
            lot.waiting.clear();
        }
    }

    /// Sends everybody away who waits for this pool; nobody can wait any more.
    pub(super) fn close_queue(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            let mut lot = pool.lot();
            lot.closed = true;
            lot.waiting.clear();
        }
    }

    /// A pool of the same name may have been made since this one's row went.
    fn forget(&self, state: &Arc<PoolState>) {
        {
            let mut lot = state.lot();
            lot.closed = true;
            lot.waiting.clear();
        }
        let mut all = self.all();
        if all.get(&state.id).is_some_and(|present| Arc::ptr_eq(present, state)) {
            all.remove(&state.id);
        }
        drop(all);
        state.over.cancel();
    }

    /// Cancelled when the pool is gone, its VMs before it, or the daemon stops.
    pub(super) fn over(&self, id: &PoolId) -> Option<CancellationToken> {
        self.get(id).map(|pool| pool.over.clone())
    }

    /// No VM of the pool is leased from now on; those who wait go on waiting.
    pub(super) fn close(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.lot().closed = true;
        }
    }

    /// Lets VMs of the pool be leased again.
    pub(super) fn reopen(&self, id: &PoolId) {
        if let Some(pool) = self.get(id) {
            pool.lot().closed = false;
        }
    }
}

/// Begins to control a pool.
pub(super) fn control(shared: &Arc<Shared>, id: PoolId) {
    let state = Arc::new(PoolState {
        id: id.clone(),
        wake: Notify::new(),
        changed: Notify::new(),
        over: CancellationToken::new(),
        lot: Mutex::default(),
    });
    shared.pools.all().insert(id.clone(), Arc::clone(&state));
    // VMs that are there already were announced before anybody listened.
    shared.registry.each_of(&id, |row| {
        if is_ready(row, shared.pools.needs_memory) {
            state.lot().ready.insert(row.id.clone());
        }
    });
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let mut pause = FIRST_PAUSE;
        let stop = shared.stopping.clone();
        loop {
            // What changed before this look is seen by it; only what comes after cuts a pause short.
            let _ = state.changed.notified().now_or_never();
            let next = tokio::select! {
                () = stop.cancelled() => break,
                next = look(&shared, &state) => next,
            };
            match next {
                Ok(Next::Gone) => break,
                Ok(Next::Wait) => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        () = stop.cancelled() => break,
                        _ = timeout(LOOK_EVERY, state.wake.notified()) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(pool = %state.id, error = &error as &dyn std::error::Error, "pool not filled");
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = state.changed.notified() => pause = FIRST_PAUSE,
                        () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    }
                }
            }
        }
        shared.pools.forget(&state);
    });
}

enum Next {
    Wait,
    Gone,
}

/// One look at a pool: make, delete, replace. An error means that making a VM failed.
async fn look(shared: &Arc<Shared>, state: &Arc<PoolState>) -> Result<Next> {
    let Some(pool) = shared.store.pool(&state.id).await? else { return Ok(Next::Gone) };
    if pool.deleting {
        return dissolve(shared, &pool).await;
    }
    let Some(template) = shared.store.template(&pool.spec.template).await? else {
        return Ok(Next::Wait);
    };
    sweep(shared, &pool).await;
    offer_again(shared, state);
    let plan = plan(&pool.spec, count(shared, &pool, state));
    for _ in 0..plan.delete {
        // Last in, first out: the others are in the page cache.
        let surplus = state.lot().ready.pop_last();
        let Some(vm) = surplus else { break };
        condemn(shared, &vm).await;
    }
    if plan.create > 0 && template.state != TemplateState::Ready {
        state.lot().reason = format!("template {} is not ready", template.id);
        return Ok(Next::Wait);
    }
    let result = create(shared, &pool, &template, plan.create).await;
    state.lot().reason = match &result {
        Err(error) => format!("making a vm failed: {error}"),
        Ok(()) if plan.forbidden > 0 => {
            format!("{} more wanted, max_per_host is {}", plan.forbidden, pool.spec.max_per_host)
        }
        Ok(()) => String::new(),
    };
    result.map(|()| Next::Wait)
}

/// Offers what is ready and nobody was told of, for instance because deleting it failed.
fn offer_again(shared: &Shared, state: &Arc<PoolState>) {
    let mut ready = Vec::new();
    shared.registry.each_of(&state.id, |row| {
        if is_ready(row, shared.pools.needs_memory) {
            ready.push(row.id.clone());
        }
    });
    for vm in ready {
        PoolState::offer(state, vm);
    }
}

/// What a pool has now.
fn count(shared: &Shared, pool: &Pool, state: &PoolState) -> PoolHas {
    let waiting = state.lot().waiting.iter().filter(|one| !one.is_closed()).count();
    let mut has = PoolHas { waiting: u32::try_from(waiting).unwrap_or(u32::MAX), ..PoolHas::default() };
    shared.registry.each_of(&pool.id, |row| match row.availability {
        Availability::Leased => has.leased += 1,
        Availability::Quarantined => {}
        Availability::Idle if row.state == VmState::Error => {}
        Availability::Idle if row.state == VmState::Deleting => {}
        Availability::Idle if is_ready(row, shared.pools.needs_memory) => has.warm += 1,
        Availability::Idle if row.pending.is_some() || row.state.is_transient() => has.coming += 1,
        Availability::Idle => has.strayed += 1,
    });
    has
}

/// Makes VMs, some at a time, and waits for them; the first failure stops the rest.
async fn create(shared: &Arc<Shared>, pool: &Pool, template: &Template, how_many: u32) -> Result<()> {
    let places = Arc::new(Semaphore::new(shared.settings.provision_parallel.max(1)));
    let mut making = tokio::task::JoinSet::new();
    let mut result = Ok(());
    for _ in 0..how_many {
        let place = Arc::clone(&places).acquire_owned().await;
        while let Some(done) = making.try_join_next() {
            result = result.and(joined(done));
        }
        if result.is_err() {
            break;
        }
        let handle = insert(shared, pool, template).await?;
        making.spawn(async move {
            let _place = place;
            handle.call(|vm| Box::pin(vm.provision())).await
        });
    }
    while let Some(done) = making.join_next().await {
        result = result.and(joined(done));
    }
    result
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.unwrap_or_else(|error| {
        Err(Error::internal(crate::model::error::Reason::Internal, "making a vm panicked", error))
    })
}

/// Adds a VM's row and starts its actor.
async fn insert(shared: &Arc<Shared>, pool: &Pool, template: &Template) -> Result<Handle> {
    loop {
        let number = shared.store.take_vm_number(&pool.id).await?;
        let row = new_row(vm_id(&pool.id, number)?, template, Some(pool.id.clone()));
        let event = Event::of_vm(EventKind::VmCreated, &row, &row.state_reason, "");
        match shared.store.insert_vm(&row, None, event).await {
            Ok(()) => return Ok(Actor::spawn(shared, row)),
            // Somebody gave a fork that name: the next number.
            Err(crate::store::StoreError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `{pool}-{number}`, the pool's name cut where both do not fit.
fn vm_id(pool: &PoolId, number: u64) -> Result<VmId> {
    let number = number.to_string();
    let room = 63 - 1 - number.len();
    let name = &pool.as_str()[..pool.as_str().len().min(room)];
    VmId::new(format!("{name}-{number}")).map_err(|error| Error::field("pool", error.to_string()))
}

/// The row of a VM that is to be made.
pub(super) fn new_row(id: VmId, template: &Template, pool: Option<PoolId>) -> Vm {
    let now = Timestamp::now();
    Vm {
        id,
        uid: Uuid::new_v4(),
        template: template.id.clone(),
        pool,
        forked_from: None,
        state: VmState::Provisioning,
        state_reason: "wanted".into(),
        state_since: now,
        availability: Availability::Idle,
        lease: None,
        pending: None,
        clean: true,
        epoch: 0,
        ip_address: String::new(),
        memory_mb: template.spec.memory_mb,
        cpu_count: template.spec.cpu_count,
        gpu: template.spec.gpu,
        rdp_port: template.rdp_port,
        created: now,
        last_resumed: None,
        updated: now,
        version: 1,
    }
}

/// Deletes failed VMs that were kept long enough, and all but the latest few.
async fn sweep(shared: &Arc<Shared>, pool: &Pool) {
    let mut broken = Vec::new();
    shared.registry.each_of(&pool.id, |row| {
        let failed = row.state == VmState::Error || row.availability == Availability::Quarantined;
        if failed && row.availability != Availability::Leased && row.pending.is_none() {
            broken.push((row.state_since, row.id.clone()));
        }
    });
    broken.sort_unstable();
    let keep_from = broken.len().saturating_sub(BROKEN_KEPT);
    let now = Timestamp::now();
    for (index, (since, vm)) in broken.into_iter().enumerate() {
        let age = now.duration_since(since).unsigned_abs();
        if index < keep_from || age >= shared.settings.keep_broken {
            condemn(shared, &vm).await;
        }
    }
}

async fn condemn(shared: &Arc<Shared>, vm: &VmId) {
    let result = match shared.registry.get(vm) {
        Ok(handle) => handle.call(|vm| Box::pin(vm.condemn())).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::debug!(%vm, %error, "not deleted");
    }
}

/// Deletes the VMs of a pool that is being deleted, then the pool.
async fn dissolve(shared: &Arc<Shared>, pool: &Pool) -> Result<Next> {
    let mut left = Vec::new();
    shared.registry.each_of(&pool.id, |row| {
        if row.availability != Availability::Leased {
            left.push(row.id.clone());
        }
    });
    let mut any = false;
    shared.registry.each_of(&pool.id, |_| any = true);
    for vm in &left {
        condemn(shared, vm).await;
    }
    if any {
        return Ok(Next::Wait);
    }
    shared.store.delete_pool(&pool.id, Event::of_pool(EventKind::PoolDeleted, pool, "")).await?;
    tracing::info!(pool = %pool.id, "pool deleted");
    Ok(Next::Gone)
}

/// What is where.
pub(super) fn status(shared: &Shared, pool: &Pool) -> PoolStatus {
    let mut status = PoolStatus::default();
    shared.registry.each_of(&pool.id, |row| {
        status.total += 1;
        if status.vms.len() < NAMED {
            status.vms.push(row.id.clone());
        }
        match row.availability {
            Availability::Leased => status.leased += 1,
            Availability::Quarantined => status.quarantined += 1,
            Availability::Idle if row.state == VmState::Error => status.error += 1,
            Availability::Idle if is_ready(row, shared.pools.needs_memory) => status.warm += 1,
            Availability::Idle if row.pending.is_some() || row.state.is_transient() => {
                status.in_transition += 1;
            }
            Availability::Idle => {}
        }
    });
    if let Some(state) = shared.pools.get(&pool.id) {
        let lot = state.lot();
        let waiting = lot.waiting.iter().filter(|one| !one.is_closed()).count();
        status.waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let healthy = status.total - status.quarantined - status.error;
        if healthy < pool.spec.desired {
            status.reason.clone_from(&lot.reason);
        }
    }
    status
}
